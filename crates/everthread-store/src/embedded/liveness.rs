//! Which workers live, in memory only: after a restart every worker has to show itself again.

use everthread_protocol::{TenantId, WorkerId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Workers that are known before expired ones are cleared away.
const CLEAR_AT: usize = 1024;

/// Every worker that lives, with who holds it and until when.
#[derive(Debug, Default)]
pub(super) struct Liveness(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    workers: HashMap<(TenantId, WorkerId), (String, Instant)>,
    clear_at: usize,
}

impl Liveness {
    /// The worker lives for `ttl` from now.
    pub fn beat(&self, tenant: &TenantId, worker: &WorkerId, holder: &str, ttl: Duration) {
        let now = Instant::now();
        let mut known = self.lock();
        known.workers.insert((tenant.clone(), worker.clone()), (holder.to_owned(), now + ttl));
        if known.workers.len() > known.clear_at.max(CLEAR_AT) {
            known.workers.retain(|_, (_, until)| *until > now);
            known.clear_at = 2 * known.workers.len();
        }
    }

    /// Who holds the worker, if it lives.
    pub fn holder(&self, tenant: &TenantId, worker: &WorkerId) -> Option<String> {
        let known = self.lock();
        let (holder, until) = known.workers.get(&(tenant.clone(), worker.clone()))?;
        (*until > Instant::now()).then(|| holder.clone())
    }

    /// The worker is gone, unless somebody else holds it.
    pub fn bury(&self, tenant: &TenantId, worker: &WorkerId, holder: &str) -> bool {
        let key = (tenant.clone(), worker.clone());
        let mut known = self.lock();
        let elsewhere =
            known.workers.get(&key).is_some_and(|(by, until)| by != holder && *until > Instant::now());
        if !elsewhere {
            known.workers.remove(&key);
        }
        !elsewhere
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
