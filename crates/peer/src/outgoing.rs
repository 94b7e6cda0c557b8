//! What is to be sent over a link, and who writes it: whoever sends, where nothing is in the way, so that no other
//! thread has to wake up for it; otherwise the link's task.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use bytes::{Buf, Bytes};
use tidelog_replica::Post;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

use crate::frame::{Frame, NOTE_BYTES_MAX, POST_NOTE_BYTES_MAX, POST_NOTES_MAX};
use crate::link::{LinkConfig, LinkStats};
use crate::pieces::Pieces;
use crate::unsent::{Unsent, bytes_of};

/// Pieces named to the system at once.
const SLICES_MAX: usize = 64;
/// More letters take a while to be encoded, as heartbeats of thousands of groups do: that is left to the task.
const DIRECT_LETTERS_MAX: usize = 64;
/// Room for so many letters stays with a link for its next frame.
const SPARE_LETTERS_MAX: usize = 64;

/// The sending half of a link, which those who send share with its task.
#[derive(Debug)]
pub(crate) struct Outgoing {
    waiting: Mutex<VecDeque<Post>>,
    /// Held for calls of the system that do not wait.
    writer: Mutex<Writer>,
    /// Tells the task that there is something to be done that others did not do.
    wake: Notify,
    /// Tells the task that the other side is there.
    hurry: Notify,
    pub(crate) stats: LinkStats,
    pub(crate) config: LinkConfig,
}

/// How far writing has come.
#[derive(Debug)]
pub(crate) enum Written {
    /// Everything is.
    All,
    /// A frame is.
    Some,
    /// As much as the connection takes.
    Full,
    /// There is no connection.
    Nothing,
}

#[derive(Debug, Default)]
struct Writer {
    /// The connection, once the other side has said hello.
    io: Option<Arc<OwnedWriteHalf>>,
    /// What no frame has taken yet of the post that came last.
    begun: Unsent,
    /// What is left of the frame under way.
    pieces: Pieces,
    /// To be sent with the next frame; 0 is none.
    ping: u64,
    /// Empty, with room.
    frame: Frame,
}

impl Outgoing {
    pub(crate) fn new(config: LinkConfig) -> Self {
        Self {
            waiting: Mutex::default(),
            writer: Mutex::default(),
            wake: Notify::new(),
            hurry: Notify::new(),
            stats: LinkStats::default(),
            config,
        }
    }

