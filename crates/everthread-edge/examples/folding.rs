//! What folding is worth: one long session, joined from the start before and after it is folded.
//!
//! `cargo run --release -p everthread-edge --example folding` writes 50 000 tokens in 200 messages by three agents, each
//! token a block of its own, attaches over a WebSocket, folds with the limits of a node, and attaches again. Needs
//! `redis-server`.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use axum::serve::ListenerExt as _;
use everthread_control::{Leases, TaskGroup};
use everthread_edge::auth::Auth;
use everthread_edge::folder::{Folder, Options};
use everthread_edge::metrics::Metrics;
use everthread_edge::reader::Reader;
use everthread_edge::{Config, Edge, http};
use everthread_protocol::{NodeId, RunId, SessionKey};
use everthread_store::embedded::{Durability, Embedded};
use everthread_store::redis::Redis;
use everthread_store::{Change, Store, Write, embedded, redis};
use everthread_testkit::RedisServer;
use futures_util::{SinkExt as _, StreamExt as _};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

const TOKENS: usize = 50_000;
const MESSAGES: usize = 200;
const AGENTS: [&str; 3] = ["guide", "critic", "researcher"];
/// Attaches whose median counts.
const ATTACHES: usize = 9;

type Failed = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let tasks = TaskGroup::new();
    let node: NodeId = "n1".parse()?;
    let server = RedisServer::start().await?;
    let tracker = tokio_util::task::TaskTracker::new();
    let options = redis::Options::new(server.url(), "et", node.clone());
    let store = Arc::new(Redis::connect(options, &tracker, &tasks.token()).await?);
    let key: SessionKey = "default/long".parse()?;
    let bytes_of = async |what: &str| -> Result<usize, Failed> {
        let answer = server.command(&format!("MEMORY USAGE et:{{{key}}}:{what} SAMPLES 0")).await?;
        Ok(answer.trim().trim_start_matches(':').parse().unwrap_or(0))
    };
    println!("Redis");
    let text = write(&*store, &key).await?;
    println!("  text: {} KB in {TOKENS} tokens, {MESSAGES} messages", text / 1024);
    let memory = async || -> Result<usize, Failed> { Ok(bytes_of("log").await? + bytes_of("folded").await?) };
    println!("  memory before: {} KB", memory().await? / 1024);
    compare(store, &node, &key, &tasks).await?;
    println!("  memory after: {} KB", memory().await? / 1024);

    println!("embedded");
    let dir = tempfile::tempdir()?;
    let options = embedded::Options { dir: Some(dir.path().to_owned()), durability: Durability::Crash };
    let store = Arc::new(Embedded::open(options)?);
    write(&*store, &key).await?;
    compare(store, &node, &key, &tasks).await?;
    tasks.close(Duration::from_secs(5)).await;
    Ok(())
}

