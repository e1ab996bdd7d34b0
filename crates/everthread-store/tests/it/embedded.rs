//! The embedded engine: the suite, on disk and in memory, and what only it promises.

use crate::suite::planting::bare;
use crate::suite::{self, append, change, created, entries, granted, one, producer, read_all, refused, run};
use everthread_protocol::{Fence, Millis, PoolKey, Seq, SessionKey};
use everthread_store::embedded::{Durability, Embedded, Options};
use everthread_store::{
    Change, Error, First, Loaded, Over, Plant, Planted, Refusal, Renewal, Store, Stub, Stubbed, WorkItem,
    Write,
};
use std::path::Path;
use tempfile::TempDir;

/// An engine on `dir`.
pub fn open(dir: &Path) -> Embedded {
    open_with(dir, Durability::PowerCut)
}

/// An engine on `dir`.
pub fn open_with(dir: &Path, durability: Durability) -> Embedded {
    Embedded::open(Options { dir: Some(dir.to_owned()), durability }).unwrap()
}

async fn on_disk() -> (Embedded, TempDir) {
    let dir = TempDir::new().unwrap();
    (open(dir.path()), dir)
}

async fn in_memory() -> (Embedded, ()) {
    (Embedded::memory().unwrap(), ())
}

mod disk {
    crate::suite::conformance!(super::on_disk);
}

mod memory {
    crate::suite::conformance!(super::in_memory);
}

#[tokio::test]
async fn a_restart_keeps_everything_and_opens_a_new_epoch_at_the_first_write() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let (key, first) = granted(&store).await;
    let r1 = run("r1");
    let text = entries("a", 4);
    let numbered = Write { producer: producer("run:r1", 3, 1), ..append(&text, 4) };
    store.write(&key, numbered).await.unwrap();
    let before = store.load(&key).await.unwrap().unwrap();
    let records = read_all(&store, &key, Seq(0), suite::ALL).await;
    drop(store);

    let store = open(dir.path());
    let after = store.load(&key).await.unwrap().unwrap();
    assert!(after.now >= before.now);
    assert_eq!(Loaded { now: before.now, ..after }, Loaded { leases: Vec::new(), ..before.clone() });
    assert_eq!(read_all(&store, &key, Seq(0), suite::ALL).await, records);
    let again = store.write(&key, numbered).await.unwrap();
    assert_eq!((again.epoch, again.to, again.duplicate.unwrap().batch), (first.epoch, Seq(6), 1));

    // The decision was made at the version of before: it stands, and the version's epoch moves with it.
    let grant = Change { grant: Some(&r1), ..change(Some(before.version), "next") };
    let moved = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
    assert!(moved.epoch > first.epoch);
    assert_eq!((moved.version.epoch, moved.version.n), (moved.epoch, before.version.n + 1));
    assert!(moved.fence > first.fence);
    let page = store.read(&key, Seq(6), suite::ALL).await.unwrap();
    assert_eq!(page.epochs, [(first.epoch, Seq(1)), (moved.epoch, Seq(7))]);
    assert_eq!((page.head.since, page.records[0].epoch), (Seq(7), moved.epoch));
    assert_eq!(read_all(&store, &key, Seq(0), suite::ALL).await.len(), records.len() + 1);
}

