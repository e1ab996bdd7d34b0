//! What a worker's connection waits for: each job is one future that owns what it needs and ends in one [`Job`].

use super::Me;
use super::hosted::Writing;
use super::parts::Parts;
use super::safety::{Confirmed, Question, Unsure};
use crate::Edge;
use crate::put::told_level;
use crate::reader::fault_of;
use crate::run_token::RunRight;
use crate::trace::Traced;
use bytes::Bytes;
use everthread_control::{Assignment, Numbered};
use everthread_protocol::worker_frame::{
    Held, Producer, Work, WorkerControl, WorkerHello, WorkerServerFrame,
};
use everthread_protocol::{
    AgentName, Author, AuthorKind, Code, ControlId, Fault, Fence, Level, MessageId, RequestId, RunId, Seq,
    SessionKey, Version, WorkerId,
};
use everthread_session::state::Run;
use everthread_session::view::Message;
use everthread_session::{Request, State};
use everthread_store::{Error, Loaded, Renewal, Store, Written, check_level};
use futures_util::StreamExt as _;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Sessions that are renewed together. Of more, the next come a little later.
const RENEWED_AT_ONCE: usize = 64;
/// Sessions that are looked at at once for a worker that comes back.
const LOOKS_AT_ONCE: usize = 16;
/// Messages that come with `work`, besides those that the run cannot do without.
const WORK_MESSAGES: usize = 100;

/// What a job came to.
pub(super) enum Job {
    Greeted(Result<Greeted, (RequestId, Fault)>),
    Work((RunId, Fence), Result<String, (SessionKey, Error)>),
    Written(WriteDone),
    Rebuilt((RunId, Fence), Result<(Parts, Producer), Fault>),
    Looked(u32, Result<(Loaded, State), Fault>),
    Steers((RunId, Fence), Vec<SteerRead>),
    Marked,
    /// Whether what was written is sure.
    Confirmed(Vec<Confirmed>),
    /// The versions of the watched sessions; none of one that is gone.
    Renewed(Vec<(u32, Option<Version>)>),
}

/// A steer with its message, or why that could not be read.
pub(super) type SteerRead = (WorkerControl, Result<(), Fault>);

/// `hello` is done.
pub(super) struct Greeted {
    pub hello: WorkerHello,
    pub kept: Vec<Kept>,
}

/// A run that the worker still holds.
pub(super) struct Kept {
    pub key: SessionKey,
    pub run: RunId,
    pub agent: AgentName,
    pub fence: Fence,
    pub attempt: u32,
    pub next: Producer,
}

/// A write that is ready for the store.
pub(super) struct Write {
    pub id: RequestId,
    pub writing: Arc<Writing>,
    pub fence: Fence,
    pub producer: Producer,
    pub kind: WriteKind,
    pub trace: Option<Box<Traced>>,
}

/// What is written.
#[derive(Debug)]
pub(super) enum WriteKind {
    /// Entries as they came.
    Append { entries: Bytes, count: u32, ack: Option<Level> },
    /// A decision.
    Decided(Box<Request>),
}

impl WriteKind {
    pub fn decided(request: Request) -> Self {
        WriteKind::Decided(Box::new(request))
    }
}

/// What became of a write.
pub(super) struct WriteDone {
    pub id: RequestId,
    pub writing: Arc<Writing>,
    pub fence: Fence,
    pub producer: Producer,
    /// Once it is written the run is not the worker's any more.
    pub is_last: bool,
    /// How sure it is, if that is worth telling.
    pub ack: Option<Level>,
    pub trace: Option<Box<Traced>>,
    pub result: Result<Written, Fault>,
}

