//! Fault tests of a whole deployment, as one command: `cargo xtask chaos --minutes N --seed S`.
//!
//! Nodes behind HAProxy, workers in processes of their own and hundreds of clients behind proxies that fail; a [`schedule`] from a
//! seed says what is killed, frozen, cut, cut off and set wrong when ([`drive`] carries it out on a [`world`]); everybody
//! writes a [`history`], and in the end [`mod@check`], which is pure, proves from these and from the logs that nothing was lost,
//! doubled, misplaced, written by somebody who had no right to, or left without an outcome. [`report`] sums it up.
//!
//! The life of a finding: a [`client`] notes what it was sent, in the order in which it was sent, and nothing of what it thinks
//! of it; the checker replays the notes. So a fault of the checker is found by a test of the checker, from a made-up history.

pub mod asker;
pub mod check;
pub mod client;
pub mod drive;
pub mod history;
pub mod ledger;
pub mod log;
pub mod process;
pub mod random;
pub mod report;
pub mod schedule;
pub mod setup;
pub mod worker;
pub mod world;
