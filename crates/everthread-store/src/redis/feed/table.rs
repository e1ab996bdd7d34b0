//! Who follows which channel, and what the server has been told of it. No I/O.
//!
//! Invariant: a channel with followers is either confirmed, or asked for, or dirty; so it is subscribed sooner or later,
//! and its followers hear of it ([`Sink::doubt`]) when it is.

use crate::{Follower, TenantFollower};
use everthread_protocol::{Millis, Record, Seq, SessionId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A channel without followers stays subscribed this long: a client that reconnects comes back to it.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Who is woken.
#[derive(Clone)]
pub(crate) enum Sink {
    /// Wants records.
    Log(Arc<dyn Follower>),
    /// Wants changes, of the state or of who is present.
    Control(Arc<dyn Follower>),
    /// Wants sessions of a tenant.
    Tenant(Arc<dyn TenantFollower>),
    /// Wants new work.
    Pool(Arc<dyn Fn() + Send + Sync>),
}

impl Sink {
    /// Something may have been lost.
    pub(super) fn doubt(&self) {
        match self {
            Sink::Log(follower) | Sink::Control(follower) => follower.doubt(),
            Sink::Tenant(follower) => follower.doubt(),
            Sink::Pool(wake) => wake(),
        }
    }
}

/// Hands a message to those it is for.
pub(super) fn deliver(sinks: &[(u64, Sink)], payload: &[u8]) {
    let mut record: Option<Record> = None;
    for (_, sink) in sinks {
        match sink {
            Sink::Log(follower) => {
                // Read once, however many follow.
                if record.is_none() {
                    record = parse(payload);
                }
                match &record {
                    Some(record) => follower.record(record.clone()),
                    // What cannot be read here is read, and reported, from the log.
                    None => follower.doubt(),
                }
            }
            Sink::Control(follower) => follower.changed(),
            Sink::Tenant(follower) => match parse_change(payload) {
                Some((session, at)) => follower.changed(session, at),
                None => follower.doubt(),
            },
            Sink::Pool(wake) => wake(),
        }
    }
}

fn parse(payload: &[u8]) -> Option<Record> {
    let at = payload.iter().position(|b| *b == b' ')?;
    let to = std::str::from_utf8(&payload[..at]).ok()?.parse().ok()?;
    Record::from_stored(&payload[at + 1..], Seq(to)).ok()
}

fn parse_change(payload: &[u8]) -> Option<(SessionId, Millis)> {
    let (at, session) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
    Some((session.parse().ok()?, Millis(at.parse().ok()?)))
}

/// One channel.
#[derive(Default)]
struct Channel {
    /// Shared with deliveries under way; copied when it changes.
    sinks: Arc<Vec<(u64, Sink)>>,
    /// Joined after the confirmation: to be told that they are live.
    newcomers: Vec<u64>,
    /// The last command about it was to subscribe.
    asked: bool,
    /// The server has confirmed that.
    confirmed: bool,
    /// Commands to unsubscribe that are not confirmed yet.
    ending: u32,
    /// Since when it has no followers.
    idle_since: Option<Instant>,
}

/// What is to be done next.
#[derive(Default)]
pub(super) struct Batch {
    /// Channels to subscribe.
    pub(super) subscribe: Vec<String>,
    /// Channels to unsubscribe.
    pub(super) unsubscribe: Vec<String>,
    /// Followers of channels that are live already.
    pub(super) live: Vec<Sink>,
}

impl Batch {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.unsubscribe.is_empty() && self.live.is_empty()
    }
}

/// All channels of a node.
#[derive(Default)]
pub(super) struct Table {
    /// Of the connection that counts; messages of others are ignored.
    generation: u64,
    channels: HashMap<String, Channel>,
    /// Channels that may need a command.
    dirty: HashSet<String>,
    /// Channels without followers.
    idle: HashSet<String>,
    next: u64,
}

