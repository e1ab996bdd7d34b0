//! Nodes in this process, over real sockets, raw frames in and out. Every test runs on the embedded engine and on Redis.

#[macro_use]
mod harness;

mod control;
mod hostile;
mod outage;
mod resilience;
mod stream;
mod vectors;
mod worker;
