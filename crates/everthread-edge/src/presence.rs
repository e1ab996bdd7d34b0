//! Presence: who else is in a session now. No part of the log.
//!
//! Each node holds its own members in the store, under a name of this start of the node, and beats once for all of them. A
//! session that somebody here has joined has a [`Room`]; one task looks at the rooms a few times a second, tells the store
//! what is new here, reads what is there, and wakes the attachments, so that however many come and go, an attachment gets
//! a few frames a second. Whatever is lost on the way is found at the next look or, at the latest, at the regular one.

mod room;

use crate::metrics::Metrics;
use crate::tail::{Tail, Waiter, Waiters, Wake, lock};
use bytes::Bytes;
use everthread_control::TaskGroup;
use everthread_protocol::{Author, Epoch, NodeId, SessionKey};
use everthread_store::{Error, Follower, Following, Interest, Store};
use futures_util::StreamExt as _;
use futures_util::stream;
use room::{Card, Room};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

pub(crate) use room::tell as tell_everybody;

/// Fields read of one session at once; of more, nothing but names is read. A member may be held by two nodes at a time.
pub(crate) const TOLD_MAX: usize = 2 * everthread_protocol::limits::PRESENCE_LIST_MAX;
/// Rooms looked at at once.
const LOOKS_MAX: usize = 32;
/// A room with too many members to list is read this often at most.
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// Beats within the time that a node counts as living.
const BEATS: u32 = 4;
/// Bytes of the node's name within the name of its start, which must be an id.
const NAME_BYTES_MAX: usize = 96;

/// The times of presence.
#[derive(Debug, Clone)]
pub struct Times {
    /// A node that shows no sign of life for so long is dead, and its members are gone.
    pub node_ttl: Duration,
    /// A member that leaves is shown for so long: it may come back.
    pub grace: Duration,
    /// What happens within this time is told in one frame.
    pub coalesce: Duration,
    /// How often rooms are compared with the store, and attachments are sent the whole list if it has changed.
    pub whole: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            node_ttl: Duration::from_secs(10),
            grace: Duration::from_secs(3),
            coalesce: Duration::from_millis(250),
            whole: Duration::from_secs(30),
        }
    }
}

/// The presence of all sessions followed on this node. Cheap to clone.
pub struct Presences<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Presences<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<S> {
    store: Arc<S>,
    /// This start of this node.
    node: NodeId,
    times: Times,
    metrics: Metrics,
    rooms: Mutex<HashMap<SessionKey, Arc<Place>>>,
    /// A room is new: somebody waits for its first list.
    opened: Arc<Notify>,
}

/// A room and who waits at it.
struct Place {
    room: Mutex<Room>,
    /// The log that its members follow: one that is deleted has none, and one made anew in its place has others.
    log: Mutex<Log>,
    waiters: Arc<Waiters>,
    /// It is to be looked at.
    is_dirty: AtomicBool,
    /// When the store was last read.
    read_at: Mutex<Option<Instant>>,
    following: OnceLock<Following>,
}

/// What a room knows of the log that its members follow.
#[derive(Debug, Clone, Default)]
struct Log {
    begun: Option<Epoch>,
    tail: Weak<Tail>,
}

impl Log {
    fn of(tail: &Arc<Tail>) -> Self {
        Self { begun: tail.begun(), tail: Arc::downgrade(tail) }
    }

    fn is_gone(&self) -> bool {
        self.tail.upgrade().is_some_and(|tail| tail.is_gone())
    }

    /// Whether `other` is the log of another session of the same name. Who left a while ago left no tail.
    fn is_other(&self, other: &Self) -> bool {
        self.is_gone() || self.begun.zip(other.begun).is_some_and(|(this, that)| this != that)
    }
}

/// One attachment's part in a room; it leaves when this is dropped.
pub(crate) struct Joined {
    place: Arc<Place>,
    member: String,
    grace: Duration,
    whole: Duration,
    waiter: Waiter,
    seen: Option<u64>,
    /// Frames sent.
    n: u64,
    /// When the whole list was last sent.
    whole_at: Instant,
    /// Whether anything was sent since.
    has_changed: bool,
}

impl Joined {
    /// The frames to send now: each one's number within the attachment, and its end.
    pub fn frames(&mut self) -> Vec<(u64, Bytes)> {
        // Before the room is read: what comes after the read must mark the attachment again.
        self.waiter.rearm();
        let Some((ends, now)) = lock(&self.place.room).after(self.seen) else { return Vec::new() };
        if self.seen.replace(now).is_none() {
            (self.whole_at, self.has_changed) = (Instant::now(), false);
        } else {
            self.has_changed = true;
        }
        let first = self.n + 1;
        self.n += ends.len() as u64;
        (first..).zip(ends).collect()
    }

    /// Tells the others something else.
    pub fn tell(&self, data: &str) {
        lock(&self.place.room).tell(&self.member, data.to_owned());
        self.place.is_dirty.store(true, Ordering::SeqCst);
    }

