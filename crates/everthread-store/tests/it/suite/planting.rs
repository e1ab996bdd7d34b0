//! Plants and stubs: a session is there whole, is a stub, or is not there.

use super::folding::{Writers, catch_up, text};
use super::{
    ALL, BY, append, change, created, doubt, ear, fresh, granted, next, one, producer, read_all, refused,
    run, texts,
};
use crate::suite::Heard;
use everthread_protocol::{Cursor, Epoch, Millis, Record, Seq, SessionKey, Version};
use everthread_session::fold::{Limits, fold};
use everthread_session::view::View;
use everthread_store::{
    Base, Change, Error, First, Fold, Head, Interest, Over, Plant, Planted, Refusal, Store, Stub, Stubbed,
    Trim, Write,
};
use futures_util::future::join_all;

const OBJECT: &str = "acme/s/3-x.jsonl";
const OWN: &str = r#"[{"type":"x-own"},{"type":"x-own"}]"#;

/// A session with so many tokens, in records as they are read.
async fn source<S: Store>(store: &S, tokens: usize) -> (SessionKey, Vec<Record>, Head) {
    let (key, _) = created(store).await;
    let mut writers = Writers::start(store, &key).await;
    for _ in 0..tokens {
        writers.token(store, &key).await;
    }
    (key.clone(), read_all(store, &key, Seq(0), ALL).await, head(store, &key).await.unwrap())
}

async fn head<S: Store>(store: &S, key: &SessionKey) -> Option<Head> {
    store.heads(std::slice::from_ref(key)).await.unwrap().pop().unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// What is planted where a test does not care for more than where, and up to which entry.
pub fn bare<'a>(over: Over<'a>, epochs: &'a [(Epoch, Seq)], head: Seq) -> Plant<'a> {
    Plant {
        over,
        epochs,
        head,
        changes: 0,
        fence_last: 0,
        floor: Seq(1),
        base: None,
        folded_bytes: 1,
        state: "s",
        next_due: None,
        first: None,
    }
}

fn plant<'a>(records: &[Record], epochs: &'a [(Epoch, Seq)]) -> Plant<'a> {
    Plant {
        over: Over::Nothing { gone: None },
        epochs,
        head: records.last().unwrap().to,
        changes: 7,
        fence_last: 0,
        floor: records[0].from,
        base: None,
        folded_bytes: records.iter().map(|record| record.blocks.len() as u64).sum(),
        state: "planted",
        next_due: None,
        first: Some(First { by: BY, entries: OWN, count: 2 }),
    }
}

async fn stub<S: Store>(store: &S, key: &SessionKey) -> Stubbed {
    let head = head(store, key).await.unwrap();
    let stub = Stub { expect: head.version, head: head.seq, object: OBJECT, state: "brief", at: Millis(5) };
    store.stub(key, stub).await.unwrap()
}

