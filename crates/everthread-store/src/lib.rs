//! The store: one atomic write, paged reads, a lossy live feed, work pools and deadlines.
//!
//! Mechanism only. What may happen to a session is decided by `everthread-session`; this crate makes one decision
//! durable atomically, and hands out every number: seq, epoch, version, fence, time. [`redis`] and [`embedded`]
//! implement [`Store`], behave alike, and pass one conformance suite; the embedded engine is the reference model.
//!
//! Life of an entry here: [`Store::write`] checks duplicate → fence → gap → version, appends one record, and wakes
//! followers. A follower that missed the wake-up finds the record with [`Store::read`]. The log never loses what the
//! feed may. Later [`Store::fold`] puts a folded record in the place of it and its neighbours.

mod archiver;
pub mod embedded;
mod fold;
pub mod pages;
mod people;
mod plant;
#[cfg(feature = "planted-faults")]
pub mod planted;
mod rebuild;
pub mod redis;
mod sure;
mod trim;
mod types;
mod whole;

pub use archiver::{ArchiveFault, Archived, Archiver};
pub use fold::{Fold, Folded};
pub use pages::Pages;
pub use people::*;
pub use plant::*;
pub use rebuild::{Scanned, Turn, Waiting};
pub use sure::{Keeping, check_level};
pub use trim::{Base, Trim, Trimmed};
pub use types::*;
pub use whole::*;

use everthread_protocol::{
    ControlId, Cursor, DeviceId, Epoch, Level, Millis, NodeId, PoolKey, Record, RunId, Seq, SessionId,
    SessionKey, TenantId, Version, WorkerId,
};
use std::sync::Arc;

