//! The cases of `view.json` about live control: steer, interrupt, pause and resume, approvals, takeover.

use crate::vectors_data::{
    AT, ann, append, case, frame, guide, message_start, opening, put, start_part, system, writing,
};
use serde_json::{Value, json};

fn bea() -> Value {
    json!({"kind": "operator", "id": "bea"})
}

fn requested(control: &str, kind: &str, target: Value, more: &[(&str, Value)]) -> Value {
    let mut entry = json!({"type": "control.requested", "control": control, "kind": kind, "target": target,
        "expires": AT + 120_000});
    for (key, value) in more {
        entry[*key] = value.clone();
    }
    entry
}

fn of_run(control: &str, kind: &str, more: &[(&str, Value)]) -> Value {
    requested(control, kind, json!({"run": "r1"}), more)
}

fn settled(control: &str, outcome: &str, more: &[(&str, Value)]) -> Value {
    let mut entry = json!({"type": "control.settled", "control": control, "outcome": outcome});
    for (key, value) in more {
        entry[*key] = value.clone();
    }
    entry
}

fn applied(control: &str) -> Value {
    settled(control, "applied", &[("run", json!("r1"))])
}

fn refused(control: &str, reason: &str) -> Value {
    settled(control, "refused", &[("reason", json!(reason)), ("run", json!("r1"))])
}

fn run_requested(run: &str, input: &[&str]) -> Value {
    json!({"type": "run.requested", "run": run, "agent": "guide", "input": input})
}

fn started(run: &str, worker: &str, attempt: u64) -> Value {
    json!({"type": "run.started", "run": run, "worker": worker, "attempt": attempt})
}

fn ended(run: &str, outcome: &str, reason: Option<&str>) -> Value {
    let mut entry = json!({"type": "run.ended", "run": run, "outcome": outcome});
    if let Some(reason) = reason {
        entry["reason"] = json!(reason);
    }
    entry
}

/// Seq 1 to 6 and then one block each, with its author; `Some` is a block of the run's worker.
fn after_writing(name: &str, blocks: Vec<(Value, Option<&str>, Value)>) -> Value {
    let mut frames = vec![opening(), writing()];
    let mut seq = 7;
    for (by, run, entries) in blocks {
        let count = entries.as_array().map_or(0, Vec::len) as u64;
        frames.push(frame(seq, by, run, entries));
        seq += count;
    }
    case(name, frames)
}

pub fn cases() -> Vec<Value> {
    let mut cases = steers();
    cases.extend(new_runs());
    cases.extend(waiting());
    cases.extend(approvals());
    cases.extend(attempts());
    cases.extend(takeover());
    cases
}

/// A steer with the message it carries, put in the same block.
fn steer(control: &str, message: &str, mode: &str) -> Value {
    let more = [("mode", json!(mode)), ("message", json!(message))];
    json!([put(message, "Shorter"), of_run(control, "steer", &more)])
}

fn steers() -> Vec<Value> {
    let to_new = |control: &str, outcome: &str, reason: &str| {
        settled(control, outcome, &[("reason", json!(reason)), ("run", json!("r2"))])
    };
    vec![
        after_writing(
            "a steer that is applied becomes input of its run",
            vec![(ann(), None, steer("c1", "i2", "next_step")), (guide(), None, json!([applied("c1")]))],
        ),
        after_writing(
            "a steer that the worker refuses becomes the input of a new run",
            vec![
                (ann(), None, steer("c1", "i2", "now")),
                (
                    guide(),
                    None,
                    json!([run_requested("r2", &["i2"]), to_new("c1", "refused", "not_supported")]),
                ),
            ],
        ),
        after_writing(
            "steers that the end of the run overtakes become the input of one new run",
            vec![
                (ann(), None, steer("c1", "i2", "next_step")),
                (ann(), None, steer("c2", "i3", "next_step")),
                (
                    guide(),
                    None,
                    json!([
                        ended("r1", "completed", None),
                        run_requested("r2", &["i2", "i3"]),
                        to_new("c1", "refused", "run_ended"),
                        to_new("c2", "refused", "run_ended"),
                    ]),
                ),
            ],
        ),
        after_writing(
            "a steer that nobody takes in time",
            vec![
                (ann(), None, steer("c1", "i2", "next_step")),
                (system(), None, json!([run_requested("r2", &["i2"]), to_new("c1", "expired", "timeout")])),
            ],
        ),
    ]
}

