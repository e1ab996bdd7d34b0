//! Trims: what is before the floor goes, and a text stands for it.

use super::folding::folded;
use super::{ALL, append, change, fresh, one, read_all, run};
use everthread_protocol::{Seq, SessionKey};
use everthread_session::fold::Limits;
use everthread_store::{Base, Error, Fold, Folded, Head, Refusal, Renewal, Store, Trim, Trimmed, Write};
use futures_util::future::join_all;

/// Each folded record stands for one raw one.
const SMALL: Limits = Limits { record_bytes: 0, text_bytes: 0 };

async fn head<S: Store>(store: &S, key: &SessionKey) -> Head {
    store.heads(std::slice::from_ref(key)).await.unwrap()[0].unwrap()
}

/// A session with so many entries, in blocks of two but for the first, that is folded up to `folded_to`.
async fn folded_log<S: Store>(store: &S, head: u64, folded_to: u64) -> SessionKey {
    let key = fresh();
    fill(store, &key, head, folded_to).await;
    key
}

/// The same in a session of the caller's choice.
pub async fn fill<S: Store>(store: &S, key: &SessionKey, head: u64, folded_to: u64) {
    store.write(key, Write { change: Some(change(None, "s0")), ..one() }).await.unwrap();
    for _ in 0..head / 2 {
        store.write(key, append(r#"[{"type":"x-a"},{"type":"x-b"}]"#, 2)).await.unwrap();
    }
    fold_to(store, key, folded_to).await;
}

/// Drops folded records one by one, until there are none or the store fails; `done` hears of every floor.
pub async fn trim_one_by_one<S: Store>(store: &S, key: &SessionKey, mut done: impl FnMut(Seq)) {
    let head = head(store, key).await;
    let records = read_all(store, key, Seq(0), ALL).await;
    let (mut expect, mut from) = (head.version, head.floor);
    for record in records.iter().filter(|record| record.to <= head.folded_to) {
        let (floor, bytes) = (record.to.next(), record.blocks.len() as u64);
        let base = format!("base of {floor}");
        match store.trim(key, Trim { expect, from, floor, bytes, base: &base }).await {
            Ok(trimmed) => assert_eq!(trimmed, Trimmed::Done),
            Err(_) => return,
        }
        (expect.n, from) = (expect.n + 1, floor);
        done(floor);
    }
}

/// A session is whole from its floor on, which lies at `acknowledged` or beyond, and its base is the one of that floor.
pub async fn is_whole<S: Store>(store: &S, key: &SessionKey, acknowledged: Seq) {
    let head = head(store, key).await;
    assert!(head.floor >= acknowledged, "the floor was at {acknowledged}: {head:?}");
    let base =
        (head.floor > Seq(1)).then(|| Base { floor: head.floor, text: format!("base of {}", head.floor) });
    assert_eq!(store.base(key).await, Ok(base));
    let records = read_all(store, key, Seq(0), ALL).await;
    assert_eq!(records.first().map(|record| record.from), (head.floor <= head.seq).then_some(head.floor));
    assert_eq!(records.last().map_or(Seq(head.floor.0 - 1), |record| record.to), head.seq);
    let folded = records.iter().filter(|record| record.to <= head.folded_to);
    assert_eq!(head.folded_bytes, folded.map(|record| record.blocks.len() as u64).sum::<u64>());
}

async fn fold_to<S: Store>(store: &S, key: &SessionKey, to: u64) {
    let (epoch, records) = folded(store, key, Seq(to), SMALL).await;
    assert_eq!(store.fold(key, Fold { epoch, records: &records }).await, Ok(Folded::Done));
}

/// What drops everything before `floor`.
async fn trim_to<S: Store>(store: &S, key: &SessionKey, floor: u64) -> Result<Trimmed, Error> {
    let base = format!("base of {floor}");
    let trim = trim_at(store, key, floor, &base).await;
    store.trim(key, trim).await
}

async fn trim_at<'a, S: Store>(store: &S, key: &SessionKey, floor: u64, base: &'a str) -> Trim<'a> {
    let head = head(store, key).await;
    let records = read_all(store, key, Seq(head.floor.0 - 1), ALL).await;
    let dropped = records.iter().filter(|record| record.to.0 < floor);
    let bytes = dropped.map(|record| record.blocks.len() as u64).sum();
    Trim { expect: head.version, from: head.floor, floor: Seq(floor), bytes, base }
}

