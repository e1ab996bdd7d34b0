//! Makes valid logs out of random steps.
//!
//! A step is a few small numbers that mean something only in the state the log is in, so that every list of steps is a
//! valid log and a shorter list is a smaller one.

use everthread_protocol::{Epoch, Record, Seq};
use proptest::prelude::*;
use serde_json::{Value, json};

/// One step: what happens, to what, with which text, and whether a new block begins.
#[derive(Debug, Clone)]
pub struct Step {
    pub what: u8,
    pub which: u8,
    pub text: u8,
    pub cut: bool,
}

pub fn steps(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let step = (0u8..126, any::<u8>(), any::<u8>(), prop::bool::weighted(0.4));
    prop::collection::vec(step.prop_map(|(what, which, text, cut)| Step { what, which, text, cut }), len)
}

const TEXTS: &[&str] = &["a", "Hello ", "wörld", "日本", "🦀", "e\u{301}", "\"\\\n", "", "👩‍👩‍👧", "long text, "];
const RUNS: usize = 3;

/// A log as it was written, and the same log entry by entry.
#[derive(Debug, Default)]
pub struct Log {
    pub records: Vec<Record>,
    /// One record per seq: `singles[n]` is seq n + 1.
    pub singles: Vec<Record>,
    /// Known epochs with the first seq of each.
    pub epochs: Vec<(Epoch, Seq)>,
}

impl Log {
    pub fn since(&self, epoch: Epoch) -> Seq {
        self.epochs.iter().find(|(known, _)| *known == epoch).unwrap().1
    }
}

struct PartModel {
    id: String,
    text: Option<String>,
    open: bool,
    step: usize,
}

struct MessageModel {
    id: String,
    parts: Vec<PartModel>,
    open: bool,
    step: usize,
}

#[derive(Default)]
struct RunModel {
    id: String,
    messages: Vec<MessageModel>,
    /// Number of steps begun; what was begun in the last one goes with a reset.
    step: usize,
    attempt: u32,
    /// No worker holds it: it waits for another, or for people.
    waits: bool,
    /// What it waits for.
    approvals: Vec<String>,
}

#[derive(Default)]
struct Maker {
    log: Log,
    seq: u64,
    at: u64,
    epoch: u64,
    names: usize,
    runs: Vec<Option<RunModel>>,
    /// Controls without outcome: id, run, and whether it is a steer.
    controls: Vec<(String, String, bool)>,
    /// The block that is being filled: its run and entries.
    block: (Option<String>, Vec<Value>),
}

/// The log that the steps make.
pub fn make(steps: &[Step]) -> Log {
    let mut maker = Maker { at: 1000, epoch: 1, ..Maker::default() };
    maker.runs.resize_with(RUNS, || None);
    maker.log.epochs.push((Epoch(1), Seq(1)));
    maker.write(None, json!({"type": "session.opened", "meta": {"title": "t"}}));
    for step in steps {
        maker.step(step);
    }
    maker.flush();
    maker.log
}

impl Maker {
    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn write(&mut self, run: Option<&str>, entry: Value) {
        if self.block.0.as_deref() != run {
            self.flush();
        }
        self.block.0 = run.map(str::to_owned);
        self.block.1.push(entry);
    }

    fn flush(&mut self) {
        let (run, entries) = std::mem::take(&mut self.block);
        if entries.is_empty() {
            return;
        }
        let by = match &run {
            Some(_) => json!({"kind": "agent", "id": "guide"}),
            None => json!({"kind": "user", "id": "ann", "device": "d1"}),
        };
        let record = |from: u64, to: u64, entries: &[Value]| {
            let mut block = json!({"by": by, "at": self.at, "entries": entries});
            if let Some(run) = &run {
                block["run"] = json!(run);
            }
            let blocks = serde_json::to_vec(&json!([block])).unwrap().into();
            Record { epoch: Epoch(self.epoch), from: Seq(from), to: Seq(to), blocks }
        };
        let first = self.seq + 1;
        let last = self.seq + entries.len() as u64;
        self.log.records.push(record(first, last, &entries));
        for (seq, entry) in (first..).zip(&entries) {
            self.log.singles.push(record(seq, seq, std::slice::from_ref(entry)));
        }
        self.seq = last;
    }

