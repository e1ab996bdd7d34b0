//! Three nodes on one Redis and one archive, which may be killed and come back, and what all tasks of a race share.

use super::Besides;
use super::proof::Proof;
use super::reader::FIELDS;
use crate::node::{Node, PATIENCE, TOKEN};
use everthread_testkit::RedisServer;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const NODES: usize = 3;
/// Marks of one burst: more than are left raw.
pub const BURST: u64 = 20;
/// Folds and archives as soon as there is anything: every reader meets them.
const SOON: [&str; 8] =
    ["--fold-at", "16", "--fold-at-end", "8", "--fold-keep", "4", "--archive-after", "1s"];

/// Keeps hardly more than a few answers.
const LITTLE: [&str; 4] = ["--retention", "max-bytes=16KiB", "--retention-every", "300ms"];

/// Numbers that look random and are the same for a seed.
pub struct Random(u64);

impl Random {
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }
}

/// How often things happened.
#[derive(Default)]
pub struct Tally(Mutex<std::collections::BTreeMap<&'static str, u64>>);

impl Tally {
    pub fn add(&self, what: &'static str, n: u64) {
        *self.0.lock().unwrap().entry(what).or_default() += n;
    }

    pub fn of(&self, what: &str) -> u64 {
        self.0.lock().unwrap().get(what).copied().unwrap_or(0)
    }

    fn all(&self) -> String {
        let all = self.0.lock().unwrap();
        all.iter().map(|(what, n)| format!("{what} {n}")).collect::<Vec<_>>().join(", ")
    }
}

/// An input that was acknowledged.
#[derive(Clone)]
pub struct Asked {
    pub message: String,
    pub run: String,
    /// The seq of the last entry of its block.
    pub to: u64,
}

/// What was written last of what only the last counts of.
#[derive(Clone, Default)]
pub struct Kept {
    pub turn: Option<u64>,
    pub last_mark: Option<String>,
}

/// What all tasks of a race share.
pub struct Shared {
    pub urls: Vec<String>,
    pub sessions: Vec<String>,
    pub tally: Tally,
    /// Fires when nothing more is to be asked for.
    pub stopping: CancellationToken,
    /// Where each log ends, once nobody writes any more.
    pub ends: watch::Sender<Option<Vec<u64>>>,
    /// What was acknowledged: marks with the seq that their answer named, by session.
    pub marks: Mutex<Vec<Vec<(String, u64)>>>,
    /// Bursts of marks that were acknowledged, with the seq of their last one, by session. Others may have come through all
    /// the same.
    pub bursts: Mutex<Vec<Vec<(String, u64)>>>,
    /// What was asked for and acknowledged, by session.
    pub asked: Mutex<Vec<Vec<Asked>>>,
    /// By session.
    pub kept: Mutex<Vec<Kept>>,
    /// Tokens of each run that were confirmed to its worker, and whether its end was.
    pub confirmed: Mutex<HashMap<String, u64>>,
    http: reqwest::Client,
    seeds: AtomicU64,
    pub besides: Besides,
}

impl Shared {
    /// A sequence of its own for each task.
    pub fn random(&self) -> Random {
        Random::seeded(self.seeds.fetch_add(1, Ordering::Relaxed))
    }

    /// One node or another.
    pub fn any(&self, random: &mut Random) -> &str {
        random.one_of::<String>(&self.urls)
    }

    pub fn stop(&self) {
        self.stopping.cancel();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Waits so long, or until the race is over.
    pub async fn pause(&self, ms: u64) {
        drop(tokio::time::timeout(Duration::from_millis(ms), self.stopping.cancelled()).await);
    }

    /// Asks a node something: status and body, or nothing if the answer was lost, which takes a node that was killed.
    pub async fn ask(&self, url: &str, path: &str, body: Option<&Value>) -> Option<(u16, String)> {
        let answer = self.try_ask(url, path, body).await;
        if let Err(error) = &answer {
            self.lost(&error.to_string());
        }
        answer.ok()
    }

    /// The same, where an answer may also be cut off for other reasons.
    pub async fn try_ask(
        &self,
        url: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, String), reqwest::Error> {
        let url = format!("{url}{path}");
        let request = match body {
            Some(body) => self.http.post(url).body(body.to_string()),
            None => self.http.get(url),
        };
        let asking = async {
            let answer = request.bearer_auth(TOKEN).send().await?;
            Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.text().await?))
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("no answer in time")
    }

    /// A connection broke.
    pub fn lost(&self, why: &str) {
        self.tally.add("connections lost", 1);
        assert!(self.besides.has_kills(), "a connection broke and no node was killed: {why}");
    }

    /// Asks one node after the other until one has done it; its answer.
    pub async fn insist(&self, random: &mut Random, path: &str, body: Option<&Value>) -> Value {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "{path} is never done");
            match self.ask(self.any(random), path, body).await {
                Some((200..300, text)) => return serde_json::from_str(&text).unwrap(),
                Some((status, text)) => {
                    assert!(text.contains(r#""retryable":true"#), "{path}: {status} {text}");
                    self.tally.add("requests refused for now", 1);
                }
                None => {}
            }
            tokio::time::sleep(Duration::from_millis(20 + random.below(60))).await;
        }
    }
}

/// Begins something in every session at one node that is about to be killed; counts the kills that came before an answer.
#[expect(clippy::disallowed_methods, reason = "whoever begins it waits for it by its handle")]
fn begin(
    shared: &Arc<Shared>,
    at: usize,
    what: &'static str,
    route: &'static str,
    body: fn(&Shared) -> Option<Value>,
) -> JoinHandle<()> {
    let shared = shared.clone();
    let asking = async move {
        let each = (0..shared.sessions.len()).map(|session| {
            let (path, body) = (format!("/v1/sessions/{}/{route}", shared.sessions[session]), body(&shared));
            let shared = &shared;
            async move {
                let answer = shared.ask(&shared.urls[at], &path, body.as_ref()).await;
                let burst = body.as_ref().and_then(|body| body["id"].as_str());
                if let (Some(burst), Some((202, text))) = (burst, &answer) {
                    let to = seq_of(&serde_json::from_str(text).unwrap());
                    shared.bursts.lock().unwrap()[session].push((burst.to_owned(), to));
                }
                answer.is_none()
            }
        });
        let was_cut = futures_util::future::join_all(each).await.contains(&true);
        shared.tally.add(what, u64::from(was_cut));
    };
    tokio::spawn(asking)
}

fn archive_body(_: &Shared) -> Option<Value> {
    Some(json!({}))
}

/// So much at once that it is folded right after.
fn burst(shared: &Shared) -> Option<Value> {
    let id = format!("burst-{}", shared.seeds.fetch_add(1, Ordering::Relaxed));
    let mark = |n| json!({ "type": "x-mark", "mark": format!("{id}-{n}") });
    let entries: Vec<Value> = (0..BURST).map(mark).collect();
    Some(json!({ "id": id, "entries": entries }))
}

/// The seq of an answer's cursor.
pub fn seq_of(answer: &Value) -> u64 {
    let (_, seq) = answer["cursor"].as_str().unwrap_or_else(|| panic!("{answer}")).split_once('.').unwrap();
    seq.parse().unwrap()
}

/// The nodes, and what they stand on.
pub struct Fleet {
    nodes: Vec<Option<Node>>,
    args: Vec<String>,
    redis: RedisServer,
    dir: TempDir,
    random: Random,
}

impl Fleet {
    /// Starts it, with so many sessions.
    pub async fn start(seed: u64, sessions: usize, besides: Besides) -> (Fleet, Arc<Shared>) {
        let redis = RedisServer::start().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("archive")).unwrap();
        let archive = format!("file://{}", dir.path().join("archive").display());
        let on = ["serve".to_owned(), "--redis".to_owned(), redis.url(), "--archive".to_owned(), archive];
        let mut args: Vec<String> = on.into_iter().chain(SOON.map(str::to_owned)).collect();
        if besides.has_trims() {
            args.extend(LITTLE.map(str::to_owned));
        }
        let mut fleet =
            Fleet { nodes: Vec::new(), args, redis, dir, random: Random::seeded(seed.wrapping_mul(7919)) };
        for _ in 0..NODES {
            let node = Node::start(fleet.dir.path(), &fleet.args()).await;
            fleet.nodes.push(Some(node));
        }
        let urls: Vec<String> = fleet.nodes().map(|node| node.url.clone()).collect();
        let sessions: Vec<String> = (0..sessions).map(|n| format!("s{n}")).collect();
        for session in &sessions {
            fleet.node(0).post("/v1/sessions", json!({ "session": session, "agent": "streamer" })).await;
        }
        let shared = Shared {
            urls,
            tally: Tally::default(),
            stopping: CancellationToken::new(),
            ends: watch::Sender::new(None),
            marks: Mutex::new(vec![Vec::new(); sessions.len()]),
            bursts: Mutex::new(vec![Vec::new(); sessions.len()]),
            asked: Mutex::new(vec![Vec::new(); sessions.len()]),
            kept: Mutex::new(vec![Kept::default(); sessions.len()]),
            confirmed: Mutex::default(),
            http: reqwest::Client::new(),
            seeds: AtomicU64::new(seed * 1000),
            besides,
            sessions,
        };
        (fleet, Arc::new(shared))
    }

    fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().unwrap()
    }

    /// Kills one node after the other, in the middle of things, and starts it again.
    pub async fn kill_until(&mut self, deadline: Instant, shared: &Arc<Shared>) {
        while Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200 + self.random.below(800))).await;
            let at = usize::try_from(self.random.below(NODES as u64)).unwrap();
            self.note(at, shared).await;
            let begun = match self.random.below(3) {
                0 => begin(shared, at, "kills before an archiving was answered", "archive", archive_body),
                1 => {
                    // Through another node, so that this one has to bring them back.
                    for session in &shared.sessions {
                        let path = format!("/v1/sessions/{session}/archive");
                        drop(shared.ask(&shared.urls[(at + 1) % NODES], &path, Some(&json!({}))).await);
                    }
                    begin(shared, at, "kills before an archived session was read", "state", |_| None)
                }
                _ => begin(shared, at, "kills after a burst that starts a fold", "entries", burst),
            };
            tokio::time::sleep(Duration::from_micros(self.random.below(8_000))).await;
            let mut node = self.nodes[at].take().unwrap();
            node.kill9();
            shared.tally.add("kills", 1);
            let args = self.args();
            let node = node.restart(self.dir.path(), &args).await;
            self.nodes[at] = Some(node);
            begun.await.unwrap();
        }
    }

    /// Adds up what a node has counted since it started.
    async fn note(&self, at: usize, shared: &Shared) {
        let node = self.node(at);
        let counts = [
            ("folds", "everthread_folds_total", r#"result="done""#),
            ("folds raced", "everthread_folds_total", r#"result="raced""#),
            ("entries folded", "everthread_folded_entries_total", ""),
            ("archived", "everthread_archives_total", r#"result="archived""#),
            ("archiving given up", "everthread_archives_total", r#"result="busy""#),
            ("archiving failed", "everthread_archives_total", r#"result="failed""#),
            ("brought back", "everthread_restores_total", r#"result="restored""#),
            ("found brought back", "everthread_restores_total", r#"result="found""#),
            ("bringing back failed", "everthread_restores_total", r#"result="failed""#),
            ("trims", "everthread_retention_total", r#"what="trimmed""#),
            ("trims raced", "everthread_retention_total", r#"what="raced""#),
            ("blocks appended", "everthread_appends_total", r#"result="ok""#),
        ];
        for (what, metric, label) in counts {
            let n = node.metric(metric, label).await;
            // The sum of nothing is -0.
            shared.tally.add(what, format!("{:.0}", n.abs()).parse().unwrap());
        }
    }

    /// Waits until nothing goes on in any session, and tells the readers where the logs end.
    pub async fn rest(&self, shared: &Shared) {
        let mut ends = Vec::new();
        for session in &shared.sessions {
            let path = format!("/v1/sessions/{session}");
            let is_quiet = async |node: &Node| node.get(&path).await["runs"] == json!([]);
            self.node(0).wait_until("quiet", is_quiet).await;
            ends.push(seq_of(&self.node(0).get(&path).await));
        }
        shared.ends.send_replace(Some(ends));
    }

    /// Objects in the archive.
    fn objects(&self) -> usize {
        fn count(dir: &std::path::Path) -> usize {
            let inner = |entry: std::io::Result<std::fs::DirEntry>| {
                let path = entry.unwrap().path();
                if path.is_dir() { count(&path) } else { 1 }
            };
            std::fs::read_dir(dir).unwrap().map(inner).sum()
        }
        count(&self.dir.path().join("archive"))
    }

    /// Tells how much there was of everything, and checks that there was enough of it to prove anything.
    pub async fn report(&self, shared: &Shared, proof: &Proof) {
        for at in 0..NODES {
            self.note(at, shared).await;
        }
        let script = "EVAL \"return #redis.call('KEYS', '*:staged:*')\" 0";
        let staged = self.redis.command(script).await.unwrap();
        eprintln!("{proof}, {}", shared.tally.all());
        eprintln!("left behind: objects {}, staged {}", self.objects(), staged.trim());
        for field in FIELDS {
            assert!(shared.tally.of(field) > 0, "there was none: {field}");
        }
        assert_eq!(shared.tally.of("bringing back failed"), 0);
        assert_eq!(shared.tally.of("kills") > 0, shared.besides.has_kills());
        for field in ["trims", "resets", "starts from a base"] {
            assert_eq!(shared.tally.of(field) > 0, shared.besides.has_trims(), "{field}");
        }
    }
}
