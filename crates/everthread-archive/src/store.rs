//! The archive as a [`Store`]: what needs the whole session brings it back, everything else is the inner store's.

use crate::Archive;
use everthread_protocol::{
    ControlId, Cursor, DeviceId, Epoch, Level, Millis, NodeId, PoolKey, Record, Seq, SessionId, SessionKey,
    TenantId, Version, WorkerId,
};
use everthread_store::*;
use std::sync::Arc;
use std::time::Duration;

impl<S: Store> Store for Archive<S> {
    type Here = S;

    fn here(&self) -> &S {
        &self.store
    }

    async fn load(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        self.whole(key, || self.store.load(key)).await
    }

    async fn write(&self, key: &SessionKey, write: Write<'_>) -> Result<Written, Error> {
        self.whole(key, || self.store.write(key, write)).await
    }

    fn offers(&self, level: Level) -> bool {
        self.store.offers(level)
    }

    fn usual_level(&self, key: &SessionKey) -> Level {
        self.store.usual_level(key)
    }

    async fn confirm(&self, key: &SessionKey, written: &Written, level: Level) -> Result<(), Error> {
        self.store.confirm(key, written, level).await
    }

    fn keeping(&self, key: &SessionKey) -> Keeping {
        self.store.keeping(key)
    }

    async fn read(&self, key: &SessionKey, after: Seq, bytes_max: usize) -> Result<Page, Error> {
        self.whole(key, || self.store.read(key, after, bytes_max)).await
    }

    async fn fold(&self, key: &SessionKey, fold: Fold<'_>) -> Result<Folded, Error> {
        self.store.fold(key, fold).await
    }

    async fn trim(&self, key: &SessionKey, trim: Trim<'_>) -> Result<Trimmed, Error> {
        self.store.trim(key, trim).await
    }

    async fn base(&self, key: &SessionKey) -> Result<Option<Base>, Error> {
        self.whole(key, || self.store.base(key)).await
    }

    async fn stage(&self, key: &SessionKey, name: &str, records: &[Record]) -> Result<(), Error> {
        self.store.stage(key, name, records).await
    }

    async fn plant(&self, key: &SessionKey, name: &str, plant: Plant<'_>) -> Result<Planted, Error> {
        self.store.plant(key, name, plant).await
    }

    async fn stub(&self, key: &SessionKey, stub: Stub<'_>) -> Result<Stubbed, Error> {
        self.store.stub(key, stub).await
    }

    async fn stubbed(&self, keys: &[SessionKey]) -> Result<Vec<Option<StubInfo>>, Error> {
        self.store.stubbed(keys).await
    }

    async fn heads(&self, keys: &[SessionKey]) -> Result<Vec<Option<Head>>, Error> {
        self.store.heads(keys).await
    }

    async fn each_head(&self, keys: &[SessionKey]) -> Vec<Result<Option<Head>, Error>> {
        self.store.each_head(keys).await
    }

    async fn states(&self, keys: &[SessionKey]) -> Result<Vec<Option<Listed>>, Error> {
        self.store.states(keys).await
    }

