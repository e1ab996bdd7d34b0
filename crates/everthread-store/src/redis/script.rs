//! The Lua scripts, by name.
//!
//! They are loaded on every connect and called by hash. A server that does not know one (a failover, a `SCRIPT FLUSH`)
//! gets its text, which makes it known again.

use super::counts::Counts;
use ::redis::{Cmd, Pipeline, RedisWrite as _};
use prometheus::IntCounter;

/// How a call names its script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Short. The server must know it.
    Hash,
    /// Makes the server know it.
    Text,
}

/// One script.
#[derive(Debug)]
pub(super) struct Script {
    text: &'static str,
    hash: String,
    /// How often it was called.
    calls: IntCounter,
}

impl Script {
    fn new(counts: &Counts, name: &str, text: &'static str) -> Self {
        Self { text, hash: ::redis::Script::new(text).get_hash().to_owned(), calls: counts.of_script(name) }
    }

    /// A call.
    pub(super) fn call(&self, by: By, keys: &[&str], args: &[&[u8]]) -> Cmd {
        let bytes = keys.iter().map(|key| key.len()).chain(args.iter().map(|arg| arg.len())).sum();
        let mut call = self.begin(by, keys.len(), args.len(), bytes);
        keys.iter().for_each(|key| call.write_arg(key.as_bytes()));
        args.iter().for_each(|arg| call.write_arg(arg));
        call
    }

    /// The beginning of a call: so many keys and arguments, which have so many bytes together, are to be written behind it.
    pub(super) fn begin(&self, by: By, keys: usize, args: usize, bytes: usize) -> Cmd {
        self.calls.inc();
        let (verb, script) = match by {
            By::Hash => ("EVALSHA", self.hash.as_str()),
            By::Text => ("EVAL", self.text),
        };
        let mut call = Cmd::with_capacity(3 + keys + args, verb.len() + script.len() + 20 + bytes);
        call.write_arg(verb.as_bytes());
        call.write_arg(script.as_bytes());
        call.write_arg_fmt(keys);
        call
    }
}

/// A script that checks the fence.
#[cfg(feature = "planted-faults")]
fn fenced(text: &'static str) -> &'static str {
    crate::planted::without_fence(text)
}

/// A script that checks the fence.
#[cfg(not(feature = "planted-faults"))]
fn fenced(text: &'static str) -> &'static str {
    text
}

/// Every script of the engine.
#[derive(Debug)]
pub(super) struct Scripts {
    /// What is asked of Redis.
    pub(super) counts: Counts,
    /// The one write.
    pub(super) write: Script,
    /// What most writes are.
    pub(super) append: Script,
    /// A session as the core needs it.
    pub(super) load: Script,
    /// Begins a page of a session's log.
    pub(super) read: Script,
    /// Puts folded records in the place of raw ones.
    pub(super) fold: Script,
    /// Removes a session.
    pub(super) delete: Script,
    /// Drops folded records.
    pub(super) trim: Script,
    /// Puts records aside for a plant.
    pub(super) stage: Script,
    /// Makes a session out of what was staged.
    pub(super) plant: Script,
    /// Leaves a stub in the place of a session.
    pub(super) stub: Script,
    /// Renews the leases of a session's runs.
    pub(super) renew: Script,
    /// Notes who has got a control.
    pub(super) deliver: Script,
    /// Moves the durable cursor of a device.
    pub(super) ack: Script,
    /// Forgets a device.
    pub(super) forget_device: Script,
    /// Changes who is present.
    pub(super) hold: Script,
    /// Reads who is present.
    pub(super) present: Script,
    /// Takes items from a pool.
    pub(super) take: Script,
    /// Notes when a session is due.
    pub(super) arm: Script,
    /// Takes sessions that are due.
    pub(super) claim_due: Script,
    /// Ends a claim on a due session.
    pub(super) finish_due: Script,
    /// Declares a worker gone.
    pub(super) bury: Script,
    /// Takes a session off the list of its tenant.
    pub(super) unindex: Script,
    /// One page of a tenant's sessions.
    pub(super) sessions: Script,
    /// Sends a node's probe through the live feed.
    pub(super) probe: Script,
    /// Decides who builds the indexes anew.
    pub(super) rebuild: Script,
}

impl Scripts {
    /// All of them, hashed.
    pub(super) fn new() -> Self {
        let counts = Counts::new();
        let script = |name, text| Script::new(&counts, name, text);
        Self {
            write: script("write", fenced(include_str!("lua/write.lua"))),
            append: script("append", fenced(include_str!("lua/append.lua"))),
            load: script("load", include_str!("lua/load.lua")),
            read: script("read", include_str!("lua/read.lua")),
            fold: script("fold", include_str!("lua/fold.lua")),
            delete: script("delete", include_str!("lua/delete.lua")),
            trim: script(
                "trim",
                concat!(
                    "#!lua flags=allow-oom\n",
                    include_str!("lua/epoch.lua"),
                    include_str!("lua/trim.lua")
                ),
            ),
            stage: script("stage", include_str!("lua/stage.lua")),
            plant: script("plant", concat!(include_str!("lua/epoch.lua"), include_str!("lua/plant.lua"))),
            stub: script("stub", include_str!("lua/stub.lua")),
            renew: script("renew", include_str!("lua/renew.lua")),
            deliver: script("deliver", include_str!("lua/deliver.lua")),
            ack: script("ack", include_str!("lua/ack.lua")),
            forget_device: script("forget_device", include_str!("lua/forget_device.lua")),
            hold: script("hold", include_str!("lua/hold.lua")),
            present: script("present", include_str!("lua/present.lua")),
            take: script("take", include_str!("lua/take.lua")),
            arm: script("arm", include_str!("lua/arm.lua")),
            claim_due: script("claim_due", include_str!("lua/claim_due.lua")),
            finish_due: script("finish_due", include_str!("lua/finish_due.lua")),
            bury: script("bury", include_str!("lua/bury.lua")),
            unindex: script("unindex", include_str!("lua/unindex.lua")),
            sessions: script("sessions", include_str!("lua/sessions.lua")),
            probe: script("probe", include_str!("lua/probe.lua")),
            rebuild: script("rebuild", include_str!("lua/rebuild.lua")),
            counts,
        }
    }

    /// What makes a server know them.
    pub(super) fn load_all(&self) -> Pipeline {
        let all = [
            &self.write,
            &self.append,
            &self.load,
            &self.read,
            &self.fold,
            &self.delete,
            &self.trim,
            &self.stage,
            &self.plant,
            &self.stub,
            &self.renew,
            &self.deliver,
            &self.ack,
            &self.forget_device,
            &self.hold,
            &self.present,
            &self.take,
            &self.arm,
            &self.claim_due,
            &self.finish_due,
            &self.bury,
            &self.unindex,
            &self.sessions,
            &self.probe,
            &self.rebuild,
        ];
        let mut pipeline = ::redis::pipe();
        for script in all {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text).ignore();
        }
        pipeline
    }
}
