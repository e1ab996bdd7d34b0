//! The law: what a session looks like is the same for every way of cutting and folding its log, and from every cursor.

use crate::log::{Log, Step, make, steps};
use everthread_protocol::{Millis, Record, Seq};
use everthread_session::fold::{Limits, fold};
use everthread_session::view::{Applied, View};
use proptest::prelude::*;
use serde_json::{Value, json};

fn json_of(view: &View) -> Value {
    serde_json::to_value(view).unwrap()
}

/// Applies what ends after the view's seq, as a server sends it to a cursor.
fn follow(view: &mut View, log: &Log, records: &[Record]) {
    let cursor = view.seq();
    for record in records.iter().filter(|record| record.to > cursor) {
        assert_eq!(view.apply(record, log.since(record.epoch)).unwrap(), Applied::Yes);
    }
}

/// A fold of a stretch of the log, in 256ths of its length, and how far it may go.
type Fold = (u8, u8, u8);

fn folds() -> impl Strategy<Value = Vec<Fold>> {
    prop::collection::vec((any::<u8>(), any::<u8>(), 0u8..3), 1..5)
}

fn refold(records: Vec<Record>, (a, b, size): Fold) -> Vec<Record> {
    let place = |x: u8| usize::from(x) * records.len() / 255;
    let range = place(a.min(b))..place(a.max(b));
    let limits = match size {
        0 => Limits::default(),
        1 => Limits { record_bytes: 700, text_bytes: 30 },
        _ => Limits { record_bytes: 2000, text_bytes: 9 },
    };
    let mut out = records[..range.start].to_vec();
    out.extend(fold(&records[range.clone()], limits).unwrap());
    out.extend_from_slice(&records[range.end..]);
    out
}

fn covers(records: &[Record], raw: &[Record]) {
    assert_eq!(records.first().map(|r| r.from), raw.first().map(|r| r.from));
    assert_eq!(records.last().map(|r| r.to), raw.last().map(|r| r.to));
    assert!(records.windows(2).all(|pair| pair[0].to.next() == pair[1].from), "{records:?}");
}

/// What is left of `all` when only what `part` carried at `cut`, or what came later, is kept.
fn restricted(all: &Value, part: &Value, cut: u64) -> Value {
    let ids = |list: &str, id: &str| -> Vec<Value> {
        part[list].as_array().unwrap().iter().map(|item| item[id].clone()).collect()
    };
    let (runs, controls) = (ids("runs", "requested_seq"), ids("controls", "control"));
    let events: Vec<(Value, Value)> =
        part["events"].as_array().unwrap().iter().map(|e| (e["name"].clone(), e["run"].clone())).collect();
    let oldest = part["messages"].as_array().unwrap().first().map_or(cut + 1, |m| m["seq"].as_u64().unwrap());
    let mut kept = all.clone();
    let keep = |list: &mut Value, keep: &dyn Fn(&Value) -> bool| {
        list.as_array_mut().unwrap().retain(|item| keep(item))
    };
    keep(&mut kept["messages"], &|m| m["seq"].as_u64().unwrap() >= oldest);
    keep(&mut kept["runs"], &|r| {
        runs.contains(&r["requested_seq"]) || r["requested_seq"].as_u64().unwrap() > cut
    });
    keep(&mut kept["controls"], &|c| {
        controls.contains(&c["control"]) || !part["known"].as_array().unwrap().contains(&c["control"])
    });
    keep(&mut kept["events"], &|e| {
        events.contains(&(e["name"].clone(), e["run"].clone())) || e["seq"].as_u64().unwrap() > cut
    });
    kept
}

fn through_snapshot(view: &View, messages: usize) -> (View, bool) {
    let snapshot = view.snapshot(messages).unwrap();
    let from = View::from_snapshot(view.epoch(), view.seq(), snapshot.state.get(), snapshot.messages.get());
    (from.unwrap(), snapshot.more)
}