    async fn each_state(&self, keys: &[SessionKey]) -> Vec<Result<Option<Listed>, Error>> {
        self.store.each_state(keys).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<Option<Deleted>, Error> {
        self.delete_all(key).await
    }

    async fn delete_if(&self, key: &SessionKey, expect: Version, head: Seq) -> Result<bool, Error> {
        // Its objects are swept when its deadline, which this hurries, is kept: nobody waits for an object store here.
        match &self.shared {
            Some(shared) => shared.due_later(key, crate::forget::LOOK).await?,
            None => self.refuse_stub(key).await?,
        }
        self.store.delete_if(key, expect, head).await
    }

    async fn gone(&self, key: &SessionKey) -> Result<Option<Epoch>, Error> {
        self.store.gone(key).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Option<Head>>, Error> {
        self.store.renew(renewals).await
    }

    async fn each_renewed(&self, renewals: &[Renewal]) -> Vec<Result<Option<Head>, Error>> {
        self.store.each_renewed(renewals).await
    }

    async fn mark_delivered(
        &self,
        key: &SessionKey,
        control: &ControlId,
        worker: &WorkerId,
    ) -> Result<(), Error> {
        self.store.mark_delivered(key, control, worker).await
    }

    async fn delivered(
        &self,
        key: &SessionKey,
        controls: &[ControlId],
    ) -> Result<Vec<Option<WorkerId>>, Error> {
        self.store.delivered(key, controls).await
    }

    fn follow(&self, key: &SessionKey, interest: Interest, follower: Arc<dyn Follower>) -> Following {
        self.store.follow(key, interest, follower)
    }

    fn follow_tenant(&self, tenant: &TenantId, follower: Arc<dyn TenantFollower>) -> Following {
        self.store.follow_tenant(tenant, follower)
    }

    async fn index(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        self.store.index(key, at).await
    }

    async fn unindex(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        self.store.unindex(key, at).await
    }

    async fn sessions(
        &self,
        tenant: &TenantId,
        after: Option<(Millis, SessionId)>,
        limit: usize,
    ) -> Result<Vec<(SessionId, Millis)>, Error> {
        self.store.sessions(tenant, after, limit).await
    }

    async fn enqueue(&self, pool: &PoolKey, item: &WorkItem) -> Result<(), Error> {
        self.store.enqueue(pool, item).await
    }

    async fn take(&self, pool: &PoolKey, consumer: &NodeId, limit: usize) -> Result<Vec<Taken>, Error> {
        self.store.take(pool, consumer, limit).await
    }

    async fn finish_item(&self, pool: &PoolKey, ticket: &str) -> Result<(), Error> {
        self.store.finish_item(pool, ticket).await
    }

    fn watch_pool(&self, pool: &PoolKey, wake: Arc<dyn Fn() + Send + Sync>) -> Following {
        self.store.watch_pool(pool, wake)
    }

    async fn arm(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        self.store.arm(key, at).await
    }

    async fn claim_due(&self, limit: usize) -> Result<Vec<Due>, Error> {
        self.store.claim_due(limit).await
    }

    async fn finish_due(&self, due: &Due, next: Option<Millis>) -> Result<(), Error> {
        self.store.finish_due(due, next).await
    }

    async fn beat(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
        holder: &str,
        ttl_ms: u64,
    ) -> Result<(), Error> {
        self.store.beat(tenant, worker, holder, ttl_ms).await
    }

    async fn holder(&self, tenant: &TenantId, worker: &WorkerId) -> Result<Option<String>, Error> {
        self.store.holder(tenant, worker).await
    }

    async fn bury(&self, tenant: &TenantId, worker: &WorkerId, holder: &str) -> Result<bool, Error> {
        self.store.bury(tenant, worker, holder).await
    }

    async fn ack(
        &self,
        key: &SessionKey,
        device: &DeviceId,
        cursor: Cursor,
    ) -> Result<Option<Cursor>, Error> {
        self.store.ack(key, device, cursor).await
    }

    async fn devices(&self, key: &SessionKey) -> Result<Vec<Device>, Error> {
        self.store.devices(key).await
    }

    async fn device_in(&self, keys: &[SessionKey], device: &DeviceId) -> Result<Vec<Option<Device>>, Error> {
        self.store.device_in(keys, device).await
    }

    async fn forget_device(&self, key: &SessionKey, device: &DeviceId) -> Result<bool, Error> {
        self.store.forget_device(key, device).await
    }

    async fn beat_node(&self, node: &NodeId, ttl_ms: u64) -> Result<bool, Error> {
        self.store.beat_node(node, ttl_ms).await
    }

    async fn living(&self, nodes: &[NodeId]) -> Result<Vec<bool>, Error> {
        self.store.living(nodes).await
    }

    async fn hold_present(
        &self,
        key: &SessionKey,
        node: &NodeId,
        changes: &[PresenceChange],
    ) -> Result<(), Error> {
        self.store.hold_present(key, node, changes).await
    }

    async fn present(&self, key: &SessionKey, told_max: usize) -> Result<Vec<Present>, Error> {
        self.store.present(key, told_max).await
    }

    async fn scan(&self, from: Option<&str>, limit: usize) -> Result<Scanned, Error> {
        self.store.scan(from, limit).await
    }

    async fn waiting(&self, pool: &PoolKey, after: Option<&str>, limit: usize) -> Result<Waiting, Error> {
        self.store.waiting(pool, after, limit).await
    }

    async fn rebuild_turn(&self, node: &NodeId, wanted: Duration, lease: Duration) -> Result<Turn, Error> {
        self.store.rebuild_turn(node, wanted, lease).await
    }

    async fn end_rebuild(&self, node: &NodeId) -> Result<(), Error> {
        self.store.end_rebuild(node).await
    }

    fn upheavals(&self) -> u64 {
        self.store.upheavals()
    }

    fn steady_for(&self, key: &SessionKey) -> Option<Duration> {
        self.store.steady_for(key)
    }

    fn is_ready(&self) -> bool {
        self.store.is_ready()
    }

    fn probe_age(&self) -> Option<Duration> {
        self.store.probe_age()
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        self.store.collectors()
    }
}
