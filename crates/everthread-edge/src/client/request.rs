//! Requests of a client: each is one future, made from a frame, whose reply goes into the outbox.

use super::Connection;
use super::attachment::{self, Attachment, RESET_MESSAGES};
use crate::auth::Identity;
use crate::conflate::Pace;
use crate::control::Track;
use crate::metrics::{Replayed, Source};
use crate::put::{self, Intent};
use crate::reader::fault_of;
use crate::tail::{Tail, lost, start_of};
use crate::{Edge, branch, control, devices};
use everthread_protocol::frame::{
    Ack, Attach, Attached, ClientFrame, Control, Done, From, History, HistoryPage, Hold, Put, Receipt,
    Regenerate, Release, ResetReason, Select, ServerFrame, SetPresence, Welcome,
};
use everthread_protocol::limits::ATTACHMENTS_MAX;
use everthread_protocol::{Author, Code, Cursor, Fault, RequestId, Seq, SessionKey};
use everthread_store::{Page, Store};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// How long a request may take.
const REQUEST_MAX: std::time::Duration = std::time::Duration::from_secs(20);

/// Controls of one connection that are followed to their outcome; that of further ones stands in the log alone.
const TRACKED_MAX: usize = 64;

/// A followed control with its next receipt; an error ends the receipts, not the control.
pub(super) type Tracked<S> = (Result<Receipt, Fault>, Track<S>);

/// What a request came to.
pub(super) enum Reply {
    /// Frames to send.
    Frames(Vec<String>),
    /// `hello` is done.
    Welcome(RequestId, u64),
    /// A control is in the log, or was.
    Asked(SessionKey, control::Asked),
    /// A new attachment, what its client is sent first, and what else it asked for.
    Attached(u32, Arc<Tail>, Cursor, Vec<String>, Wishes),
    /// It failed.
    Failed(String, Fault),
}

/// What an attach may ask for besides the log.
pub(super) struct Wishes {
    is_present: bool,
    pace: Option<Pace>,
}

pub(super) fn welcome(id: RequestId) -> BoxFuture<'static, Reply> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    Box::pin(async move { Reply::Welcome(id, u64::try_from(now).unwrap_or(0)) })
}

impl<S: Store> Connection<S> {
    /// Begins a request; its reply comes through `on_reply`.
    pub(super) fn on_request(&mut self, frame: ClientFrame<'_>, identity: Identity) {
        match frame {
            ClientFrame::Attach(attach) => self.on_attach(attach, &identity),
            ClientFrame::Detach(detach) => {
                self.store_acks(detach.attachment);
                if self.attachments.remove(&detach.attachment).is_some() {
                    self.page.take_if(|page| page.is_for(detach.attachment));
                    self.outbox.text(ServerFrame::Ok(done(detach.id)).encode());
                } else {
                    self.error(Some(detach.id.to_string()), no_attachment());
                }
            }
            ClientFrame::Put(put) => match self.key_of(put.attachment) {
                Ok(key) => self.on_put(&put, key, identity),
                Err(fault) => self.error(Some(put.id.to_string()), fault),
            },
            ClientFrame::Control(control) => match self.key_of(control.attachment) {
                Ok(key) => self.on_control(&control, key, identity),
                Err(fault) => self.error(Some(control.id.to_string()), fault),
            },
            ClientFrame::Hold(hold) => match self.key_of(hold.attachment) {
                Ok(key) => self.on_hold(hold, key, identity),
                Err(fault) => self.error(Some(hold.id.to_string()), fault),
            },
            ClientFrame::Release(release) => match self.key_of(release.attachment) {
                Ok(key) => self.on_release(release, key, identity),
                Err(fault) => self.error(Some(release.id.to_string()), fault),
            },
            ClientFrame::Regenerate(again) => match self.key_of(again.attachment) {
                Ok(key) => self.on_regenerate(again, key, identity),
                Err(fault) => self.error(Some(again.id.to_string()), fault),
            },
            ClientFrame::Select(select) => match self.key_of(select.attachment) {
                Ok(key) => self.on_select(select, key, identity),
                Err(fault) => self.error(Some(select.id.to_string()), fault),
            },
            ClientFrame::History(history) => match self.key_of(history.attachment) {
                Ok(key) => self.on_history(history, key),
                Err(fault) => self.error(Some(history.id.to_string()), fault),
            },
            ClientFrame::Watch(watch) => {
                self.on_watch(&watch, &identity);
                self.outbox.text(ServerFrame::Ok(done(watch.id)).encode());
            }
            ClientFrame::Unwatch(unwatch) => {
                self.on_unwatch();
                self.outbox.text(ServerFrame::Ok(done(unwatch.id)).encode());
            }
            // These are not asked for an answer: whoever sent them could not know that the attachment was over by then.
            ClientFrame::Ack(Ack { attachment, .. })
            | ClientFrame::Presence(SetPresence { attachment, .. })
                if self.is_over(attachment) => {}
            ClientFrame::Ack(ack) => {
                if let Err(fault) = self.on_ack(&ack, identity) {
                    self.error(None, fault);
                }
            }
            ClientFrame::Presence(presence) => {
                if let Err(fault) = self.on_presence(&presence) {
                    self.error(None, fault);
                }
            }
            ClientFrame::Hello(_) | ClientFrame::Pong {} => {}
        }
    }

