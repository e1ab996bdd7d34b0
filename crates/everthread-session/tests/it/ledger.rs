//! The log as its readers have it: every block is read in order, and whatever breaks a promise is refused.
//!
//! Nothing here looks at the core's state: which runs a control meant is worked out anew from the log.

use everthread_protocol::control::Verdict;
use everthread_protocol::entry::{ControlKind, ControlOutcome, Outcome, RefusalReason, Target};
use everthread_protocol::{AgentName, ApprovalId, ControlId, Entry, MessageId, RunId};
use std::collections::{BTreeMap, BTreeSet};

/// Deaths of workers after which a run is not given to another.
const DEATHS_MAX: u32 = 5;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    Waits,
    Active,
    Suspended,
    Ended(Outcome),
}

/// What the log says of a run.
#[derive(Debug, Clone)]
pub struct RunLog {
    pub agent: AgentName,
    pub parent: Option<RunId>,
    pub stands: Stands,
    deaths: u32,
    /// What it asked for, and the verdicts.
    approvals: BTreeMap<ApprovalId, Option<Verdict>>,
}

impl RunLog {
    pub fn is_open(&self) -> bool {
        !matches!(self.stands, Stands::Ended(_))
    }
}

/// What the log says of a control.
#[derive(Debug, Clone)]
pub struct ControlLog {
    pub kind: ControlKind,
    pub target: Target,
    pub message: Option<MessageId>,
    pub outcome: Option<ControlOutcome>,
    approval: Option<ApprovalId>,
    /// Runs that it may touch: those that were there when it was asked, or the one whose input it waited for.
    meant: BTreeSet<RunId>,
}

/// The log so far.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pub runs: BTreeMap<RunId, RunLog>,
    pub controls: BTreeMap<ControlId, ControlLog>,
    /// Messages that were put.
    pub messages: BTreeSet<MessageId>,
    /// Which run has a message as input, the newest of those that were done again. Else no message is the input of two.
    pub input_of: BTreeMap<String, RunId>,
    /// The same with the runs before it that it was the input of: they were done again.
    pub inputs_of: BTreeMap<String, Vec<RunId>>,
    pub is_held: bool,
    pub is_closed: bool,
}

/// What one block has brought so far.
#[derive(Default)]
struct Here<'a> {
    asked: BTreeSet<&'a ControlId>,
    ended: BTreeSet<&'a RunId>,
    put: BTreeSet<&'a MessageId>,
    /// A branch begins: then what is replaced is cancelled, and a run may have the input of one that has ended.
    begins_branch: bool,
    /// Answers that are applied and have not settled their approval yet.
    answered: BTreeSet<(RunId, ApprovalId)>,
}

impl Ledger {
    /// Reads one block.
    pub fn block(&mut self, block: &[Entry]) {
        let mut here = Here::default();
        for entry in block {
            assert!(!self.is_closed || !begins(entry), "after the close: {entry:?}");
            self.entry(&mut here, entry);
        }
        assert!(here.answered.is_empty(), "answers that answer nothing: {:?}", here.answered);
        for (id, run) in self.runs.iter().filter(|(_, run)| run.is_open()) {
            assert!(!self.is_closed, "{id} outlives the session");
            assert!(
                !self.is_held || run.stands != Stands::Active,
                "{id} is active in a session that is held"
            );
            let outlives = run.parent.as_ref().is_some_and(|parent| !self.runs[parent].is_open());
            assert!(!outlives || self.is_being_ended(id), "{id} outlives its parent");
            assert!(
                run.stands != Stands::Suspended || run.approvals.values().any(Option::is_none),
                "{id} waits for nothing"
            );
            assert!(
                run.stands == Stands::Active || !self.is_being_ended(id),
                "{id} waits although it is cancelled"
            );
        }
    }

