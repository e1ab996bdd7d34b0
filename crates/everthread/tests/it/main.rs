//! The binary as its users run it: real processes, real signals.

mod commands;
mod kill;
mod node;