pub async fn what_was_staged_becomes_a_session_that_goes_on<S: Store>(store: &S) {
    let (source, records, from) = source(store, 30).await;
    let epochs = store.load(&source).await.unwrap().unwrap().epochs;
    let key = fresh();
    let (early, late) = records.split_at(records.len() / 2);
    store.stage(&key, "a", early).await.unwrap();
    store.stage(&key, "a", late).await.unwrap();
    // A repeat of what is there, as after an answer that was lost.
    store.stage(&key, "a", late).await.unwrap();
    assert_eq!(head(store, &key).await, None, "what is staged is no session");
    assert_eq!(store.load(&key).await.unwrap(), None);

    let planted = store.plant(&key, "a", plant(&records, &epochs)).await.unwrap();
    let Planted::Done { epoch, to, version } = planted else { panic!("{planted:?}") };
    assert!(epoch > from.epoch, "an epoch of its own begins");
    assert_eq!((to, version), (Seq(from.seq.0 + 2), Version { epoch, n: 7 }));
    let loaded = store.load(&key).await.unwrap().unwrap();
    assert_eq!((loaded.state.as_str(), loaded.version, loaded.head), ("planted", version, to));
    assert_eq!(loaded.epochs, [&epochs[..], &[(epoch, from.seq.next())]].concat());
    assert_eq!((loaded.fences, loaded.producers), (Vec::new(), Vec::new()));
    let now = head(store, &key).await.unwrap();
    assert_eq!((now.since, now.folded_to, now.active, now.archived), (from.seq.next(), from.seq, 0, false));

    // The records are those that were staged; what is its own is raw.
    let mut read = read_all(store, &key, Seq(0), ALL).await;
    let own = read.pop().unwrap();
    assert_eq!(read, records);
    assert_eq!((own.epoch, own.from, own.to), (epoch, from.seq.next(), to));
    assert_eq!(texts(&[own]).len(), 2);
    assert_eq!(read_all(store, &key, Seq(0), 1).await.len(), records.len() + 1);

    // It goes on like any other, and the source does so without it.
    let decided = Write { change: Some(change(Some(version), "next")), ..one() };
    let written = store.write(&key, decided).await.unwrap();
    assert_eq!((written.epoch, written.to, written.version.n), (epoch, to.next(), 8));
    assert_eq!(store.write(&source, one()).await.unwrap().to, from.seq.next());
    let mut view = View::new();
    catch_up(store, &key, &mut view, 500).await;
    assert_eq!(view.seq(), written.to);
}

pub async fn a_planted_session_can_be_folded_and_acknowledged<S: Store>(store: &S) {
    let (_, records, _) = source(store, 10).await;
    let key = fresh();
    store.stage(&key, "a", &records).await.unwrap();
    store.plant(&key, "a", plant(&records, &[(Epoch(1), Seq(1))])).await.unwrap();
    let head = head(store, &key).await.unwrap();
    let cursor = Cursor { epoch: head.epoch, seq: head.seq };
    let device = "phone".parse().unwrap();
    assert_eq!(store.ack(&key, &device, cursor).await.unwrap(), Some(cursor));
    // A cursor of the log that it was made from is good up to where it was made.
    let before = Cursor { epoch: Epoch(1), seq: Seq(3) };
    let other = "tablet".parse().unwrap();
    assert_eq!(store.ack(&key, &other, before).await.unwrap(), Some(before));
    let beyond = Cursor { epoch: Epoch(1), seq: head.seq };
    assert_eq!(store.ack(&key, &other, beyond).await.unwrap(), None);
    let raw = read_all(store, &key, head.folded_to, ALL).await;
    let folded = fold(&raw, Limits::default()).unwrap();
    let done = store.fold(&key, Fold { epoch: head.epoch, records: &folded }).await.unwrap();
    assert_eq!(done, everthread_store::Folded::Done);
    assert_eq!(read_all(store, &key, Seq(0), ALL).await.last().unwrap().to, head.seq);
    assert_eq!(store.write(&key, one()).await.unwrap().to, head.seq.next());
}

pub async fn a_plant_without_all_that_it_needs_makes_nothing<S: Store>(store: &S) {
    let (_, records, _) = source(store, 10).await;
    let (key, epochs) = (fresh(), [(Epoch(1), Seq(1))]);
    let whole = plant(&records, &epochs);
    assert_eq!(refusal(store.plant(&key, "a", whole).await), Refusal::NotStaged);
    let last = records.len() - 1;
    // Without the end, without the beginning, under another name.
    store.stage(&key, "a", &records[..last]).await.unwrap();
    assert_eq!(refusal(store.plant(&key, "a", whole).await), Refusal::NotStaged);
    store.stage(&key, "a", &records[1..]).await.unwrap();
    assert_eq!(refusal(store.plant(&key, "a", whole).await), Refusal::NotStaged);
    store.stage(&key, "b", &records).await.unwrap();
    assert_eq!(refusal(store.plant(&key, "a", whole).await), Refusal::NotStaged);
    // A hole.
    store.stage(&key, "c", &records[..2]).await.unwrap();
    assert_eq!(refusal(store.stage(&key, "c", &records[3..]).await), Refusal::NotStaged);
    assert!(matches!(
        store.stage(&key, "d", &[records[3].clone(), records[1].clone()]).await,
        Err(Error::Corrupt(_))
    ));
    assert_eq!(head(store, &key).await, None);
    // What is refused is gone; what was staged under another name is not.
    assert!(matches!(store.plant(&key, "b", whole).await, Ok(Planted::Done { .. })));
    assert_eq!(
        refused(store, &key, Write { change: Some(change(None, "s")), ..one() }).await,
        Refusal::Exists
    );
}