/// Writes the session; bytes of its text.
async fn write<S: Store>(store: &S, key: &SessionKey) -> Result<usize, Failed> {
    let by = r#"{"kind":"system","id":"bench"}"#;
    let change = Change {
        expect: None,
        state: "{}",
        next_due: None,
        grant: None,
        lease_ms: 0,
        revoke: &[],
        unwritten: None,
    };
    let opened = r#"[{"type":"session.opened","meta":{"title":"A long talk"}}]"#;
    let blank = Write {
        by,
        run: None,
        entries: opened,
        count: 1,
        producer: None,
        fence: None,
        change: None,
        not_after: None,
    };
    store.write(key, Write { change: Some(change), ..blank }).await?;
    let mut whole = 0;
    for first in (0..MESSAGES).step_by(AGENTS.len()) {
        // The messages of a round are written side by side.
        let round = first..MESSAGES.min(first + AGENTS.len());
        let runs: Vec<RunId> = round
            .clone()
            .map(|n| format!("01JD8M3Z5Q7R9T2V4X6Y8A0{n:03}").parse())
            .collect::<Result<_, _>>()?;
        let authors = AGENTS.map(|agent| format!(r#"{{"kind":"agent","id":"{agent}"}}"#));
        let start = r#"[{"type":"message.start","message":"m","role":"assistant"},{"type":"part.start","message":"m","part":"p","kind":"text"}]"#;
        for (run, by) in runs.iter().zip(&authors) {
            store.write(key, Write { by, run: Some(run), entries: start, count: 2, ..blank }).await?;
        }
        let mut offset = 0;
        for token in 0..TOKENS / MESSAGES {
            let text = ["the ", "quick ", "brown ", "fox ", "jumps "][token % 5];
            let entries = format!(
                r#"[{{"type":"part.append","message":"m","part":"p","offset":{offset},"text":"{text}"}}]"#
            );
            for (run, by) in runs.iter().zip(&authors) {
                store.write(key, Write { by, run: Some(run), entries: &entries, ..blank }).await?;
                whole += text.len();
            }
            offset += text.len();
        }
        let end = r#"[{"type":"message.end","message":"m","status":"complete"}]"#;
        for (run, by) in runs.iter().zip(&authors) {
            store.write(key, Write { by, run: Some(run), entries: end, ..blank }).await?;
        }
    }
    Ok(whole)
}

/// Attaches, folds, and attaches again.
async fn compare<S: Store>(
    store: Arc<S>,
    node: &NodeId,
    key: &SessionKey,
    tasks: &TaskGroup,
) -> Result<(), Failed> {
    let config = Config {
        node: node.clone(),
        auth: Auth::new("secret".into(), key.tenant.clone(), Vec::new()),
        leases: Leases::default(),
        heartbeat: Duration::from_secs(25),
        stall_max: Duration::from_secs(60),
        presence: everthread_edge::presence::Times::default(),
        acks: everthread_control::Acks::default(),
        rebuild_every: Duration::from_secs(600),
        folding: Options::default(),
        archive: None,
        upgrades_per_s: everthread_edge::admission::UPGRADES_PER_S,
        retention: everthread_edge::retention::Options::default(),
    };
    let edge = Edge::start(store.clone(), config);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let routes = http::router(edge.clone());
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    tasks.spawn_until_stopped(async move { drop(axum::serve(listener, routes).await) });

    let (bytes, before) = attach(address, key).await?;
    println!("  attach before: {} KB in {:.1} ms", bytes / 1024, before * 1000.0);
    let folder = Folder::start(Reader::new(store.clone()), Options::default(), Metrics::new(), tasks);
    let started = Instant::now();
    folder.fold(key).await?;
    println!("  fold: {:.0} ms", started.elapsed().as_secs_f64() * 1000.0);
    let (bytes, after) = attach(address, key).await?;
    println!(
        "  attach after: {} KB in {:.1} ms, {:.1} times as fast",
        bytes / 1024,
        after * 1000.0,
        before / after
    );
    edge.drain(Duration::from_secs(1)).await;
    Ok(())
}

/// Joins from the start until it is live: bytes of all frames, and the median of the seconds that it takes.
async fn attach(address: SocketAddr, key: &SessionKey) -> Result<(usize, f64), Failed> {
    let (mut bytes, mut seconds) = (0, Vec::new());
    for _ in 0..ATTACHES {
        let mut request = format!("ws://{address}/v1/connect").into_client_request()?;
        request.headers_mut().insert("authorization", "Bearer secret".parse()?);
        request.headers_mut().insert("sec-websocket-protocol", "everthread.v1".parse()?);
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
        socket.send(Message::text(r#"{"t":"hello","id":"h","subject":"ann"}"#)).await?;
        socket.next().await.ok_or("no welcome")??;
        let started = Instant::now();
        let session = &key.session;
        let attach = format!(r#"{{"t":"attach","id":"a","session":"{session}","from":"start"}}"#);
        socket.send(Message::text(attach)).await?;
        bytes = 0;
        loop {
            let frame = socket.next().await.ok_or("closed")??.into_text()?;
            bytes += frame.len();
            if frame.starts_with(r#"{"t":"live""#) {
                break;
            }
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok((bytes, seconds[ATTACHES / 2]))
}
