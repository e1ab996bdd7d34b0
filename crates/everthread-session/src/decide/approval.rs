//! Approvals: a run waits for people, without a worker; each approval is used once.

use super::control::Asked;
use super::run::Ending;
use super::{Draft, Refusal};
use crate::state::{Approval, Run, RunStatus};
use everthread_protocol::control::Verdict;
use everthread_protocol::entry::{self, ControlOutcome, Entry, Outcome, RefusalReason};
use everthread_protocol::limits::{
    APPROVAL_WAIT_MAX_MS, APPROVAL_WAIT_MS, OPEN_APPROVALS_MAX, RUN_APPROVALS_MAX,
};
use everthread_protocol::worker_frame::NewApproval;
use everthread_protocol::{ApprovalId, Author, RunId};
use serde_json::Value;

/// An answer as somebody gives it.
pub(super) struct Answer<'a> {
    pub by: &'a Author,
    pub approval: &'a ApprovalId,
    pub is_approved: bool,
    pub value: Option<&'a Value>,
    pub digest: Option<&'a str>,
}

impl Draft<'_> {
    pub(super) fn suspend(&mut self, id: &RunId, approvals: &[NewApproval]) -> Result<(), Refusal> {
        let now = self.context.now;
        if self.is_being_cancelled(id) {
            self.end_run(id, Outcome::Cancelled, Ending::because("cancel"));
            return Ok(());
        }
        let open = self.state().open_approvals().count();
        let run = self.state().runs.get_mut(id).ok_or(Refusal::NotHeld)?;
        if !matches!(run.status, RunStatus::Active { .. }) {
            return Err(Refusal::NotHeld);
        }
        if approvals.is_empty() {
            return Err(Refusal::Invalid("a run is suspended for at least one approval"));
        }
        if open + approvals.len() > OPEN_APPROVALS_MAX {
            return Err(Refusal::Limit(
                "OPEN_APPROVALS_MAX: 32 approvals of this session wait for an answer",
            ));
        }
        if run.approvals.len() + approvals.len() > RUN_APPROVALS_MAX {
            return Err(Refusal::Limit("RUN_APPROVALS_MAX: a run asks for at most 64 approvals"));
        }
        let mut logged = Vec::new();
        for asked in approvals {
            if run.approvals.iter().any(|known| known.approval == asked.approval) {
                return Err(Refusal::IdInUse(asked.approval.to_string()));
            }
            let wait = asked.expires_ms.unwrap_or(APPROVAL_WAIT_MS);
            if wait == 0 || wait > APPROVAL_WAIT_MAX_MS {
                return Err(Refusal::Invalid("expires_ms of an approval is from 1 ms to 30 days"));
            }
            let expires = now.plus(wait);
            run.approvals.push(Approval {
                approval: asked.approval.clone(),
                digest: asked.digest.clone(),
                expires,
                who: asked.who.clone(),
                verdict: None,
                answered_by: None,
                value: None,
            });
            logged.push(entry::Approval {
                approval: asked.approval.clone(),
                reason: asked.reason.clone(),
                schema: asked.schema.clone(),
                digest: asked.digest.clone(),
                expires,
                who: asked.who.as_ref().and_then(|who| serde_json::to_value(who).ok()),
                data: asked.data.clone(),
            });
        }
        run.status = RunStatus::Suspended;
        self.push(Entry::RunSuspended { run: id.clone(), approvals: logged });
        self.decision.revoke.push(id.clone());
        self.settle_without_worker(id);
        Ok(())
    }

    pub(super) fn answer(&mut self, mut asked: Asked, run: Option<RunId>, answer: Answer<'_>) {
        let control = asked.control.clone();
        asked.runs = run.iter().cloned().collect();
        self.ask(asked);
        let Some(run) = run else { return self.refuse(&control, RefusalReason::NoActiveRun, None) };
        match self.check_answer(&run, &answer) {
            Ok(()) => {
                let verdict = if answer.is_approved { Verdict::Approved } else { Verdict::Denied };
                self.settle(&control, ControlOutcome::Applied, None, Some(&run));
                self.settle_approval(&run, answer.approval, verdict, Some(answer.by), answer.value);
            }
            Err((reason, first)) => {
                self.settle_after(&control, ControlOutcome::Refused, Some(reason), Some(&run), first);
            }
        }
    }

    /// Why an answer does not count; with `already_answered`, who was first.
    fn check_answer(
        &mut self,
        run: &RunId,
        answer: &Answer<'_>,
    ) -> Result<(), (RefusalReason, Option<Author>)> {
        let (now, is_held) = (self.context.now, self.state().held.is_some());
        let run = self.state().runs.get(run);
        let mut approvals = run.into_iter().flat_map(|run| &run.approvals);
        let Some(approval) = approvals.find(|known| known.approval == *answer.approval) else {
            let is_open = run.is_some_and(Run::is_open);
            let reason = if is_open { RefusalReason::NoApproval } else { RefusalReason::RunEnded };
            return Err((reason, None));
        };
        match approval.verdict {
            Some(Verdict::Approved | Verdict::Denied) => {
                return Err((RefusalReason::AlreadyAnswered, approval.answered_by.clone()));
            }
            Some(Verdict::Expired) => return Err((RefusalReason::Timeout, None)),
            None => {}
        }
        if approval.expires <= now {
            return Err((RefusalReason::Timeout, None));
        }
        if is_held {
            return Err((RefusalReason::Held, None));
        }
        if approval.who.as_ref().is_some_and(|who| !who.allows(answer.by)) {
            return Err((RefusalReason::NotAllowed, None));
        }
        let agrees = approval.digest.as_deref() == answer.digest;
        if !agrees && (answer.is_approved || answer.digest.is_some()) {
            return Err((RefusalReason::WrongDigest, None));
        }
        Ok(())
    }

    /// Nobody has answered in time.
    pub(super) fn expire(&mut self, run: &RunId, approval: &ApprovalId) {
        self.settle_approval(run, approval, Verdict::Expired, None, None);
    }

    /// The one outcome of an approval. With the last one the run waits for a worker.
    fn settle_approval(
        &mut self,
        id: &RunId,
        approval: &ApprovalId,
        verdict: Verdict,
        by: Option<&Author>,
        value: Option<&Value>,
    ) {
        let Some(run) = self.state().runs.get_mut(id) else { return };
        let open = run.approvals.iter_mut().find(|known| known.approval == *approval && known.is_open());
        let Some(open) = open else { return };
        open.verdict = Some(verdict);
        (open.answered_by, open.value) = (by.cloned(), value.cloned());
        let is_last = !run.approvals.iter().any(Approval::is_open);
        self.push(Entry::ApprovalSettled {
            run: id.clone(),
            approval: approval.clone(),
            verdict,
            answered_by: by.and_then(|by| serde_json::to_value(by).ok()),
            value: value.cloned(),
        });
        if is_last {
            self.push(Entry::RunResumed { run: id.clone() });
            self.wait_for_worker(id);
        }
    }
}