pub async fn of_many_plants_at_once_exactly_one_wins<S: Store>(store: &S) {
    let (_, records, _) = source(store, 10).await;
    let (key, epochs) = (fresh(), [(Epoch(1), Seq(1))]);
    let planting = (0..8).map(|n| {
        let (name, key, records, whole) = (format!("n{n}"), &key, &records, plant(&records, &epochs));
        async move {
            store.stage(key, &name, records).await.unwrap();
            store.plant(key, &name, whole).await.unwrap()
        }
    });
    let planted = join_all(planting).await;
    let done = planted.iter().filter(|planted| **planted != Planted::Elsewhere).count();
    assert_eq!(done, 1, "{planted:?}");
    let read = read_all(store, &key, Seq(0), ALL).await;
    assert_eq!(read.len(), records.len() + 1);
    // Nothing is planted over a session.
    store.stage(&key, "late", &records).await.unwrap();
    assert_eq!(store.plant(&key, "late", plant(&records, &epochs)).await.unwrap(), Planted::Elsewhere);
    let over = Plant { over: Over::Stub { object: OBJECT }, ..plant(&records, &epochs) };
    store.stage(&key, "late", &records).await.unwrap();
    assert_eq!(store.plant(&key, "late", over).await.unwrap(), Planted::Elsewhere);
    assert_eq!(read_all(store, &key, Seq(0), ALL).await, read);
}

pub async fn a_stub_refuses_what_needs_log_or_state<S: Store>(store: &S) {
    let (key, records, before) = source(store, 10).await;
    let device = "phone".parse().unwrap();
    let cursor = Cursor { epoch: before.epoch, seq: Seq(3) };
    store.ack(&key, &device, cursor).await.unwrap();
    let version = before.version;
    assert_eq!(stub(store, &key).await, Stubbed::Done);

    assert_eq!(refusal(store.load(&key).await), Refusal::Archived);
    assert_eq!(refusal(store.read(&key, Seq(0), ALL).await), Refusal::Archived);
    assert_eq!(refusal(store.read(&key, before.seq, ALL).await), Refusal::Archived);
    assert_eq!(refused(store, &key, one()).await, Refusal::Archived);
    let decided = Write { change: Some(change(Some(version), "s")), ..one() };
    assert_eq!(refused(store, &key, decided).await, Refusal::Archived);
    let folded = fold(&records, Limits::default()).unwrap();
    let folding = store.fold(&key, Fold { epoch: before.epoch, records: &folded }).await;
    assert_eq!(refusal(folding), Refusal::Archived);
    assert_eq!(refusal(store.base(&key).await), Refusal::Archived);
    let trim = Trim { expect: version, from: Seq(1), floor: Seq(2), bytes: 0, base: "b" };
    assert_eq!(refusal(store.trim(&key, trim).await), Refusal::Archived);
    // One that exists is not made anew.
    let anew = Write { change: Some(change(None, "s")), ..one() };
    assert_eq!(refused(store, &key, anew).await, Refusal::Exists);
    assert_eq!(stub(store, &key).await, Stubbed::Elsewhere, "it is one already");

    // Where it stood, and where everybody stood in it, is still known.
    let after = head(store, &key).await.unwrap();
    assert_eq!(after, Head { archived: true, ..before });
    let nobody = fresh();
    let (whole, _) = created(store).await;
    let stubs = store.stubbed(&[nobody, key.clone(), whole]).await.unwrap();
    let [None, Some(info), None] = &stubs[..] else { panic!("{stubs:?}") };
    assert_eq!((info.object.as_str(), info.at, info.head), (OBJECT, Millis(5), after));
    let further = Cursor { epoch: before.epoch, seq: Seq(5) };
    assert_eq!(store.ack(&key, &device, further).await.unwrap(), Some(further));
    let end = Cursor { epoch: before.epoch, seq: before.seq };
    assert_eq!(store.ack(&key, &"new".parse().unwrap(), end).await.unwrap(), Some(end));
    assert_eq!(store.devices(&key).await.unwrap().len(), 2);
    assert!(store.forget_device(&key, &"new".parse().unwrap()).await.unwrap());
}

