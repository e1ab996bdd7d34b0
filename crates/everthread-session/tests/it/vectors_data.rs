//! The cases of `view.json`: frames as a server sends them. What comes out is computed and stands in the file, where it
//! was reviewed; `same_view_as` names a case that must give the same.

use serde_json::{Value, json};

const E1: &str = "1763700000000000";
const E2: &str = "1763700500000000";
pub const AT: u64 = 1_763_700_000_000;

pub fn ann() -> Value {
    json!({"kind": "user", "id": "ann", "device": "phone"})
}

pub fn guide() -> Value {
    json!({"kind": "agent", "id": "guide"})
}

pub fn system() -> Value {
    json!({"kind": "system", "id": "everthread"})
}

/// A frame of one plain block.
pub fn frame(from: u64, by: Value, run: Option<&str>, entries: Value) -> Value {
    frame_in((E1, 1), from, by, run, entries)
}

fn frame_in((epoch, since): (&str, u64), from: u64, by: Value, run: Option<&str>, entries: Value) -> Value {
    let to = from + entries.as_array().unwrap().len() as u64 - 1;
    let mut block = json!({"by": by, "at": AT + from, "entries": entries});
    if let Some(run) = run {
        block["run"] = json!(run);
    }
    frame_of((epoch, since), (from, to), json!([block]))
}

fn frame_of((epoch, since): (&str, u64), (from, to): (u64, u64), blocks: Value) -> Value {
    json!({"t": "entries", "attachment": 1, "epoch": epoch, "since": since, "from": from, "to": to, "blocks": blocks})
}

pub fn case(name: &str, frames: Vec<Value>) -> Value {
    json!({"name": name, "frames": frames})
}

pub fn put(message: &str, text: &str) -> Value {
    json!({"type": "message.put", "message": message, "role": "user", "parts": [{"kind": "text", "value": text}]})
}

pub fn append(part: &str, offset: u64, text: &str) -> Value {
    json!({"type": "part.append", "message": "m1", "part": part, "offset": offset, "text": text})
}

pub fn start_part(part: &str) -> Value {
    json!({"type": "part.start", "message": "m1", "part": part, "kind": "text"})
}

pub fn message_start() -> Value {
    json!({"type": "message.start", "message": "m1", "role": "assistant"})
}

/// Seq 1 to 4: the session, an input and a run that is held.
pub fn opening() -> Value {
    let entries = json!([
        {"type": "session.opened", "meta": {"agent": "guide", "title": "Trip"}},
        put("i1", "Hello"),
        {"type": "run.requested", "run": "r1", "agent": "guide", "input": ["i1"]},
        {"type": "run.started", "run": "r1", "worker": "w1", "attempt": 1},
    ]);
    frame(1, ann(), None, entries)
}

/// Seq 5 and 6: a message with the part `p1`, both open.
pub fn writing() -> Value {
    frame(5, guide(), Some("r1"), json!([message_start(), start_part("p1")]))
}

/// Seq 7 on, in the run.
fn then(entries: Value) -> Value {
    frame(7, guide(), Some("r1"), entries)
}

pub fn view_cases() -> Vec<Value> {
    let mut cases = vec![case("nothing has happened", vec![])];
    cases.extend(life());
    cases.extend(text());
    cases.extend(folded());
    cases.extend(positions());
    cases.extend(closing());
    cases.extend(steps());
    cases.extend(shared());
    cases.extend(tolerance());
    cases.extend(crate::vectors_control::cases());
    cases.extend(crate::vectors_branch::cases());
    cases
}