/// The contract of both engines. Every method has a deadline of its own and returns [`Error::Unavailable`] or, where
/// the write may have happened, [`Error::Indeterminate`].
pub trait Store: Send + Sync + 'static {
    /// See [`Store::here`].
    type Here: Store;

    /// What there is without bringing anything back: an archived session is refused as [`Refusal::Archived`]. For whatever
    /// nobody has asked for, such as folds and upkeep: it must not undo an archiving that it happened to meet.
    fn here(&self) -> &Self::Here;

    /// The session as the core needs it, with the store's clock; `None` if it does not exist.
    fn load(&self, key: &SessionKey) -> impl Future<Output = Result<Option<Loaded>, Error>> + Send;

    /// The one atomic write.
    ///
    /// Order of checks: no session ([`Refusal::NoSession`], or [`Refusal::Exists`] where it must be new) → a duplicate of
    /// this producer gets its first answer → time ([`Refusal::Late`]) → fence ([`Refusal::Fenced`]; absent means refuse)
    /// → gap ([`Refusal::Gap`]) → version and `unwritten` ([`Refusal::Conflict`], [`Refusal::HasWritten`]). Then the epoch
    /// moves if the store has restarted since the last write, the entries get their seqs, the record is stored, state and
    /// fences change, and followers are woken: all or nothing.
    fn write(
        &self,
        key: &SessionKey,
        write: Write<'_>,
    ) -> impl Future<Output = Result<Written, Error>> + Send;

    /// Whether writes can be acknowledged at this level here. Once it could, it is true for good: of a replica that is gone for
    /// the moment [`Store::confirm`] tells.
    fn offers(&self, level: Level) -> bool;

    /// The level at which decisions about the session are acknowledged where nobody says otherwise: replicated while a replica
    /// follows closely, else accepted.
    fn usual_level(&self, key: &SessionKey) -> Level;

    /// Waits until what was written to the session, up to the write that was answered with `written`, is as sure as `level`
    /// says. Of many that wait at once the store asks its servers once.
    ///
    /// [`Error::Indeterminate`] if it is not so in time, or if the log is not the one of that write any more: repeating the
    /// write tells which, as its answer then is a duplicate that can be confirmed. [`Refusal::NoLevel`] if it never can be.
    fn confirm(
        &self,
        key: &SessionKey,
        written: &Written,
        level: Level,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// When who writes to the session may forget what it wrote.
    fn keeping(&self, key: &SessionKey) -> Keeping;

    /// Records that end after `after`, oldest first, up to about `bytes_max` of blocks (at least one record if there is
    /// one). The first may begin at or before `after`. They are contiguous whatever is folded meanwhile: older ones come
    /// folded, the most recent ones raw. What lies below the floor is gone: then the page begins at the floor, which its head
    /// tells. A page may be shorter than it need be; only one without records is the end.
    fn read(
        &self,
        key: &SessionKey,
        after: Seq,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Page, Error>> + Send;

    /// Puts folded records in the place of the raw ones that they stand for: atomically, and only if the log is folded up
    /// to just before the first of them, is still the one that was read, and has a raw record that ends where the last of
    /// them does. Nothing else changes: seqs, epochs and cursors stay, and nobody is woken.
    ///
    /// Anybody may fold at any time; whoever comes second is told so. Repeating a fold whose answer was lost is harmless.
    fn fold(&self, key: &SessionKey, fold: Fold<'_>) -> impl Future<Output = Result<Folded, Error>> + Send;

    /// Drops the folded records before a floor, keeps a text in their place, and moves floor and version: atomically, and only
    /// if the session is still at the version and the floor that were read, and a folded record ends before the new floor.
    /// Nobody is woken; cursors stay, and [`Store::read`] from one below the floor begins at the floor.
    ///
    /// Anybody may trim at any time; whoever comes second is told so. Repeating a trim whose answer was lost is harmless.
    fn trim(&self, key: &SessionKey, trim: Trim<'_>) -> impl Future<Output = Result<Trimmed, Error>> + Send;

    /// What stands for what was dropped of a session; `None` if nothing was, or there is no such session.
    fn base(&self, key: &SessionKey) -> impl Future<Output = Result<Option<Base>, Error>> + Send;

    /// Puts records aside for [`Store::plant`], in order, under a name of the caller's choice: those of one call follow
    /// those of the one before, or it is [`Refusal::NotStaged`]. Nobody sees them. Repeating a call is harmless.
    ///
    /// They are forgotten [`STAGED_KEPT`] after the last call without a plant. Where nothing is staged a call begins anew, with
    /// whatever record: who goes on after that learns from the plant that what came before is gone.
    fn stage(
        &self,
        key: &SessionKey,
        name: &str,
        records: &[Record],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes the session out of what was staged under `name`: in one step, or not at all. What was staged is gone either
    /// way; if it is not all there, [`Refusal::NotStaged`]. Followers are woken.
    ///
    /// A session that was deleted may be planted anew: the epoch of [`Plant::first`] is then greater than any of its.
    fn plant(
        &self,
        key: &SessionKey,
        name: &str,
        plant: Plant<'_>,
    ) -> impl Future<Output = Result<Planted, Error>> + Send;

    /// Takes log and state of a session out of the store and leaves a stub, if nothing has changed since it was read.
    ///
    /// Whatever needs the log or the state is [`Refusal::Archived`] from then on, until it is planted again. Head,
    /// version, epochs and devices stay; requests are still known to be repeats for as long as they would have been.
    fn stub(&self, key: &SessionKey, stub: Stub<'_>) -> impl Future<Output = Result<Stubbed, Error>> + Send;

    /// Which of the sessions are stubs, in the order asked; `None` for those that are whole or do not exist.
    fn stubbed(
        &self,
        keys: &[SessionKey],
    ) -> impl Future<Output = Result<Vec<Option<StubInfo>>, Error>> + Send;

    /// Heads of many sessions at once, in the order asked; `None` for those that do not exist.
    fn heads(&self, keys: &[SessionKey]) -> impl Future<Output = Result<Vec<Option<Head>>, Error>> + Send;

    /// The same, session by session: where a part of the store does not answer, the heads of all others are told.
    fn each_head(
        &self,
        keys: &[SessionKey],
    ) -> impl Future<Output = Vec<Result<Option<Head>, Error>>> + Send {
        async move { each_of(keys.len(), self.heads(keys).await) }
    }

    /// Heads and core states of many sessions at once, in the order asked; `None` for those that do not exist.
    fn states(&self, keys: &[SessionKey]) -> impl Future<Output = Result<Vec<Option<Listed>>, Error>> + Send;

    /// The same, session by session, as [`Store::each_head`] is.
    fn each_state(
        &self,
        keys: &[SessionKey],
    ) -> impl Future<Output = Vec<Result<Option<Listed>, Error>>> + Send {
        async move { each_of(keys.len(), self.states(keys).await) }
    }

    /// Removes the session: its log, its state, its devices, everything. `None` if there was none.
    ///
    /// It goes in one step: whoever comes after it finds no session, and a write is either before it or refused. Followers
    /// of every [`Interest`] are told to look. Then it goes from its tenant's list; a deadline of it fires once more, at
    /// once, to be removed by whoever claims it. Repeating it is harmless, and finishes what a failure has left.
    ///
    /// One that is made anew with the same id is another session: its epochs, and so its cursors, versions and fences, are
    /// all greater than those of before.
    fn delete(&self, key: &SessionKey) -> impl Future<Output = Result<Option<Deleted>, Error>> + Send;

    /// The same, if the session is still at this version and its log still ends there: nothing that was acknowledged since
    /// then goes. Returns whether it was.
    fn delete_if(
        &self,
        key: &SessionKey,
        expect: Version,
        head: Seq,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// The last epoch of a session that was deleted within [`TOMBSTONE_KEPT`] and was not made anew since; `None` of any other.
    /// Who means to plant a session reads it first: see [`Over::Nothing`].
    fn gone(&self, key: &SessionKey) -> impl Future<Output = Result<Option<Epoch>, Error>> + Send;

    /// Renews the leases of runs, session by session, and reads the sessions' heads in the order asked (`None`: no such
    /// session).
    ///
    /// A lease moves to `left_ms` from now if that is later, and only where the run still has that fence; others are left
    /// alone. A lease of which nothing is known is set. Repeating a renewal is harmless. A failure may have renewed some.
    fn renew(&self, renewals: &[Renewal]) -> impl Future<Output = Result<Vec<Option<Head>>, Error>> + Send;

    /// The same, session by session, as [`Store::each_head`] is: it is told which were not renewed.
    fn each_renewed(
        &self,
        renewals: &[Renewal],
    ) -> impl Future<Output = Vec<Result<Option<Head>, Error>>> + Send {
        async move { each_of(renewals.len(), self.renew(renewals).await) }
    }

    /// Notes that `worker` has got the control, for [`DELIVERED_MEMORY`], and wakes followers of [`Interest::Control`].
    ///
    /// A hint for receipts, not a part of the log: it may be lost with the store's memory. Where there is no such session, or
    /// no more, nothing is noted.
    /// The last worker that got a control stands. Beyond [`DELIVERED_MAX`] of one session the oldest are forgotten.
    fn mark_delivered(
        &self,
        key: &SessionKey,
        control: &ControlId,
        worker: &WorkerId,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Who has got each control, in the order asked; `None` where nobody is known to have.
    fn delivered(
        &self,
        key: &SessionKey,
        controls: &[ControlId],
    ) -> impl Future<Output = Result<Vec<Option<WorkerId>>, Error>> + Send;

    /// Wakes `follower` from here on, until the guard is dropped. Lossy: after a subscription was established or
    /// re-established, or whenever something may have been missed, `follower` is told to [`Follower::doubt`].
    fn follow(&self, key: &SessionKey, interest: Interest, follower: Arc<dyn Follower>) -> Following;

    /// Notes in the tenant's index that the session exists and was active at `at`, and wakes followers of the tenant. Never
    /// moves it back.
    fn index(&self, key: &SessionKey, at: Millis) -> impl Future<Output = Result<(), Error>> + Send;

    /// Takes a session that is gone off its tenant's list, where it was last active `at`. Without effect if the index says
    /// otherwise by now.
    fn unindex(&self, key: &SessionKey, at: Millis) -> impl Future<Output = Result<(), Error>> + Send;

    /// Wakes `follower` when a session of the tenant is indexed or taken off the index, from here on, until the guard is
    /// dropped. Lossy, as [`Store::follow`]: when it begins, and whenever something may have been missed, it is told to
    /// [`TenantFollower::doubt`], and compares itself with the index.
    fn follow_tenant(&self, tenant: &TenantId, follower: Arc<dyn TenantFollower>) -> Following;

    /// Sessions of a tenant, most recently active first, beginning after `after`.
    fn sessions(
        &self,
        tenant: &TenantId,
        after: Option<(Millis, SessionId)>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(SessionId, Millis)>, Error>> + Send;

    /// Adds a run to its pool and wakes the pool's watchers. Adding one twice is harmless: the claim decides.
    fn enqueue(&self, pool: &PoolKey, item: &WorkItem) -> impl Future<Output = Result<(), Error>> + Send;

    /// Takes up to `limit` items without blocking: first those that some consumer took [`ITEM_VISIBILITY`] ago and did not
    /// finish, then new ones. A taken item stays pending until [`Store::finish_item`].
    fn take(
        &self,
        pool: &PoolKey,
        consumer: &NodeId,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Taken>, Error>> + Send;

    /// The item needs nobody any more.
    fn finish_item(&self, pool: &PoolKey, ticket: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Calls `wake` when something is added to the pool, until the guard is dropped. Lossy.
    fn watch_pool(&self, pool: &PoolKey, wake: Arc<dyn Fn() + Send + Sync>) -> Following;

    /// The session is due at `at`, or earlier if it was due earlier.
    fn arm(&self, key: &SessionKey, at: Millis) -> impl Future<Output = Result<(), Error>> + Send;

    /// Takes sessions whose time has come, and hides them from others for [`DUE_VISIBILITY`].
    fn claim_due(&self, limit: usize) -> impl Future<Output = Result<Vec<Due>, Error>> + Send;

    /// Ends a claim: the session is next due at `next`, or not at all. Without effect if it was armed or claimed since.
    fn finish_due(&self, due: &Due, next: Option<Millis>) -> impl Future<Output = Result<(), Error>> + Send;

    /// The worker lives, held by `holder` (a connection), for `ttl_ms` from now.
    fn beat(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
        holder: &str,
        ttl_ms: u64,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Who holds the worker, if it lives.
    fn holder(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
    ) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// The worker is gone, unless somebody other than `holder` holds it by now. Returns whether it is gone.
    fn bury(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
        holder: &str,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Moves the device's durable cursor forward to `cursor`, and tells where it then stands.
    ///
    /// It never goes back, and never beyond the log: `None`, and nothing changes, if `cursor` is not of this log. A known
    /// cursor that the log has lost gives way to any that it has. A new device takes the place of those that were idle for
    /// `DEVICE_IDLE_MS`, and, of `DEVICES_MAX`, of the one idle for longest. Repeating it is harmless.
    fn ack(
        &self,
        key: &SessionKey,
        device: &DeviceId,
        cursor: Cursor,
    ) -> impl Future<Output = Result<Option<Cursor>, Error>> + Send;

    /// The devices of a session, by name; none of those that were idle for `DEVICE_IDLE_MS`. The session need not exist.
    fn devices(&self, key: &SessionKey) -> impl Future<Output = Result<Vec<Device>, Error>> + Send;

    /// One device in many sessions, in the order asked; `None` where it has no durable cursor.
    fn device_in(
        &self,
        keys: &[SessionKey],
        device: &DeviceId,
    ) -> impl Future<Output = Result<Vec<Option<Device>>, Error>> + Send;

    /// Forgets a device. Returns whether it was known.
    fn forget_device(
        &self,
        key: &SessionKey,
        device: &DeviceId,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// The node lives for `ttl_ms` from now. Returns whether it was known to live until now: if not, what it held may have
    /// been forgotten.
    fn beat_node(&self, node: &NodeId, ttl_ms: u64) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Which of the nodes live, in the order asked.
    fn living(&self, nodes: &[NodeId]) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    /// Changes what `node` holds of the session's presence, and wakes followers of [`Interest::Presence`].
    ///
    /// In no way a part of the log; it may be lost with the store's memory, and the session need not exist.
    fn hold_present(
        &self,
        key: &SessionKey,
        node: &NodeId,
        changes: &[PresenceChange],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Everybody whom a living node holds, in no order. What dead nodes hold is forgotten. If there are more than
    /// `told_max`, nothing is told about them.
    fn present(
        &self,
        key: &SessionKey,
        told_max: usize,
    ) -> impl Future<Output = Result<Vec<Present>, Error>> + Send;

    /// Some of the sessions that there are, about `limit` at a time: from the beginning, or from where an earlier call says to go
    /// on. Bounded in what it costs, not in how many it finds: there may be none, and more to come.
    fn scan(&self, from: Option<&str>, limit: usize) -> impl Future<Output = Result<Scanned, Error>> + Send;

    /// What is in a pool, `limit` items at a time, whoever has taken them: nothing changes.
    fn waiting(
        &self,
        pool: &PoolKey,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<Waiting, Error>> + Send;

    /// Whether `node` is to build the indexes anew, which was wanted so long ago. A turn lasts `lease`, and as long again
    /// whenever its node asks; who wants it again after [`Turn::Done`] names a later time.
    fn rebuild_turn(
        &self,
        node: &NodeId,
        wanted: std::time::Duration,
        lease: std::time::Duration,
    ) -> impl Future<Output = Result<Turn, Error>> + Send;

    /// The indexes are built, if the turn is still the node's.
    fn end_rebuild(&self, node: &NodeId) -> impl Future<Output = Result<(), Error>> + Send;

    /// A number that grows when another server, or the same one started anew, serves a part of the store: its indexes may have
    /// lost what the sessions have.
    fn upheavals(&self) -> u64;

    /// For how long the part of the store that has the session has answered without a break, as one and the same server;
    /// `None` if it does not answer now.
    fn steady_for(&self, key: &SessionKey) -> Option<std::time::Duration>;

    /// Whether reads, writes and the live feed work now: the last probe through all of them came back. Where the store is
    /// several servers, through one of them.
    fn is_ready(&self) -> bool;

    /// How long ago such a probe came back last, where that is longest ago; `None` where there is nothing to probe.
    fn probe_age(&self) -> Option<std::time::Duration>;

    /// What the engine counts, for whoever shows it.
    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        Vec::new()
    }
}

/// How long an item that was taken from a pool stays hidden from other consumers.
pub const ITEM_VISIBILITY: std::time::Duration = std::time::Duration::from_secs(5);
/// How long a due session that was claimed stays hidden from other nodes.
pub const DUE_VISIBILITY: std::time::Duration = std::time::Duration::from_secs(1);

/// How long it is remembered, at least, who has got a control. An outcome comes sooner than that, or the control is sent
/// again.
pub const DELIVERED_MEMORY: std::time::Duration = std::time::Duration::from_secs(10 * 60);
/// Delivered controls that are remembered of one session.
pub const DELIVERED_MAX: usize = 1024;

/// Wakes a follower of one session. Called from the store's own tasks: must not block.
pub trait Follower: Send + Sync {
    /// A record was written. Only with [`Interest::Log`]; may come twice, may be lost.
    fn record(&self, record: Record);
    /// The state changed, or a worker has got a control, with [`Interest::Control`]; or what is held of the presence
    /// changed, with [`Interest::Presence`]. May come twice, may be lost.
    fn changed(&self);
    /// Something may have been lost: compare with the store.
    fn doubt(&self);
}

/// What a store that is one piece answers about each of `count` sessions.
fn each_of<T>(count: usize, told: Result<Vec<T>, Error>) -> Vec<Result<T, Error>> {
    match told {
        Ok(all) => all.into_iter().map(Ok).collect(),
        Err(error) => vec![error; count].into_iter().map(Err).collect(),
    }
}

/// Wakes a follower of all sessions of a tenant. Called from the store's own tasks: must not block.
pub trait TenantFollower: Send + Sync {
    /// A session was active at `at`, or is not there any more. May come twice, may be lost.
    fn changed(&self, session: SessionId, at: Millis);
    /// Something may have been lost: compare with the index.
    fn doubt(&self);
}

/// A run waiting in a pool.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WorkItem {
    /// Its session's tenant.
    pub tenant: TenantId,
    /// Its session.
    pub session: SessionId,
    /// The run.
    pub run: RunId,
    /// The write that requests it is made before this time or never.
    pub not_after: Millis,
}
