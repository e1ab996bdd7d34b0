//! Redis with replicas that take over: a primary with two of them and three sentinels, or a cluster of three primaries with one each.
//!
//! Invariant: never two faults at once that take a primary away, and none before the last one's servers are all back: whoever
//! loses all copies of something has nothing left that could be checked.

use super::cuts::{Cuts, group, host};
use super::{StoreSetup, index};
use crate::check::Promise;
use crate::schedule::{Kind, Planned};
use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use everthread_testkit::{RedisCluster, RedisOptions, RedisSentinels, RedisServer};

/// Which set-up it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One primary, two replicas, three sentinels.
    Sentinel,
    /// Three primaries with a replica each.
    Cluster,
}

enum Servers {
    Sentinel(RedisSentinels),
    Cluster(RedisCluster),
}

/// Such a store.
pub struct Replicated {
    servers: Servers,
    edges: usize,
    /// In a network of this process' own.
    cuts: Option<Cuts>,
    /// The primaries before the last fault.
    primaries: Vec<usize>,
    /// Number of the fault that is going on, and the server it has hit, if it has hit one.
    broken: Option<(usize, Option<usize>)>,
}

impl Replicated {
    /// Starts it for so many nodes.
    pub async fn start(shape: Shape, edges: usize, has_network: bool) -> anyhow::Result<Replicated> {
        let own = |server| has_network.then(|| host(server));
        let args = ["--protected-mode", "no"].map(str::to_owned).to_vec();
        let servers = match shape {
            Shape::Sentinel => Servers::Sentinel(RedisSentinels::start_at(own, args).await?),
            Shape::Cluster => {
                let options = RedisOptions { args, ..RedisOptions::default() };
                Servers::Cluster(RedisCluster::start_at(own, options).await?)
            }
        };
        let cuts = has_network.then(|| Cuts::prepare(edges)).transpose()?;
        Ok(Replicated { servers, edges, cuts, primaries: Vec::new(), broken: None })
    }

    fn server(&mut self, n: usize) -> &mut RedisServer {
        match &mut self.servers {
            Servers::Sentinel(servers) => servers.server(n),
            Servers::Cluster(servers) => servers.server(n),
        }
    }

    fn count(&self) -> usize {
        match &self.servers {
            Servers::Sentinel(_) => 3,
            Servers::Cluster(_) => 6,
        }
    }

    /// Waits until every server is there and every primary has its replicas; the primaries.
    async fn whole(&self) -> anyhow::Result<Vec<usize>> {
        match &self.servers {
            Servers::Sentinel(servers) => Ok(vec![servers.is_whole().await?]),
            Servers::Cluster(servers) => servers.has_replicas().await,
        }
    }

    /// Waits until another has taken the place of a primary.
    async fn taken_over(&self, before: usize) -> anyhow::Result<usize> {
        match &self.servers {
            Servers::Sentinel(servers) => servers.failover_from(before).await,
            Servers::Cluster(servers) => {
                let replica = pair(before);
                servers.promoted(replica).await?;
                Ok(replica)
            }
        }
    }

    /// Moves the slot of a session that is being written.
    async fn move_slot(&self, planned: &Planned) -> anyhow::Result<String> {
        let Servers::Cluster(servers) = &self.servers else { bail!("there are no slots") };
        // As every session of a run is named.
        let session = format!("s{}", planned.target % 12);
        let slot = servers.slot(&format!("{{default/{session}}}")).await?;
        let from = servers.owner(slot).await?;
        let others: Vec<usize> = servers.primaries().await?.into_iter().filter(|n| *n != from).collect();
        let to = *others.get(index(planned.how, others.len())).context("nobody else has slots")?;
        servers.move_slot(slot, from, to).await?;
        Ok(format!("slot {slot} of {session}, from server {from} to {to}"))
    }

    /// Cuts every subscription at every server.
    async fn cut_subscriptions(&mut self) -> anyhow::Result<String> {
        let mut count = 0;
        for n in 0..self.count() {
            // One that is killed, frozen or starting has none.
            let Ok(told) = self.server(n).command("CLIENT KILL TYPE pubsub").await else { continue };
            count += told.trim().trim_start_matches(':').parse::<u64>().unwrap_or(0);
        }
        Ok(format!("{count} connections"))
    }
}