    fn step(&mut self, step: &Step) {
        if step.cut {
            self.flush();
            self.at += u64::from(step.text % 3);
        }
        let slot = usize::from(step.which) % RUNS;
        match step.what {
            90 => {
                self.flush();
                self.epoch += 1;
                self.log.epochs.push((Epoch(self.epoch), Seq(self.seq + 1)));
            }
            91..=99 => self.session_entry(step),
            100..=102 => self.hold_entry(step),
            120..=125 => self.branch_entry(step),
            103..=109 => self.settle_entry(step),
            _ => match self.runs[slot].take() {
                None => self.request(slot),
                Some(run) => {
                    let run = self.run_entry(run, step);
                    self.runs[slot] = run;
                }
            },
        }
    }

    fn session_entry(&mut self, step: &Step) {
        let name = format!("e{}", step.which % 3);
        let text = TEXTS[usize::from(step.text) % TEXTS.len()];
        let entry = match step.what {
            91 | 92 => json!({"type": "event", "name": name, "data": text, "keep": "latest"}),
            93 => json!({"type": "event", "name": name, "data": text}),
            94 => {
                json!({"type": "state.set", "key": name, "value": if step.text < 40 { Value::Null } else { json!(text) }})
            }
            95 => {
                json!({"type": "session.updated", "patch": {"title": text, "gone": Value::Null, (name): step.text}})
            }
            96 => json!({"type": "x-mine", "message": "m1", "any": text}),
            97 => {
                let target = match self.runs[usize::from(step.which) % RUNS].as_ref() {
                    Some(run) => json!({"run": run.id}),
                    None => json!({"input": "i1"}),
                };
                json!({"type": "control.requested", "control": self.name("c"), "kind": "cancel", "target": target, "expires": 9})
            }
            98 => {
                json!({"type": "control.settled", "control": format!("c{}", step.text % 50), "outcome": "applied"})
            }
            _ => json!({"type": "message.put", "message": self.name("i"), "role": "user", "reply_to": "m0",
                "parts": [{"kind": "text", "value": text}, {"kind": "data", "value": {"n": step.which}}]}),
        };
        self.write(None, entry);
    }

    fn request(&mut self, slot: usize) {
        let (run, input) = (self.name("r"), self.name("i"));
        let parts = json!([{"kind": "text", "value": "hi"}]);
        self.write(None, json!({"type": "message.put", "message": input, "role": "user", "parts": parts}));
        let parent = self.runs.iter().flatten().next().map(|run| run.id.clone());
        let mut entry = json!({"type": "run.requested", "run": run, "agent": "guide", "input": [input]});
        if let Some(parent) = parent {
            entry["parent_run"] = json!(parent);
        }
        self.write(None, entry);
        self.write(None, json!({"type": "run.started", "run": run, "worker": "w1", "attempt": 1}));
        self.runs[slot] = Some(RunModel { id: run, attempt: 1, ..RunModel::default() });
    }

    fn run_entry(&mut self, mut run: RunModel, step: &Step) -> Option<RunModel> {
        let id = run.id.clone();
        let text = TEXTS[usize::from(step.text) % TEXTS.len()];
        match step.what {
            110..=112 => self.ask_entry(&id, step),
            _ if run.waits => self.waiting_entry(&mut run, step),
            113..=119 => self.leave_entry(&mut run, step),
            0 | 1 => {
                let outcome = ["completed", "cancelled", "failed", "lost"][usize::from(step.text) % 4];
                self.write(
                    None,
                    json!({"type": "run.ended", "run": id, "outcome": outcome, "reason": "why"}),
                );
                return None;
            }
            2 | 3 => {
                run.step += 1;
                self.write(Some(&id), json!({"type": "run.step", "phase": "start", "name": text}));
            }
            4 => self.write(Some(&id), json!({"type": "run.step", "phase": "end"})),
            5..=7 => {
                let step = run.step;
                run.messages.retain(|message| message.step < step);
                for message in &mut run.messages {
                    message.parts.retain(|part| part.step < step);
                }
                // Without a step, everything goes: nothing was begun before the first one.
                if step == 0 {
                    run.messages.clear();
                }
                self.write(Some(&id), json!({"type": "run.step", "phase": "reset"}));
            }
            8 => {
                run.attempt += 1;
                self.write(
                    None,
                    json!({"type": "run.started", "run": id, "worker": "w2", "attempt": run.attempt}),
                );
            }
            9 | 10 => {
                let data = json!({"progress": step.text});
                let entry = json!({"type": "event", "name": "progress", "data": data, "keep": "latest"});
                self.write(Some(&id), entry);
            }
            11 => self.write(Some(&id), json!({"type": "later.type", "n": 1})),
            _ => self.message_entry(&mut run, step),
        }
        Some(run)
    }