    /// The whole list comes next.
    pub fn ask_for_all(&mut self) {
        self.seen = None;
    }

    /// Asks for the whole list if it has changed and it is time.
    pub fn look(&mut self) -> bool {
        let is_due = self.has_changed && self.whole_at.elapsed() >= self.whole;
        if is_due {
            self.seen = None;
        }
        is_due
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        lock(&self.place.room).leave(&self.member, Instant::now() + self.grace);
    }
}

impl<S: Store> Presences<S> {
    /// No rooms yet; two tasks look after all that will be.
    pub fn start(store: Arc<S>, node: &NodeId, times: Times, metrics: &Metrics, tasks: &TaskGroup) -> Self {
        let inner = Inner {
            store,
            node: name_of_start(node),
            times,
            metrics: metrics.clone(),
            rooms: Mutex::default(),
            opened: Arc::default(),
        };
        let this = Self { inner: Arc::new(inner) };
        let looks = this.clone();
        tasks.spawn_until_stopped(async move { looks.look_for_ever().await });
        let (beats, stop) = (this.clone(), tasks.token());
        tasks.spawn(async move {
            stop.run_until_cancelled(beats.beat_for_ever()).await;
            // Clients come back to other nodes within their grace: that is how long this one is still believed in.
            let last = timeout(beats.inner.times.node_ttl, beats.beat(beats.inner.times.grace)).await;
            drop(last);
        });
        this
    }

    /// Makes an attachment a member of its session. `wake` is marked when there is something to send to it.
    pub(crate) fn join(
        &self,
        tail: &Arc<Tail>,
        author: &Author,
        connection: &str,
        wake: Arc<Wake>,
        attachment: u32,
    ) -> Joined {
        let card = Card::new(author, connection);
        let member = card.member.clone();
        let place = self.place(tail, card);
        place.is_dirty.store(true, Ordering::SeqCst);
        if !lock(&place.room).is_known() {
            self.inner.opened.notify_one();
        }
        let waiter = place.waiters.wait(wake, attachment);
        let Times { grace, whole, .. } = self.inner.times;
        let now = Instant::now();
        Joined { place, member, grace, whole, waiter, seen: None, n: 0, whole_at: now, has_changed: false }
    }

    /// The room of a session, entered: under the lock that also closes rooms which nobody is in. One of a session that was
    /// deleted is left to those who are in it, until they are told; what it has told the store since, the new one takes back.
    fn place(&self, tail: &Arc<Tail>, card: Card) -> Arc<Place> {
        let (key, log) = (tail.key(), Log::of(tail));
        let mut rooms = lock(&self.inner.rooms);
        if let Some(place) = rooms.get(key) {
            let mut known = lock(&place.log);
            if !known.is_other(&log) {
                *known = Log { begun: log.begun.or(known.begun), ..log };
                drop(known);
                lock(&place.room).join(card);
                return place.clone();
            }
        }
        let mut room = Room::new(self.inner.node.clone());
        room.join(card);
        let place = Arc::new(Place {
            room: Mutex::new(room),
            log: Mutex::new(log),
            waiters: Arc::default(),
            is_dirty: AtomicBool::new(true),
            read_at: Mutex::default(),
            following: OnceLock::new(),
        });
        rooms.insert(key.clone(), place.clone());
        drop(rooms);
        // The feed holds the follower for as long as the guard lives, and the place holds the guard: a relay breaks the ring.
        let relay = Arc::new(Relay(Arc::downgrade(&place)));
        let following = self.inner.store.follow(key, Interest::Presence, relay);
        drop(place.following.set(following));
        place
    }

