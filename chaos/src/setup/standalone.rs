//! One Redis that keeps what it has answered.

use super::{StoreSetup, index};
use crate::check::Promise;
use crate::process::run;
use crate::schedule::{Kind, Planned};
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use everthread_testkit::{RedisOptions, RedisServer};

/// One Redis that keeps what it has answered. Each node reaches it at an address of its own, so that it can be cut off alone.
pub struct Standalone {
    server: RedisServer,
    port: u16,
    edges: usize,
    /// Packets can be dropped: this process has a network of its own.
    has_network: bool,
}

impl Standalone {
    /// Starts it for so many nodes.
    pub async fn start(edges: usize, has_network: bool) -> anyhow::Result<Standalone> {
        let mut args = vec!["--bind".to_owned(), "127.0.0.1".to_owned()];
        args.extend((0..edges).map(address));
        args.extend(["--protected-mode".to_owned(), "no".to_owned()]);
        let options = RedisOptions { append_only: true, tcp: true, args, ..RedisOptions::default() };
        let server = RedisServer::start_with(options).await?;
        let address = server.tcp_address();
        let (_, port) = address.rsplit_once(':').context("an address without a port")?;
        let port = port.parse()?;
        Ok(Standalone { server, port, edges, has_network })
    }

    /// Adds (`-I`) or removes (`-D`) what drops a node's packets.
    fn packets(&self, verb: &str, planned: &Planned) -> anyhow::Result<String> {
        let edge = index(planned.target, self.edges);
        let (address, port) = (address(edge), self.port.to_string());
        let to = ["-d", &address, "-p", "tcp", "--dport", &port, "-j", "DROP"];
        let from = ["-s", &address, "-p", "tcp", "--sport", &port, "-j", "DROP"];
        let (rules, what) = match planned.how % 4 {
            0 => (vec![to], "what it sends"),
            1 => (vec![from], "what it is sent"),
            _ => (vec![to, from], "both ways"),
        };
        for rule in rules {
            run("iptables", &[&["-w", verb, "INPUT"], rule.as_slice()].concat())?;
        }
        Ok(format!("edge {edge}, {what}"))
    }
}

fn address(edge: usize) -> String {
    format!("127.0.2.{}", edge + 1)
}

#[async_trait(?Send)]
impl StoreSetup for Standalone {
    fn name(&self) -> &'static str {
        "standalone"
    }

    fn promise(&self) -> Promise {
        Promise::Kept
    }

    fn url(&self, edge: usize) -> String {
        format!("redis://{}:{}", address(edge), self.port)
    }

    fn faults(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::RestartStore, Kind::FreezeStore, Kind::CutSubscriptions];
        if self.has_network {
            kinds.push(Kind::PartitionEdge);
        }
        kinds
    }

    async fn begin(&mut self, planned: &Planned) -> anyhow::Result<String> {
        match planned.kind {
            Kind::RestartStore => self.server.kill9(),
            Kind::FreezeStore => self.server.stop()?,
            Kind::CutSubscriptions => {
                let answer = self.server.command("CLIENT KILL TYPE pubsub").await?;
                return Ok(format!("{} connections", answer.trim().trim_start_matches(':')));
            }
            Kind::PartitionEdge => return self.packets("-I", planned),
            other => bail!("{other} is not for a store that stands alone"),
        }
        Ok("the store".to_owned())
    }

    async fn end(&mut self, planned: &Planned) -> anyhow::Result<()> {
        match planned.kind {
            Kind::RestartStore => self.server.restart().await,
            Kind::FreezeStore => self.server.cont(),
            Kind::PartitionEdge => self.packets("-D", planned).map(drop),
            _ => Ok(()),
        }
    }
}
