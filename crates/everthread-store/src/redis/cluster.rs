//! A cluster: which primary serves which slot, and what is kept connected to each.
//!
//! Owns the map of slots and the task that keeps it right. What a node says is believed as far as its claims are newer than
//! what is known (every claim has an epoch), so that a primary which slept through its own replacement cannot lead anybody
//! back; who is redirected by the owner itself is believed at once. A request that comes to the wrong place, or to a slot
//! that is on the move, was not executed, and is sent again for as long as [`MOVE_MAX`].

use super::address::Endpoint;
use super::dial::{CONNECT_MAX, Dialer};
use super::feed::{Homes, Lane, ProbeAt};
use super::keys::Keys;
use super::link::{Failure, Link};
use super::shard::{Crew, Shard, Way};
use super::slots::{Claim, SLOTS, claims, slot_of_key};
use ::redis::Cmd;
use everthread_protocol::NodeId;
use futures_util::{StreamExt as _, stream};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// Between two looks at the map when nobody complains.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// … and when everybody does.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How long a node may take to say what it knows.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Of the nodes that we were given, so many are asked at once: some may be gone, and take long to not answer.
const SEEDS_ASKED_MAX: usize = 16;
/// How long a request is sent again because its slot is on the move. A slot takes milliseconds, a large one a second or two.
const MOVE_MAX: Duration = Duration::from_secs(5);
/// First pause before a request is sent again …
const AGAIN_MIN: Duration = Duration::from_millis(5);
/// … and the longest.
const AGAIN_MAX: Duration = Duration::from_millis(100);
/// So many keys are tried to find one for the probe of a primary that has a single slot: it takes `SLOTS` on average.
const PROBES_TRIED_MAX: u32 = 16 * SLOTS as u32;

/// What may be sent to one server, and again to another.
pub(super) trait Request<T>: Sync {
    /// Sends it; `is_asking` is for what is being moved to this server.
    fn send(&self, link: &Link, is_asking: bool) -> impl Future<Output = Result<T, Failure>> + Send;
}

/// Who has a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    lane: Lane,
    /// Of the claim.
    epoch: u64,
}

/// What is known of the cluster at one moment.
#[derive(Clone)]
struct Map {
    /// By slot.
    owners: Vec<Option<Owner>>,
    shards: BTreeMap<Lane, Arc<Shard>>,
    probes: HashMap<Lane, ProbeAt>,
}

/// The cluster.
pub(super) struct Cluster {
    crew: Crew,
    /// To any of its nodes.
    dialer: Dialer,
    seeds: Vec<Endpoint>,
    /// Nodes are called by their names where they have some.
    by_name: bool,
    keys: Keys,
    node: NodeId,
    map: RwLock<Arc<Map>>,
    /// Counts the looks at the map.
    looks: watch::Sender<u64>,
    /// Somebody was sent elsewhere.
    moved: Arc<Notify>,
    /// Why the last look failed.
    trouble: Mutex<String>,
}

impl Cluster {
    /// A cluster that [`Cluster::keep`] will look at.
    pub(super) fn new(
        crew: Crew,
        dialer: Dialer,
        seeds: &[Endpoint],
        by_name: bool,
        keys: &Keys,
        node: &NodeId,
    ) -> Self {
        let empty =
            Map { owners: vec![None; usize::from(SLOTS)], shards: BTreeMap::new(), probes: HashMap::new() };
        Self {
            moved: crew.moved.clone(),
            crew,
            dialer,
            seeds: seeds.to_vec(),
            by_name,
            keys: keys.clone(),
            node: node.clone(),
            map: RwLock::new(Arc::new(empty)),
            looks: watch::Sender::new(0),
            trouble: Mutex::new("it was not asked yet".to_owned()),
        }
    }

    /// Keeps the map right, for ever.
    pub(super) async fn keep(&self) -> Infallible {
        let mut turn = 0;
        loop {
            turn += 1;
            match self.look(turn).await {
                Ok(claims) => self.apply(&claims),
                Err(failure) => {
                    let why = failure.why();
                    tracing::debug!(why, "no node tells the map of the cluster");
                    *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
                }
            }
            self.looks.send_modify(|looks| *looks += 1);
            sleep(LOOK_PAUSE).await;
            drop(timeout(LOOK_EVERY, self.moved.notified()).await);
        }
    }

    /// Waits for a first map.
    pub(super) async fn known(&self, patience: Duration) -> Result<(), Failure> {
        let mut looks = self.looks.subscribe();
        let known = looks.wait_for(|_| !self.map().shards.is_empty());
        if timeout(patience, known).await.is_ok() {
            return Ok(());
        }
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(Failure::Down(format!("no node of the cluster tells who serves which slot: {trouble}")))
    }