fn life() -> Vec<Value> {
    let end = json!([
        append("p1", 0, "Hello, "),
        append("p1", 7, "Ann."),
        {"type": "part.end", "message": "m1", "part": "p1", "status": "done"},
        {"type": "message.end", "message": "m1", "status": "complete", "usage": {"output_tokens": 5}},
    ]);
    let tool = json!([
        {"type": "part.start", "message": "m1", "part": "t1", "kind": "tool_call", "attrs": {"name": "search", "call": "c-1"}},
        {"type": "part.append", "message": "m1", "part": "t1", "offset": 0, "text": "{\"q\":"},
        {"type": "part.end", "message": "m1", "part": "t1", "status": "done", "value": {"q": "trains", "n": [1, 2.5, null, true]}},
        {"type": "part.start", "message": "m1", "part": "o1", "kind": "tool_output"},
        {"type": "part.set", "message": "m1", "part": "o1", "value": ["a", "b"]},
        {"type": "part.end", "message": "m1", "part": "o1", "status": "error"},
        {"type": "part.start", "message": "m1", "part": "o2", "kind": "reasoning"},
        {"type": "part.end", "message": "m1", "part": "o2", "status": "denied"},
    ]);
    let ended =
        json!([{"type": "run.ended", "run": "r1", "outcome": "completed", "usage": {"output_tokens": 5}}]);
    let child = json!([
        put("i2", "Look it up"),
        {"type": "run.requested", "run": "r2", "agent": "searcher", "input": ["i2"], "parent_run": "r1", "params": {"depth": 2}},
    ]);
    let child_output = json!([message_start(), start_part("p1"), append("p1", 0, "found")]);
    vec![
        case(
            "a run from its request to its end",
            vec![opening(), writing(), then(end), frame(11, system(), None, ended)],
        ),
        case("parts of all kinds, set and ended with values", vec![opening(), writing(), then(tool)]),
        case(
            "a child run that uses the same message and part ids",
            vec![
                opening(),
                writing(),
                then(json!([append("p1", 0, "Wait")])),
                frame(8, guide(), Some("r1"), child),
                frame(10, json!({"kind": "agent", "id": "searcher"}), Some("r2"), child_output),
                frame(13, guide(), Some("r1"), json!([append("p1", 4, "ed")])),
            ],
        ),
        case(
            "a second worker takes over and what was written stays",
            vec![
                opening(),
                writing(),
                then(json!([append("p1", 0, "Hel")])),
                frame(
                    8,
                    system(),
                    None,
                    json!([{"type": "run.started", "run": "r1", "worker": "w2", "attempt": 2}]),
                ),
                frame(9, guide(), Some("r1"), json!([append("p1", 3, "lo")])),
            ],
        ),
    ]
}

fn text() -> Vec<Value> {
    // a: 1 byte, ö: 2, 日: 3, 🦀: 4 bytes (two UTF-16 units).
    let multi =
        json!([append("p1", 0, "aö"), append("p1", 3, "日"), append("p1", 6, "🦀"), append("p1", 10, "!")]);
    let family = json!([append("p1", 0, "👩‍👩‍👧"), append("p1", 18, "e\u{301}"), append("p1", 21, "x")]);
    let with = |name: &str, entries: Value| case(name, vec![opening(), writing(), then(entries)]);
    vec![
        with("offsets count bytes of UTF-8", multi),
        with("offsets inside what looks like one sign", family),
        with(
            "an append that overlaps replaces the tail",
            json!([append("p1", 0, "Hello wor"), append("p1", 6, "world"), append("p1", 11, "!")]),
        ),
        with(
            "an append that begins earlier takes text back",
            json!([append("p1", 0, "日本🦀 and more"), append("p1", 6, "語")]),
        ),
        with(
            "appends go on after a set",
            json!([
                append("p1", 0, "Helo"),
                {"type": "part.set", "message": "m1", "part": "p1", "value": "Hellö"},
                append("p1", 6, "!"),
            ]),
        ),
        with("an append beyond the text", json!([append("p1", 0, "日"), append("p1", 4, "x")])),
        with("an append inside a character", json!([append("p1", 0, "🦀"), append("p1", 2, "x")])),
    ]
}

fn tokens(by: u64) -> Vec<Value> {
    let mut frames = vec![opening(), writing()];
    let words = ["Trains ", "to ", "Zürich ", "🚆 ", "leave ", "hourly."];
    let (mut offset, mut seq) = (0, 7);
    for word in words {
        frames.push(frame(seq, guide(), Some("r1"), json!([append("p1", offset, word)])));
        (offset, seq) = (offset + word.len() as u64, seq + 1);
        if by > 0 {
            let progress = json!([{"type": "event", "name": "progress", "data": seq, "keep": "latest"}]);
            frames.push(frame(seq, guide(), Some("r1"), progress));
            seq += 1;
        }
    }
    frames
}

/// Seq 7 to 18 of `tokens(1)`: six appends, each before an event of which only the last is left.
fn tokens_folded() -> Value {
    let text = "Trains to Zürich 🚆 leave hourly.";
    let blocks = json!([
        {"from": 7, "by": guide(), "at": AT + 7, "run": "r1", "spans": [[7, 17]], "entries": [append("p1", 0, text)]},
        {"from": 18, "by": guide(), "at": AT + 18, "run": "r1",
         "entries": [{"type": "event", "name": "progress", "data": 18, "keep": "latest"}]},
    ]);
    frame_of((E1, 1), (7, 18), blocks)
}