pub async fn a_session_that_has_changed_is_not_made_a_stub<S: Store>(store: &S) {
    let (key, first) = granted(store).await;
    let at = |expect, head| Stub { expect, head, object: OBJECT, state: "brief", at: Millis(5) };
    let stub = async |expect, head| store.stub(&key, at(expect, head)).await.unwrap();
    assert_eq!(stub(first.version, first.to).await, Stubbed::Elsewhere, "a worker holds a run");
    let r1 = [run("r1")];
    let over = Change { revoke: &r1, ..change(Some(first.version), "s2") };
    let ended = store.write(&key, Write { change: Some(over), ..one() }).await.unwrap();
    assert_eq!(stub(first.version, ended.to).await, Stubbed::Elsewhere, "it was decided about");
    assert_eq!(stub(ended.version, first.to).await, Stubbed::Elsewhere, "it was written to");
    assert_eq!(store.load(&key).await.unwrap().unwrap().state, "s2");
    let nobody = store.stub(&fresh(), at(ended.version, ended.to)).await;
    assert_eq!(refusal(nobody), Refusal::NoSession);
    assert_eq!(stub(ended.version, ended.to).await, Stubbed::Done);
}

pub async fn a_session_that_comes_back_is_as_it_was<S: Store>(store: &S) {
    let (key, _, _) = source(store, 20).await;
    let numbered = Write { producer: producer("put:ann:1", 1, 1), ..one() };
    let answered = store.write(&key, numbered).await.unwrap();
    let before = store.load(&key).await.unwrap().unwrap();
    let records = fold(&read_all(store, &key, Seq(0), ALL).await, Limits::default()).unwrap();
    let mut view = View::new();
    catch_up(store, &key, &mut view, ALL).await;
    assert_eq!(stub(store, &key).await, Stubbed::Done);

    let back = |object| Plant {
        over: Over::Stub { object },
        fence_last: 9,
        state: &before.state,
        first: None,
        ..plant(&records, &before.epochs)
    };
    store.stage(&key, "a", &records).await.unwrap();
    assert_eq!(store.plant(&key, "a", back("another")).await.unwrap(), Planted::Elsewhere);
    assert!(head(store, &key).await.unwrap().archived);
    store.stage(&key, "a", &records).await.unwrap();
    let planted = store.plant(&key, "a", back(OBJECT)).await.unwrap();
    let version = Version { n: before.version.n + 1, ..before.version };
    assert_eq!(planted, Planted::Done { epoch: before.version.epoch, to: before.head, version });

    let after = store.load(&key).await.unwrap().unwrap();
    assert_eq!(after, everthread_store::Loaded { version, now: after.now, ..before.clone() });
    assert_eq!(read_all(store, &key, Seq(0), ALL).await, records);
    let mut again = View::new();
    catch_up(store, &key, &mut again, ALL).await;
    assert_eq!(text(&again), text(&view));
    // Whoever read it before cannot take it away.
    let old = Stub { expect: before.version, head: before.head, object: "o", state: "", at: Millis(1) };
    assert_eq!(store.stub(&key, old).await.unwrap(), Stubbed::Elsewhere);
    // A repeat from before is still known as one, and the log goes on in its epoch.
    let repeat = store.write(&key, numbered).await.unwrap();
    assert_eq!((repeat.to, repeat.duplicate.map(|first| first.batch)), (answered.to, Some(1)));
    let on = store.write(&key, one()).await.unwrap();
    assert_eq!((on.epoch, on.to), (before.version.epoch, before.head.next()));
    // And a second time, as the next one.
    assert_eq!(stub(store, &key).await, Stubbed::Done);
    let records =
        [records, vec![Record { epoch: on.epoch, from: on.to, to: on.to, blocks: "[]".into() }]].concat();
    store.stage(&key, "a", &records).await.unwrap();
    let second =
        Plant { over: Over::Stub { object: OBJECT }, first: None, ..plant(&records, &before.epochs) };
    let Planted::Done { version, .. } = store.plant(&key, "a", second).await.unwrap() else { panic!() };
    assert_eq!(version.n, before.version.n + 2);
    let fenced = Change { grant: Some(&run("r9")), ..change(Some(version), "s") };
    assert!(store.write(&key, Write { change: Some(fenced), ..one() }).await.unwrap().fence.is_some());
}

