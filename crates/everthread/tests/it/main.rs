//! The binary as its users run it: real processes, real signals.

#[cfg(test)]
mod ageing;
#[cfg(test)]
mod approval;
#[cfg(test)]
mod archive;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod control;
#[cfg(test)]
mod counted;
#[cfg(test)]
mod crew;
#[cfg(test)]
mod death;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod follower;
#[cfg(test)]
mod history;
#[cfg(test)]
mod joining;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod lost;
#[cfg(test)]
mod many;
#[cfg(test)]
mod mesh;
#[cfg(test)]
mod node;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod rolling;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod shard;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod starting;
#[cfg(test)]
mod traces;
