//! Workers in processes of their own, which can be killed, frozen and woken.
//!
//! A worker's process is this test binary again, told by the environment to be one. What it does is in the input of each
//! run, what it has done in its diary: a file to which each thing is written before or after it happens, line by line.

use crate::node::{Node, PATIENCE, TOKEN};
use everthread_worker::{AgentOptions, Approval, CancellationToken, Error, Role, Run, Worker};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Its runs end as lost if it dies after it has written.
pub const ACTOR: &str = "actor";
/// Its runs go to another worker if it dies after it has written.
pub const PHOENIX: &str = "phoenix";
/// Digest of what `pay` asks about.
pub const DIGEST: &str = "ann:4200";
/// Runs at once.
const CAPACITY: u32 = 64;
/// Between two tokens.
const TOKEN_PAUSE: Duration = Duration::from_millis(5);
const URL: &str = "EVERTHREAD_TEST_WORKER_URL";
const DIARY: &str = "EVERTHREAD_TEST_WORKER_DIARY";

/// A worker's process.
pub struct Hand {
    process: Child,
    diary: PathBuf,
}

impl Hand {
    /// Starts a worker for the node at `url`. Its `name` must be its own within `dir`.
    pub fn start(dir: &Path, name: &str, url: &str) -> Hand {
        let diary = dir.join(format!("diary-{name}"));
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crew::a_worker_process_serves_until_its_test_is_gone", "--nocapture"])
            .env(URL, url)
            .env(DIARY, &diary)
            // It closes when this process ends, however that happens.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join(format!("log-{name}"))).unwrap())
            .spawn()
            .unwrap();
        Hand { process, diary }
    }

    pub fn kill9(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Freezes it: its sockets stay, nothing answers.
    pub fn freeze(&self) {
        self.signal("STOP");
        // The signal is sent, not yet delivered: frozen is when the kernel says so.
        let stat = format!("/proc/{}/stat", self.process.id());
        let started = Instant::now();
        while !std::fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('T') {
            assert!(started.elapsed() < PATIENCE, "it does not freeze");
        }
    }

    pub fn wake(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// What follows `verb` and `run` in each line of its diary that begins with them.
    pub fn noted(&self, verb: &str, run: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.diary).unwrap_or_default();
        // A line that is still being written has no end.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let begin = format!("{verb} {run} ");
        whole.lines().filter_map(|line| line.strip_prefix(&begin)).map(str::to_owned).collect()
    }

    pub fn has(&self, verb: &str, run: &str) -> bool {
        !self.noted(verb, run).is_empty()
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Waits until one of `hands` has noted `verb` about `run`; which one.
pub async fn who<'a>(node: &Node, hands: &'a [Hand], verb: &str, run: &str) -> &'a Hand {
    node.wait_until(&format!("{verb} {run}"), async |_| hands.iter().any(|hand| hand.has(verb, run))).await;
    hands.iter().find(|hand| hand.has(verb, run)).unwrap()
}

struct Diary(Arc<File>);

impl Diary {
    fn note(&self, verb: &str, run: &Run, rest: &str) {
        let line = format!("{verb} {} {} {rest}\n", run.id(), run.attempt());
        (&*self.0).write_all(line.as_bytes()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_process_serves_until_its_test_is_gone() {
    // Among the tests it is none: only who starts a worker sets this.
    let Ok(url) = std::env::var(URL) else { return };
    let diary =
        Arc::new(OpenOptions::new().create(true).append(true).open(std::env::var(DIARY).unwrap()).unwrap());
    std::thread::spawn(|| {
        drop(std::io::stdin().read(&mut [0]));
        std::process::exit(0);
    });
    drop(
        tracing_subscriber::fmt()
            .with_env_filter("info")
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .try_init(),
    );
    let act = move |run| act(run, Diary(diary.clone()));
    let worker = Worker::builder(url, TOKEN)
        .agent_with(ACTOR, CAPACITY, AgentOptions::new().steerable(), act.clone())
        .agent_with(PHOENIX, CAPACITY, AgentOptions::new().retry_lost(), act)
        .connect()
        .unwrap();
    worker.run(CancellationToken::new()).await.unwrap();
}

async fn act(run: Run, diary: Diary) -> Result<(), Error> {
    diary.note("began", &run, run.token());
    let result = perform(&run, &diary).await;
    let how = match (&result, run.cause()) {
        (_, Some(cause)) => format!("{cause:?}"),
        (Ok(()), None) => "done".to_owned(),
        (Err(error), None) => error.to_string(),
    };
    diary.note("left", &run, &how);
    result
}

/// Does what the first word of the input says.
async fn perform(run: &Run, diary: &Diary) -> Result<(), Error> {
    let input = run.input_text();
    match (input.split_whitespace().next().unwrap_or_default(), run.attempt()) {
        // An attempt that follows a death shows that somebody is there.
        ("short", _) | ("fresh" | "stream", 2..) => say(run, "done").await,
        // Takes the work and does nothing with it.
        ("fresh", _) => {
            run.cancelled().await;
            Ok(())
        }
        ("stream", _) => stream(run, true).await,
        // Hears no cancel: only what is refused stops it.
        ("deaf", _) => stream(run, false).await,
        ("listen", _) => listen(run).await,
        ("pay", _) => pay(run, diary).await,
        (other, _) => say(run, &format!("what is {other}?")).await,
    }
}

async fn say(run: &Run, text: &str) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    message.text().await?.append(text).await?;
    message.complete().await
}

async fn stream(run: &Run, hears: bool) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    let mut number = 0;
    while !hears || run.cause().is_none() {
        text.append(&format!("{number} ")).await?;
        number += 1;
        tokio::time::sleep(TOKEN_PAUSE).await;
    }
    Ok(())
}

/// Repeats what it is told, until that is `end`.
async fn listen(run: &Run) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    while let Some(steer) = run.next_steer().await {
        let told = steer.consume()?.text();
        text.append(&format!("[{told}]")).await?;
        if told == "end" {
            break;
        }
    }
    message.complete().await
}

async fn pay(run: &Run, diary: &Diary) -> Result<(), Error> {
    let answer = run.approve(Approval::new("pay", "Pay?").digest(DIGEST)).await?;
    if answer.is_approved() {
        diary.note("paid", run, "");
    }
    if run.input_text().ends_with("and wait") {
        // For whoever wants to see what happens before its end.
        drop(run.next_steer().await.map(|steer| steer.consume()));
    }
    say(run, if answer.is_approved() { "paid" } else { "not paid" }).await
}
