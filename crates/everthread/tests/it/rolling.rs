//! Every node of a deployment is replaced, one after the other, behind a load balancer and under load: agents write, people
//! ask and follow, over WebSocket and SSE. Nobody misses an entry or gets one twice, and no run is lost or even begun anew.

use crate::history::History;
use crate::node::{Follower, Node, PATIENCE, TOKEN};
use everthread_client::{Client, Event, Follow, From};
use everthread_session::view::RunStatus;
use everthread_testkit::{Balancer, RedisOptions, RedisServer};
use everthread_worker::{CancellationToken, Error, Role, Run, Worker};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const NODES: usize = 3;
const SESSIONS: usize = 8;
/// Followers of each session over WebSocket, besides the one who asks, and over SSE.
const FOLLOWERS: usize = 4;
const STREAMS: usize = 2;
const WORKERS: usize = 4;
/// Tokens of one answer, and between two of them: an answer outlives the restart of a node.
const TOKENS: usize = 60;
const TOKEN_PAUSE: Duration = Duration::from_millis(50);
const DRAIN: [&str; 2] = ["--drain-ms", "3000"];
/// The binary of another release, from which the nodes are upgraded to this one; else from this one.
const OLD_BINARY: &str = "EVERTHREAD_OLD_BINARY";

/// What all that follow have seen.
#[derive(Default)]
struct Seen {
    /// From the last entry before a connection ended to the first after it.
    stalls: Mutex<Vec<Duration>>,
    /// Runs that have ended.
    ended: AtomicUsize,
}

impl Seen {
    fn tell(&self) {
        let mut stalls = self.stalls.lock().unwrap().clone();
        stalls.sort();
        let at = |percent: usize| stalls[(stalls.len() - 1) * percent / 100];
        let (middle, most, worst) = (at(50), at(99), at(100));
        println!("{} interruptions: p50 {middle:?}, p99 {most:?}, longest {worst:?}", stalls.len());
    }
}

async fn write(run: Run) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    for number in 0..TOKENS {
        text.append(&format!("{number} ")).await?;
        tokio::time::sleep(TOKEN_PAUSE).await;
    }
    message.complete().await
}

/// A worker in a thread of its own, until the token fires.
fn serve(url: &str, stop: &CancellationToken) {
    let capacity = u32::try_from(SESSIONS).unwrap();
    let worker = Worker::builder(url, TOKEN).agent("writer", capacity, write).connect().unwrap();
    let stop = stop.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(worker.run(stop)).unwrap();
    });
}

/// Takes a follower's events; every frame must be the one that follows.
struct Eyes {
    follow: Follow,
    seen: Arc<Seen>,
    to: u64,
    last: Instant,
    is_away: bool,
    interruptions: usize,
}

impl Eyes {
    async fn open(client: &Client, session: &str, seen: &Arc<Seen>) -> Eyes {
        let follow = client.follow(session.parse().unwrap(), From::Start).await.unwrap();
        let seen = seen.clone();
        Eyes { follow, seen, to: 0, last: Instant::now(), is_away: false, interruptions: 0 }
    }

    /// Looks until the view is as wanted.
    async fn until(&mut self, what: &str, is_so: impl Fn(&everthread_session::view::View) -> bool) {
        while !self.follow.view().is_some_and(&is_so) {
            let next = tokio::time::timeout(PATIENCE, self.follow.next()).await;
            match next.unwrap_or_else(|_| panic!("never: {what}")).expect("the client gave up") {
                Event::Entries(frame) => {
                    let (from, to) = (frame.from.0, frame.to.0);
                    assert!(from <= self.to + 1 && self.to < to, "{what}: {from}..{to} after {}", self.to);
                    self.to = to;
                    if std::mem::take(&mut self.is_away) {
                        self.seen.stalls.lock().unwrap().push(self.last.elapsed());
                    }
                    self.last = Instant::now();
                }
                Event::Disconnected => {
                    self.interruptions += 1;
                    self.is_away = true;
                }
                Event::Attached { resumed, .. } => assert!(resumed, "{what}: the cursor was not taken"),
                Event::Live(_) | Event::Lag(_) => {}
                other => panic!("{what}: {other:?}"),
            }
        }
    }
}

