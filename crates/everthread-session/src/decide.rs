//! `decide(state, request, context) → entries and a new state, or a refusal`. Pure: time and fresh ids come in with the context.
//!
//! Invariants, whatever the order of requests: a run ends exactly once; a control and an approval get exactly one
//! outcome; a cancel settles only in the block that holds its run's `run.ended`, and concerns no run but those it meant
//! when it was asked; a message that somebody put for an agent is the input of a run, or of one to come; a run that ends
//! takes its children with it; no run is claimed while a person holds the session.

mod approval;
mod branch;
mod control;
mod run;
mod steer;
mod takeover;

use crate::forked::FORKED_FROM;
use crate::retention::Retention;
use crate::state::{SCHEMA, State};
use everthread_protocol::control::{What, WhenBusy};
use everthread_protocol::entry::{
    ControlOutcome, Object, Outcome, PutPart, RefusalReason, Role, RunError, Target,
};
use everthread_protocol::limits::{META_BYTES_MAX, STATE_BYTES_MAX, VALUES_BYTES_MAX, VALUES_MAX};
use everthread_protocol::worker_frame::NewApproval;
use everthread_protocol::{
    AgentName, Author, Code, ControlId, Entry, Fault, MessageId, Millis, RunId, Seq, SessionId, WorkerId,
};
use serde::Deserialize as _;
use serde_json::Value;

/// Said to whoever writes what forks alone write.
const FORKED_FROM_FIXED: &str = "meta.forked_from is written by forks alone";

/// What a decision may depend on besides the state.
#[derive(Debug, Clone)]
pub struct Context {
    /// The store's clock.
    pub now: Millis,
    /// A ULID of this decision; ids that the decision makes begin with it.
    pub fresh: String,
    /// How long a worker has to end a run that is cancelled.
    pub cancel_grace_ms: u64,
}

/// What somebody wants.
#[derive(Debug, Clone)]
pub enum Request {
    /// A new session.
    Open {
        /// Its meta.
        meta: Object,
    },
    /// Change the meta.
    Update {
        /// Keys to set, or with `null` to remove.
        patch: Object,
    },
    /// No writes any more.
    Close {
        /// For people.
        reason: Option<String>,
    },
    /// A whole message, and a run if it is for an agent.
    Put(Put),
    /// A run that has ended is done again, on a branch of its own.
    Regenerate(Box<Regenerate>),
    /// The newest branch through a message becomes the current one.
    Select {
        /// Seq of that message.
        through: Seq,
    },
    /// A shared value.
    SetValue {
        /// Which.
        key: String,
        /// `null` removes it.
        value: Value,
    },
    /// Entries that no decision depends on. The session must take writes.
    Events,
    /// A worker takes a run.
    Claim {
        /// Which run.
        run: RunId,
        /// For whom.
        worker: WorkerId,
        /// If the worker dies, another goes on with the run, whatever was written.
        retries: bool,
    },
    /// A worker gives back a run it was just given.
    Decline {
        /// Which run.
        run: RunId,
        /// Who had it.
        worker: WorkerId,
        /// Which attempt: the same worker may have got the run again since.
        attempt: u32,
    },
    /// A worker ends its run. The store checks the fence.
    End {
        /// Which run.
        run: RunId,
        /// How.
        outcome: Outcome,
        /// With `failed`.
        error: Option<RunError>,
        /// Tokens and the like.
        usage: Option<Object>,
    },
    /// A run starts another. The store checks the fence.
    StartChild {
        /// The parent.
        run: RunId,
        /// The new run.
        child: RunId,
        /// Who is to do it.
        agent: AgentName,
        /// What it is told.
        parts: Vec<PutPart>,
        /// Passed to its worker.
        params: Option<Object>,
    },
    /// A run waits for people. The store checks the fence.
    Suspend {
        /// Which run.
        run: RunId,
        /// What for.
        approvals: Vec<NewApproval>,
    },
    /// A worker has done, or not, what a control other than a cancel asks. The store checks the fence.
    Settle {
        /// Which run.
        run: RunId,
        /// Which control.
        control: ControlId,
        /// `applied` or `refused`.
        outcome: ControlOutcome,
        /// With `refused`.
        reason: Option<RefusalReason>,
    },
    /// Somebody asks something of runs.
    Control(Box<Ask>),
    /// A person takes the session over.
    Hold {
        /// Who.
        by: Author,
        /// For people.
        reason: Option<String>,
    },
    /// A person hands the session back.
    Release {
        /// For people.
        reason: Option<String>,
        /// Who goes on; else whoever was cut off, else the session's own agent.
        agent: Option<AgentName>,
        /// Whether anybody does.
        run: bool,
    },
    /// A worker is dead.
    WorkerDied {
        /// A run it held.
        run: RunId,
        /// Who held it.
        worker: WorkerId,
        /// Which attempt: the same worker may have got the run again since.
        attempt: u32,
        /// Whether this attempt has written anything.
        wrote: bool,
    },
    /// Time has passed.
    Due,
}