pub async fn a_trim_drops_what_is_before_the_floor_and_keeps_the_base<S: Store>(store: &S) {
    let key = folded_log(store, 21, 15).await;
    let whole = read_all(store, &key, Seq(0), ALL).await;
    assert_eq!(store.base(&key).await, Ok(None));
    for floor in [4, 10, 16] {
        let before = head(store, &key).await;
        assert_eq!(trim_to(store, &key, floor).await, Ok(Trimmed::Done));
        let after = head(store, &key).await;
        assert_eq!((after.floor, after.version.n), (Seq(floor), before.version.n + 1));
        assert_eq!((after.seq, after.folded_to, after.since), (before.seq, before.folded_to, before.since));
        let base = Base { floor: Seq(floor), text: format!("base of {floor}") };
        assert_eq!(store.base(&key).await, Ok(Some(base)));
        let kept: Vec<_> = whole.iter().filter(|record| record.from.0 >= floor).cloned().collect();
        for after in [0, 1, floor - 2, floor - 1] {
            for bytes_max in [1, ALL] {
                assert_eq!(read_all(store, &key, Seq(after), bytes_max).await, kept, "after {after}");
            }
        }
        assert_eq!(store.read(&key, Seq(0), 1).await.unwrap().head, after);
        let renewal = Renewal { key: key.clone(), runs: Vec::new(), left_ms: 1 };
        assert_eq!(store.renew(&[renewal]).await.unwrap(), [Some(after)]);
    }
    // Nothing is folded any more, and the log goes on.
    assert_eq!(head(store, &key).await.folded_bytes, 0);
    assert_eq!(store.write(&key, one()).await.unwrap().to, Seq(22));
    fold_to(store, &key, 22).await;
    assert_eq!(trim_to(store, &key, 23).await, Ok(Trimmed::Done));
    let page = store.read(&key, Seq(0), ALL).await.unwrap();
    assert_eq!((page.records.as_slice(), page.head.floor, page.head.seq), (&[][..], Seq(23), Seq(22)));
    assert_eq!(store.write(&key, one()).await.unwrap().to, Seq(23));
    assert_eq!(read_all(store, &key, Seq(0), ALL).await.len(), 1);
}

pub async fn heads_tell_how_many_bytes_are_folded<S: Store>(store: &S) {
    let key = folded_log(store, 31, 11).await;
    let bytes = async |from: u64, to: u64| -> u64 {
        let all = read_all(store, &key, Seq(0), ALL).await;
        let these = all.iter().filter(|record| record.from.0 >= from && record.to.0 <= to);
        these.map(|record| record.blocks.len() as u64).sum()
    };
    assert_eq!(head(store, &key).await.folded_bytes, bytes(1, 11).await);
    fold_to(store, &key, 25).await;
    assert_eq!(head(store, &key).await.folded_bytes, bytes(1, 25).await);
    assert_eq!(trim_to(store, &key, 12).await, Ok(Trimmed::Done));
    assert_eq!(head(store, &key).await.folded_bytes, bytes(12, 25).await);
}

pub async fn a_trim_that_does_not_fit_is_refused_and_changes_nothing<S: Store>(store: &S) {
    let key = folded_log(store, 21, 15).await;
    assert_eq!(trim_to(store, &key, 4).await, Ok(Trimmed::Done));
    let before = (head(store, &key).await, read_all(store, &key, Seq(0), ALL).await);
    let version = before.0.version;
    let trim = |expect, from: u64, floor: u64| Trim {
        expect,
        from: Seq(from),
        floor: Seq(floor),
        bytes: 1,
        base: "not kept",
    };
    let trimming = async |trim| store.trim(&key, trim).await;
    assert_eq!(trimming(trim(version, 1, 6)).await, Ok(Trimmed::Elsewhere { floor: Seq(4) }));
    assert_eq!(trimming(trim(super::stale().unwrap(), 4, 6)).await, Ok(Trimmed::Moved { version }));
    // Blocks have two entries each: one ends at 5, and nothing folded ends at 6, at 17, or beyond the head.
    for floor in [7, 18, 22, 99] {
        assert_eq!(trimming(trim(version, 4, floor)).await, Ok(Trimmed::NoSuchRecord), "{floor}");
    }
    assert!(matches!(trimming(trim(version, 4, 4)).await, Err(Error::Corrupt(_))));
    assert_eq!(store.trim(&fresh(), trim(version, 1, 6)).await, Err(Refusal::NoSession.into()));
    assert_eq!(store.base(&fresh()).await, Ok(None));
    assert_eq!((head(store, &key).await, read_all(store, &key, Seq(0), ALL).await), before);
    assert_eq!(store.base(&key).await.unwrap().unwrap().text, "base of 4");
}