impl Table {
    /// Registers `sink`; returns what [`Table::remove`] takes.
    pub(super) fn add(&mut self, name: &str, sink: Sink) -> u64 {
        self.next += 1;
        let channel = self.channels.entry(name.to_owned()).or_default();
        if channel.confirmed {
            channel.newcomers.push(self.next);
        }
        Arc::make_mut(&mut channel.sinks).push((self.next, sink));
        channel.idle_since = None;
        self.idle.remove(name);
        self.dirty.insert(name.to_owned());
        self.next
    }

    /// Forgets a sink and hands it back: to be dropped when the table is free, since its end may end other guards.
    pub(super) fn remove(&mut self, name: &str, id: u64, now: Instant) -> Option<Sink> {
        let channel = self.channels.get_mut(name)?;
        let sinks = Arc::make_mut(&mut channel.sinks);
        let at = sinks.iter().position(|(other, _)| *other == id)?;
        let (_, gone) = sinks.remove(at);
        channel.newcomers.retain(|other| *other != id);
        if channel.sinks.is_empty() {
            channel.idle_since = Some(now);
            self.idle.insert(name.to_owned());
        }
        Some(gone)
    }

    /// A new connection: nothing is subscribed on it.
    pub(super) fn restart(&mut self, generation: u64) {
        self.generation = generation;
        self.channels.retain(|_, channel| !channel.sinks.is_empty());
        for channel in self.channels.values_mut() {
            (channel.asked, channel.confirmed, channel.ending) = (false, false, 0);
            // The confirmation tells everybody.
            channel.newcomers.clear();
        }
        self.idle.clear();
        self.dirty = self.channels.keys().cloned().collect();
    }

    /// Marks channels that have been without followers for long.
    pub(super) fn sweep(&mut self, now: Instant) {
        let old = |name: &&String| {
            let since = self.channels.get(*name).and_then(|channel| channel.idle_since);
            since.is_none_or(|since| now.duration_since(since) >= LINGER)
        };
        let names: Vec<String> = self.idle.iter().filter(old).cloned().collect();
        for name in names {
            self.idle.remove(&name);
            self.dirty.insert(name);
        }
    }

    /// The next commands, at most `max` of them.
    pub(super) fn next_batch(&mut self, max: usize) -> Batch {
        let mut batch = Batch::default();
        let names: Vec<String> = self.dirty.iter().take(max).cloned().collect();
        for name in names {
            self.dirty.remove(&name);
            let Some(channel) = self.channels.get_mut(&name) else { continue };
            let wanted = !channel.sinks.is_empty();
            if wanted && channel.confirmed {
                let new = std::mem::take(&mut channel.newcomers);
                let new = channel.sinks.iter().filter(|(id, _)| new.contains(id));
                batch.live.extend(new.map(|(_, sink)| sink.clone()));
            } else if wanted && !channel.asked {
                channel.asked = true;
                batch.subscribe.push(name);
            } else if !wanted && channel.asked && !self.idle.contains(&name) {
                (channel.asked, channel.confirmed) = (false, false);
                channel.ending += 1;
                batch.unsubscribe.push(name);
            } else if !wanted && !channel.asked && channel.ending == 0 {
                self.idle.remove(&name);
                self.channels.remove(&name);
            }
        }
        batch
    }

    /// The server confirmed a subscription: returns who is to be told.
    pub(super) fn subscribed(&mut self, generation: u64, name: &str) -> Arc<Vec<(u64, Sink)>> {
        match self.channels.get_mut(name) {
            Some(channel) if generation == self.generation && channel.asked && channel.ending == 0 => {
                channel.confirmed = true;
                channel.newcomers.clear();
                channel.sinks.clone()
            }
            _ => Arc::default(),
        }
    }

