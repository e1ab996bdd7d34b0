//! Branches: a message takes the place of another, or a run is done again. What works on what is replaced is cancelled.

use super::control::Asked;
use super::run::Ending;
use super::{Branch, Draft, Put, Refusal, Regenerate, when_busy_of};
use crate::state::{Run, RunStatus};
use everthread_protocol::control::WhenBusy;
use everthread_protocol::entry::{ControlKind, ControlOutcome, Entry, Outcome, RefusalReason, Target};
use everthread_protocol::{AgentName, ControlId, RunId};

impl Draft<'_> {
    /// A message that takes the place of another. With an agent it asks for a run, which goes before others that wait.
    pub(super) fn put_on_branch(
        &mut self,
        put: &Put,
        agent: Option<AgentName>,
        branch: &Branch,
    ) -> Result<(), Refusal> {
        let is_held = self.state().held.is_some();
        let agent = agent.filter(|_| !is_held);
        if let Some(agent) = &agent {
            self.check_free(agent, put.when_busy, &branch.ends)?;
        }
        self.begin_branch(branch)?;
        self.put_message(&put.message, put.role, &put.parts, put.reply_to.as_deref())?;
        if let Some(hold) = &mut self.state().held {
            hold.input.retain(|message| !branch.drops.contains(message));
        }
        self.note_while_held(&put.message);
        if let Some(agent) = agent {
            let mut run = Run::requested(agent, vec![put.message.to_string()]);
            (run.params, run.goes_first) = (put.params.clone(), !branch.ends.is_empty());
            let run = self.request(run)?;
            self.bind_waiting_cancels(&put.message, &run);
            self.decision.requested = Some(run);
        }
        Ok(())
    }

    /// The same input once more, for an answer that stands beside the first.
    pub(super) fn regenerate(&mut self, again: &Regenerate) -> Result<(), Refusal> {
        if let Some(hold) = &self.state().held {
            return Err(Refusal::Held(Box::new(hold.by.clone())));
        }
        if self.state().runs.get(&again.run).is_some_and(Run::is_open) {
            return Err(Refusal::NotEnded);
        }
        self.check_free(&again.agent, None, &again.branch.ends)?;
        self.begin_branch(&again.branch)?;
        let mut run = Run::requested(again.agent.clone(), again.input.clone());
        (run.params, run.goes_first) = (again.params.clone(), !again.branch.ends.is_empty());
        self.decision.requested = Some(self.request(run)?);
        Ok(())
    }

    /// Where the policy is to refuse: whether the agent works on anything but what is replaced.
    fn check_free(
        &mut self,
        agent: &AgentName,
        when_busy: Option<WhenBusy>,
        ends: &[RunId],
    ) -> Result<(), Refusal> {
        let policy = when_busy.or_else(|| when_busy_of(&self.state().meta)).unwrap_or_default();
        let goes_on =
            |(id, run): (&RunId, &Run)| run.agent == *agent && run.parent.is_none() && !ends.contains(id);
        let is_busy = self.state().open_runs().any(goes_on);
        if policy == WhenBusy::Reject && is_busy { Err(Refusal::Busy) } else { Ok(()) }
    }

    fn begin_branch(&mut self, branch: &Branch) -> Result<(), Refusal> {
        self.push(Entry::BranchBegun { after: branch.after });
        for run in &branch.ends {
            self.give_up(run)?;
        }
        Ok(())
    }

    /// Cancels a run whose work has been replaced: at once, or if a worker holds it, by a cancel of Everthread's own.
    fn give_up(&mut self, run: &RunId) -> Result<(), Refusal> {
        // What it has not taken in was said to what is replaced: no run of its own comes of it.
        let steers = self.state().controls_of(run).into_iter();
        let steers = steers.filter(|(_, control, _)| control.kind == ControlKind::Steer);
        let steers: Vec<ControlId> = steers.map(|(id, ..)| id.clone()).collect();
        for steer in steers {
            self.settle(&steer, ControlOutcome::Refused, Some(RefusalReason::Superseded), None);
        }
        match self.status_of(Some(run)) {
            Some(RunStatus::Requested | RunStatus::Suspended) => {
                self.end_run(run, Outcome::Cancelled, Ending::because("replaced"));
            }
            Some(RunStatus::Active { .. }) if !self.is_being_cancelled(run) => {
                let control: ControlId = self.fresh()?;
                let (target, grace) = (Target::Run(run.clone()), self.context.cancel_grace_ms);
                let mut asked = Asked::new(control, ControlKind::Cancel, target, grace);
                asked.runs = vec![run.clone()];
                self.ask(asked);
            }
            Some(RunStatus::Active { .. } | RunStatus::Ended { .. }) | None => {}
        }
        Ok(())
    }
}
