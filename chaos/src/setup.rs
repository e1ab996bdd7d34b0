//! The store as a deployment has it, and what can be done to it.
//!
//! [`Standalone`] is one Redis that keeps what it has answered. [`Replicated`] is Redis with replicas that take over, Sentinel or
//! Cluster, where replication is asynchronous: what a primary has answered may be lost with it.

mod cuts;
mod replicated;
mod standalone;

pub use replicated::{Replicated, Shape};
pub use standalone::Standalone;

use crate::check::Promise;
use crate::schedule::{Kind, Planned};
use async_trait::async_trait;

/// A store that faults can be done to.
#[async_trait(?Send)]
pub trait StoreSetup: Send {
    /// For the report.
    fn name(&self) -> &'static str;

    /// What it promises for what it has acknowledged.
    fn promise(&self) -> Promise;

    /// Where a node finds it.
    fn url(&self, edge: usize) -> String;

    /// The group that a node must run as, for its packets to be told from those of others.
    fn group(&self, _edge: usize) -> Option<u32> {
        None
    }

    /// What can be broken of it.
    fn faults(&self) -> Vec<Kind>;

    /// Waits until something can be broken; an error if it should not be.
    async fn prepare(&mut self, _planned: &Planned) -> anyhow::Result<()> {
        Ok(())
    }

    /// Breaks something; what was hit.
    async fn begin(&mut self, planned: &Planned) -> anyhow::Result<String>;

    /// Mends it.
    async fn end(&mut self, planned: &Planned) -> anyhow::Result<()>;

    /// Waits until it is as it was at the beginning.
    async fn mend(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Which of `len` a target is.
pub fn index(target: u64, len: usize) -> usize {
    usize::try_from(target).unwrap_or(0) % len.max(1)
}