    /// A subscription ended. Returns whether nobody asked for that; then it is to be made again.
    pub(super) fn unsubscribed(&mut self, generation: u64, name: &str) -> bool {
        let Some(channel) = self.channels.get_mut(name) else { return false };
        if generation != self.generation {
            return false;
        }
        self.dirty.insert(name.to_owned());
        if channel.ending > 0 {
            channel.ending -= 1;
            return false;
        }
        (channel.asked, channel.confirmed) = (false, false);
        true
    }

    /// Who follows a channel.
    pub(super) fn sinks(&self, name: &str) -> Arc<Vec<(u64, Sink)>> {
        self.channels.get(name).map(|channel| channel.sinks.clone()).unwrap_or_default()
    }

    /// Everybody.
    pub(super) fn everybody(&self) -> Vec<Sink> {
        self.channels
            .values()
            .flat_map(|channel| channel.sinks.iter().map(|(_, sink)| sink.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn sink(count: &Arc<AtomicU32>) -> Sink {
        let count = count.clone();
        Sink::Pool(Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }))
    }

    fn tell(sinks: &[(u64, Sink)]) {
        sinks.iter().for_each(|(_, sink)| sink.doubt());
    }

    #[tokio::test]
    async fn a_channel_is_subscribed_once_and_left_only_after_a_while() {
        let (mut table, count, now) = (Table::default(), Arc::default(), Instant::now());
        table.restart(1);
        let first = table.add("c", sink(&count));
        let second = table.add("c", sink(&count));
        assert_eq!(table.next_batch(9).subscribe, ["c"]);
        assert!(table.next_batch(9).is_empty());
        tell(&table.subscribed(1, "c"));
        assert_eq!(count.load(Ordering::Relaxed), 2);
        table.remove("c", first, now);
        table.remove("c", second, now);
        table.sweep(now);
        assert!(table.next_batch(9).is_empty(), "it lingers");
        table.sweep(now + LINGER);
        assert_eq!(table.next_batch(9).unsubscribe, ["c"]);
        assert!(!table.unsubscribed(1, "c"));
        assert!(table.next_batch(9).is_empty());
        assert!(table.channels.is_empty() && table.idle.is_empty(), "nothing stays behind");
    }

    #[tokio::test]
    async fn who_joins_a_live_channel_is_told_so_and_who_rejoins_a_dying_one_waits_for_the_new_subscription()
    {
        let (mut table, count, now) = (Table::default(), Arc::default(), Instant::now());
        table.restart(1);
        let first = table.add("c", sink(&count));
        table.next_batch(9);
        table.subscribed(1, "c");
        table.add("c", sink(&count));
        let batch = table.next_batch(9);
        assert_eq!((batch.live.len(), batch.subscribe.len()), (1, 0));

        let mut table = Table::default();
        table.restart(1);
        let id = table.add("c", sink(&count));
        table.next_batch(9);
        table.subscribed(1, "c");
        table.remove("c", id, now);
        table.sweep(now + LINGER);
        assert_eq!(table.next_batch(9).unsubscribe, ["c"]);
        table.add("c", sink(&count));
        assert_eq!(table.next_batch(9).subscribe, ["c"]);
        assert!(!table.unsubscribed(1, "c"), "the answer to the old command");
        assert_eq!(table.subscribed(1, "c").len(), 1);
        assert_eq!(first, 1);
    }

    #[tokio::test]
    async fn a_subscription_that_ends_unasked_or_with_its_connection_is_made_again() {
        let (mut table, count) = (Table::default(), Arc::default());
        table.restart(1);
        table.add("c", sink(&count));
        table.next_batch(9);
        table.subscribed(1, "c");
        assert!(table.unsubscribed(1, "c"));
        assert_eq!(table.next_batch(9).subscribe, ["c"]);
        table.restart(2);
        assert!(table.subscribed(1, "c").is_empty(), "of a connection that is gone");
        assert_eq!(table.next_batch(9).subscribe, ["c"]);
        assert_eq!(table.subscribed(2, "c").len(), 1);
    }
}