    /// See [`Link::send`](crate::Link::send).
    pub(crate) fn send(&self, post: Post) -> Result<(), Post> {
        let (config, stats) = (&self.config, &self.stats);
        let bytes = bytes_of(&post);
        let letters = post.raft.len() + post.files.len() + post.notes.len();
        let is_short = bytes <= config.direct_bytes_max && letters <= DIRECT_LETTERS_MAX;
        let queued = stats.queued_bytes.load(Ordering::Relaxed);
        let is_room = queued + bytes <= config.queue_bytes_max.max(bytes);
        let is_connected = stats.is_connected();
        let is_allowed = is_room && is_connected && are_notes_allowed(&post.notes);
        let mut waiting = lock(&self.waiting);
        if !is_allowed || waiting.len() >= config.queue_len {
            drop(waiting);
            stats.lost.fetch_add(1, Ordering::Relaxed);
            return Err(post);
        }
        stats.queued.fetch_add(1, Ordering::Relaxed);
        stats.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_first = waiting.is_empty();
        waiting.push_back(post);
        drop(waiting);
        let is_written = is_first && is_short && self.try_write();
        if !is_written {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Writes one frame with what waits, unless somebody else is writing; says whether nothing is left.
    fn try_write(&self) -> bool {
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        // What is under way may be long.
        if writer.pieces.has_remaining() || !writer.begun.is_empty() {
            return false;
        }
        // The task meets the same error, and ends the connection.
        matches!(self.write_with(&mut writer), Ok(Written::All))
    }

    /// Writes what is left of the frame under way, or one with what waits. Never waits.
    pub(crate) fn write(&self) -> io::Result<Written> {
        self.write_with(&mut lock(&self.writer))
    }

    fn write_with(&self, writer: &mut Writer) -> io::Result<Written> {
        let Some(io) = writer.io.clone() else {
            return Ok(Written::Nothing);
        };
        if !writer.pieces.has_remaining() && !self.begin_frame(writer) {
            return Ok(Written::All);
        }
        while writer.pieces.has_remaining() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = writer.pieces.chunks_vectored(&mut slices);
            match io.try_write_vectored(&slices[..filled]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    writer.pieces.advance(written);
                    let sent_bytes = &self.stats.sent_bytes;
                    sent_bytes.fetch_add(written as u64, Ordering::Relaxed);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Written::Full),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let is_all = writer.begun.is_empty() && writer.ping == 0 && lock(&self.waiting).is_empty();
        Ok(if is_all { Written::All } else { Written::Some })
    }

    /// Makes the next frame of what waits; says whether there was anything.
    fn begin_frame(&self, writer: &mut Writer) -> bool {
        let mut frame = std::mem::take(&mut writer.frame);
        frame.meta.ping = std::mem::take(&mut writer.ping);
        let is_any = self.fill(&mut writer.begun, &mut frame) || frame.meta.ping != 0;
        if is_any {
            writer.pieces = frame.pieces();
            frame.clear(SPARE_LETTERS_MAX);
        }
        writer.frame = frame;
        is_any
    }

    /// Puts what waits into a frame, as far as it fits: the receiver has nothing of a frame before it has all
    /// of it. Says whether there was anything.
    fn fill(&self, begun: &mut Unsent, frame: &mut Frame) -> bool {
        let frame_bytes = self.config.frame_bytes;
        let (mut bytes, mut is_any) = (0, false);
        loop {
            if begun.is_empty() {
                let Some(post) = lock(&self.waiting).pop_front() else {
                    return is_any;
                };
                self.stats.queued.fetch_sub(1, Ordering::Relaxed);
                *begun = post.into();
            }
            is_any |= !begun.is_empty();
            let moved = begun.fill(frame, frame_bytes - bytes);
            self.taken(moved as u64);
            bytes += moved;
            if bytes >= frame_bytes || !frame.takes_more() {
                return is_any;
            }
        }
    }

    /// So many bytes of payload wait no more.
    fn taken(&self, bytes: u64) {
        self.stats.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A ping goes with the next frame; 0 is none.
    pub(crate) fn set_ping(&self, ping: u64) {
        lock(&self.writer).ping = ping;
    }

    /// There is something to be done that others did not do.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// See [`Link::hurry`](crate::Link::hurry).
    pub(crate) fn hurry(&self) {
        if !self.stats.is_connected() {
            self.hurry.notify_one();
        }
    }

    /// The other side is there, where it was not.
    pub(crate) async fn hurried(&self) {
        self.hurry.notified().await;
    }

    /// From now on there is this connection.
    pub(crate) fn connected(&self, io: Arc<OwnedWriteHalf>) {
        lock(&self.writer).io = Some(io);
        self.stats.connected();
    }

    /// There is no connection any more, and what waits was for that one. Says whether there was one.
    pub(crate) fn disconnected(&self) -> bool {
        let was_connected = self.stats.disconnected();
        let mut writer = lock(&self.writer);
        let left = std::mem::take(&mut *writer);
        drop(writer);
        let mut lost = u64::from(!left.begun.is_empty());
        self.taken(left.begun.bytes());
        for post in std::mem::take(&mut *lock(&self.waiting)) {
            self.stats.queued.fetch_sub(1, Ordering::Relaxed);
            self.taken(bytes_of(&post));
            lost += 1;
        }
        self.stats.lost.fetch_add(lost, Ordering::Relaxed);
        was_connected
    }
}

fn are_notes_allowed(notes: &[Bytes]) -> bool {
    let bytes = notes.iter().map(Bytes::len).sum::<usize>();
    let longest = notes.iter().map(Bytes::len).max().unwrap_or(0);
    notes.len() <= POST_NOTES_MAX && bytes <= POST_NOTE_BYTES_MAX && longest <= NOTE_BYTES_MAX
}

/// What a panic left here is whole: it is changed by single moves.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