/// Asks again whenever an answer is there, until told to stop; the runs, and how often its connection was lost.
async fn ask(url: String, session: String, seen: Arc<Seen>, stop: CancellationToken) -> (Vec<String>, usize) {
    let client = Client::builder(&url, TOKEN).connect();
    let mut eyes = Eyes::open(&client, &session, &seen).await;
    let mut runs = Vec::new();
    while !stop.is_cancelled() {
        let done = eyes.follow.session().input("go", None).await.unwrap();
        let run = done.run.unwrap();
        let is_over = |view: &everthread_session::view::View| {
            view.runs().iter().any(|found| found.run == run && found.status == RunStatus::Ended)
        };
        eyes.until(&format!("the end of {run}"), is_over).await;
        runs.push(run.to_string());
        seen.ended.fetch_add(1, Ordering::SeqCst);
    }
    (runs, eyes.interruptions)
}

/// Follows to the end of a session, which a value of it announces.
async fn watch(url: String, session: String, seen: Arc<Seen>) -> (String, Value, usize) {
    let client = Client::builder(&url, TOKEN).connect();
    let mut eyes = Eyes::open(&client, &session, &seen).await;
    let closed =
        |view: &everthread_session::view::View| serde_json::to_value(view).unwrap()["values"]["end"] == true;
    eyes.until("the end of the session", closed).await;
    let view = serde_json::to_value(eyes.follow.view().unwrap()).unwrap();
    (session, view, eyes.interruptions)
}

/// The same over SSE, as a browser does it: comes back with the last event's id, after the pause that it was told.
async fn stream(url: String, session: String) -> (usize, usize) {
    let (mut to, mut cursor, mut byes, mut lost) = (0, String::new(), 0, 0);
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE * 3, "the stream of {session} never ends");
        let Some(mut follower) = Follower::try_follow(&url, &session, &cursor).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut pause = None;
        while let Some((name, data)) = follower.next().await {
            match name.as_str() {
                "entries" => {
                    let (from, last) = (data["from"].as_u64().unwrap(), data["to"].as_u64().unwrap());
                    // Its id may be that of an earlier frame: what it has comes again and is dropped.
                    assert!(from <= to + 1, "{session}: {from}..{last} after {to}");
                    to = to.max(last);
                    if data.to_string().contains(r#""key":"end""#) {
                        return (byes, lost);
                    }
                }
                "bye" => pause = Some(data["after_ms"].as_u64().unwrap()),
                _ => {}
            }
        }
        cursor = follower.cursor;
        match pause {
            Some(pause) => {
                byes += 1;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            None => lost += 1,
        }
    }
}

struct Deployment {
    nodes: Vec<Node>,
    balancer: Balancer,
    redis: RedisServer,
    dir: tempfile::TempDir,
}

impl Deployment {
    async fn start(binary: &Path) -> Deployment {
        let options = RedisOptions { append_only: true, tcp: true, ..RedisOptions::default() };
        let (redis, dir) = (RedisServer::start_with(options).await.unwrap(), tempfile::tempdir().unwrap());
        let (any, url) = ("127.0.0.1:0", redis.url());
        let args = Self::args(&url);
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            nodes.push(Node::start_release(binary, dir.path(), any, any, &args).await);
        }
        let addresses = nodes.iter().map(|node| (node.listens(), node.listens_for_admin()));
        let balancer = Balancer::start(addresses).await.unwrap();
        Deployment { nodes, balancer, redis, dir }
    }

    fn args(redis: &str) -> Vec<&str> {
        ["serve", "--redis", redis].into_iter().chain(DRAIN).collect()
    }

    fn url(&self) -> String {
        format!("http://{}", self.balancer.address())
    }

    /// Stops a node as a deployment does, and starts this release in its place.
    async fn replace(&mut self, number: usize) {
        let mut node = self.nodes.remove(number);
        let status = tokio::task::block_in_place(|| node.terminate());
        assert!(status.success(), "{status}: {}", node.log());
        let (listen, admin) = (node.listens().to_string(), node.listens_for_admin().to_string());
        drop(node);
        let redis = self.redis.url();
        let node = Node::start_at(self.dir.path(), &listen, &admin, &Self::args(&redis)).await;
        self.nodes.insert(number, node);
    }
}

