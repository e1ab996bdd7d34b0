//! What idle sessions cost as they age: raw, folded, and archived.
//!
//! `cargo run --release -p everthread --example idle_sessions [sessions]`, after `cargo build --release -p everthread`, writes
//! 10 000 sessions of four questions and four answers of 150 tokens, each token a block of its own, into a Redis; folds them
//! as a node does at the end of a run; folds what is left, too; archives them into a folder; and has a node that was just
//! started tell of all of them and bring some back. Needs `redis-server`, and 2 GB of memory.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use anyhow::Context as _;
use everthread_archive::{Archive, Bucket, Options as ArchiveOptions};
use everthread_control::TaskGroup;
use everthread_edge::folder::{Folder, Options};
use everthread_edge::metrics::Metrics;
use everthread_edge::reader::Reader;
use everthread_protocol::entry::Outcome;
use everthread_protocol::{Millis, RunId, SessionKey, Version};
use everthread_session::State;
use everthread_session::state::{Run, RunStatus};
use everthread_store::redis::{Options as RedisOptions, Redis};
use everthread_store::{Archived, Archiver as _, Change, Producer, Store, Write};
use everthread_testkit::RedisServer;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SESSIONS: usize = 10_000;
const ANSWERS: usize = 4;
const TOKENS: usize = 150;
/// Sessions written, folded or archived at once.
const AT_ONCE: usize = 64;
/// Sessions that are brought back, one after the other.
const BACK: usize = 200;
const LISTEN: &str = "127.0.0.1:7590";
const ADMIN: &str = "127.0.0.1:7591";
const TOKEN: &str = "idle-sessions-token";
const WORDS: [&str; 5] = ["the ", "quick ", "brown ", "fox ", "jumps "];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let sessions = std::env::args().nth(1).map_or(Ok(SESSIONS), |n| n.parse())?;
    let keys: Vec<SessionKey> =
        (0..sessions).map(|n| format!("default/{}", ulid(n)).parse()).collect::<Result<_, _>>()?;
    let tasks = TaskGroup::new();
    let server = RedisServer::start().await?;
    let tracker = tokio_util::task::TaskTracker::new();
    let options = RedisOptions::new(server.url(), "et", "n1".parse()?);
    let store = Arc::new(Redis::connect(options, &tracker, &tasks.token()).await?);
    let meter = Meter { server: &server, sessions, empty: used(&server).await?, raw: 0 };

    each(&keys, async |key| write(&store, key).await).await?;
    let text: usize = (0..ANSWERS * TOKENS).map(|n| WORDS[n % WORDS.len()].len()).sum();
    println!("{sessions} sessions of {ANSWERS} answers of {TOKENS} tokens ({text} bytes of text)");
    let meter = Meter { raw: meter.show("raw", 0).await?, ..meter };

    fold(&keys, &store, Options::default(), &tasks).await?;
    meter.show("folded as a node does (the last 256 entries stay raw)", meter.raw).await?;
    let all = Options { at_entries: 1, at_end_entries: 1, keep_entries: 0 };
    fold(&keys, &store, all, &tasks).await?;
    meter.show("folded to the end", meter.raw).await?;

    let dir = tempfile::tempdir()?;
    let bucket = Bucket::open(&format!("file://{}", dir.path().display()), [])?;
    let after = Duration::from_secs(24 * 3600);
    let archive = Archive::new(store.clone(), Some(ArchiveOptions { bucket, after }));
    let began = Instant::now();
    each(&keys, async |key| {
        anyhow::ensure!(archive.archive(key).await? == Archived::Done, "{key} is not archived");
        Ok(())
    })
    .await?;
    let seconds = began.elapsed().as_secs_f64();
    meter.show("archived", meter.raw).await?;
    // What is remembered of requests goes by itself, ten minutes later.
    let forget = "for _, k in ipairs(redis.call('KEYS', '*:producers')) do redis.call('UNLINK', k) end";
    server.command(&format!("EVAL \"{forget}\" 0")).await?;
    meter.show("archived, ten minutes later", meter.raw).await?;
    let (bytes, blocks) = on_disk(dir.path())?;
    let each_of = |bytes: u64| bytes / sessions as u64;
    println!(
        "  in the archive: {} bytes per session, {} in blocks of the disk",
        each_of(bytes),
        each_of(blocks)
    );
    println!("  archiving: {:.0} sessions a second", sessions as f64 / seconds);

    drop(archive);
    serve(&server, dir.path(), &keys).await?;
    tasks.close(Duration::from_secs(5)).await;
    Ok(())
}

