//! The binary as its users run it: real processes, real signals.

#[cfg(test)]
mod commands;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod follower;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod many;
#[cfg(test)]
mod node;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod slow;