fn new_runs() -> Vec<Value> {
    let with = |mut entries: Value, more: &[Value]| {
        if let Some(list) = entries.as_array_mut() {
            list.extend_from_slice(more);
        }
        entries
    };
    let interrupt = json!([
        put("i2", "Stop, do this"),
        of_run("c1", "interrupt", &[("message", json!("i2"))]),
        run_requested("r2", &["i2"]),
    ]);
    vec![
        after_writing(
            "a steer for when the run is idle: its message stands in the new run's input once",
            vec![(
                ann(),
                None,
                with(
                    steer("c1", "i2", "when_idle"),
                    &[run_requested("r2", &["i2"]), settled("c1", "applied", &[("run", json!("r2"))])],
                ),
            )],
        ),
        after_writing(
            "a steer whose text goes nowhere names no run",
            vec![
                (ann(), None, steer("c1", "i2", "next_step")),
                (
                    system(),
                    None,
                    json!([
                        ended("r1", "cancelled", Some("session_closed")),
                        settled("c1", "refused", &[("reason", json!("run_ended"))]),
                        {"type": "session.closed"},
                    ]),
                ),
            ],
        ),
        after_writing(
            "an interrupt ends the run and begins another",
            vec![
                (ann(), None, interrupt),
                (guide(), Some("r1"), json!([append("p1", 0, "So far")])),
                (guide(), None, json!([ended("r1", "cancelled", None), applied("c1")])),
                (system(), None, json!([started("r2", "w1", 1)])),
            ],
        ),
    ]
}

fn waiting() -> Vec<Value> {
    let pause = |control: &str| json!([of_run(control, "pause", &[])]);
    let resume = |control: &str| json!([of_run(control, "resume", &[])]);
    vec![
        after_writing(
            "a run that is paused",
            vec![(ann(), None, pause("c1")), (guide(), None, json!([applied("c1")]))],
        ),
        after_writing(
            "a run that is paused and resumed",
            vec![
                (ann(), None, pause("c1")),
                (guide(), None, json!([applied("c1")])),
                (ann(), None, resume("c2")),
                (guide(), None, json!([applied("c2")])),
            ],
        ),
        after_writing(
            "a pause that a resume replaces",
            vec![
                (ann(), None, pause("c1")),
                (ann(), None, json!([of_run("c2", "resume", &[]), refused("c1", "superseded")])),
                (guide(), None, json!([refused("c2", "not_supported")])),
            ],
        ),
        after_writing(
            "a paused run that ends is not paused any more",
            vec![
                (ann(), None, pause("c1")),
                (guide(), None, json!([applied("c1")])),
                (guide(), None, json!([ended("r1", "completed", None)])),
            ],
        ),
        after_writing(
            "controls of agents and of all",
            vec![(
                ann(),
                None,
                json!([
                    requested("c1", "cancel", json!({"agent": "guide"}), &[]),
                    requested("c2", "cancel", json!({"all": true}), &[]),
                    requested("c3", "pause", json!({"agent": "nobody"}), &[]),
                    settled("c3", "refused", &[("reason", json!("no_active_run"))]),
                    requested("c4", "later_kind", json!({"run": "r1"}), &[]),
                ]),
            )],
        ),
    ]
}

fn approval(id: &str) -> Value {
    json!({"approval": id, "reason": "May I pay 12 €?", "expires": AT + 86_400_000})
}

fn suspended(approvals: &[Value]) -> Value {
    json!({"type": "run.suspended", "run": "r1", "approvals": approvals})
}

fn answered(id: &str, verdict: &str, by: Option<Value>, value: Option<Value>) -> Value {
    let mut entry = json!({"type": "approval.settled", "run": "r1", "approval": id, "verdict": verdict});
    if let Some(by) = by {
        entry["answered_by"] = by;
    }
    if let Some(value) = value {
        entry["value"] = value;
    }
    entry
}

