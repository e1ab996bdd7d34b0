//! Sessions that go into the archive and come back.

use crate::world::{
    ALL, Engine, World, asked, at_work, cursor, decide, head, is_archived, on_both_engines, quiet, read_all,
    say, session, view,
};
use everthread_protocol::{Millis, Seq};
use everthread_session::State;
use everthread_store::{Archived, Archiver as _, Error, Interest, Refusal, Store as _};
use futures_util::future::join_all;

on_both_engines!(
    a_session_comes_back_as_it_was,
    a_session_that_is_at_work_is_not_archived,
    what_lists_and_devices_need_does_not_bring_a_session_back,
    many_who_need_a_session_through_two_nodes_bring_it_back_once,
    a_session_goes_there_and_back_again_and_leaves_its_last_two_objects,
    a_write_in_the_middle_of_archiving_is_not_lost,
    a_long_session_is_read_and_written_in_pages,
    a_deleted_session_leaves_no_object,
    a_session_whose_beginning_was_dropped_comes_back_with_its_base,
    a_node_without_an_archive_says_so,
);

async fn a_session_comes_back_as_it_was<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 40).await;
    let (before, seen) = (head(&*node, &key).await.unwrap(), view(&*node, &key).await);
    let (loaded, all) = (node.load(&key).await.unwrap().unwrap(), read_all(&*node, &key, Seq::ZERO).await);
    assert_eq!(node.archive(&key).await, Ok(Archived::Done));
    assert!(is_archived(&*node, &key).await);
    assert_eq!(node.archive(&key).await, Ok(Archived::Already));
    assert_eq!(world.bucket.list(&key).await.unwrap().len(), 1);

    // A cursor in the middle of what was raw, as of somebody who was away.
    let after = all[all.len() / 2].to;
    let page = node.read(&key, after, ALL).await.unwrap();
    assert!(!is_archived(&*node, &key).await);
    assert!(page.records[0].from <= after.next() && page.records.last().unwrap().to == before.seq);
    assert_eq!(view(&*node, &key).await, seen);
    let back = node.load(&key).await.unwrap().unwrap();
    assert_eq!((&back.state, &back.epochs, back.head), (&loaded.state, &loaded.epochs, loaded.head));
    assert_eq!(back.version.n, loaded.version.n + 1, "nobody decides on what was read before");
    let now = head(&*node, &key).await.unwrap();
    assert_eq!((now.epoch, now.since, now.seq), (before.epoch, before.since, before.seq));
    assert_eq!(now.folded_to, now.seq);

    // It goes on, in the same epoch.
    let written = say(&*node, &key).await;
    assert_eq!((written.epoch, written.to), (before.epoch, before.seq.next()));
}

async fn a_session_that_is_at_work_is_not_archived<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 2).await;
    for state in [at_work(), asked()] {
        decide(&*node, &key, &state).await;
        assert_eq!(node.archive(&key).await, Ok(Archived::Busy));
        assert!(!is_archived(&*node, &key).await);
    }
    let newer = State { schema: 1_000, ..quiet() };
    decide(&*node, &key, &newer).await;
    assert_eq!(node.archive(&key).await, Ok(Archived::Busy));
    decide(&*node, &key, &quiet()).await;
    assert_eq!(node.archive(&key).await, Ok(Archived::Done));
    let nobody = "acme/nobody".parse().unwrap();
    assert_eq!(node.archive(&nobody).await, Err(Error::Refused(Refusal::NoSession)));
}

async fn what_lists_and_devices_need_does_not_bring_a_session_back<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 5).await;
    let before = head(&*node, &key).await.unwrap();
    let phone = "phone".parse().unwrap();
    node.archive(&key).await.unwrap();
    assert_eq!(node.ack(&key, &phone, cursor(&before)).await.unwrap(), Some(cursor(&before)));
    assert_eq!(node.devices(&key).await.unwrap().len(), 1);
    assert!(node.device_in(std::slice::from_ref(&key), &phone).await.unwrap()[0].is_some());
    node.index(&key, Millis(7)).await.unwrap();
    assert_eq!(node.sessions(&key.tenant, None, 10).await.unwrap(), [(key.session.clone(), Millis(7))]);
    assert_eq!(node.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap().version, before.version);
    let listed = node.states(std::slice::from_ref(&key)).await.unwrap().pop().unwrap().unwrap();
    let state: State = serde_json::from_str(&listed.state).unwrap();
    assert_eq!((state.meta, state.runs.len(), state.values.len()), (quiet().meta, 1, 0));
    let (follower, _heard) = ear();
    drop(node.follow(&key, Interest::Log, follower));
    assert!(is_archived(&*node, &key).await);
}

async fn many_who_need_a_session_through_two_nodes_bring_it_back_once<E: Engine>() {
    let world = World::<E>::start().await;
    let nodes = [world.node().await, world.node().await];
    let key = session(&*nodes[0], 60).await;
    for _ in 0..5 {
        let (before, seen) = (head(&*nodes[0], &key).await.unwrap(), view(&*nodes[0], &key).await);
        assert_eq!(nodes[0].archive(&key).await, Ok(Archived::Done));
        let readers = (0..20).map(|n| nodes[n % 2].read(&key, Seq::ZERO, ALL));
        for page in join_all(readers).await {
            assert_eq!(page.unwrap().head.seq, before.seq);
        }
        assert_eq!(view(&*nodes[1], &key).await, seen);
        let now = head(&*nodes[0], &key).await.unwrap();
        assert_eq!(now.version.n, before.version.n + 1, "it was planted once");
    }
    let restored = |n: usize| nodes[n].counts().restores.with_label_values(&["restored"]).get();
    assert_eq!(restored(0) + restored(1), 5);
}

