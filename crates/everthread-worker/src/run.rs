//! A run as its function sees it: what it is to do, and where it writes.

use crate::error::Error;
use crate::message::Message;
use crate::outbox::Request;
use crate::shared::{ChildState, Shared};
use crate::work::{Input, PastMessage};
use everthread_protocol::entry::{Keep, Object, Outcome, Phase, PutPart, Role, RunError};
use everthread_protocol::{AgentName, Entry, RunId, SessionId};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Why a run function should stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it. What is written until the function returns still counts; then the run ends as cancelled.
    Cancel,
    /// The run is no longer this worker's. Nothing it writes is taken.
    Fenced,
    /// The run waits for people. When they have answered it begins anew, here or elsewhere.
    Suspended,
    /// The server refused a write; the run ends as failed.
    Broken,
    /// The worker stops. The run ends as failed if the function does not complete it in a few seconds; if it may be
    /// retried, another worker gets it.
    Stopped,
}

/// A piece of work for an agent. Cheap to clone; all clones are the same run.
#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) shared: Arc<Shared>,
    pub(crate) input: Arc<Input>,
}

impl Run {
    /// Its id.
    pub fn id(&self) -> &RunId {
        &self.shared.run
    }

    /// The session it belongs to.
    pub fn session(&self) -> &SessionId {
        &self.shared.session
    }

    /// The agent that is meant.
    pub fn agent(&self) -> &AgentName {
        &self.shared.agent
    }

    /// From 1; more if the run was begun before, and its worker died or people were asked. What was written then stays:
    /// [`Run::own_messages`].
    pub fn attempt(&self) -> u32 {
        self.shared.attempt
    }

    /// A token that can write this run and nothing else, from any process, until this attempt is over.
    pub fn token(&self) -> &str {
        &self.input.token
    }

    /// The run that started this one, if one did.
    pub fn parent(&self) -> Option<&RunId> {
        self.input.parent_run.as_ref()
    }

    /// What was passed along with the request.
    pub fn params(&self) -> Option<&Object> {
        self.input.params.as_ref()
    }

    /// The last messages of the session, oldest first, with the input among them.
    pub fn messages(&self) -> &[PastMessage] {
        &self.input.messages
    }

    /// The messages that earlier attempts of this run wrote, oldest first.
    ///
    /// Those that are open can be gone on with ([`Run::message_again`]) or left: the end of the run closes them. A new
    /// [`Run::message`] never gets an id that an earlier attempt used. To begin anew without them, [`Run::step_reset`].
    pub fn own_messages(&self) -> impl Iterator<Item = &PastMessage> {
        self.input.messages.iter().filter(|message| message.run.as_ref() == Some(self.id()))
    }

    /// The messages that asked for this run, and those that earlier attempts took in while they worked.
    pub fn input(&self) -> impl Iterator<Item = &PastMessage> {
        self.input.messages.iter().filter(|message| self.input.input.contains(&message.reference()))
    }

    /// The text of the messages that asked for this run.
    pub fn input_text(&self) -> String {
        let texts: Vec<String> = self.input().map(PastMessage::text).collect();
        texts.join("\n\n")
    }

    /// What led to what the run writes from now on, so that traces of the nodes begin there: the `traceparent` of the span
    /// at hand, as the application's own tracing has it. What is none, and `None`, ends it.
    ///
    /// What was said when a batch is made counts for all of it.
    pub fn set_traceparent(&self, traceparent: Option<&str>) {
        let context = traceparent.and_then(|text| text.parse().ok());
        self.shared.with(|outbox| outbox.set_trace(context));
    }

    /// Completes when the function should stop, and says why. Cancel safe.
    pub async fn cancelled(&self) -> Cause {
        self.shared.stop.cancelled().await;
        self.cause().unwrap_or(Cause::Stopped)
    }

    /// Why the function should stop, if it should.
    pub fn cause(&self) -> Option<Cause> {
        self.shared.cause()
    }