#[tokio::test]
async fn a_restart_forgets_leases_and_keeps_fences_and_a_renewal_makes_the_lease_known_again() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let (key, first) = created(&store).await;
    let r1 = run("r1");
    let grant = Change { grant: Some(&r1), lease_ms: 60_000, ..change(Some(first.version), "s1") };
    let granted = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
    let fence = granted.fence.unwrap();
    let control = "c1".parse().unwrap();
    store.mark_delivered(&key, &control, &"w1".parse().unwrap()).await.unwrap();
    let before = store.load(&key).await.unwrap().unwrap();
    assert_eq!(before.leases, [(r1.clone(), granted.at.plus(60_000))]);
    drop(store);

    let store = open(dir.path());
    let after = store.load(&key).await.unwrap().unwrap();
    assert_eq!((after.fences, after.leases), (before.fences, Vec::new()));
    assert_eq!(store.delivered(&key, &[control]).await.unwrap(), [None]);
    // The session is not in memory yet.
    let renewal = |fence| Renewal { key: key.clone(), runs: vec![(r1.clone(), fence)], left_ms: 1_000 };
    let missing = Renewal { key: "acme/never".parse().unwrap(), ..renewal(fence) };
    let heads = store.renew(&[missing, renewal(Fence(fence.0 + 1))]).await.unwrap();
    assert_eq!(heads.iter().map(|head| head.map(|h| h.active)).collect::<Vec<_>>(), [None, Some(1)]);
    assert_eq!(store.load(&key).await.unwrap().unwrap().leases, []);
    store.renew(&[renewal(fence)]).await.unwrap();
    let renewed = store.load(&key).await.unwrap().unwrap().leases;
    assert!(renewed[0].1 >= after.now.plus(1_000));
    // The next write reads it from the file: the lease stays.
    store.write(&key, Write { fence: Some((&r1, fence)), ..one() }).await.unwrap();
    assert_eq!(store.load(&key).await.unwrap().unwrap().leases, renewed);
}

#[tokio::test]
async fn an_append_after_a_restart_moves_the_version_too() {
    let dir = TempDir::new().unwrap();
    let (key, first) = created(&open(dir.path())).await;
    let store = open(dir.path());
    let written = store.write(&key, one()).await.unwrap();
    assert_eq!((written.version.epoch, written.version.n), (written.epoch, first.version.n));
    assert_ne!(written.version, first.version);
    let decided = Write { change: Some(change(Some(first.version), "old")), ..one() };
    let refusal = refused(&store, &key, decided).await;
    assert_eq!(refusal, Refusal::Conflict { current: written.version });
}

#[tokio::test]
async fn a_session_remembers_its_last_32_epochs() {
    let dir = TempDir::new().unwrap();
    let (key, _) = created(&open_with(dir.path(), Durability::Crash)).await;
    for _ in 0..34 {
        open_with(dir.path(), Durability::Crash).write(&key, one()).await.unwrap();
    }
    let loaded = open(dir.path()).load(&key).await.unwrap().unwrap();
    let since: Vec<u64> = loaded.epochs.iter().map(|(_, since)| since.0).collect();
    assert_eq!(since, (4..=35).collect::<Vec<u64>>());
    assert!(loaded.epochs.is_sorted_by(|a, b| a.0 < b.0));
}

#[tokio::test]
async fn pools_deadlines_and_the_index_survive_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let key: SessionKey = "acme/s".parse().unwrap();
    let pool = PoolKey { tenant: key.tenant.clone(), agent: "guide".parse().unwrap() };
    let item = |run: &str| WorkItem {
        tenant: key.tenant.clone(),
        session: key.session.clone(),
        run: run.parse().unwrap(),
        not_after: Millis(1),
    };
    let node = "n".parse().unwrap();
    for run in ["r1", "r2", "r3"] {
        store.enqueue(&pool, &item(run)).await.unwrap();
    }
    let taken = store.take(&pool, &node, 2).await.unwrap();
    store.finish_item(&pool, &taken[0].ticket).await.unwrap();
    store.arm(&key, Millis(5)).await.unwrap();
    assert_eq!(store.claim_due(1).await.unwrap().len(), 1);
    store.index(&key, Millis(77)).await.unwrap();
    drop(store);

    let store = open(dir.path());
    // Whoever held the item and the claim is gone, so both come at once.
    let taken = store.take(&pool, &node, 9).await.unwrap();
    let runs: Vec<_> = taken.iter().map(|t| (t.item.run.as_str(), t.deliveries)).collect();
    assert_eq!(runs, [("r2", 2), ("r3", 1)]);
    let due = store.claim_due(9).await.unwrap();
    assert_eq!(due[0].key, key);
    store.finish_due(&due[0], None).await.unwrap();
    assert_eq!(store.sessions(&key.tenant, None, 9).await.unwrap(), [(key.session.clone(), Millis(77))]);
    drop(store);
    assert_eq!(open(dir.path()).claim_due(9).await.unwrap(), []);
}

