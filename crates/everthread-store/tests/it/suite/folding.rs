//! Folds: the seam between folded and raw moves, and no reader can tell.

use super::{ALL, append, change, created, doubt, ear, fresh, granted, one, read_all, refused, run, texts};
use everthread_protocol::{Epoch, Record, Seq, SessionKey};
use everthread_session::fold::{Limits, fold};
use everthread_session::view::{Applied, View};
use everthread_store::{Error, Fold, Folded, Interest, Refusal, Renewal, Store, Write};
use futures_util::future::join_all;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Two agents write a message each, token by token, in turn.
pub struct Writers {
    run: &'static str,
    lengths: [usize; 2],
    tokens: usize,
}

impl Writers {
    pub async fn start<S: Store>(store: &S, key: &SessionKey) -> Self {
        for run in ["r1", "r2"] {
            let start = r#"[{"type":"message.start","message":"m","role":"assistant"},{"type":"part.start","message":"m","part":"p","kind":"text"}]"#;
            let run = super::run(run);
            store.write(key, Write { run: Some(&run), ..append(start, 2) }).await.unwrap();
        }
        Self { run: "r1", lengths: [0, 0], tokens: 0 }
    }

    /// One more token, of the other agent than the one before.
    pub async fn token<S: Store>(&mut self, store: &S, key: &SessionKey) -> Seq {
        let which = usize::from(self.run == "r2");
        let text = format!("wörd{} ", self.tokens);
        let entry = format!(
            r#"[{{"type":"part.append","message":"m","part":"p","offset":{},"text":"{text}"}}]"#,
            self.lengths[which]
        );
        let run = run(self.run);
        let written = store.write(key, Write { run: Some(&run), ..append(&entry, 1) }).await.unwrap();
        self.lengths[which] += text.len();
        self.tokens += 1;
        self.run = if which == 0 { "r2" } else { "r1" };
        written.to
    }
}

/// A session with so many tokens.
async fn streamed<S: Store>(store: &S, tokens: usize) -> (SessionKey, Writers) {
    let (key, _) = created(store).await;
    let mut writers = Writers::start(store, &key).await;
    for _ in 0..tokens {
        writers.token(store, &key).await;
    }
    (key, writers)
}

/// Applies everything after the view's own position, in pages.
pub async fn catch_up<S: Store>(store: &S, key: &SessionKey, view: &mut View, bytes_max: usize) {
    loop {
        let page = store.read(key, view.seq(), bytes_max).await.unwrap();
        for record in &page.records {
            let since = page.epochs.iter().find(|(epoch, _)| *epoch == record.epoch).unwrap().1;
            assert_eq!(view.apply(record, since).unwrap(), Applied::Yes, "a hole after {}", view.seq());
        }
        if page.records.is_empty() {
            return;
        }
    }
}

/// The session as a client sees it.
pub fn text(view: &View) -> String {
    serde_json::to_string(view).unwrap()
}

/// What is raw up to `to`, folded.
pub async fn folded<S: Store>(store: &S, key: &SessionKey, to: Seq, limits: Limits) -> (Epoch, Vec<Record>) {
    let head = store.heads(std::slice::from_ref(key)).await.unwrap()[0].unwrap();
    // One page: what a later one begins with may be folded by then.
    let mut raw = store.read(key, head.folded_to, ALL).await.unwrap().records;
    raw.retain(|record| record.to <= to);
    (head.epoch, fold(&raw, limits).unwrap())
}

async fn fold_to<S: Store>(store: &S, key: &SessionKey, to: Seq) -> Folded {
    let (epoch, records) = folded(store, key, to, Limits::default()).await;
    store.fold(key, Fold { epoch, records: &records }).await.unwrap()
}

pub async fn from_every_cursor_a_folded_log_reads_the_same<S: Store>(store: &S) {
    let (key, _) = streamed(store, 60).await;
    let raw = read_all(store, &key, Seq(0), ALL).await;
    let mut whole = View::new();
    let mut views = vec![whole.clone()];
    for record in &raw {
        whole.apply(record, Seq(1)).unwrap();
        views.push(whole.clone());
    }
    for to in [9, 10, 40, 55] {
        assert_eq!(fold_to(store, &key, Seq(to)).await, Folded::Done);
        for view in &views {
            for bytes_max in [1, 600, ALL] {
                let mut view = view.clone();
                catch_up(store, &key, &mut view, bytes_max).await;
                assert_eq!(text(&view), text(&whole));
            }
        }
    }
    let records = read_all(store, &key, Seq(0), ALL).await;
    assert_eq!(records.len(), 4 + 10, "four folded, and ten entries that are raw");
    assert_eq!(records[4..], raw[raw.len() - 10..]);
}

