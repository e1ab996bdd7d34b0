//! The feed: what all sessions of a tenant are doing, for lists that live.
//!
//! A tenant that somebody here watches has a room. The store wakes it with the names of sessions that changed; its task reads
//! them together, a few times a second, onto the room's [`board::Board`], and wakes the watchers, who take from there what is
//! new to them. What the store's wake-ups lose is found by comparing the board with the index and the sessions' heads: after
//! a doubt, and regularly.
//!
//! **Invariant:** a watcher costs a number. What it is told is how a session is now, never how it was in between.

mod board;
pub(crate) mod sse;
pub(crate) mod summary;

use crate::metrics::Metrics;
use crate::tail::{Waiter, Waiters, Wake, lock};
use board::Board;
pub(crate) use board::News;
use everthread_control::TaskGroup;
use everthread_protocol::frame::{Sessions, Summary};
use everthread_protocol::limits::FEED_SESSIONS_MAX;
use everthread_protocol::{DeviceId, Millis, SessionId, SessionKey, TenantId};
use everthread_store::{Error, Following, Store, TenantFollower};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use summary::Row;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// What happens within this time is told in one frame.
const COALESCE: Duration = Duration::from_millis(250);
/// How often a board is compared with the store.
const COMPARE: Duration = Duration::from_secs(20);
/// Pause after the store did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Sessions read with one request.
const READ_BATCH: usize = 256;
/// Sessions that wait to be read; of more, the board is compared with the index.
const CHANGED_MAX: usize = 4096;
/// Pages of the index that a comparison reads at most.
const PAGES_MAX: usize = 10;
/// A session may be indexed so much later than it was active.
const INDEX_LATE_MS: u64 = 60_000;
/// About the bytes of one frame.
const FRAME_BYTES: usize = 256 * 1024;

/// The feeds of a node. Cheap to clone.
pub struct Feeds<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Feeds<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<S> {
    store: Arc<S>,
    tasks: TaskGroup,
    metrics: Metrics,
    /// See [`COMPARE`].
    compare: Duration,
    rooms: Mutex<HashMap<TenantId, Weak<Room>>>,
}

/// A tenant that is watched here.
struct Room {
    tenant: TenantId,
    board: Mutex<Board>,
    /// The board has been compared with the store.
    is_known: AtomicBool,
    waiters: Arc<Waiters>,
    ear: Arc<Ear>,
    following: OnceLock<Following>,
}

impl Drop for Room {
    fn drop(&mut self) {
        // Its task finds that nobody watches any more.
        self.ear.wake.notify_one();
    }
}

/// What the store has told and nobody has looked at yet.
#[derive(Default)]
struct Ear {
    heard: Mutex<Heard>,
    wake: Notify,
}

#[derive(Default)]
struct Heard {
    changed: HashMap<SessionId, Millis>,
    has_doubt: bool,
}

impl Heard {
    fn add(&mut self, session: SessionId, at: Millis) {
        let known = self.changed.entry(session).or_default();
        *known = at.max(*known);
        if self.changed.len() > CHANGED_MAX {
            self.changed.clear();
            self.has_doubt = true;
        }
    }
}

impl Ear {
    /// What was heard could not be looked at.
    fn hear_again(&self, heard: Heard, has_doubt: bool) {
        let mut again = lock(&self.heard);
        heard.changed.into_iter().for_each(|(session, at)| again.add(session, at));
        again.has_doubt |= has_doubt;
    }
}

impl TenantFollower for Ear {
    fn changed(&self, session: SessionId, at: Millis) {
        lock(&self.heard).add(session, at);
        self.wake.notify_one();
    }

    fn doubt(&self) {
        lock(&self.heard).has_doubt = true;
        self.wake.notify_one();
    }
}

/// Somebody who watches a tenant; it ends when this is dropped.
pub(crate) struct Watch {
    room: Arc<Room>,
    waiter: Waiter,
    device: Option<DeviceId>,
    recent: usize,
    seen: Option<u64>,
    /// Frames so far.
    n: u64,
}