fn approvals() -> Vec<Value> {
    let resumed = json!({"type": "run.resumed", "run": "r1"});
    let mut full = approval("pay");
    full["schema"] = json!({"type": "object"});
    full["digest"] = json!("sha256-1");
    full["who"] = json!({"kinds": ["operator"], "subjects": ["bea"]});
    full["data"] = json!({"tool": "pay", "amount": 12});
    let both = suspended(&[full, approval("send")]);
    let answer = |control: &str, id: &str| of_run(control, "answer", &[("approval", json!(id))]);
    let late = settled(
        "c3",
        "refused",
        &[("reason", json!("already_answered")), ("run", json!("r1")), ("answered_by", bea())],
    );
    let pay = json!([
        answer("c1", "pay"),
        applied("c1"),
        answered("pay", "approved", Some(bea()), Some(json!({"limit": 20}))),
    ]);
    let send =
        json!([answer("c2", "send"), applied("c2"), answered("send", "denied", Some(ann()), None), resumed,]);
    vec![
        after_writing("a run that waits for two approvals", vec![(guide(), None, json!([both]))]),
        after_writing(
            "two answers, and one that came too late",
            vec![
                (guide(), None, json!([both])),
                (bea(), None, pay.clone()),
                (ann(), None, json!([answer("c3", "pay"), late])),
                (ann(), None, send.clone()),
            ],
        ),
        after_writing(
            "after the answers another worker goes on where the text ended",
            vec![
                (guide(), Some("r1"), json!([append("p1", 0, "May I? ")])),
                (guide(), None, json!([both])),
                (bea(), None, pay),
                (ann(), None, send),
                (system(), None, json!([started("r1", "w2", 2)])),
                (guide(), Some("r1"), json!([append("p1", 7, "Paid.")])),
            ],
        ),
        after_writing(
            "an approval that nobody gave in time, and a second suspension",
            vec![
                (guide(), None, json!([suspended(&[approval("pay")])])),
                (system(), None, json!([answered("pay", "expired", None, None), resumed])),
                (system(), None, json!([started("r1", "w2", 2)])),
                (guide(), None, json!([suspended(&[approval("again")])])),
            ],
        ),
        after_writing(
            "a suspended run that is cancelled leaves its approvals open",
            vec![
                (guide(), None, json!([suspended(&[approval("pay")])])),
                (
                    ann(),
                    None,
                    json!([
                        of_run("c1", "cancel", &[]),
                        ended("r1", "cancelled", Some("cancel")),
                        applied("c1")
                    ]),
                ),
                (ann(), None, json!([answer("c2", "pay"), refused("c2", "run_ended")])),
            ],
        ),
    ]
}

fn attempts() -> Vec<Value> {
    let returned = |reason: &str| json!({"type": "run.returned", "run": "r1", "reason": reason});
    let steer = steer("c1", "i2", "next_step");
    vec![
        after_writing(
            "a run whose worker died waits for another",
            vec![
                (guide(), Some("r1"), json!([append("p1", 0, "Hel")])),
                (ann(), None, steer),
                (system(), None, json!([returned("worker_lost"), applied("c1")])),
            ],
        ),
        after_writing(
            "a run that another worker goes on with after a death",
            vec![
                (guide(), Some("r1"), json!([append("p1", 0, "Hel")])),
                (system(), None, json!([returned("worker_lost")])),
                (system(), None, json!([started("r1", "w2", 2)])),
                (guide(), Some("r1"), json!([append("p1", 3, "lo"), start_part("p2")])),
            ],
        ),
        after_writing(
            "a run that was given back, and a reason of a later release",
            vec![
                (guide(), None, json!([returned("declined")])),
                (system(), None, json!([started("r1", "w2", 2), returned("later_reason")])),
            ],
        ),
    ]
}

fn takeover() -> Vec<Value> {
    let held = json!([
        {"type": "session.held", "reason": "the customer asked for a person"},
        {"type": "run.ended", "run": "r1", "outcome": "cancelled", "reason": "held", "forced": true},
    ]);
    let said = json!([{"type": "message.put", "message": "i2", "role": "operator", "parts": [{"kind": "text", "value": "I am Bea"}]}]);
    let pause = json!([
        of_run("c1", "pause", &[]),
        settled("c1", "refused", &[("reason", json!("held")), ("run", json!("r1"))]),
    ]);
    let released = json!([{"type": "session.released", "reason": "done"}, run_requested("r2", &["i2"])]);
    let nowhere = json!([
        {"type": "run.returned", "run": "r9", "reason": "worker_lost"},
        {"type": "run.suspended", "run": "r9", "approvals": [approval("pay")]},
        {"type": "approval.settled", "run": "r1", "approval": "unknown", "verdict": "approved"},
        {"type": "run.resumed", "run": "r9"},
        settled("c9", "applied", &[("run", json!("r1"))]),
        {"type": "session.released"},
    ]);
    vec![
        after_writing("a session that a person has taken over", vec![(bea(), None, held.clone())]),
        after_writing(
            "a session that a person took over and handed back",
            vec![(bea(), None, held), (bea(), None, said), (ann(), None, pause), (bea(), None, released)],
        ),
        after_writing(
            "control entries about nothing that is known are ignored",
            vec![(system(), None, nowhere)],
        ),
        after_writing(
            "ids of messages are free again for another run",
            vec![
                (guide(), None, json!([ended("r1", "completed", None), run_requested("r2", &[])])),
                (guide(), Some("r2"), json!([message_start(), start_part("p1"), append("p1", 0, "second")])),
            ],
        ),
    ]
}
