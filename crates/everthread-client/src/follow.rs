//! A session as its follower sees it: events in order, and the view they make.

use crate::client::{FOLLOW_FRAMES_MAX, Session};
use crate::connection::Command;
use crate::error::Error;
use crate::people::Present;
use everthread_protocol::frame::{Entries, From, Presence, ResetReason, Snapshot};
use everthread_protocol::{Cursor, Epoch, Seq};
use everthread_session::view::View;
use everthread_socket::Utf8Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// Messages that are asked for when the view must be made anew.
const ANEW_MESSAGES: usize = 200;

/// What happens to a follower, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// The session is attached, for the first time or after a lost connection.
    Attached {
        /// Where the log ends.
        head: Seq,
        /// Whether it goes on from where this follower stands.
        resumed: bool,
        /// Up to where this device has read, if it has a durable cursor.
        acked: Option<Seq>,
        /// Messages of others that began after that.
        unread: Option<u64>,
    },
    /// The view was replaced.
    Snapshot(Frame),
    /// Entries were added.
    Entries(Frame),
    /// Everything there is has been delivered.
    Live(Seq),
    /// The follower is this many entries behind and gets them folded.
    Lag(u64),
    /// What the follower holds is not of this log; a snapshot follows.
    Reset(ResetReason),
    /// A write of this client that was answered as `accepted` was lost when a replica took over, and was refused when it was
    /// asked for again.
    Lost(Error),
    /// Who is present has changed.
    Presence(Presence),
    /// The connection is lost; it is being made again.
    Disconnected,
    /// There is nothing more to come. Where the session was deleted, the error has the code `no_session`.
    Gone(Error),
}

/// An `entries` or `snapshot` frame as it came.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The frame's text.
    pub text: Utf8Bytes,
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// Seq of the first entry; of the last one it stands for, if it is a snapshot.
    pub from: Seq,
    /// Seq of the last entry.
    pub to: Seq,
}

impl Frame {
    /// Its entries.
    pub fn entries(&self) -> Result<Entries<'_>, Error> {
        Ok(serde_json::from_str(&self.text)?)
    }

    /// Its snapshot.
    pub fn snapshot(&self) -> Result<Snapshot<'_>, Error> {
        Ok(serde_json::from_str(&self.text)?)
    }
}

/// Follows one session. Dropping it detaches.
#[derive(Debug)]
pub struct Follow {
    session: Session,
    commands: mpsc::Sender<Command>,
    key: u64,
    queue: mpsc::Receiver<Event>,
    from: From,
    view: Option<View>,
    present: Present,
    cursor: Option<Cursor>,
    /// The connection could not put something into the queue and waits to hear that it is empty.
    overflowed: Arc<AtomicBool>,
    is_gone: bool,
}

/// What ties a follower to its connection.
pub(crate) struct Parts {
    pub session: Session,
    pub commands: mpsc::Sender<Command>,
    pub key: u64,
    pub queue: mpsc::Receiver<Event>,
    pub overflowed: Arc<AtomicBool>,
}

impl Follow {
    pub(crate) fn new(parts: Parts, from: From, keeps_view: bool) -> Self {
        let Parts { session, commands, key, queue, overflowed } = parts;
        let cursor = if let From::Cursor(cursor) = from { Some(cursor) } else { None };
        let view = keeps_view.then(View::new);
        Self {
            session,
            commands,
            key,
            queue,
            from,
            view,
            present: Present::default(),
            cursor,
            overflowed,
            is_gone: false,
        }
    }

    /// For writing to the session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session as of the last event, if a view is kept.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Who is present as of the last event, if this follower is.
    pub fn present(&self) -> &Present {
        &self.present
    }

    /// Everything up to here was in the events.
    pub fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// The next event; `None` after [`Event::Gone`]. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        if self.is_gone {
            return None;
        }
        let event = match self.queue.try_recv() {
            Ok(event) => event,
            Err(mpsc::error::TryRecvError::Empty) => {
                // The queue was full and is now empty: only this side knows when to go on. The mark is set while the
                // queue is full, so it cannot be missed between this look and the wait.
                if self.overflowed.load(Ordering::Acquire) {
                    let permit = self.commands.reserve().await;
                    self.overflowed.store(false, Ordering::Release);
                    if let Ok(permit) = permit {
                        permit.send(Command::Drained { key: self.key });
                    }
                }
                self.queue.recv().await.unwrap_or(Event::Gone(Error::Closed))
            }
            Err(mpsc::error::TryRecvError::Disconnected) => Event::Gone(Error::Closed),
        };
        match self.apply(&event) {
            Ok(()) => Some(event),
            Err(error) => {
                tracing::warn!(%error, "the view does not agree with the log and is made anew");
                self.restart().await;
                Some(Event::Reset(ResetReason::Epoch))
            }
        }
    }

    /// Begins anew, with a queue in which nothing old can be.
    async fn restart(&mut self) {
        if self.view.is_some() {
            self.view = Some(View::new());
        }
        self.cursor = None;
        let from = if matches!(self.from, From::Start) { From::Start } else { From::Recent(ANEW_MESSAGES) };
        let (queue, events) = mpsc::channel(FOLLOW_FRAMES_MAX);
        self.queue = events;
        self.overflowed.store(false, Ordering::Release);
        // If nobody takes it, the new queue is closed, and the next event says so.
        drop(self.commands.send(Command::Restart { key: self.key, from, queue }).await);
    }

    fn apply(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::Snapshot(frame) => {
                if self.view.is_some() {
                    let Snapshot { epoch, seq, state, messages, .. } = frame.snapshot()?;
                    self.view = Some(View::from_snapshot(epoch, seq, state.get(), messages.get())?);
                }
                self.cursor = Some(Cursor { epoch: frame.epoch, seq: frame.to });
            }
            Event::Entries(frame) => {
                if let Some(view) = &mut self.view {
                    view.apply_blocks(&frame.entries()?).map_err(|e| Error::Unreadable(e.to_string()))?;
                }
                self.cursor = Some(Cursor { epoch: frame.epoch, seq: frame.to });
            }
            Event::Presence(frame) => self.present.apply(frame),
            Event::Gone(_) => self.is_gone = true,
            Event::Attached { .. }
            | Event::Live(_)
            | Event::Lag(_)
            | Event::Reset(_)
            | Event::Lost(_)
            | Event::Disconnected => {}
        }
        Ok(())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        // If the command does not fit, the connection finds the queue closed with the next frame.
        drop(self.commands.try_send(Command::Detach { key: self.key }));
    }
}
