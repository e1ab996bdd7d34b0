//! The cases of `view.json` about branches, each with its current branch and its alternatives as lists of references.

use crate::vectors_data::{ann, case, frame, guide, opening, put};
use everthread_protocol::RunId;
use everthread_session::view::{Message, View};
use serde_json::{Value, json};

/// How a message is referred to.
fn reference(message: &Message) -> String {
    match &message.run {
        Some(run) => format!("{run}/{}", message.message),
        None => message.message.to_string(),
    }
}

fn references(messages: Vec<&Message>) -> Value {
    messages.into_iter().map(reference).collect()
}

/// What a case says besides the view: the current branch, what could follow it, the alternatives of every message, and the
/// branch of every run.
pub fn tree(view: &View) -> Value {
    let alternatives: Vec<Value> =
        view.messages().iter().map(|message| references(view.alternatives(message))).collect();
    let of_run = |run: &RunId| references(view.branch_of(run));
    let runs: serde_json::Map<String, Value> =
        view.runs().iter().map(|run| (run.run.to_string(), of_run(&run.run))).collect();
    json!({
        "branch": references(view.branch()),
        "continuations": references(view.continuations()),
        "alternatives": alternatives,
        "branch_of": runs,
    })
}

fn requested(run: &str, input: &str) -> Value {
    json!({"type": "run.requested", "run": run, "agent": "guide", "input": [input]})
}

fn said(message: &str) -> Value {
    json!({"type": "message.start", "message": message, "role": "assistant"})
}

fn ended(run: &str) -> Value {
    json!({"type": "run.ended", "run": run, "outcome": "completed"})
}

fn begun(after: u64) -> Value {
    json!({"type": "branch.begun", "after": after})
}

fn selected(through: u64) -> Value {
    json!({"type": "branch.selected", "through": through})
}

/// `i1`, `r1/m1`, `i2`, `r2/m2`, then one block each, with the run of its worker. The messages have seq 2, 5, 7 and 9; the
/// blocks begin at 11.
fn after_talk(name: &str, blocks: Vec<(Option<&str>, Value)>) -> Value {
    let mut frames = vec![
        opening(),
        frame(5, guide(), Some("r1"), json!([said("m1")])),
        frame(6, guide(), None, json!([ended("r1")])),
        frame(7, ann(), None, json!([put("i2", "And then?"), requested("r2", "i2")])),
        frame(9, guide(), Some("r2"), json!([said("m2")])),
        frame(10, guide(), None, json!([ended("r2")])),
    ];
    let mut seq = 11;
    for (run, entries) in blocks {
        let by = if run.is_some() { guide() } else { ann() };
        let count = entries.as_array().map_or(0, Vec::len) as u64;
        frames.push(frame(seq, by, run, entries));
        seq += count;
    }
    let mut case = case(name, frames);
    case["tree"] = json!(null);
    case
}

pub fn cases() -> Vec<Value> {
    let edit = || (None, json!([begun(6), put("i3", "And now?"), requested("r3", "i3")]));
    let steer = json!([
        put("i4", "Shorter"),
        {"type": "control.requested", "control": "c1", "kind": "steer", "target": {"run": "r3"}, "expires": 9,
            "mode": "next_step", "message": "i4"},
    ]);
    let child = json!([
        put("i5", "Look it up"),
        {"type": "run.requested", "run": "r5", "agent": "helper", "input": ["i5"], "parent_run": "r3"},
    ]);
    vec![
        after_talk("no branches", vec![]),
        after_talk("an edit", vec![edit(), (Some("r3"), json!([said("m1")]))]),
        after_talk(
            "an edit of an edit, and one of the first message",
            vec![
                edit(),
                (None, json!([begun(6), put("i4", "And?")])),
                (None, json!([begun(1), put("i5", "Hi")])),
            ],
        ),
        after_talk(
            "a run done again that has not written",
            vec![(None, json!([begun(4), requested("r3", "i1")]))],
        ),
        after_talk(
            "a run done again, and a reset of what it wrote",
            vec![
                (None, json!([begun(4), requested("r3", "i1")])),
                (
                    Some("r3"),
                    json!([said("m1"), {"type": "run.step", "phase": "reset"}, said("m2"), said("m3")]),
                ),
            ],
        ),
        after_talk(
            "a branch selected and gone on with, and another",
            vec![
                edit(),
                (None, json!([selected(7)])),
                (None, json!([put("i4", "Go on")])),
                (None, json!([selected(12)])),
            ],
        ),
        after_talk(
            "the newest branch through a message",
            vec![edit(), (None, json!([selected(7), selected(2)]))],
        ),
        after_talk(
            "a run goes on where it stands, with what it starts and what is left of its steers",
            vec![
                edit(),
                (None, steer),
                (None, json!([selected(7)])),
                (Some("r3"), child),
                (Some("r5"), json!([said("m1")])),
                (Some("r3"), json!([said("m1")])),
                (None, json!([put("i6", "Elsewhere")])),
                (None, json!([ended("r5"), ended("r3"), requested("r6", "i4")])),
                (Some("r6"), json!([said("m1")])),
            ],
        ),
        after_talk(
            "branch entries about nothing",
            vec![(None, json!([begun(11), begun(99), selected(99), put("i4", "Go on")]))],
        ),
    ]
}
