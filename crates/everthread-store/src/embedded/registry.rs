//! Who wants to be woken, by what.

use crate::Following;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Values registered under keys, each until its guard is dropped.
#[derive(Debug)]
pub(super) struct Registry<K, V>(Mutex<Entries<K, V>>);

#[derive(Debug)]
struct Entries<K, V> {
    next: u64,
    by_key: HashMap<K, Vec<(u64, V)>>,
}

impl<K, V> Default for Registry<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Entries { next: 0, by_key: HashMap::new() }))
    }
}

impl<K, V> Registry<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + 'static,
{
    /// Registers `value` until the guard is dropped.
    pub fn add(self: &Arc<Self>, key: &K, value: V) -> Following {
        let mut entries = self.lock();
        let id = entries.next;
        entries.next += 1;
        entries.by_key.entry(key.clone()).or_default().push((id, value));
        drop(entries);
        let (registry, key) = (Arc::downgrade(self), key.clone());
        Following::new(move || {
            if let Some(registry) = registry.upgrade() {
                registry.remove(&key, id);
            }
        })
    }

    /// What is registered under `key` now. Copied, so that nobody is called under the lock.
    pub fn of(&self, key: &K) -> Vec<V> {
        self.lock().by_key.get(key).map_or_else(Vec::new, |all| all.iter().map(|(_, v)| v.clone()).collect())
    }

    fn remove(&self, key: &K, id: u64) {
        let mut entries = self.lock();
        // The value is dropped after the lock is given back: its drop may end in here again.
        let _gone = entries.by_key.get_mut(key).and_then(|all| {
            let at = all.iter().position(|(known, _)| *known == id)?;
            Some(all.swap_remove(at))
        });
        if entries.by_key.get(key).is_some_and(Vec::is_empty) {
            entries.by_key.remove(key);
        }
        drop(entries);
    }

    fn lock(&self) -> MutexGuard<'_, Entries<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
