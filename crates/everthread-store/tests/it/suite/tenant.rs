//! Followers of a tenant.

use super::{PATIENCE, created};
use everthread_protocol::{Millis, SessionId, SessionKey, TenantId};
use everthread_store::{Store, TenantFollower};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Writes down what it hears; `None` is a doubt.
struct Ear(mpsc::Sender<Option<(SessionId, Millis)>>);

impl TenantFollower for Ear {
    fn changed(&self, session: SessionId, at: Millis) {
        drop(self.0.try_send(Some((session, at))));
    }

    fn doubt(&self) {
        drop(self.0.try_send(None));
    }
}

type Heard = mpsc::Receiver<Option<(SessionId, Millis)>>;

async fn next(heard: &mut Heard) -> Option<(SessionId, Millis)> {
    timeout(PATIENCE, heard.recv()).await.expect("nothing heard").unwrap()
}

async fn follow<S: Store>(store: &S, tenant: &TenantId) -> (everthread_store::Following, Heard) {
    let (ear, mut heard) = mpsc::channel(100);
    let following = store.follow_tenant(tenant, Arc::new(Ear(ear)));
    assert_eq!(next(&mut heard).await, None, "it is told to doubt first");
    (following, heard)
}

fn key(tenant: &TenantId, session: &str) -> SessionKey {
    SessionKey { tenant: tenant.clone(), session: session.parse().unwrap() }
}

pub async fn a_tenants_followers_hear_of_its_sessions_and_of_no_others<S: Store>(store: &S) {
    let (mine, other) = ("mine".parse().unwrap(), "other".parse().unwrap());
    let (_following, mut heard) = follow(store, &mine).await;
    let (gone, mut silence) = follow(store, &mine).await;
    drop(gone);
    store.index(&key(&other, "a"), Millis(5)).await.unwrap();
    store.index(&key(&mine, "b"), Millis(7)).await.unwrap();
    assert_eq!(next(&mut heard).await, Some(("b".parse().unwrap(), Millis(7))));
    // Whoever is woken finds it.
    assert_eq!(store.sessions(&mine, None, 9).await.unwrap(), [("b".parse().unwrap(), Millis(7))]);
    // What does not move the index wakes all the same: the session may have changed twice in a millisecond.
    store.index(&key(&mine, "b"), Millis(7)).await.unwrap();
    assert_eq!(next(&mut heard).await, Some(("b".parse().unwrap(), Millis(7))));
    store.unindex(&key(&mine, "b"), Millis(7)).await.unwrap();
    assert_eq!(next(&mut heard).await, Some(("b".parse().unwrap(), Millis(7))));
    assert!(silence.try_recv().is_err());
}

pub async fn a_deletion_wakes_followers_of_the_tenant<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    store.index(&key, Millis(7)).await.unwrap();
    let (_following, mut heard) = follow(store, &key.tenant).await;
    store.delete(&key).await.unwrap();
    let (session, _) = next(&mut heard).await.expect("a change");
    assert_eq!(session, key.session);
    assert!(store.states(std::slice::from_ref(&key)).await.unwrap()[0].is_none());
}