/// Makes the worker count as alive, then finds out which of the runs it names it still holds.
pub(super) async fn greet<S: Store>(edge: Edge<S>, holder: String, me: Me, hello: WorkerHello) -> Job {
    let lease_ms = millis(edge.config.leases.lease);
    let store = edge.desk.store();
    if me.right.is_none()
        && let Err(error) = store.beat(&me.tenant, &me.worker, &holder, lease_ms).await
    {
        if !store.is_ready() {
            return Job::Greeted(Err((hello.id, error.fault())));
        }
        // One primary of several: the next heartbeat tries again.
        tracing::warn!(worker = %me.worker, %error, "a worker joins, and nobody can be told that it lives");
    }
    let looks: Vec<_> = hello.runs.iter().map(|held| keep(&edge, &me, held)).collect();
    let looks: Vec<_> = futures_util::stream::iter(looks).buffered(LOOKS_AT_ONCE).collect().await;
    let (mut kept, mut later) = (Vec::new(), None);
    for look in looks {
        match look {
            Ok(run) => kept.extend(run),
            Err(fault) if fault.code.is_retryable() => later = Some(fault),
            // One session that cannot be read does not keep its worker from all the others.
            Err(fault) => tracing::error!(worker = %me.worker, %fault, "a run is not kept"),
        }
    }
    // At once: what is left of the leases may not last until the next heartbeat, or until the worker comes again.
    let renewal = |kept: &Kept| Renewal {
        key: kept.key.clone(),
        runs: vec![(kept.run.clone(), kept.fence)],
        left_ms: lease_ms,
    };
    let renewals: Vec<Renewal> = kept.iter().map(renewal).collect();
    let failed = store.each_renewed(&renewals).await.into_iter().find_map(Result::err);
    match later.or_else(|| failed.map(|error| error.fault())) {
        None => Job::Greeted(Ok(Greeted { hello, kept })),
        Some(fault) => Job::Greeted(Err((hello.id, fault))),
    }
}

async fn keep<S: Store>(edge: &Edge<S>, me: &Me, held: &Held) -> Result<Option<Kept>, Fault> {
    let key = SessionKey { tenant: me.tenant.clone(), session: held.session.clone() };
    let (loaded, state) = match edge.desk.load(&key).await {
        Ok(found) => found,
        Err(failure) if failure.fault().code == Code::NoSession => return Ok(None),
        Err(failure) => return Err(failure.fault()),
    };
    let has_fence = loaded.fences.iter().any(|(run, fence)| *run == held.run && *fence == held.fence);
    // Whoever has the token of a run writes it in the place of the worker that it was given to.
    let is_allowed = |run: &Run| has_fence && (me.right.is_some() || run.is_held_by(&me.worker));
    let Some(run) = state.runs.get(&held.run).filter(|run| is_allowed(run)) else { return Ok(None) };
    Ok(Some(Kept {
        run: held.run.clone(),
        agent: run.agent.clone(),
        fence: held.fence,
        attempt: run.attempts,
        next: next_of(&loaded, &held.run, run.attempts),
        key,
    }))
}

fn next_of(loaded: &Loaded, run: &RunId, attempts: u32) -> Producer {
    let known = loaded.producers.iter().find(|(id, ..)| id == run);
    match known {
        Some((_, incarnation, batch)) if *incarnation >= u64::from(attempts) => {
            Producer { incarnation: *incarnation, batch: batch + 1 }
        }
        _ => Producer { incarnation: u64::from(attempts), batch: 1 },
    }
}

/// The `work` frame of a run that was claimed.
pub(super) async fn work<S: Store>(edge: Edge<S>, assignment: Assignment) -> Job {
    let held = (assignment.id.clone(), assignment.fence);
    let frame = work_frame(&edge, &assignment).await.map_err(|error| (assignment.key, error));
    Job::Work(held, frame)
}

async fn work_frame<S: Store>(edge: &Edge<S>, assignment: &Assignment) -> Result<String, Error> {
    let (view, _) = edge.reader.view(&assignment.key).await?;
    let run = &assignment.run;
    // The last ones of its branch, and besides what this run cannot do without: its input, and its own words.
    let branch = view.branch_of(&assignment.id);
    let last: HashSet<Seq> = branch.iter().rev().take(WORK_MESSAGES).map(|message| message.seq).collect();
    let is_needed = |message: &&Message| match &message.run {
        _ if last.contains(&message.seq) => true,
        Some(by) => *by == assignment.id,
        None => run.input.iter().any(|input| input == message.message.as_str()),
    };
    let messages: Vec<&Message> = view.messages().iter().filter(is_needed).collect();
    let messages = serde_json::value::to_raw_value(&messages).map_err(|e| Error::Corrupt(e.to_string()))?;
    let token = edge.config.auth.run_token(&RunRight {
        tenant: assignment.key.tenant.clone(),
        session: assignment.key.session.clone(),
        run: assignment.id.clone(),
        fence: assignment.fence,
    });
    let work = Work {
        run: assignment.id.clone(),
        session: assignment.key.session.clone(),
        agent: run.agent.clone(),
        fence: assignment.fence,
        attempt: assignment.attempt(),
        epoch: assignment.epoch,
        seq: assignment.seq,
        parent_run: run.parent.clone(),
        params: run.params.clone(),
        input: run.input.clone(),
        answers: run.answers(),
        token,
        messages: &messages,
    };
    Ok(WorkerServerFrame::Work(work).encode())
}