pub async fn a_decision_and_a_trim_do_not_miss_each_other<S: Store>(store: &S) {
    let key = folded_log(store, 21, 15).await;
    let version = head(store, &key).await.version;
    let decided = Write { change: Some(change(Some(version), "s1")), ..one() };
    assert_eq!(trim_to(store, &key, 6).await, Ok(Trimmed::Done));
    assert!(matches!(store.write(&key, decided).await, Err(Error::Refused(Refusal::Conflict { .. }))));
    let loaded = store.load(&key).await.unwrap().unwrap();
    let decided = Write { change: Some(change(Some(loaded.version), "s1")), ..one() };
    let written = store.write(&key, decided).await.unwrap();
    let trim = Trim { expect: loaded.version, from: Seq(6), floor: Seq(8), bytes: 0, base: "" };
    assert_eq!(store.trim(&key, trim).await, Ok(Trimmed::Moved { version: written.version }));
    // A token is no decision.
    let by = run("r1");
    store.write(&key, Write { run: Some(&by), ..one() }).await.unwrap();
    assert_eq!(trim_to(store, &key, 8).await, Ok(Trimmed::Done));
}

pub async fn nothing_is_left_of_a_base_when_its_session_is_deleted<S: Store>(store: &S) {
    let key = folded_log(store, 21, 15).await;
    assert_eq!(trim_to(store, &key, 10).await, Ok(Trimmed::Done));
    assert!(store.delete(&key).await.unwrap().is_some());
    assert_eq!(store.base(&key).await, Ok(None));
    store.write(&key, Write { change: Some(change(None, "anew")), ..one() }).await.unwrap();
    let head = head(store, &key).await;
    assert_eq!((store.base(&key).await, head.floor, head.folded_bytes), (Ok(None), Seq(1), 0));
}

pub async fn of_many_trimmers_at_once_exactly_one_wins<S: Store>(store: &S) {
    let key = folded_log(store, 43, 41).await;
    for floor in [6, 20, 42] {
        // All have read the same: who reads in the middle of others may find a page short and the next one behind the floor.
        let trim = trim_at(store, &key, floor, "b").await;
        let results = join_all((0..16).map(|_| store.trim(&key, trim))).await;
        let done = results.iter().filter(|result| **result == Ok(Trimmed::Done)).count();
        assert_eq!(done, 1, "{results:?}");
        assert_eq!(head(store, &key).await.floor, Seq(floor));
    }
}

pub async fn readers_and_trimmers_do_not_get_in_each_others_way<S: Store>(store: &S) {
    let key = folded_log(store, 201, 181).await;
    let trimming = async {
        for floor in (4..=182).step_by(2) {
            assert_eq!(trim_to(store, &key, floor).await, Ok(Trimmed::Done));
        }
    };
    let reading = async |bytes_max: usize| {
        let mut floor = Seq(1);
        while floor < Seq(182) {
            let mut next = Seq(1);
            loop {
                let page = store.read(&key, Seq(next.0 - 1), bytes_max).await.unwrap();
                floor = page.head.floor;
                let Some(first) = page.records.first() else { break };
                assert_eq!(first.from, next.max(floor));
                for pair in page.records.windows(2) {
                    assert_eq!(pair[0].to.next(), pair[1].from);
                }
                next = page.records.last().unwrap().to.next();
            }
            assert_eq!(next, Seq(202));
        }
    };
    tokio::join!(trimming, reading(1), reading(300), reading(ALL));
}