    /// Whether this connection had the attachment: numbers are not used again.
    fn is_over(&self, attachment: u32) -> bool {
        (1..=self.attachments_made).contains(&attachment) && !self.attachments.contains_key(&attachment)
    }

    fn key_of(&self, attachment: u32) -> Result<SessionKey, Fault> {
        self.attachments.get(&attachment).map(|a| a.tail.key().clone()).ok_or_else(no_attachment)
    }

    fn begin(&mut self, id: String, work: impl Future<Output = Result<Reply, Fault>> + Send + 'static) {
        self.request = Some(Box::pin(async move {
            match tokio::time::timeout(REQUEST_MAX, work).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(fault)) => Reply::Failed(id, fault),
                Err(_) => Reply::Failed(
                    id,
                    Fault::new(Code::Indeterminate, "no answer in time: repeat it with the same id"),
                ),
            }
        }));
    }

    fn on_attach(&mut self, attach: Attach, identity: &Identity) {
        if self.attachments.len() >= ATTACHMENTS_MAX {
            let message = format!("a connection has at most {ATTACHMENTS_MAX} attachments: detach one");
            return self.error(Some(attach.id.to_string()), Fault::new(Code::LimitReached, message));
        }
        self.attachments_made += 1;
        let number = self.attachments_made;
        let edge = self.edge.clone();
        let key = SessionKey { tenant: identity.tenant.clone(), session: attach.session.clone() };
        let id = attach.id.to_string();
        let author = identity.author.clone();
        self.begin(id, async move { open(&edge, key, attach, number, &author).await });
    }

    fn on_put(&mut self, put: &Put<'_>, key: SessionKey, identity: Identity) {
        let replaces = put.replaces.clone();
        let intent = match Intent::read(put.entries.get(), put.agent.clone(), put.when_busy, replaces) {
            Ok(intent) => intent,
            Err(fault) => return self.error(Some(put.id.to_string()), fault),
        };
        let (edge, id, ack) = (self.edge.clone(), put.id.clone(), put.ack);
        self.begin(put.id.to_string(), async move {
            let outcome = put::carry_out(&edge, &key, &identity.author, &id, intent, ack).await?;
            let done = Done {
                id,
                cursor: Some(outcome.cursor),
                message: outcome.message,
                run: outcome.run,
                control: outcome.control,
                duplicate: outcome.duplicate,
                ack: outcome.ack,
            };
            Ok(Reply::Frames(vec![ServerFrame::Ok(done).encode()]))
        });
    }

    fn on_control(&mut self, asked: &Control<'_>, key: SessionKey, identity: Identity) {
        let Control { id, kind, target, mode, payload, expires_ms, ack, .. } = asked.clone();
        let text = id.to_string();
        let ask = match control::read(id, identity.author, target, kind, mode, payload, expires_ms) {
            Ok(ask) => ask,
            Err(fault) => return self.error(Some(text), fault),
        };
        let edge = self.edge.clone();
        self.begin(text, async move {
            let asked = control::ask(&edge, &key, ask, ack).await?;
            Ok(Reply::Asked(key, asked))
        });
    }

    fn on_hold(&mut self, hold: Hold, key: SessionKey, identity: Identity) {
        let edge = self.edge.clone();
        self.begin(hold.id.to_string(), async move {
            let cursor = control::hold(&edge.desk, &key, &identity.author, &hold.id, hold.reason).await?;
            Ok(Reply::Frames(vec![ServerFrame::Ok(Done { cursor: Some(cursor), ..done(hold.id) }).encode()]))
        });
    }

    fn on_release(&mut self, release: Release, key: SessionKey, identity: Identity) {
        let edge = self.edge.clone();
        self.begin(release.id.to_string(), async move {
            let Release { id, reason, agent, run, .. } = release;
            let released = control::release(&edge.desk, &key, &identity.author, &id, reason, agent, run);
            let (cursor, run) = released.await?;
            Ok(Reply::Frames(vec![ServerFrame::Ok(Done { cursor: Some(cursor), run, ..done(id) }).encode()]))
        });
    }

    fn on_regenerate(&mut self, again: Regenerate, key: SessionKey, identity: Identity) {
        let edge = self.edge.clone();
        self.begin(again.id.to_string(), async move {
            let Regenerate { id, run, params, .. } = again;
            let asked = branch::regenerate(&edge, &key, &identity.author, &id, &run, params);
            let (cursor, run) = asked.await?;
            Ok(Reply::Frames(vec![ServerFrame::Ok(Done { cursor: Some(cursor), run, ..done(id) }).encode()]))
        });
    }

    fn on_select(&mut self, select: Select, key: SessionKey, identity: Identity) {
        let edge = self.edge.clone();
        self.begin(select.id.to_string(), async move {
            let Select { id, message, .. } = select;
            let cursor = branch::select(&edge, &key, &identity.author, &id, &message).await?;
            Ok(Reply::Frames(vec![ServerFrame::Ok(Done { cursor: Some(cursor), ..done(id) }).encode()]))
        });
    }

    /// Follows a control whose outcome is not known yet, if not too many are followed already.
    fn track(&mut self, mut track: Track<S>) {
        let tracked = self.tracked.get_or_insert_default();
        if tracked.len() < TRACKED_MAX {
            tracked.push(Box::pin(async move { (track.next().await, track) }));
        }
    }

    pub(super) fn on_tracked(&mut self, (receipt, track): Tracked<S>) {
        let receipt = match receipt {
            Ok(receipt) => receipt,
            Err(fault) if fault.code == Code::NoSession => {
                return self.error(Some(track.control().to_string()), fault);
            }
            Err(_) => return,
        };
        let is_last = control::is_settled(&receipt);
        self.outbox.text(ServerFrame::Receipt(receipt).encode());
        if !is_last {
            self.track(track);
        }
    }

    /// How far the device has read: stored within a second, and when the attachment ends.
    fn on_ack(&mut self, ack: &Ack, identity: Identity) -> Result<(), Fault> {
        let attachment = self.attachments.get_mut(&ack.attachment).ok_or_else(no_attachment)?;
        let device = identity.author.device;
        let device =
            device.ok_or_else(|| Fault::bad_request("hello names no device that could have read"))?;
        if ack.seq > attachment.cursor.seq {
            let sent = attachment.cursor.seq;
            return Err(Fault::new(
                Code::BadCursor,
                format!("this attachment was sent entries up to {sent}"),
            ));
        }
        let cursor = attachment.tail.cursor_at(ack.seq, attachment.cursor);
        attachment.has_acked = true;
        self.edge.acks.note(attachment.tail.key(), &device, cursor);
        Ok(())
    }

    /// What the others are told of this client, or the wish to be told everybody again.
    fn on_presence(&mut self, set: &SetPresence<'_>) -> Result<(), Fault> {
        let attachment = self.attachments.get_mut(&set.attachment).ok_or_else(no_attachment)?;
        let absent = || Fault::bad_request("this attachment is not present: attach with presence");
        let joined = attachment.joined.as_mut().ok_or_else(absent)?;
        match set.data {
            Some(data) => joined.tell(data.get()),
            None => {
                joined.ask_for_all();
                self.make_ready(set.attachment);
            }
        }
        Ok(())
    }

    /// Sees to it that what the device has acknowledged is stored now.
    pub(super) fn store_acks(&self, id: u32) {
        let device = self.identity.as_ref().and_then(|identity| identity.author.device.as_ref());
        if let Some((attachment, device)) = self.attachments.get(&id).zip(device)
            && attachment.has_acked
        {
            self.edge.acks.hurry(attachment.tail.key(), device);
        }
    }

    fn on_history(&mut self, history: History, key: SessionKey) {
        let edge = self.edge.clone();
        self.begin(history.id.to_string(), async move {
            let (view, _) = edge.reader.view(&key).await.map_err(|e| fault_of(&key, &e))?;
            let (messages, more) = view.messages_before(history.before, history.limit);
            let messages = serde_json::value::to_raw_value(messages)
                .map_err(|_| Fault::new(Code::Internal, "the messages cannot be written"))?;
            let page = HistoryPage { id: history.id, messages: &messages, more };
            Ok(Reply::Frames(vec![ServerFrame::History(page).encode()]))
        });
    }

    pub(super) fn on_reply(&mut self, reply: Reply) {
        match reply {
            Reply::Frames(frames) => frames.into_iter().for_each(|frame| self.outbox.text(frame)),
            Reply::Asked(key, control::Asked { receipt, at }) => {
                let track = (!control::is_settled(&receipt))
                    .then(|| Track::new(&self.edge, &key, &receipt.control, at));
                self.outbox.text(ServerFrame::Receipt(receipt).encode());
                if let Some(track) = track {
                    self.track(track);
                }
            }
            Reply::Welcome(id, now) => {
                let welcome: Welcome = self.welcome_frame(id, now);
                self.outbox.text(ServerFrame::Welcome(welcome).encode());
            }
            Reply::Attached(number, tail, cursor, frames, Wishes { is_present, pace }) => {
                frames.into_iter().for_each(|frame| self.outbox.text(frame));
                let waiter = tail.wait(self.wake.clone(), number);
                let author = self.identity.as_ref().map(|identity| &identity.author).filter(|_| is_present);
                let joined = author.map(|author| {
                    let wake = self.wake.clone();
                    self.edge.presences.join(&tail, author, &self.id, wake, number)
                });
                let prefix = attachment::prefix(number);
                let attachment = Attachment {
                    tail,
                    cursor,
                    mode: self.edge.metrics.attachments.joining(),
                    prefix,
                    waiter,
                    wants_fetch: false,
                    is_ready: false,
                    joined,
                    has_acked: false,
                    pace,
                };
                self.attachments.insert(number, Box::new(attachment));
                self.make_ready(number);
            }
            Reply::Failed(id, fault) => self.error(Some(id), fault),
        }
    }
}

