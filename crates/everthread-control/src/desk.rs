//! The desk: request in, durable decision out.
//!
//! Order, and why: a run is put into its pool and a deadline is armed *before* the write that makes them true, and the
//! write is refused after `not_after`. So nothing that was accepted is ever forgotten; what was announced but never
//! written is dropped by whoever finds it.

use crate::lister::Lister;
use crate::{Acks, Counts, Leases, NoUpkeep, TaskGroup, Upkeep, millis};
use everthread_protocol::limits::{BLOCK_BYTES_MAX, REQUEST_MEMORY_MS};
use everthread_protocol::{
    Author, AuthorKind, Code, Fault, Fence, Level, Millis, PoolKey, RunId, SessionKey, worker_frame,
};
use everthread_session::state::{SCHEMA, schema_of};
use everthread_session::{Context, Decision, Refusal, Request, State, decide};
use everthread_store::{
    Change, Error, Listed, Loaded, Producer, Refusal as WriteRefusal, Store, WorkItem, Write, Written,
};
use std::sync::Arc;

/// How long after it was decided a write may still be made.
const WRITE_WINDOW_MS: u64 = 2_000;
const NO_SESSION: Error = Error::Refused(WriteRefusal::NoSession);
/// How often a decision is made anew because the session changed meanwhile.
const DECISIONS_MAX: u32 = 16;

/// Decides requests and makes the decisions durable. Cheap to clone.
pub struct Desk<S> {
    store: Arc<S>,
    leases: Leases,
    upkeep: Arc<dyn Upkeep>,
    /// `None`: the list is up before a decision is answered.
    lister: Option<Lister>,
    /// How sure its answers are.
    pub(crate) acks: Acks,
    counts: Counts,
}

impl<S> Clone for Desk<S> {
    fn clone(&self) -> Self {
        let (store, lister, counts) = (self.store.clone(), self.lister.clone(), self.counts.clone());
        let (leases, upkeep) = (self.leases.clone(), self.upkeep.clone());
        Self { store, leases, upkeep, lister, acks: self.acks, counts }
    }
}

/// How a request is numbered, so that a repeat gets the first answer.
#[derive(Debug, Clone, Copy)]
pub enum Numbered<'a> {
    /// Not at all: the decision itself is idempotent.
    No,
    /// A single request of one subject.
    Request {
        /// `put:<subject>:<id>`.
        key: &'a str,
        /// A repeat is answered with this, the run that was requested and the control that it became, if any, each after a
        /// space.
        answer: &'a str,
        /// When the id was made, if it tells.
        made_at: Option<Millis>,
    },
    /// A worker's write.
    Run {
        /// The run.
        run: &'a RunId,
        /// Its fence.
        fence: Fence,
        /// Its number.
        producer: worker_frame::Producer,
    },
}

impl Numbered<'_> {
    /// Whether it may have been written and forgotten.
    fn is_too_old(&self, now: Millis) -> bool {
        match self {
            Numbered::Request { made_at: Some(made_at), .. } => made_at.plus(REQUEST_MEMORY_MS) < now,
            Numbered::Request { made_at: None, .. } | Numbered::No | Numbered::Run { .. } => false,
        }
    }
}

