//! Who follows which channel, by which lane its messages come, and what the lane's server has been told of it. No I/O.
//!
//! A lane is a primary's subscription connection; a channel belongs to the lane of the primary that has its slot.
//! Invariant: a channel with followers is either confirmed, or asked for since a moment, or dirty in its lane; so it is
//! subscribed sooner or later, and its followers hear of it ([`Sink::doubt`]) when it is.

use super::super::slots::slot_of_key;
use crate::{Follower, TenantFollower};
use everthread_protocol::{Millis, Record, Seq, SessionId};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A channel without followers stays subscribed this long: a client that reconnects comes back to it.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// A subscription that is not confirmed for so long is asked for again: its refusal may have got lost between answers to
/// others, since the driver counts what a server says unasked as an answer.
const ASKED_MAX: Duration = Duration::from_secs(3);

/// A primary's subscription connection, whichever one it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lane(pub(crate) u32);

/// Where channels belong.
#[derive(Clone)]
pub(crate) enum Homes {
    /// There is one lane.
    One(Lane),
    /// By slot; `None` where nobody serves it.
    Many(Arc<[Option<Lane>]>),
}

impl Homes {
    fn of(&self, slot: u16) -> Option<Lane> {
        match self {
            Homes::One(lane) => Some(*lane),
            Homes::Many(lanes) => lanes.get(usize::from(slot)).copied().flatten(),
        }
    }
}

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
    slot: u16,
    /// `None` while nobody serves its slot.
    lane: Option<Lane>,
    /// Shared with deliveries under way; copied when it changes.
    sinks: Arc<Vec<(u64, Sink)>>,
    /// Joined after the confirmation: to be told that they are live.
    newcomers: Vec<u64>,
    /// The last command about it was to subscribe, then.
    asked: Option<Instant>,
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
pub(super) struct Table {
    homes: Homes,
    /// Of each lane the connection that counts; messages of others are ignored.
    generations: HashMap<Lane, u64>,
    channels: HashMap<String, Channel>,
    /// Channels that may need a command, by lane. Those without one wait for it.
    dirty: HashMap<Option<Lane>, HashSet<String>>,
    /// Channels that were asked for, by lane, longest ago first.
    asked: HashMap<Lane, VecDeque<(Instant, String)>>,
    /// Channels without followers.
    idle: HashSet<String>,
    next: u64,
}

impl Table {
    /// A table without channels.
    pub(super) fn new(homes: Homes) -> Self {
        Self {
            homes,
            generations: HashMap::new(),
            channels: HashMap::new(),
            dirty: HashMap::new(),
            asked: HashMap::new(),
            idle: HashSet::new(),
            next: 0,
        }
    }

    /// Registers `sink`; returns what [`Table::remove`] takes, and the lane that has something to do.
    pub(super) fn add(&mut self, name: &str, sink: Sink) -> (u64, Option<Lane>) {
        self.next += 1;
        let channel = self.channels.entry(name.to_owned()).or_insert_with(|| {
            let slot = slot_of_key(name);
            Channel { slot, lane: self.homes.of(slot), ..Channel::default() }
        });
        if channel.confirmed {
            channel.newcomers.push(self.next);
        }
        Arc::make_mut(&mut channel.sinks).push((self.next, sink));
        channel.idle_since = None;
        self.idle.remove(name);
        let lane = channel.lane;
        self.mark(name, lane);
        (self.next, lane)
    }