#[tokio::test]
async fn a_long_log_is_read_from_the_file_and_from_memory_alike() {
    let dir = TempDir::new().unwrap();
    let store = open_with(dir.path(), Durability::Crash);
    let (key, _) = created(&store).await;
    let text = format!(r#"[{{"type":"x-big","v":"{}"}}]"#, "a".repeat(20_000));
    for _ in 0..40 {
        store.write(&key, append(&text, 1)).await.unwrap();
    }
    let warm = read_all(&store, &key, Seq(0), 50_000).await;
    assert_eq!(warm.len(), 41);
    drop(store);
    assert_eq!(read_all(&open(dir.path()), &key, Seq(0), 50_000).await, warm);
}

#[tokio::test]
async fn a_second_process_is_told_that_the_directory_is_in_use() {
    let (_first, dir) = on_disk().await;
    let second =
        Embedded::open(Options { dir: Some(dir.path().to_owned()), durability: Durability::PowerCut });
    let Err(Error::Unavailable(why)) = second else { panic!("opened twice") };
    assert!(why.contains("in use by another process"), "{why}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("everthread.redb"), vec![7; 10_000]).unwrap();
    let opened =
        Embedded::open(Options { dir: Some(dir.path().to_owned()), durability: Durability::PowerCut });
    let Err(Error::Corrupt(why)) = opened else { panic!("{opened:?}") };
    assert!(why.contains("everthread.redb is not a usable database"), "{why}");
}

#[tokio::test]
async fn a_restart_finds_nothing_of_a_deleted_session_and_knows_its_numbers() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let (key, before, _) = suite::deleting::furnished(&store).await;
    let (other, ..) = suite::deleting::furnished(&store).await;
    store.delete(&key).await.unwrap().unwrap();
    drop(store);

    let store = open(dir.path());
    assert_eq!(store.load(&key).await.unwrap(), None);
    assert_eq!(store.devices(&key).await.unwrap(), []);
    let listed = store.sessions(&key.tenant, None, 10).await.unwrap();
    assert_eq!(
        listed.into_iter().map(|(session, _)| session).collect::<Vec<_>>(),
        std::slice::from_ref(&other.session)
    );
    let kept = read_all(&store, &other, Seq(0), suite::ALL).await;
    assert_eq!(kept.last().unwrap().to, before.to);
    let made = store.write(&key, Write { change: Some(change(None, "s")), ..one() }).await.unwrap();
    assert!(made.epoch > before.epoch && made.to == Seq(1));
    assert_eq!(read_all(&store, &key, Seq(0), suite::ALL).await.len(), 1);

    // A session of now stays in its epoch until the next start, and is in a later one after it.
    let next = store.write(&key, one()).await.unwrap();
    assert_eq!(next.epoch, made.epoch);
    drop(store);
    let store = open(dir.path());
    assert!(store.write(&key, one()).await.unwrap().epoch > made.epoch);
}

#[tokio::test]
async fn what_is_staged_when_the_engine_stops_is_gone_and_what_was_planted_stays() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let (source, _) = created(&store).await;
    for _ in 0..5 {
        store.write(&source, one()).await.unwrap();
    }
    let records = read_all(&store, &source, Seq(0), suite::ALL).await;
    let (planted, staged) = (suite::fresh(), suite::fresh());
    let own = First { by: suite::BY, entries: r#"[{"type":"x-own"}]"#, count: 1 };
    let whole = |epochs| Plant {
        changes: 1,
        folded_bytes: 0,
        first: Some(own),
        ..bare(Over::Nothing { gone: None }, epochs, Seq(6))
    };
    let epochs = store.load(&source).await.unwrap().unwrap().epochs;
    for key in [&planted, &staged] {
        store.stage(key, "a", &records).await.unwrap();
    }
    store.plant(&planted, "a", whole(&epochs)).await.unwrap();
    let before = store.load(&planted).await.unwrap().unwrap();
    drop(store);

    let store = open(dir.path());
    let refused = store.plant(&staged, "a", whole(&epochs)).await.unwrap_err();
    assert_eq!(refused, Error::Refused(Refusal::NotStaged));
    let after = store.load(&planted).await.unwrap().unwrap();
    assert_eq!(Loaded { now: before.now, ..after }, before);
    assert_eq!(read_all(&store, &planted, Seq(0), suite::ALL).await[..6], records);
    // The start begins an epoch above those that were given to planted sessions.
    let written = store.write(&planted, one()).await.unwrap();
    assert!(written.epoch > before.version.epoch);
    drop(store);
    // Nothing of what was staged is left in the file.
    let file = redb::Database::open(dir.path().join("everthread.redb")).unwrap();
    let folded = redb::TableDefinition::<(u64, u64), &[u8]>::new("folded");
    let table = redb::ReadableDatabase::begin_read(&file).unwrap().open_table(folded).unwrap();
    assert_eq!(redb::ReadableTableMetadata::len(&table).unwrap(), 6);
}

#[tokio::test]
async fn a_restart_keeps_a_stub_and_it_comes_back() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let (key, first) = created(&store).await;
    let records = read_all(&store, &key, Seq(0), suite::ALL).await;
    let before = store.load(&key).await.unwrap().unwrap();
    let stub = Stub { expect: first.version, head: first.to, object: "o", state: "brief", at: Millis(5) };
    assert_eq!(store.stub(&key, stub).await, Ok(Stubbed::Done));
    drop(store);
    let store = open(dir.path());
    assert_eq!(refused(&store, &key, one()).await, Refusal::Archived);
    let info = store.stubbed(std::slice::from_ref(&key)).await.unwrap().pop().unwrap().unwrap();
    assert_eq!((info.object.as_str(), info.at, info.head.seq), ("o", Millis(5), first.to));
    store.stage(&key, "a", &records).await.unwrap();
    let plant = Plant { state: &before.state, ..bare(Over::Stub { object: "o" }, &[], first.to) };
    assert!(matches!(store.plant(&key, "a", plant).await, Ok(Planted::Done { .. })));
    drop(store);
    let store = open(dir.path());
    assert_eq!(read_all(&store, &key, Seq(0), suite::ALL).await, records);
    let (new, after) =
        store.load(&key).await.unwrap().unwrap().epochs.split_last().map(|(n, a)| (*n, a.to_vec())).unwrap();
    assert_eq!(
        (after, new.1),
        (before.epochs.clone(), first.to.next()),
        "the version moved, in an epoch of the new start"
    );
    assert!(new.0 > first.epoch);
}

/// What is read of a session comes from the file or from memory, and the file is a moment ahead after each commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_read_is_older_than_the_one_before_it_wherever_it_comes_from() {
    let (store, _dir) = on_disk().await;
    let (key, _) = created(&store).await;
    // Too large to be kept in memory: whoever begins at the start reads the file.
    let large = format!(r#"[{{"type":"x-large","text":"{}"}}]"#, "x".repeat(512 * 1024));
    store.write(&key, append(&large, 1)).await.unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let write = async {
        for _ in 0..1_000 {
            store.write(&key, one()).await.unwrap();
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let read = |n: u64| {
        let (store, key, is_over) = (&store, &key, &is_over);
        async move {
            let mut seen = Seq(0);
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                for after in [Seq(n % 2), seen] {
                    let page = store.read(key, after, 1).await.unwrap();
                    assert!(page.head.seq >= seen, "{} after {seen}", page.head.seq);
                    seen = page.head.seq;
                }
            }
        }
    };
    tokio::join!(write, read(0), read(1), read(0), read(1));
}