    fn entry<'a>(&mut self, here: &mut Here<'a>, entry: &'a Entry) {
        match entry {
            Entry::MessagePut { message, .. } => {
                assert!(self.messages.insert(message.clone()), "{message} is put twice");
                here.put.insert(message);
            }
            Entry::RunRequested { run, agent, input, parent_run, .. } => {
                let new = RunLog {
                    agent: agent.clone(),
                    parent: parent_run.clone(),
                    stands: Stands::Waits,
                    deaths: 0,
                    approvals: BTreeMap::new(),
                };
                assert!(self.runs.insert(run.clone(), new).is_none(), "{run} requested twice");
                for message in input {
                    // One that is done again has the input of the first.
                    if here.begins_branch {
                        self.input_of.remove(message);
                    }
                    self.take_in(message, run);
                }
            }
            Entry::BranchBegun { .. } => here.begins_branch = true,
            Entry::ControlRequested { control, kind, target, message, approval, .. } => {
                here.asked.insert(control);
                if let Some(message) = message {
                    assert!(here.put.contains(message), "{control} carries {message} of another block");
                }
                let new = ControlLog {
                    kind: *kind,
                    target: target.clone(),
                    message: message.clone(),
                    outcome: None,
                    approval: approval.clone(),
                    meant: self.meant(*kind, target),
                };
                assert!(self.controls.insert(control.clone(), new).is_none(), "{control} asked twice");
            }
            Entry::ControlSettled { control, outcome, reason, run, answered_by } => {
                let reason = *reason;
                assert_eq!(answered_by.is_some(), reason == Some(RefusalReason::AlreadyAnswered));
                assert_eq!(reason.is_none(), *outcome == ControlOutcome::Applied, "{control}: {reason:?}");
                let known = self.controls.get_mut(control).unwrap();
                assert_eq!(known.outcome.replace(*outcome), None, "{control} settled twice");
                self.settled(here, control, *outcome, reason, run.as_ref());
            }
            Entry::SessionHeld { .. } => self.is_held = true,
            Entry::SessionReleased { .. } => self.is_held = false,
            Entry::SessionClosed { .. } => self.is_closed = true,
            of_run => self.run_entry(here, of_run),
        }
    }

    fn run_entry<'a>(&mut self, here: &mut Here<'a>, entry: &'a Entry) {
        match entry {
            Entry::RunStarted { run, .. } => {
                assert!(!self.is_held, "{run} starts in a session that is held");
                let (agent, is_child) = (self.runs[run].agent.clone(), self.runs[run].parent.is_some());
                let at_work = |other: &RunLog| {
                    other.agent == agent
                        && other.parent.is_none()
                        && matches!(other.stands, Stands::Active | Stands::Suspended)
                };
                assert!(is_child || !self.runs.values().any(at_work), "{run} starts beside another");
                self.go(run, Stands::Waits, Stands::Active);
            }
            Entry::RunReturned { run, reason } => {
                self.go(run, Stands::Active, Stands::Waits);
                let known = self.runs.get_mut(run).unwrap();
                known.deaths += u32::from(reason == "worker_lost");
                assert!(known.deaths < DEATHS_MAX, "{run} has cost {} workers", known.deaths);
            }
            Entry::RunSuspended { run, approvals } => {
                self.go(run, Stands::Active, Stands::Suspended);
                let known = &mut self.runs.get_mut(run).unwrap().approvals;
                for asked in approvals {
                    assert!(known.insert(asked.approval.clone(), None).is_none(), "asked twice: {asked:?}");
                }
            }
            Entry::ApprovalSettled { run, approval, verdict, answered_by, .. } => {
                assert_eq!(here.answered.remove(&(run.clone(), approval.clone())), answered_by.is_some());
                assert_eq!(answered_by.is_none(), *verdict == Verdict::Expired);
                let known = self.runs.get_mut(run).unwrap();
                assert_eq!(known.stands, Stands::Suspended, "{run}: {approval}");
                let open = known.approvals.get_mut(approval).unwrap();
                assert_eq!(open.replace(*verdict), None, "{run}: {approval} settled twice");
            }
            Entry::RunResumed { run } => {
                assert!(self.runs[run].approvals.values().all(Option::is_some), "{run} goes on too early");
                self.go(run, Stands::Suspended, Stands::Waits);
            }
            Entry::RunEnded { run, outcome, reason, .. } => {
                let known = self.runs.get_mut(run).unwrap();
                assert!(known.is_open(), "{run} ends twice");
                known.stands = Stands::Ended(*outcome);
                here.ended.insert(run);
                // Nothing but a control that meant this run ends it so: no later run is ever touched.
                let by_control = match reason.as_deref() {
                    Some("cancel" | "cancel_timeout" | "interrupt") => true,
                    Some("worker_lost") => *outcome == Outcome::Cancelled,
                    _ => false,
                };
                assert!(!by_control || self.is_being_ended(run), "{run} is ended by nobody: {reason:?}");
                assert!(reason.as_deref() != Some("replaced") || here.begins_branch, "{run} is not replaced");
            }
            _ => {}
        }
    }

    fn go(&mut self, run: &RunId, from: Stands, to: Stands) {
        let known = self.runs.get_mut(run).unwrap();
        assert_eq!(known.stands, from, "{run} becomes {to:?}");
        known.stands = to;
    }

    /// A message becomes input of a run; cancels that waited for it mean that run from here on.
    fn take_in(&mut self, message: &str, run: &RunId) {
        assert!(self.messages.iter().any(|known| known.as_str() == message), "{message} was never put");
        let before = self.input_of.insert(message.to_owned(), run.clone());
        assert_eq!(before, None, "{message} is the input of two runs");
        self.inputs_of.entry(message.to_owned()).or_default().push(run.clone());
        for control in self.controls.values_mut() {
            let waits = control.outcome.is_none() && control.meant.is_empty();
            if waits && matches!(&control.target, Target::Input(id) if id.as_str() == message) {
                control.meant.insert(run.clone());
            }
        }
    }

    /// The runs that a control may touch. For what concerns one run of an agent: any of its open ones.
    fn meant(&self, kind: ControlKind, target: &Target) -> BTreeSet<RunId> {
        let open = |is: &dyn Fn(&RunLog) -> bool| {
            let runs = self.runs.iter().filter(|(_, run)| run.is_open() && is(run));
            runs.map(|(id, _)| id.clone()).collect()
        };
        match target {
            Target::Run(run) => BTreeSet::from([run.clone()]),
            Target::Input(message) => {
                let runs = self.inputs_of.get(message.as_str()).cloned().unwrap_or_default();
                match runs.iter().rfind(|run| self.runs[*run].is_open()) {
                    Some(open) => BTreeSet::from([open.clone()]),
                    None => runs.into_iter().collect(),
                }
            }
            Target::Agent(agent) => {
                let is_cancel = kind == ControlKind::Cancel;
                open(&|run| run.agent == *agent && (is_cancel || run.parent.is_none()))
            }
            Target::All(_) => open(&|_| true),
        }
    }

    /// Whether a cancel or an interrupt that is pending meant the run.
    fn is_being_ended(&self, run: &RunId) -> bool {
        self.controls.values().any(|control| {
            control.outcome.is_none()
                && match control.kind {
                    ControlKind::Cancel => control.meant.contains(run),
                    // Of several runs of the agent it means one, the one at work.
                    ControlKind::Interrupt => {
                        control.meant.contains(run)
                            && (!matches!(control.target, Target::Agent(_)) || self.was_at_work(run))
                    }
                    _ => false,
                }
        })
    }

    fn was_at_work(&self, run: &RunId) -> bool {
        !matches!(self.runs[run].stands, Stands::Waits | Stands::Suspended)
    }

    fn settled<'a>(
        &mut self,
        here: &mut Here<'a>,
        id: &'a ControlId,
        outcome: ControlOutcome,
        reason: Option<RefusalReason>,
        run: Option<&'a RunId>,
    ) {
        use ControlOutcome::{Applied, Expired, Refused};
        let control = self.controls[id].clone();
        let all_ended = control.meant.iter().all(|run| !self.runs[run].is_open());
        match (control.kind, outcome) {
            (ControlKind::Cancel, Applied) => {
                assert!(!control.meant.is_empty() && all_ended, "{id} is applied and runs go on");
                assert!(
                    control.meant.iter().any(|run| here.ended.contains(run)),
                    "{id} settled without its run"
                );
                if control.meant.len() == 1 {
                    assert_eq!(self.runs[run.unwrap()].stands, Stands::Ended(Outcome::Cancelled));
                }
            }
            (ControlKind::Cancel, Refused) => match reason {
                Some(RefusalReason::RunEnded) => assert!(!control.meant.is_empty() && all_ended),
                Some(RefusalReason::NoActiveRun | RefusalReason::Held) => assert!(control.meant.is_empty()),
                other => panic!("{id}: {other:?}"),
            },
            // Its input never came, or came and went so long ago that the core has forgotten it.
            (ControlKind::Cancel, Expired) => assert!(all_ended && run.is_none()),
            (ControlKind::Interrupt, Applied) => {
                assert!(run.is_none_or(|run| control.meant.contains(run) && !self.runs[run].is_open()));
                assert!(self.has_run(&control), "{id} is applied and its message runs nowhere");
            }
            (ControlKind::Interrupt, Refused) => assert_eq!(reason, Some(RefusalReason::Held)),
            (ControlKind::Interrupt, Expired) => panic!("{id}: stop always stops"),
            (ControlKind::Steer, _) => self.steer_settled(id, &control, outcome, run),
            (ControlKind::Pause | ControlKind::Resume, Applied) => {
                assert!(control.meant.contains(run.unwrap()) && self.runs[run.unwrap()].is_open());
            }
            (ControlKind::Pause | ControlKind::Resume, _) => {}
            (ControlKind::Answer, Applied) => {
                assert!(here.asked.contains(id));
                here.answered.insert((run.unwrap().clone(), control.approval.unwrap()));
            }
            (ControlKind::Answer, Refused) => assert!(here.asked.contains(id)),
            (ControlKind::Answer, Expired) => panic!("{id}: an answer has its outcome at once"),
        }
    }

    fn steer_settled(
        &mut self,
        id: &ControlId,
        control: &ControlLog,
        outcome: ControlOutcome,
        run: Option<&RunId>,
    ) {
        let message = control.message.as_ref().unwrap().as_str();
        match (outcome, run) {
            (ControlOutcome::Applied, Some(run)) => {
                assert!(self.runs[run].is_open(), "{id} is applied to {run}, which has ended");
                if self.input_of.get(message) != Some(run) {
                    assert!(control.meant.contains(run), "{id} means {:?} and hits {run}", control.meant);
                    self.take_in(message, run);
                }
            }
            (ControlOutcome::Applied, None) => panic!("{id} is applied to nothing"),
            (_, Some(run)) => {
                assert_eq!(self.input_of.get(message), Some(run), "{id} says where its text is")
            }
            // In the hands of a person, or dropped: whoever looks after the messages knows.
            (_, None) => assert_eq!(self.input_of.get(message), None),
        }
    }

    fn has_run(&self, control: &ControlLog) -> bool {
        control.message.as_ref().is_some_and(|message| self.input_of.contains_key(message.as_str()))
    }

    /// Whether a message is input of a run, or carried by a control without outcome.
    pub fn is_looked_after(&self, message: &str) -> bool {
        let carries = |c: &ControlLog| {
            c.outcome.is_none() && c.message.as_ref().is_some_and(|carried| carried.as_str() == message)
        };
        self.input_of.contains_key(message) || self.controls.values().any(carries)
    }

    /// Runs that have no outcome.
    pub fn open_runs(&self) -> impl Iterator<Item = (&RunId, &RunLog)> {
        self.runs.iter().filter(|(_, run)| run.is_open())
    }
}

/// What a closed session must not see.
fn begins(entry: &Entry) -> bool {
    matches!(
        entry,
        Entry::MessagePut { .. }
            | Entry::RunRequested { .. }
            | Entry::RunStarted { .. }
            | Entry::ControlRequested { .. }
            | Entry::RunSuspended { .. }
            | Entry::BranchBegun { .. }
            | Entry::BranchSelected { .. }
            | Entry::SessionHeld { .. }
            | Entry::SessionReleased { .. }
    )
}
