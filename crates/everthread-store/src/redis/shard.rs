//! What is kept connected to one primary: a few connections for commands, one for large replies, one that asks whether
//! replicas have what was written, one that asks the same of its disk, one for the live feed.
//!
//! Their number is constant, however much is followed or asked.

use super::address::Endpoint;
use super::appends::Appends;
use super::confirm::Confirmer;
use super::dial::Dialer;
use super::feed::{Feed, Lane, ProbeAt, Supplies};
use super::link::Link;
use super::script::Scripts;
use everthread_protocol::Level;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// By which kind of connection a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// One of those for commands: always the same for a slot, so that the writes of a session keep their order.
    Commands,
    /// The one for replies and requests that are large: nothing that is urgent waits behind them.
    Ranges,
}

/// One primary.
pub(super) struct Shard {
    /// For people, and to find it again.
    pub(super) endpoint: Endpoint,
    /// The same, by its other name.
    also: Option<Endpoint>,
    /// Its subscription connection.
    pub(super) lane: Lane,
    /// For commands, at least one.
    links: Vec<Arc<Link>>,
    /// What is to be appended, for each of them.
    appends: Vec<Appends>,
    ranges: Arc<Link>,
    /// Asks whether the replicas have what was written …
    pub(super) confirmer: Arc<Confirmer>,
    /// … and this one whether its disk has it, too: that may take a second, for which nobody else is to wait.
    pub(super) syncer: Arc<Confirmer>,
    stop: CancellationToken,
}

impl Shard {
    /// The connection for what lies in a slot.
    pub(super) fn link(&self, slot: u16, way: Way) -> &Link {
        match way {
            Way::Commands => &self.links[usize::from(slot) % self.links.len()],
            Way::Ranges => &self.ranges,
        }
    }

    /// Where appends to what lies in a slot wait for its connection.
    pub(super) fn appends(&self, slot: u16) -> &Appends {
        &self.appends[usize::from(slot) % self.appends.len()]
    }

    /// Whether this is the server there.
    pub(super) fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.endpoint == *endpoint || self.also.as_ref() == Some(endpoint)
    }

    /// Who says whether a write here is as sure as that.
    pub(super) fn confirmer_of(&self, level: Level) -> &Confirmer {
        match level {
            Level::Accepted | Level::Replicated => &self.confirmer,
            Level::Fsynced => &self.syncer,
        }
    }

    /// An address that this server gave: without a host it means its own.
    pub(super) fn resolve(&self, text: &str) -> Option<Endpoint> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match (host.trim_matches(['[', ']']), &self.endpoint) {
            ("" | "?", Endpoint::Tcp(own, _)) => own,
            (host, _) => host,
        };
        Some(Endpoint::Tcp(host.to_owned(), port.parse().ok()?))
    }
}

/// Keeps primaries connected.
pub(super) struct Crew {
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) scripts: Arc<Scripts>,
    /// At least one.
    pub(super) command_connections: usize,
    pub(super) feed: Arc<Feed>,
    /// A request without an answer for so long has failed.
    pub(super) response_timeout: Duration,
    /// Somebody was sent elsewhere.
    pub(super) moved: Arc<Notify>,
    /// Number of the next primary's lane.
    pub(super) lanes: AtomicU32,
}

impl Crew {
    /// The next lane.
    pub(super) fn lane(&self) -> Lane {
        Lane(self.lanes.fetch_add(1, Ordering::Relaxed))
    }

    /// Connects a primary and keeps it so.
    pub(super) fn shard(
        &self,
        dialer: Dialer,
        endpoint: Endpoint,
        also: Option<Endpoint>,
        probe_at: Option<ProbeAt>,
    ) -> Arc<Shard> {
        let stop = self.stop.child_token();
        let keep_link = |link: &Arc<Link>, name: String| {
            let (kept, stop) = (link.clone(), stop.clone());
            self.tasks.spawn(async move { stop.run_until_cancelled(kept.keep(&name)).await });
        };
        let keep = |name: String| {
            let link = Arc::new(Link::new(dialer.clone(), self.scripts.clone()));
            keep_link(&link, name);
            link
        };
        let links: Vec<_> =
            (1..=self.command_connections.max(1)).map(|n| keep(format!("{endpoint} commands {n}"))).collect();
        let ranges = keep(format!("{endpoint} ranges"));
        let gather = |link: &Arc<Link>| {
            let (appends, calls) = Appends::new();
            let (link, scripts, stop) = (link.clone(), self.scripts.clone(), stop.clone());
            self.tasks.spawn(async move { stop.run_until_cancelled(calls.keep(&link, &scripts)).await });
            appends
        };
        let appends = links.iter().map(gather).collect();
        let confirm = |level: Level| {
            let (dialer, scripts) = (dialer.clone(), self.scripts.clone());
            let (confirmer, asks) = Confirmer::new(dialer, scripts, self.response_timeout, level);
            let confirmer = Arc::new(confirmer);
            keep_link(confirmer.link(), format!("{endpoint} {level}"));
            let (kept, stopped) = (confirmer.clone(), stop.clone());
            self.tasks.spawn(async move { stopped.run_until_cancelled(kept.keep(asks)).await });
            confirmer
        };
        let (confirmer, syncer) = (confirm(Level::Replicated), confirm(Level::Fsynced));
        let lane = self.lane();
        let serving = self.feed.open(lane, probe_at);
        let supplies = Supplies {
            dialer,
            links: links.clone(),
            scripts: self.scripts.clone(),
            moved: self.moved.clone(),
        };
        let (feed, stopped) = (self.feed.clone(), stop.clone());
        self.tasks.spawn(async move { stopped.run_until_cancelled(feed.keep(&serving, &supplies)).await });
        Arc::new(Shard { endpoint, also, lane, links, appends, ranges, confirmer, syncer, stop })
    }

    /// Lets a primary go: what waits for an answer of it fails at once.
    pub(super) fn dismiss(&self, shard: &Shard) {
        shard.stop.cancel();
        self.feed.close(shard.lane);
    }
}