impl Watch {
    /// What is new, if anything is.
    pub fn news(&mut self) -> Option<News> {
        // Before the board is read: what comes after the read must wake the watcher again.
        self.waiter.rearm();
        if !self.room.is_known.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.room.board).news(&mut self.seen, self.recent)
    }

    /// What was taken could not be told: begin anew.
    pub fn restart(&mut self) {
        self.seen = None;
    }

    /// What has to be read before news can be told, if anything.
    pub fn asks(&self, news: &News) -> Option<(Vec<SessionKey>, DeviceId)> {
        let device = self.device.clone()?;
        let key = |row: &Arc<Row>| SessionKey {
            tenant: self.room.tenant.clone(),
            session: row.summary.session.clone(),
        };
        Some((news.rows.iter().map(key).collect(), device))
    }

    /// News as frames.
    pub fn frames(&mut self, news: News, devices: &[Option<everthread_store::Device>]) -> Vec<Sessions> {
        let summary = |(at, row): (usize, &Arc<Row>)| match self.device {
            Some(_) => row.for_device(devices.get(at).and_then(Option::as_ref)),
            None => row.summary.clone(),
        };
        let mut pieces: Vec<Vec<Summary>> = vec![Vec::new()];
        let mut bytes = 0;
        for (at, row) in news.rows.iter().enumerate() {
            if bytes > 0 && bytes + row.bytes > FRAME_BYTES {
                pieces.push(Vec::new());
                bytes = 0;
            }
            bytes += row.bytes;
            pieces.last_mut().into_iter().for_each(|piece| piece.push(summary((at, row))));
        }
        let (mut gone, mut is_beginning) = (news.gone, news.is_beginning);
        let frame = |piece: Vec<Summary>| {
            self.n += 1;
            let gone = std::mem::take(&mut gone);
            match std::mem::take(&mut is_beginning) {
                true => Sessions { n: self.n, sessions: Some(piece), changed: Vec::new(), gone },
                false => Sessions { n: self.n, sessions: None, changed: piece, gone },
            }
        };
        pieces.into_iter().map(frame).collect()
    }
}

impl<S: Store> Feeds<S> {
    /// No feeds yet.
    pub fn new(store: Arc<S>, metrics: &Metrics, tasks: &TaskGroup) -> Self {
        let (metrics, tasks) = (metrics.clone(), tasks.clone());
        let rooms = Mutex::default();
        Self { inner: Arc::new(Inner { store, tasks, metrics, compare: COMPARE, rooms }) }
    }

    /// Watches a tenant: `wake` is marked with `attachment` whenever there is news.
    pub(crate) fn watch(
        &self,
        tenant: &TenantId,
        device: Option<DeviceId>,
        recent: usize,
        wake: Arc<Wake>,
        attachment: u32,
    ) -> Watch {
        let room = self.room(tenant);
        let waiter = room.waiters.wait(wake, attachment);
        Watch { room, waiter, device, recent, seen: None, n: 0 }
    }

    /// How far a device has read sessions.
    pub(crate) fn read(
        &self,
        (keys, device): (Vec<SessionKey>, DeviceId),
    ) -> impl Future<Output = Result<Vec<Option<everthread_store::Device>>, Error>> + Send + use<S> {
        let store = self.inner.store.clone();
        async move { store.device_in(&keys, &device).await }
    }

    fn room(&self, tenant: &TenantId) -> Arc<Room> {
        let mut rooms = lock(&self.inner.rooms);
        if let Some(room) = rooms.get(tenant).and_then(Weak::upgrade) {
            return room;
        }
        rooms.retain(|_, room| room.strong_count() > 0);
        let room = Arc::new(Room::new(tenant.clone()));
        rooms.insert(tenant.clone(), Arc::downgrade(&room));
        drop(rooms);
        drop(room.following.set(self.inner.store.follow_tenant(tenant, room.ear.clone())));
        let (this, weak, ear) = (self.clone(), Arc::downgrade(&room), room.ear.clone());
        self.inner.tasks.spawn_until_stopped(async move { this.keep(weak, ear).await });
        room
    }

    /// Keeps a board for as long as somebody watches.
    async fn keep(&self, room: Weak<Room>, ear: Arc<Ear>) {
        // The newest that was in the index at the last comparison; none yet.
        let mut known = None;
        let mut compare_at = Instant::now();
        loop {
            drop(timeout_at(compare_at, ear.wake.notified()).await);
            // By the clock: in a busy tenant there always is a wake-up, and no time-out.
            let is_due = compare_at <= Instant::now();
            let Some(room) = room.upgrade() else { return };
            let mut heard = std::mem::take(&mut *lock(&ear.heard));
            let has_doubt = heard.has_doubt || is_due;
            match self.bring_up_to_date(&room, &mut heard, has_doubt, &mut known).await {
                Ok(()) => {
                    if has_doubt {
                        compare_at = Instant::now() + self.inner.compare;
                    }
                    if !heard.changed.is_empty() {
                        // A part of the store does not answer: the rest was told.
                        ear.hear_again(heard, false);
                        ear.wake.notify_one();
                        drop(room);
                        sleep(PAUSE).await;
                        continue;
                    }
                }
                Err(error) => {
                    tracing::debug!(tenant = %room.tenant, %error, "a feed waits for the store");
                    ear.hear_again(heard, has_doubt);
                    compare_at = Instant::now();
                    drop(room);
                    sleep(PAUSE).await;
                    continue;
                }
            }
            drop(room);
            sleep(COALESCE).await;
        }
    }

    async fn bring_up_to_date(
        &self,
        room: &Room,
        heard: &mut Heard,
        has_doubt: bool,
        known: &mut Option<Millis>,
    ) -> Result<(), Error> {
        let newest = if has_doubt { self.compare(room, heard, *known).await? } else { *known };
        let mut is_new = self.look(room, heard).await;
        *known = newest;
        is_new |= !room.is_known.swap(true, Ordering::AcqRel);
        if is_new {
            room.waiters.wake_all();
        }
        Ok(())
    }