async fn a_session_goes_there_and_back_again_and_leaves_its_last_two_objects<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 10).await;
    let mut named = String::new();
    for n in 0..4 {
        say(&*node, &key).await;
        let seen = view(&*node, &key).await;
        assert_eq!(node.archive(&key).await, Ok(Archived::Done));
        // The store may yet lose what came back, or have the stub before it again.
        let objects = world.bucket.list(&key).await.unwrap();
        assert_eq!(objects.len(), 2.min(n + 1), "time {n}");
        let before = std::mem::replace(&mut named, stub(&*node, &key).await);
        assert!(objects.contains(&named) && (n == 0 || objects.contains(&before)), "{objects:?}");
        assert_eq!(view(&*node, &key).await, seen);
        assert_eq!(world.bucket.list(&key).await.unwrap().len(), objects.len());
    }
}

async fn a_write_in_the_middle_of_archiving_is_not_lost<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 30).await;
    let writer = world.node().await;
    let mut done = 0;
    for n in 0..40 {
        let before = head(&*node, &key).await.unwrap().seq;
        let (archived, written) = tokio::join!(node.archive(&key), async {
            for _ in 0..n % 4 {
                tokio::task::yield_now().await;
            }
            say(&*writer, &key).await
        });
        done += u32::from(archived.unwrap() == Archived::Done);
        assert_eq!(written.to, before.next(), "it is written once, at its place");
        assert_eq!(node.load(&key).await.unwrap().unwrap().head, written.to);
        assert_eq!(read_all(&*node, &key, Seq::ZERO).await.last().unwrap().to, written.to);
    }
    // Whoever came first: an object stays only where a session was archived.
    let objects = world.bucket.list(&key).await.unwrap().len();
    assert!(objects <= 2 && (done == 0) == (objects == 0), "{objects} objects, archived {done} times");
}

async fn a_long_session_is_read_and_written_in_pages<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 1_500).await;
    let (before, seen) = (head(&*node, &key).await.unwrap(), view(&*node, &key).await);
    assert_eq!(node.archive(&key).await, Ok(Archived::Done));
    assert_eq!(view(&*node, &key).await, seen);
    let now = head(&*node, &key).await.unwrap();
    let bytes: usize = read_all(&*node, &key, Seq::ZERO).await.iter().map(|record| record.blocks.len()).sum();
    assert!(bytes > 2 << 19, "more than one page: {bytes}");
    assert_eq!((now.seq, now.folded_bytes), (before.seq, bytes as u64));
}

async fn a_deleted_session_leaves_no_object<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 3).await;
    node.archive(&key).await.unwrap();
    assert!(node.delete(&key).await.unwrap().is_some());
    assert!(world.bucket.list(&key).await.unwrap().is_empty());
    assert_eq!(node.load(&key).await.unwrap(), None);
    assert_eq!(node.delete(&key).await.unwrap(), None);

    // Nor does one that came back.
    let key = session(&*node, 3).await;
    node.archive(&key).await.unwrap();
    say(&*node, &key).await;
    node.delete(&key).await.unwrap();
    assert!(world.bucket.list(&key).await.unwrap().is_empty());
}

async fn a_session_whose_beginning_was_dropped_comes_back_with_its_base<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 50).await;
    let records = read_all(&*node, &key, Seq::ZERO).await;
    let head_before = head(&*node, &key).await.unwrap();
    let (early, _) = records.split_at(20);
    let fold = everthread_store::Fold { epoch: head_before.epoch, records: early };
    assert_eq!(node.fold(&key, fold).await, Ok(everthread_store::Folded::Done));
    let floor = early.last().unwrap().to.next();
    let version = node.load(&key).await.unwrap().unwrap().version;
    let trim = everthread_store::Trim { expect: version, from: Seq(1), floor, bytes: 1, base: "what was" };
    assert_eq!(node.trim(&key, trim).await, Ok(everthread_store::Trimmed::Done));
    let rest = read_all(&*node, &key, Seq::ZERO).await;
    assert_eq!(rest[0].from, floor);

    assert_eq!(node.archive(&key).await, Ok(Archived::Done));
    let base = node.base(&key).await.unwrap().unwrap();
    assert_eq!((base.floor, base.text.as_str()), (floor, "what was"));
    assert_eq!(head(&*node, &key).await.unwrap().floor, floor);
    let back = read_all(&*node, &key, Seq::ZERO).await;
    assert_eq!((back[0].from, back.last().unwrap().to), (floor, head_before.seq));
}

async fn a_node_without_an_archive_says_so<E: Engine>() {
    let world = World::<E>::start().await;
    let (node, without) = (world.node().await, world.node_with(None).await);
    let key = session(&*node, 3).await;
    assert!(matches!(without.archive(&key).await, Err(Error::Archive(_))));
    node.archive(&key).await.unwrap();
    let refused = without.load(&key).await.unwrap_err();
    assert_eq!(refused, Error::Refused(Refusal::Archived));
    assert!(refused.fault().message.contains("--archive"));
    // It cannot delete the object, so it must not say that the session is deleted.
    assert_eq!(without.delete(&key).await.unwrap_err(), Error::Refused(Refusal::Archived));
    assert!(node.load(&key).await.unwrap().is_some());
}

async fn stub<S: everthread_store::Store>(store: &S, key: &everthread_protocol::SessionKey) -> String {
    store.stubbed(std::slice::from_ref(key)).await.unwrap().pop().unwrap().unwrap().object
}

struct Deaf;

impl everthread_store::Follower for Deaf {
    fn record(&self, _record: everthread_protocol::Record) {}
    fn changed(&self) {}
    fn doubt(&self) {}
}

fn ear() -> (std::sync::Arc<Deaf>, ()) {
    (std::sync::Arc::new(Deaf), ())
}