/// Writes a block or a decision of a run.
pub(super) async fn write<S: Store>(edge: Edge<S>, write: Write) -> Job {
    let Write { id, writing, fence, producer, kind, mut trace } = write;
    let (is_last, ack, result) = match kind {
        WriteKind::Append { entries, count, ack } => {
            let level = ack.unwrap_or(edge.config.acks.appends);
            let told = told_level(level, ack);
            let trace = trace.as_deref_mut();
            let result = append(&edge, &writing, fence, producer, (&entries, count), level, trace).await;
            (false, told, result)
        }
        // Apart and rare: what it takes would make every append's future larger.
        WriteKind::Decided(request) => Box::pin(decide(&edge, &writing, fence, producer, *request)).await,
    };
    Job::Written(WriteDone { id, writing, fence, producer, is_last, ack, trace, result })
}

async fn decide<S: Store>(
    edge: &Edge<S>,
    writing: &Writing,
    fence: Fence,
    producer: Producer,
    request: Request,
) -> (bool, Option<Level>, Result<Written, Fault>) {
    let by = agent_author(&writing.agent);
    let numbered = Numbered::Run { run: &writing.run, fence, producer };
    let result = edge.desk.decide(&writing.key, &by, &request, numbered).await;
    let is_last = matches!(request, Request::End { .. } | Request::Suspend { .. });
    if let Ok(decided) = &result {
        edge.folder.after_write(&writing.key, &decided.written, is_last);
    }
    let ack = result.as_ref().ok().and_then(|decided| told_level(decided.level, None));
    (is_last, ack, result.map(|decided| decided.written).map_err(|failure| failure.fault()))
}

fn agent_author(agent: &AgentName) -> Author {
    // An agent's name is a valid subject: both are ids.
    let id = agent.as_str().parse().unwrap_or_else(|_| unreachable!("an agent's name is an id"));
    Author { kind: AuthorKind::Agent, id, device: None }
}

async fn append<S: Store>(
    edge: &Edge<S>,
    Writing { key, run, by, producer: producer_key, .. }: &Writing,
    fence: Fence,
    producer: Producer,
    (entries, count): (&[u8], u32),
    level: Level,
    mut trace: Option<&mut Traced>,
) -> Result<Written, Fault> {
    if let Some(trace) = trace.as_deref_mut() {
        trace.send(by);
    }
    let by = trace.as_deref().map_or(by.as_str(), |trace| trace.by.as_str());
    // Checked to be UTF-8 by the scan.
    let entries = std::str::from_utf8(entries).map_err(|_| Fault::bad_request("entries: not UTF-8"))?;
    let write = everthread_store::Write {
        by,
        run: Some(run),
        entries,
        count,
        producer: Some(everthread_store::Producer {
            key: producer_key,
            incarnation: producer.incarnation,
            batch: producer.batch,
            answer: "",
        }),
        fence: Some((run, fence)),
        change: None,
        not_after: None,
    };
    if level > Level::Accepted {
        check_level(&**edge.desk.store(), level).map_err(|error| error.fault())?;
    }
    let written = edge.desk.store().write(key, write).await.map_err(|error| fault_of(key, &error));
    edge.trace_write(trace.as_deref(), key, &written);
    let written = written?;
    if level > Level::Accepted {
        // Apart: what it takes would make every append's future larger.
        let confirmed = Box::pin(edge.desk.store().confirm(key, &written, level)).await;
        confirmed.map_err(|error| fault_of(key, &error))?;
    }
    edge.folder.after_write(key, &written, false);
    Ok(written)
}

/// Reads the log for the open messages and parts of a run.
pub(super) async fn rebuild<S: Store>(edge: Edge<S>, key: SessionKey, run: RunId, fence: Fence) -> Job {
    let result = async {
        let (loaded, state) = edge.desk.load(&key).await.map_err(|failure| failure.fault())?;
        let attempts = state.runs.get(&run).map_or(0, |run| run.attempts);
        let next = next_of(&loaded, &run, attempts);
        let (view, _) = edge.reader.view(&key).await.map_err(|error| fault_of(&key, &error))?;
        Ok((Parts::of_run(&view, &run), next))
    };
    let result = result.await;
    Job::Rebuilt((run, fence), result)
}