    async fn look_for_ever(&self) {
        // Before anything is held: what nobody holds is forgotten.
        drop(self.beat(self.inner.times.node_ttl).await);
        let mut next = Instant::now();
        loop {
            let is_time = next <= Instant::now();
            if is_time {
                next = Instant::now() + self.inner.times.coalesce;
            }
            let due = self.due(is_time);
            stream::iter(due).for_each_concurrent(LOOKS_MAX, |(key, place)| self.look(key, place)).await;
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.inner.opened.notified() => {}
            }
        }
    }

    /// Rooms to look at: those that are new at once, the others when it is time. Closes rooms that nobody is in.
    fn due(&self, is_time: bool) -> Vec<(SessionKey, Arc<Place>)> {
        let now = Instant::now();
        let mut rooms = lock(&self.inner.rooms);
        let (mut due, mut held) = (Vec::new(), 0);
        rooms.retain(|key, place| {
            let mut room = lock(&place.room);
            if lock(&place.log).is_gone() {
                room.end();
            }
            let is_new = !room.is_known();
            let wants = room.expire(now) | room.has_news() | self.is_old(place, now);
            held += room.held();
            let is_empty = room.held() == 0 && !room.has_news() && Arc::strong_count(place) == 1;
            if (is_time || is_new) && !is_empty && (place.is_dirty.swap(false, Ordering::SeqCst) | wants) {
                due.push((key.clone(), place.clone()));
            }
            !is_empty
        });
        self.inner.metrics.presence_members.set(i64::try_from(held).unwrap_or(i64::MAX));
        due
    }

    fn is_old(&self, place: &Place, now: Instant) -> bool {
        lock(&place.read_at).is_none_or(|at| now.duration_since(at) >= self.inner.times.whole)
    }

    /// Tells the store what is new in a room, and reads it.
    async fn look(&self, key: SessionKey, place: Arc<Place>) {
        match self.compare(&key, &place).await {
            Ok(true) => place.waiters.wake_all(),
            Ok(false) => {}
            Err(error) => {
                place.is_dirty.store(true, Ordering::SeqCst);
                // It may have learned something before it failed.
                place.waiters.wake_all();
                tracing::debug!(%key, %error, "presence waits for the store");
            }
        }
    }

    /// Whether others see a difference.
    async fn compare(&self, key: &SessionKey, place: &Place) -> Result<bool, Error> {
        let mut differs = false;
        if !lock(&place.room).is_known() {
            // First, so that who comes back goes on as the member that is there. Nobody is woken yet: who joins belongs to
            // the first list.
            let present = self.read(key, place).await?;
            differs = lock(&place.room).learn(&present);
        }
        let news = lock(&place.room).take_news();
        if !news.changes.is_empty() {
            let held = self.inner.store.hold_present(key, &self.inner.node, &news.changes).await;
            if let Err(error) = held {
                lock(&place.room).take_back(news);
                return Err(error);
            }
        } else if differs {
            return Ok(true);
        }
        let is_early = lock(&place.read_at).is_some_and(|at| at.elapsed() < COUNT_EVERY);
        if lock(&place.room).is_counted() && is_early {
            place.is_dirty.store(true, Ordering::SeqCst);
            return Ok(differs);
        }
        let present = self.read(key, place).await?;
        let mut room = lock(&place.room);
        differs |= room.learn(&present);
        Ok(differs)
    }

    async fn read(&self, key: &SessionKey, place: &Place) -> Result<Vec<everthread_store::Present>, Error> {
        self.inner.metrics.presence_reads.inc();
        let present = self.inner.store.present(key, TOLD_MAX).await?;
        *lock(&place.read_at) = Some(Instant::now());
        Ok(present)
    }

    async fn beat_for_ever(&self) {
        let ttl = self.inner.times.node_ttl;
        let mut tick = tokio::time::interval(ttl / BEATS);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut has_lived = false;
        loop {
            tick.tick().await;
            match self.beat(ttl).await {
                Ok(false) if has_lived => {
                    tracing::warn!("this node was taken for dead: its members are said again");
                    self.each_room(Room::say_all_again);
                }
                Ok(_) => has_lived = true,
                Err(error) => tracing::debug!(%error, "this node's sign of life was not stored"),
            }
            if let Err(error) = self.find_the_dead().await {
                tracing::debug!(%error, "whether other nodes live is not known");
            }
        }
    }

    async fn beat(&self, ttl: Duration) -> Result<bool, Error> {
        let ttl = everthread_protocol::millis(ttl);
        self.inner.store.beat_node(&self.inner.node, ttl).await
    }

    /// Has those rooms looked at in which dead nodes hold members: the read leaves them out.
    async fn find_the_dead(&self) -> Result<(), Error> {
        let mut nodes = BTreeSet::new();
        self.each_room(|room| nodes.extend(room.nodes.iter().cloned()));
        let nodes: Vec<NodeId> = nodes.into_iter().collect();
        let living = self.inner.store.living(&nodes).await?;
        let dead: BTreeSet<&NodeId> =
            nodes.iter().zip(living).filter(|(_, lives)| !lives).map(|(node, _)| node).collect();
        if !dead.is_empty() {
            for place in lock(&self.inner.rooms).values() {
                if lock(&place.room).nodes.iter().any(|node| dead.contains(node)) {
                    place.is_dirty.store(true, Ordering::SeqCst);
                }
            }
        }
        Ok(())
    }

    fn each_room(&self, mut what: impl FnMut(&mut Room)) {
        for place in lock(&self.inner.rooms).values() {
            what(&mut lock(&place.room));
        }
    }
}

/// A name that no other start of a node has.
fn name_of_start(node: &NodeId) -> NodeId {
    let start: NodeId = crate::put::fresh_id();
    // Ids are ASCII, and what is left of one is an id.
    let name = &node.as_str()[..node.as_str().len().min(NAME_BYTES_MAX)];
    format!("{name}.{start}").parse().unwrap_or(start)
}

/// Passes the feed on for as long as somebody is in the room.
struct Relay(Weak<Place>);

impl Follower for Relay {
    fn record(&self, _record: everthread_protocol::Record) {}

    fn changed(&self) {
        if let Some(place) = self.0.upgrade() {
            place.is_dirty.store(true, Ordering::SeqCst);
        }
    }

    fn doubt(&self) {
        self.changed();
    }
}