/// The server that a node of a cluster shares its slots with.
fn pair(server: usize) -> usize {
    (server + 3) % 6
}

#[async_trait(?Send)]
impl StoreSetup for Replicated {
    fn name(&self) -> &'static str {
        match self.servers {
            Servers::Sentinel(_) => "sentinel",
            Servers::Cluster(_) => "cluster",
        }
    }

    fn promise(&self) -> Promise {
        Promise::MayLoseTail
    }

    fn url(&self, _edge: usize) -> String {
        match &self.servers {
            Servers::Sentinel(servers) => servers.url(),
            Servers::Cluster(servers) => servers.url(),
        }
    }

    fn group(&self, edge: usize) -> Option<u32> {
        self.cuts.as_ref().map(|_| group(edge))
    }

    fn faults(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::KillPrimary, Kind::FreezePrimary, Kind::Failover, Kind::CutSubscriptions];
        if self.cuts.is_some() {
            kinds.extend([Kind::PartitionPrimary, Kind::PartitionEdge]);
        }
        if let Servers::Cluster(_) = self.servers {
            kinds.push(Kind::MoveSlots);
        }
        kinds
    }

    async fn prepare(&mut self, planned: &Planned) -> anyhow::Result<()> {
        if !self.faults().contains(&planned.kind) || planned.kind == Kind::CutSubscriptions {
            return Ok(());
        }
        if let Some((number, _)) = self.broken {
            bail!("fault {number} is not over");
        }
        self.primaries = self.whole().await?;
        Ok(())
    }

    async fn begin(&mut self, planned: &Planned) -> anyhow::Result<String> {
        if planned.kind == Kind::CutSubscriptions {
            return self.cut_subscriptions().await;
        }
        let primary =
            *self.primaries.get(index(planned.target, self.primaries.len())).context("no primary")?;
        let edge = index(planned.how, self.edges);
        let mut what = format!("server {primary}");
        match planned.kind {
            Kind::KillPrimary => self.server(primary).kill9(),
            Kind::FreezePrimary => self.server(primary).stop()?,
            Kind::PartitionPrimary => {
                self.cuts.as_ref().context("no network of its own")?.isolate(primary, edge)?;
                what = format!("server {primary} with edge {edge}");
            }
            Kind::PartitionEdge => {
                let cuts = self.cuts.as_ref().context("no network of its own")?;
                let edge = index(planned.target, self.edges);
                let how = cuts.cut_node(edge, planned.how)?;
                self.broken = Some((planned.number, None));
                return Ok(format!("edge {edge}, {how}"));
            }
            Kind::Failover => {
                match &self.servers {
                    Servers::Sentinel(servers) => servers.fail_over().await?,
                    Servers::Cluster(servers) => servers.fail_over_to(pair(primary)).await?,
                }
                let next = self.taken_over(primary).await?;
                return Ok(format!("from server {primary} to {next}"));
            }
            Kind::MoveSlots => return self.move_slot(planned).await,
            other => bail!("{other} is not for a store with replicas"),
        }
        self.broken = Some((planned.number, Some(primary)));
        Ok(what)
    }

    async fn end(&mut self, planned: &Planned) -> anyhow::Result<()> {
        let Some((_, hit)) = self.broken.take_if(|(number, _)| *number == planned.number) else {
            return Ok(());
        };
        // It comes back when somebody else has its place: before that nothing is lost.
        let taken = match hit {
            Some(primary) => self.taken_over(primary).await.map(drop),
            None => Ok(()),
        };
        match (planned.kind, hit) {
            (Kind::KillPrimary, Some(primary)) => match &mut self.servers {
                Servers::Sentinel(servers) => servers.rejoin(primary).await?,
                Servers::Cluster(servers) => servers.server(primary).restart().await?,
            },
            (Kind::FreezePrimary, Some(primary)) => self.server(primary).cont()?,
            _ => self.cuts.as_ref().context("no network of its own")?.mend()?,
        }
        taken
    }

    async fn mend(&mut self) -> anyhow::Result<()> {
        ensure!(self.broken.is_none(), "a fault of the store is not over");
        self.whole().await.map(drop)
    }
}