    /// All primaries.
    pub(super) fn shards(&self) -> Vec<Arc<Shard>> {
        self.map().shards.values().cloned().collect()
    }

    /// Who serves a slot.
    pub(super) fn shard_of(&self, slot: u16) -> Option<Arc<Shard>> {
        let map = self.map();
        let owner = map.owners.get(usize::from(slot)).copied().flatten()?;
        map.shards.get(&owner.lane).cloned()
    }

    fn map(&self) -> Arc<Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn shard_at(&self, endpoint: &Endpoint) -> Option<Arc<Shard>> {
        self.map().shards.values().find(|shard| shard.is_at(endpoint)).cloned()
    }

    /// Sends a request to whom the slot belongs, and again where it is sent elsewhere.
    pub(super) async fn redirected<T>(
        &self,
        slot: u16,
        way: Way,
        request: &impl Request<T>,
    ) -> Result<T, Failure> {
        let started = Instant::now();
        let mut pause = AGAIN_MIN;
        let (mut asked, mut may_ask_at_once) = (None, true);
        loop {
            let is_asking = asked.is_some();
            let shard = asked.take().or_else(|| self.shard_of(slot));
            let why = match &shard {
                None => {
                    self.look_again().await;
                    format!("nobody serves slot {slot}")
                }
                Some(shard) => match request.send(shard.link(slot, way), is_asking).await {
                    Err(Failure::Moved { slot, to }) => {
                        self.sent_on(slot, shard, &to).await;
                        format!("slot {slot} was said to be at {to}")
                    }
                    Err(Failure::Ask { slot, to }) => {
                        asked = shard.resolve(&to).and_then(|to| self.shard_at(&to));
                        match asked {
                            // At once, the first time: nothing is to be waited for.
                            Some(_) if std::mem::take(&mut may_ask_at_once) => continue,
                            Some(_) => {}
                            None => self.look_again().await,
                        }
                        format!("slot {slot} moves to {to}")
                    }
                    Err(Failure::Again(why)) => why,
                    // Surely not sent. If it failed because another serves the slot now, that one gets it.
                    Err(Failure::Down(why)) => {
                        self.moved.notify_one();
                        let now = self.shard_of(slot);
                        if now.is_none_or(|now| now.lane == shard.lane) {
                            return Err(Failure::Down(why));
                        }
                        why
                    }
                    other => return other,
                },
            };
            if started.elapsed() > MOVE_MAX {
                return Err(Failure::Refused(format!("for {MOVE_MAX:?} nobody would take it: {why}")));
            }
            sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// The owner itself says that another one has a slot.
    async fn sent_on(&self, slot: u16, by: &Shard, to: &str) {
        self.moved.notify_one();
        let Some(to) = by.resolve(to).and_then(|to| self.shard_at(&to)) else {
            return self.look_again().await;
        };
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let place = usize::from(slot);
        let Some(owner) = map.owners.get(place).copied().flatten() else { return };
        // Somebody may have learnt better meanwhile.
        if owner.lane != by.lane || to.lane == by.lane {
            return;
        }
        let after = Arc::make_mut(&mut map);
        after.owners[place] = Some(Owner { lane: to.lane, ..owner });
        self.tell(after);
    }

    /// Waits for another look at the map.
    async fn look_again(&self) {
        let mut looks = self.looks.subscribe();
        self.moved.notify_one();
        drop(timeout(ANSWER_MAX, looks.changed()).await);
    }

    /// What a node says, another one every time; if none is connected, the first that answers of those we were given.
    async fn look(&self, turn: usize) -> Result<Vec<Claim>, Failure> {
        let mut command = ::redis::cmd("CLUSTER");
        command.arg("NODES");
        let shards = self.shards();
        for n in 0..shards.len() {
            let shard = &shards[(n + turn) % shards.len()];
            let link = shard.link(0, Way::Commands);
            if !link.is_live() {
                continue;
            }
            if let Ok(Ok(told)) = timeout(ANSWER_MAX, link.command::<String>(&command)).await
                && let Some(claims) = claims(&told, &shard.endpoint, self.by_name)
            {
                return Ok(claims);
            }
        }
        let asked: Vec<_> = self.seeds.iter().map(|seed| self.ask_seed(seed, &command)).collect();
        let mut answers = stream::iter(asked).buffer_unordered(SEEDS_ASKED_MAX);
        let mut last = Failure::Down("there is nobody to ask".to_owned());
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(claims) => return Ok(claims),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// What one says whose name we were given.
    async fn ask_seed(&self, seed: &Endpoint, command: &Cmd) -> Result<Vec<Claim>, Failure> {
        let asking = async {
            let mut dialled = self.dialer.to(seed.clone()).dial(|_| {}).await?;
            dialled.request(async |connection| Ok(command.query_async::<String>(connection).await?)).await
        };
        match timeout(CONNECT_MAX, asking).await {
            Ok(Ok(told)) => claims(&told, seed, self.by_name)
                .ok_or_else(|| Failure::Broken(format!("{seed} gives a map that cannot be read"))),
            Ok(Err(failure)) => Err(failure.at(seed)),
            Err(_) => Err(Failure::Down(format!("{seed} does not answer"))),
        }
    }

    /// Takes over what is newer than what is known.
    fn apply(&self, claims: &[Claim]) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let before = map.clone();
        let after = Arc::make_mut(&mut map);
        let mut claimed = HashSet::new();
        for claim in claims {
            let known = after.shards.values().find(|shard| {
                shard.is_at(&claim.endpoint) || claim.also.as_ref().is_some_and(|also| shard.is_at(also))
            });
            let lane = match known {
                Some(shard) => shard.lane,
                // Gone, and with nothing to lose.
                None if claim.is_failed && claim.slots.is_empty() => continue,
                None => {
                    let dialer = self.dialer.to(claim.endpoint.clone());
                    let shard = self.crew.shard(dialer, claim.endpoint.clone(), claim.also.clone(), None);
                    tracing::info!(at = %claim.endpoint, "the cluster has a primary");
                    let lane = shard.lane;
                    after.shards.insert(lane, shard);
                    lane
                }
            };
            if !(claim.is_failed && claim.slots.is_empty()) {
                claimed.insert(lane);
            }
            for slot in claim.slots.iter().flat_map(|(from, to)| *from..=*to) {
                let owner = &mut after.owners[usize::from(slot)];
                if owner.is_none_or(|owner| claim.epoch > owner.epoch) {
                    *owner = Some(Owner { lane, epoch: claim.epoch });
                }
            }
        }
        let owners: HashSet<Lane> = after.owners.iter().flatten().map(|owner| owner.lane).collect();
        let gone = after.shards.extract_if(.., |lane, _| !owners.contains(lane) && !claimed.contains(lane));
        let gone: Vec<_> = gone.map(|(_, shard)| shard).collect();
        let is_same = gone.is_empty()
            && before.shards.len() == after.shards.len()
            && before
                .owners
                .iter()
                .zip(&after.owners)
                .all(|(before, after)| before.map(|owner| owner.lane) == after.map(|owner| owner.lane));
        if !is_same {
            self.tell(after);
        }
        for shard in gone {
            tracing::info!(at = %shard.endpoint, "a node of the cluster is no primary any more");
            self.crew.dismiss(&shard);
        }
    }

    /// Tells the feed where channels and probes are now. The map is locked meanwhile, so that a later one is told later.
    fn tell(&self, map: &mut Map) {
        self.place_probes(map);
        let lanes = map.owners.iter().map(|owner| owner.map(|owner| owner.lane)).collect();
        self.crew.feed.rehome(Homes::Many(lanes), map.probes.clone());
    }

    /// Finds a key for the probe of every primary that has slots: the one it has, where that still lies there.
    fn place_probes(&self, map: &mut Map) {
        let owner_of = |probe: &ProbeAt| {
            let owner = map.owners.get(usize::from(slot_of_key(&probe.key))).copied().flatten();
            owner.map(|owner| owner.lane)
        };
        let mut probes: HashMap<Lane, ProbeAt> = std::mem::take(&mut map.probes);
        probes.retain(|lane, probe| owner_of(probe) == Some(*lane));
        let mut without: HashSet<Lane> = map.owners.iter().flatten().map(|owner| owner.lane).collect();
        without.retain(|lane| !probes.contains_key(lane));
        for n in 0..PROBES_TRIED_MAX {
            if without.is_empty() {
                break;
            }
            let probe = self.keys.probe(&self.node, n);
            if let Some(lane) = owner_of(&probe)
                && without.remove(&lane)
            {
                probes.insert(lane, probe);
            }
        }
        map.probes = probes;
    }
}

impl Cluster {
    /// Who serves which of these slots now, as places in the list; those that nobody serves by themselves.
    pub(super) fn split(&self, slots: &[u16]) -> Vec<(Option<Arc<Shard>>, Vec<usize>)> {
        let map = self.map();
        let mut parts: BTreeMap<Option<Lane>, Vec<usize>> = BTreeMap::new();
        for (place, slot) in slots.iter().enumerate() {
            let owner = map.owners.get(usize::from(*slot)).copied().flatten();
            parts.entry(owner.map(|owner| owner.lane)).or_default().push(place);
        }
        let shard = |lane: Option<Lane>| lane.and_then(|lane| map.shards.get(&lane).cloned());
        parts.into_iter().map(|(lane, places)| (shard(lane), places)).collect()
    }
}