/// Loads the state of a watched session.
pub(super) async fn look<S: Store>(edge: Edge<S>, key: SessionKey, number: u32) -> Job {
    Job::Looked(number, edge.desk.load(&key).await.map_err(|failure| failure.fault()))
}

/// The messages of steers, as their worker is told: all of them from one look at the log.
pub(super) async fn steers<S: Store>(
    edge: Edge<S>,
    key: SessionKey,
    held: (RunId, Fence),
    steers: Vec<(WorkerControl, MessageId)>,
) -> Job {
    let view = edge.reader.view(&key).await.map(|(view, _)| view).map_err(|error| fault_of(&key, &error));
    let read = |(mut frame, message): (WorkerControl, MessageId)| {
        let result = view.as_ref().map_err(Clone::clone).and_then(|view| {
            let is_it = |m: &&Message| m.run.is_none() && m.message == message;
            let found = view.messages().iter().rfind(is_it);
            frame.message = found.and_then(|found| serde_json::to_value(found).ok());
            let missing = || Fault::new(Code::Internal, "the message of a steer is not in the log");
            if frame.message.is_some() { Ok(()) } else { Err(missing()) }
        });
        (frame, result)
    };
    let steers = steers.into_iter().map(read).collect();
    Job::Steers(held, steers)
}

/// Notes that a worker has got a control: its asker is told.
pub(super) async fn mark_delivered<S: Store>(
    edge: Edge<S>,
    key: SessionKey,
    control: ControlId,
    worker: WorkerId,
) -> Job {
    if let Err(error) = edge.desk.store().mark_delivered(&key, &control, &worker).await {
        tracing::debug!(%key, %control, %error, "a control's asker is not told that it was delivered");
    }
    Job::Marked
}

/// Asks the store whether what runs have written is sure: it asks its servers once for all of them.
pub(super) async fn confirm<S: Store>(edge: Edge<S>, questions: Vec<Question>) -> Job {
    let store = edge.desk.store();
    let ask = |(key, unsure): Question| async move {
        let Unsure { run, fence, batch, written } = unsure;
        let is_sure = store.confirm(&key, &written, Level::Replicated).await.is_ok();
        Confirmed { run, fence, batch, is_sure }
    };
    Job::Confirmed(futures_util::future::join_all(questions.into_iter().map(ask)).await)
}

/// Renews the leases of the runs at hand and the worker's liveness, and reads the versions of the sessions it works in: a
/// lost wake-up is found here.
pub(super) async fn renew<S: Store>(
    edge: Edge<S>,
    me: Me,
    holder: String,
    left: Duration,
    hosted: Vec<(u32, Renewal)>,
) -> Job {
    let begun = Instant::now();
    let store = edge.desk.store();
    let beat = async {
        if me.right.is_none()
            && let Err(error) = store.beat(&me.tenant, &me.worker, &holder, millis(left)).await
        {
            tracing::debug!(worker = %me.worker, %error, "a worker's liveness was not renewed");
        }
    };
    let (numbers, mut renewals): (Vec<u32>, Vec<Renewal>) = hosted.into_iter().unzip();
    // Whatever else the node and the store have to do comes in between.
    let pieces = u32::try_from(renewals.len().div_ceil(RENEWED_AT_ONCE)).unwrap_or(u32::MAX);
    let pause = edge.config.leases.heartbeat / 2 / pieces.max(1);
    let renewed = async {
        let mut renewed = Vec::with_capacity(renewals.len());
        for piece in renewals.chunks_mut(RENEWED_AT_ONCE) {
            if !renewed.is_empty() {
                sleep(pause).await;
                let later = millis(begun.elapsed());
                piece.iter_mut().for_each(|next| next.left_ms = next.left_ms.saturating_sub(later).max(1));
            }
            renewed.extend(store.each_renewed(piece).await);
        }
        renewed
    };
    let ((), renewed) = tokio::join!(beat, renewed);
    // Of what was not renewed nothing is known; the next heartbeat tries again.
    let known = numbers.into_iter().zip(renewed).filter_map(|(number, head)| Some((number, head.ok()?)));
    Job::Renewed(known.map(|(number, head)| (number, head.map(|head| head.version))).collect())
}

/// A time on the wire and in the store; never none at all.
pub(super) fn millis(duration: Duration) -> u64 {
    everthread_protocol::millis(duration).max(1)
}
