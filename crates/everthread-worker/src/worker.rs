//! The worker: what it offers, and the loop that keeps it connected for as long as it is wanted.

use crate::connection::{Connection, Ended, Left};
use crate::error::WorkerError;
use crate::reconnect::Reconnect;
use crate::run::{Cause, Finish, Run};
use crate::runs::Runs;
use everthread_protocol::limits::{WORKER_AGENTS_MAX, WORKER_CAPACITY_MAX};
use everthread_protocol::worker_frame::{Offer, OnLost};
use everthread_protocol::{AgentName, Level, WorkerId};
use everthread_socket::RawConnection;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long runs may go on after the worker was asked to stop, unless the builder says otherwise.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// For runs that were told to stop to end.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// What executes the runs of one agent.
pub(crate) type AgentFn = Arc<dyn Fn(Run) -> Pin<Box<dyn Future<Output = Finish> + Send>> + Send + Sync>;

/// How the runs of an agent are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentOptions {
    is_steerable: bool,
    on_lost: OnLost,
    ack: Option<Level>,
}

impl AgentOptions {
    /// As [`Builder::agent`] has it: what steers a run becomes a run of its own, and a run whose worker dies is lost.
    pub fn new() -> Self {
        Self::default()
    }

    /// The function looks at the messages that steer it ([`Run::next_steer`], [`Run::try_steer`]). Without this they are
    /// refused at once, and the server makes each the input of a new run.
    pub fn steerable(mut self) -> Self {
        self.is_steerable = true;
        self
    }

    /// If the worker dies after the run has written, another one gets it as a new attempt, which sees what was written:
    /// [`Run::attempt`], [`Run::own_messages`]. So it is with a worker that is stopped before the run has completed. A run
    /// that has written nothing goes to another worker anyway.
    pub fn retry_lost(mut self) -> Self {
        self.on_lost = OnLost::Retry;
        self
    }

    /// How sure it is to be that what a run writes is written, before it counts as written: where the deployment says less, or
    /// more. A level that the server cannot give fails the run.
    pub fn ack(mut self, level: Level) -> Self {
        self.ack = Some(level);
        self
    }
}

/// An agent that a worker serves.
pub(crate) struct Served {
    pub(crate) function: AgentFn,
    pub(crate) is_steerable: bool,
    pub(crate) on_lost: OnLost,
    pub(crate) ack: Option<Level>,
}

/// Says what a worker offers.
pub struct Builder {
    url: String,
    token: String,
    agents: Vec<(String, u32, AgentOptions, AgentFn)>,
    drain_deadline: Duration,
}