fn folded() -> Vec<Value> {
    let name = "tokens one by one, with progress";
    let raw = tokens(1);
    // Everything from the first entry on in one record.
    let start =
        json!([message_start(), start_part("p1"), append("p1", 0, "Trains to Zürich 🚆 leave hourly.")]);
    let whole = json!([
        {"from": 1, "by": ann(), "at": AT + 1, "entries": opening()["blocks"][0]["entries"]},
        {"from": 5, "by": guide(), "at": AT + 5, "run": "r1", "spans": [[5, 5], [6, 6], [7, 17]], "entries": start},
        {"from": 18, "by": guide(), "at": AT + 18, "run": "r1",
         "entries": [{"type": "event", "name": "progress", "data": 18, "keep": "latest"}]},
    ]);
    let same = |name: &str, frames: Vec<Value>| {
        let mut case = case(name, frames);
        case["same_view_as"] = json!("tokens one by one, with progress");
        case
    };
    let mut middle: Vec<Value> = raw[..9].to_vec();
    middle.push(tokens_folded());
    let mut event: Vec<Value> = raw[..10].to_vec();
    event.push(tokens_folded());
    let mut resumed = same("resumed from a snapshot inside a merged append", vec![tokens_folded()]);
    resumed["start"] = snapshot_of_tokens();
    let order = |entries: Value, from: u64, to: u64| {
        frame_of((E1, 1), (from, to), json!([{"from": from, "by": ann(), "at": AT, "entries": entries}]))
    };
    let latest = |name: &str, n: u64| json!({"type": "event", "name": name, "data": n, "keep": "latest"});
    let events = json!([latest("a", 1), latest("b", 2), latest("a", 3)]);
    let kept = json!([{"from": 2, "by": ann(), "at": AT, "entries": [latest("b", 2), latest("a", 3)]}]);
    let mut kept = case("events after a fold that left one out", vec![frame_of((E1, 1), (1, 3), kept)]);
    kept["same_view_as"] = json!("events stand in the order of their last seq");
    vec![
        case(name, raw),
        same("the same folded from the beginning", vec![frame_of((E1, 1), (1, 18), whole)]),
        same("the same with its tail folded", vec![opening(), writing(), tokens_folded()]),
        same("a folded frame that begins before the cursor, after an append", middle),
        same("a folded frame that begins before the cursor, after an entry that it left out", event),
        resumed,
        case("tokens one by one", tokens(0)),
        case("events stand in the order of their last seq", vec![order(events, 1, 3)]),
        kept,
    ]
}

/// The session of `tokens(1)` after seq 11.
fn snapshot_of_tokens() -> Value {
    let user = json!({"message": "i1", "seq": 2, "at": AT + 1, "by": ann(), "role": "user", "status": "complete",
        "parts": [{"part": "1", "kind": "text", "status": "done", "value": "Hello"}]});
    let answer = json!({"message": "m1", "run": "r1", "seq": 5, "at": AT + 5, "by": guide(), "role": "assistant",
        "status": "streaming",
        "parts": [{"part": "p1", "kind": "text", "status": "open", "value": "Trains to Zürich ", "seq": 6}]});
    let run = json!({"run": "r1", "agent": "guide", "status": "active", "input": ["i1"], "worker": "w1", "attempt": 1,
        "requested_seq": 3});
    let state = json!({"session": {"meta": {"agent": "guide", "title": "Trip"}, "closed": false}, "runs": [run],
        "controls": [], "values": {}, "events": [{"name": "progress", "run": "r1", "data": 10, "seq": 10}]});
    json!({"t": "snapshot", "attachment": 1, "epoch": E1, "seq": 11, "since": 1, "floor": 1, "state": state,
        "messages": [user, answer], "more": false})
}