/// A control as somebody asks it.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its id.
    pub control: ControlId,
    /// Who asks.
    pub by: Author,
    /// Of whom.
    pub target: Target,
    /// What.
    pub what: What,
    /// When the id was made, if it tells.
    pub made_at: Option<Millis>,
    /// How long the asker waits for the outcome; each kind has a default.
    pub expires_ms: Option<u64>,
}

/// Input, an operator's message or a tool's result.
#[derive(Debug, Clone)]
pub struct Put {
    /// Its id.
    pub message: MessageId,
    /// Who speaks.
    pub role: Role,
    /// Its content.
    pub parts: Vec<PutPart>,
    /// Which message it answers.
    pub reply_to: Option<String>,
    /// Who is to work on it; else the session's own agent, for messages of users.
    pub agent: Option<AgentName>,
    /// Passed to the worker.
    pub params: Option<Object>,
    /// What happens if the agent is at work; else what the session's meta says. What begins a branch never steers and
    /// never interrupts what is at work elsewhere: it waits, or is refused.
    pub when_busy: Option<WhenBusy>,
    /// It takes the place of another.
    pub branch: Option<Branch>,
}

/// A branch that begins. The core does not know the tree of messages: whoever asks has read it, and the request is good
/// only for the version of the session that it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// The place from which it goes on.
    pub after: Seq,
    /// Runs at work on what it replaces: they are cancelled.
    pub ends: Vec<RunId>,
    /// Messages that it replaces, of those kept for whoever the session is released to.
    pub drops: Vec<String>,
}

/// A run that is done again.
#[derive(Debug, Clone)]
pub struct Regenerate {
    /// Which run. The core may have forgotten it.
    pub run: RunId,
    /// Who is to do it.
    pub agent: AgentName,
    /// Its input, as far as it lies before the branch.
    pub input: Vec<String>,
    /// Passed to the worker.
    pub params: Option<Object>,
    /// Where its messages go.
    pub branch: Branch,
}

/// What follows from a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Goes into the log, as one block.
    pub entries: Vec<Entry>,
    /// The state from here on.
    pub state: State,
    /// This run gets a fence.
    pub grant: Option<RunId>,
    /// These runs lose theirs.
    pub revoke: Vec<RunId>,
    /// These runs go into the pools of their agents, before the write.
    pub enqueue: Vec<(RunId, AgentName)>,
    /// Only if this run has not written.
    pub unwritten: Option<RunId>,
    /// The run that a `Put`, a `Regenerate` or a `Release` requested, or that a `Put` steers.
    pub requested: Option<RunId>,
    /// The control that a `Put` became.
    pub control: Option<ControlId>,
}

impl Decision {
    fn new(state: State) -> Decision {
        Decision {
            entries: Vec::new(),
            state,
            grant: None,
            revoke: Vec::new(),
            enqueue: Vec::new(),
            unwritten: None,
            requested: None,
            control: None,
        }
    }
}