pub async fn a_floor_and_its_base_go_and_come_with_the_session<S: Store>(store: &S) {
    let (_, records, _) = source(store, 10).await;
    let key = fresh();
    let kept = &records[4..];
    let floor = kept[0].from;
    let based = Plant { base: Some("base"), ..plant(kept, &[(Epoch(1), Seq(1))]) };
    store.stage(&key, "a", kept).await.unwrap();
    assert!(matches!(store.plant(&key, "a", based).await, Ok(Planted::Done { .. })));
    let base = Base { floor, text: "base".to_owned() };
    assert_eq!(store.base(&key).await, Ok(Some(base.clone())));
    let before = head(store, &key).await.unwrap();
    assert_eq!((before.floor, before.folded_bytes), (floor, based.folded_bytes));
    let whole = read_all(store, &key, Seq(0), ALL).await;
    assert_eq!(whole[..kept.len()], *kept, "a page from before the floor begins there");
    let folded = fold(&whole, Limits::default()).unwrap();
    assert_eq!(stub(store, &key).await, Stubbed::Done);
    let over = Over::Stub { object: OBJECT };
    // One that lost its base on the way has none, and one that got another has that.
    for base in [None, Some(base)] {
        store.stage(&key, "a", &folded).await.unwrap();
        let text = base.as_ref().map(|base| base.text.as_str());
        let back = Plant { over, base: text, first: None, ..plant(&folded, &[]) };
        assert!(matches!(store.plant(&key, "a", back).await, Ok(Planted::Done { .. })));
        assert_eq!(store.base(&key).await, Ok(base));
        assert_eq!(stub(store, &key).await, Stubbed::Done);
    }
}

pub async fn readers_of_a_session_that_goes_and_comes_find_it_whole<S: Store>(store: &S) {
    let (key, _, from) = source(store, 40).await;
    let records =
        fold(&read_all(store, &key, Seq(0), ALL).await, Limits { record_bytes: 600, text_bytes: 99 })
            .unwrap();
    let mut view = View::new();
    catch_up(store, &key, &mut view, ALL).await;
    let whole = text(&view);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let cycling = async {
        for n in 0..20 {
            let head = head(store, &key).await.unwrap();
            let object = format!("o{n}");
            let stub =
                Stub { expect: head.version, head: head.seq, object: &object, state: "", at: Millis(1) };
            assert_eq!(store.stub(&key, stub).await.unwrap(), Stubbed::Done);
            store.stage(&key, "a", &records).await.unwrap();
            let over = Over::Stub { object: &object };
            let planted = store.plant(&key, "a", Plant { over, first: None, ..plant(&records, &[]) }).await;
            assert!(matches!(planted, Ok(Planted::Done { .. })), "{planted:?}");
        }
        is_over.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let reading = async |bytes_max: usize| {
        let mut found = 0;
        while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
            let mut view = View::new();
            loop {
                match store.read(&key, view.seq(), bytes_max).await {
                    Ok(page) if page.records.is_empty() => break,
                    Ok(page) => {
                        for record in &page.records {
                            view.apply(record, Seq(1)).unwrap();
                        }
                    }
                    Err(Error::Refused(Refusal::Archived)) => tokio::task::yield_now().await,
                    Err(other) => panic!("{other:?}"),
                }
            }
            assert_eq!((view.seq(), text(&view)), (from.seq, whole.clone()));
            found += 1;
        }
        found
    };
    let ((), a, b) = tokio::join!(cycling, reading(ALL), reading(700));
    assert!(a + b > 0);
}

