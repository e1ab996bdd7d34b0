//! Takeover: while a person holds the session no agent writes and no run begins.

use super::run::Ending;
use super::{Draft, Refusal, agent_of};
use crate::state::{Hold, Run, RunStatus};
use everthread_protocol::entry::{Entry, Outcome, RefusalReason};
use everthread_protocol::limits::RUN_INPUT_MAX;
use everthread_protocol::{AgentName, Author, ControlId, MessageId, RunId};

impl Draft<'_> {
    pub(super) fn hold(&mut self, by: &Author, reason: Option<String>) -> Result<(), Refusal> {
        if let Some(hold) = &self.state().held {
            return Err(Refusal::Held(Box::new(hold.by.clone())));
        }
        let active: Vec<RunId> = self.state().active_runs().map(|(run, _)| run.clone()).collect();
        let mut cut_off = active.iter().filter_map(|run| self.decision.state.runs.get(run));
        let agent = cut_off.find(|run| run.parent.is_none()).map(|run| run.agent.clone());
        self.state().held = Some(Hold { by: by.clone(), agent, input: Vec::new() });
        self.push(Entry::SessionHeld { reason });
        for run in active {
            self.end_run(&run, Outcome::Cancelled, Ending::forced("held"));
        }
        Ok(())
    }

    pub(super) fn release(
        &mut self,
        reason: Option<String>,
        agent: Option<&AgentName>,
        goes_on: bool,
    ) -> Result<(), Refusal> {
        let Some(hold) = self.state().held.take() else {
            return Err(Refusal::Invalid("nobody holds the session"));
        };
        self.push(Entry::SessionReleased { reason });
        let own = agent_of(&self.state().meta);
        let agent = agent.cloned().or(hold.agent).or(own);
        if let Some(agent) = agent.filter(|_| goes_on) {
            let run = self.request(Run::requested(agent, hold.input))?;
            self.decision.requested = Some(run);
        }
        // Their items may have been taken and left while nothing was to begin.
        let waiting = self.state().runs.iter().filter(|(_, run)| run.status == RunStatus::Requested);
        let waiting: Vec<RunId> = waiting.map(|(id, _)| id.clone()).collect();
        waiting.iter().for_each(|run| self.wait_for_worker(run));
        Ok(())
    }

    /// Keeps a message for the run that the release asks for. False if nobody holds the session.
    pub(super) fn note_while_held(&mut self, message: &MessageId) -> bool {
        let Some(hold) = &mut self.state().held else { return false };
        hold.input.push(message.to_string());
        if hold.input.len() > RUN_INPUT_MAX {
            hold.input.remove(0);
        }
        // Whoever cancelled it before it came is told now, as whoever cancels it from here on is.
        let waiting: Vec<ControlId> = self.waiting_cancels(message).cloned().collect();
        waiting.iter().for_each(|control| self.refuse(control, RefusalReason::Held, None));
        true
    }
}
