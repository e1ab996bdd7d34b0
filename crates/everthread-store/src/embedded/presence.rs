//! Who is present, and which nodes live: in memory only, as both end with the process.

use crate::{PresenceChange, Present, Told};
use everthread_protocol::{Millis, NodeId, SessionKey};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The presence of all sessions.
#[derive(Debug, Default)]
pub(super) struct Presence(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Until when a node lives.
    nodes: HashMap<NodeId, Instant>,
    sessions: HashMap<SessionKey, BTreeMap<(NodeId, String), Told>>,
}

impl Presence {
    /// The node lives. Returns whether it did until now.
    pub fn beat(&self, node: &NodeId, ttl: Duration, now: Instant) -> bool {
        let mut known = self.lock();
        known.nodes.retain(|_, until| *until > now);
        known.nodes.insert(node.clone(), now + ttl).is_some()
    }

    /// Which of them live.
    pub fn living(&self, nodes: &[NodeId], now: Instant) -> Vec<bool> {
        let known = self.lock();
        nodes.iter().map(|node| known.lives(node, now)).collect()
    }

    /// Changes what a node holds.
    pub fn hold(&self, key: &SessionKey, node: &NodeId, changes: &[PresenceChange], at: Millis) {
        let mut known = self.lock();
        let held = known.sessions.entry(key.clone()).or_default();
        for PresenceChange { member, about } in changes {
            let place = (node.clone(), member.clone());
            match about {
                Some((about, since)) => {
                    let before = held.get(&place).map(|told| told.since);
                    let since = since.or(before).unwrap_or(at);
                    held.insert(place, Told { since, at, about: about.clone() });
                }
                None => drop(held.remove(&place)),
            }
        }
        if held.is_empty() {
            known.sessions.remove(key);
        }
    }

    /// Nobody is present any more.
    pub fn forget(&self, key: &SessionKey) {
        self.lock().sessions.remove(key);
    }

    /// Everybody whom a living node holds.
    pub fn present(&self, key: &SessionKey, told_max: usize, now: Instant) -> Vec<Present> {
        let mut known = self.lock();
        let Known { nodes, sessions } = &mut *known;
        let Some(held) = sessions.get_mut(key) else { return Vec::new() };
        held.retain(|(node, _), _| nodes.get(node).is_some_and(|until| *until > now));
        let is_told = held.len() <= told_max;
        let present = held.iter().map(|((node, member), told)| Present {
            node: node.clone(),
            member: member.clone(),
            told: is_told.then(|| told.clone()),
        });
        let present = present.collect();
        if held.is_empty() {
            sessions.remove(key);
        }
        present
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn lives(&self, node: &NodeId, now: Instant) -> bool {
        self.nodes.get(node).is_some_and(|until| *until > now)
    }
}
