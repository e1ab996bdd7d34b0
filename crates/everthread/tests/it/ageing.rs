//! Sessions that age while they are used: on three nodes they are written, folded, archived, brought back and read from
//! random places, all at once, and at the end everybody must hold the same.
//!
//! Each scenario is a race: who does what when is left to the scheduler, and the seed decides only what is tried. So what
//! is checked holds at every moment, or of the whole history. Ten seconds of it; a minute with `EVERTHREAD_LONG_TESTS=1`.

mod fleet;
mod log;
mod proof;
mod reader;
mod writers;

use crate::ageing::fleet::Fleet;
use crate::ageing::reader::Reader;
use std::time::Duration;
use tokio::task::JoinSet;

/// Sessions that are raced for. The first has most of the readers.
const SESSIONS: usize = 3;
/// Readers of the first session, and of each other one.
const READERS: [usize; 2] = [10, 4];

/// How long the race goes on.
fn race_time() -> Duration {
    let is_long = std::env::var("EVERTHREAD_LONG_TESTS").is_ok_and(|value| value == "1");
    Duration::from_secs(if is_long { 60 } else { 10 })
}

/// What happens besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Besides {
    Nothing,
    /// Nodes are killed in the middle of things.
    Kills,
    /// The beginnings of the logs are dropped.
    Trims,
    /// Both.
    TrimsAndKills,
}

impl Besides {
    fn has_kills(self) -> bool {
        matches!(self, Besides::Kills | Besides::TrimsAndKills)
    }

    fn has_trims(self) -> bool {
        matches!(self, Besides::Trims | Besides::TrimsAndKills)
    }
}

/// Has everything happen at once, lets it come to rest, and checks what everybody holds.
async fn race(seed: u64, besides: Besides) {
    let (mut fleet, shared) = Fleet::start(seed, SESSIONS, besides).await;
    let _workers = writers::serve(&shared);
    let (mut writing, mut reading) = (JoinSet::new(), JoinSet::new());
    for session in 0..SESSIONS {
        writing.spawn(writers::ask_for_runs(shared.clone(), session));
        writing.spawn(writers::put_marks(shared.clone(), session));
        for _ in 0..READERS[session.min(1)] {
            reading.spawn(Reader::new(shared.clone(), session).read_to_the_end());
        }
    }
    for _ in 0..2 {
        writing.spawn(writers::archive(shared.clone()));
        writing.spawn(writers::read_whole(shared.clone()));
    }
    let deadline = tokio::time::Instant::now() + race_time();
    if besides.has_kills() {
        fleet.kill_until(deadline, &shared).await;
    } else {
        tokio::time::sleep_until(deadline).await;
    }
    shared.stop();
    all(&mut writing).await;
    fleet.rest(&shared).await;
    let readers = all(&mut reading).await;
    let proof = proof::check(&fleet, &shared, &readers).await;
    fleet.report(&shared, &proof).await;
}

/// What all of them come to, or the panic of the first that fails.
async fn all<T: 'static>(tasks: &mut JoinSet<T>) -> Vec<T> {
    let mut results = Vec::new();
    while let Some(result) =
        tokio::time::timeout(2 * crate::node::PATIENCE, tasks.join_next()).await.expect("some never end")
    {
        results.push(result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
    }
    results
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folding_appending_attaching_and_archiving_at_once_lose_double_and_misplace_nothing() {
    race(1, Besides::Nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_killed_in_the_middle_of_folds_and_archives_lose_double_and_misplace_nothing() {
    race(2, Besides::Kills).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stood_where_a_log_was_trimmed_is_told_and_what_is_kept_is_whole() {
    race(3, Besides::Trims).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_killed_in_the_middle_of_trims_leave_what_is_kept_whole() {
    race(4, Besides::TrimsAndKills).await;
}