fn positions() -> Vec<Value> {
    let puts = |from: u64, n: u64| {
        let entries: Vec<Value> = (from..from + n).map(|seq| put(&format!("i{seq}"), "x")).collect();
        frame(from, ann(), None, json!(entries))
    };
    let later = |since: u64, from: u64| frame_in((E2, since), from, ann(), None, json!([put("later", "x")]));
    let older = |from: u64| frame_in((E1, 1), from, ann(), None, json!([put("older", "x")]));
    vec![
        case("a frame that comes twice is dropped", vec![puts(1, 2), puts(1, 2), puts(3, 1), puts(2, 2)]),
        case("a frame that begins before the cursor gives what is new", vec![puts(1, 2), puts(2, 3)]),
        case("a frame beyond the next seq", vec![puts(1, 2), puts(4, 1)]),
        case("a first frame that is not the first", vec![puts(2, 1)]),
        case("a new epoch that begins after the cursor", vec![puts(1, 2), later(3, 3)]),
        case(
            "a frame of the epoch before that is covered is dropped",
            vec![puts(1, 2), later(3, 3), older(2)],
        ),
        case("a frame of the epoch before that would go on", vec![puts(1, 2), later(3, 3), older(4)]),
        case(
            "a new epoch that began at the cursor: the log lost what the client holds",
            vec![puts(1, 3), later(3, 4)],
        ),
        case("a new epoch that has not reached the cursor again", vec![puts(1, 3), later(2, 2)]),
        case("a new epoch later than the next seq", vec![puts(1, 2), later(4, 4)]),
    ]
}

fn closing() -> Vec<Value> {
    let open = json!([append("p1", 0, "Hel"), start_part("p2"), {"type": "part.end", "message": "m1", "part": "p2", "status": "done"}]);
    let ended = |name: &str, entry: Value| {
        let late = json!([append("p1", 3, "lo"), message_start()]);
        let frames = vec![
            opening(),
            writing(),
            then(open.clone()),
            frame(10, system(), None, json!([entry])),
            frame(11, guide(), Some("r1"), late),
        ];
        case(name, frames)
    };
    let closed = |name: &str, status: &str| {
        let end = json!({"type": "message.end", "message": "m1", "status": status});
        let entries = json!([append("p1", 0, "Hel"), end, append("p1", 3, "lo"), start_part("p3")]);
        case(name, vec![opening(), writing(), then(entries)])
    };
    let error = json!({"code": "model_error", "message": "the model did not answer"});
    vec![
        ended(
            "a run that is cancelled closes its messages and parts",
            json!({"type": "run.ended", "run": "r1", "outcome": "cancelled", "reason": "cancel", "forced": true}),
        ),
        ended(
            "a run that fails closes its messages and parts",
            json!({"type": "run.ended", "run": "r1", "outcome": "failed", "error": error}),
        ),
        ended(
            "a run that is lost closes its messages and parts",
            json!({"type": "run.ended", "run": "r1", "outcome": "lost", "reason": "worker_lost", "forced": true}),
        ),
        closed("a message that is complete closes its parts as done", "complete"),
        closed("a message that fails closes its parts as aborted", "failed"),
    ]
}

