//! Killing the process in the middle of trims: floor and base are of one trim, and nothing behind them is missing.
//!
//! This test binary starts itself as the child that is killed.

use crate::embedded::open_with;
use crate::suite::trimming::{fill, is_whole, trim_one_by_one};
use everthread_protocol::{Seq, SessionKey};
use everthread_store::embedded::Durability;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const DIR: &str = "EVERTHREAD_TEST_TRIM_DIR";
/// Entries, of which one record has two.
const ENTRIES: u64 = 801;
/// The child is killed after so many trims or fewer: far from the last.
const TRIMS_MAX: usize = 150;

fn session() -> SessionKey {
    "acme/trimmed".parse().unwrap()
}

/// Not a test: the child, when the environment says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_trims_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let store = open_with(&dir, Durability::Crash);
    fill(&store, &session(), ENTRIES, ENTRIES - 10).await;
    trim_one_by_one(&store, &session(), |floor| {
        std::io::stdout().lock().write_all(format!("\nfloor {floor}\n").as_bytes()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_kill_in_the_middle_of_trims_leaves_floor_and_base_of_one_trim_and_the_rest_whole() {
    let random = || usize::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()).unwrap();
    for _ in 0..3 {
        let dir = tempfile::TempDir::new().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["kill_trim::child_that_trims_until_it_is_killed", "--exact", "--nocapture"]);
        let mut child = command.env(DIR, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
        let parse = |line: Vec<u8>| {
            let line = String::from_utf8(line).unwrap();
            line.strip_prefix("floor ").map(|floor| Seq(floor.parse().unwrap()))
        };
        let (mut floor, mut left) = (Seq(1), 1 + random() % TRIMS_MAX);
        while left > 0 {
            if let Some(known) = parse(lines.next().expect("the child ended by itself").unwrap()) {
                (floor, left) = (known, left - 1);
            }
        }
        child.kill().unwrap();
        // What it had printed before it died counts as well; the last line may be cut off.
        let mut rest: Vec<Vec<u8>> = lines.map(Result::unwrap).collect();
        rest.pop();
        floor = rest.into_iter().filter_map(parse).next_back().unwrap_or(floor);
        child.wait().unwrap();
        is_whole(&open_with(dir.path(), Durability::Crash), &session(), floor).await;
    }
}
