//! Pages of messages, snapshots of a few, and refusals of records that do not belong.

use everthread_protocol::{Epoch, Record, Seq};
use everthread_session::view::{Applied, Error, View};
use serde_json::{Value, json};

fn record(from: u64, entries: Value) -> Record {
    let to = from + entries.as_array().unwrap().len() as u64 - 1;
    let block = json!([{"by": {"kind": "system", "id": "x"}, "at": 1, "run": "r1", "entries": entries}]);
    Record {
        epoch: Epoch(7),
        from: Seq(from),
        to: Seq(to),
        blocks: serde_json::to_vec(&block).unwrap().into(),
    }
}

fn put(message: &str) -> Value {
    json!({"type": "message.put", "message": message, "role": "user", "parts": []})
}

/// Five messages; the second is still being written, in a run.
fn five() -> View {
    let mut view = View::new();
    let entries = json!([
        {"type": "run.requested", "run": "r0", "agent": "a"},
        {"type": "run.ended", "run": "r0", "outcome": "failed"},
        put("i1"),
        {"type": "run.requested", "run": "r1", "agent": "a", "input": ["i1"]},
        {"type": "message.start", "message": "m1", "role": "assistant"},
        put("i2"),
        put("i3"),
        put("i4"),
    ]);
    view.apply(&record(1, entries), Seq(1)).unwrap();
    view
}

fn ids(messages: &[everthread_session::view::Message]) -> Vec<&str> {
    messages.iter().map(|m| m.message.as_str()).collect()
}

#[test]
fn messages_are_paged_backwards_by_the_seq_they_began_at() {
    let view = five();
    let (page, more) = view.messages_before(None, 2);
    assert_eq!((ids(page), more), (vec!["i3", "i4"], true));
    let (page, more) = view.messages_before(Some(page[0].seq), 2);
    assert_eq!((ids(page), more), (vec!["m1", "i2"], true));
    let (page, more) = view.messages_before(Some(page[0].seq), 2);
    assert_eq!((ids(page), more), (vec!["i1"], false));
    assert_eq!(view.messages_before(Some(Seq(1)), 2).0.len(), 0);
}

#[test]
fn a_snapshot_goes_back_to_the_oldest_message_that_is_being_written() {
    let view = five();
    let snapshot = view.snapshot(1).unwrap();
    let copy =
        View::from_snapshot(view.epoch(), view.seq(), snapshot.state.get(), snapshot.messages.get()).unwrap();
    assert_eq!(ids(copy.messages()), ["m1", "i2", "i3", "i4"]);
    assert!(snapshot.more);
    let runs: Vec<_> = copy.runs().iter().map(|r| r.run.as_str()).collect();
    assert_eq!(runs, ["r1"], "an old run that has ended is left out");
    assert_eq!(view.run(&"r0".parse().unwrap()).unwrap().requested_seq, Seq(1));
}

#[test]
fn a_record_is_applied_once_or_refused_as_a_gap() {
    let mut view = five();
    let before = view.clone();
    assert_eq!(view.apply(&record(3, json!([put("again")])), Seq(1)).unwrap(), Applied::Duplicate);
    assert!(matches!(view.apply(&record(10, json!([put("far")])), Seq(1)), Err(Error::Gap { .. })));
    let other = |epoch, from| Record { epoch: Epoch(epoch), ..record(from, json!([put("other")])) };
    assert!(matches!(view.apply(&other(8, 9), Seq(8)), Err(Error::Gap { .. })), "the view holds a lost tail");
    assert!(
        matches!(view.apply(&other(8, 6), Seq(5)), Err(Error::Gap { .. })),
        "the log has regrown elsewhere"
    );
    assert_eq!(view.apply(&other(6, 3), Seq(1)).unwrap(), Applied::Duplicate);
    assert_eq!(view, before);
    assert_eq!(view.apply(&other(8, 9), Seq(9)).unwrap(), Applied::Yes);
    assert_eq!((view.epoch(), view.seq()), (Epoch(8), Seq(9)));
}

#[test]
fn an_append_beyond_the_text_or_inside_a_character_is_refused() {
    for offset in [1, 4, u64::MAX] {
        let mut view = five();
        let entries = json!([
            {"type": "part.start", "message": "m1", "part": "p", "kind": "text"},
            {"type": "part.append", "message": "m1", "part": "p", "offset": 0, "text": "日"},
            {"type": "part.append", "message": "m1", "part": "p", "offset": offset, "text": "x"},
        ]);
        let error = view.apply(&record(9, entries), Seq(1)).unwrap_err();
        assert!(matches!(error, Error::Inconsistent { seq: Seq(11), length: 3, .. }), "{error}");
    }
}

#[test]
fn spans_that_do_not_fit_the_entries_are_no_record() {
    let mut view = View::new();
    let blocks = json!([{"from": 1, "by": {}, "at": 1, "spans": [[1, 1]], "entries": [put("a"), put("b")]}]);
    let record = Record {
        epoch: Epoch(7),
        from: Seq(1),
        to: Seq(2),
        blocks: serde_json::to_vec(&blocks).unwrap().into(),
    };
    assert!(matches!(view.apply(&record, Seq(1)), Err(Error::Invalid(_))));
}
