//! What each entry does to a view.
//!
//! Entries that refer to something unknown or closed are ignored, so that a view made from a snapshot that left old
//! things out goes on the same way. Only open things are looked up, for the same reason: an id that is used again after
//! its first owner has closed names something new.

use super::branch::Maker;
use super::{
    Applied, Approval, Control, Error, Event, Held, Message, MessageState, OpenMessage, OpenRun, Part,
    PartState, Run, RunStatus, View,
};
use crate::fold::numbered;
use crate::forked::exact;
use everthread_protocol::entry::{ControlKind, ControlOutcome, Keep, Object, Outcome, Phase, PutPart};
use everthread_protocol::{Block, Entry, Epoch, MessageId, PartId, RunId, Seq};
use serde_json::Value;
use std::collections::HashMap;

impl View {
    /// Applies the blocks of a record that is the next one.
    pub(super) fn take(
        &mut self,
        epoch: Epoch,
        from: Seq,
        to: Seq,
        blocks: &[Block<'_>],
    ) -> Result<Applied, Error> {
        for block in blocks {
            for (first, last, raw) in numbered(block, from)? {
                // What ends after the cursor is applied even if it began before it: appends say where they belong.
                if last > self.seq {
                    self.entry(block, first, last, Entry::read(raw.get()))?;
                }
            }
        }
        (self.epoch, self.seq) = (epoch, to);
        Ok(Applied::Yes)
    }

    /// Applies the entries up to `limit` of a record that goes on behind it.
    pub(super) fn take_until(
        &mut self,
        epoch: Epoch,
        from: Seq,
        limit: Seq,
        blocks: &[Block<'_>],
    ) -> Result<Applied, Error> {
        let mut entries = Vec::new();
        for block in blocks {
            entries.extend(numbered(block, from)?.into_iter().map(|entry| (block, entry)));
        }
        let spans: Vec<(Seq, Seq)> = entries.iter().map(|(_, (first, last, _))| (*first, *last)).collect();
        let cut = exact(&spans, limit);
        if cut <= self.seq {
            return Ok(Applied::Duplicate);
        }
        for (block, (first, last, raw)) in entries {
            if last > self.seq && last <= cut {
                self.entry(block, first, last, Entry::read(raw.get()))?;
            }
        }
        (self.epoch, self.seq) = (epoch, cut);
        Ok(Applied::Yes)
    }

    fn entry(&mut self, block: &Block<'_>, seq: Seq, last: Seq, entry: Entry) -> Result<(), Error> {
        let run = block.run.as_ref();
        match entry {
            Entry::PartAppend { message, part, offset, text } => {
                return self.append(run, &message, &part, offset, &text, last);
            }
            Entry::PartStart { message, part, kind, attrs } => {
                let value = Value::String(String::new());
                let part = Part { part, kind, attrs, status: PartState::Open, value, seq: Some(seq) };
                self.start_part(run, &message, part);
            }
            Entry::PartSet { message, part, value } => {
                if let Some(part) = self.open_part(run, &message, &part) {
                    part.value = value;
                }
            }
            Entry::PartEnd { message, part, status, value } => {
                if let Some(open) = self.open_part(run, &message, &part) {
                    open.status = status.into();
                    open.value = value.unwrap_or(std::mem::take(&mut open.value));
                    self.forget_part(run, &message, &part);
                }
            }
            Entry::MessageStart { message, role } => {
                let by = author(block);
                let (status, at) = (MessageState::Streaming, block.at);
                let run = run.cloned();
                let (reply_to, usage, parts) = (None, None, Vec::new());
                self.start_message(Message {
                    message,
                    run,
                    seq,
                    at,
                    by,
                    role,
                    status,
                    reply_to,
                    usage,
                    parts,
                });
            }
            Entry::MessageEnd { message, status, usage } => {
                self.end_message(run, &message, status.into(), usage)
            }
            Entry::MessagePut { message, role, parts, reply_to } => {
                let (by, at, status) = (author(block), block.at, MessageState::Complete);
                let parts = put_parts(parts);
                self.grow(seq, run.map_or(Maker::Anybody, Maker::Run));
                // A put is the session's own, whoever writes it.
                let message =
                    Message { message, run: None, seq, at, by, role, status, reply_to, usage: None, parts };
                self.messages.push(message);
            }
            Entry::RunStep { phase, name } => self.step(run, seq, phase, name),
            Entry::Event { name, data, keep: Keep::Latest } => {
                let run = run.cloned();
                if let Some(old) = self.latest.insert((run.clone(), name.clone()), seq) {
                    self.events.remove(&old);
                }
                self.events.insert(seq, Event { name, run, data, seq });
            }
            Entry::Event { keep: Keep::All, .. } | Entry::Other => {}
            decided => self.decided(block, seq, decided),
        }
        Ok(())
    }

    /// Entries that come out of `decide`, where the block's run does not matter.
    fn decided(&mut self, block: &Block<'_>, seq: Seq, entry: Entry) {
        match entry {
            Entry::SessionOpened { meta } => self.session.meta = meta,
            Entry::SessionUpdated { patch } => {
                for (key, value) in patch {
                    if value.is_null() {
                        self.session.meta.remove(&key);
                    } else {
                        self.session.meta.insert(key, value);
                    }
                }
            }
            Entry::SessionClosed { reason } => {
                self.session.closed = true;
                self.session.closed_reason = reason;
            }
            Entry::StateSet { key, value } => {
                if value.is_null() {
                    self.values.remove(&key);
                } else {
                    self.values.insert(key, value);
                }
            }
            Entry::SessionHeld { reason } => {
                self.session.held = Some(Held { by: author(block), at: block.at, reason });
            }
            Entry::SessionReleased { .. } => self.session.held = None,
            Entry::BranchBegun { after } => self.session.begin_branch(seq, after),
            Entry::BranchSelected { through } => self.session.select_branch(through),
            Entry::ControlRequested { control, kind, target, mode, message, approval, .. } => {
                if self.pending(|c| c.control == control).is_none() {
                    self.controls.push(Control {
                        control,
                        kind,
                        target,
                        by: author(block),
                        mode,
                        message,
                        approval,
                        outcome: None,
                        reason: None,
                        run: None,
                        answered_by: None,
                        requested_seq: seq,
                    });
                }
            }
            Entry::ControlSettled { control, outcome, reason, run, answered_by } => {
                let Some(open) = self.pending(|c| c.control == control) else { return };
                (open.outcome, open.reason, open.run) = (Some(outcome), reason, run.clone());
                open.answered_by = answered_by;
                let (kind, message) = (open.kind, open.message.clone());
                if let Some(run) = run.filter(|_| outcome == ControlOutcome::Applied) {
                    self.applied(kind, &run, message);
                }
            }
            run => self.decided_run(seq, run),
        }
    }

    /// What a control has done to its run.
    fn applied(&mut self, kind: ControlKind, run: &RunId, message: Option<MessageId>) {
        let Some(run) = self.open_run(run) else { return };
        match (kind, message) {
            // The new run of a steer that waited has it already.
            (ControlKind::Steer, Some(message)) if !run.input.iter().any(|id| id == message.as_str()) => {
                run.input.push(message.to_string());
            }
            (ControlKind::Pause, _) => run.paused = true,
            (ControlKind::Resume, _) => run.paused = false,
            _ => {}
        }
    }

    fn decided_run(&mut self, seq: Seq, entry: Entry) {
        match entry {
            Entry::RunRequested { run, agent, input, parent_run, params } => {
                if self.open.contains_key(&run) {
                    return;
                }
                let parent = parent_run.as_ref().filter(|parent| self.open.contains_key(*parent));
                self.grow(seq, parent.map_or(Maker::Input(&input), Maker::Run));
                self.open.insert(run.clone(), OpenRun { at: self.runs.len(), messages: HashMap::new() });
                self.runs.push(Run {
                    run,
                    agent,
                    status: RunStatus::Requested,
                    input,
                    parent_run,
                    params,
                    worker: None,
                    attempt: None,
                    paused: false,
                    approvals: Vec::new(),
                    outcome: None,
                    reason: None,
                    forced: false,
                    error: None,
                    usage: None,
                    step: None,
                    step_mark: None,
                    requested_seq: seq,
                });
            }
            Entry::RunStarted { run, worker, attempt } => {
                if let Some(run) = self.open_run(&run) {
                    run.status = RunStatus::Active;
                    (run.worker, run.attempt) = (Some(worker), Some(attempt));
                }
            }
            Entry::RunReturned { run, .. } | Entry::RunResumed { run } => {
                if let Some(run) = self.open_run(&run) {
                    run.status = RunStatus::Requested;
                }
            }
            Entry::RunSuspended { run, approvals } => {
                if let Some(run) = self.open_run(&run) {
                    run.status = RunStatus::Suspended;
                    let open = |asked| Approval { asked, verdict: None, answered_by: None, value: None };
                    run.approvals.extend(approvals.into_iter().map(open));
                }
            }
            Entry::ApprovalSettled { run, approval, verdict, answered_by, value } => {
                let approvals = self.open_run(&run).map(|run| &mut run.approvals);
                let settled = approvals.into_iter().flatten().find(|a| a.asked.approval == approval);
                if let Some(settled) = settled {
                    settled.verdict = Some(verdict);
                    settled.answered_by = answered_by;
                    settled.value = value;
                }
            }
            Entry::RunEnded { run, outcome, reason, forced, error, usage } => {
                let Some(open) = self.open.remove(&run) else { return };
                let status = match outcome {
                    Outcome::Cancelled => MessageState::Cancelled,
                    Outcome::Completed | Outcome::Failed | Outcome::Lost => MessageState::Partial,
                };
                for message in open.messages.into_values() {
                    self.close(message, status, None);
                }
                let run = &mut self.runs[open.at];
                run.status = RunStatus::Ended;
                (run.outcome, run.reason, run.forced) = (Some(outcome), reason, forced);
                (run.error, run.usage) = (error, usage);
                (run.step, run.step_mark, run.paused) = (None, None, false);
            }
            _ => {}
        }
    }

    fn append(
        &mut self,
        run: Option<&RunId>,
        message: &MessageId,
        part: &PartId,
        offset: u64,
        text: &str,
        seq: Seq,
    ) -> Result<(), Error> {
        let Some(Part { value: Value::String(value), .. }) = self.open_part(run, message, part) else {
            return Ok(());
        };
        match usize::try_from(offset) {
            Ok(cut) if value.is_char_boundary(cut) => {
                value.truncate(cut);
                value.push_str(text);
                Ok(())
            }
            _ => Err(Error::Inconsistent { seq, offset, length: value.len() }),
        }
    }

    fn start_message(&mut self, message: Message) {
        let Some(run) = message.run.clone() else { return };
        let Some(open) = self.open.get(&run) else { return };
        if open.messages.contains_key(&message.message) {
            return;
        }
        self.grow(message.seq, Maker::Run(&run));
        let at = self.messages.len();
        let Some(open) = self.open.get_mut(&run) else { return };
        open.messages.insert(message.message.clone(), OpenMessage { at, parts: HashMap::new() });
        self.messages.push(message);
    }

    fn end_message(
        &mut self,
        run: Option<&RunId>,
        id: &MessageId,
        status: MessageState,
        usage: Option<Object>,
    ) {
        let open = run.and_then(|run| self.open.get_mut(run));
        if let Some(message) = open.and_then(|open| open.messages.remove(id)) {
            self.close(message, status, usage);
        }
    }

    /// Closes a message, which is out of the index already, and its open parts.
    fn close(&mut self, open: OpenMessage, status: MessageState, usage: Option<Object>) {
        let message = &mut self.messages[open.at];
        (message.status, message.usage) = (status, usage);
        let left = if status == MessageState::Complete { PartState::Done } else { PartState::Aborted };
        for at in open.parts.into_values() {
            message.parts[at].status = left;
        }
    }

    fn start_part(&mut self, run: Option<&RunId>, message: &MessageId, part: Part) {
        let Some(open) = run.and_then(|run| self.open.get_mut(run)?.messages.get_mut(message)) else {
            return;
        };
        let parts = &mut self.messages[open.at].parts;
        if let std::collections::hash_map::Entry::Vacant(vacant) = open.parts.entry(part.part.clone()) {
            vacant.insert(parts.len());
            parts.push(part);
        }
    }

    fn forget_part(&mut self, run: Option<&RunId>, message: &MessageId, part: &PartId) {
        if let Some(open) = run.and_then(|run| self.open.get_mut(run)?.messages.get_mut(message)) {
            open.parts.remove(part);
        }
    }

    fn step(&mut self, run: Option<&RunId>, seq: Seq, phase: Phase, name: Option<String>) {
        let Some(open) = run.and_then(|run| self.open_run(run)) else { return };
        match phase {
            Phase::Start => (open.step, open.step_mark) = (name, Some(seq)),
            Phase::End => open.step = None,
            Phase::Reset => {
                let mark = open.step_mark.unwrap_or(Seq::ZERO);
                self.messages.retain(|message| message.run.as_ref() != run || message.seq <= mark);
                for message in self.messages.iter_mut().filter(|message| message.run.as_ref() == run) {
                    message.parts.retain(|part| part.seq.is_none_or(|seq| seq <= mark));
                }
                self.index();
            }
        }
    }

    fn open_run(&mut self, run: &RunId) -> Option<&mut Run> {
        let at = self.open.get(run)?.at;
        self.runs.get_mut(at)
    }

    fn open_part(&mut self, run: Option<&RunId>, message: &MessageId, part: &PartId) -> Option<&mut Part> {
        let open = self.open.get(run?)?.messages.get(message)?;
        let at = *open.parts.get(part)?;
        self.messages.get_mut(open.at)?.parts.get_mut(at)
    }

    /// A control without outcome; they are few and recent.
    fn pending(&mut self, is: impl Fn(&Control) -> bool) -> Option<&mut Control> {
        self.controls.iter_mut().rfind(|control| control.outcome.is_none() && is(control))
    }
}

/// The author as it stands in the block: a later release may know more kinds than this one.
fn author(block: &Block<'_>) -> Value {
    serde_json::from_str(block.by.get()).unwrap_or_default()
}

fn put_parts(parts: Vec<PutPart>) -> Vec<Part> {
    let numbered = parts.into_iter().enumerate();
    let part = |(at, PutPart { kind, value, attrs }): (usize, PutPart)| {
        let part = (at + 1).to_string().parse().ok()?;
        Some(Part { part, kind, attrs, status: PartState::Done, value, seq: None })
    };
    numbered.filter_map(part).collect()
}
