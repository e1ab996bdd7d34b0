//! Killing the process: everything it acknowledged is found again, in order, once.
//!
//! This test binary starts itself as the child that is killed.

use crate::embedded::open_with;
use crate::suite::folding::folded;
use crate::suite::{ALL, append, change, one, read_all, texts};
use everthread_protocol::{Seq, SessionKey};
use everthread_session::fold::Limits;
use everthread_store::embedded::Durability;
use everthread_store::{Fold, Folded, Store, Write};
use futures_util::future::join_all;
use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DIR: &str = "EVERTHREAD_TEST_KILL_DIR";
const ROUND: &str = "EVERTHREAD_TEST_KILL_ROUND";
const CRASH: &str = "EVERTHREAD_TEST_KILL_CRASH";
const SESSIONS: usize = 4;
const WRITERS: usize = 3;

fn session(n: usize) -> SessionKey {
    format!("acme/k{n}").parse().unwrap()
}

fn durability(crash: bool) -> Durability {
    if crash { Durability::Crash } else { Durability::PowerCut }
}

/// Not a test: the child, when the environment says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let round = std::env::var(ROUND).unwrap();
    let store = open_with(&dir, durability(std::env::var_os(CRASH).is_some()));
    let writers = (0..SESSIONS * WRITERS).map(|writer| {
        let (store, round) = (&store, &round);
        async move {
            let key = session(writer % SESSIONS);
            let create = Write { change: Some(change(None, "s")), ..one() };
            // Exists in all rounds but the first, and for all writers but one.
            drop(store.write(&key, create).await);
            for n in 0_u64.. {
                let tag = format!("{round}-{writer}-{n}");
                let text = format!(r#"[{{"type":"x-k","tag":"{tag}"}},{{"type":"x-k","tag":"{tag}+"}}]"#);
                let to = store.write(&key, append(&text, 2)).await.unwrap().to;
                let line = format!("\nack {} {} {tag}\n", writer % SESSIONS, to.0 - 1);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        }
    });
    // Folds whatever there is, all the time: the kill comes in the middle of some.
    let folders = (0..SESSIONS).map(|n| {
        let store = &store;
        async move {
            let key = session(n);
            loop {
                if store.load(&key).await.unwrap().is_some() {
                    let head = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
                    let (epoch, records) = folded(store, &key, head.seq, Limits::default()).await;
                    if !records.is_empty() {
                        let done = store.fold(&key, Fold { epoch, records: &records }).await.unwrap();
                        // The first write of a round begins an epoch, and may come in between.
                        assert!(matches!(done, Folded::Done | Folded::NewEpoch { .. }), "{done:?}");
                    }
                }
                tokio::task::yield_now().await;
            }
        }
    });
    futures_util::future::join(join_all(writers), join_all(folders)).await;
}

/// Lets a child write until it has acknowledged `count` writes, kills it, and returns all it acknowledged.
fn round(dir: &Path, round: u32, crash: bool, count: usize) -> Vec<(usize, u64, String)> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["kill::child_that_writes_until_it_is_killed", "--exact", "--nocapture"]);
    command.env(DIR, dir).env(ROUND, round.to_string()).stdout(Stdio::piped());
    if crash {
        command.env(CRASH, "1");
    }
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let mut acks = Vec::new();
    let parse = |line: Vec<u8>| {
        let line = String::from_utf8(line).unwrap();
        let mut words = line.strip_prefix("ack ")?.split(' ');
        let (session, from) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((session, from, words.next()?.to_owned()))
    };
    while acks.len() < count {
        acks.extend(parse(lines.next().expect("the child ended by itself").unwrap()));
    }
    child.kill().unwrap();
    // What it had printed before it died counts as well; the last line may be cut off.
    let mut rest: Vec<Vec<u8>> = lines.map(Result::unwrap).collect();
    rest.pop();
    acks.extend(rest.into_iter().filter_map(parse));
    child.wait().unwrap();
    acks
}

async fn kills(crash: bool) {
    let dir = tempfile::TempDir::new().unwrap();
    let (mut acks, mut folds) = (Vec::new(), 0);
    // The child dies at some point of its next commit; the clock makes it another one in every round and run.
    let random = || usize::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()).unwrap();
    for n in 0..6 {
        acks.extend(round(dir.path(), n, crash, 1 + random() % 300));
        let store = open_with(dir.path(), durability(crash));
        let mut logs = Vec::new();
        for n in 0..SESSIONS {
            let key = session(n);
            logs.push(match store.load(&key).await.unwrap() {
                Some(_) => texts(&read_all(&store, &key, Seq(0), ALL).await),
                None => Vec::new(),
            });
        }
        let heads = store.heads(&(0..SESSIONS).map(session).collect::<Vec<_>>()).await.unwrap();
        folds += heads.iter().flatten().filter(|head| head.folded_to > Seq::ZERO).count();
        for (session, from, tag) in &acks {
            let at = usize::try_from(*from).unwrap() - 1;
            let found: Vec<_> = logs[*session].iter().skip(at).take(2).map(|e| e["tag"].as_str()).collect();
            let second = format!("{tag}+");
            assert_eq!(found, [Some(tag.as_str()), Some(&second)], "acknowledged as {from} of {session}");
        }
        for log in &logs {
            let tags: HashSet<_> = log.iter().filter_map(|entry| entry["tag"].as_str()).collect();
            assert_eq!(tags.len(), log.len().saturating_sub(1), "every entry is there once");
        }
    }
    assert!(folds > 0, "nothing was ever folded");
}

#[tokio::test]
async fn a_kill_loses_nothing_acknowledged() {
    kills(false).await;
}

#[tokio::test]
async fn a_kill_loses_nothing_acknowledged_without_a_sync_per_commit() {
    kills(true).await;
}