/// A decision that is durable.
#[derive(Debug)]
pub struct Decided {
    /// What the store answered.
    pub written: Written,
    /// What was decided; `None` for a repeat of an earlier write.
    pub decision: Option<Decision>,
    /// How sure it is.
    pub level: Level,
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The core refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store refused it or does not work.
    #[error(transparent)]
    Store(#[from] Error),
    /// The request's id is older than the memory for repeats.
    #[error("the id is too old")]
    TooOld,
    /// What was decided does not fit one block.
    #[error("the entries of one request are too large")]
    TooLarge,
    /// The session changed again and again while it was decided.
    #[error("the session changes too fast to decide")]
    TooFast,
    /// The session's state cannot be read or written.
    #[error("broken session: {0}")]
    Broken(#[from] serde_json::Error),
}

impl Failure {
    /// The failure as a client may see it.
    pub fn fault(&self) -> Fault {
        match self {
            Failure::Refused(refusal) => refusal.fault(),
            Failure::Store(error) => error.fault(),
            Failure::TooOld => Fault::new(
                Code::TooOld,
                "ids are remembered for ten minutes and this one is older: look at the session before you send it anew",
            ),
            Failure::TooLarge => {
                let message =
                    format!("BLOCK_BYTES_MAX: what one request writes has at most {BLOCK_BYTES_MAX} bytes");
                Fault::new(Code::TooLarge, message)
            }
            Failure::TooFast => {
                Fault::new(Code::Conflict, "the session changes too fast to decide: try again")
            }
            Failure::Broken(error) => {
                tracing::error!(%error, "broken session");
                Fault::new(Code::Internal, "the server cannot read this session")
            }
        }
    }
}

/// Everthread itself as an author.
pub fn system_author() -> Author {
    // The literal is a valid id; the fallback keeps this free of panics.
    let id = "everthread".parse().unwrap_or_else(|_| unreachable!("a literal id"));
    Author { kind: AuthorKind::System, id, device: None }
}

impl<S: Store> Desk<S> {
    /// A desk on a store.
    pub fn new(store: Arc<S>, leases: Leases) -> Self {
        let (acks, counts) = (Acks::default(), Counts::new());
        Self { store, leases, upkeep: Arc::new(NoUpkeep), lister: None, acks, counts }
    }

    /// The same with what is to be looked after in sessions besides.
    pub fn with_upkeep(self, upkeep: Arc<dyn Upkeep>) -> Self {
        Self { upkeep, ..self }
    }

    /// The same with a task that keeps the lists of sessions up behind its decisions: no answer waits for them, but that
    /// of whoever opens a session.
    pub fn with_lister(self, tasks: &TaskGroup) -> Self {
        let lister = Some(Lister::start(self.store.clone(), tasks));
        Self { lister, ..self }
    }

    /// What is looked after in sessions besides.
    pub fn upkeep(&self) -> &Arc<dyn Upkeep> {
        &self.upkeep
    }

    /// What is counted of what is decided here.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The store.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// The deployment's times.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Loads a session with its state read.
    pub async fn load(&self, key: &SessionKey) -> Result<(Loaded, State), Failure> {
        understood(self.store.load(key).await?)
    }

    /// [`Desk::load`], for what nobody has asked for: see [`Store::here`].
    pub async fn load_here(&self, key: &SessionKey) -> Result<(Loaded, State), Failure> {
        understood(self.store.here().load(key).await?)
    }

    /// Reads where a session stands and what it is, without its log: of an archived one what its stub tells.
    pub async fn listed(&self, key: &SessionKey) -> Result<Listed, Failure> {
        let listed = self.store.states(std::slice::from_ref(key)).await?.pop().flatten();
        Ok(listed.ok_or(NO_SESSION)?)
    }

    /// Decides `request` and makes it durable.
    pub async fn decide(
        &self,
        key: &SessionKey,
        by: &Author,
        request: &Request,
        numbered: Numbered<'_>,
    ) -> Result<Decided, Failure> {
        self.decide_with(key, by, request, numbered, None).await
    }

    /// Like [`Desk::decide`], for entries that are `verbatim` and that no decision depends on: where there are any, nothing but
    /// the log changes.
    pub async fn decide_with(
        &self,
        key: &SessionKey,
        by: &Author,
        request: &Request,
        numbered: Numbered<'_>,
        verbatim: Option<(&str, u32)>,
    ) -> Result<Decided, Failure> {
        let by = serde_json::to_string(by)?;
        // One for all tries: a run that is put into its pool and then decided anew keeps its id, so its item is good.
        let fresh = ulid::Ulid::generate().to_string();
        for _ in 0..DECISIONS_MAX {
            let loaded = self.store.load(key).await?;
            let state: Option<State> = loaded.as_ref().map(|loaded| read_state(&loaded.state)).transpose()?;
            if state.is_none() && !matches!(request, Request::Open { .. }) {
                return Err(NO_SESSION.into());
            }
            let at = (loaded.as_ref(), state.as_ref());
            if let Some(decided) = self.attempt(key, &by, at, request, numbered, verbatim, &fresh).await? {
                return Ok(decided);
            }
        }
        Err(Failure::TooFast)
    }

    /// Decides what a reading of the session makes of it, and makes it durable: what `plan` asks for is decided on the very
    /// state that the reading is not older than, or planned anew.
    pub async fn decide_as_read<R, F>(
        &self,
        key: &SessionKey,
        by: &Author,
        numbered: Numbered<'_>,
        read: impl Fn() -> R,
        plan: impl Fn(F, &State) -> Result<Request, Fault>,
    ) -> Result<Decided, Fault>
    where
        R: Future<Output = Result<F, Fault>>,
    {
        let author = serde_json::to_string(by).map_err(|e| Failure::from(e).fault())?;
        let fresh = ulid::Ulid::generate().to_string();
        for _ in 0..DECISIONS_MAX {
            let (loaded, state) = self.load(key).await.map_err(|failure| failure.fault())?;
            // After the load: it holds whatever the state knows of.
            let request = match plan(read().await?, &state) {
                Ok(request) => request,
                // What it was about may be gone since it was carried out.
                Err(fault) => return self.first_answer(key, &author, numbered, fault).await,
            };
            let at = (Some(&loaded), Some(&state));
            let tried = self.attempt(key, &author, at, &request, numbered, None, &fresh).await;
            if let Some(decided) = tried.map_err(|failure| failure.fault())? {
                return Ok(decided);
            }
        }
        Err(Failure::TooFast.fault())
    }

    /// What a repeat of an earlier request was answered; `fault` if it is none. A store that cannot tell says so: whoever is
    /// told `fault` takes it that nothing was written.
    async fn first_answer(
        &self,
        key: &SessionKey,
        by: &str,
        numbered: Numbered<'_>,
        fault: Fault,
    ) -> Result<Decided, Fault> {
        match self.refused(key, by, Refusal::NoRun, numbered).await {
            Ok(decided) => Ok(decided),
            Err(Failure::Refused(_)) => Err(fault),
            Err(failure) => Err(failure.fault()),
        }
    }

    /// One try at one state; `None` if the session has changed meanwhile.
    #[expect(clippy::too_many_arguments, reason = "a request with all that it is decided on")]
    async fn attempt(
        &self,
        key: &SessionKey,
        by: &str,
        (loaded, state): (Option<&Loaded>, Option<&State>),
        request: &Request,
        numbered: Numbered<'_>,
        verbatim: Option<(&str, u32)>,
        fresh: &str,
    ) -> Result<Option<Decided>, Failure> {
        let now = loaded.map_or(Millis(0), |l| l.now);
        if numbered.is_too_old(now) {
            return Err(Failure::TooOld);
        }
        let context =
            Context { now, fresh: fresh.to_owned(), cancel_grace_ms: millis(self.leases.cancel_grace) };
        let decision = match decide(state, request, &context) {
            Ok(decision) => decision,
            Err(refusal) => return self.refused(key, by, refusal, numbered).await.map(Some),
        };
        let entries = match verbatim {
            Some(verbatim) => verbatim,
            None => (&*serde_json::to_string(&decision.entries)?, decision_len(&decision)),
        };
        // Only what somebody sends can be so large: what Everthread decides by itself is a few entries per run.
        if entries.0.len() > BLOCK_BYTES_MAX {
            return Err(Failure::TooLarge);
        }
        // What a run starts stands on its branch, and the block says so.
        let starter = match request {
            Request::StartChild { run, .. } => Some(run),
            _ => None,
        };
        let written = match verbatim {
            Some(entries) => self.append(key, by, now, entries, numbered).await,
            None => self.write(key, by, starter, loaded, &decision, entries, numbered).await,
        };
        match written {
            Ok(written) => {
                if written.duplicate.is_none() && entries.1 > 0 {
                    self.index(key, written.at, matches!(request, Request::Open { .. })).await;
                }
                match request {
                    Request::Open { .. } => self.arm_upkeep(key, &decision.state, written.at, true).await,
                    Request::Update { .. } => self.arm_upkeep(key, &decision.state, written.at, false).await,
                    _ => {}
                }
                let level = match verbatim {
                    Some(_) => self.settle_entries(key, &written).await?,
                    None => self.settle_decision(key, &written).await?,
                };
                let decision = written.duplicate.is_none().then_some(decision);
                Ok(Some(Decided { written, decision, level }))
            }
            Err(Error::Refused(WriteRefusal::Conflict { .. } | WriteRefusal::Late)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sees to it that upkeep looks at a session that is new or told something else. It comes after the write, since the
    /// store's clock is not known before: if it is lost, the session's next run brings the keeper here.
    pub async fn arm_upkeep(&self, key: &SessionKey, state: &State, at: Millis, is_new: bool) {
        if let Some(look) = self.upkeep.first_look(key, state, at).map(|look| if is_new { look } else { at })
            && let Err(error) = self.store.arm(key, look).await
        {
            tracing::warn!(%key, %error, "a session is not looked after before its next run");
        }
    }

    /// What was decided is seen by those who follow the tenant's sessions. The list is only an index: where this fails it is
    /// behind, until the next decision or until somebody compares it. Whoever opens a session finds it in the list.
    async fn index(&self, key: &SessionKey, at: Millis, is_new: bool) {
        if !is_new && self.lister.as_ref().is_some_and(|lister| lister.take(key, at)) {
            return;
        }
        if let Err(error) = self.store.index(key, at).await {
            tracing::debug!(%key, %error, "the list of sessions is behind");
        }
    }

    /// Entries that no decision depends on change nothing but the log: the version stays, nobody who hosts a run looks at the
    /// state for them, and of many that come at once none is decided anew.
    async fn append(
        &self,
        key: &SessionKey,
        by: &str,
        now: Millis,
        (entries, count): (&str, u32),
        numbered: Numbered<'_>,
    ) -> Result<Written, Error> {
        let producer_key;
        let (producer, fence) = match numbered {
            Numbered::No => (None, None),
            Numbered::Request { key, answer, .. } => (Some(request_of(key, answer)), None),
            Numbered::Run { run, fence, producer } => {
                producer_key = run_producer(run);
                (Some(producer_of(&producer_key, producer)), Some((run, fence)))
            }
        };
        let not_after = Some(now.plus(WRITE_WINDOW_MS));
        let write = Write { by, run: None, entries, count, producer, fence, change: None, not_after };
        self.store.write(key, write).await
    }

    #[expect(clippy::too_many_arguments, reason = "everything that the one write takes")]
    async fn write(
        &self,
        key: &SessionKey,
        by: &str,
        run: Option<&RunId>,
        loaded: Option<&Loaded>,
        decision: &Decision,
        (entries, count): (&str, u32),
        numbered: Numbered<'_>,
    ) -> Result<Written, Error> {
        let not_after = loaded.map(|l| l.now.plus(WRITE_WINDOW_MS));
        for (run, agent) in &decision.enqueue {
            let pool = PoolKey { tenant: key.tenant.clone(), agent: agent.clone() };
            let item = WorkItem {
                tenant: key.tenant.clone(),
                session: key.session.clone(),
                run: run.clone(),
                not_after: not_after.unwrap_or_default(),
            };
            self.store.enqueue(&pool, &item).await?;
        }
        let next_due = loaded.and_then(|l| self.next_due(&decision.state, l));
        if let Some(due) = next_due {
            self.store.arm(key, due).await?;
        }
        let state = serde_json::to_string(&decision.state).map_err(|e| Error::Corrupt(e.to_string()))?;
        let (producer_key, whole_answer);
        let (producer, fence) = match numbered {
            Numbered::No => (None, None),
            Numbered::Request { key, answer, .. } => {
                let run = decision.requested.as_ref().map_or("", |run| run.as_str());
                let control = decision.control.as_ref().map_or("", |control| control.as_str());
                whole_answer = format!("{answer} {run} {control}");
                (Some(request_of(key, &whole_answer)), None)
            }
            Numbered::Run { run, fence, producer } => {
                producer_key = run_producer(run);
                (Some(producer_of(&producer_key, producer)), Some((run, fence)))
            }
        };
        let unwritten = decision.unwritten.as_ref().and_then(|run| {
            let attempts = decision.state.runs.get(run)?.attempts;
            Some((run, u64::from(attempts)))
        });
        let change = Change {
            expect: loaded.map(|l| l.version),
            state: &state,
            next_due,
            grant: decision.grant.as_ref(),
            revoke: &decision.revoke,
            unwritten,
            lease_ms: millis(self.leases.lease),
        };
        let write = Write { by, run, entries, count, producer, fence, change: Some(change), not_after };
        self.store.write(key, write).await
    }

    /// A refused request may be the repeat of one that was carried out: then it gets the first answer.
    async fn refused(
        &self,
        key: &SessionKey,
        by: &str,
        refusal: Refusal,
        numbered: Numbered<'_>,
    ) -> Result<Decided, Failure> {
        // The version cannot be right, so that nothing but an earlier answer or an earlier check can come back.
        let producer_key;
        let (producer, fence) = match numbered {
            Numbered::No => return Err(refusal.into()),
            Numbered::Request { key, answer, .. } => (request_of(key, answer), None),
            Numbered::Run { run, fence, producer } => {
                producer_key = run_producer(run);
                (producer_of(&producer_key, producer), Some((run, fence)))
            }
        };
        let change = Change {
            expect: Some(everthread_protocol::Version::default()),
            state: "",
            next_due: None,
            grant: None,
            revoke: &[],
            unwritten: None,
            lease_ms: 0,
        };
        let write = Write {
            by,
            run: None,
            entries: "[]",
            count: 0,
            producer: Some(producer),
            fence,
            change: Some(change),
            not_after: None,
        };
        match self.store.write(key, write).await {
            Ok(written) => {
                let level = self.settle_decision(key, &written).await?;
                Ok(Decided { written, decision: None, level })
            }
            Err(Error::Refused(WriteRefusal::Conflict { .. } | WriteRefusal::HasWritten)) => {
                Err(refusal.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// When somebody must look at the session again: at a deadline of its own, or when a lease ends.
    pub(crate) fn next_due(&self, state: &State, loaded: &Loaded) -> Option<Millis> {
        let full_term = loaded.now.plus(millis(self.leases.lease));
        let leases = state.active_runs().map(|(run, _)| lease_of(loaded, run).unwrap_or(full_term));
        state.next_due().into_iter().chain(leases).min()
    }
}

/// A session that there is, with its state read.
fn understood(loaded: Option<Loaded>) -> Result<(Loaded, State), Failure> {
    let loaded = loaded.ok_or(NO_SESSION)?;
    let state = read_state(&loaded.state)?;
    Ok((loaded, state))
}

/// A core state as the store has it. What a newer release wrote may not be readable at all, so its schema is looked at first.
pub fn read_state(state: &str) -> Result<State, Failure> {
    if schema_of(state)? > SCHEMA {
        return Err(Refusal::NewerSchema.into());
    }
    Ok(serde_json::from_str(state)?)
}

/// When the lease of a run ends, if the store knows.
pub(crate) fn lease_of(loaded: &Loaded, run: &RunId) -> Option<Millis> {
    loaded.leases.iter().find(|(id, _)| id == run).map(|(_, ends)| *ends)
}

/// A single request as a producer: it has one batch.
fn request_of<'a>(key: &'a str, answer: &'a str) -> Producer<'a> {
    Producer { key, incarnation: 1, batch: 1, answer }
}

/// A worker's write as one of its run's.
fn producer_of(key: &str, producer: worker_frame::Producer) -> Producer<'_> {
    Producer { key, incarnation: producer.incarnation, batch: producer.batch, answer: "" }
}

/// The producer key of a run.
pub fn run_producer(run: &RunId) -> String {
    format!("run:{run}")
}

fn decision_len(decision: &Decision) -> u32 {
    u32::try_from(decision.entries.len()).unwrap_or(u32::MAX)
}