    fn mark(&mut self, name: &str, lane: Option<Lane>) {
        self.dirty.entry(lane).or_default().insert(name.to_owned());
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
    pub(super) fn restart(&mut self, lane: Lane, generation: u64) {
        self.generations.insert(lane, generation);
        let is_here = |channel: &Channel| channel.lane == Some(lane);
        self.channels.retain(|_, channel| !is_here(channel) || !channel.sinks.is_empty());
        self.idle.retain(|name| self.channels.contains_key(name));
        let mut dirty = HashSet::new();
        for (name, channel) in self.channels.iter_mut().filter(|(_, channel)| is_here(channel)) {
            channel.forget();
            dirty.insert(name.clone());
        }
        self.dirty.insert(Some(lane), dirty);
        self.asked.remove(&lane);
    }

    /// Slots have other owners: their channels are to be subscribed there. Returns the lanes that have something to do.
    pub(super) fn rehome(&mut self, homes: Homes) -> HashSet<Lane> {
        self.homes = homes;
        let (mut moved, mut idle) = (Vec::new(), Vec::new());
        for (name, channel) in &mut self.channels {
            let lane = self.homes.of(channel.slot);
            if lane == channel.lane {
                continue;
            }
            if let Some(dirty) = self.dirty.get_mut(&channel.lane) {
                dirty.remove(name);
            }
            // The server that had the slot ends its subscription by itself.
            channel.lane = lane;
            channel.forget();
            if channel.sinks.is_empty() { idle.push(name.clone()) } else { moved.push((name.clone(), lane)) }
        }
        for name in idle {
            self.idle.remove(&name);
            self.channels.remove(&name);
        }
        for (name, lane) in &moved {
            self.mark(name, *lane);
        }
        moved.into_iter().filter_map(|(_, lane)| lane).collect()
    }

    /// There is no such lane any more.
    pub(super) fn close(&mut self, lane: Lane) {
        self.generations.remove(&lane);
        self.dirty.remove(&Some(lane));
        self.asked.remove(&lane);
    }

    /// Marks channels of the lane that have been without followers, or without an answer, for long.
    pub(super) fn sweep(&mut self, lane: Lane, now: Instant) {
        let old = |name: &&String| {
            self.channels.get(*name).is_none_or(|channel| {
                let is_old = channel.idle_since.is_none_or(|since| now.duration_since(since) >= LINGER);
                channel.lane == Some(lane) && is_old
            })
        };
        let names: Vec<String> = self.idle.iter().filter(old).cloned().collect();
        for name in names {
            self.idle.remove(&name);
            self.mark(&name, Some(lane));
        }
    }

    /// Marks channels of the lane whose subscription was neither confirmed nor refused.
    pub(super) fn sweep_asked(&mut self, lane: Lane, now: Instant) {
        let Some(asked) = self.asked.get_mut(&lane) else { return };
        let mut late = Vec::new();
        while let Some((at, name)) = asked.pop_front_if(|(at, _)| now.duration_since(*at) >= ASKED_MAX) {
            if let Some(channel) = self.channels.get_mut(&name)
                && channel.lane == Some(lane)
                && channel.asked == Some(at)
                && !channel.confirmed
            {
                channel.asked = None;
                late.push(name);
            }
        }
        for name in late {
            self.mark(&name, Some(lane));
        }
    }

    /// The next commands, at most `max` of them.
    pub(super) fn next_batch(&mut self, lane: Lane, max: usize, now: Instant) -> Batch {
        let mut batch = Batch::default();
        let Some(dirty) = self.dirty.get_mut(&Some(lane)) else { return batch };
        let names: Vec<String> = dirty.iter().take(max).cloned().collect();
        for name in names {
            dirty.remove(&name);
            let Some(channel) = self.channels.get_mut(&name) else { continue };
            let wanted = !channel.sinks.is_empty();
            let asked = channel.asked.is_some();
            if wanted && channel.confirmed {
                let new = std::mem::take(&mut channel.newcomers);
                let new = channel.sinks.iter().filter(|(id, _)| new.contains(id));
                batch.live.extend(new.map(|(_, sink)| sink.clone()));
            } else if wanted && !asked {
                channel.asked = Some(now);
                self.asked.entry(lane).or_default().push_back((now, name.clone()));
                batch.subscribe.push(name);
            } else if !wanted && asked && !self.idle.contains(&name) {
                (channel.asked, channel.confirmed) = (None, false);
                channel.ending += 1;
                batch.unsubscribe.push(name);
            } else if !wanted && !asked && channel.ending == 0 {
                self.idle.remove(&name);
                self.channels.remove(&name);
            }
        }
        batch
    }

    /// The server confirmed a subscription: returns who is to be told.
    pub(super) fn subscribed(&mut self, lane: Lane, generation: u64, name: &str) -> Arc<Vec<(u64, Sink)>> {
        let is_current = self.generations.get(&lane) == Some(&generation);
        match self.channels.get_mut(name) {
            Some(channel)
                if is_current
                    && channel.lane == Some(lane)
                    && channel.asked.is_some()
                    && channel.ending == 0 =>
            {
                channel.confirmed = true;
                channel.newcomers.clear();
                channel.sinks.clone()
            }
            _ => Arc::default(),
        }
    }

    /// A subscription ended. Returns whether nobody asked for that; then it is to be made again.
    pub(super) fn unsubscribed(&mut self, lane: Lane, generation: u64, name: &str) -> bool {
        let is_current = self.generations.get(&lane) == Some(&generation);
        let Some(channel) = self.channels.get_mut(name) else { return false };
        if !is_current || channel.lane != Some(lane) {
            return false;
        }
        let is_asked_for = channel.ending > 0;
        if is_asked_for {
            channel.ending -= 1;
        } else {
            (channel.asked, channel.confirmed) = (None, false);
        }
        self.mark(name, Some(lane));
        !is_asked_for
    }

    /// The server refused to subscribe channels of a slot, for now: they are to be asked for again.
    pub(super) fn refused(&mut self, lane: Lane, slot: u16) {
        let mut names = Vec::new();
        for (name, channel) in &mut self.channels {
            if channel.slot == slot
                && channel.lane == Some(lane)
                && channel.asked.is_some()
                && !channel.confirmed
            {
                channel.asked = None;
                names.push(name.clone());
            }
        }
        for name in names {
            self.mark(&name, Some(lane));
        }
    }

    /// Who follows a channel.
    pub(super) fn sinks(&self, name: &str) -> Arc<Vec<(u64, Sink)>> {
        self.channels.get(name).map(|channel| channel.sinks.clone()).unwrap_or_default()
    }

    /// Everybody on a lane.
    pub(super) fn everybody(&self, lane: Lane) -> Vec<Sink> {
        self.channels
            .values()
            .filter(|channel| channel.lane == Some(lane))
            .flat_map(|channel| channel.sinks.iter().map(|(_, sink)| sink.clone()))
            .collect()
    }
}

impl Channel {
    /// Nothing is known of it at the server.
    fn forget(&mut self) {
        (self.asked, self.confirmed, self.ending) = (None, false, 0);
        // The confirmation tells everybody.
        self.newcomers.clear();
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

    const LANE: Lane = Lane(1);
    const OTHER: Lane = Lane(2);

    fn table() -> Table {
        Table::new(Homes::One(LANE))
    }

    fn tell(sinks: &[(u64, Sink)]) {
        sinks.iter().for_each(|(_, sink)| sink.doubt());
    }

    #[tokio::test]
    async fn a_channel_is_subscribed_once_and_left_only_after_a_while() {
        let (mut table, count, now) = (table(), Arc::default(), Instant::now());
        table.restart(LANE, 1);
        let (first, _) = table.add("c", sink(&count));
        let (second, _) = table.add("c", sink(&count));
        assert_eq!(table.next_batch(LANE, 9, Instant::now()).subscribe, ["c"]);
        assert!(table.next_batch(LANE, 9, Instant::now()).is_empty());
        tell(&table.subscribed(LANE, 1, "c"));
        assert_eq!(count.load(Ordering::Relaxed), 2);
        table.remove("c", first, now);
        table.remove("c", second, now);
        table.sweep(LANE, now);
        assert!(table.next_batch(LANE, 9, Instant::now()).is_empty(), "it lingers");
        table.sweep(LANE, now + LINGER);
        assert_eq!(table.next_batch(LANE, 9, Instant::now()).unsubscribe, ["c"]);
        assert!(!table.unsubscribed(LANE, 1, "c"));
        assert!(table.next_batch(LANE, 9, Instant::now()).is_empty());
        assert!(table.channels.is_empty() && table.idle.is_empty(), "nothing stays behind");
    }

    #[tokio::test]
    async fn who_joins_a_live_channel_is_told_so_and_who_rejoins_a_dying_one_waits_for_the_new_subscription()
    {
        let (mut table, count, now) = (table(), Arc::default(), Instant::now());
        table.restart(LANE, 1);
        let (first, _) = table.add("c", sink(&count));
        table.next_batch(LANE, 9, Instant::now());
        table.subscribed(LANE, 1, "c");
        table.add("c", sink(&count));
        let batch = table.next_batch(LANE, 9, Instant::now());
        assert_eq!((batch.live.len(), batch.subscribe.len()), (1, 0));

        let mut table = Table::new(Homes::One(LANE));
        table.restart(LANE, 1);
        let (id, _) = table.add("c", sink(&count));
        table.next_batch(LANE, 9, Instant::now());
        table.subscribed(LANE, 1, "c");
        table.remove("c", id, now);
        table.sweep(LANE, now + LINGER);
        assert_eq!(table.next_batch(LANE, 9, Instant::now()).unsubscribe, ["c"]);
        table.add("c", sink(&count));
        assert_eq!(table.next_batch(LANE, 9, Instant::now()).subscribe, ["c"]);
        assert!(!table.unsubscribed(LANE, 1, "c"), "the answer to the old command");
        assert_eq!(table.subscribed(LANE, 1, "c").len(), 1);
        assert_eq!(first, 1);
    }

    #[tokio::test]
    async fn a_subscription_that_ends_unasked_or_with_its_connection_is_made_again() {
        let (mut table, count) = (table(), Arc::default());
        table.restart(LANE, 1);
        table.add("c", sink(&count));
        table.next_batch(LANE, 9, Instant::now());
        table.subscribed(LANE, 1, "c");
        assert!(table.unsubscribed(LANE, 1, "c"));
        assert_eq!(table.next_batch(LANE, 9, Instant::now()).subscribe, ["c"]);
        table.restart(LANE, 2);
        assert!(table.subscribed(LANE, 1, "c").is_empty(), "of a connection that is gone");
        assert_eq!(table.next_batch(LANE, 9, Instant::now()).subscribe, ["c"]);
        assert_eq!(table.subscribed(LANE, 2, "c").len(), 1);
    }

    fn split(at: u16) -> Homes {
        Homes::Many(
            (0..super::super::super::slots::SLOTS)
                .map(|slot| Some(if slot < at { LANE } else { OTHER }))
                .collect(),
        )
    }

    #[tokio::test]
    async fn a_channel_whose_slot_moves_is_subscribed_at_its_new_owner_and_not_missed_at_the_old_one() {
        let (count, now) = (Arc::default(), Instant::now());
        let slot = slot_of_key("c");
        let mut table = Table::new(split(slot + 1));
        table.restart(LANE, 1);
        table.restart(OTHER, 1);
        let (id, lane) = table.add("c", sink(&count));
        assert_eq!(lane, Some(LANE));
        assert_eq!(table.next_batch(LANE, 9, now).subscribe, ["c"]);
        table.subscribed(LANE, 1, "c");
        assert_eq!(table.rehome(split(slot)), [OTHER].into());
        assert!(!table.unsubscribed(LANE, 1, "c"), "the old owner says good-bye");
        assert!(table.next_batch(LANE, 9, now).is_empty());
        assert_eq!(table.next_batch(OTHER, 9, now).subscribe, ["c"]);
        assert!(table.subscribed(LANE, 1, "c").is_empty(), "an old answer");
        tell(&table.subscribed(OTHER, 1, "c"));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        table.remove("c", id, now);
        assert_eq!(table.rehome(split(slot + 1)), [].into());
        assert!(table.channels.is_empty() && table.idle.is_empty(), "nobody follows it");
    }

    #[tokio::test]
    async fn what_is_refused_or_not_answered_is_asked_for_again() {
        let (mut table, count, now) = (table(), Arc::default(), Instant::now());
        table.restart(LANE, 1);
        table.add("c", sink(&count));
        assert_eq!(table.next_batch(LANE, 9, now).subscribe, ["c"]);
        table.refused(LANE, slot_of_key("c"));
        assert_eq!(table.next_batch(LANE, 9, now).subscribe, ["c"]);
        table.sweep_asked(LANE, now);
        assert!(table.next_batch(LANE, 9, now).is_empty());
        let later = now + ASKED_MAX;
        table.sweep_asked(LANE, later);
        assert_eq!(table.next_batch(LANE, 9, later).subscribe, ["c"]);
        table.subscribed(LANE, 1, "c");
        table.sweep_asked(LANE, later + ASKED_MAX);
        assert!(table.next_batch(LANE, 9, later).is_empty());
    }

    #[tokio::test]
    async fn a_channel_that_nobody_serves_waits_for_somebody() {
        let (mut table, count) = (Table::new(Homes::Many(Arc::new([]))), Arc::default());
        table.restart(LANE, 1);
        assert_eq!(table.add("c", sink(&count)).1, None);
        assert!(table.next_batch(LANE, 9, Instant::now()).is_empty());
        assert_eq!(table.rehome(Homes::One(LANE)), [LANE].into());
        assert_eq!(table.next_batch(LANE, 9, Instant::now()).subscribe, ["c"]);
    }
}
