//! What all threads of a scenario share: where to connect, what every session says, when it begins, and what was found.

use crate::corpus::Script;
use crate::meter::{Board, Window};
use crate::socket::{Target, scratch};
use crate::track::Fault;
use everthread_protocol::SessionId;
use serde::Serialize;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// The instant from which all schedules count; set once.
pub type Start = OnceLock<Instant>;

/// Of the last tokens of a session it is known when they were handed to the socket.
const HANDED: usize = 256;
/// Faults that a report tells in words.
const PROBLEMS_MAX: usize = 20;

/// How far a scenario is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections and runs are being made.
    SetUp,
    /// The start is set.
    Begun,
    /// Everything has been due: who was slow on purpose may hurry.
    Drain,
    /// Everybody goes home.
    Over,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    /// Its name.
    pub name: SessionId,
    /// What its run says.
    pub script: Arc<Script>,
    /// Tokens that were handed to the socket, and a hash of them.
    sent: AtomicU64,
    hash: AtomicU64,
    /// When the last ones were, in µs after the start.
    handed: [AtomicU32; HANDED],
}

impl Session {
    /// Nothing said yet.
    pub fn new(name: SessionId, script: Script) -> Session {
        let (sent, hash) = (AtomicU64::new(0), AtomicU64::new(crate::corpus::HASH_OF_NOTHING));
        Session { name, script: Arc::new(script), sent, hash, handed: [const { AtomicU32::new(0) }; HANDED] }
    }

    /// Tokens up to `to` are handed to the socket, at `micros` after the start. Only its worker says so.
    pub fn hand(&self, to: u64, micros: u64) {
        let from = self.sent.load(Ordering::Relaxed);
        let at = u32::try_from(micros).unwrap_or(u32::MAX);
        for token in from.max(to.saturating_sub(HANDED as u64))..to {
            self.handed[crate::corpus::index(token % HANDED as u64)].store(at, Ordering::Relaxed);
        }
        self.hash.store(self.script.hash(self.hash.load(Ordering::Relaxed), from, to), Ordering::Relaxed);
        self.sent.store(to, Ordering::Release);
    }

    /// When a token was handed over, if that is still known.
    pub fn handed(&self, token: u64) -> Option<u64> {
        let sent = self.sent.load(Ordering::Acquire);
        (token < sent && sent - token <= HANDED as u64 / 2)
            .then(|| self.handed[crate::corpus::index(token % HANDED as u64)].load(Ordering::Relaxed).into())
    }

    /// A hash of all that was sent.
    pub fn hash(&self) -> u64 {
        self.hash.load(Ordering::Acquire)
    }
}

/// What was verified.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// Nothing was wrong.
    pub ok: bool,
    /// What that means.
    pub what: String,
    /// Who checked.
    pub followers: u64,
    /// Tokens that they should have got, all together.
    pub tokens_expected: u64,
    /// Tokens that they got.
    pub tokens_delivered: u64,
    /// Followers that missed something.
    pub lost: u64,
    /// Followers that got something twice.
    pub doubled: u64,
    /// Followers that got something else.
    pub changed: u64,
    /// Followers that got what is no frame of theirs.
    pub broken: u64,
    /// Followers that did not have everything in time.
    pub unfinished: u64,
    /// The first few, in words.
    pub problems: Vec<String>,
}

impl Verified {
    /// Notes a fault.
    pub fn fault(&mut self, who: &str, fault: &Fault) {
        *match fault {
            Fault::Lost(_) => &mut self.lost,
            Fault::Doubled(_) => &mut self.doubled,
            Fault::Changed(_) => &mut self.changed,
            Fault::Broken(_) => &mut self.broken,
        } += 1;
        self.problem(format!("{who}: {fault}"));
    }

