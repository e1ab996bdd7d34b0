//! A node in a process of its own, and what a client sees of it over HTTP.

use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub const TOKEN: &str = "test-token";
/// How long a node that was told to stop still serves: longer than the balancer of the tests needs to notice.
const DRAIN_DELAY_MS: &str = "600";
/// For anything that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub struct Node {
    process: Child,
    is_alive: bool,
    pub url: String,
    pub admin: String,
    log: PathBuf,
}

impl Node {
    /// Starts `everthread` and waits until it is ready.
    pub async fn start(dir: &Path, args: &[&str]) -> Node {
        Self::start_at(dir, "127.0.0.1:0", "127.0.0.1:0", args).await
    }

    pub async fn start_at(dir: &Path, listen: &str, admin: &str, args: &[&str]) -> Node {
        Self::start_release(Path::new(env!("CARGO_BIN_EXE_everthread")), dir, listen, admin, args).await
    }

    /// Starts the binary of whatever release.
    pub async fn start_release(binary: &Path, dir: &Path, listen: &str, admin: &str, args: &[&str]) -> Node {
        let mut node = Self::spawn(binary, dir, listen, admin, args);
        node.until_up().await;
        node
    }

    /// Starts `everthread`, which may be far from ready: its admin port answers.
    pub async fn launch(dir: &Path, listen: &str, args: &[&str]) -> Node {
        let binary = Path::new(env!("CARGO_BIN_EXE_everthread"));
        let mut node = Self::spawn(binary, dir, listen, "127.0.0.1:0", args);
        node.until_it_tells(|node| !node.admin.is_empty()).await;
        node
    }

    /// A process that has not said anything yet.
    pub fn spawn(binary: &Path, dir: &Path, listen: &str, admin: &str, args: &[&str]) -> Node {
        let log = dir.join(format!("log-{:x}", rand_suffix()));
        let process = Command::new(binary)
            .args(args)
            .args(["--listen", listen, "--admin", admin, "--token", TOKEN, "--data-dir"])
            .arg(dir.join("data"))
            .env_remove("OPENAI_BASE_URL")
            // Not a flag: an older release does not know it.
            .env("EVERTHREAD_DRAIN_DELAY_MS", DRAIN_DELAY_MS)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Node { process, is_alive: true, url: String::new(), admin: String::new(), log }
    }

    /// Waits until it is ready.
    pub async fn until_up(&mut self) {
        self.until_it_tells(|node| !node.url.is_empty() && !node.admin.is_empty()).await;
        self.wait_until("ready", async |node: &Node| node.is_ready().await).await;
    }