/// Why nothing follows from a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// After `session.closed` nothing is written.
    #[error("the session is closed")]
    Closed,
    /// The session exists.
    #[error("the session exists")]
    Exists,
    /// No such run, or not in the state that the request is about.
    #[error("there is no such run")]
    NoRun,
    /// The run is not held by this worker any more.
    #[error("the run is over or with another worker")]
    NotHeld,
    /// Somebody else uses the id.
    #[error("the id {0} is in use")]
    IdInUse(String),
    /// A limit is reached.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// What was sent is too large, whatever the session is like: it is no use to send it again.
    #[error("too large: {0}")]
    TooLarge(&'static str),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// This control may have been asked before, and forgotten.
    #[error(
        "ids of controls are remembered for ten minutes and this one is older: look at the session first"
    )]
    TooOld,
    /// This control was asked before; its state tells how far it is.
    #[error("the control is known")]
    Known,
    /// A newer release wrote the state.
    #[error("the session was written by a newer release")]
    NewerSchema,
    /// It is not this run's turn.
    #[error("another run of the agent goes first, this one is paused, or a person holds the session")]
    Waits,
    /// Nothing is due.
    #[error("nothing is due")]
    NotDue,
    /// The agent is at work and the policy is to refuse.
    #[error("the agent is at work and when_busy is reject: try again when its run has ended")]
    Busy,
    /// Only what has ended is done again.
    #[error("the run has not ended: cancel it first, or wait for its end")]
    NotEnded,
    /// A person holds the session.
    #[error("{} holds the session", .0.id)]
    Held(Box<Author>),
}

impl Refusal {
    /// The refusal as a client may see it.
    pub fn fault(&self) -> Fault {
        let code = match self {
            Refusal::Closed => Code::SessionClosed,
            Refusal::Exists | Refusal::IdInUse(_) | Refusal::Known => Code::IdConflict,
            Refusal::NoRun => Code::NoRun,
            Refusal::NotHeld => Code::Fenced,
            Refusal::Limit(_) => Code::LimitReached,
            Refusal::TooLarge(_) => Code::TooLarge,
            Refusal::Invalid(_) => Code::BadRequest,
            Refusal::NewerSchema => Code::Unavailable,
            Refusal::Waits | Refusal::NotDue => Code::Conflict,
            Refusal::TooOld => Code::TooOld,
            Refusal::Busy | Refusal::NotEnded => Code::Busy,
            Refusal::Held(_) => Code::Held,
        };
        Fault::new(code, self.to_string())
    }
}

/// What follows from `request` at a session in `state` (`None`: it does not exist).
pub fn decide(state: Option<&State>, request: &Request, context: &Context) -> Result<Decision, Refusal> {
    let Some(state) = state else {
        return match request {
            Request::Open { meta } => open(meta),
            _ => Err(Refusal::NoRun),
        };
    };
    if state.schema > SCHEMA {
        return Err(Refusal::NewerSchema);
    }
    let mut draft = Draft::new(state, context);
    if state.closed && is_refused_when_closed(state, request) {
        return Err(Refusal::Closed);
    }
    match request {
        Request::Open { .. } => return Err(Refusal::Exists),
        Request::Update { patch } => draft.update(patch)?,
        Request::Close { reason } => draft.close(reason.clone()),
        Request::Put(put) => {
            check_params(put.params.as_ref())?;
            draft.put(put)?;
        }
        Request::Regenerate(again) => {
            check_params(again.params.as_ref())?;
            draft.regenerate(again)?;
        }
        Request::Select { through } => draft.push(Entry::BranchSelected { through: *through }),
        Request::SetValue { key, value } => draft.set_value(key, value)?,
        Request::Events => {}
        Request::Claim { run, worker, retries } => draft.claim(run, worker, *retries)?,
        Request::Decline { run, worker, attempt } => draft.decline(run, worker, *attempt)?,
        Request::End { run, outcome, error, usage } => {
            draft.end_by_worker(run, *outcome, error.clone(), usage.clone())?;
        }
        Request::StartChild { run, child, agent, parts, params } => {
            check_params(params.as_ref())?;
            draft.start_child(run, child, agent, parts, params.as_ref())?;
        }
        Request::Suspend { run, approvals } => draft.suspend(run, approvals)?,
        Request::Settle { run, control, outcome, reason } => {
            draft.settle_by_worker(run, control, *outcome, *reason)?;
        }
        Request::Control(ask) => draft.control(ask)?,
        Request::Hold { by, reason } => draft.hold(by, reason.clone())?,
        Request::Release { reason, agent, run } => draft.release(reason.clone(), agent.as_ref(), *run)?,
        Request::WorkerDied { run, worker, attempt, wrote } => {
            draft.worker_died(run, worker, *attempt, *wrote)?;
        }
        Request::Due => draft.due()?,
    }
    draft.finish(begins_something(request))
}