pub async fn followers_hear_of_a_plant<S: Store>(store: &S) {
    let (_, records, _) = source(store, 5).await;
    let key = fresh();
    let (log, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, log);
    doubt(&mut heard).await;
    let (control, mut changes) = ear();
    let _control = store.follow(&key, Interest::Control, control);
    doubt(&mut changes).await;
    store.stage(&key, "a", &records).await.unwrap();
    store.plant(&key, "a", plant(&records, &[(Epoch(1), Seq(1))])).await.unwrap();
    let Heard::Record(record) = next(&mut heard).await else { panic!() };
    assert_eq!(record.from, records.last().unwrap().to.next());
    assert!(matches!(next(&mut changes).await, Heard::Changed));
    assert_eq!(store.write(&key, append(OWN, 2)).await.unwrap().to.0, record.to.0 + 2);
}

pub async fn a_session_of_which_nothing_is_left_but_its_end_can_be_planted<S: Store>(store: &S) {
    let (key, epochs) = (fresh(), [(Epoch(3), Seq(1))]);
    let empty = Plant {
        over: Over::Nothing { gone: None },
        epochs: &epochs,
        head: Seq(40),
        changes: 4,
        fence_last: 0,
        floor: Seq(41),
        base: Some("{}"),
        folded_bytes: 0,
        state: "s",
        next_due: None,
        first: None,
    };
    let planted = store.plant(&key, "a", empty).await.unwrap();
    let version = Version { epoch: Epoch(3), n: 4 };
    assert_eq!(planted, Planted::Done { epoch: Epoch(3), to: Seq(40), version });
    let now = head(store, &key).await.unwrap();
    assert_eq!((now.folded_to, now.floor, now.folded_bytes), (Seq(40), Seq(41), 0));
    let base = Base { floor: Seq(41), text: "{}".to_owned() };
    assert_eq!(store.base(&key).await, Ok(Some(base)));
    // Without entries of its own, its first write begins an epoch.
    let written = store.write(&key, one()).await.unwrap();
    assert!(written.epoch > Epoch(3));
    assert_eq!(written.to, Seq(41));
    assert_eq!(read_all(store, &key, Seq(40), ALL).await.len(), 1);
    for bad in [
        Plant { floor: Seq(42), ..empty },
        Plant { floor: Seq(0), ..empty },
        Plant { epochs: &[], ..empty },
        Plant { first: Some(First { by: BY, entries: "[]", count: 0 }), ..empty },
    ] {
        assert!(matches!(store.plant(&fresh(), "a", bad).await, Err(Error::Corrupt(_))), "{bad:?}");
    }
}

pub async fn a_session_that_was_deleted_can_be_planted_anew<S: Store>(store: &S) {
    let (_, records, _) = source(store, 5).await;
    let (key, granted) = granted(store).await;
    let deleted = store.delete(&key).await.unwrap().unwrap();
    store.stage(&key, "a", &records).await.unwrap();
    let over = Over::Nothing { gone: store.gone(&key).await.unwrap() };
    let epochs = [(Epoch(1), Seq(1))];
    let planted = store.plant(&key, "a", Plant { over, ..plant(&records, &epochs) }).await.unwrap();
    let Planted::Done { epoch, version, .. } = planted else { panic!("{planted:?}") };
    assert!(epoch > deleted.epoch, "{epoch} after {}", deleted.epoch);
    // Nor do fences repeat.
    let fenced = Change { grant: Some(&run("r1")), ..change(Some(version), "s") };
    let again = store.write(&key, Write { change: Some(fenced), ..one() }).await.unwrap();
    assert!(again.fence > granted.fence, "{again:?}");
    assert!(store.delete(&key).await.unwrap().is_some());
    assert_eq!(head(store, &key).await, None);
}