    /// Waits for what it logs of its addresses.
    async fn until_it_tells(&mut self, is_enough: impl Fn(&Node) -> bool) {
        let started = Instant::now();
        while !is_enough(self) {
            let text = self.log();
            self.url = address(&text, "console: ", "/console").unwrap_or_default();
            self.admin = address(&text, "metrics: ", "/metrics").unwrap_or_default();
            assert!(self.process.try_wait().unwrap().is_none(), "it did not start: {text}");
            assert!(started.elapsed() < PATIENCE, "it did not start in time: {text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the admin port answers to whether it is ready.
    pub async fn readiness(&self) -> (u16, String) {
        let answer = http().get(format!("{}/readyz", self.admin)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// The same addresses and data again.
    pub async fn restart(self, dir: &Path, args: &[&str]) -> Node {
        let bare = |url: &str| url.trim_start_matches("http://").to_owned();
        let (listen, admin) = (bare(&self.url), bare(&self.admin));
        drop(self);
        Self::start_at(dir, &listen, &admin, args).await
    }

    /// Where clients reach it.
    pub fn listens(&self) -> std::net::SocketAddr {
        self.url.trim_start_matches("http://").parse().unwrap()
    }

    pub fn listens_for_admin(&self) -> std::net::SocketAddr {
        self.admin.trim_start_matches("http://").parse().unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn is_alive(&self) -> bool {
        self.is_alive
    }

    pub fn kill9(&mut self) {
        self.is_alive = false;
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn terminate(&mut self) -> ExitStatus {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.process.wait().unwrap()
    }

    pub async fn is_ready(&self) -> bool {
        let answer = http().get(format!("{}/readyz", self.admin)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Resident memory of the process.
    pub fn resident_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Posts, whatever the answer.
    pub async fn try_post(&self, path: &str, body: Value) -> Value {
        let request = http().post(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        request.body(body.to_string()).send().await.unwrap().json().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        let request = http().post(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    /// Posts as somebody; none if the node is not there or cannot now.
    pub async fn post_as(&self, subject: &str, path: &str, body: Value) -> Option<Value> {
        let request = http().post(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        let request = request.header("Everthread-Subject", subject).body(body.to_string());
        let answer = request.timeout(PATIENCE).send().await.ok()?;
        let status = answer.status();
        let body: Value = answer.json().await.ok()?;
        assert!(status.is_success() || body["error"]["retryable"] == true, "{path}: {status} {body}");
        status.is_success().then_some(body)
    }

    /// Asks something of a run and waits for its outcome for so long; the receipt.
    pub async fn control(&self, session: &str, body: Value, wait_ms: u32) -> Value {
        self.post(&format!("/v1/sessions/{session}/control?wait_ms={wait_ms}"), body).await
    }

    /// Puts input; what came of it.
    pub async fn input(&self, session: &str, body: Value) -> Value {
        self.post(&format!("/v1/sessions/{session}/input"), body).await
    }

    /// All that it counts.
    pub async fn metrics(&self) -> String {
        http().get(format!("{}/metrics", self.admin)).send().await.unwrap().text().await.unwrap()
    }

    /// A counter, over all of its labels that contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.metrics().await;
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    pub async fn get(&self, path: &str) -> Value {
        let request = http().get(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        request.send().await.unwrap().json().await.unwrap()
    }

    /// Asks and does not care for the answer.
    pub async fn ask_anything(&self, method: &str, path: &str) {
        let request = http().request(method.parse().unwrap(), format!("{}{path}", self.url));
        drop(request.bearer_auth(TOKEN).body("{}").send().await);
    }

    /// A session of an agent with one question in it; the run that was requested.
    pub async fn ask(&self, session: &str, agent: &str, text: &str) -> String {
        self.post("/v1/sessions", json!({ "session": session, "agent": agent })).await;
        let asked = self.post(&format!("/v1/sessions/{session}/input"), json!({ "text": text })).await;
        asked["run"].as_str().unwrap().to_owned()
    }

    /// Every record of a session, read page by page. Panics if a seq is missing or doubled.
    pub async fn records(&self, session: &str) -> Vec<Value> {
        let (mut out, mut after, mut seq) = (Vec::new(), "0".to_owned(), 0);
        loop {
            let page = self.get(&format!("/v1/sessions/{session}/entries?limit=5000&after={after}")).await;
            for record in page["records"].as_array().unwrap_or_else(|| panic!("{page}")) {
                assert_eq!(record["from"], seq + 1, "a gap or an overlap");
                let entries = |block: &Value| block["entries"].as_array().unwrap().len();
                seq += record["blocks"].as_array().unwrap().iter().map(entries).sum::<usize>();
                assert_eq!(record["to"], seq);
                out.push(record.clone());
            }
            after = page["cursor"].as_str().unwrap().to_owned();
            if page["live"] == true {
                return out;
            }
        }
    }

    /// Every entry of a session, in order.
    pub async fn entries(&self, session: &str) -> Vec<Value> {
        let records = self.records(session).await;
        let blocks = records.iter().flat_map(|record| record["blocks"].as_array().unwrap());
        blocks.flat_map(|block| block["entries"].as_array().unwrap()).cloned().collect()
    }

    pub async fn run_status(&self, session: &str, run: &str) -> (String, String) {
        let state = self.get(&format!("/v1/sessions/{session}/state")).await;
        let runs = state["runs"].as_array().unwrap();
        let found = runs.iter().find(|r| r["run"] == run).unwrap_or_else(|| panic!("no run {run}: {state}"));
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        (text("status"), text("outcome"))
    }

    pub async fn wait_until(&self, what: &str, is_so: impl AsyncFn(&Node) -> bool) {
        let started = Instant::now();
        while !is_so(self).await {
            assert!(started.elapsed() < PATIENCE, "never {what}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn http() -> reqwest::Client {
    // The first test of the process installs it; the others find it there.
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::new()
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn address(log: &str, before: &str, after: &str) -> Option<String> {
    let (_, rest) = log.split_once(before)?;
    Some(rest.split_once(after)?.0.to_owned())
}

fn rand_suffix() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

/// A follower over server-sent events.
pub struct Follower {
    pub cursor: String,
    response: reqwest::Response,
    buffer: String,
}

impl Follower {
    /// Follows at an address from a cursor, or from the start; none if nobody answers there now.
    pub async fn try_follow(url: &str, session: &str, cursor: &str) -> Option<Follower> {
        let mut request = http().get(format!("{url}/v1/sessions/{session}/follow")).bearer_auth(TOKEN);
        if !cursor.is_empty() {
            request = request.header("Last-Event-ID", cursor);
        }
        let response = request.send().await.ok().filter(|response| response.status().is_success())?;
        Some(Follower { cursor: cursor.to_owned(), response, buffer: String::new() })
    }

    pub async fn follow(node: &Node, session: &str) -> Follower {
        let response = http()
            .get(format!("{}/v1/sessions/{session}/follow", node.url))
            .bearer_auth(TOKEN)
            .send()
            .await
            .unwrap();
        assert!(response.status().is_success());
        Follower { cursor: String::new(), response, buffer: String::new() }
    }

    /// The same follower, after its connection was lost.
    pub async fn resume(self, node: &Node, session: &str) -> Follower {
        let response = http()
            .get(format!("{}/v1/sessions/{session}/follow", node.url))
            .bearer_auth(TOKEN)
            .header("Last-Event-ID", &self.cursor)
            .send()
            .await
            .unwrap();
        Follower { response, buffer: String::new(), ..self }
    }

    /// Reads the next event; none when the connection is gone.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.buffer = rest;
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let Some(data) = field("data: ") else { continue };
                let data: Value = serde_json::from_str(&data).unwrap();
                if let Some(cursor) = field("id: ") {
                    self.cursor = cursor;
                }
                let name = field("event: ").unwrap();
                assert_ne!(name, "reset", "the log is not the one that was known");
                return Some((name, data));
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("silence");
            self.buffer.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }
}
