//! Links between brokers, over loopback.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tidelog_log::state::GroupKey;
use tidelog_peer::{
    ASK_BYTES_MAX, Answers, AskError, Gate, Identity, Link, LinkConfig, LinkState, NOTE_BYTES_MAX,
    PeerService, Refused, Sink, ask as ask_broker, begins_link,
};
use tidelog_proto::internal::v1::peer_answer::Answer;
use tidelog_proto::internal::v1::peer_question::Question;
use tidelog_proto::internal::v1::{
    PeerAnswer, PeerHere, PeerJoin, PeerQuestion, PeerRefused, PeerWho,
};
use tidelog_record::{PartitionId, TopicId};
use tidelog_replica::catch_up::{CatchUp, CatchUpLetter};
use tidelog_replica::{Delivery, NodeId, Post, replica_of};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// What a sink was told.
#[derive(Debug)]
enum Told {
    Delivered(Delivery),
    Unreachable(NodeId),
}

/// Who has come.
#[derive(Debug, PartialEq)]
enum Met {
    Greeted(NodeId),
    Connected(NodeId),
}

#[derive(Debug)]
struct Collects {
    told: mpsc::Sender<Told>,
    met: mpsc::Sender<Met>,
    /// While it is closed, deliveries wait.
    gate: watch::Receiver<bool>,
}

impl Sink for Collects {
    fn deliver(&self, delivery: Delivery) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let mut gate = self.gate.clone();
            gate.wait_for(|open| *open).await.ok();
            self.told.send(Told::Delivered(delivery)).await.ok();
        })
    }

    fn unreachable(&self, node: NodeId) {
        self.told.try_send(Told::Unreachable(node)).ok();
    }

    fn greeted(&self, node: NodeId) {
        self.met.try_send(Met::Greeted(node)).ok();
    }

    fn connected(&self, node: NodeId) {
        self.met.try_send(Met::Connected(node)).ok();
    }
}

struct Sunk {
    sink: Arc<Collects>,
    told: mpsc::Receiver<Told>,
    met: mpsc::Receiver<Met>,
    gate: watch::Sender<bool>,
}

impl Sunk {
    fn new() -> Self {
        let (told, receiver) = mpsc::channel(10_000);
        let (met, comers) = mpsc::channel(1000);
        let (gate, opened) = watch::channel(true);
        let sink = Collects {
            told,
            met,
            gate: opened,
        };
        Self {
            sink: Arc::new(sink),
            told: receiver,
            met: comers,
            gate,
        }
    }

    async fn next(&mut self) -> Told {
        soon(self.told.recv()).await.unwrap()
    }

    async fn delivered(&mut self) -> Delivery {
        loop {
            if let Told::Delivered(delivery) = self.next().await {
                return delivery;
            }
        }
    }
}

#[derive(Debug)]
struct Refuses(Option<NodeId>);

impl Gate for Refuses {
    fn admit(&self, who: &Identity) -> Result<(), Refused> {
        match self.0 {
            Some(node) if node == who.node_id => Err(Refused(format!("broker {node} was removed"))),
            _ => Ok(()),
        }
    }
}

fn identity(node_id: NodeId) -> Identity {
    Identity {
        process_id: [u8::try_from(node_id).unwrap_or_default(); 16],
        cluster_id: [7; 16],
        node_id,
        directory_id: [u8::try_from(node_id).unwrap(); 16],
    }
}

fn ask(from: NodeId, to: NodeId, what: CatchUp) -> Post {
    Post {
        files: vec![CatchUpLetter {
            key: GroupKey {
                topic_id: TopicId::from_bytes([9; 16]),
                partition: PartitionId::new(0),
            },
            incarnation: 1,
            from: replica_of(from, 0),
            to: replica_of(to, 0),
            what,
        }],
        ..Post::default()
    }
}

fn notes(notes: Vec<Bytes>) -> Post {
    Post {
        notes,
        ..Post::default()
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what)
        .await
        .expect("it takes too long")
}

