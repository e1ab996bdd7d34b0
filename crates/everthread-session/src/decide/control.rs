//! Controls: each gets exactly one outcome, by its deadline at the latest.

use super::run::Ending;
use super::{Draft, Refusal};
use crate::state::{Control, ControlStage, Run, RunStatus};
use everthread_protocol::entry::{ControlKind, ControlOutcome, Entry, Outcome, RefusalReason, Target};
use everthread_protocol::limits::{CANCEL_INPUT_WAIT_MS, PENDING_CONTROLS_MAX};
use everthread_protocol::{ControlId, Millis, RunId};

impl Draft<'_> {
    pub(super) fn cancel(&mut self, id: &ControlId, target: &Target) -> Result<(), Refusal> {
        if self.state().controls.contains_key(id) {
            return Err(Refusal::Known);
        }
        let run = self.state().run_of(target).cloned();
        let status = run.as_ref().and_then(|run| self.state().runs.get(run)).map(|run| &run.status);
        // Any other target settles it at once.
        let waits = matches!(status, None | Some(RunStatus::Active { .. }));
        if waits && self.state().pending_controls().count() >= PENDING_CONTROLS_MAX {
            return Err(Refusal::Limit(
                "PENDING_CONTROLS_MAX: 64 controls of this session wait for an outcome",
            ));
        }
        let Some(run) = run else {
            let Target::Input(_) = target else { return Err(Refusal::NoRun) };
            self.ask(id, target, self.context.now.plus(CANCEL_INPUT_WAIT_MS));
            return Ok(());
        };
        self.ask(id, target, self.context.now.plus(self.context.cancel_grace_ms));
        match self.state().runs.get(&run).map(|run| &run.status) {
            Some(RunStatus::Requested) => {
                self.end_run(&run, Outcome::Cancelled, Ending::because("cancel"));
            }
            Some(RunStatus::Active { .. }) => {}
            Some(RunStatus::Ended { .. }) | None => {
                self.settle(id, ControlOutcome::Refused, Some(RefusalReason::RunEnded), Some(&run));
            }
        }
        Ok(())
    }

    fn ask(&mut self, id: &ControlId, target: &Target, expires: Millis) {
        let kind = ControlKind::Cancel;
        self.push(Entry::ControlRequested { control: id.clone(), kind, target: target.clone(), expires });
        let stage = ControlStage::Pending { expires };
        self.state().controls.insert(id.clone(), Control { kind, target: target.clone(), stage });
    }

    pub(super) fn settle(
        &mut self,
        id: &ControlId,
        outcome: ControlOutcome,
        reason: Option<RefusalReason>,
        run: Option<&RunId>,
    ) {
        let at = self.context.now;
        let Some(control) = self.state().controls.get_mut(id).filter(|c| c.is_pending()) else { return };
        control.stage = ControlStage::Settled { outcome, reason, at };
        self.push(Entry::ControlSettled { control: id.clone(), outcome, reason, run: run.cloned() });
    }

    /// An input has arrived that somebody cancelled before: its run ends in the block that requests it.
    pub(super) fn settle_waiting_cancels(&mut self, run: &RunId) {
        if self.state().controls_of(run).next().is_some() {
            self.end_run(run, Outcome::Cancelled, Ending::because("cancel"));
        }
    }

    /// A run that ends takes its children with it: waiting ones at once, active ones by a cancel of Everthread's own.
    pub(super) fn cancel_children(&mut self, parent: &RunId) {
        let is_child = |run: &Run| run.is_open() && run.parent.as_ref() == Some(parent);
        let children: Vec<RunId> =
            self.state().runs.iter().filter(|(_, run)| is_child(run)).map(|(id, _)| id.clone()).collect();
        for child in children {
            let is_active = |run: &Run| matches!(run.status, RunStatus::Active { .. });
            let active = self.state().runs.get(&child).is_some_and(is_active);
            match self.fresh::<ControlId>() {
                Ok(control) if active => {
                    let expires = self.context.now.plus(self.context.cancel_grace_ms);
                    self.ask(&control, &Target::Run(child), expires);
                }
                _ => self.end_run(&child, Outcome::Cancelled, Ending::because("parent_ended")),
            }
        }
    }

    /// Whatever has had its time gets its outcome. Early or repeated calls are harmless.
    pub(super) fn due(&mut self) -> Result<(), Refusal> {
        let now = self.context.now;
        let due: Vec<(ControlId, Target)> = self
            .state()
            .pending_controls()
            .filter(|(_, _, expires)| *expires <= now)
            .map(|(id, control, _)| (id.clone(), control.target.clone()))
            .collect();
        if due.is_empty() {
            return Err(Refusal::NotDue);
        }
        for (control, target) in due {
            match self.state().run_of(&target).cloned() {
                Some(run) => self.end_run(&run, Outcome::Cancelled, Ending::forced("cancel_timeout")),
                None => self.settle(&control, ControlOutcome::Expired, Some(RefusalReason::Timeout), None),
            }
        }
        Ok(())
    }
}
