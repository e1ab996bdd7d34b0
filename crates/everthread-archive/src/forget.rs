//! Objects that nobody needs any more: of sessions that are deleted, and those before the last.
//!
//! A session goes from the store first, then its objects, by the names that were listed before. Its deadline is armed before
//! that: whoever dies in between, or finds the archive away, leaves a session that is gone and due, and the keeper of
//! deadlines has its objects swept. **Invariant:** an object goes only if no stub names it, also none that a store may have
//! again that has lost its last moments, or if its session is gone.

use crate::archive::Shared;
use crate::{Archive, Error};
use everthread_protocol::{Millis, SessionKey, millis};
use everthread_store::{ArchiveFault, Deleted, Error as StoreError, Refusal, Store};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often an object is deleted before it is left to the sweep, and the pause before the second time.
const DELETES_MAX: u32 = 4;
const DELETE_PAUSE: Duration = Duration::from_millis(200);
/// How long the deletion of a session that is in the store waits for the names of older objects.
const LIST_MAX: Duration = Duration::from_secs(3);
/// How long all of that may take: somebody waits for it.
const DELETES_WAIT: Duration = Duration::from_secs(5);
/// When a session that is being deleted is looked at, should its deletion not say so itself.
pub(crate) const LOOK: Duration = Duration::from_secs(10 * 60);

impl<S: Store> Archive<S> {
    /// Deletes the session, then its objects.
    pub(crate) async fn delete_all(&self, key: &SessionKey) -> Result<Option<Deleted>, StoreError> {
        let Some(shared) = &self.shared else {
            self.refuse_stub(key).await?;
            return self.store.delete(key).await;
        };
        // What is in the archive must not be said to be deleted while it cannot be; what never was there need not wait.
        let is_archived = shared.stub_of(key).await?.is_some();
        let listing = shared.options.bucket.list(key);
        let listed = if is_archived {
            listing.await
        } else {
            tokio::time::timeout(LIST_MAX, listing).await.unwrap_or(Err(Error::Slow))
        };
        let objects = match listed {
            Ok(objects) => objects,
            Err(error) if is_archived => return Err(error.of_store()),
            Err(error) => {
                tracing::warn!(%key, %error, "older objects of a session that is deleted, if there are any, go later");
                Vec::new()
            }
        };
        shared.due_later(key, LOOK).await?;
        let deleted = self.store.delete(key).await?;
        shared.failures.forget(key);
        let swept = tokio::time::timeout(DELETES_WAIT, shared.delete_objects(key, &objects)).await;
        if let Err(error) = swept.unwrap_or(Err(Error::Slow)) {
            tracing::warn!(%key, %error, "objects of a deleted session go later");
            // Its deletion in the store has made it due: this is for whoever was quicker than the objects.
            if let Err(error) = shared.due_later(key, LOOK).await {
                tracing::warn!(%key, %error, "objects of a deleted session may stay until it is deleted again");
            }
            return Err(ArchiveFault::Left(error.to_string()).into());
        }
        Ok(deleted)
    }

    /// A node without an archive does not delete what is in one: it would be there for ever.
    pub(crate) async fn refuse_stub(&self, key: &SessionKey) -> Result<(), StoreError> {
        match self.store.stubbed(std::slice::from_ref(key)).await?.pop().flatten() {
            Some(_) => Err(Refusal::Archived.into()),
            None => Ok(()),
        }
    }
}

impl<S: Store> Shared<S> {
    /// The session has a deadline from here on, about so late. It is for whoever dies before he gets to arm or to hurry it, so
    /// the clock of this node is good enough.
    pub async fn due_later(&self, key: &SessionKey, after: Duration) -> Result<(), StoreError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis);
        self.store.arm(key, Millis(now).plus(millis(after))).await
    }

    /// Deletes objects of a session that is gone, and tries for a while.
    async fn delete_objects(&self, key: &SessionKey, objects: &[String]) -> Result<(), Error> {
        for name in objects {
            let mut tries = 1;
            while let Err(error) = self.options.bucket.delete(key, name).await {
                if tries == DELETES_MAX {
                    return Err(error);
                }
                tokio::time::sleep(DELETE_PAUSE * tries).await;
                tries += 1;
            }
        }
        Ok(())
    }

    /// Deletes what the archive has of a session that is gone. They are listed before it is made sure that it is, so none of
    /// them can be of one that is made anew.
    pub async fn sweep(&self, key: &SessionKey) -> Result<(), Error> {
        let all = self.options.bucket.list(key).await?;
        if !all.is_empty() && self.store.heads(std::slice::from_ref(key)).await? == [None] {
            self.delete_objects(key, &all).await?;
        }
        Ok(())
    }

    /// After a stub that names `name`: objects of the session but for it and the one before it are of no use any more.
    ///
    /// Not even one that is being written elsewhere: whoever writes it has read the session before this stub, and a
    /// session that comes back from it has another version. They are listed before it is made sure that the stub still
    /// stands, so none of them can be of a later one. The one before stays: a store that loses its last moments may have
    /// the stub again that names it.
    pub async fn tidy(&self, key: &SessionKey, name: &str) {
        let tidied = async {
            let all = self.options.bucket.list(key).await?;
            match self.stub_of(key).await? {
                Some(stub) if stub.object == name => {
                    for other in of_no_use(&all, name) {
                        self.options.bucket.delete(key, other).await?;
                    }
                }
                Some(_) => {}
                // Deleted meanwhile, by somebody who may not have seen this object; or back already.
                None => self.sweep(key).await?,
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = tidied.await {
            tracing::debug!(%key, %error, "objects of a session are left behind");
        }
    }
}

/// Which objects of a session nobody needs while its stub names this one: all others but the one before it.
fn of_no_use<'a>(all: &'a [String], name: &str) -> Vec<&'a String> {
    let changes =
        |name: &str| name.split_once('-').and_then(|(changes, _)| changes.parse::<u64>().ok()).unwrap_or(0);
    // A session that comes back has another version than it went with.
    let before = all.iter().filter(|other| changes(other) < changes(name));
    let before = before.max_by_key(|other| (changes(other), other.as_str()));
    all.iter().filter(|other| *other != name && Some(*other) != before).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_that_is_named_and_the_one_before_it_stay() {
        let all = ["9-b-x", "2-z-x", "10-a-x", "12-a-x", "11-q-x", "junk", "12-b-x"].map(str::to_owned);
        let left = |name: &str| {
            let gone = of_no_use(&all, name);
            all.iter().filter(|object| !gone.contains(object)).map(String::as_str).collect::<Vec<_>>()
        };
        assert_eq!(left("12-b-x"), ["11-q-x", "12-b-x"]);
        assert_eq!(left("10-a-x"), ["9-b-x", "10-a-x"]);
        assert_eq!(of_no_use(&all[1..2], "2-z-x"), Vec::<&String>::new());
    }
}
