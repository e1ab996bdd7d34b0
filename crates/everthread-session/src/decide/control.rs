//! Controls: each gets exactly one outcome, by its deadline at the latest.

use super::run::Ending;
use super::{Ask, Draft, Refusal};
use crate::state::{Control, ControlStage, Hold, Run, RunStatus};
use everthread_protocol::control::{Mode, What};
use everthread_protocol::entry::{ControlKind, ControlOutcome, Entry, Outcome, RefusalReason, Role, Target};
use everthread_protocol::limits::{
    CANCEL_INPUT_WAIT_MS, PAUSE_WAIT_MS, PENDING_CONTROLS_MAX, SETTLED_MEMORY_MS, STEER_WAIT_MS,
};
use everthread_protocol::{AgentName, ApprovalId, Author, ControlId, MessageId, Millis, RunId};

/// A control that is about to be logged.
pub(super) struct Asked {
    pub control: ControlId,
    pub kind: ControlKind,
    pub target: Target,
    pub runs: Vec<RunId>,
    pub wait_ms: u64,
    pub mode: Option<Mode>,
    pub message: Option<MessageId>,
    pub approval: Option<ApprovalId>,
}

impl Asked {
    pub fn new(control: ControlId, kind: ControlKind, target: Target, wait_ms: u64) -> Asked {
        let (mode, message, approval) = (None, None, None);
        Asked { control, kind, target, runs: Vec::new(), wait_ms, mode, message, approval }
    }
}

