//! Every key and channel of the deployment, built in one place.
//!
//! Invariant: all keys of one script share a hash tag, so that they live in one slot of a cluster. Ids carry neither
//! braces nor colons, so no id can leave its place in a key.

use super::feed::ProbeAt;
use crate::Error;
use everthread_protocol::id::is_valid;
use everthread_protocol::{NodeId, PoolKey, SessionKey, TenantId, WorkerId};
use std::fmt::{self, Display};

/// Indexes are cut into partitions by this number at the end of their tag; there is one so far.
const PARTITION: u32 = 0;

/// What shares a slot: the hash tag of its keys.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tag<'a> {
    /// A session and all that is its own.
    Session(&'a SessionKey),
    /// A pool.
    Pool(&'a PoolKey),
    /// The deadlines of the deployment.
    Deadlines,
    /// The sessions of a tenant.
    Sessions(&'a TenantId),
    /// A worker.
    Worker(&'a TenantId, &'a WorkerId),
    /// A node.
    Node(&'a NodeId),
    /// Who builds the indexes anew.
    Rebuild,
}

impl Display for Tag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tag::Session(session) => session.fmt(f),
            Tag::Pool(pool) => write!(f, "agent:{}:{}:{PARTITION}", pool.tenant, pool.agent),
            Tag::Deadlines => write!(f, "deadlines:{PARTITION}"),
            Tag::Sessions(tenant) => write!(f, "sessions:{tenant}:{PARTITION}"),
            Tag::Worker(tenant, worker) => write!(f, "worker:{tenant}:{worker}"),
            Tag::Node(node) => write!(f, "node:{node}"),
            Tag::Rebuild => write!(f, "rebuild:{PARTITION}"),
        }
    }
}