pub async fn a_stub_is_listed_and_deleted_like_a_session<S: Store>(store: &S) {
    let (key, records, before) = source(store, 5).await;
    assert_eq!(stub(store, &key).await, Stubbed::Done);
    let listed = store.states(std::slice::from_ref(&key)).await.unwrap().pop().unwrap().unwrap();
    assert_eq!((listed.head, listed.state.as_str()), (Head { archived: true, ..before }, "brief"));
    assert_eq!(listed.epochs, [(before.epoch, Seq(1))]);
    let deleted = store.delete(&key).await.unwrap().unwrap();
    assert_eq!((deleted.epoch, deleted.head), (before.epoch, before.seq));
    assert_eq!(store.stubbed(std::slice::from_ref(&key)).await.unwrap(), [None]);
    // Who was about to bring it back brings nothing back.
    store.stage(&key, "a", &records).await.unwrap();
    let back = Plant { over: Over::Stub { object: OBJECT }, first: None, ..plant(&records, &[]) };
    assert_eq!(store.plant(&key, "a", back).await.unwrap(), Planted::Elsewhere);
    let anew = Write { change: Some(change(None, "s")), ..one() };
    assert!(store.write(&key, anew).await.unwrap().epoch > before.epoch);
}

pub async fn a_deletion_since_the_planter_began_is_final<S: Store>(store: &S) {
    let (_, records, _) = source(store, 5).await;
    let (key, epochs) = (fresh(), [(Epoch(1), Seq(1))]);
    let begun = async || Plant {
        over: Over::Nothing { gone: store.gone(&key).await.unwrap() },
        ..plant(&records, &epochs)
    };
    let slow = begun().await;
    assert_eq!(slow.over, Over::Nothing { gone: None });
    for round in 0..2 {
        store.stage(&key, "slow", &records).await.unwrap();
        store.stage(&key, "quick", &records).await.unwrap();
        let quick = store.plant(&key, "quick", begun().await).await.unwrap();
        assert!(matches!(quick, Planted::Done { .. }), "{round}: {quick:?}");
        assert_eq!(store.gone(&key).await, Ok(None), "a session that is there is not gone");
        let deleted = store.delete(&key).await.unwrap().unwrap();
        assert_eq!(store.gone(&key).await, Ok(Some(deleted.epoch)));
        // Deleting what is deleted is no new deletion.
        store.delete(&key).await.unwrap();
        assert_eq!(store.gone(&key).await, Ok(Some(deleted.epoch)));
        assert_eq!(store.plant(&key, "slow", slow).await, Ok(Planted::Elsewhere), "{round}");
        assert_eq!(head(store, &key).await, None);
        assert_eq!(refusal(store.plant(&key, "slow", begun().await).await), Refusal::NotStaged, "it is gone");
    }
    // Nor does a planter that began after the first deletion undo the second.
    let late = begun().await;
    store.write(&key, Write { change: Some(change(None, "s")), ..one() }).await.unwrap();
    assert_eq!(store.gone(&key).await, Ok(None));
    store.delete(&key).await.unwrap();
    store.stage(&key, "late", &records).await.unwrap();
    assert_eq!(store.plant(&key, "late", late).await, Ok(Planted::Elsewhere));
    store.stage(&key, "late", &records).await.unwrap();
    let planted = store.plant(&key, "late", begun().await).await;
    assert!(matches!(planted, Ok(Planted::Done { .. })), "who asks for it after that gets it: {planted:?}");
}

pub async fn who_goes_on_with_a_staging_that_is_forgotten_learns_it_from_the_plant<S: Store>(store: &S) {
    let (_, records, _) = source(store, 10).await;
    let (key, epochs) = (fresh(), [(Epoch(1), Seq(1))]);
    let (early, late) = records.split_at(records.len() / 2);
    store.stage(&key, "a", early).await.unwrap();
    // So it is forgotten, as it is in time.
    assert_eq!(refusal(store.plant(&key, "a", plant(&records, &epochs)).await), Refusal::NotStaged);
    assert_eq!(store.stage(&key, "a", late).await, Ok(()));
    assert_eq!(refusal(store.plant(&key, "a", plant(&records, &epochs)).await), Refusal::NotStaged);
    assert_eq!(head(store, &key).await, None);
}
