//! Graceful stops.

use std::collections::BTreeSet;
use std::time::Duration;

use tidelog_broker::Seams;
use tidelog_proto::v1::read_response::Response;
use tidelog_proto::v1::{self, ReadStart};
use tidelog_server::ServerError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::read::Reading;
use crate::support::{Fixture, append_batch, batch, fetch, in_time, told};

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn readers_are_told_and_everything_is_kept() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    f.append("t", 0, &["a"]).await;
    let start = ReadStart {
        topic: "t".to_owned(),
        follow: true,
        ..ReadStart::default()
    };
    let mut reading = Reading::start(&f, start).await;
    reading.started().await;
    assert!(matches!(reading.next().await, Some(Response::Data(_))));
    let Fixture {
        server,
        dir,
        channel,
        log,
        topics,
    } = f;
    // Kept open: a stop does not wait for clients that only stay connected.
    let _channels = (channel, log, topics);
    let (stopped, ()) = in_time(async {
        tokio::join!(server.stop(DEADLINE), async {
            match reading.next().await {
                Some(Response::GoingAway(going)) => assert!(going.drain_ms > 0),
                other => panic!("{other:?}"),
            }
            assert_eq!(reading.next().await, None);
        })
    })
    .await;
    stopped.unwrap();

    let mut again = Fixture::on(dir, Seams::os(), |_| {}).await;
    assert_eq!(again.append("t", 0, &["b"]).await, 1);
    assert_eq!(again.values("t", 0, 0).await, ["a", "b"]);
}

#[tokio::test]
async fn producers_get_their_answers_and_are_told() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let (requests, stream) = mpsc::channel(64);
    let mut log = f.another().await;
    let mut answers = log
        .produce(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    for correlation_id in 0..10 {
        let append = Some(append_batch("t", 0, batch(&["v"])));
        requests
            .send(v1::ProduceRequest {
                correlation_id,
                append,
            })
            .await
            .unwrap();
    }
    let first = in_time(answers.message()).await.unwrap().unwrap();
    let stop = f.server.stop(DEADLINE);
    let rest = async {
        // Answers that are ready together come in any order.
        let mut answered = BTreeSet::from([first.correlation_id]);
        let status = loop {
            match answers.message().await {
                Ok(Some(answer)) => assert!(answered.insert(answer.correlation_id)),
                Ok(None) => panic!("the stream ended as if all had been taken"),
                Err(status) => break status,
            }
        };
        told(status, Code::Unavailable, "SHUTTING_DOWN").can_be_retried();
        // Those that were taken are the first that were sent.
        let count = answered.len();
        assert_eq!(answered.last(), Some(&(count as u64 - 1)));
        count
    };
    let (stopped, answered) = in_time(async { tokio::join!(stop, rest) }).await;
    stopped.unwrap();
    // What was answered is there; what was not was surely not appended.
    let mut again = Fixture::on(f.dir, Seams::os(), |_| {}).await;
    let stored = again.values("t", 0, 0).await.len();
    assert_eq!(stored, answered);
}

#[tokio::test]
async fn waiting_fetches_and_health_watchers_are_told() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let mut health = HealthClient::new(f.channel.clone());
    let request = HealthCheckRequest {
        service: "tidelog.v1.Log".to_owned(),
    };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let first = in_time(watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);

    let mut log = f.log.clone();
    let request = v1::FetchRequest {
        max_wait_ms: 60_000,
        min_bytes: 1,
        ..fetch("t", 0, 0)
    };
    let fetching = tokio::spawn(async move { log.fetch(request).await });
    // A fetch that came too late is refused all the same.
    let stopping = tokio::spawn(f.server.stop(Duration::from_millis(500)));
    let changed = in_time(watch.message()).await.unwrap().unwrap();
    assert_eq!(changed.status(), ServingStatus::NotServing);
    drop(watch);
    let refused = in_time(fetching).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    // A watch that is dropped in time does not hold the stop up.
    in_time(stopping).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_come_to_an_end_is_cut() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    f.append("t", 0, &["a"]).await;
    let mut health = HealthClient::new(f.channel.clone());
    let mut watch = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    in_time(watch.message()).await.unwrap();
    let stopped = in_time(f.server.stop(Duration::from_millis(50))).await;
    assert!(
        matches!(stopped, Err(ServerError::Deadline { .. })),
        "{stopped:?}"
    );
    drop((f.channel, f.log, f.topics, watch));
    // The logs were closed all the same.
    let mut again = Fixture::on(f.dir, Seams::os(), |_| {}).await;
    assert_eq!(again.values("t", 0, 0).await, ["a"]);
}
