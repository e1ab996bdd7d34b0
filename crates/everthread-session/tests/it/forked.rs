//! Forks: what of a log lies up to a cut is what a view at the cut says, and nothing stays open in what begins there.

use crate::log::{make, steps};
use everthread_protocol::{Epoch, Record, Seq};
use everthread_session::decide::Refusal;
use everthread_session::fold::{Limits, fold};
use everthread_session::forked::{Origin, fork, forked_from, truncate};
use everthread_session::view::{MessageState, RunStatus, View};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The view of records up to `at`, by cutting the view and by cutting the records.
fn cut(records: &[Record], at: Seq, since: impl Fn(Epoch) -> Seq) -> (View, Vec<Record>, View) {
    let (mut until, mut view, mut parts) = (View::new(), View::new(), Vec::new());
    for record in records {
        until.apply_until(record, since(record.epoch), at).unwrap();
        if record.from > at || view.seq().next() != record.from {
            continue;
        }
        if let Some(part) = truncate(record, at).unwrap() {
            assert!(part.from == record.from && part.to <= at.min(record.to), "{part:?} at {at}");
            view.apply(&part, since(part.epoch)).unwrap();
            parts.push(part);
        }
    }
    (until, parts, view)
}

fn object(value: Value) -> serde_json::Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// A record of the entries that a fork begins with.
fn begun(view: &View, entries: &[everthread_protocol::Entry], epoch: Epoch) -> Record {
    let blocks = json!([{ "by": { "kind": "user", "id": "ann" }, "at": 9, "entries": entries }]);
    let to = Seq(view.seq().0 + entries.len() as u64);
    Record { epoch, from: view.seq().next(), to, blocks: blocks.to_string().into() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_cut_of_the_records_is_what_is_cut_of_the_view(
        steps in steps(1..90),
        size in 0u8..3,
        at: prop::sample::Index,
    ) {
        let log = make(&steps);
        let Some(last) = log.records.last() else { return Ok(()) };
        let head = last.to.0;
        let limits = match size {
            0 => Limits::default(),
            1 => Limits { record_bytes: 700, text_bytes: 30 },
            _ => Limits { record_bytes: 0, text_bytes: 0 },
        };
        let folded = fold(&log.records, limits).unwrap();
        let at = Seq(1 + at.index(usize::try_from(head).unwrap()) as u64);
        let (until, parts, view) = cut(&folded, at, |epoch| log.since(epoch));
        prop_assert_eq!(&view, &until);
        // What is cut can be folded on, and a later cut of it changes nothing.
        let mut again = View::new();
        for record in fold(&parts, Limits::default()).unwrap() {
            again.apply(&record, log.since(record.epoch)).unwrap();
        }
        prop_assert_eq!(&again, &view);
        for part in &parts {
            prop_assert_eq!(truncate(part, at).unwrap(), Some(part.clone()));
        }
        // Raw records are cut exactly.
        let (raw, _, exact) = cut(&log.records, at, |epoch| log.since(epoch));
        prop_assert_eq!((raw.seq(), exact.seq()), (at, at));
    }

    #[test]
    fn nothing_is_open_where_a_fork_begins(steps in steps(1..90), at: prop::sample::Index) {
        let log = make(&steps);
        let Some(last) = log.records.last() else { return Ok(()) };
        let at = Seq(1 + at.index(usize::try_from(last.to.0).unwrap()) as u64);
        let (_, _, mut view) = cut(&log.records, at, |epoch| log.since(epoch));
        let (source, values) = ("source".parse().unwrap(), view.values().clone());
        let forked = match fork(&view, &source, Seq(at.0 + 3), &object(json!({ "title": "Mine", "gone": null }))) {
            Ok(forked) => forked,
            Err(refusal) => {
                prop_assert_eq!(refusal, Refusal::Closed);
                prop_assert!(view.session().closed);
                return Ok(());
            }
        };
        let (runs, messages) = (view.runs().len(), view.messages().len());
        let epoch = Epoch(view.epoch().0 + 1);
        let own = begun(&view, &forked.entries, epoch);
        view.apply(&own, own.from).unwrap();
        prop_assert!(view.runs().iter().all(|run| run.status == RunStatus::Ended));
        let streaming = view.messages().iter().any(|message| message.status == MessageState::Streaming);
        prop_assert!(!streaming);
        prop_assert!(view.controls().iter().all(|control| control.outcome.is_some()));
        prop_assert!(view.session().held.is_none());
        prop_assert_eq!((view.runs().len(), view.messages().len()), (runs, messages));
        // The state that decisions are made on agrees with what people see.
        prop_assert_eq!(&view.session().meta, &forked.state.meta);
        prop_assert_eq!(&view.session().meta["title"], "Mine");
        prop_assert_eq!(forked_from(&forked.state.meta), Some(Origin { session: source, seq: at, asked: Seq(at.0 + 3) }));
        prop_assert_eq!(forked.state.open_runs().count() + forked.state.controls.len(), 0);
        prop_assert_eq!(&forked.state.values, &values);
        prop_assert_eq!(forked.state.next_due(), None);
    }
}

#[test]
fn a_cut_inside_merged_appends_that_overlap_lies_before_all_of_them() {
    let append = |part: &str| json!({ "type": "part.append", "message": "m", "part": part, "offset": 0, "text": "abc" });
    let blocks = json!([{
        "from": 3, "by": { "kind": "agent", "id": "a" }, "at": 1, "run": "r",
        "spans": [[3, 3], [4, 8], [6, 9], [10, 10]],
        "entries": [{ "type": "x-a" }, append("p"), append("q"), { "type": "x-b" }],
    }]);
    let record = Record { epoch: Epoch(1), from: Seq(3), to: Seq(12), blocks: blocks.to_string().into() };
    let ends = |at| truncate(&record, Seq(at)).unwrap().map(|part| part.to.0);
    assert_eq!([3, 4, 7, 8, 9, 10, 11, 12].map(ends), [3, 3, 3, 3, 9, 10, 11, 12].map(Some));
    let first = json!([{ "by": { "kind": "agent", "id": "a" }, "at": 1, "spans": [[3, 9]], "entries": [append("p")] }]);
    let whole = Record { blocks: first.to_string().into(), ..record };
    assert_eq!(truncate(&whole, Seq(5)).unwrap(), None, "nothing is left");
}

#[test]
fn a_meta_that_says_something_else_is_no_fork() {
    for other in
        [json!({}), json!({ "forked_from": "s" }), json!({ "forked_from": { "session": "a b", "seq": 1 } })]
    {
        assert_eq!(forked_from(&object(other)), None);
    }
}

#[test]
fn a_fork_has_no_meta_that_a_session_may_not_have() {
    let source = "s".parse().unwrap();
    let refused = |meta: Value| fork(&View::new(), &source, Seq(0), &object(meta)).unwrap_err();
    assert!(matches!(refused(json!({ "agent": 7 })), Refusal::Invalid(_)));
    assert!(matches!(refused(json!({ "x": "x".repeat(9000) })), Refusal::TooLarge(_)));
    // Where it comes from is not the asker's to say.
    let forked = fork(&View::new(), &source, Seq(0), &object(json!({ "forked_from": null }))).unwrap();
    assert_eq!(forked_from(&forked.state.meta), Some(Origin { session: source, seq: Seq(0), asked: Seq(0) }));
}
