//! Runs: requested by input or by a parent, claimed, ended.

use super::{Draft, Put, Refusal, agent_of, when_busy_of};
use crate::state::{Control, Run, RunStatus};
use everthread_protocol::control::WhenBusy;
use everthread_protocol::entry::{ControlKind, Entry, Object, Outcome, PutPart, Role, RunError};
use everthread_protocol::limits::OPEN_RUNS_MAX;
use everthread_protocol::{AgentName, MessageId, RunId, WorkerId};

/// Workers that may die under one run before it is given up.
const DEATHS_MAX: u32 = 5;
/// Workers that may give one run back before it is given up: a worker that declines everything would fill the log.
const DECLINES_MAX: u32 = 32;

/// How a run ends, besides its outcome.
#[derive(Default)]
pub(super) struct Ending {
    reason: Option<&'static str>,
    forced: bool,
    error: Option<RunError>,
    usage: Option<Object>,
}

impl Ending {
    pub(super) fn because(reason: &'static str) -> Self {
        Ending { reason: Some(reason), ..Ending::default() }
    }

    pub(super) fn forced(reason: &'static str) -> Self {
        Ending { forced: true, ..Ending::because(reason) }
    }
}

impl Draft<'_> {
    pub(super) fn put(&mut self, put: &Put) -> Result<(), Refusal> {
        let meta_agent = agent_of(&self.state().meta);
        let agent = put.agent.clone().or(meta_agent.filter(|_| put.role == Role::User));
        if let Some(branch) = &put.branch {
            return self.put_on_branch(put, agent, branch);
        }
        let Some(agent) = agent else {
            self.put_message(&put.message, put.role, &put.parts, put.reply_to.as_deref())?;
            self.note_while_held(&put.message);
            return Ok(());
        };
        let policy = put.when_busy.or_else(|| when_busy_of(&self.state().meta)).unwrap_or_default();
        let is_cancelled = self.waiting_cancels(&put.message).next().is_some();
        let busy_with = self.run_at_work(&agent).filter(|_| !is_cancelled);
        if policy == WhenBusy::Reject && busy_with.is_some() && self.state().held.is_none() {
            return Err(Refusal::Busy);
        }
        self.put_message(&put.message, put.role, &put.parts, put.reply_to.as_deref())?;
        if self.note_while_held(&put.message) {
            return Ok(());
        }
        let run = match (policy, busy_with) {
            // Params are for a run of its own.
            (WhenBusy::Steer, Some(at_work)) if put.params.is_none() => {
                let control = self.fresh()?;
                self.decision.control = Some(control);
                self.steer_by_policy(&at_work, &put.message)?
            }
            (WhenBusy::Interrupt, Some(at_work)) => {
                let control = self.fresh()?;
                self.decision.control = Some(control);
                self.interrupt_by_policy(&at_work, &put.message, put.params.clone())?
            }
            (WhenBusy::Enqueue | WhenBusy::Reject | WhenBusy::Steer, _) | (_, None) => {
                let mut run = Run::requested(agent, vec![put.message.to_string()]);
                run.params = put.params.clone();
                let run = self.request(run)?;
                self.bind_waiting_cancels(&put.message, &run);
                Some(run)
            }
        };
        self.decision.requested = run;
        Ok(())
    }

    /// A message of the session's own.
    pub(super) fn put_message(
        &mut self,
        message: &MessageId,
        role: Role,
        parts: &[PutPart],
        reply_to: Option<&str>,
    ) -> Result<(), Refusal> {
        check_parts(parts)?;
        let is_input = |input: &[String]| input.iter().any(|id| id == message.as_str());
        let state = self.state();
        let is_known = state.runs.values().any(|run| is_input(&run.input))
            || state.held.as_ref().is_some_and(|hold| is_input(&hold.input))
            || state.controls.values().any(|control| control.message.as_ref() == Some(message));
        if is_known {
            return Err(Refusal::IdInUse(message.to_string()));
        }
        self.push(Entry::MessagePut {
            message: message.clone(),
            role,
            parts: parts.to_vec(),
            reply_to: reply_to.map(str::to_owned),
        });
        Ok(())
    }

    pub(super) fn start_child(
        &mut self,
        parent: &RunId,
        child: &RunId,
        agent: &AgentName,
        parts: &[PutPart],
        params: Option<&Object>,
    ) -> Result<(), Refusal> {
        if !matches!(self.status_of(Some(parent)), Some(RunStatus::Active { .. })) {
            return Err(Refusal::NotHeld);
        }
        let message: MessageId = self.fresh()?;
        self.put_message(&message, Role::User, parts, None)?;
        let mut run = Run::requested(agent.clone(), vec![message.to_string()]);
        (run.parent, run.params) = (Some(parent.clone()), params.cloned());
        self.request_as(child.clone(), run)
    }

    /// Asks for a run under a new id.
    pub(super) fn request(&mut self, run: Run) -> Result<RunId, Refusal> {
        let id: RunId = self.fresh()?;
        self.request_as(id.clone(), run)?;
        Ok(id)
    }

    fn request_as(&mut self, id: RunId, run: Run) -> Result<(), Refusal> {
        if self.state().runs.contains_key(&id) {
            return Err(Refusal::IdInUse(id.to_string()));
        }
        self.check_room()?;
        self.request_with_room(id, run);
        Ok(())
    }

    /// Whether one more run may be open. A steer that waits may still become one.
    pub(super) fn check_room(&mut self) -> Result<(), Refusal> {
        let steers = self.state().pending_controls().filter(|(_, c, _)| c.kind == ControlKind::Steer).count();
        if self.state().open_runs().count() + steers >= OPEN_RUNS_MAX {
            return Err(Refusal::Limit(
                "OPEN_RUNS_MAX: 64 runs of this session are open; wait or cancel some",
            ));
        }
        Ok(())
    }

    pub(super) fn request_with_room(&mut self, id: RunId, mut run: Run) {
        self.push(Entry::RunRequested {
            run: id.clone(),
            agent: run.agent.clone(),
            input: run.input.clone(),
            parent_run: run.parent.clone(),
            params: run.params.clone(),
        });
        self.decision.enqueue.push((id.clone(), run.agent.clone()));
        run.number = self.state().runs.values().map(|run| run.number).max().unwrap_or(0) + 1;
        self.state().runs.insert(id, run);
    }

    /// Runs of one agent go one after the other in the order of their requests, unless a parent started them: those are
    /// meant to go side by side.
    pub(super) fn claim(&mut self, id: &RunId, worker: &WorkerId, retries: bool) -> Result<(), Refusal> {
        let is_held = self.state().held.is_some();
        let run = self.state().runs.get(id).ok_or(Refusal::NoRun)?;
        if run.status != RunStatus::Requested {
            return Err(Refusal::NotHeld);
        }
        if is_held || run.paused {
            return Err(Refusal::Waits);
        }
        if run.parent.is_none() {
            let (agent, place) = (run.agent.clone(), run.place());
            let goes_first = |other: &Run| match other.status {
                RunStatus::Active { .. } | RunStatus::Suspended => true,
                RunStatus::Requested => other.place() < place,
                RunStatus::Ended { .. } => false,
            };
            let mut others = self.state().runs.values();
            if others.any(|other| other.agent == agent && other.parent.is_none() && goes_first(other)) {
                return Err(Refusal::Waits);
            }
        }
        let run = self.state().runs.get_mut(id).ok_or(Refusal::NoRun)?;
        run.attempts += 1;
        run.retries = retries;
        run.status = RunStatus::Active { worker: worker.clone() };
        let attempt = run.attempts;
        self.push(Entry::RunStarted { run: id.clone(), worker: worker.clone(), attempt });
        self.decision.grant = Some(id.clone());
        Ok(())
    }

    pub(super) fn decline(&mut self, id: &RunId, worker: &WorkerId, attempt: u32) -> Result<(), Refusal> {
        let run = self.held(id, worker, attempt)?;
        run.declines += 1;
        let declines = run.declines;
        if self.is_being_cancelled(id) {
            self.end_run(id, Outcome::Cancelled, Ending::because("cancel"));
        } else if declines >= DECLINES_MAX {
            let message = "every worker that got the run gave it back".to_owned();
            let error = Some(RunError { code: "declined".to_owned(), message });
            self.end_run(id, Outcome::Failed, Ending { error, ..Ending::because("declined") });
        } else {
            self.decision.unwritten = Some(id.clone());
            self.return_to_pool(id, "declined");
        }
        Ok(())
    }

    pub(super) fn worker_died(
        &mut self,
        id: &RunId,
        worker: &WorkerId,
        attempt: u32,
        wrote: bool,
    ) -> Result<(), Refusal> {
        let run = self.held(id, worker, attempt)?;
        run.deaths += 1;
        let is_given_up = run.deaths >= DEATHS_MAX || (wrote && !run.retries);
        let may_have_written = wrote || run.retries;
        if self.is_being_cancelled(id) {
            self.end_run(id, Outcome::Cancelled, Ending::forced("worker_lost"));
        } else if is_given_up {
            self.end_run(id, Outcome::Lost, Ending::because("worker_lost"));
        } else {
            if !may_have_written {
                self.decision.unwritten = Some(id.clone());
            }
            self.return_to_pool(id, "worker_lost");
        }
        Ok(())
    }

    pub(super) fn is_being_cancelled(&mut self, id: &RunId) -> bool {
        let ends = |control: &Control| matches!(control.kind, ControlKind::Cancel | ControlKind::Interrupt);
        self.state().controls_of(id).iter().any(|(_, control, _)| ends(control))
    }

    fn held(&mut self, id: &RunId, worker: &WorkerId, attempt: u32) -> Result<&mut Run, Refusal> {
        let is_it = |run: &&mut Run| run.is_held_by(worker) && run.attempts == attempt;
        self.state().runs.get_mut(id).filter(is_it).ok_or(Refusal::NotHeld)
    }

    fn return_to_pool(&mut self, id: &RunId, reason: &str) {
        self.push(Entry::RunReturned { run: id.clone(), reason: reason.to_owned() });
        self.wait_for_worker(id);
        self.decision.revoke.push(id.clone());
        self.settle_without_worker(id);
    }

    /// Puts a run into its pool, again or for the first time.
    pub(super) fn wait_for_worker(&mut self, id: &RunId) {
        let Some(run) = self.state().runs.get_mut(id) else { return };
        run.status = RunStatus::Requested;
        let agent = run.agent.clone();
        if !self.decision.enqueue.iter().any(|(run, _)| run == id) {
            self.decision.enqueue.push((id.clone(), agent));
        }
    }

    pub(super) fn end_by_worker(
        &mut self,
        id: &RunId,
        outcome: Outcome,
        error: Option<RunError>,
        usage: Option<Object>,
    ) -> Result<(), Refusal> {
        if outcome == Outcome::Lost {
            return Err(Refusal::Invalid("a worker ends a run as completed, cancelled or failed"));
        }
        if (outcome == Outcome::Failed) != error.is_some() {
            return Err(Refusal::Invalid("failed comes with an error, other outcomes without"));
        }
        if !matches!(self.status_of(Some(id)), Some(RunStatus::Active { .. })) {
            return Err(Refusal::NotHeld);
        }
        self.end_run(id, outcome, Ending { error, usage, ..Ending::default() });
        Ok(())
    }

    /// Ends an open run, settles what was asked of it, and cancels its children.
    pub(super) fn end_run(&mut self, id: &RunId, outcome: Outcome, ending: Ending) {
        let now = self.context.now;
        let Some(run) = self.state().runs.get_mut(id).filter(|run| run.is_open()) else { return };
        let was_active = matches!(run.status, RunStatus::Active { .. });
        run.status = RunStatus::Ended { outcome, at: now };
        (run.params, run.paused) = (None, false);
        // Who answers late is told who was first.
        run.approvals.retain(|approval| approval.answered_by.is_some());
        for approval in &mut run.approvals {
            (approval.digest, approval.who, approval.value) = (None, None, None);
        }
        if was_active {
            self.decision.revoke.push(id.clone());
        }
        self.decision.enqueue.retain(|(run, _)| run != id);
        self.push(Entry::RunEnded {
            run: id.clone(),
            outcome,
            reason: ending.reason.map(str::to_owned),
            forced: ending.forced,
            error: ending.error,
            usage: ending.usage,
        });
        self.settle_at_end(id, outcome);
        self.cancel_children(id);
        self.wake_next(id);
    }

    /// Runs of the same agent that waited behind this one may go now: their items may have been taken and left.
    fn wake_next(&mut self, ended: &RunId) {
        let Some(agent) = self.state().runs.get(ended).map(|run| run.agent.clone()) else { return };
        let waits =
            |run: &Run| run.agent == agent && run.parent.is_none() && run.status == RunStatus::Requested;
        let waiting = self.state().runs.iter().filter(|(_, run)| waits(run));
        let next = waiting.min_by_key(|(_, run)| run.place()).map(|(id, _)| id.clone());
        if let Some(next) = next {
            self.wait_for_worker(&next);
        }
    }

    /// The run that an agent works on: the one that input for it steers, interrupts, or waits behind. None if it is free.
    pub(super) fn run_at_work(&mut self, agent: &AgentName) -> Option<RunId> {
        let runs = self.state().runs.iter().filter(|(_, run)| run.agent == *agent && run.parent.is_none());
        let rank = |run: &Run| match run.status {
            RunStatus::Active { .. } | RunStatus::Suspended => Some(0),
            RunStatus::Requested => Some(1),
            RunStatus::Ended { .. } => None,
        };
        let open = runs.filter_map(|(id, run)| Some(((rank(run)?, run.place()), id)));
        open.min_by_key(|(place, _)| *place).map(|(_, id)| id.clone())
    }
}

fn check_parts(parts: &[PutPart]) -> Result<(), Refusal> {
    use everthread_protocol::entry::PartKind;
    if parts.is_empty() {
        return Err(Refusal::Invalid("a message has at least one part"));
    }
    if parts.iter().any(|part| part.kind == PartKind::Text && !part.value.is_string()) {
        return Err(Refusal::Invalid("the value of a text part is a text"));
    }
    Ok(())
}