fn steps() -> Vec<Value> {
    let step = |phase: &str| json!({"type": "run.step", "phase": phase});
    let named = json!({"type": "run.step", "phase": "start", "name": "plan"});
    let second = json!({"type": "message.start", "message": "m2", "role": "assistant"});
    let end2 = json!({"type": "message.end", "message": "m2", "status": "complete"});
    let with = |name: &str, entries: Value| case(name, vec![opening(), writing(), then(entries)]);
    let mut snapshot = snapshot_of_tokens();
    snapshot["state"]["runs"][0]["step"] = json!("plan");
    snapshot["state"]["runs"][0]["step_mark"] = json!(8);
    snapshot["messages"][1]["parts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"part": "p2", "kind": "text", "status": "open", "value": "gone", "seq": 9}));
    let reset = frame(12, guide(), Some("r1"), json!([step("reset"), append("p1", 18, "stays")]));
    let mut resumed = case("a reset after a snapshot", vec![reset]);
    resumed["start"] = snapshot;
    vec![
        with("a step has a name until it ends", json!([named])),
        with("a step that has ended", json!([named, step("end")])),
        with(
            "a reset drops what began since the step began",
            json!([
                append("p1", 0, "stays"),
                named,
                start_part("p2"),
                append("p2", 0, "gone"),
                append("p1", 5, ", too"),
                second,
                end2,
                step("end"),
                step("reset")
            ]),
        ),
        with(
            "a reset without a step drops all of the run",
            json!([
                append("p1", 0, "gone"),
                second,
                step("reset"),
                message_start(),
                start_part("p1"),
                append("p1", 0, "new")
            ]),
        ),
        with(
            "ids are free again after a reset",
            json!([
                named,
                start_part("p2"),
                append("p2", 0, "gone"),
                step("reset"),
                start_part("p2"),
                append("p2", 0, "new")
            ]),
        ),
        resumed,
    ]
}

fn shared() -> Vec<Value> {
    let cancel = |control: &str, target: Value| json!({"type": "control.requested", "control": control, "kind": "cancel", "target": target, "expires": AT + 30_000});
    let controls = json!([
        cancel("c1", json!({"run": "r1"})),
        cancel("c2", json!({"input": "i9"})),
        cancel("c3", json!({"run": "r1"})),
        {"type": "control.settled", "control": "c2", "outcome": "refused", "reason": "timeout"},
        {"type": "control.settled", "control": "c1", "outcome": "applied", "run": "r1"},
        {"type": "control.settled", "control": "unknown", "outcome": "expired"},
    ]);
    let set = |key: &str, value: Value| json!({"type": "state.set", "key": key, "value": value});
    let values = json!([
        set("b", json!({"x": null})),
        set("a", json!(1)),
        set("b", json!("two")),
        set("c", json!(3)),
        set("a", Value::Null)
    ]);
    let updated = json!([
        {"type": "session.updated", "patch": {"title": null, "tags": {"a": null, "b": 1}, "agent": "other"}},
        {"type": "session.closed", "reason": "done"},
    ]);
    let latest =
        |name: &str, data: Value| json!({"type": "event", "name": name, "data": data, "keep": "latest"});
    let events = json!([
        latest("progress", json!(1)),
        {"type": "event", "name": "log", "data": "all of them pass by"},
        latest("typing", json!({"who": "guide"})),
        latest("progress", json!(2)),
        {"type": "event", "name": "progress", "data": 3, "keep": "all"},
    ]);
    let put_in_run = json!([put("i2", "For the child"), {"type": "x-mine", "any": 1}]);
    vec![
        case("controls and their outcomes", vec![opening(), frame(5, ann(), None, controls)]),
        case("shared values", vec![opening(), frame(5, ann(), None, values)]),
        case(
            "meta is patched at its top, and the session closed",
            vec![opening(), frame(5, ann(), None, updated)],
        ),
        case(
            "the last event of each name and run",
            vec![
                opening(),
                frame(5, guide(), Some("r1"), events),
                frame(10, ann(), None, json!([latest("progress", json!(4))])),
            ],
        ),
        case(
            "a put in a run's block is the session's",
            vec![opening(), frame(5, guide(), Some("r1"), put_in_run)],
        ),
    ]
}

fn tolerance() -> Vec<Value> {
    let unknown = json!([
        {"type": "later.type", "message": "m1", "part": "p1"},
        {"type": "x-mine", "message": "m1", "value": 1},
        {"type": "run.step", "phase": "sideways"},
        {"type": "part.append", "message": "m1", "part": "p1", "offset": 0, "text": "read", "later": {"a": 1}},
    ]);
    let nowhere = json!([
        {"type": "part.append", "message": "m9", "part": "p1", "offset": 7, "text": "no message"},
        {"type": "part.append", "message": "m1", "part": "p9", "offset": 7, "text": "no part"},
        {"type": "part.set", "message": "m1", "part": "p9", "value": 1},
        {"type": "part.end", "message": "m1", "part": "p9", "status": "done"},
        {"type": "message.end", "message": "m9", "status": "complete"},
        {"type": "run.ended", "run": "r9", "outcome": "completed"},
        {"type": "run.started", "run": "r9", "worker": "w1", "attempt": 1},
    ]);
    let not_text = json!([
        {"type": "part.set", "message": "m1", "part": "p1", "value": {"a": 1}},
        append("p1", 0, "ignored"),
        {"type": "part.end", "message": "m1", "part": "p1", "status": "done", "value": null},
        append("p1", 0, "ignored"),
    ]);
    let twice = json!([
        append("p1", 0, "stays"),
        start_part("p1"),
        message_start(),
        {"type": "run.requested", "run": "r1", "agent": "other"},
    ]);
    let by = json!({"kind": "robot", "id": "later", "more": 1});
    vec![
        case("what a reader does not know is passed over", vec![opening(), writing(), then(unknown)]),
        case("what is about nothing that is open is ignored", vec![opening(), writing(), then(nowhere)]),
        case(
            "appends to a value that is not text are ignored; a null final value is none",
            vec![opening(), writing(), then(not_text)],
        ),
        case("ids of open things are not taken twice", vec![opening(), writing(), then(twice)]),
        case(
            "a run that nobody requested writes nothing",
            vec![frame(1, guide(), Some("r1"), json!([message_start(), start_part("p1")]))],
        ),
        case("an author of a later kind is kept as it is", vec![frame(1, by, None, json!([put("i1", "x")]))]),
    ]
}