impl Builder {
    /// Serves `agent` with up to `capacity` runs at once. The function's result ends the run; a panic ends it as failed.
    ///
    /// A function that ends its run says how: with a [`Finish`], an [`Outcome`](crate::Outcome) or a `Result`. One that
    /// says nothing would end as completed whatever went wrong, and does not compile:
    ///
    /// ```compile_fail,E0277
    /// use everthread_worker::{Run, Worker};
    ///
    /// async fn forgetful(run: Run) {
    ///     drop(run.step("half of it").await);
    /// }
    ///
    /// Worker::builder("ws://127.0.0.1:7400", "dev").agent("forgetful", 1, forgetful);
    /// ```
    pub fn agent<F, T>(
        self,
        agent: &str,
        capacity: u32,
        function: impl Fn(Run) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = T> + Send + 'static,
        T: Into<Finish>,
    {
        self.agent_with(agent, capacity, AgentOptions::new(), function)
    }

    /// [`Builder::agent`] with options.
    pub fn agent_with<F, T>(
        mut self,
        agent: &str,
        capacity: u32,
        options: AgentOptions,
        function: impl Fn(Run) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = T> + Send + 'static,
        T: Into<Finish>,
    {
        let function: AgentFn = Arc::new(move |run| {
            let future = function(run);
            Box::pin(async move { future.await.into() })
        });
        self.agents.push((agent.to_owned(), capacity, options, function));
        self
    }

    /// How long runs may go on after the worker was asked to stop.
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.drain_deadline = deadline;
        self
    }

    /// Checks what was said. The connection is made by [`Worker::run`].
    pub fn connect(self) -> Result<Worker, WorkerError> {
        if self.agents.is_empty() {
            return Err(WorkerError::NoAgent);
        }
        let mut agents = BTreeMap::new();
        for (name, capacity, AgentOptions { is_steerable, on_lost, ack }, function) in self.agents {
            let wrong = |why: &str| WorkerError::Name { name: name.clone(), why: why.to_owned() };
            let agent: AgentName =
                name.parse().map_err(|e: everthread_protocol::InvalidId| wrong(&e.to_string()))?;
            if !(1..=WORKER_CAPACITY_MAX).contains(&capacity) {
                return Err(wrong("its capacity is out of range"));
            }
            let offer = Offer { name: agent.clone(), capacity, on_lost };
            let served = Served { function, is_steerable, on_lost, ack };
            if agents.insert(agent, (offer, served)).is_some() {
                return Err(wrong("it was given twice"));
            }
        }
        if agents.len() > WORKER_AGENTS_MAX {
            return Err(WorkerError::Name {
                name: "agents".to_owned(),
                why: "there are too many".to_owned(),
            });
        }
        let offers = agents.values().map(|(offer, _)| offer.clone()).collect();
        let agents = agents.into_iter().map(|(name, (_, served))| (name, served)).collect();
        let id = format!("w{:016x}", everthread_socket::random());
        let id: WorkerId =
            id.parse().map_err(|_| WorkerError::Name { name: id, why: "not an id".to_owned() })?;
        let config =
            Config { url: self.url, token: self.token, id, offers, drain_deadline: self.drain_deadline };
        Ok(Worker { config, agents })
    }
}

/// What a worker says of itself.
pub(crate) struct Config {
    pub(crate) url: String,
    pub(crate) token: String,
    /// This process: a new one for every start.
    pub(crate) id: WorkerId,
    pub(crate) offers: Vec<Offer>,
    pub(crate) drain_deadline: Duration,
}

/// A process that executes the runs of some agents.
pub struct Worker {
    config: Config,
    agents: BTreeMap<AgentName, Served>,
}

impl Worker {
    /// A worker for the node at `url` (`ws:`, `wss:`, `http:` or `https:`).
    pub fn builder(url: impl Into<String>, token: impl Into<String>) -> Builder {
        Builder { url: url.into(), token: token.into(), agents: Vec::new(), drain_deadline: DRAIN_DEADLINE }
    }

    /// Works until `shutdown` fires and the runs at hand have ended, or have had the time for it. A lost connection is
    /// made again for ever; only what trying again cannot change is an error.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let Worker { config, agents } = self;
        let runs = Runs::new(agents);
        // Whatever way this future ends, the run functions end with it.
        let _abort = runs.abort_guard();
        let drained = drain(&runs, &shutdown, config.drain_deadline);
        tokio::select! {
            result = stay_connected(&config, &runs, &shutdown) => result,
            () = drained => Ok(()),
        }
    }
}

/// Completes when `shutdown` has fired and the runs have ended or were made to.
async fn drain(runs: &Runs, shutdown: &CancellationToken, deadline: Duration) {
    shutdown.cancelled().await;
    if timeout(deadline, runs.none()).await.is_err() {
        runs.stop_all(Cause::Stopped);
        // Those that do not hear it are aborted; the server finds that their worker is gone.
        drop(timeout(STOP_DEADLINE, runs.none()).await);
    }
}

async fn stay_connected(
    config: &Config,
    runs: &Runs,
    shutdown: &CancellationToken,
) -> Result<(), WorkerError> {
    let mut reconnect = Reconnect::new();
    loop {
        let Ended { left, lasted } =
            match RawConnection::open(&config.url, "/v1/worker", Some(&config.token)).await {
                Ok(connection) => Connection::new(config, runs, shutdown).serve(connection).await,
                Err(error) => Ended { left: Left::Lost(error), lasted: None },
            };
        runs.disconnected();
        let wait = match left {
            Left::Refused(error) => return Err(error),
            Left::Lost(error) if error.is_final() => return Err(error.into()),
            Left::Lost(error) => {
                let wait = reconnect.wait(lasted, !runs.is_empty(), Instant::now());
                // Not sooner than the server asks, and not with everybody else whom it asked the same.
                let wait = wait + error.after().unwrap_or_default();
                tracing::warn!(%error, ?wait, url = config.url, "not connected; will try again");
                wait
            }
            Left::Bye(after) => {
                tracing::info!(?after, "the node asks to come back");
                after
            }
        };
        sleep(wait).await;
    }
}