/// What ends or accounts for work goes on after `session.closed`; new work does not.
fn is_refused_when_closed(state: &State, request: &Request) -> bool {
    match request {
        // Whoever asks again gets the outcome.
        Request::Control(ask) if state.controls.contains_key(&ask.control) => false,
        Request::Update { .. }
        | Request::Close { .. }
        | Request::Put(_)
        | Request::Regenerate(_)
        | Request::Select { .. }
        | Request::SetValue { .. }
        | Request::Events
        | Request::Claim { .. }
        | Request::StartChild { .. }
        | Request::Suspend { .. }
        | Request::Hold { .. }
        | Request::Release { .. }
        | Request::Control(_) => true,
        Request::Open { .. }
        | Request::Decline { .. }
        | Request::Settle { .. }
        | Request::End { .. }
        | Request::WorkerDied { .. }
        | Request::Due => false,
    }
}

/// What a full session refuses. Whatever brings work to its end must fit: it adds little, and not without bound.
fn begins_something(request: &Request) -> bool {
    match request {
        Request::Open { .. }
        | Request::Update { .. }
        | Request::Put(_)
        | Request::Regenerate(_)
        | Request::SetValue { .. }
        | Request::Suspend { .. }
        | Request::StartChild { .. } => true,
        Request::Control(ask) => match &ask.what {
            What::Steer { .. } | What::Interrupt { .. } => true,
            What::Answer { value, .. } => value.is_some(),
            What::Cancel | What::Pause | What::Resume => false,
        },
        Request::Close { .. }
        | Request::Select { .. }
        | Request::Events
        | Request::Claim { .. }
        | Request::Decline { .. }
        | Request::End { .. }
        | Request::Settle { .. }
        | Request::Hold { .. }
        | Request::Release { .. }
        | Request::WorkerDied { .. }
        | Request::Due => false,
    }
}

fn open(meta: &Object) -> Result<Decision, Refusal> {
    if meta.contains_key(FORKED_FROM) {
        return Err(Refusal::Invalid(FORKED_FROM_FIXED));
    }
    check_meta(meta)?;
    let mut decision = Decision::new(State::new(meta.clone()));
    decision.entries.push(Entry::SessionOpened { meta: meta.clone() });
    Ok(decision)
}

pub(crate) fn check_meta(meta: &Object) -> Result<(), Refusal> {
    if serde_json::to_string(meta).map_or(true, |text| text.len() > META_BYTES_MAX) {
        return Err(Refusal::TooLarge("META_BYTES_MAX: meta has at most 8 KiB"));
    }
    match meta.get("agent") {
        None => {}
        Some(Value::String(agent)) if agent.parse::<AgentName>().is_ok() => {}
        Some(_) => return Err(Refusal::Invalid("meta.agent is the name of an agent: A-Z a-z 0-9 _ . -")),
    }
    Retention::of_meta(meta).map_err(Refusal::Invalid)?;
    match meta.get("when_busy") {
        Some(_) if when_busy_of(meta).is_none() => {
            Err(Refusal::Invalid("meta.when_busy is enqueue, steer, interrupt or reject"))
        }
        _ => Ok(()),
    }
}

fn text_len(value: &impl serde::Serialize) -> usize {
    serde_json::to_string(value).map_or(usize::MAX / 2, |text| text.len())
}

/// Parameters of a run that no session has room for.
fn check_params(params: Option<&Object>) -> Result<(), Refusal> {
    if params.is_some_and(|params| text_len(params) > STATE_BYTES_MAX) {
        return Err(Refusal::TooLarge(
            "STATE_BYTES_MAX: params have at most 64 KiB, with all else that goes on",
        ));
    }
    Ok(())
}

/// A decision in the making.
struct Draft<'a> {
    decision: Decision,
    context: &'a Context,
    ids_made: u32,
}

impl<'a> Draft<'a> {
    fn new(state: &State, context: &'a Context) -> Self {
        let decision = Decision::new(state.clone());
        Draft { decision, context, ids_made: 0 }
    }

