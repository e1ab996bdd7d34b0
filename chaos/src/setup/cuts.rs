//! Links between nodes and the servers of a store, and among these, that can be cut: packets are dropped, nobody is told.
//!
//! Each server listens on an address of its own and connects from it. Nodes all connect from 127.0.0.1: each runs as a group of
//! its own, by which the kernel marks its connections, so that the packets of both ways are known. All of it happens in a
//! network namespace that ends with this process.

use crate::process::run;

/// Every server is in here.
const SERVERS: &str = "127.0.1.0/24";
/// Where the rules are that drop something.
const CHAIN: &str = "cuts";
/// The group, and the mark, of the first node.
const FIRST_GROUP: u32 = 3_000;

/// The address of a server.
pub(super) fn host(server: usize) -> String {
    format!("127.0.1.{}", server + 1)
}

/// The group of a node.
pub(super) fn group(edge: usize) -> u32 {
    FIRST_GROUP + u32::try_from(edge).unwrap_or(0)
}

/// Cuts links and mends them.
pub(super) struct Cuts;

impl Cuts {
    /// Marks the connections of so many nodes.
    pub(super) fn prepare(edges: usize) -> anyhow::Result<Cuts> {
        for edge in 0..edges {
            let group = group(edge).to_string();
            let whose = ["-m", "owner", "--gid-owner", &group, "-j", "CONNMARK", "--set-mark", &group];
            let rule = ["-w", "-t", "mangle", "-A", "OUTPUT", "-d", SERVERS];
            run("iptables", &[&rule, whose.as_slice()].concat())?;
        }
        run("iptables", &["-w", "-N", CHAIN])?;
        run("iptables", &["-w", "-I", "INPUT", "-j", CHAIN])?;
        Ok(Cuts)
    }

    /// Cuts a server and a node off from everything else of the store, together: they still reach each other.
    pub(super) fn isolate(&self, server: usize, edge: usize) -> anyhow::Result<()> {
        let (host, mark) = (host(server), group(edge).to_string());
        let is_nodes = ["-m", "connmark", "--mark", &mark];
        for way in ["-s", "-d"] {
            self.rule(&[&[way, &host], is_nodes.as_slice(), &["-j", "RETURN"]].concat())?;
        }
        for way in ["-s", "-d"] {
            self.rule(&[way, &host, "-j", "DROP"])?;
            self.rule(&[&[way, SERVERS], is_nodes.as_slice(), &["-j", "DROP"]].concat())?;
        }
        Ok(())
    }

    /// Cuts a node off from the whole store: what it sends, what it is sent, or both.
    pub(super) fn cut_node(&self, edge: usize, how: u64) -> anyhow::Result<&'static str> {
        let mark = group(edge).to_string();
        let (ways, what): (&[&str], _) = match how % 4 {
            0 => (&["-d"], "what it sends"),
            1 => (&["-s"], "what it is sent"),
            _ => (&["-d", "-s"], "both ways"),
        };
        for way in ways {
            self.rule(&[way, SERVERS, "-m", "connmark", "--mark", &mark, "-j", "DROP"])?;
        }
        Ok(what)
    }

    /// Nothing is cut any more.
    pub(super) fn mend(&self) -> anyhow::Result<()> {
        run("iptables", &["-w", "-F", CHAIN])
    }

    fn rule(&self, rule: &[&str]) -> anyhow::Result<()> {
        run("iptables", &[&["-w", "-A", CHAIN], rule].concat())
    }
}

impl Drop for Cuts {
    fn drop(&mut self) {
        // Another store may come to be in this network after this one.
        let all: [&[&str]; 4] = [
            &["-w", "-D", "INPUT", "-j", CHAIN],
            &["-w", "-F", CHAIN],
            &["-w", "-X", CHAIN],
            &["-w", "-t", "mangle", "-F", "OUTPUT"],
        ];
        for rule in all {
            drop(run("iptables", rule));
        }
    }
}