    /// Finds out what the board does not know, and when the newest session was active.
    async fn compare(
        &self,
        room: &Room,
        heard: &mut Heard,
        known: Option<Millis>,
    ) -> Result<Option<Millis>, Error> {
        let (mut after, mut newest) = (None, known);
        for _ in 0..PAGES_MAX {
            let page = self.inner.store.sessions(&room.tenant, after, FEED_SESSIONS_MAX).await?;
            newest = newest.max(page.first().map(|(_, at)| *at));
            for (session, at) in &page {
                if lock(&room.board).active_at(session).is_none_or(|known| known < *at) {
                    heard.add(session.clone(), *at);
                }
            }
            after = page.last().map(|(session, at)| (*at, session.clone()));
            let is_old = |at: Millis| known.is_none_or(|known| at.plus(INDEX_LATE_MS) < known);
            if page.len() < FEED_SESSIONS_MAX || after.as_ref().is_none_or(|(at, _)| is_old(*at)) {
                break;
            }
        }
        let rows: Vec<Arc<Row>> = lock(&room.board).rows().cloned().collect();
        for batch in rows.chunks(READ_BATCH) {
            let keys: Vec<SessionKey> = batch.iter().map(|row| room.key(&row.summary.session)).collect();
            let heads = self.inner.store.each_head(&keys).await;
            for (row, head) in batch.iter().zip(heads) {
                // What cannot be reached now may have changed.
                if !head.is_ok_and(|head| head.is_some_and(|head| head.version == row.head.version)) {
                    heard.add(row.summary.session.clone(), row.summary.active_at);
                }
            }
        }
        Ok(newest)
    }

    /// Reads what has changed. What was read is heard no more; what is left could not be. Returns whether anything is new.
    async fn look(&self, room: &Room, heard: &mut Heard) -> bool {
        let mut is_new = false;
        let changed: Vec<(SessionId, Millis)> =
            heard.changed.iter().map(|(id, at)| (id.clone(), *at)).collect();
        for batch in changed.chunks(READ_BATCH) {
            let keys: Vec<SessionKey> = batch.iter().map(|(session, _)| room.key(session)).collect();
            let states = self.inner.store.each_state(&keys).await;
            self.inner.metrics.feed_reads.inc_by(keys.len() as u64);
            for ((session, at), state) in batch.iter().zip(states) {
                let state = match state {
                    Ok(state) => state,
                    Err(error) => {
                        tracing::debug!(tenant = %room.tenant, %session, %error, "the feed tells the others");
                        continue;
                    }
                };
                heard.changed.remove(session);
                let mut board = lock(&room.board);
                is_new |= match state {
                    Some(listed) => {
                        let at = board.active_at(session).map_or(*at, |known| known.max(*at));
                        board.put(Row::of(session.clone(), at, listed))
                    }
                    None => board.remove(session),
                };
            }
        }
        is_new
    }
}

impl Room {
    fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            board: Mutex::default(),
            is_known: AtomicBool::new(false),
            waiters: Arc::default(),
            ear: Arc::default(),
            following: OnceLock::new(),
        }
    }

    fn key(&self, session: &SessionId) -> SessionKey {
        SessionKey { tenant: self.tenant.clone(), session: session.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_store::embedded::Embedded;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_busy_tenant_is_compared_with_the_store_too() {
        let (store, tasks) = (Arc::new(Embedded::memory().unwrap()), TaskGroup::new());
        let inner = Inner {
            store: store.clone(),
            tasks: tasks.clone(),
            metrics: Metrics::new(),
            compare: Duration::from_millis(500),
            rooms: Mutex::default(),
        };
        let feeds = Feeds { inner: Arc::new(inner) };
        // Nobody follows the store for this room: every wake-up of the store is lost.
        let room = Arc::new(Room::new("acme".parse().unwrap()));
        let (weak, ear) = (Arc::downgrade(&room), room.ear.clone());
        tasks.spawn_until_stopped(async move { feeds.keep(weak, ear).await });
        let others = room.ear.clone();
        tasks.spawn_until_stopped(async move {
            loop {
                others.changed("busy".parse().unwrap(), Millis(1));
                sleep(Duration::from_millis(5)).await;
            }
        });
        // What follows is found by a later comparison than the first, or never.
        let known = async {
            while !room.is_known.load(Ordering::Acquire) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, known).await.expect("it was never compared at all");
        let lost: SessionKey = "acme/lost".parse().unwrap();
        store.index(&lost, Millis(2)).await.unwrap();
        let told = async {
            let mut seen = None;
            loop {
                let news = lock(&room.board).news(&mut seen, 0).unwrap_or_default();
                if news.gone.contains(&lost.session) {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("what the wake-ups lost was never found");
        assert!(tasks.close(PATIENCE).await);
    }
}