    /// Does `work`, and drops it when the function should stop. What it has written stays; it then is an error that the run
    /// does not end with if it was cancelled.
    pub async fn unless_stopped<T, E: From<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let done = self.shared.stop.run_until_cancelled(work).await;
        done.unwrap_or_else(|| Err(Error::Stopped.into()))
    }

    /// A token that fires when the function should stop, to hand to whatever works for it.
    pub fn cancel_token(&self) -> CancellationToken {
        self.shared.stop.child_token()
    }

    /// Begins a message.
    pub async fn message(&self, role: Role) -> Result<Message, Error> {
        let number = self.shared.messages.fetch_add(1, Ordering::Relaxed) + 1;
        // Another attempt may have left messages of this run open: ids must not meet.
        let id = match self.shared.attempt {
            0 | 1 => format!("m{number}"),
            attempt => format!("a{attempt}m{number}"),
        };
        let id = id.parse()?;
        Message::start(self.shared.clone(), id, role).await
    }

    /// Goes on with a message that an earlier attempt of this run left open; `None` if `past` is not such a message.
    pub fn message_again(&self, past: &PastMessage) -> Option<Message> {
        Message::again(self.shared.clone(), past)
    }

    /// Marks a place in the run; [`Run::step_reset`] comes back to it.
    pub async fn step(&self, name: &str) -> Result<(), Error> {
        self.run_step(Phase::Start, Some(name)).await
    }

    /// The step is done.
    pub async fn step_end(&self) -> Result<(), Error> {
        self.run_step(Phase::End, None).await
    }

    /// Takes back the messages and parts that the run began since its last step, or all of them if it has none, those of
    /// earlier attempts too. Handles to them take no more text.
    pub async fn step_reset(&self) -> Result<(), Error> {
        self.run_step(Phase::Reset, None).await
    }

    async fn run_step(&self, phase: Phase, name: Option<&str>) -> Result<(), Error> {
        let entry = Entry::RunStep { phase, name: name.map(str::to_owned) };
        self.shared.write(|outbox| outbox.entry(&entry)).await
    }

    /// Writes an event that the readers of the session see as it is. Of those that keep the latest, old ones fade.
    pub async fn event(&self, name: &str, data: Value, keep: Keep) -> Result<(), Error> {
        let entry = Entry::Event { name: name.to_owned(), data, keep };
        self.shared.write(|outbox| outbox.entry(&entry)).await
    }

    /// Asks another agent to work for this run, and waits until the session knows it.
    pub async fn start_child(&self, agent: &str, parts: Vec<PutPart>) -> Result<Child, Error> {
        self.start_child_with(agent, parts, None).await
    }

    /// [`Run::start_child`] with something to pass to the child's worker.
    pub async fn start_child_with(
        &self,
        agent: &str,
        parts: Vec<PutPart>,
        params: Option<Object>,
    ) -> Result<Child, Error> {
        let agent: AgentName = agent.parse()?;
        let id: RunId = ulid::Ulid::generate().to_string().parse()?;
        let mut state = self.shared.expect_child(id.clone());
        let request = Request::StartChild { child: id.clone(), agent, parts, params };
        self.shared.write(|outbox| outbox.request(request.clone())).await?;
        let first =
            state.wait_for(|state| *state != ChildState::Asked).await.map_err(|_| Error::Ended)?.clone();
        match first {
            ChildState::Refused(error) => Err(error),
            ChildState::Asked | ChildState::Started | ChildState::Ended(_) => Ok(Child { id, state }),
        }
    }

    /// Waits until everything that was written is in the log.
    pub async fn flushed(&self) -> Result<(), Error> {
        let settled = |outbox: &mut crate::outbox::Outbox| match outbox.check_open() {
            Err(error) => Some(Err(error)),
            Ok(()) => outbox.is_settled().then_some(Ok(())),
        };
        self.shared.until(settled).await
    }
}

/// A run that this run started.
#[derive(Debug)]
pub struct Child {
    id: RunId,
    state: watch::Receiver<ChildState>,
}

impl Child {
    /// Its id.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// How it ended. Cancel safe.
    pub async fn ended(&mut self) -> Result<Outcome, Error> {
        let last = |state: &ChildState| matches!(state, ChildState::Ended(_) | ChildState::Refused(_));
        let state = self.state.wait_for(last).await.map_err(|_| Error::Ended)?.clone();
        match state {
            ChildState::Ended(outcome) => Ok(outcome),
            ChildState::Refused(error) => Err(error),
            ChildState::Asked | ChildState::Started => Err(Error::Ended),
        }
    }
}

/// How a run function ends its run.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// How.
    pub outcome: Outcome,
    /// With `failed`.
    pub error: Option<RunError>,
    /// Tokens and the like, for whoever counts them.
    pub usage: Option<Object>,
}

/// Why a run failed, for the people who read the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A word programs can read.
    pub code: String,
    /// A sentence people can read.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::new(error.code(), error.to_string())
    }
}

impl From<Outcome> for Finish {
    fn from(outcome: Outcome) -> Self {
        Finish { outcome, error: None, usage: None }
    }
}

impl From<Failure> for Finish {
    fn from(Failure { code, message }: Failure) -> Self {
        Finish { outcome: Outcome::Failed, error: Some(RunError { code, message }), usage: None }
    }
}

// Not for any `T: Into<Finish>`: then `()` would have to be one, and a function that drops its errors would compile.
impl<E: Into<Failure>> From<Result<(), E>> for Finish {
    fn from(result: Result<(), E>) -> Self {
        result.map(|()| Outcome::Completed).into()
    }
}

impl<E: Into<Failure>> From<Result<Outcome, E>> for Finish {
    fn from(result: Result<Outcome, E>) -> Self {
        result.map(Finish::from).into()
    }
}

impl<E: Into<Failure>> From<Result<Finish, E>> for Finish {
    fn from(result: Result<Finish, E>) -> Self {
        result.unwrap_or_else(|error| error.into().into())
    }
}