/// Has a node that was just started tell of all sessions, and bring some back; its memory.
async fn serve(server: &RedisServer, archive: &Path, keys: &[SessionKey]) -> anyhow::Result<()> {
    let binary = std::env::current_exe()?;
    let binary = binary.parent().and_then(Path::parent).context("no directory")?.join("everthread");
    let data = tempfile::tempdir()?;
    let child = std::process::Command::new(&binary)
        .args(["serve", "--listen", LISTEN, "--admin", ADMIN, "--token", TOKEN, "--redis", &server.url()])
        .args(["--archive", &format!("file://{}", archive.display()), "--log", "error", "--data-dir"])
        .arg(data.path())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("{} cannot be started: build it", binary.display()))?;
    let node = Node { child };
    // Nothing here is encrypted, but the client asks for it.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::new();
    let began = Instant::now();
    while client
        .get(format!("http://{ADMIN}/readyz"))
        .send()
        .await
        .map_or(true, |it| !it.status().is_success())
    {
        anyhow::ensure!(began.elapsed() < Duration::from_secs(30), "the node does not start");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let get = async |key: &SessionKey, what: &str| {
        let url = format!("http://{LISTEN}/v1/sessions/{}{what}", key.session);
        let answer = client.get(url).bearer_auth(TOKEN).send().await?.error_for_status()?;
        anyhow::Ok(answer.bytes().await?.len())
    };
    let fresh = node.resident_kb()?;
    each(keys, async |key| get(key, "").await.map(|_| ())).await?;
    println!("  a node: {fresh} KB resident, {} after it told of each session", node.resident_kb()?);
    let mut back = Vec::new();
    for key in keys.iter().step_by((keys.len() / BACK).max(1)) {
        let began = Instant::now();
        get(key, "/state").await?;
        back.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    back.sort_by(f64::total_cmp);
    let at = |part: usize| back[(back.len() - 1) * part / 100];
    let again = Instant::now();
    get(&keys[0], "/state").await?;
    println!(
        "  its state from the archive: {:.1} ms, p99 {:.1} ms; once more: {:.1} ms; the node: {} KB",
        at(50),
        at(99),
        again.elapsed().as_secs_f64() * 1000.0,
        node.resident_kb()?
    );
    Ok(())
}

/// A node's process, ended when dropped.
struct Node {
    child: Child,
}

impl Node {
    fn resident_kb(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An id of the usual length.
fn ulid(n: usize) -> String {
    format!("01JD8M3Z5Q7R9T2V4X6Y{n:06}")
}

async fn each(
    keys: &[SessionKey],
    what: impl AsyncFn(&SessionKey) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let what = &what;
    stream::iter(keys).map(anyhow::Ok).try_for_each_concurrent(AT_ONCE, |key| what(key)).await
}

async fn used(server: &RedisServer) -> anyhow::Result<u64> {
    let info = server.command("INFO memory").await?;
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    Ok(line.unwrap_or_default().trim().parse()?)
}

/// Tells what the sessions take in Redis.
struct Meter<'a> {
    server: &'a RedisServer,
    sessions: usize,
    empty: u64,
    raw: u64,
}

impl Meter<'_> {
    async fn show(&self, what: &str, before: u64) -> anyhow::Result<u64> {
        // What was unlinked is freed behind the scenes.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let each = (used(self.server).await? - self.empty) / self.sessions as u64;
        let part =
            if before == 0 { String::new() } else { format!(", 1/{:.1}", before as f64 / each as f64) };
        println!("  {what}: {each} bytes per session{part}");
        Ok(each)
    }
}

fn change(expect: Option<Version>, state: &str) -> Option<Change<'_>> {
    Some(Change { expect, state, next_due: None, grant: None, lease_ms: 0, revoke: &[], unwritten: None })
}

