//! How sure a write is: what acknowledgements may promise, and when a writer may forget what it wrote.

use crate::{Error, Refusal, Store};
use everthread_protocol::Level;
use std::time::Duration;

/// When who wrote something may forget it: it is not lost any more with a single machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// With the answer.
    Answered,
    /// When [`Store::confirm`] says that it is replicated.
    Confirmed,
    /// So long after the answer: nobody can say more.
    For(Duration),
}

/// Refuses a level that is not to be had, before anything is written.
pub fn check_level<S: Store>(store: &S, level: Level) -> Result<(), Error> {
    if store.offers(level) { Ok(()) } else { Err(Refusal::NoLevel(level).into()) }
}
