//! A Redis Cluster: primaries with a replica each, real processes on ports of 127.0.0.1.
//!
//! Owns all of them and their directories. A node that is silent for two seconds is replaced, so that a failover takes three
//! to five; nothing else differs from a set-up in production.

use crate::redis_server::{RedisOptions, RedisServer, free_port};
use crate::wait_for;
use anyhow::{Context as _, ensure};
use std::time::Duration;

/// Slots of any cluster.
const SLOTS: u16 = 16_384;
/// How long all may take until they are one.
const START_MAX: Duration = Duration::from_secs(30);
/// How long the nodes may take to replace a primary, or to learn who has a slot.
const FAILOVER_MAX: Duration = Duration::from_secs(30);
/// The nodes give up a failover that was asked for after five seconds: on a busy machine it is asked for again …
const FAILOVER_ONE_MAX: Duration = Duration::from_secs(6);
/// … so often.
const FAILOVERS_MAX: u32 = 5;
/// Keys that move in one step of a migration.
const MIGRATE_BATCH: usize = 100;

/// A running cluster.
#[derive(Debug)]
pub struct RedisCluster {
    /// First the primaries, in the order of their slots, then their replicas in the same order.
    nodes: Vec<RedisServer>,
    options: RedisOptions,
}

impl RedisCluster {
    /// Three primaries with equal shares of the slots, and a replica of each.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(RedisOptions::default()).await
    }

    /// The same, to be shared by tests and dropped by none: it ends with this process.
    pub async fn start_shared() -> anyhow::Result<Self> {
        // Nobody kills one of it, and on a busy machine a node may be slow.
        let args = ["--cluster-node-timeout", "15000"].map(str::to_owned).to_vec();
        Self::start_with(RedisOptions { leashed: true, args, ..RedisOptions::default() }).await
    }

    /// The same, with other options for the servers.
    pub async fn start_with(options: RedisOptions) -> anyhow::Result<Self> {
        Self::start_at(|_| None, options).await
    }

    /// The same; each node has an address of its own.
    pub async fn start_at(
        host: impl Fn(usize) -> Option<String>,
        options: RedisOptions,
    ) -> anyhow::Result<Self> {
        let mut cluster = Self { nodes: Vec::new(), options };
        for n in 0..6 {
            cluster.options.host = host(n);
            let node = cluster.node().await?;
            cluster.nodes.push(node);
        }
        for (n, node) in cluster.nodes.iter().enumerate() {
            // Otherwise all begin with the same number, and need time to sort it out.
            ok(node, &format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1)).await?;
        }
        for (n, (from, to)) in [(0, 5460), (5461, 10_922), (10_923, SLOTS - 1)].into_iter().enumerate() {
            ok(&cluster.nodes[n], &format!("CLUSTER ADDSLOTSRANGE {from} {to}")).await?;
        }
        for n in 1..6 {
            cluster.meet(n).await?;
        }
        cluster.all_know(6).await?;
        for n in 3..6 {
            let primary = cluster.id(n - 3).await?;
            ok(&cluster.nodes[n], &format!("CLUSTER REPLICATE {primary}")).await?;
        }
        cluster.is_whole().await?;
        for n in 0..3 {
            wait_for("a replica that follows", START_MAX, async || {
                let told = cluster.nodes[n].command("INFO replication").await?;
                Ok(told.contains("state=online").then_some(()))
            })
            .await?;
        }
        Ok(cluster)
    }

    /// The address, by all nodes of the beginning.
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().take(6).map(RedisServer::tcp_address).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    /// A node: 0 to 2 were the primaries at the start, 3 to 5 their replicas in the same order; then those that were added.
    pub fn server(&mut self, n: usize) -> &mut RedisServer {
        &mut self.nodes[n]
    }

    /// Waits until the replicas of a node have what it has now.
    pub async fn replicated(&self, n: usize) -> anyhow::Result<()> {
        self.nodes[n].replicated().await
    }

    /// Sends a command to a node and returns the first bytes of the answer.
    pub async fn command(&self, n: usize, line: &str) -> anyhow::Result<String> {
        self.nodes[n].command(line).await
    }

    /// Adds a primary without slots and says which it is.
    pub async fn add_primary(&mut self) -> anyhow::Result<usize> {
        let node = self.node().await?;
        self.nodes.push(node);
        let n = self.nodes.len() - 1;
        self.meet(n).await?;
        let count = self.nodes.len();
        self.all_know(count).await?;
        self.is_whole().await?;
        Ok(n)
    }

    /// The slot of a key.
    pub async fn slot(&self, key: &str) -> anyhow::Result<u16> {
        let told = self.nodes[0].command(&format!("CLUSTER KEYSLOT {key}")).await?;
        told.trim().trim_start_matches(':').parse().context("a slot that is no number")
    }

    /// Which node serves a slot now.
    pub async fn owner(&self, slot: u16) -> anyhow::Result<usize> {
        wait_for("an owner of a slot", FAILOVER_MAX, async || {
            for (n, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.runs()) {
                let Ok(told) = node.command("CLUSTER NODES").await else { continue };
                let mine = told.lines().find(|line| line.contains("myself,master")).unwrap_or_default();
                let has = |range: &str| {
                    let (from, to) = range.split_once('-').unwrap_or((range, range));
                    matches!((from.parse::<u16>(), to.parse::<u16>()), (Ok(from), Ok(to)) if from <= slot && slot <= to)
                };
                if mine.split(' ').skip(8).any(has) {
                    return Ok(Some(n));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Begins to move a slot: what is not there any more, its new owner is asked for.
    pub async fn begin_moving(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        let (from_id, to_id) = (self.id(from).await?, self.id(to).await?);
        ok(&self.nodes[to], &format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}")).await?;
        ok(&self.nodes[from], &format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}")).await
    }

    /// Moves the keys of a slot that is being moved.
    pub async fn move_keys(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        loop {
            let told =
                self.nodes[from].command(&format!("CLUSTER GETKEYSINSLOT {slot} {MIGRATE_BATCH}")).await?;
            let keys: Vec<&str> = told.lines().skip(1).filter(|line| !line.starts_with('$')).collect();
            if keys.is_empty() {
                return Ok(());
            }
            let (host, port) = (self.nodes[to].host(), self.nodes[to].port());
            ok(&self.nodes[from], &format!("MIGRATE {host} {port} \"\" 0 5000 KEYS {}", keys.join(" ")))
                .await?;
        }
    }

    /// Ends the move of a slot.
    pub async fn end_moving(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        let to_id = self.id(to).await?;
        // The new owner first: the old one may not be left alone with the slot.
        ok(&self.nodes[to], &format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await?;
        ok(&self.nodes[from], &format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await
    }

    /// Moves a slot with all that is in it.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        self.begin_moving(slot, from, to).await?;
        self.move_keys(slot, from, to).await?;
        // What was written to the old owner meanwhile.
        self.move_keys(slot, from, to).await?;
        self.end_moving(slot, from, to).await
    }

    /// Makes a replica the primary, without anybody being killed.
    pub async fn fail_over_to(&self, node: usize) -> anyhow::Result<()> {
        let mut last = Ok(());
        for _ in 0..FAILOVERS_MAX {
            ok(&self.nodes[node], "CLUSTER FAILOVER").await?;
            last = wait_for("a failover that was asked for", FAILOVER_ONE_MAX, async || {
                Ok(self.nodes[node].command("ROLE").await?.contains("master").then_some(()))
            })
            .await;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Waits until `node` is a primary, as a replica becomes when its primary is gone.
    pub async fn promoted(&self, node: usize) -> anyhow::Result<()> {
        wait_for("a replica that is promoted", FAILOVER_MAX, async || {
            Ok(self.nodes[node].command("ROLE").await?.contains("master").then_some(()))
        })
        .await?;
        Ok(())
    }

    /// Which of the six nodes of the beginning are primaries, by their own word.
    pub async fn primaries(&self) -> anyhow::Result<Vec<usize>> {
        let mut primaries = Vec::new();
        for (n, node) in self.nodes.iter().enumerate().take(6) {
            if node.runs() && node.command("ROLE").await?.contains("master") {
                primaries.push(n);
            }
        }
        Ok(primaries)
    }

    /// Waits until every node runs, all slots are served, and every primary of the beginning's six has its replica; says who is one.
    pub async fn has_replicas(&self) -> anyhow::Result<Vec<usize>> {
        self.is_whole().await?;
        wait_for("a replica of every primary", FAILOVER_MAX, async || {
            let primaries = self.primaries().await?;
            for n in &primaries {
                if !self.nodes[*n].command("INFO replication").await?.contains("state=online") {
                    return Ok(None);
                }
            }
            Ok((primaries.len() == 3).then_some(primaries))
        })
        .await
    }

    /// Waits until every node that runs says that all slots are served.
    pub async fn is_whole(&self) -> anyhow::Result<()> {
        for node in self.nodes.iter().filter(|node| node.runs()) {
            wait_for("a cluster that is whole", START_MAX, async || {
                Ok(node.command("CLUSTER INFO").await?.contains("cluster_state:ok").then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Tells a node of the first one.
    async fn meet(&self, n: usize) -> anyhow::Result<()> {
        let (host, port, bus) = (self.nodes[0].host(), self.nodes[0].port(), bus_port(&self.nodes[0]).await?);
        ok(&self.nodes[n], &format!("CLUSTER MEET {host} {port} {bus}")).await
    }

    async fn all_know(&self, count: usize) -> anyhow::Result<()> {
        for node in &self.nodes {
            wait_for("nodes that know of each other", START_MAX, async || {
                let told = node.command("CLUSTER NODES").await?;
                let known =
                    told.lines().filter(|line| line.contains("connected") && !line.contains("handshake"));
                Ok((known.count() == count && !told.contains("disconnected")).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    async fn id(&self, n: usize) -> anyhow::Result<String> {
        let told = self.nodes[n].command("CLUSTER MYID").await?;
        told.lines().nth(1).map(str::to_owned).context("a node without an id")
    }

    async fn node(&self) -> anyhow::Result<RedisServer> {
        // The bus has a port of its own, which may be taken, too, before the server has it.
        match self.node_at(free_port().await?).await {
            Ok(node) => Ok(node),
            Err(_) => self.node_at(free_port().await?).await,
        }
    }

    async fn node_at(&self, bus: u16) -> anyhow::Result<RedisServer> {
        // Not the port plus 10 000, which may be beyond the last.
        let bus = bus.to_string();
        let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
        let quick = ["--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"];
        let advised = ["--cluster-require-full-coverage", "no"];
        let args = own.iter().chain(&quick).chain(&advised).map(|arg| (*arg).to_owned());
        let args = args.chain(self.options.args.iter().cloned()).collect();
        RedisServer::start_with(RedisOptions { tcp: true, args, ..self.options.clone() }).await
    }
}

async fn bus_port(node: &RedisServer) -> anyhow::Result<u16> {
    let told = node.command("CONFIG GET cluster-port").await?;
    told.lines().last().and_then(|port| port.parse().ok()).context("a node without a bus port")
}

/// A command that must be accepted.
async fn ok(node: &RedisServer, line: &str) -> anyhow::Result<()> {
    let answer = node.command(line).await?;
    ensure!(answer.starts_with('+'), "{line}: {answer}");
    Ok(())
}