    /// The run loses its worker: it is given back, or waits for people.
    fn leave_entry(&mut self, run: &mut RunModel, step: &Step) {
        run.waits = true;
        if step.what < 116 {
            let reason = ["worker_lost", "declined"][usize::from(step.text) % 2];
            self.write(None, json!({"type": "run.returned", "run": run.id, "reason": reason}));
            return;
        }
        run.approvals = (0..=step.text % 3).map(|_| self.name("a")).collect();
        let asked = |id: &String| json!({"approval": id, "reason": "may I?", "expires": 9, "data": {"n": step.which}});
        let approvals: Vec<Value> = run.approvals.iter().map(asked).collect();
        self.write(None, json!({"type": "run.suspended", "run": run.id, "approvals": approvals}));
    }

    /// What happens to a run that no worker holds: its approvals are settled, then another worker gets it.
    fn waiting_entry(&mut self, run: &mut RunModel, step: &Step) {
        if let Some(approval) = run.approvals.pop() {
            let verdict = ["approved", "denied", "expired"][usize::from(step.text) % 3];
            let mut entry =
                json!({"type": "approval.settled", "run": run.id, "approval": approval, "verdict": verdict});
            if verdict != "expired" {
                entry["answered_by"] = json!({"kind": "user", "id": "ann"});
                entry["value"] = json!({"n": step.which});
            }
            self.write(None, entry);
            if run.approvals.is_empty() {
                self.write(None, json!({"type": "run.resumed", "run": run.id}));
            }
            return;
        }
        (run.waits, run.attempt) = (false, run.attempt + 1);
        self.write(
            None,
            json!({"type": "run.started", "run": run.id, "worker": "w3", "attempt": run.attempt}),
        );
    }

    /// Something other than a cancel is asked of a run.
    fn ask_entry(&mut self, run: &str, step: &Step) {
        let control = self.name("c");
        let kind = ["steer", "pause", "resume", "interrupt"][usize::from(step.text) % 4];
        let target = json!({"run": run});
        let mut entry = json!({"type": "control.requested", "control": control, "kind": kind, "target": target, "expires": 9});
        if matches!(kind, "steer" | "interrupt") {
            let message = self.name("i");
            let parts = json!([{"kind": "text", "value": "shorter"}]);
            self.write(
                None,
                json!({"type": "message.put", "message": message, "role": "user", "parts": parts}),
            );
            entry["message"] = json!(message);
        }
        self.write(None, entry);
        self.controls.push((control, run.to_owned(), kind == "steer"));
    }

    fn settle_entry(&mut self, step: &Step) {
        if self.controls.is_empty() {
            return;
        }
        let (control, run, is_steer) = self.controls.remove(usize::from(step.which) % self.controls.len());
        let outcome = ["applied", "applied", "refused", "expired"][usize::from(step.text) % 4];
        let mut entry =
            json!({"type": "control.settled", "control": control, "outcome": outcome, "run": run});
        if outcome != "applied" {
            entry["reason"] = json!("run_ended");
            if is_steer {
                let new = self.name("r");
                self.write(
                    None,
                    json!({"type": "run.requested", "run": new, "agent": "guide", "input": ["i1"]}),
                );
                entry["run"] = json!(new);
            }
        }
        self.write(None, entry);
    }

    fn hold_entry(&mut self, step: &Step) {
        let kind = ["session.held", "session.released"][usize::from(step.text) % 2];
        self.write(None, json!({"type": kind, "reason": "why"}));
    }

