//! Steer and interrupt: a further message for a run. Whatever becomes of the control, the message becomes the input of a run.

use super::control::Asked;
use super::run::Ending;
use super::{Draft, Refusal};
use crate::state::{Run, RunStatus};
use everthread_protocol::control::Mode;
use everthread_protocol::entry::{ControlKind, ControlOutcome, Object, Outcome, RefusalReason, Target};
use everthread_protocol::limits::{RUN_INPUT_MAX, STEER_WAIT_MS};
use everthread_protocol::{AgentName, ControlId, MessageId, RunId};

impl Draft<'_> {
    /// Steers `run`, or asks `agent` for a new one if there is none to steer. Returns the run that gets the message.
    pub(super) fn steer(
        &mut self,
        mut asked: Asked,
        run: Option<RunId>,
        agent: &AgentName,
    ) -> Result<Option<RunId>, Refusal> {
        let (control, mode) = (asked.control.clone(), asked.mode.unwrap_or_default());
        let message = asked.message.clone().ok_or(Refusal::Invalid("a steer has a message"))?;
        let input = vec![message.to_string()];
        asked.runs = run.iter().cloned().collect();
        self.check_room()?;
        self.ask(asked);
        if self.note_while_held(&message) {
            self.refuse(&control, RefusalReason::Held, None);
            return Ok(None);
        }
        // A message that somebody cancelled before it came goes into no run that has other work.
        let is_cancelled = self.waiting_cancels(&message).next().is_some();
        let waits = mode == Mode::WhenIdle || is_cancelled || !self.can_take_in(run.as_ref());
        let why_new = match (self.status_of(run.as_ref()), &run) {
            (Some(RunStatus::Active { .. }), _) if !waits => return Ok(run),
            (Some(RunStatus::Requested | RunStatus::Suspended), Some(run)) if !waits => {
                self.take_in(run, &control);
                self.settle(&control, ControlOutcome::Applied, None, Some(run));
                return Ok(Some(run.clone()));
            }
            (Some(RunStatus::Ended { .. }), _) => Some(RefusalReason::RunEnded),
            (None, _) => Some(RefusalReason::NoActiveRun),
            (Some(_), _) => None,
        };
        let new: RunId = self.fresh()?;
        self.request_with_room(new.clone(), Run::requested(agent.clone(), input));
        match why_new {
            Some(reason) => self.refuse(&control, reason, Some(&new)),
            None => self.settle(&control, ControlOutcome::Applied, None, Some(&new)),
        }
        self.bind_waiting_cancels(&message, &new);
        Ok(Some(new))
    }

    /// Whether one more message fits into the input of `run`, with those that it may still take in.
    fn can_take_in(&mut self, run: Option<&RunId>) -> bool {
        let Some((id, taken)) = run.and_then(|id| Some((id, self.state().runs.get(id)?.input.len()))) else {
            return false;
        };
        // The one that asks is among them.
        let steers = self.state().controls_of(id).into_iter();
        taken + steers.filter(|(_, control, _)| control.kind == ControlKind::Steer).count() <= RUN_INPUT_MAX
    }

    /// Input for an agent at work, where the policy is to steer. The message is put already.
    pub(super) fn steer_by_policy(
        &mut self,
        run: &RunId,
        message: &MessageId,
    ) -> Result<Option<RunId>, Refusal> {
        let (mut asked, agent) = self.by_policy(ControlKind::Steer, run, message, STEER_WAIT_MS)?;
        asked.mode = Some(Mode::NextStep);
        self.steer(asked, Some(run.clone()), &agent)
    }

    /// The same, where the policy is to interrupt.
    pub(super) fn interrupt_by_policy(
        &mut self,
        run: &RunId,
        message: &MessageId,
        params: Option<Object>,
    ) -> Result<Option<RunId>, Refusal> {
        let grace = self.context.cancel_grace_ms;
        let (asked, agent) = self.by_policy(ControlKind::Interrupt, run, message, grace)?;
        self.interrupt(asked, Some(run.clone()), &agent, params)
    }

    fn by_policy(
        &mut self,
        kind: ControlKind,
        run: &RunId,
        message: &MessageId,
        wait_ms: u64,
    ) -> Result<(Asked, AgentName), Refusal> {
        let control = self.decision.control.clone().ok_or(Refusal::Invalid("no id for the control"))?;
        let agent = self.state().runs.get(run).map(|run| run.agent.clone()).ok_or(Refusal::NoRun)?;
        let mut asked = Asked::new(control, kind, Target::Run(run.clone()), wait_ms);
        asked.message = Some(message.clone());
        Ok((asked, agent))
    }

    /// Cancels `run` and asks for a new one with the message, which goes before others. Returns the new one.
    pub(super) fn interrupt(
        &mut self,
        mut asked: Asked,
        run: Option<RunId>,
        agent: &AgentName,
        params: Option<Object>,
    ) -> Result<Option<RunId>, Refusal> {
        let control = asked.control.clone();
        let message = asked.message.clone().ok_or(Refusal::Invalid("an interrupt has a message"))?;
        let is_child = |run: &Run| run.parent.is_some();
        if run.as_ref().and_then(|run| self.state().runs.get(run)).is_some_and(is_child) {
            return Err(Refusal::Invalid(
                "a child run cannot be interrupted: cancel it, or interrupt its parent",
            ));
        }
        asked.runs = run.iter().cloned().collect();
        self.ask(asked);
        if self.note_while_held(&message) {
            self.refuse(&control, RefusalReason::Held, run.as_ref());
            return Ok(None);
        }
        let mut new = Run::requested(agent.clone(), vec![message.to_string()]);
        (new.goes_first, new.params) = (true, params);
        let new = self.request(new)?;
        match (&run, self.status_of(run.as_ref())) {
            (Some(run), Some(RunStatus::Requested | RunStatus::Suspended)) => {
                self.end_run(run, Outcome::Cancelled, Ending::because("interrupt"));
            }
            (_, Some(RunStatus::Active { .. })) => {}
            (run, _) => self.settle(&control, ControlOutcome::Applied, None, run.as_ref()),
        }
        self.bind_waiting_cancels(&message, &new);
        Ok(Some(new))
    }

    /// The message of a steer becomes input of the run it steers.
    pub(super) fn take_in(&mut self, run: &RunId, control: &ControlId) {
        let message = self.state().controls.get(control).and_then(|control| control.message.clone());
        if let (Some(message), Some(run)) = (message, self.state().runs.get_mut(run)) {
            run.input.push(message.to_string());
        }
    }

    /// Steers of `run` that it did not take in: their messages together become the input of a new run. While a person holds
    /// the session they wait for its release, and the outcome names no run.
    pub(super) fn give_up_steers(
        &mut self,
        run: &RunId,
        steers: Vec<ControlId>,
        outcome: ControlOutcome,
        reason: RefusalReason,
    ) {
        let Some(agent) = self.state().runs.get(run).map(|run| run.agent.clone()) else { return };
        let messages: Vec<MessageId> =
            steers.iter().filter_map(|id| self.state().controls.get(id)?.message.clone()).collect();
        let new = self.run_for_left(&agent, &messages);
        for steer in &steers {
            self.settle(steer, outcome, Some(reason), new.as_ref());
        }
        if let Some(new) = new {
            messages.iter().for_each(|message| self.bind_waiting_cancels(message, &new));
        }
    }

    fn run_for_left(&mut self, agent: &AgentName, messages: &[MessageId]) -> Option<RunId> {
        let mut is_held = false;
        for message in messages {
            is_held |= self.note_while_held(message);
        }
        if messages.is_empty() || is_held || self.state().closed {
            return None;
        }
        let input = messages.iter().map(MessageId::to_string).collect();
        // Room was set aside when the steers were accepted.
        let id: RunId = self.fresh().ok()?;
        self.request_with_room(id.clone(), Run::requested(agent.clone(), input));
        Some(id)
    }
}