pub async fn a_fold_changes_nothing_but_the_seam<S: Store>(store: &S) {
    let (key, granted) = granted(store).await;
    for _ in 0..20 {
        store.write(&key, one()).await.unwrap();
    }
    let before = store.load(&key).await.unwrap().unwrap();
    assert_eq!(fold_to(store, &key, Seq(12)).await, Folded::Done);
    let after = store.load(&key).await.unwrap().unwrap();
    assert_eq!(everthread_store::Loaded { now: before.now, ..after }, before);
    let numbered = Write { producer: super::producer("put:ann:1", 1, 1), ..one() };
    let written = store.write(&key, numbered).await.unwrap();
    assert_eq!((written.to, written.version), (Seq(23), granted.version));
    assert_eq!(fold_to(store, &key, Seq(23)).await, Folded::Done);
    let again = store.write(&key, numbered).await.unwrap();
    assert_eq!((again.to, again.duplicate.map(|known| known.batch)), (Seq(23), Some(1)));
    let entries = texts(&read_all(store, &key, Seq(0), ALL).await);
    assert_eq!(entries.len(), 23);
}

pub async fn every_answer_tells_how_far_the_log_is_folded<S: Store>(store: &S) {
    let (key, first) = granted(store).await;
    assert_eq!(first.folded_to, Seq::ZERO);
    let numbered = Write { producer: super::producer("put:ann:1", 1, 1), ..one() };
    assert_eq!(store.write(&key, numbered).await.unwrap().folded_to, Seq::ZERO);
    assert_eq!(fold_to(store, &key, Seq(2)).await, Folded::Done);
    assert_eq!(store.write(&key, one()).await.unwrap().folded_to, Seq(2));
    assert_eq!(store.write(&key, numbered).await.unwrap().folded_to, Seq(2), "a duplicate");
    assert_eq!(store.read(&key, Seq(9), 0).await.unwrap().head.folded_to, Seq(2));
    assert_eq!(store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap().folded_to, Seq(2));
    let renewal = Renewal { key, runs: vec![(run("r1"), first.fence.unwrap())], left_ms: 1000 };
    assert_eq!(store.renew(&[renewal]).await.unwrap()[0].unwrap().folded_to, Seq(2));
}

pub async fn a_fold_that_does_not_fit_is_refused_and_changes_nothing<S: Store>(store: &S) {
    let (key, _) = streamed(store, 30).await;
    store.write(&key, append(r#"[{"type":"x-a"},{"type":"x-b"}]"#, 2)).await.unwrap();
    assert_eq!(fold_to(store, &key, Seq(10)).await, Folded::Done);
    let (epoch, records) = folded(store, &key, Seq(20), Limits::default()).await;
    let raw = read_all(store, &key, Seq(0), ALL).await;
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.from, record.to), (Seq(11), Seq(20)));
    let moved = |from: u64, to: u64| [Record { from: Seq(from), to: Seq(to), ..record.clone() }];
    let folding = async |epoch, records: &[Record]| store.fold(&key, Fold { epoch, records }).await;
    let elsewhere = Ok(Folded::Elsewhere { folded_to: Seq(10) });
    assert_eq!(folding(epoch, &moved(10, 20)).await, elsewhere);
    assert_eq!(folding(epoch, &moved(12, 20)).await, elsewhere);
    assert_eq!(folding(epoch, &moved(1, 20)).await, elsewhere);
    assert_eq!(folding(Epoch(epoch.0 + 1), &moved(11, 20)).await, Ok(Folded::NewEpoch { epoch }));
    // The last block has the seqs 36 and 37: a fold may not end inside it, nor beyond the head.
    assert_eq!(folding(epoch, &moved(11, 36)).await, Ok(Folded::NoSuchRecord));
    assert_eq!(folding(epoch, &moved(11, 38)).await, Ok(Folded::NoSuchRecord));
    assert!(matches!(folding(epoch, &[]).await, Err(Error::Corrupt(_))));
    let overlapping = [moved(11, 20), moved(20, 21)].concat();
    assert!(matches!(folding(epoch, &overlapping).await, Err(Error::Corrupt(_))));
    let nowhere = store.fold(&fresh(), Fold { epoch, records: &records }).await;
    assert_eq!(nowhere, Err(Refusal::NoSession.into()));
    assert_eq!(read_all(store, &key, Seq(0), ALL).await, raw);
    assert_eq!(folding(epoch, &records).await, Ok(Folded::Done));
    assert_eq!(folding(epoch, &records).await, Ok(Folded::Elsewhere { folded_to: Seq(20) }), "a repeat");
}

pub async fn of_many_folders_at_once_exactly_one_wins<S: Store>(store: &S) {
    let (key, _) = streamed(store, 40).await;
    for to in [15, 30, 45] {
        let (epoch, records) = folded(store, &key, Seq(to), Limits::default()).await;
        let all = (0..16).map(|_| store.fold(&key, Fold { epoch, records: &records }));
        let results: Vec<Folded> = join_all(all).await.into_iter().map(Result::unwrap).collect();
        let done = results.iter().filter(|result| **result == Folded::Done).count();
        assert_eq!(done, 1, "{results:?}");
        let to = records.last().unwrap().to;
        let others = results.iter().filter(|result| **result == Folded::Elsewhere { folded_to: to }).count();
        assert_eq!(others, 15, "{results:?}");
    }
}