    /// The log goes on from somewhere else, now and then from where it is.
    fn branch_entry(&mut self, step: &Step) {
        // Of this entry as it will be.
        let seq = self.seq + self.block.1.len() as u64 + 1;
        let place = u64::from(step.which) * seq / 256;
        self.write(
            None,
            match step.what {
                120..=122 => json!({"type": "branch.begun", "after": place}),
                _ => json!({"type": "branch.selected", "through": place}),
            },
        );
    }

    fn message_entry(&mut self, run: &mut RunModel, step: &Step) {
        let id = run.id.clone();
        let mut open: Vec<usize> = (0..run.messages.len()).filter(|i| run.messages[*i].open).collect();
        if open.is_empty() || (step.what < 16 && open.len() < 3) {
            // Ids are used again once they are free: a closed one and one that a reset took.
            let taken = |name: &str| run.messages.iter().any(|m| m.open && m.id == name);
            let message = (0..).map(|n| format!("m{n}")).find(|name| !taken(name)).unwrap();
            self.write(Some(&id), json!({"type": "message.start", "message": message, "role": "assistant"}));
            run.messages.push(MessageModel { id: message, parts: Vec::new(), open: true, step: run.step });
            return;
        }
        let at = open.swap_remove(usize::from(step.which / 3) % open.len());
        let current = run.step;
        let message = &mut run.messages[at];
        if step.what < 19 {
            let status = ["complete", "failed"][usize::from(step.text) % 2];
            self.write(Some(&id), json!({"type": "message.end", "message": message.id, "status": status}));
            message.open = false;
            return;
        }
        self.part_entry(&id, message, step, current);
    }

    fn part_entry(&mut self, run: &str, message: &mut MessageModel, step: &Step, current: usize) {
        let text = TEXTS[usize::from(step.text) % TEXTS.len()];
        let open: Vec<usize> = (0..message.parts.len()).filter(|i| message.parts[*i].open).collect();
        if open.is_empty() || (step.what < 24 && open.len() < 3) {
            let taken = |name: &str| message.parts.iter().any(|p| p.open && p.id == name);
            let part = (0..).map(|n| format!("p{n}")).find(|name| !taken(name)).unwrap();
            let entry = json!({"type": "part.start", "message": message.id, "part": part, "kind": "text"});
            self.write(Some(run), entry);
            // An empty append makes the next one contiguous, also with that of an earlier part of the same id.
            if step.text.is_multiple_of(2) {
                let empty = json!({"type": "part.append", "message": message.id, "part": part, "offset": 0, "text": ""});
                self.write(Some(run), empty);
            }
            message.parts.push(PartModel { id: part, text: Some(String::new()), open: true, step: current });
            return;
        }
        let part = &mut message.parts[open[usize::from(step.which / 9) % open.len()]];
        let ids = (&message.id, &part.id);
        match step.what {
            24..=27 => {
                // Often as long as before, so that the next append is contiguous with the one before the set.
                let same = "=".repeat(part.text.as_deref().unwrap_or("").len());
                let text = if step.cut { text } else { same.as_str() };
                let entry = json!({"type": "part.set", "message": ids.0, "part": ids.1, "value": text});
                part.text = Some(text.to_owned());
                self.write(Some(run), entry);
            }
            28 => {
                let entry =
                    json!({"type": "part.set", "message": ids.0, "part": ids.1, "value": {"a": text}});
                self.write(Some(run), entry);
                part.text = None;
            }
            29..=32 => {
                let mut entry =
                    json!({"type": "part.end", "message": ids.0, "part": ids.1, "status": "done"});
                if step.text.is_multiple_of(3) {
                    entry["value"] = json!({"final": text});
                }
                self.write(Some(run), entry);
                part.open = false;
            }
            _ => {
                let value = part.text.get_or_insert_default();
                // Now and then a writer takes some of it back.
                let offset = match step.what {
                    33..=38 => boundary(value, usize::from(step.text)),
                    _ => value.len(),
                };
                value.truncate(offset);
                value.push_str(text);
                let entry = json!({"type": "part.append", "message": ids.0, "part": ids.1, "offset": offset, "text": text});
                self.write(Some(run), entry);
            }
        }
    }
}

fn boundary(text: &str, near: usize) -> usize {
    let mut at = near % (text.len() + 1);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
