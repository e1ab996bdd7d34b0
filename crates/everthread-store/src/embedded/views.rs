//! What readers see of sessions in memory: the last commit, never more.
//!
//! Owns the published copy of each cached session and its most recent records. The writer publishes after every commit;
//! readers clone out of it and never put anything in, so a slow reader cannot bring an old state back. A session that is
//! not here is read from the file. Leases alone are moved by readers, and stand nowhere else.

use super::disk::{Held, Meta};
use super::leases::{Lease, Leases};
use super::session::{Producer, Session};
use crate::{Head, LEASE_MS_MAX, Listed, Loaded, Page, Renewal};
use everthread_protocol::{Millis, Record, RunId, Seq, SessionKey};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of recent records kept per session: about a page of catch-up.
const RECENT_BYTES_MAX: usize = 256 * 1024;
/// What a record costs besides its bytes.
const RECORD_BYTES: usize = 96;

/// The published sessions.
#[derive(Debug, Default)]
pub(super) struct Views(RwLock<Shown>);

#[derive(Debug, Default)]
struct Shown {
    views: HashMap<SessionKey, View>,
    /// Of all sessions, also of those without a view.
    leases: Leases,
}

#[derive(Debug, Default)]
struct View {
    meta: Meta,
    state: Arc<str>,
    held: Held,
    /// Contiguous up to the head.
    recent: VecDeque<Record>,
    recent_bytes: usize,
}

impl Views {
    /// Shows what a commit has stored.
    pub fn publish<'a>(
        &self,
        sessions: impl Iterator<Item = (&'a SessionKey, &'a Session)>,
        records: impl Iterator<Item = (SessionKey, Record)>,
        granted: impl Iterator<Item = (SessionKey, RunId, Lease)>,
    ) {
        let mut shown = self.write();
        let Shown { views, leases } = &mut *shown;
        for (key, run, lease) in granted {
            leases.grant(&key, run, lease);
        }
        for (key, session) in sessions {
            leases.keep(key, &session.meta.fences);
            if session.meta.archived.is_some() {
                // Who asks for it learns from the file that it is a stub.
                views.remove(key);
                continue;
            }
            let view = views.entry(key.clone()).or_default();
            view.meta = session.meta.clone();
            // What is folded is read folded.
            while let Some(old) = view.recent.pop_front_if(|record| record.to <= view.meta.folded_to) {
                view.recent_bytes -= old.blocks.len() + RECORD_BYTES;
            }
            view.state = session.state.clone();
            view.held = held(session);
        }
        for (key, record) in records {
            let Some(view) = views.get_mut(&key) else { continue };
            // Written and folded in one group.
            if record.to <= view.meta.folded_to {
                continue;
            }
            view.recent_bytes += record.blocks.len() + RECORD_BYTES;
            view.recent.push_back(record);
            while view.recent_bytes > RECENT_BYTES_MAX {
                let Some(old) = view.recent.pop_front() else { break };
                view.recent_bytes -= old.blocks.len() + RECORD_BYTES;
            }
        }
    }

    /// Forgets sessions; they are read from the file from here on.
    pub fn forget<'a>(&self, keys: impl Iterator<Item = &'a SessionKey>) {
        let mut shown = self.write();
        for key in keys {
            shown.views.remove(key);
        }
    }

    /// Forgets a session that is gone, with its leases.
    pub fn delete(&self, key: &SessionKey) {
        let mut shown = self.write();
        shown.views.remove(key);
        shown.leases.keep(key, &BTreeMap::new());
    }

    /// The session for a list, if it is here.
    pub fn listed(&self, key: &SessionKey) -> Option<Listed> {
        let shown = self.read();
        let view = shown.views.get(key)?;
        Some(view.meta.to_listed(view.state.to_string()))
    }

    /// Bytes of recent records kept of a session.
    pub fn recent_bytes(&self, key: &SessionKey) -> usize {
        self.read().views.get(key).map_or(0, |view| view.recent_bytes)
    }

    /// The session, if it is here.
    pub fn load(&self, key: &SessionKey, now: Millis) -> Option<Loaded> {
        let shown = self.read();
        let view = shown.views.get(key)?;
        let leases = shown.leases.of(key, &view.meta.fences);
        Some(loaded(view.meta.clone(), view.state.to_string(), view.held.clone(), leases, now))
    }

    /// The session as it was read from the file.
    pub fn load_stored(&self, key: &SessionKey, stored: (Meta, String, Held), now: Millis) -> Loaded {
        let (meta, state, held) = stored;
        let leases = self.read().leases.of(key, &meta.fences);
        loaded(meta, state, held, leases, now)
    }

    /// Renews leases, if the session is here or was just read from the file, and tells where its log ends.
    pub fn renew(&self, renewal: &Renewal, stored: Option<&Meta>, now: Millis) -> Option<Head> {
        let mut shown = self.write();
        let Shown { views, leases } = &mut *shown;
        // What is here is at least as new as what was read before.
        let meta = views.get(&renewal.key).map(|view| &view.meta).or(stored)?;
        let ends = now.plus(renewal.left_ms.min(LEASE_MS_MAX));
        leases.renew(&renewal.key, &meta.fences, &renewal.runs, ends);
        Some(meta.to_head())
    }

    /// Where its log ends, if it is here.
    pub fn head(&self, key: &SessionKey) -> Option<Head> {
        self.read().views.get(key).map(|view| view.meta.to_head())
    }

    /// Whether the session is shown as it was before its log ended there.
    pub fn is_before(&self, key: &SessionKey, head: &Head) -> bool {
        let shown = self.head(key);
        shown.is_some_and(|shown| (shown.epoch, shown.seq) < (head.epoch, head.seq))
    }

    /// The page after `after`, if all of it is here.
    pub fn page(&self, key: &SessionKey, after: Seq, bytes_max: usize) -> Option<Page> {
        let shown = self.read();
        let view = shown.views.get(key)?;
        let head = view.meta.to_head();
        let mut page = Page { records: Vec::new(), head, epochs: view.meta.epochs.clone() };
        if after >= head.seq {
            return Some(page);
        }
        if view.recent.front()?.from > after.next() {
            return None;
        }
        let first = view.recent.partition_point(|record| record.to <= after);
        let mut bytes = 0;
        for record in view.recent.range(first..) {
            bytes += record.blocks.len();
            if bytes > bytes_max && !page.records.is_empty() {
                break;
            }
            page.records.push(record.clone());
        }
        Some(page)
    }

    fn read(&self) -> RwLockReadGuard<'_, Shown> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shown> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session as the core needs it.
fn loaded(meta: Meta, state: String, producers: Held, leases: Vec<(RunId, Millis)>, now: Millis) -> Loaded {
    Loaded {
        state,
        version: meta.version(),
        now,
        head: meta.head,
        epochs: meta.epochs,
        fences: meta.fences.into_iter().collect(),
        leases,
        producers,
    }
}

fn held(session: &Session) -> Held {
    let producer = |run| session.producers.get(&Producer::key_of(run));
    session
        .meta
        .fences
        .keys()
        .filter_map(|run| producer(run).map(|known| (run.clone(), known.incarnation, known.batch)))
        .collect()
}