    /// Notes something in words.
    pub fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    /// Adds what another found, and says whether all is well.
    pub fn judged(mut self, what: &str) -> Verified {
        let faults = self.lost + self.doubled + self.changed + self.broken + self.unfinished;
        self.ok = faults == 0 && self.problems.is_empty() && self.tokens_expected == self.tokens_delivered;
        what.clone_into(&mut self.what);
        self
    }
}

/// What a late joiner needed.
#[derive(Debug, Clone, Copy)]
pub struct Joined {
    /// Bytes until it was live.
    pub bytes: u64,
    /// Bytes of the text that is theirs.
    pub text_bytes: u64,
}

/// Shared by all threads.
pub struct Shared {
    /// The nodes; connections are spread over them.
    pub targets: Vec<Target>,
    /// All sessions.
    pub sessions: Vec<Session>,
    /// Where figures are handed in.
    pub board: Board,
    /// When it began.
    pub start: Start,
    /// Tokens due earlier are verified but not measured.
    pub warmup_us: u64,
    /// How far it is.
    pub phase: watch::Sender<Phase>,
    /// Connections that are live for the first time, runs that were handed out, followers that have everything.
    pub joined: AtomicUsize,
    pub taken: AtomicUsize,
    pub finished: AtomicUsize,
    /// Runs whose end is confirmed.
    pub ended: AtomicUsize,
    /// Late joiners that were live and went.
    pub left: AtomicUsize,
    /// What was found.
    pub verified: Mutex<Verified>,
    /// What late joiners needed.
    pub joins: Mutex<Vec<Joined>>,
    /// Requests that were refused with "try again", and were.
    pub retries: AtomicU64,
    failure: Mutex<Option<anyhow::Error>>,
    /// Moves when any of the above does.
    pub changed: tokio::sync::Notify,
}

impl Shared {
    /// Before anything.
    pub fn new(targets: Vec<Target>, sessions: Vec<Session>, warmup_us: u64) -> anyhow::Result<Shared> {
        Ok(Shared {
            targets,
            sessions,
            board: Board::new()?,
            start: Start::new(),
            warmup_us,
            phase: watch::Sender::new(Phase::SetUp),
            joined: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            verified: Mutex::default(),
            joins: Mutex::default(),
            retries: AtomicU64::new(0),
            failure: Mutex::new(None),
            changed: tokio::sync::Notify::new(),
        })
    }

    /// Counts one more.
    pub fn count(&self, counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Something failed that is no fault of a delivery: the scenario cannot go on.
    pub fn fail(&self, error: anyhow::Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.changed.notify_one();
    }

    /// Why it cannot go on.
    pub fn failure(&self) -> Option<anyhow::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until a counter has reached a number, or something has failed.
    pub async fn reached(&self, counter: &AtomicUsize, number: usize) -> anyhow::Result<()> {
        loop {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            if counter.load(Ordering::Acquire) >= number {
                // For whoever waits besides.
                self.changed.notify_one();
                return Ok(());
            }
            self.changed.notified().await;
        }
    }

    /// µs after the start; none before it.
    pub fn micros(&self, at: Instant) -> Option<u64> {
        Some(crate::meter::micros(at.saturating_duration_since(*self.start.get()?)))
    }

    /// Changes what was found.
    pub fn verify(&self, change: impl FnOnce(&mut Verified)) {
        change(&mut self.verified.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What one thread has for all its connections.
pub struct Local {
    /// What it shares with others.
    pub shared: Arc<Shared>,
    /// What it saw since it last handed in.
    pub window: RefCell<Window>,
    /// What its sockets are read into.
    pub scratch: RefCell<Vec<u8>>,
}

impl Local {
    /// For one thread.
    pub fn new(shared: Arc<Shared>) -> anyhow::Result<Local> {
        Ok(Local { shared, window: RefCell::new(Window::new()?), scratch: scratch() })
    }

    /// Hands in what was seen.
    pub fn hand_in(&self) -> anyhow::Result<()> {
        self.shared.board.hand_in(&mut self.window.borrow_mut())
    }
}
