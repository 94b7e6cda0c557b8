//! Links whose other side does not do what a broker does. Time passes by itself as soon as nothing else can go
//! on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot::error::TryRecvError;

use super::*;

#[derive(Debug)]
struct Everything;

impl Gate for Everything {
    fn admit(&self, _: &Identity) -> Result<(), Refused> {
        Ok(())
    }
}

impl Sink for Everything {
    fn deliver(&self, _: Delivery) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }

    fn unreachable(&self, _: NodeId) {}

    fn greeted(&self, _: NodeId) {}

    fn connected(&self, _: NodeId) {}
}

impl Answers for Everything {
    fn answer(&self, _: PeerQuestion) -> Pin<Box<dyn Future<Output = PeerAnswer> + Send + '_>> {
        Box::pin(std::future::ready(PeerAnswer::default()))
    }
}

fn identity(node_id: NodeId) -> Identity {
    Identity {
        cluster_id: [7; 16],
        node_id,
        directory_id: [1; 16],
        process_id: [1; 16],
    }
}

/// Broker 2.
fn service() -> PeerService {
    let own = Arc::new(OnceLock::from(identity(2)));
    let all = Arc::new(Everything);
    PeerService::new(own, all.clone(), all.clone(), all)
}

/// A link of broker 1, over which so many bytes are on their way at most.
async fn greeted(
    service: &PeerService,
    bytes: usize,
) -> (Reader<DuplexStream>, Greeted<DuplexStream>) {
    let (near, greeted) = greet(service, bytes, identity(1)).await;
    (near, greeted.unwrap())
}

/// The same for a broker that says that it is this one.
async fn greet(
    service: &PeerService,
    bytes: usize,
    who: Identity,
) -> (
    Reader<DuplexStream>,
    Result<Greeted<DuplexStream>, LinkEnded>,
) {
    let (mut near, far) = duplex(bytes);
    let begin = async {
        near.write_all(PREFACE).await.unwrap();
        write_frame(&mut near, &hello(&who, 2)).await.unwrap();
        let mut near = reader(near);
        let answer = read_frame(&mut near, HELLO_BYTES_MAX)
            .await
            .unwrap()
            .unwrap();
        assert!(answer.meta.hello.is_some());
        near
    };
    tokio::join!(begin, service.greet(far))
}

/// Why the link was ended, as the other side is told.
async fn told(near: &mut Reader<DuplexStream>) -> String {
    loop {
        let frame = read_frame(near, HELLO_BYTES_MAX).await.unwrap().unwrap();
        if let Some(end) = frame.meta.end {
            return end.cause;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_says_no_hello_is_given_up() {
    let (near, far) = duplex(1000);
    let ended = service().greet(far).await.unwrap_err();
    assert_eq!(ended.to_string(), "no hello came");
    assert_eq!(told(&mut reader(near)).await, "no hello came");
}

#[tokio::test(start_paused = true)]
async fn a_link_that_says_nothing_any_more_is_given_up() {
    let (mut near, greeted) = greeted(&service(), 1000).await;
    greeted.listen().await;
    assert_eq!(told(&mut near).await, "nothing comes any more");
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_no_pongs_is_given_up() {
    let (mut near, greeted) = greeted(&service(), 100).await;
    let listening = tokio::spawn(greeted.listen());
    let mut ping = Frame::default();
    ping.meta.ping = 1;
    // Until nobody takes more.
    while write_frame(&mut near, &ping).await.is_ok() {}
    listening.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_no_link_over_one_that_came_later() {
    let service = service();
    let (_first, mut first) = greeted(&service, 1000).await;
    let (_second, mut second) = greeted(&service, 1000).await;
    assert_eq!(first.superseded.try_recv(), Err(TryRecvError::Closed));
    // One that was greeted at last, and had come first.
    let heard = Arc::new(Mutex::new(Instant::now()));
    assert!(service.supersede(&identity(1), 0, &heard).is_err());
    assert_eq!(second.superseded.try_recv(), Err(TryRecvError::Empty));
}

/// Both would vote and acknowledge as the same replicas.
#[tokio::test(start_paused = true)]
async fn a_process_on_a_copied_directory_is_refused_while_the_other_is_heard() {
    let service = service();
    let copy = Identity {
        process_id: [2; 16],
        ..identity(1)
    };
    let (_near, first) = greeted(&service, 1000).await;
    let (mut near, refused) = greet(&service, 1000, copy).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("another process runs as broker 1"), "{why}");
    assert_eq!(told(&mut near).await, why);
    // The same process may connect again, and whoever comes after it has ended.
    let (_near, again) = greeted(&service, 1000).await;
    drop((first, again));
    let (_near, after) = greet(&service, 1000, copy).await;
    let after = after.unwrap();
    // One of which nothing is heard is gone too, as by a loss of power.
    tokio::time::advance(HEARD_WITHIN).await;
    let (_near, back) = greet(&service, 1000, identity(1)).await;
    back.unwrap();
    drop(after);
}