impl Draft<'_> {
    pub(super) fn control(&mut self, ask: &Ask) -> Result<(), Refusal> {
        let by = ask.by.id.clone();
        if let Some(known) = self.state().controls.get(&ask.control) {
            // What carries nothing of its asker's is the same whoever asks.
            let is_alike = matches!(ask.what, What::Cancel | What::Pause | What::Resume);
            let is_it = known.kind == ask.what.kind()
                && known.target == ask.target
                && (is_alike || known.by.as_ref() == Some(&by));
            return Err(if is_it { Refusal::Known } else { Refusal::IdInUse(ask.control.to_string()) });
        }
        // It may have been carried out and forgotten: done again, it would hit what has come since.
        let forgotten = Millis(self.context.now.0.saturating_sub(SETTLED_MEMORY_MS));
        let forgotten = forgotten.max(self.state().forgotten);
        if ask.made_at.is_some_and(|made_at| made_at <= forgotten) {
            return Err(Refusal::TooOld);
        }
        self.carry_out(ask)?;
        if let Some(control) = self.state().controls.get_mut(&ask.control) {
            control.by = Some(by);
        }
        self.check_waiting(&ask.control)
    }

    /// Whether there is room for one more that waits. Controls that end runs have room of their own: whatever else waits,
    /// a stop gets through.
    fn check_waiting(&mut self, id: &ControlId) -> Result<(), Refusal> {
        let ends = |control: &Control| {
            matches!(control.kind, ControlKind::Cancel | ControlKind::Interrupt) && !control.runs.is_empty()
        };
        let state = self.state();
        let Some(asked) = state.controls.get(id).filter(|control| control.is_pending()) else {
            return Ok(());
        };
        let alike = state.pending_controls().filter(|(_, control, _)| ends(control) == ends(asked));
        if alike.count() > PENDING_CONTROLS_MAX {
            return Err(Refusal::Limit(
                "PENDING_CONTROLS_MAX: 64 controls of this session wait for an outcome",
            ));
        }
        Ok(())
    }

    fn carry_out(&mut self, ask: &Ask) -> Result<(), Refusal> {
        let (control, target) = (ask.control.clone(), ask.target.clone());
        let grace = self.context.cancel_grace_ms;
        match &ask.what {
            What::Cancel => self.cancel(control, target),
            What::Steer { mode, input } => {
                let (run, agent) = self.one(&target)?;
                let message = self.message_of(input.message.as_ref())?;
                self.put_message(&message, Role::User, &input.parts, None)?;
                let wait = ask.expires_ms.unwrap_or(STEER_WAIT_MS);
                let mut asked = Asked::new(control, ControlKind::Steer, target, wait);
                (asked.mode, asked.message) = (Some(*mode), Some(message));
                self.steer(asked, run, &agent).map(|_| ())
            }
            What::Interrupt { input } => {
                let (run, agent) = self.one(&target)?;
                let message = self.message_of(input.message.as_ref())?;
                self.put_message(&message, Role::User, &input.parts, None)?;
                let mut asked = Asked::new(control, ControlKind::Interrupt, target, grace);
                asked.message = Some(message);
                self.interrupt(asked, run, &agent, None).map(|_| ())
            }
            What::Pause | What::Resume => {
                let (run, _) = self.one(&target)?;
                let wait = ask.expires_ms.unwrap_or(PAUSE_WAIT_MS);
                self.pause_or_resume(Asked::new(control, ask.what.kind(), target, wait), run);
                Ok(())
            }
            What::Answer { approval, is_approved, value, digest } => {
                let (run, _) = self.one(&target)?;
                let mut asked = Asked::new(control, ControlKind::Answer, target, grace);
                asked.approval = Some(approval.clone());
                let answer = super::approval::Answer {
                    by: &ask.by,
                    approval,
                    is_approved: *is_approved,
                    value: value.as_ref(),
                    digest: digest.as_deref(),
                };
                self.answer(asked, run, answer);
                Ok(())
            }
        }
    }

    /// The one run that a target means, and whose it is.
    fn one(&mut self, target: &Target) -> Result<(Option<RunId>, AgentName), Refusal> {
        let run = match target {
            Target::Run(run) => Some(run.clone()),
            Target::Input(message) => {
                Some(self.state().run_for_input(message).ok_or(Refusal::NoRun)?.clone())
            }
            Target::Agent(agent) => match self.run_at_work(agent) {
                Some(run) => Some(run),
                None => return Ok((None, agent.clone())),
            },
            Target::All(_) => return Err(Refusal::Invalid("only a cancel can be of all runs")),
        };
        let agent = run.as_ref().and_then(|run| self.state().runs.get(run)).map(|run| run.agent.clone());
        Ok((run, agent.ok_or(Refusal::NoRun)?))
    }

    fn message_of(&mut self, given: Option<&MessageId>) -> Result<MessageId, Refusal> {
        given.map_or_else(|| self.fresh(), |message| Ok(message.clone()))
    }

    pub(super) fn status_of(&mut self, run: Option<&RunId>) -> Option<RunStatus> {
        run.and_then(|run| self.state().runs.get(run)).map(|run| run.status.clone())
    }

    fn cancel(&mut self, control: ControlId, target: Target) -> Result<(), Refusal> {
        let mut asked =
            Asked::new(control.clone(), ControlKind::Cancel, target, self.context.cancel_grace_ms);
        let state = self.state();
        asked.runs = match &asked.target {
            Target::Run(run) if state.runs.contains_key(run) => vec![run.clone()],
            Target::Run(_) => return Err(Refusal::NoRun),
            Target::Input(message) => state.run_for_input(message).cloned().into_iter().collect(),
            Target::Agent(agent) => {
                let runs = state.open_runs().filter(|(_, run)| run.agent == *agent);
                runs.map(|(id, _)| id.clone()).collect()
            }
            Target::All(true) => state.open_runs().map(|(id, _)| id.clone()).collect(),
            Target::All(false) => return Err(Refusal::Invalid("target is {\"all\":true}")),
        };
        if asked.runs.is_empty()
            && let Target::Input(message) = &asked.target
        {
            let message = message.clone();
            asked.wait_ms = CANCEL_INPUT_WAIT_MS;
            self.ask(asked);
            // Input that came while a person holds the session asks for nothing by itself.
            let is_held = |hold: &Hold| hold.input.iter().any(|id| id == message.as_str());
            if self.state().held.as_ref().is_some_and(is_held) {
                self.refuse(&control, RefusalReason::Held, None);
            }
            return Ok(());
        }
        let runs = asked.runs.clone();
        self.ask(asked);
        let open: Vec<RunId> = runs
            .iter()
            .filter(|run| self.state().runs.get(*run).is_some_and(Run::is_open))
            .cloned()
            .collect();
        if open.is_empty() {
            let reason = match runs.first() {
                Some(_) => RefusalReason::RunEnded,
                None => RefusalReason::NoActiveRun,
            };
            self.refuse(&control, reason, runs.first());
        }
        for run in open {
            if !matches!(self.status_of(Some(&run)), Some(RunStatus::Active { .. })) {
                self.end_run(&run, Outcome::Cancelled, Ending::because("cancel"));
            }
        }
        Ok(())
    }

    fn pause_or_resume(&mut self, mut asked: Asked, run: Option<RunId>) {
        let (control, is_pause) = (asked.control.clone(), asked.kind == ControlKind::Pause);
        let opposite = if is_pause { ControlKind::Resume } else { ControlKind::Pause };
        asked.runs = run.iter().cloned().collect();
        self.ask(asked);
        if self.state().held.is_some() {
            return self.refuse(&control, RefusalReason::Held, run.as_ref());
        }
        match (&run, self.status_of(run.as_ref())) {
            (Some(run), Some(RunStatus::Requested | RunStatus::Suspended)) => {
                self.set_paused(run, is_pause);
                self.settle(&control, ControlOutcome::Applied, None, Some(run));
            }
            (Some(run), Some(RunStatus::Active { .. })) => {
                let controls = self.state().controls_of(run);
                let others = controls.iter().filter(|(_, other, _)| other.kind == opposite);
                let others: Vec<ControlId> = others.map(|(id, ..)| (*id).clone()).collect();
                for other in others {
                    self.refuse(&other, RefusalReason::Superseded, Some(run));
                }
            }
            (run, Some(RunStatus::Ended { .. })) => {
                self.refuse(&control, RefusalReason::RunEnded, run.as_ref());
            }
            (_, None) | (None, _) => self.refuse(&control, RefusalReason::NoActiveRun, None),
        }
    }

    fn set_paused(&mut self, id: &RunId, is_paused: bool) {
        let Some(run) = self.state().runs.get_mut(id) else { return };
        run.paused = is_paused;
        // Its item may have been taken and left while it was not to begin.
        if !is_paused && run.status == RunStatus::Requested {
            self.wait_for_worker(id);
        }
    }

    /// Logs a control; it waits for its outcome from here on.
    pub(super) fn ask(&mut self, asked: Asked) {
        let Asked { control, kind, target, runs, wait_ms, mode, message, approval } = asked;
        let expires = self.context.now.plus(wait_ms);
        self.push(Entry::ControlRequested {
            control: control.clone(),
            kind,
            target: target.clone(),
            expires,
            mode,
            message: message.clone(),
            approval,
        });
        let controls = &mut self.state().controls;
        let number = controls.values().map(|control| control.number).max().unwrap_or(0) + 1;
        let stage = ControlStage::Pending { expires };
        controls.insert(control, Control { kind, target, by: None, runs, mode, message, number, stage });
    }

    pub(super) fn refuse(&mut self, id: &ControlId, reason: RefusalReason, run: Option<&RunId>) {
        self.settle(id, ControlOutcome::Refused, Some(reason), run);
    }

    pub(super) fn settle(
        &mut self,
        id: &ControlId,
        outcome: ControlOutcome,
        reason: Option<RefusalReason>,
        run: Option<&RunId>,
    ) {
        self.settle_after(id, outcome, reason, run, None);
    }

    /// Settles a control that somebody was quicker than.
    pub(super) fn settle_after(
        &mut self,
        id: &ControlId,
        outcome: ControlOutcome,
        reason: Option<RefusalReason>,
        run: Option<&RunId>,
        answered_by: Option<Author>,
    ) {
        let (at, run) = (self.context.now, run.cloned());
        let Some(control) = self.state().controls.get_mut(id).filter(|c| c.is_pending()) else { return };
        control.stage =
            ControlStage::Settled { outcome, reason, run: run.clone(), answered_by: answered_by.clone(), at };
        let answered_by = answered_by.and_then(|by| serde_json::to_value(by).ok());
        self.push(Entry::ControlSettled { control: id.clone(), outcome, reason, run, answered_by });
    }

    /// A worker says what became of a control. One that has that outcome already, or is not known any more, changes nothing.
    /// One that has another is refused, so that the worker undoes what it did; unless a later control does so anyway.
    pub(super) fn settle_by_worker(
        &mut self,
        run: &RunId,
        control: &ControlId,
        outcome: ControlOutcome,
        reason: Option<RefusalReason>,
    ) -> Result<(), Refusal> {
        if !matches!(self.status_of(Some(run)), Some(RunStatus::Active { .. })) {
            return Err(Refusal::NotHeld);
        }
        if outcome == ControlOutcome::Expired || (outcome == ControlOutcome::Applied && reason.is_some()) {
            return Err(Refusal::Invalid("a worker settles as applied, or as refused with a reason"));
        }
        let asked = match self.state().controls.get(control) {
            None => return Ok(()),
            Some(Control { stage: ControlStage::Settled { outcome: first, reason, .. }, .. }) => {
                let agrees = *first == outcome || *reason == Some(RefusalReason::Superseded);
                return if agrees { Ok(()) } else { Err(Refusal::IdInUse(control.to_string())) };
            }
            Some(asked) => asked,
        };
        let (kind, concerns) = (asked.kind, asked.runs.contains(run));
        if !concerns || matches!(kind, ControlKind::Cancel | ControlKind::Interrupt | ControlKind::Answer) {
            return Err(Refusal::Invalid("a worker settles steer, pause and resume of its own run"));
        }
        if outcome == ControlOutcome::Refused {
            let reason = reason.unwrap_or(RefusalReason::NotSupported);
            match kind {
                ControlKind::Steer => self.give_up_steers(run, vec![control.clone()], outcome, reason),
                _ => self.refuse(control, reason, Some(run)),
            }
        } else {
            self.apply(run, control);
        }
        Ok(())
    }

    /// What a control asks of its run is done.
    fn apply(&mut self, run: &RunId, id: &ControlId) {
        let Some(control) = self.state().controls.get(id).filter(|control| control.is_pending()) else {
            return;
        };
        let (kind, message) = (control.kind, control.message.clone());
        match kind {
            ControlKind::Steer => self.take_in(run, id),
            ControlKind::Pause => self.set_paused(run, true),
            ControlKind::Resume => self.set_paused(run, false),
            ControlKind::Cancel | ControlKind::Interrupt | ControlKind::Answer => return,
        }
        self.settle(id, ControlOutcome::Applied, None, Some(run));
        if let Some(message) = message {
            self.bind_waiting_cancels(&message, run);
        }
    }

    /// The run has no worker any more: what waits for one is done at once, for the next to find.
    pub(super) fn settle_without_worker(&mut self, run: &RunId) {
        let waiting = self.state().controls_of(run).into_iter();
        let waiting: Vec<ControlId> = waiting.map(|(id, ..)| id.clone()).collect();
        waiting.iter().for_each(|control| self.apply(run, control));
    }

    /// The run has ended: so have the controls that were about it.
    pub(super) fn settle_at_end(&mut self, run: &RunId, outcome: Outcome) {
        let waiting = self.state().controls_of(run).into_iter();
        let waiting: Vec<_> =
            waiting.map(|(id, control, _)| (id.clone(), control.kind, control.runs.clone())).collect();
        let mut steers = Vec::new();
        for (control, kind, runs) in waiting {
            match kind {
                ControlKind::Cancel | ControlKind::Interrupt => {
                    if runs.iter().any(|run| self.state().runs.get(run).is_some_and(Run::is_open)) {
                        continue;
                    }
                    let came_late = kind == ControlKind::Cancel && runs.len() == 1;
                    if came_late && outcome != Outcome::Cancelled {
                        self.refuse(&control, RefusalReason::RunEnded, Some(run));
                    } else {
                        self.settle(&control, ControlOutcome::Applied, None, Some(run));
                    }
                }
                ControlKind::Steer => steers.push(control),
                ControlKind::Pause | ControlKind::Resume | ControlKind::Answer => {
                    self.refuse(&control, RefusalReason::RunEnded, Some(run));
                }
            }
        }
        self.give_up_steers(run, steers, ControlOutcome::Refused, RefusalReason::RunEnded);
    }

    /// Cancels that wait for a message.
    pub(super) fn waiting_cancels(&mut self, message: &MessageId) -> impl Iterator<Item = &ControlId> {
        let waits = move |control: &Control| {
            control.runs.is_empty() && matches!(&control.target, Target::Input(id) if id == message)
        };
        self.state().pending_controls().filter(move |(_, control, _)| waits(control)).map(|(id, ..)| id)
    }

    /// A message has become input of a run: cancels that waited for it mean that run from here on. One that no worker
    /// holds ends in the same block.
    pub(super) fn bind_waiting_cancels(&mut self, message: &MessageId, run: &RunId) {
        let waiting: Vec<ControlId> = self.waiting_cancels(message).cloned().collect();
        if waiting.is_empty() {
            return;
        }
        let grace_ends = self.context.now.plus(self.context.cancel_grace_ms);
        for control in &waiting {
            let Some(control) = self.state().controls.get_mut(control) else { continue };
            control.runs.push(run.clone());
            if let ControlStage::Pending { expires } = &mut control.stage {
                *expires = grace_ends.min(*expires);
            }
        }
        if !matches!(self.status_of(Some(run)), Some(RunStatus::Active { .. })) {
            self.end_run(run, Outcome::Cancelled, Ending::because("cancel"));
        }
    }

    /// A run that ends takes its children with it: active ones by a cancel of Everthread's own, others at once.
    pub(super) fn cancel_children(&mut self, parent: &RunId) {
        let is_child = |run: &Run| run.is_open() && run.parent.as_ref() == Some(parent);
        let children: Vec<RunId> =
            self.state().runs.iter().filter(|(_, run)| is_child(run)).map(|(id, _)| id.clone()).collect();
        for child in children {
            let is_active = matches!(self.status_of(Some(&child)), Some(RunStatus::Active { .. }));
            match self.fresh::<ControlId>() {
                Ok(control) if is_active => {
                    let target = Target::Run(child.clone());
                    let grace = self.context.cancel_grace_ms;
                    let mut asked = Asked::new(control, ControlKind::Cancel, target, grace);
                    asked.runs = vec![child];
                    self.ask(asked);
                }
                _ => self.end_run(&child, Outcome::Cancelled, Ending::because("parent_ended")),
            }
        }
    }

    /// Whatever has had its time gets its outcome. Early or repeated calls are harmless.
    pub(super) fn due(&mut self) -> Result<(), Refusal> {
        let now = self.context.now;
        let is_due = |at: Millis| at <= now;
        let due = self.state().pending_controls().filter(|(.., expires)| is_due(*expires));
        let due: Vec<(ControlId, Control)> = due.map(|(id, c, _)| (id.clone(), c.clone())).collect();
        let approvals = self.state().open_approvals().filter(|(_, approval)| is_due(approval.expires));
        let approvals: Vec<(RunId, ApprovalId)> =
            approvals.map(|(run, a)| (run.clone(), a.approval.clone())).collect();
        if due.is_empty() && approvals.is_empty() {
            return Err(Refusal::NotDue);
        }
        for (id, control) in due {
            // One that came before it in this list may have ended its run, and settled it.
            if !self.state().controls.get(&id).is_some_and(Control::is_pending) {
                continue;
            }
            match (control.kind, control.runs.first()) {
                (ControlKind::Cancel | ControlKind::Interrupt, Some(_)) => {
                    for run in &control.runs {
                        self.end_run(run, Outcome::Cancelled, Ending::forced("cancel_timeout"));
                    }
                }
                (ControlKind::Steer, Some(run)) => {
                    let (outcome, reason) = (ControlOutcome::Expired, RefusalReason::Timeout);
                    self.give_up_steers(run, vec![id], outcome, reason);
                }
                (_, run) => {
                    self.settle(&id, ControlOutcome::Expired, Some(RefusalReason::Timeout), run);
                }
            }
        }
        for (run, approval) in approvals {
            self.expire(&run, &approval);
        }
        Ok(())
    }
}