/// Replaces all nodes; how many streams were told good-bye.
async fn roll(old: &Path) -> usize {
    let mut deployment = Deployment::start(old).await;
    let (url, stop, seen) = (deployment.url(), CancellationToken::new(), Arc::<Seen>::default());
    for _ in 0..WORKERS {
        serve(&url, &stop);
    }
    let (mut askers, mut watchers, mut streams) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    let enough = CancellationToken::new();
    for number in 0..SESSIONS {
        let session = format!("s{number}");
        deployment.nodes[0].post("/v1/sessions", json!({ "session": session, "agent": "writer" })).await;
        let (url, asked) = (url.clone(), session.clone());
        let (here, enough) = (seen.clone(), enough.clone());
        let asking = url.clone();
        askers.spawn(async move { (asked.clone(), ask(asking, asked, here, enough).await) });
        for _ in 0..FOLLOWERS {
            watchers.spawn(watch(url.clone(), session.clone(), seen.clone()));
        }
        for _ in 0..STREAMS {
            streams.spawn(stream(url.clone(), session.clone()));
        }
    }
    for number in 0..NODES {
        // Every restart meets other answers.
        let has_moved = async |_: &Node| seen.ended.load(Ordering::SeqCst) >= number * SESSIONS / 2;
        deployment.nodes[number].wait_until("answers", has_moved).await;
        let before = deployment.balancer.open();
        deployment.replace(number).await;
        println!(
            "connections: {before:?}, and behind the restart of node {number}: {:?}",
            deployment.balancer.open()
        );
    }
    enough.cancel();
    let (mut runs, mut interruptions) = (Vec::new(), Vec::new());
    while let Some(asked) = askers.join_next().await {
        let (session, (asked, lost)) = asked.unwrap();
        interruptions.push(lost);
        runs.extend(asked.into_iter().map(|run| (session.clone(), run)));
    }
    for number in 0..SESSIONS {
        let entries = json!({ "entries": [{ "type": "state.set", "key": "end", "value": true }] });
        deployment.nodes[0].post(&format!("/v1/sessions/s{number}/entries"), entries).await;
    }
    let mut held = Vec::new();
    while let Some(watched) = watchers.join_next().await {
        let (session, view, lost) = watched.unwrap();
        interruptions.push(lost);
        held.push((session, view));
    }
    let (mut byes, mut cut) = (0, 0);
    while let Some(streamed) = streams.join_next().await {
        let (told, not_told) = streamed.unwrap();
        (byes, cut) = (byes + told, cut + not_told);
    }
    stop.cancel();

    let expected: String = (0..TOKENS).map(|number| format!("{number} ")).collect();
    let nodes: Vec<&Node> = deployment.nodes.iter().collect();
    for number in 0..SESSIONS {
        let session = format!("s{number}");
        let history = History::checked(&nodes, &session).await;
        for (_, run) in runs.iter().filter(|(of, _)| *of == session) {
            assert_eq!(history.end(run).body["outcome"], "completed", "{session} {run}");
            assert_eq!(history.text(run), expected, "{session} {run}");
            assert_eq!(history.of_run("run.started", run).len(), 1, "{session}: {run} was begun anew");
        }
        for (_, view) in held.iter().filter(|(of, _)| *of == session) {
            assert_eq!(*view, history.state, "{session}: a follower holds something else");
        }
    }
    println!(
        "{} runs, {} followers; {byes} streams were told good-bye, {cut} cut",
        runs.len(),
        interruptions.len()
    );
    seen.tell();
    let lost: usize = interruptions.iter().sum();
    assert!(runs.len() >= SESSIONS && lost >= interruptions.len() / 2, "{interruptions:?}");
    byes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_doubles_and_begins_nothing_anew() {
    let byes = roll(Path::new(env!("CARGO_BIN_EXE_everthread"))).await;
    assert!(byes > 0, "no stream was told that its node stops");
}

/// Without another release at hand it is this one, which must get along with itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_and_a_new_release_work_side_by_side_while_one_replaces_the_other() {
    let Some(old) = std::env::var_os(OLD_BINARY).map(PathBuf::from) else { return };
    roll(&old).await;
}