/// Waits until a link is so.
async fn until(what: &str, link: &Link, is_so: impl Fn(&LinkState) -> bool) {
    let mut state = link.state();
    tokio::time::timeout(Duration::from_secs(30), state.wait_for(is_so))
        .await
        .unwrap_or_else(|_| panic!("it never came to be that {what}"))
        .unwrap();
}

/// A server with its connections: all of it ends when this is dropped, as a process does.
struct Served(Option<tokio::runtime::Runtime>);

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Says who asked, and refuses all else.
#[derive(Debug)]
struct Echoes;

impl Answers for Echoes {
    fn answer(
        &self,
        question: PeerQuestion,
    ) -> Pin<Box<dyn Future<Output = PeerAnswer> + Send + '_>> {
        let answer = match question.question {
            Some(Question::Who(who)) => Answer::Here(PeerHere {
                node_id: who.node_id,
                directory_id: who.directory_id,
                ..PeerHere::default()
            }),
            _ => Answer::Refused(PeerRefused {
                cause: "x".repeat(ASK_BYTES_MAX),
            }),
        };
        let answer = Some(answer);
        Box::pin(std::future::ready(PeerAnswer { answer }))
    }
}

async fn serve(own: Identity, gate: impl Gate, sink: &Sunk, at: &str) -> (String, Served) {
    serve_as(Arc::new(OnceLock::from(own)), gate, sink, at).await
}

async fn serve_as(
    own: Arc<OnceLock<Identity>>,
    gate: impl Gate,
    sink: &Sunk,
    at: &str,
) -> (String, Served) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let service = PeerService::new(own, Arc::new(gate), sink.sink.clone(), Arc::new(Echoes));
    let at = at.to_owned();
    let (bound, address) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let listener = TcpListener::bind(at).await.unwrap();
        bound
            .send(listener.local_addr().unwrap().to_string())
            .unwrap();
        let (asking, asked) = mpsc::channel::<std::io::Result<TcpStream>>(16);
        let questions = tonic::transport::Server::builder().add_service(service.questions());
        tokio::spawn(questions.serve_with_incoming(ReceiverStream::new(asked)));
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let (service, asking) = (service.clone(), asking.clone());
            tokio::spawn(async move {
                let mut first = [0];
                match io.peek(&mut first).await {
                    Ok(1) if begins_link(first[0]) => {
                        if let Ok(greeted) = service.greet(io).await {
                            greeted.listen().await;
                        }
                    }
                    Ok(1) => asking.send(Ok(io)).await.unwrap(),
                    _ => {}
                }
            });
        }
    });
    (soon(address).await.unwrap(), Served(Some(runtime)))
}

fn link(own: NodeId, to: NodeId, address: &str, sink: &Sunk, config: LinkConfig) -> Link {
    Link::start(
        identity(own),
        to,
        address.to_owned(),
        sink.sink.clone(),
        config,
    )
}

fn is_connected(state: &LinkState) -> bool {
    state.is_connected
}

