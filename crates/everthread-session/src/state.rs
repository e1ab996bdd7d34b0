//! The core state of a session: what decisions depend on, and nothing else. Messages and parts are not in it.
//!
//! Stored as one JSON text with every decision; bounded by [`STATE_BYTES_MAX`](everthread_protocol::limits::STATE_BYTES_MAX).

use everthread_protocol::control::{Mode, Verdict, WhoMay};
use everthread_protocol::entry::{ControlKind, ControlOutcome, Object, Outcome, RefusalReason, Target};
use everthread_protocol::limits::{SETTLED_MAX, SETTLED_MEMORY_MS};
use everthread_protocol::worker_frame::Answered;
use everthread_protocol::{
    AgentName, ApprovalId, Author, ControlId, MessageId, Millis, RunId, SubjectId, WorkerId,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The schema this release writes. A state with a higher one is read, but not decided upon.
pub const SCHEMA: u32 = 2;

/// The schema of a state as it is stored, also of one that this release cannot read.
pub fn schema_of(state: &str) -> Result<u32, serde_json::Error> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    serde_json::from_str(state).map(|Schema { schema }| schema)
}

/// What the application keeps with the session, of a state as it is stored, also of one that this release cannot read.
pub fn meta_of(state: &str) -> Result<Value, serde_json::Error> {
    #[derive(Deserialize)]
    struct Kept {
        meta: Value,
    }
    serde_json::from_str(state).map(|Kept { meta }| meta)
}

/// What decisions depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Form of this state.
    pub schema: u32,
    /// What the application keeps with the session.
    pub meta: Object,
    /// From here on it only reads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
    /// A person has taken it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Hold>,
    /// Open runs, and ended ones for a while.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub runs: BTreeMap<RunId, Run>,
    /// Pending controls, and settled ones for a while.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub controls: BTreeMap<ControlId, Control>,
    /// Controls that were settled up to here may have been forgotten before their time, for want of room.
    #[serde(default, skip_serializing_if = "is_never")]
    pub forgotten: Millis,
    /// Latest value per key of `state.set`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, Value>,
}

/// A session in the hands of a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// Whose.
    pub by: Author,
    /// Whose work was cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentName>,
    /// What was said since: input of the run that the release asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub input: Vec<String>,
}

/// One piece of agent work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Who is to do it.
    pub agent: AgentName,
    /// Its input messages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub input: Vec<String>,
    /// The run that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<RunId>,
    /// Passed to the worker; dropped at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Object>,
    /// How many times a worker has got it.
    #[serde(default)]
    pub attempts: u32,
    /// How many workers have died under it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deaths: u32,
    /// How many workers have given it back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub declines: u32,
    /// Its place among the runs of the session: later ones have higher numbers.
    #[serde(default)]
    pub number: u64,
    /// It goes before others that wait.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goes_first: bool,
    /// It stands still: no worker gets it, or its worker waits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// If its worker dies, another goes on with it, whatever was written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retries: bool,
    /// What it waits for or has waited for; dropped at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// Where it stands.
    pub status: RunStatus,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// It waits for a worker.
    Requested,
    /// A worker holds it.
    Active {
        /// Which.
        worker: WorkerId,
    },
    /// It waits for people.
    Suspended,
    /// It is over.
    Ended {
        /// How.
        outcome: Outcome,
        /// When.
        at: Millis,
    },
}

/// Something that a run waits for, or has waited for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Approval {
    /// Its id.
    pub approval: ApprovalId,
    /// Digest of what is asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When it counts as not given.
    pub expires: Millis,
    /// Who may answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<WhoMay>,
    /// Its outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<Author>,
    /// The answer, if it is more than yes or no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// A control request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// What is asked.
    pub kind: ControlKind,
    /// Of whom.
    pub target: Target,
    /// By whom; nobody if Everthread asks itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<SubjectId>,
    /// The runs that this meant when it was asked; none while a cancel waits for its input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunId>,
    /// With `steer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// With `steer` and `interrupt`: the message that carries the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// Its place among the controls of the session: later ones have higher numbers.
    #[serde(default)]
    pub number: u64,
    /// Whether it has its outcome.
    pub stage: ControlStage,
}

