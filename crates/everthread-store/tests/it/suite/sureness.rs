//! How sure writes are.

use super::{created, one};
use everthread_protocol::Level;
use everthread_store::{Error, Refusal, Store, check_level};

pub async fn every_write_is_accepted_and_more_is_had_or_refused<S: Store>(store: &S) {
    let (key, written) = created(store).await;
    store.confirm(&key, &written, Level::Accepted).await.unwrap();
    assert!(store.offers(Level::Accepted) && store.offers(store.usual_level(&key)));
    for level in [Level::Replicated, Level::Fsynced] {
        let refused = Err(Error::Refused(Refusal::NoLevel(level)));
        let expected = if store.offers(level) { Ok(()) } else { refused };
        assert_eq!(check_level(store, level), expected);
        let written = store.write(&key, one()).await.unwrap();
        assert_eq!(store.confirm(&key, &written, level).await, expected);
    }
}