/// Writes one session, as a node and a worker that sends each token by itself would.
async fn write(store: &Redis, key: &SessionKey) -> anyhow::Result<()> {
    let user = r#"{"kind":"user","id":"ann"}"#;
    let agent = r#"{"kind":"agent","id":"guide"}"#;
    let meta = json!({ "title": "A short talk", "agent": "guide" });
    let mut state = State::new(meta.as_object().cloned().unwrap_or_default());
    let blank = Write {
        by: user,
        run: None,
        entries: "[]",
        count: 0,
        producer: None,
        fence: None,
        change: None,
        not_after: None,
    };
    let opened = json!([{ "type": "session.opened", "meta": state.meta }]).to_string();
    let begun = serde_json::to_string(&state)?;
    let mut version = store
        .write(key, Write { entries: &opened, count: 1, change: change(None, &begun), ..blank })
        .await?
        .version;
    for n in 0..ANSWERS {
        let run: RunId = format!("{}{n}", &ulid(n)[1..]).parse()?;
        let question = format!("{}{n}", ulid(n));
        let mut run_state = Run::requested("guide".parse()?, vec![question.clone()]);
        state.runs.insert(run.clone(), run_state.clone());
        let asked = json!([
            { "type": "message.put", "message": question, "role": "user", "parts": [{ "kind": "text", "value": "And what of the lazy dog?" }] },
            { "type": "run.requested", "run": run, "agent": "guide", "input": [question] },
        ]);
        let now = serde_json::to_string(&state)?;
        let asked = asked.to_string();
        let request = format!("put:ann:{question}");
        let producer = Some(Producer { key: &request, incarnation: 1, batch: 1, answer: "{}" });
        let decided =
            Write { entries: &asked, count: 2, producer, change: change(Some(version), &now), ..blank };
        store.write(key, decided).await?;
        let producer = format!("run:{run}");
        let mut offset = 0;
        for token in 0..=TOKENS {
            let entries: Vec<Value> = if token == 0 {
                vec![
                    json!({ "type": "message.start", "message": "m1", "role": "assistant" }),
                    json!({ "type": "part.start", "message": "m1", "part": "p1", "kind": "text" }),
                ]
            } else {
                let text = WORDS[token % WORDS.len()];
                let at = offset;
                offset += text.len();
                vec![
                    json!({ "type": "part.append", "message": "m1", "part": "p1", "offset": at, "text": text }),
                ]
            };
            let batch = token as u64 + 1;
            let (count, text) = (u32::try_from(entries.len())?, serde_json::to_string(&entries)?);
            let producer = Some(Producer { key: &producer, incarnation: 1, batch, answer: "" });
            store
                .write(key, Write { by: agent, run: Some(&run), entries: &text, count, producer, ..blank })
                .await?;
        }
        run_state.status = RunStatus::Ended { outcome: Outcome::Completed, at: Millis(1_763_700_000_000) };
        state.runs.insert(run.clone(), run_state);
        let ended = json!([
            { "type": "message.end", "message": "m1", "status": "complete" },
            { "type": "run.ended", "run": run, "outcome": "completed" },
        ])
        .to_string();
        let now = serde_json::to_string(&state)?;
        let expect = store.load(key).await?.map(|loaded| loaded.version);
        let end = Write {
            by: agent,
            run: Some(&run),
            entries: &ended,
            count: 2,
            change: change(expect, &now),
            ..blank
        };
        version = store.write(key, end).await?.version;
    }
    Ok(())
}

async fn fold(
    keys: &[SessionKey],
    store: &Arc<Redis>,
    options: Options,
    tasks: &TaskGroup,
) -> anyhow::Result<()> {
    let folder = Folder::start(Reader::new(store.clone()), options, Metrics::new(), tasks);
    each(keys, async |key| Ok(folder.fold(key).await?)).await
}

/// Bytes of all files, and of the blocks that they take.
fn on_disk(dir: &Path) -> anyhow::Result<(u64, u64)> {
    let (mut bytes, mut blocks) = (0, 0);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            let inner = on_disk(&entry.path())?;
            (bytes, blocks) = (bytes + inner.0, blocks + inner.1);
        } else {
            (bytes, blocks) = (bytes + metadata.len(), blocks + metadata.blocks() * 512);
        }
    }
    Ok((bytes, blocks))
}