/// Builds keys under the deployment's prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys of the deployment `prefix`.
    pub(super) fn new(prefix: &str) -> Result<Self, Error> {
        if !is_valid(prefix) {
            return Err(Error::Unavailable(
                "the prefix of the keys is 1 to 128 characters of A-Z a-z 0-9 _ . -".into(),
            ));
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// What is `what` of a session, to be written where it is needed.
    pub(super) fn name(&self, session: &SessionKey, what: &'static str) -> impl Display {
        fmt::from_fn(move |f| write!(f, "{}:{{{}}}:{what}", self.prefix, Tag::Session(session)))
    }

    /// Hash: epoch, head, version, state, fences and leases of a session.
    pub(super) fn meta(&self, session: &SessionKey) -> String {
        self.name(session, "meta").to_string()
    }

    /// What the metas of all sessions look like.
    pub(super) fn any_meta(&self) -> String {
        format!("{}:{{*}}:meta", self.prefix)
    }

    /// The session that has this meta, if it is one.
    pub(super) fn session_of_meta(&self, key: &str) -> Option<SessionKey> {
        key.strip_prefix(&self.prefix)?.strip_prefix(":{")?.strip_suffix("}:meta")?.parse().ok()
    }

    /// Hash that expires: which node builds the indexes anew, and when that was done last.
    pub(super) fn rebuild(&self) -> String {
        format!("{}:{{{}}}", self.prefix, Tag::Rebuild)
    }

    /// Stream: the recent records of a session, raw. Also the channel on which each is published.
    pub(super) fn log(&self, session: &SessionKey) -> String {
        self.name(session, "log").to_string()
    }

    /// Stream: older records of a session, folded.
    pub(super) fn folded(&self, session: &SessionKey) -> String {
        self.name(session, "folded").to_string()
    }

    /// Stream that expires: records that are put aside until the session is planted.
    pub(super) fn staged(&self, session: &SessionKey, name: &str) -> String {
        format!("{}:{{{}}}:staged:{name}", self.prefix, Tag::Session(session))
    }

    /// String: first seq of a session that is kept, and what stands for what was before it.
    pub(super) fn base(&self, session: &SessionKey) -> String {
        self.name(session, "base").to_string()
    }

    /// String that expires: the last epoch and fence of a session that was deleted.
    pub(super) fn gone(&self, session: &SessionKey) -> String {
        self.name(session, "gone").to_string()
    }

    /// String that expires at once: something that is written so that it comes after all that was.
    pub(super) fn mark(&self, session: &SessionKey) -> String {
        self.name(session, "mark").to_string()
    }

    /// Hash: the last batch of each producer of a session.
    pub(super) fn producers(&self, session: &SessionKey) -> String {
        self.name(session, "producers").to_string()
    }

    /// Hash that expires: which worker has got which control of a session.
    pub(super) fn delivered(&self, session: &SessionKey) -> String {
        self.name(session, "delivered").to_string()
    }

    /// Hash: durable cursors of the devices of a session.
    pub(super) fn devices(&self, session: &SessionKey) -> String {
        self.name(session, "devices").to_string()
    }

    /// Hash: who is present in a session, and which node holds it. Also the channel of its changes.
    pub(super) fn presence(&self, session: &SessionKey) -> String {
        self.name(session, "presence").to_string()
    }

    /// Channel: the state of a session changed, or a worker has got a control.
    pub(super) fn control(&self, session: &SessionKey) -> String {
        self.name(session, "control").to_string()
    }

    /// Stream: runs that wait for a worker.
    pub(super) fn pool(&self, pool: &PoolKey) -> String {
        format!("{}:{{{}}}:work", self.prefix, Tag::Pool(pool))
    }

    /// Channel: something was added to the pool.
    pub(super) fn pool_wake(&self, pool: &PoolKey) -> String {
        format!("{}:{{{}}}:wake", self.prefix, Tag::Pool(pool))
    }

    /// Sorted set: sessions by when they are due.
    pub(super) fn deadlines(&self) -> String {
        format!("{}:{{{}}}", self.prefix, Tag::Deadlines)
    }

    /// Sorted set: sessions of a tenant by when they were last active.
    pub(super) fn sessions(&self, tenant: &TenantId) -> String {
        format!("{}:{{{}}}", self.prefix, Tag::Sessions(tenant))
    }

    /// Channel: a session of a tenant was indexed, or taken off the index.
    pub(super) fn changed(&self, tenant: &TenantId) -> String {
        format!("{}:{{{}}}:changed", self.prefix, Tag::Sessions(tenant))
    }

    /// String that expires: who holds a worker.
    pub(super) fn worker(&self, tenant: &TenantId, worker: &WorkerId) -> String {
        format!("{}:{{{}}}", self.prefix, Tag::Worker(tenant, worker))
    }

    /// String that expires: the node lives.
    pub(super) fn node(&self, node: &NodeId) -> String {
        format!("{}:{{{}}}", self.prefix, Tag::Node(node))
    }

    /// Channel: probes that a node sends to itself, in a slot of the node's own, the `n`th of many. There is nothing behind
    /// the key: it fixes the slot.
    pub(super) fn probe(&self, node: &NodeId, n: u32) -> ProbeAt {
        let key = match n {
            0 => self.node(node),
            n => format!("{}:{{{}:{n}}}", self.prefix, Tag::Node(node)),
        };
        ProbeAt { channel: format!("{key}:probe"), key }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::{slot_of_key, slot_of_tag};
    use super::*;

    #[test]
    fn keys_are_exactly_these_because_two_releases_share_one_redis() {
        let keys = Keys::new("et").unwrap();
        let session: SessionKey = "acme/s1".parse().unwrap();
        let pool = PoolKey { tenant: "acme".parse().unwrap(), agent: "guide".parse().unwrap() };
        let (node, worker) = ("n1".parse().unwrap(), "w1".parse().unwrap());
        assert_eq!(keys.meta(&session), "et:{acme/s1}:meta");
        assert_eq!(keys.any_meta(), "et:{*}:meta");
        assert_eq!(keys.session_of_meta("et:{acme/s1}:meta"), Some(session.clone()));
        assert_eq!(keys.session_of_meta("et:{acme/s1}:log"), None);
        assert_eq!(keys.session_of_meta("eta:{acme/s1}:meta"), None);
        assert_eq!(keys.rebuild(), "et:{rebuild:0}");
        assert_eq!(keys.log(&session), "et:{acme/s1}:log");
        assert_eq!(keys.folded(&session), "et:{acme/s1}:folded");
        assert_eq!(keys.staged(&session, "x"), "et:{acme/s1}:staged:x");
        assert_eq!(keys.base(&session), "et:{acme/s1}:base");
        assert_eq!(keys.gone(&session), "et:{acme/s1}:gone");
        assert_eq!(keys.mark(&session), "et:{acme/s1}:mark");
        assert_eq!(keys.producers(&session), "et:{acme/s1}:producers");
        assert_eq!(keys.delivered(&session), "et:{acme/s1}:delivered");
        assert_eq!(keys.devices(&session), "et:{acme/s1}:devices");
        assert_eq!(keys.presence(&session), "et:{acme/s1}:presence");
        assert_eq!(keys.control(&session), "et:{acme/s1}:control");
        assert_eq!(keys.pool(&pool), "et:{agent:acme:guide:0}:work");
        assert_eq!(keys.pool_wake(&pool), "et:{agent:acme:guide:0}:wake");
        assert_eq!(keys.deadlines(), "et:{deadlines:0}");
        assert_eq!(keys.sessions(&pool.tenant), "et:{sessions:acme:0}");
        assert_eq!(keys.changed(&pool.tenant), "et:{sessions:acme:0}:changed");
        assert_eq!(keys.worker(&pool.tenant, &worker), "et:{worker:acme:w1}");
        assert_eq!(keys.node(&node), "et:{node:n1}");
        assert_eq!(keys.probe(&node, 0).key, keys.node(&node));
        assert_eq!(keys.probe(&node, 0).channel, "et:{node:n1}:probe");
        assert_eq!(keys.probe(&node, 7).channel, "et:{node:n1:7}:probe");
    }

    #[test]
    fn a_request_goes_to_the_slot_of_its_keys() {
        let keys = Keys::new("et").unwrap();
        let session: SessionKey = "acme/s1".parse().unwrap();
        let pool = PoolKey { tenant: "acme".parse().unwrap(), agent: "guide".parse().unwrap() };
        let (node, worker) = ("n1".parse().unwrap(), "w1".parse().unwrap());
        for (tag, key) in [
            (Tag::Session(&session), keys.meta(&session)),
            (Tag::Session(&session), keys.staged(&session, "x")),
            (Tag::Pool(&pool), keys.pool(&pool)),
            (Tag::Pool(&pool), keys.pool_wake(&pool)),
            (Tag::Deadlines, keys.deadlines()),
            (Tag::Rebuild, keys.rebuild()),
            (Tag::Sessions(&pool.tenant), keys.sessions(&pool.tenant)),
            (Tag::Sessions(&pool.tenant), keys.changed(&pool.tenant)),
            (Tag::Worker(&pool.tenant, &worker), keys.worker(&pool.tenant, &worker)),
            (Tag::Node(&node), keys.node(&node)),
        ] {
            assert_eq!(slot_of_tag(tag), slot_of_key(&key), "{key}");
        }
    }

    #[test]
    fn a_prefix_that_could_break_the_hash_tag_is_refused() {
        for bad in ["", "a:b", "a{b", "a b"] {
            assert!(Keys::new(bad).is_err(), "{bad:?}");
        }
    }
}