    fn state(&mut self) -> &mut State {
        &mut self.decision.state
    }

    fn push(&mut self, entry: Entry) {
        self.decision.entries.push(entry);
    }

    /// A new id that nobody else has.
    fn fresh<I: std::str::FromStr>(&mut self) -> Result<I, Refusal> {
        self.ids_made += 1;
        let text = match self.ids_made {
            1 => self.context.fresh.clone(),
            n => format!("{}-{n}", self.context.fresh),
        };
        text.parse().map_err(|_| Refusal::Invalid("the context has no fresh id"))
    }

    fn finish(mut self, begins_something: bool) -> Result<Decision, Refusal> {
        let now = self.context.now;
        self.state().forget(now);
        while !self.fits() {
            if !self.state().forget_older_half() {
                if begins_something {
                    return Err(Refusal::Limit("STATE_BYTES_MAX: the session has too much going on at once"));
                }
                break;
            }
        }
        Ok(self.decision)
    }

    fn fits(&mut self) -> bool {
        serde_json::to_string(self.state()).is_ok_and(|text| text.len() <= STATE_BYTES_MAX)
    }

    fn update(&mut self, patch: &Object) -> Result<(), Refusal> {
        let meta = &mut self.state().meta;
        // A request for a fork that is repeated is known by it.
        if patch.get(FORKED_FROM).is_some_and(|from| meta.get(FORKED_FROM).unwrap_or(&Value::Null) != from) {
            return Err(Refusal::Invalid(FORKED_FROM_FIXED));
        }
        for (key, value) in patch {
            if value.is_null() {
                meta.remove(key);
            } else {
                meta.insert(key.clone(), value.clone());
            }
        }
        check_meta(meta)?;
        self.push(Entry::SessionUpdated { patch: patch.clone() });
        Ok(())
    }

    /// Open runs end with the session; their workers are fenced out.
    fn close(&mut self, reason: Option<String>) {
        // First, so that nothing that ends here becomes the input of something new.
        self.state().closed = true;
        let open: Vec<RunId> = self.state().open_runs().map(|(id, _)| id.clone()).collect();
        for run in open {
            self.end_run(&run, Outcome::Cancelled, run::Ending::forced("session_closed"));
        }
        self.push(Entry::SessionClosed { reason });
    }

    fn set_value(&mut self, key: &str, value: &Value) -> Result<(), Refusal> {
        let values = &mut self.state().values;
        if value.is_null() {
            values.remove(key);
        } else {
            values.insert(key.to_owned(), value.clone());
        }
        if values.get(key).is_some_and(|value| key.len() + text_len(value) > VALUES_BYTES_MAX) {
            return Err(Refusal::TooLarge("VALUES_BYTES_MAX: state.set holds at most 16 KiB, of all keys"));
        }
        if values.len() > VALUES_MAX {
            return Err(Refusal::Limit("VALUES_MAX: state.set holds at most 64 keys"));
        }
        if serde_json::to_string(values).map_or(true, |text| text.len() > VALUES_BYTES_MAX) {
            return Err(Refusal::Limit("VALUES_BYTES_MAX: state.set holds at most 16 KiB"));
        }
        self.push(Entry::StateSet { key: key.to_owned(), value: value.clone() });
        Ok(())
    }
}

/// The agent that a session's meta names.
pub fn agent_of(meta: &Object) -> Option<AgentName> {
    meta.get("agent")?.as_str()?.parse().ok()
}

/// What a session's meta says of input for an agent at work.
pub fn when_busy_of(meta: &Object) -> Option<WhenBusy> {
    WhenBusy::deserialize(meta.get("when_busy")?).ok()
}

/// Meta of a new session from the fields of the request.
pub fn meta_with(mut meta: Object, agent: Option<&AgentName>, title: Option<&str>) -> Object {
    if let Some(agent) = agent {
        meta.insert("agent".into(), agent.as_str().into());
    }
    if let Some(title) = title {
        meta.insert("title".into(), title.into());
    }
    meta
}

/// A session id of ours, for requests that name none.
pub fn session_id(fresh: &str) -> Option<SessionId> {
    fresh.to_lowercase().parse().ok()
}