/// Where a control stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlStage {
    /// It gets its outcome by `expires`.
    Pending {
        /// The deadline.
        expires: Millis,
    },
    /// It has its outcome.
    Settled {
        /// Which.
        outcome: ControlOutcome,
        /// With `refused` and `expired`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<RefusalReason>,
        /// The run it applied to, or that its message became the input of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<RunId>,
        /// Who was first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answered_by: Option<Author>,
        /// When.
        at: Millis,
    },
}

impl Run {
    /// A run that waits for a worker.
    pub fn requested(agent: AgentName, input: Vec<String>) -> Run {
        Run {
            agent,
            input,
            parent: None,
            params: None,
            attempts: 0,
            deaths: 0,
            declines: 0,
            number: 0,
            goes_first: false,
            paused: false,
            retries: false,
            approvals: Vec::new(),
            status: RunStatus::Requested,
        }
    }

    /// Where it stands among those that wait: the least comes first. One that was begun is gone on with before any other
    /// begins, so that nothing gets in between its attempts, and whoever gives it back need wake nobody else.
    pub(crate) fn place(&self) -> (bool, bool, u64) {
        (self.attempts == 0, !self.goes_first, self.number)
    }

    /// Outcomes of what it asked for.
    pub fn answers(&self) -> Vec<Answered> {
        let answered = |a: &Approval| {
            Some(Answered {
                approval: a.approval.clone(),
                verdict: a.verdict?,
                answered_by: a.answered_by.clone(),
                value: a.value.clone(),
                digest: a.digest.clone(),
            })
        };
        self.approvals.iter().filter_map(answered).collect()
    }

    /// Whether it still needs an outcome.
    pub fn is_open(&self) -> bool {
        !matches!(self.status, RunStatus::Ended { .. })
    }

    /// Whether `worker` holds it.
    pub fn is_held_by(&self, worker: &WorkerId) -> bool {
        matches!(&self.status, RunStatus::Active { worker: w } if w == worker)
    }
}

impl Approval {
    /// Whether it still needs an outcome.
    pub fn is_open(&self) -> bool {
        self.verdict.is_none()
    }
}

impl Control {
    /// Whether it still needs an outcome.
    pub fn is_pending(&self) -> bool {
        matches!(self.stage, ControlStage::Pending { .. })
    }
}

impl State {
    /// The state of a new session.
    pub fn new(meta: Object) -> State {
        State {
            schema: SCHEMA,
            meta,
            closed: false,
            held: None,
            runs: BTreeMap::new(),
            controls: BTreeMap::new(),
            forgotten: Millis::default(),
            values: BTreeMap::new(),
        }
    }

    /// Runs that still need an outcome.
    pub fn open_runs(&self) -> impl Iterator<Item = (&RunId, &Run)> {
        self.runs.iter().filter(|(_, run)| run.is_open())
    }

    /// Runs that a worker holds.
    pub fn active_runs(&self) -> impl Iterator<Item = (&RunId, &WorkerId)> {
        self.runs.iter().filter_map(|(id, run)| match &run.status {
            RunStatus::Active { worker } => Some((id, worker)),
            RunStatus::Requested | RunStatus::Suspended | RunStatus::Ended { .. } => None,
        })
    }

    /// Controls without an outcome, with their deadlines.
    pub fn pending_controls(&self) -> impl Iterator<Item = (&ControlId, &Control, Millis)> {
        self.controls.iter().filter_map(|(id, control)| match control.stage {
            ControlStage::Pending { expires } => Some((id, control, expires)),
            ControlStage::Settled { .. } => None,
        })
    }

