//! The binary as its users run it: real processes, real signals.

#[cfg(test)]
mod commands;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod node;