fn law(steps: &[Step], folds: &[Fold]) {
    let log = make(steps);
    let mut whole = View::new();
    follow(&mut whole, &log, &log.records);
    let end = json_of(&whole);

    let mut folded = log.records.clone();
    for how in folds {
        folded = refold(folded, *how);
        covers(&folded, &log.records);
    }
    let mut view = View::new();
    let mut cut = 0;
    loop {
        let mut resumed = view.clone();
        follow(&mut resumed, &log, &folded);
        assert_eq!(json_of(&resumed), end, "resumed after {cut}");
        assert_eq!(resumed, whole, "the index after {cut}");

        let (mut copy, more) = through_snapshot(&view, usize::MAX);
        assert!(!more);
        assert_eq!(copy, view, "a snapshot at {cut}");
        follow(&mut copy, &log, &folded);
        assert_eq!(json_of(&copy), end, "resumed from a snapshot at {cut}");

        let (mut recent, _) = through_snapshot(&view, 1);
        let mut carried = json_of(&recent);
        carried["known"] = view.controls().iter().map(|c| json!(c.control)).collect();
        follow(&mut recent, &log, &folded);
        let expected = restricted(&end, &carried, cut);
        assert_eq!(json_of(&recent), expected, "resumed from a small snapshot at {cut}");

        if !view.has_open_messages() {
            let mut based = View::from_base(&view.base(Millis(7)).unwrap()).unwrap();
            assert_eq!(
                view.base(Millis(7)).unwrap(),
                based.base(Millis(7)).unwrap(),
                "a base of a base at {cut}"
            );
            let mut carried = json_of(&based);
            assert_eq!(carried["messages"], json!([]));
            carried["known"] = view.controls().iter().map(|c| json!(c.control)).collect();
            follow(&mut based, &log, &folded);
            assert_eq!(json_of(&based), restricted(&end, &carried, cut), "resumed from a base at {cut}");
        }

        let Some(next) = log.singles.get(usize::try_from(cut).unwrap()) else { break };
        assert_eq!(view.apply(next, log.since(next.epoch)).unwrap(), Applied::Yes);
        cut += 1;
        assert_eq!(view.seq(), Seq(cut));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_view_is_the_same_for_every_fold_and_cursor(steps in steps(0..90), folds in folds()) {
        law(&steps, &folds);
    }

    #[test]
    fn a_fold_of_a_fold_changes_nothing(steps in steps(0..120)) {
        let log = make(&steps);
        let once = fold(&log.records, Limits::default()).unwrap();
        prop_assert_eq!(&fold(&once, Limits::default()).unwrap(), &once);
        let epochs: std::collections::HashSet<_> = log.records.iter().map(|r| r.epoch).collect();
        prop_assert_eq!(once.len(), epochs.len(), "small logs fold into one record per epoch");
    }

    #[test]
    fn entries_that_are_not_merged_keep_their_bytes(steps in steps(0..60)) {
        let log = make(&steps);
        let folded = fold(&log.records, Limits { text_bytes: 0, ..Limits::default() }).unwrap();
        for record in &folded {
            for block in record.parse_blocks().unwrap() {
                for (first, last, entry) in everthread_session::fold::numbered(&block, record.from).unwrap() {
                    let single = log.singles[usize::try_from(first.0).unwrap() - 1].parse_blocks().unwrap();
                    prop_assert_eq!(&single[0].run, &block.run);
                    prop_assert_eq!(single[0].at, block.at);
                    if first == last {
                        prop_assert_eq!(single[0].entries.get(), format!("[{}]", entry.get()));
                    }
                }
            }
        }
    }
}

/// Tokens of two runs, one record each, in turn.
fn tokens(each: u64) -> Vec<Record> {
    let mut records = Vec::new();
    let mut write = |run: Option<&str>, entry: Value| {
        let seq = records.len() as u64 + 1;
        let mut block = json!({"by": {"kind": "agent", "id": "guide"}, "at": 1_763_700_000_000 + seq, "entries": [entry]});
        if let Some(run) = run {
            block["run"] = json!(run);
        }
        let blocks = serde_json::to_vec(&json!([block])).unwrap().into();
        records.push(Record { epoch: everthread_protocol::Epoch(1), from: Seq(seq), to: Seq(seq), blocks });
    };
    for run in ["r1", "r2"] {
        write(None, json!({"type": "run.requested", "run": run, "agent": "guide"}));
        write(Some(run), json!({"type": "message.start", "message": "m", "role": "assistant"}));
        write(Some(run), json!({"type": "part.start", "message": "m", "part": "p", "kind": "text"}));
    }
    for n in 0..each {
        for run in ["r1", "r2"] {
            let entry =
                json!({"type": "part.append", "message": "m", "part": "p", "offset": n * 5, "text": "word "});
            write(Some(run), entry);
        }
    }
    records
}

fn bytes(records: &[Record]) -> usize {
    records.iter().map(|record| record.blocks.len()).sum()
}

#[test]
fn tokens_of_interleaved_runs_fold_to_little_more_than_their_text() {
    let raw = tokens(1000);
    let folded = fold(&raw, Limits::default()).unwrap();
    assert_eq!(folded.len(), 1);
    assert!(bytes(&folded) < 2 * 5000 + 1500, "{} bytes", bytes(&folded));
    assert!(bytes(&raw) > 10 * bytes(&folded));
}

#[test]
fn a_long_log_folds_into_records_of_about_the_limit() {
    let raw = tokens(25_000);
    let folded = fold(&raw, Limits::default()).unwrap();
    covers(&folded, &raw);
    assert!(folded.len() >= 4, "{}", folded.len());
    assert!(folded.iter().all(|r| r.blocks.len() < 68 * 1024));
    assert!(folded[..folded.len() - 1].iter().all(|r| r.blocks.len() > 60 * 1024));
    let (mut a, mut b) = (View::new(), View::new());
    for record in &raw {
        a.apply(record, Seq(1)).unwrap();
    }
    for record in &folded {
        b.apply(record, Seq(1)).unwrap();
    }
    assert_eq!(json_of(&a), json_of(&b));
    assert_eq!(a.messages()[0].parts[0].value.as_str().unwrap().len(), 125_000);
}

#[test]
fn one_merged_text_stays_within_its_limit() {
    let folded = fold(&tokens(200), Limits { text_bytes: 100, ..Limits::default() }).unwrap();
    let blocks = folded[0].parse_blocks().unwrap();
    let mut merged = 0;
    for block in &blocks {
        for (_, _, raw) in everthread_session::fold::numbered(block, folded[0].from).unwrap() {
            if let everthread_protocol::Entry::PartAppend { text, .. } =
                everthread_protocol::Entry::read(raw.get())
            {
                assert_eq!(text.len(), 100);
                merged += 1;
            }
        }
    }
    assert_eq!(merged, 20);
}

#[test]
fn records_that_do_not_follow_each_other_are_refused() {
    let mut raw = tokens(3);
    raw.remove(4);
    assert!(fold(&raw, Limits::default()).is_err());
    assert!(fold(&[], Limits::default()).unwrap().is_empty());
}

/// What a fold of these entries of run `r1`, one record each, leaves.
fn folded_entries(entries: &[Value]) -> Vec<Value> {
    let record = |(seq, entry): (u64, &Value)| {
        let block =
            json!([{"by": {"kind": "agent", "id": "guide"}, "at": 1, "run": "r1", "entries": [entry]}]);
        let blocks = serde_json::to_vec(&block).unwrap().into();
        Record { epoch: everthread_protocol::Epoch(1), from: Seq(seq), to: Seq(seq), blocks }
    };
    let records: Vec<Record> = (1..).zip(entries).map(record).collect();
    let folded = fold(&records, Limits::default()).unwrap();
    assert_eq!(folded.len(), 1);
    let blocks = folded[0].parse_blocks().unwrap();
    blocks.iter().flat_map(|b| serde_json::from_str::<Vec<Value>>(b.entries.get()).unwrap()).collect()
}

#[test]
fn appends_merge_past_what_does_not_concern_their_part_and_never_past_what_does() {
    let append = |offset: u64, text: &str| json!({"type": "part.append", "message": "m", "part": "p", "offset": offset, "text": text});
    let part = |kind: &str, message: &str, part: &str| match kind {
        "part.start" => json!({"type": kind, "message": message, "part": part, "kind": "text"}),
        "part.set" => json!({"type": kind, "message": message, "part": part, "value": "xy"}),
        _ => json!({"type": kind, "message": message, "part": part, "status": "done"}),
    };
    let message = |kind: &str, message: &str| match kind {
        "message.start" => json!({"type": kind, "message": message, "role": "assistant"}),
        _ => json!({"type": kind, "message": message, "status": "complete"}),
    };
    let ended = |run: &str| json!({"type": "run.ended", "run": run, "outcome": "completed"});
    let step = |phase: &str| json!({"type": "run.step", "phase": phase});
    let returned = |run: &str| json!({"type": "run.returned", "run": run, "reason": "worker_lost"});
    let suspended = |run: &str| json!({"type": "run.suspended", "run": run, "approvals": []});
    let barriers = [
        part("part.start", "m", "p"),
        part("part.set", "m", "p"),
        part("part.end", "m", "p"),
        message("message.start", "m"),
        message("message.end", "m"),
        step("reset"),
        ended("r1"),
        returned("r1"),
        suspended("r1"),
        json!({"type": "later.type"}),
        json!({"type": "run.step", "phase": "later"}),
    ];
    for barrier in barriers {
        let entries = [append(0, "ab"), barrier, append(2, "c")];
        assert_eq!(folded_entries(&entries), entries);
    }
    let others = [
        part("part.start", "m", "q"),
        part("part.set", "n", "p"),
        part("part.end", "m", "q"),
        message("message.start", "n"),
        message("message.end", "n"),
        step("start"),
        step("end"),
        ended("r2"),
        returned("r2"),
        suspended("r2"),
        json!({"type": "approval.settled", "run": "r1", "approval": "a", "verdict": "approved"}),
        json!({"type": "control.settled", "control": "c", "outcome": "applied", "run": "r1"}),
        json!({"type": "session.held"}),
        json!({"type": "branch.begun", "after": 0}),
        json!({"type": "branch.selected", "through": 1}),
        json!({"type": "x-mine"}),
        json!({"type": "event", "name": "e"}),
    ];
    for other in others {
        assert_eq!(
            folded_entries(&[append(0, "ab"), other.clone(), append(2, "c")]),
            [append(0, "abc"), other]
        );
    }
}

#[test]
fn a_fold_keeps_the_last_event_of_each_name_that_keeps_the_latest() {
    let event =
        |name: &str, n: u64, keep: &str| json!({"type": "event", "name": name, "data": n, "keep": keep});
    let all =
        [event("a", 1, "latest"), event("b", 2, "latest"), event("a", 3, "all"), event("a", 4, "latest")];
    assert_eq!(folded_entries(&all), all[1..]);
}
