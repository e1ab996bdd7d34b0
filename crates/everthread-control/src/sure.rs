//! How sure what the desk answers is.
//!
//! What changes a session's version is acknowledged as `replicated` while a replica follows; everything else as it is
//! configured; and either as a request asks. A level that is not reached in time is indeterminate: whoever repeats the
//! request is answered with what was written, and that is confirmed.

use crate::desk::{Desk, Failure};
use everthread_protocol::{Level, Millis, SessionKey};
use everthread_store::{Error, Loaded, Store, Written, check_level};

/// How sure acknowledgements are where a request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acks {
    /// Of what workers write, and of entries that nothing depends on.
    pub appends: Level,
    /// Of decisions; `None`: replicated while a replica follows.
    pub decisions: Option<Level>,
}

impl Acks {
    /// Whether the store can keep that.
    pub fn check<S: Store>(&self, store: &S) -> Result<(), Error> {
        check_level(store, self.appends)?;
        check_level(store, self.decisions.unwrap_or_default())
    }
}

impl<S: Store> Desk<S> {
    /// The same with other levels.
    pub fn with_acks(mut self, acks: Acks) -> Self {
        self.acks = acks;
        self
    }

    /// A desk whose answers are as sure as a request asks; refused if they cannot be.
    pub fn asked_for(&self, level: Option<Level>) -> Result<Self, Error> {
        let Some(level) = level else { return Ok(self.clone()) };
        check_level(&**self.store(), level)?;
        Ok(self.clone().with_acks(Acks { appends: level, decisions: Some(level) }))
    }

    /// Levels where nobody says otherwise.
    pub fn acks(&self) -> Acks {
        self.acks
    }

    /// Makes what was decided as sure as it is to be, and tells how sure that is.
    pub(crate) async fn settle_decision(&self, key: &SessionKey, written: &Written) -> Result<Level, Error> {
        let level = self.acks.decisions.unwrap_or_else(|| self.store().usual_level(key));
        self.settle_as(key, written, level).await
    }

    /// Makes entries that no decision depends on as sure as they are to be, and tells how sure that is.
    pub(crate) async fn settle_entries(&self, key: &SessionKey, written: &Written) -> Result<Level, Error> {
        self.settle_as(key, written, self.acks.appends).await
    }

    async fn settle_as(&self, key: &SessionKey, written: &Written, level: Level) -> Result<Level, Error> {
        if level > Level::Accepted {
            // Apart: nearly nothing waits here.
            Box::pin(self.store().confirm(key, written, level)).await?;
        }
        Ok(level)
    }

    /// Makes what was found in a session as sure as a decision that was just made: its answer may have been lost before it was.
    pub async fn settle_loaded(&self, key: &SessionKey, loaded: &Loaded) -> Result<Level, Failure> {
        let written = Written {
            epoch: loaded.version.epoch,
            to: loaded.head,
            at: Millis(0),
            version: loaded.version,
            fence: None,
            folded_to: everthread_protocol::Seq::ZERO,
            duplicate: None,
        };
        Ok(self.settle_decision(key, &written).await?)
    }
}