/// How an attachment begins.
enum Begin {
    /// With what follows a cursor.
    After(Cursor),
    /// With a snapshot of so many messages.
    Recent(usize),
    /// With what stands for what was dropped, and everything that is kept.
    Base,
}

impl Begin {
    /// After a cursor; or, and why, with a snapshot.
    fn after(page: &Page, cursor: Cursor) -> (Self, Option<ResetReason>) {
        match lost(page, cursor) {
            None => (Self::After(cursor), None),
            #[cfg(feature = "planted-faults")]
            Some(_) if everthread_store::planted::is(everthread_store::planted::Fault::Reset) => {
                let everthread_store::Head { epoch, seq, .. } = page.head;
                (Self::After(Cursor { epoch, seq }), None)
            }
            reason => (Self::Recent(RESET_MESSAGES), reason),
        }
    }
}

async fn open<S: Store>(
    edge: &Edge<S>,
    key: SessionKey,
    attach: Attach,
    number: u32,
    author: &Author,
) -> Result<Reply, Fault> {
    let (tail, page) = edge.tails.open(&key).await.map_err(|e| fault_of(&key, &e))?;
    let wishes = Wishes { is_present: attach.presence, pace: Pace::new(attach.fold_ms) };
    let head = page.head;
    let mut frames = Vec::new();
    let mark = devices::mark(edge, &key, author, &page).await.map_err(|e| fault_of(&key, &e))?;
    let (begin, reset) = match attach.from {
        From::Cursor(cursor) => Begin::after(&page, cursor),
        From::Start if head.floor > Seq(1) => (Begin::Base, Some(ResetReason::Retention)),
        From::Start => (Begin::After(start_of(&page)), None),
        From::Recent(messages) => (Begin::Recent(messages), None),
        From::Device if author.device.is_none() => {
            return Err(Fault::bad_request("hello names no device whose cursor it could be"));
        }
        // A device that has acknowledged nothing begins with the last messages.
        From::Device => match mark.cursor {
            Some(cursor) => Begin::after(&page, cursor),
            None => (Begin::Recent(RESET_MESSAGES), None),
        },
    };
    let attached = Attached {
        id: attach.id,
        attachment: number,
        session: attach.session,
        epoch: head.epoch,
        head: head.seq,
        resumed: reset.is_none(),
        acked: mark.acked,
        unread: mark.unread,
    };
    frames.push(ServerFrame::Attached(attached).encode());
    if let Some(reason) = reset {
        edge.metrics.reset(reason);
        frames.push(ServerFrame::Reset { attachment: number, reason }.encode());
    }
    let failed = |e: everthread_store::Error| fault_of(&key, &e);
    let (cursor, snapshot) = match begin {
        Begin::After(cursor) => (cursor, None),
        Begin::Recent(messages) => {
            let read = attachment::snapshot(&edge.reader, &key, number, messages).await;
            let result = if read.is_ok() { Replayed::Ok } else { Replayed::Error };
            edge.metrics.replayed(Source::Snapshot, result);
            read.map(|(cursor, frame)| (cursor, Some(frame))).map_err(failed)?
        }
        Begin::Base => {
            let read = attachment::base(&edge.reader, &key, number, &page).await.map_err(failed)?;
            // It is there: a floor does not go back, unless the store lost it, and then the next attach begins anew.
            let (cursor, frame) =
                read.ok_or_else(|| Fault::new(Code::Unavailable, "the session has changed: try again"))?;
            (cursor, Some(frame))
        }
    };
    frames.extend(snapshot);
    Ok(Reply::Attached(number, tail, cursor, frames, wishes))
}

fn done(id: RequestId) -> Done {
    Done { id, cursor: None, message: None, run: None, control: None, duplicate: false, ack: None }
}

fn no_attachment() -> Fault {
    Fault::bad_request("this connection has no such attachment: attach first")
}
