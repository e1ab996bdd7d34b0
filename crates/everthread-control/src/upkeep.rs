//! Upkeep: what the keeper sees to in a session besides its promises, such as how much of it is kept, and where.
//!
//! A session is armed when it is made, and whenever its `meta` changes, for its first look; from there the keeper arms it
//! again, so upkeep costs nothing per write. Whatever a look does is idempotent, and a look that fails is repeated.
//! **Invariant:** upkeep decides nothing that an entry of the log would have to tell.

use crate::Failure;
use everthread_protocol::{Millis, SessionKey};
use everthread_session::State;
use everthread_store::{Head, Loaded};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use std::sync::Arc;

/// What is to be done about a due session whose head is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtHead {
    /// It is loaded, and the core and [`Upkeep::keep`] see to it.
    Load,
    /// It is not loaded: nothing in it can be due. The time is when to look again.
    Leave(Option<Millis>),
}

/// What is looked after in sessions besides what the core does.
pub trait Upkeep: Send + Sync + 'static {
    /// When a session that was made at `now`, or whose `meta` changed then, is looked at; `None` if it need not be.
    fn first_look(&self, key: &SessionKey, state: &State, now: Millis) -> Option<Millis>;

    /// A session is due, at about `now`, and nothing but its head is known. For those that must not be loaded, such as archived ones.
    fn at_head<'a>(
        &'a self,
        _key: &'a SessionKey,
        _head: &'a Head,
        _now: Millis,
    ) -> BoxFuture<'a, Result<AtHead, Failure>> {
        ready(Ok(AtHead::Load)).boxed()
    }

    /// A session is due that is not there any more, or never was: it was deleted, or what would have made it failed. It must
    /// not take long. Returns when to look again; `None` if nothing is left of it.
    fn gone<'a>(
        &'a self,
        _key: &'a SessionKey,
        _now: Millis,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>> {
        ready(Ok(None)).boxed()
    }

    /// A session is due and the core has done what it had to: called with what was read of it after that, which may be
    /// old by now, and with the head read before. It must be cheap if there is nothing to do: the keeper comes by every
    /// few seconds while a run is at work. Returns when to look again.
    fn keep<'a>(
        &'a self,
        key: &'a SessionKey,
        head: &'a Head,
        loaded: &'a Loaded,
        state: &'a State,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>>;
}

/// No upkeep.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoUpkeep;

impl Upkeep for NoUpkeep {
    fn first_look(&self, _key: &SessionKey, _state: &State, _now: Millis) -> Option<Millis> {
        None
    }

    fn keep<'a>(
        &'a self,
        _key: &'a SessionKey,
        _head: &'a Head,
        _loaded: &'a Loaded,
        _state: &'a State,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>> {
        ready(Ok(None)).boxed()
    }
}

/// Several kinds of upkeep, one after the other. The first that leaves a session at its head speaks for all.
#[derive(Clone, Default)]
pub struct Upkeeps(Arc<[Arc<dyn Upkeep>]>);

impl Upkeeps {
    /// These, in this order.
    pub fn new(all: impl IntoIterator<Item = Arc<dyn Upkeep>>) -> Self {
        Self(all.into_iter().collect())
    }
}

impl std::fmt::Debug for Upkeeps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} kinds of upkeep", self.0.len())
    }
}

impl Upkeep for Upkeeps {
    fn first_look(&self, key: &SessionKey, state: &State, now: Millis) -> Option<Millis> {
        self.0.iter().filter_map(|upkeep| upkeep.first_look(key, state, now)).min()
    }

    fn at_head<'a>(
        &'a self,
        key: &'a SessionKey,
        head: &'a Head,
        now: Millis,
    ) -> BoxFuture<'a, Result<AtHead, Failure>> {
        let all = async move {
            for upkeep in self.0.iter() {
                match upkeep.at_head(key, head, now).await? {
                    AtHead::Load => {}
                    leave => return Ok(leave),
                }
            }
            Ok(AtHead::Load)
        };
        all.boxed()
    }

    fn gone<'a>(
        &'a self,
        key: &'a SessionKey,
        now: Millis,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>> {
        let all = async move {
            let mut next = None;
            for upkeep in self.0.iter() {
                next = next.into_iter().chain(upkeep.gone(key, now).await?).min();
            }
            Ok(next)
        };
        all.boxed()
    }

    fn keep<'a>(
        &'a self,
        key: &'a SessionKey,
        head: &'a Head,
        loaded: &'a Loaded,
        state: &'a State,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>> {
        let all = async move {
            let mut next = None;
            for upkeep in self.0.iter() {
                let look = upkeep.keep(key, head, loaded, state).await?;
                next = next.into_iter().chain(look).min();
            }
            Ok(next)
        };
        all.boxed()
    }
}