    /// Pending controls that ask something of `run`, in the order they were asked.
    pub fn controls_of(&self, run: &RunId) -> Vec<(&ControlId, &Control, Millis)> {
        let mut controls: Vec<_> =
            self.pending_controls().filter(|(_, control, _)| control.runs.contains(run)).collect();
        controls.sort_by_key(|(_, control, _)| control.number);
        controls
    }

    /// Approvals without an outcome of runs that wait for them.
    pub fn open_approvals(&self) -> impl Iterator<Item = (&RunId, &Approval)> {
        let suspended = self.runs.iter().filter(|(_, run)| run.status == RunStatus::Suspended);
        suspended.flat_map(|(id, run)| run.approvals.iter().filter(|a| a.is_open()).map(move |a| (id, a)))
    }

    /// The run that a message asked for. Of several, because it was done again, the newest that is open, else the newest.
    pub fn run_for_input(&self, message: &MessageId) -> Option<&RunId> {
        let asked = |run: &Run| run.input.iter().any(|id| id == message.as_str());
        let runs = self.runs.iter().filter(|(_, run)| asked(run));
        runs.max_by_key(|(_, run)| (run.is_open(), run.number)).map(|(id, _)| id)
    }

    /// When something must happen by itself.
    pub fn next_due(&self) -> Option<Millis> {
        let controls = self.pending_controls().map(|(_, _, expires)| expires);
        controls.chain(self.open_approvals().map(|(_, approval)| approval.expires)).min()
    }

    /// Drops what is settled for long, oldest first where there is too much of it.
    pub(crate) fn forget(&mut self, now: Millis) {
        let recent = |at: Millis| at.plus(SETTLED_MEMORY_MS) > now;
        self.runs.retain(|_, run| !matches!(run.status, RunStatus::Ended { at, .. } if !recent(at)));
        self.controls.retain(|_, c| !matches!(c.stage, ControlStage::Settled { at, .. } if !recent(at)));
        forget_oldest(&mut self.runs, SETTLED_MAX, run_ended_at);
        self.forget_controls(SETTLED_MAX);
    }

    fn forget_controls(&mut self, keep: usize) {
        let last = forget_oldest(&mut self.controls, keep, control_settled_at);
        self.forgotten = self.forgotten.max(last.unwrap_or_default());
    }

    /// Drops the older half of what is settled, for want of room. False if nothing is.
    pub(crate) fn forget_older_half(&mut self) -> bool {
        let runs = self.runs.values().filter_map(run_ended_at).count();
        let controls = self.controls.values().filter_map(control_settled_at).count();
        forget_oldest(&mut self.runs, runs / 2, run_ended_at);
        self.forget_controls(controls / 2);
        runs + controls > 0
    }
}

fn run_ended_at(run: &Run) -> Option<Millis> {
    match run.status {
        RunStatus::Ended { at, .. } => Some(at),
        RunStatus::Requested | RunStatus::Active { .. } | RunStatus::Suspended => None,
    }
}

fn control_settled_at(control: &Control) -> Option<Millis> {
    match control.stage {
        ControlStage::Settled { at, .. } => Some(at),
        ControlStage::Pending { .. } => None,
    }
}

/// Drops the oldest of what is settled, beyond `keep`; when the last one dropped was settled.
fn forget_oldest<K: Ord + Clone, V>(
    map: &mut BTreeMap<K, V>,
    keep: usize,
    settled_at: impl Fn(&V) -> Option<Millis>,
) -> Option<Millis> {
    let mut settled: Vec<_> = map.iter().filter_map(|(k, v)| Some((settled_at(v)?, k.clone()))).collect();
    let old = settled.len().checked_sub(keep).filter(|old| *old > 0)?;
    settled.sort();
    for (_, key) in &settled[..old] {
        map.remove(key);
    }
    settled.get(old - 1).map(|(at, _)| *at)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_never(at: &Millis) -> bool {
    at.0 == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