pub async fn a_log_can_be_folded_to_its_head_and_goes_on<S: Store>(store: &S) {
    let (key, mut writers) = streamed(store, 20).await;
    assert_eq!(fold_to(store, &key, Seq(25)).await, Folded::Done);
    assert_eq!(store.read(&key, Seq(25), ALL).await.unwrap().records, []);
    assert_eq!(read_all(store, &key, Seq(24), ALL).await.len(), 1);
    assert_eq!(writers.token(store, &key).await, Seq(26));
    let records = read_all(store, &key, Seq(3), ALL).await;
    let spans: Vec<_> = records.iter().map(|record| (record.from.0, record.to.0)).collect();
    assert_eq!(spans, [(1, 25), (26, 26)]);
    // A session that exists is not made again.
    let anew = Write { change: Some(change(None, "s")), ..one() };
    assert_eq!(refused(store, &key, anew).await, Refusal::Exists);
}

pub async fn pages_of_a_folded_log_are_bounded_and_join_at_the_seam<S: Store>(store: &S) {
    let (key, _) = streamed(store, 300).await;
    let small = Limits { record_bytes: 900, text_bytes: 300 };
    for to in [100, 101, 240] {
        let (epoch, records) = folded(store, &key, Seq(to), small).await;
        assert_eq!(store.fold(&key, Fold { epoch, records: &records }).await, Ok(Folded::Done));
    }
    let whole = read_all(store, &key, Seq(0), ALL).await;
    assert!(whole.len() < 200, "{} records", whole.len());
    for bytes_max in [0, 1, 700, 5_000, 20_000] {
        assert_eq!(read_all(store, &key, Seq(0), bytes_max).await, whole, "pages of {bytes_max}");
        for after in [0, 99, 100, 170, 239, 240, 300] {
            let page = store.read(&key, Seq(after), bytes_max).await.unwrap();
            let bytes: usize = page.records.iter().map(|record| record.blocks.len()).sum();
            let last = page.records.last().unwrap().blocks.len();
            assert!(bytes - last <= bytes_max, "{bytes} bytes in a page of {bytes_max}");
            let first = &page.records[0];
            assert!(first.from.0 <= after + 1 && after < first.to.0, "{after}: {first:?}");
        }
    }
}

pub async fn a_follower_that_heard_nothing_finds_what_was_folded_meanwhile<S: Store>(store: &S) {
    let (key, mut writers) = streamed(store, 10).await;
    let (ear, mut heard) = ear();
    let following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    let mut view = View::new();
    catch_up(store, &key, &mut view, ALL).await;
    // Every wake-up from here on is lost.
    drop((following, heard));
    for _ in 0..50 {
        writers.token(store, &key).await;
    }
    assert_eq!(fold_to(store, &key, Seq(50)).await, Folded::Done);
    let mut fresh = View::new();
    catch_up(store, &key, &mut fresh, ALL).await;
    catch_up(store, &key, &mut view, 1).await;
    assert_eq!(text(&view), text(&fresh));
    assert_eq!(view.seq(), Seq(65));
}

pub async fn readers_appenders_and_folders_do_not_get_in_each_others_way<S: Store>(store: &S) {
    const TOKENS: usize = 400;
    let (key, mut writers) = streamed(store, 1).await;
    let (is_over, folds) = (AtomicBool::new(false), AtomicU64::new(0));
    let append = async {
        for _ in 0..TOKENS {
            writers.token(store, &key).await;
        }
        is_over.store(true, Ordering::SeqCst);
    };
    // Each keeps another number of entries raw, so that they often aim at the same ones.
    let folding = async |keep: u64, limits: Limits| {
        while !is_over.load(Ordering::SeqCst) {
            let head = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
            let (epoch, records) = folded(store, &key, Seq(head.seq.0.saturating_sub(keep)), limits).await;
            if !records.is_empty() {
                let result = store.fold(&key, Fold { epoch, records: &records }).await;
                // Where another was in between, the records do not begin at the seam any more, or end at none.
                assert!(!matches!(result, Ok(Folded::NewEpoch { .. }) | Err(_)), "{result:?}");
                folds.fetch_add(u64::from(result == Ok(Folded::Done)), Ordering::Relaxed);
            }
            tokio::task::yield_now().await;
        }
    };
    let follow = async |bytes_max: usize, from_start: bool| {
        let mut view = View::new();
        while !is_over.load(Ordering::SeqCst) {
            if from_start {
                view = View::new();
            }
            catch_up(store, &key, &mut view, bytes_max).await;
            tokio::task::yield_now().await;
        }
        catch_up(store, &key, &mut view, bytes_max).await;
        text(&view)
    };
    let small = Limits { record_bytes: 700, text_bytes: 200 };
    let readers = [follow(ALL, false), follow(300, false), follow(1, true), follow(2_000, true)];
    let ((), (), (), views) =
        tokio::join!(append, folding(3, small), folding(20, Limits::default()), join_all(readers));
    let mut view = View::new();
    catch_up(store, &key, &mut view, ALL).await;
    let whole = text(&view);
    assert!(views.iter().all(|view| *view == whole));
    assert_eq!(usize::try_from(view.seq().0).unwrap(), 5 + TOKENS + 1);
    assert!(folds.load(Ordering::Relaxed) > 3, "{folds:?} folds");
}
