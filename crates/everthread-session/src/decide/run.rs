//! Runs: requested by input or by a parent, claimed, ended.

use super::{Draft, Put, Refusal, agent_of};
use crate::state::{Run, RunStatus};
use everthread_protocol::entry::{
    ControlOutcome, Entry, Object, Outcome, PutPart, RefusalReason, Role, RunError,
};
use everthread_protocol::limits::OPEN_RUNS_MAX;
use everthread_protocol::{AgentName, ControlId, MessageId, RunId, WorkerId};

/// Workers that may die under one run before it is given up.
const ATTEMPTS_MAX: u32 = 5;
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
        check_parts(&put.parts)?;
        if self.state().runs.values().any(|run| run.input.iter().any(|id| id == put.message.as_str())) {
            return Err(Refusal::IdInUse(put.message.to_string()));
        }
        let meta_agent = agent_of(&self.state().meta);
        let agent = put.agent.clone().or(meta_agent.filter(|_| put.role == Role::User));
        self.push(Entry::MessagePut {
            message: put.message.clone(),
            role: put.role,
            parts: put.parts.clone(),
            reply_to: put.reply_to.clone(),
        });
        let Some(agent) = agent else { return Ok(()) };
        let run: RunId = self.fresh()?;
        let input = vec![put.message.to_string()];
        self.request(
            &run,
            Run {
                agent,
                input,
                parent: None,
                params: put.params.clone(),
                attempts: 0,
                number: 0,
                status: RunStatus::Requested,
            },
        )?;
        self.decision.requested = Some(run.clone());
        self.settle_waiting_cancels(&run);
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
        check_parts(parts)?;
        if !self.state().runs.get(parent).is_some_and(Run::is_open) {
            return Err(Refusal::NotHeld);
        }
        let message: MessageId = self.fresh()?;
        self.push(Entry::MessagePut {
            message: message.clone(),
            role: Role::User,
            parts: parts.to_vec(),
            reply_to: None,
        });
        self.request(
            child,
            Run {
                agent: agent.clone(),
                input: vec![message.to_string()],
                parent: Some(parent.clone()),
                params: params.cloned(),
                attempts: 0,
                number: 0,
                status: RunStatus::Requested,
            },
        )
    }

    fn request(&mut self, id: &RunId, mut run: Run) -> Result<(), Refusal> {
        if self.state().runs.contains_key(id) {
            return Err(Refusal::IdInUse(id.to_string()));
        }
        if self.state().open_runs().count() >= OPEN_RUNS_MAX {
            return Err(Refusal::Limit(
                "OPEN_RUNS_MAX: 64 runs of this session are open; wait or cancel some",
            ));
        }
        self.push(Entry::RunRequested {
            run: id.clone(),
            agent: run.agent.clone(),
            input: run.input.clone(),
            parent_run: run.parent.clone(),
            params: run.params.clone(),
        });
        self.decision.enqueue.push((id.clone(), run.agent.clone()));
        run.number = self.state().runs.values().map(|run| run.number).max().unwrap_or(0) + 1;
        self.state().runs.insert(id.clone(), run);
        Ok(())
    }

    /// Runs of one agent go one after the other in the order of their requests, unless a parent started them: those are
    /// meant to go side by side.
    pub(super) fn claim(&mut self, id: &RunId, worker: &WorkerId) -> Result<(), Refusal> {
        let run = self.state().runs.get(id).ok_or(Refusal::NoRun)?;
        if run.status != RunStatus::Requested {
            return Err(Refusal::NotHeld);
        }
        if run.parent.is_none() {
            let (agent, number) = (run.agent.clone(), run.number);
            let goes_first = |other: &Run| match other.status {
                RunStatus::Active { .. } => true,
                RunStatus::Requested => other.number < number,
                RunStatus::Ended { .. } => false,
            };
            let mut others = self.state().runs.values();
            if others.any(|other| other.agent == agent && other.parent.is_none() && goes_first(other)) {
                return Err(Refusal::Waits);
            }
        }
        let run = self.state().runs.get_mut(id).ok_or(Refusal::NoRun)?;
        run.attempts += 1;
        run.status = RunStatus::Active { worker: worker.clone() };
        let attempt = run.attempts;
        self.push(Entry::RunStarted { run: id.clone(), worker: worker.clone(), attempt });
        self.decision.grant = Some(id.clone());
        Ok(())
    }

    pub(super) fn decline(&mut self, id: &RunId, worker: &WorkerId, attempt: u32) -> Result<(), Refusal> {
        let attempts = self.held(id, worker)?.attempts;
        if attempts != attempt {
            return Err(Refusal::NotHeld);
        }
        if self.state().controls_of(id).next().is_some() {
            self.end_run(id, Outcome::Cancelled, Ending::because("cancel"));
        } else if attempts >= DECLINES_MAX {
            let message = "every worker that got the run gave it back".to_owned();
            let error = Some(RunError { code: "declined".to_owned(), message });
            self.end_run(id, Outcome::Failed, Ending { error, ..Ending::because("declined") });
        } else {
            self.return_to_pool(id);
        }
        Ok(())
    }

    pub(super) fn worker_died(&mut self, id: &RunId, worker: &WorkerId, wrote: bool) -> Result<(), Refusal> {
        let attempts = self.held(id, worker)?.attempts;
        if self.state().controls_of(id).next().is_some() {
            self.end_run(id, Outcome::Cancelled, Ending::forced("worker_lost"));
        } else if wrote || attempts >= ATTEMPTS_MAX {
            self.end_run(id, Outcome::Lost, Ending::because("worker_lost"));
        } else {
            self.return_to_pool(id);
        }
        Ok(())
    }

    fn held(&mut self, id: &RunId, worker: &WorkerId) -> Result<&mut Run, Refusal> {
        self.state().runs.get_mut(id).filter(|run| run.is_held_by(worker)).ok_or(Refusal::NotHeld)
    }

    fn return_to_pool(&mut self, id: &RunId) {
        let Some(run) = self.state().runs.get_mut(id) else { return };
        run.status = RunStatus::Requested;
        let agent = run.agent.clone();
        self.decision.enqueue.push((id.clone(), agent));
        self.decision.revoke.push(id.clone());
        self.decision.unwritten = Some(id.clone());
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
        if !self.state().runs.get(id).is_some_and(|run| matches!(run.status, RunStatus::Active { .. })) {
            return Err(Refusal::NotHeld);
        }
        self.end_run(id, outcome, Ending { error, usage, ..Ending::default() });
        Ok(())
    }

    /// Ends an open run, settles what was asked of it, and cancels its children.
    pub(super) fn end_run(&mut self, id: &RunId, outcome: Outcome, ending: Ending) {
        let now = self.context.now;
        let controls: Vec<ControlId> = self.state().controls_of(id).map(|(id, ..)| id.clone()).collect();
        let Some(run) = self.state().runs.get_mut(id).filter(|run| run.is_open()) else { return };
        let was_active = matches!(run.status, RunStatus::Active { .. });
        run.status = RunStatus::Ended { outcome, at: now };
        run.params = None;
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
        for control in controls {
            if outcome == Outcome::Cancelled {
                self.settle(&control, ControlOutcome::Applied, None, Some(id));
            } else {
                self.settle(&control, ControlOutcome::Refused, Some(RefusalReason::RunEnded), Some(id));
            }
        }
        self.cancel_children(id);
        self.wake_next(id);
    }

    /// Runs of the same agent that waited behind this one may go now: their items may have been taken and left.
    fn wake_next(&mut self, ended: &RunId) {
        let Some(agent) = self.state().runs.get(ended).map(|run| run.agent.clone()) else { return };
        let waits =
            |run: &Run| run.agent == agent && run.parent.is_none() && run.status == RunStatus::Requested;
        let waiting = self.state().runs.iter().filter(|(_, run)| waits(run));
        let next = waiting.min_by_key(|(_, run)| run.number);
        if let Some((next, agent)) = next.map(|(id, run)| (id.clone(), run.agent.clone()))
            && !self.decision.enqueue.iter().any(|(run, _)| *run == next)
        {
            self.decision.enqueue.push((next, agent));
        }
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