#[tokio::test]
async fn letters_arrive_in_order_and_pings_are_answered() {
    let (mut two, one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let config = LinkConfig {
        ping_interval: Duration::from_millis(5),
        ..LinkConfig::default()
    };
    let link = link(1, 2, &address, &one, config);
    until("it is connected", &link, is_connected).await;
    for number in 0..500 {
        let what = CatchUp::Needed {
            first_index: number,
        };
        link.send(ask(1, 2, what)).unwrap();
        if number % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut expected = 0;
    while expected < 500 {
        let delivery = two.delivered().await;
        assert_eq!(delivery.from, 1);
        for letter in delivery.files {
            assert_eq!(
                letter.what,
                CatchUp::Needed {
                    first_index: expected
                }
            );
            expected += 1;
        }
    }
    until("a ping was answered", &link, |state| {
        state.round_trip.is_some()
    })
    .await;
}

#[tokio::test]
async fn what_is_short_is_written_by_whoever_sends_it() {
    let (mut two, one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let link = link(1, 2, &address, &one, LinkConfig::default());
    until("it is connected", &link, is_connected).await;
    for number in 0..100 {
        let what = CatchUp::Needed {
            first_index: number,
        };
        link.send(ask(1, 2, what.clone())).unwrap();
        // The link's task is on this thread, and does not run: the other side is on others.
        let began = tokio::time::Instant::now();
        let delivery = loop {
            match two.told.try_recv() {
                Ok(Told::Delivered(delivery)) => break delivery,
                Ok(told) => panic!("{told:?}"),
                Err(_) => std::thread::yield_now(),
            }
            assert!(began.elapsed() < Duration::from_secs(30), "nothing came");
        };
        assert_eq!(delivery.files[0].what, what);
        // Only now it does.
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sender_writes_and_what_the_task_writes_stay_in_order() {
    let (mut two, one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let config = LinkConfig {
        direct_bytes_max: 1000,
        // Many frames of one post, and more than a connection takes at once.
        frame_bytes: 10_000,
        ..LinkConfig::default()
    };
    let link = link(1, 2, &address, &one, config);
    until("it is connected", &link, is_connected).await;
    let note = |number: u32, len: usize| {
        let mut note = number.to_le_bytes().to_vec();
        note.resize(4 + len, 7);
        Bytes::from(note)
    };
    let (first, last) = (0_u32, 3000_u32);
    let sending = tokio::task::spawn_blocking(move || {
        let mut number = first;
        while number < last {
            let len = match number % 7 {
                0 => 100_000,
                1 => 5_000,
                _ => 10,
            };
            match link.send(notes(vec![note(number, len), note(number + 1, 10)])) {
                Ok(()) => number += 2,
                // The queue is full.
                Err(_) => std::thread::yield_now(),
            }
        }
        link
    });
    let mut expected = first;
    while expected < last {
        for note in two.delivered().await.notes {
            assert_eq!(note[..4], expected.to_le_bytes());
            expected += 1;
        }
    }
    let link = soon(sending).await.unwrap();
    assert!(link.state().borrow().is_connected);
    assert_eq!(link.stats().queued_bytes.load(Relaxed), 0);
    assert_eq!(link.stats().queued.load(Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_never_rests_is_not_given_up() {
    let (mut two, one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let config = LinkConfig {
        ping_interval: Duration::from_millis(5),
        frame_bytes: 10_000,
        ..LinkConfig::default()
    };
    let link = link(1, 2, &address, &one, config);
    until("it is connected", &link, is_connected).await;
    let mut state = link.state();
    let is_over = Arc::new(AtomicBool::new(false));
    let sending = tokio::task::spawn_blocking({
        let is_over = is_over.clone();
        let long = Bytes::from(vec![7; 100_000]);
        move || {
            while !is_over.load(Relaxed) {
                // Mostly the queue is full.
                if link.send(notes(vec![long.clone(); 2])).is_err() {
                    std::thread::yield_now();
                }
            }
            link
        }
    });
    // Without pings it would not be told of answers, but that the link is lost.
    let mut answers = 0;
    while answers < 20 {
        tokio::select! {
            _ = two.delivered() => {}
            changed = state.changed() => {
                changed.unwrap();
                let now = *state.borrow_and_update();
                assert!(now.is_connected && now.connections == 1, "{now:?}");
                answers += 1;
            }
        }
    }
    is_over.store(true, Relaxed);
    soon(sending).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_short_posts_to_a_broker_that_does_not_read_never_waits() {
    let (mut two, one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let config = LinkConfig {
        ping_timeout: Duration::from_secs(60),
        ..LinkConfig::default()
    };
    let link = link(1, 2, &address, &one, config);
    until("it is connected", &link, is_connected).await;
    two.gate.send_replace(false);
    let note = |number: u32| {
        let mut note = number.to_le_bytes().to_vec();
        note.resize(20_000, 7);
        notes(vec![note.into()])
    };
    // What the connection takes, and the queue.
    let mut taken = 0;
    let fill = async {
        let mut refused = 0;
        while refused < 20_000 {
            if link.send(note(taken)).is_ok() {
                taken += 1;
                refused = 0;
            } else {
                refused += 1;
                tokio::task::yield_now().await;
            }
        }
    };
    soon(fill).await;
    let queue = u32::try_from(LinkConfig::default().queue_len).unwrap();
    assert!((queue..4 * queue).contains(&taken), "{taken} were taken");
    two.gate.send_replace(true);
    let mut expected = 0;
    while expected < taken {
        for note in two.delivered().await.notes {
            assert_eq!(note[..4], expected.to_le_bytes());
            expected += 1;
        }
    }
    assert_eq!(link.state().borrow().connections, 1);
}

#[tokio::test]
async fn a_broker_that_comes_back_is_found_again() {
    let (mut two, mut one) = (Sunk::new(), Sunk::new());
    let (address, served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let link = link(1, 2, &address, &one, LinkConfig::default());
    until("it is connected", &link, is_connected).await;
    link.send(ask(1, 2, CatchUp::Ask)).unwrap();
    two.delivered().await;

    drop(served);
    let told = one.next().await;
    assert!(matches!(told, Told::Unreachable(2)), "{told:?}");
    until("it is not connected", &link, |state| !state.is_connected).await;
    assert!(
        link.send(ask(1, 2, CatchUp::Ask)).is_err(),
        "there is nobody to send to"
    );

    let (_, _served) = serve(identity(2), Refuses(None), &two, &address).await;
    until("it is connected again", &link, is_connected).await;
    link.send(ask(1, 2, CatchUp::Gone)).unwrap();
    assert_eq!(two.delivered().await.files[0].what, CatchUp::Gone);
}

/// One that comes back connects to the others itself, and they need not wait for their next try.
#[tokio::test]
async fn a_broker_that_says_hello_is_connected_to_without_a_pause() {
    let (one, two) = (Sunk::new(), Sunk::new());
    let (free, gone) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    drop(gone);
    // Longer than the test may take.
    let pauses = (Duration::from_hours(1), Duration::from_hours(1));
    let config = LinkConfig {
        pauses,
        ..LinkConfig::default()
    };
    let there = link(1, 2, &free, &one, config.clone());
    until("the first try has failed", &there, |state| {
        state.failures > 0
    })
    .await;
    let (_, _served) = serve(identity(2), Refuses(None), &two, &free).await;
    let (mut one, own) = (one, identity(1));
    let (address, _serves) = serve(own, Refuses(None), &one, "127.0.0.1:0").await;
    let _back = link(2, 1, &address, &two, config);
    assert_eq!(soon(one.met.recv()).await, Some(Met::Greeted(2)));
    there.hurry();
    assert_eq!(soon(one.met.recv()).await, Some(Met::Connected(2)));
    until("it is connected", &there, is_connected).await;
}

#[tokio::test]
async fn whoever_is_no_peer_is_refused() {
    let other_cluster = Identity {
        cluster_id: [8; 16],
        ..identity(1)
    };
    let (two, one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(Some(3)), &two, "127.0.0.1:0").await;
    let start = |own, to| {
        let sink = one.sink.clone();
        Link::start(own, to, address.clone(), sink, LinkConfig::default())
    };
    let refused = [
        start(other_cluster, 2),
        start(identity(1), 4),
        start(identity(3), 2),
    ];
    // One that is let in, after the others have tried.
    let welcome = start(identity(1), 2);
    until("it is connected", &welcome, is_connected).await;
    for link in &refused {
        // Again and again.
        until("it was refused", link, |state| state.failures > 2).await;
        assert_eq!(link.state().borrow().connections, 0);
        assert!(link.send(ask(1, 2, CatchUp::Ask)).is_err());
    }
}

#[tokio::test]
async fn a_broker_that_connects_again_is_heard_on_its_last_connection_only() {
    let (mut two, mut one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let hour = Duration::from_secs(3600);
    let once = LinkConfig {
        pauses: (hour, hour),
        ..LinkConfig::default()
    };
    let first = link(1, 2, &address, &one, once);
    until("it is connected", &first, is_connected).await;
    // As after a loss of power: the connection of before is not known to be gone.
    let second = link(1, 2, &address, &one, LinkConfig::default());
    until("the second is connected", &second, is_connected).await;
    let told = one.next().await;
    assert!(matches!(told, Told::Unreachable(2)), "{told:?}");
    assert!(!first.state().borrow().is_connected);
    second.send(ask(1, 2, CatchUp::Gone)).unwrap();
    assert_eq!(two.delivered().await.files[0].what, CatchUp::Gone);
}

/// Lets everybody in until it is closed.
#[derive(Debug)]
struct Closes(watch::Receiver<bool>);

impl Gate for Closes {
    fn admit(&self, who: &Identity) -> Result<(), Refused> {
        match *self.0.borrow() {
            true => Err(Refused(format!("broker {} was removed", who.node_id))),
            false => Ok(()),
        }
    }
}

#[tokio::test]
async fn whoever_is_removed_is_not_heard_any_more_on_the_connection_it_has() {
    let (mut two, mut one) = (Sunk::new(), Sunk::new());
    let (close, is_closed) = watch::channel(false);
    let (address, _served) = serve(identity(2), Closes(is_closed), &two, "127.0.0.1:0").await;
    let link = link(1, 2, &address, &one, LinkConfig::default());
    until("it is connected", &link, is_connected).await;
    link.send(ask(1, 2, CatchUp::Ask)).unwrap();
    two.delivered().await;
    close.send_replace(true);
    // It may be noticed before, by a ping.
    drop(link.send(ask(1, 2, CatchUp::Gone)));
    let told = one.next().await;
    assert!(matches!(told, Told::Unreachable(2)), "{told:?}");
    until("it is refused", &link, |state| state.failures > 2).await;
    assert!(two.told.try_recv().is_err(), "nothing more was delivered");
}

#[tokio::test]
async fn a_slow_broker_holds_back_itself_alone_and_memory_is_bounded() {
    let (mut two, three, one) = (Sunk::new(), Sunk::new(), Sunk::new());
    let (address_two, _two) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let (address_three, _three) = serve(identity(3), Refuses(None), &three, "127.0.0.1:0").await;
    let config = LinkConfig {
        queue_bytes_max: 8 << 20,
        ping_timeout: Duration::from_secs(60),
        ..LinkConfig::default()
    };
    let to_two = link(1, 2, &address_two, &one, config.clone());
    let to_three = link(1, 3, &address_three, &one, config);
    until("two is connected", &to_two, is_connected).await;
    until("three is connected", &to_three, is_connected).await;
    three.gate.send_replace(false);
    let part = |to| {
        let bytes = Bytes::from(vec![1; 1 << 20]);
        let (manifest, file, position) = (1, 2, 3);
        let what = CatchUp::Part {
            manifest,
            file,
            position,
            bytes,
        };
        ask(1, to, what)
    };
    // The window of the connection and the queue take some; then no more.
    let mut taken = 0;
    let fill = async {
        let mut refused = 0;
        while refused < 20_000 {
            if to_three.send(part(3)).is_ok() {
                taken += 1;
                refused = 0;
            } else {
                refused += 1;
                tokio::task::yield_now().await;
            }
        }
    };
    soon(fill).await;
    assert!(taken < 100, "{taken} MiB were taken");
    to_two.send(part(2)).unwrap();
    two.delivered().await;
    assert!(to_three.state().borrow().is_connected);
}

/// A proxy that passes on what comes, until it is told to swallow everything and say nothing.
async fn proxy(to: String, open: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut inbound, _)) = listener.accept().await {
            let mut open = open.clone();
            let to = to.clone();
            tokio::spawn(async move {
                let mut outbound = TcpStream::connect(to).await.unwrap();
                let closed = async {
                    open.wait_for(|open| !*open).await.ok();
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut inbound, &mut outbound) => {}
                    () = closed => {
                        // The connection stays open, and nothing goes through it.
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_connection_over_which_nothing_comes_any_more_is_given_up() {
    let (two, mut one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let (open, opened) = watch::channel(true);
    let address = proxy(address, opened).await;
    let config = LinkConfig {
        ping_interval: Duration::from_millis(20),
        ping_timeout: Duration::from_secs(2),
        ..LinkConfig::default()
    };
    let link = link(1, 2, &address, &one, config);
    until("it is connected", &link, is_connected).await;
    open.send_replace(false);
    let told = one.next().await;
    assert!(matches!(told, Told::Unreachable(2)), "{told:?}");
    open.send_replace(true);
    until("it is connected again", &link, is_connected).await;
}

#[tokio::test]
async fn notes_arrive_and_those_that_no_frame_takes_come_back() {
    let (mut two, one) = (Sunk::new(), Sunk::new());
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let link = link(1, 2, &address, &one, LinkConfig::default());
    until("it is connected", &link, is_connected).await;
    let long = Bytes::from(vec![1; NOTE_BYTES_MAX]);
    for refused in [
        vec![Bytes::from(vec![1; NOTE_BYTES_MAX + 1])],
        vec![Bytes::new(); 10_000],
        vec![long.clone(); 3],
    ] {
        let back = link.send(notes(refused.clone())).unwrap_err();
        assert_eq!(back.notes, refused);
    }
    // As many as there may be, one post behind the other: none makes a frame that is refused.
    let mut sent = Vec::new();
    for _ in 0..10 {
        for together in [vec![long.clone(); 2], vec![Bytes::from_static(b"n"); 5_000]] {
            link.send(notes(together.clone())).unwrap();
            sent.extend(together);
        }
    }
    let mut arrived = Vec::new();
    while arrived.len() < sent.len() {
        arrived.extend(two.delivered().await.notes);
    }
    assert!(arrived == sent, "they are not what was sent");
}

#[tokio::test]
async fn a_broker_without_a_cluster_answers_to_questions_and_is_linked_to_nobody() {
    let (two, one) = (Sunk::new(), Sunk::new());
    let own = Arc::<OnceLock<Identity>>::default();
    let (address, _served) = serve_as(own.clone(), Refuses(None), &two, "127.0.0.1:0").await;
    let who = PeerWho {
        node_id: 7,
        directory_id: Bytes::from_static(&[3; 16]),
    };
    let question = PeerQuestion {
        question: Some(Question::Who(who)),
    };
    let answer = ask_broker(&address, question, Duration::from_secs(30)).await;
    let Some(Answer::Here(here)) = answer.unwrap().answer else {
        panic!("another answer");
    };
    assert_eq!((here.node_id, &here.directory_id[..]), (7, &[3; 16][..]));

    let link = link(1, 2, &address, &one, LinkConfig::default());
    until("it was refused", &link, |state| state.failures > 0).await;
    own.set(identity(2)).unwrap();
    until("it is connected", &link, is_connected).await;
}

#[tokio::test]
async fn questions_and_answers_have_a_bound_and_every_wait_ends() {
    let two = Sunk::new();
    let (address, _served) = serve(identity(2), Refuses(None), &two, "127.0.0.1:0").await;
    let question = |question| PeerQuestion {
        question: Some(question),
    };
    let patience = Duration::from_secs(30);
    // The answer is too long.
    let join = question(Question::Join(PeerJoin::default()));
    let error = ask_broker(&address, join, patience).await.unwrap_err();
    assert!(matches!(error, AskError::Refused { .. }), "{error}");
    // The question is.
    let who = PeerWho {
        node_id: 1,
        directory_id: Bytes::from(vec![1; ASK_BYTES_MAX]),
    };
    let who = question(Question::Who(who));
    let error = ask_broker(&address, who.clone(), patience).await;
    let error = error.unwrap_err();
    let limit = format!("the limit is: {ASK_BYTES_MAX} bytes");
    assert!(error.to_string().contains(&limit), "{error}");
    // Nobody is there, or says anything, or it is no address.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap().to_string();
    let waited = ask_broker(&at, who.clone(), Duration::from_millis(20)).await;
    assert_eq!(waited.unwrap_err(), AskError::Silent);
    drop(silent);
    let error = ask_broker(&at, who.clone(), patience).await.unwrap_err();
    assert!(matches!(error, AskError::Unreachable { .. }), "{error}");
    let error = ask_broker("not an address", who, patience).await;
    assert!(matches!(error.unwrap_err(), AskError::Address { .. }));
}
