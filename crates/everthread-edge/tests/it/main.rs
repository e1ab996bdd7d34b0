//! Nodes in this process, over real sockets, raw frames in and out. Every test runs on the embedded engine and on Redis.

#[cfg(test)]
#[macro_use]
mod harness;
#[cfg(test)]
mod approval;
#[cfg(test)]
mod archive;
#[cfg(test)]
mod branch;
#[cfg(test)]
mod control;
#[cfg(test)]
mod deleting;
#[cfg(test)]
mod devices;
#[cfg(test)]
mod fairness;
#[cfg(test)]
mod feed;
#[cfg(test)]
mod folding;
#[cfg(test)]
mod fork;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod hostile_control;
#[cfg(test)]
mod interrupt;
#[cfg(test)]
mod lease;
#[cfg(test)]
mod levels;
#[cfg(test)]
mod newer;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod pace;
#[cfg(test)]
mod pause;
#[cfg(test)]
mod presence;
#[cfg(test)]
mod read;
#[cfg(test)]
mod rebuild;
#[cfg(test)]
mod receipts;
#[cfg(test)]
mod regressions;
#[cfg(test)]
mod resilience;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod run_token;
#[cfg(test)]
mod steer;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod stream;
#[cfg(test)]
mod takeover;
#[cfg(test)]
mod vectors;
#[cfg(test)]
mod worker;
