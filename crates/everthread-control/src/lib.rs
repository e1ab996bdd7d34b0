//! Carries out what the core decides: leases, dispatch of runs to workers, controls and deadlines.
//!
//! - [`Desk`] takes a request, lets the core decide on the session's current state, and makes the decision durable.
//! - [`Dispatcher`] brings waiting runs to the workers that are connected to this node.
//! - [`Keeper`] sees to it that every promise has its outcome by its deadline, whichever node made it.
//! - [`Rebuilder`] builds pools, deadlines and lists anew after a failover.
//! - [`Upkeep`] is what the keeper sees to in a due session besides.
//! - [`Acks`] says how sure answers are.
//! - [`TaskGroup`] is the one way to spawn.
//!
//! Life of a control: a client's `cancel` is decided and logged by the desk of the node it reached; the store wakes the node
//! that hosts the run's worker, which tells the worker; the worker ends the run, or the keeper of any node does when the
//! grace is over.
//!
//! This crate holds nothing that another node cannot rebuild from the store.

mod counts;
mod desk;
mod dispatch;
mod keeper;
mod lister;
mod rebuild;
mod sure;
mod task_group;
mod upkeep;

pub use counts::Counts;
pub use desk::{Decided, Desk, Failure, Numbered, read_state, run_producer, system_author};
pub use dispatch::{Assignment, Dispatcher, Seat};
pub use everthread_protocol::millis;
pub use keeper::Keeper;
pub use rebuild::Rebuilder;
pub use sure::Acks;
pub use task_group::TaskGroup;
pub use upkeep::{AtHead, NoUpkeep, Upkeep, Upkeeps};

use std::time::Duration;

/// Times that all parts of a deployment must agree on.
#[derive(Debug, Clone)]
pub struct Leases {
    /// How long a run stays with a worker that shows no sign of life.
    pub lease: Duration,
    /// How often a node renews the liveness of the workers it hosts, and pings them.
    pub heartbeat: Duration,
    /// How long a worker whose socket closed may take to come back.
    pub return_grace: Duration,
    /// How long a worker has to end a run that is cancelled.
    pub cancel_grace: Duration,
}

impl Default for Leases {
    /// A dead worker is visible within 1.5 s of its socket closing, and within 4 s + one look of the keeper otherwise.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(4),
            heartbeat: Duration::from_secs(1),
            return_grace: Duration::from_millis(1500),
            cancel_grace: Duration::from_secs(5),
        }
    }
}
