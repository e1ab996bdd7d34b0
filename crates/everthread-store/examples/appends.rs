//! What an append costs: runs write tokens one after the other, each in a session of its own that one follower follows.
//!
//! `cargo run --release -p everthread-store --example appends 64` tells, for 64 runs, appends per second, and the CPU time per
//! append of this process and of Redis (AOF everysec). Needs `redis-server`. Every record must arrive, in order.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use everthread_protocol::{Fence, Record, RunId, SessionKey};
use everthread_store::redis::{Options, Redis};
use everthread_store::{Change, Follower, Following, Interest, Producer, Store, Write};
use everthread_testkit::{RedisOptions, RedisServer};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Appends of all runs in one round.
const APPENDS: u64 = 64_000;
const ROUNDS: u64 = 8;
const BY: &str = r#"{"kind":"agent","id":"guide"}"#;

type Failed = Box<dyn Error + Send + Sync>;

/// Counts what arrives.
#[derive(Default)]
struct Count {
    last: AtomicU64,
    heard: AtomicU64,
}

impl Follower for Count {
    fn record(&self, record: Record) {
        let before = self.last.swap(record.to.0, Ordering::Relaxed);
        assert!(before == 0 || before + 1 == record.from.0, "{before} {}", record.from);
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    fn changed(&self) {}

    fn doubt(&self) {}
}

/// One session with a run.
struct Run {
    key: SessionKey,
    run: RunId,
    fence: Fence,
    count: Arc<Count>,
    _following: Following,
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args = ["--appendonly", "yes", "--appendfsync", "everysec"].map(str::to_owned).to_vec();
    let server = RedisServer::start_with(RedisOptions { args, ..RedisOptions::default() }).await?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let options = Options::new(server.url(), "et", "n1".parse()?);
    let store = Arc::new(Redis::connect(options, &tasks, &stop).await?);
    let mut runs = Vec::new();
    let count: u64 = std::env::args().nth(1).map_or(Ok(64), |count| count.parse())?;
    let each = APPENDS / count;
    for n in 0..count {
        runs.push(Arc::new(open(&store, n).await?));
    }
    for round in 0..ROUNDS {
        let (began, own, redis) = (Instant::now(), own_cpu()?, redis_cpu(&server).await?);
        let writers: Vec<_> = runs
            .iter()
            .map(|run| tasks.spawn(write(store.clone(), run.clone(), round * each, each)))
            .collect();
        for writer in writers {
            writer.await??;
        }
        let all = (count * each) as f64;
        println!(
            "{:.0} appends/s, CPU per append: {:.1} µs here, {:.1} µs in Redis",
            all / began.elapsed().as_secs_f64(),
            (own_cpu()? - own) * 1e6 / all,
            (redis_cpu(&server).await? - redis) * 1e6 / all,
        );
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let heard: u64 = runs.iter().map(|run| run.count.heard.load(Ordering::Relaxed)).sum();
    println!("{heard} of {} records heard", count * each * ROUNDS);
    stop.cancel();
    Ok(())
}

/// Opens a session with a run that has its fence.
async fn open(store: &Redis, n: u64) -> Result<Run, Failed> {
    let (key, run): (SessionKey, RunId) =
        (format!("default/s{n}").parse()?, format!("01JD8V6Q4ZR1X5T0M3N2B7C{n:03}").parse()?);
    let state = format!("{{\"schema\":2,\"more\":\"{}\"}}", "x".repeat(300));
    let change = Change {
        expect: None,
        state: &state,
        next_due: None,
        grant: Some(&run),
        lease_ms: 600_000,
        revoke: &[],
        unwritten: None,
    };
    let opened = Write {
        by: BY,
        run: None,
        entries: r#"[{"type":"session.opened"}]"#,
        count: 1,
        producer: None,
        fence: None,
        change: Some(change),
        not_after: None,
    };
    let written = store.write(&key, opened).await?;
    let count = Arc::new(Count::default());
    let following = store.follow(&key, Interest::Log, count.clone());
    let fence = written.fence.ok_or("no fence")?;
    Ok(Run { key, run, fence, count, _following: following })
}

async fn write(store: Arc<Redis>, run: Arc<Run>, done: u64, count: u64) -> Result<(), Failed> {
    let producer = format!("run:{}", run.run);
    for batch in done + 1..=done + count {
        let entries = format!(
            r#"[{{"type":"part.append","message":"m1","part":"p1","offset":{},"text":"Hell"}}]"#,
            batch * 4
        );
        let write = Write {
            by: BY,
            run: Some(&run.run),
            entries: &entries,
            count: 1,
            producer: Some(Producer { key: &producer, incarnation: 1, batch, answer: "" }),
            fence: Some((&run.run, run.fence)),
            change: None,
            not_after: None,
        };
        store.write(&run.key, write).await?;
    }
    Ok(())
}

/// Seconds of CPU that this process has had.
fn own_cpu() -> Result<f64, Failed> {
    // Behind the name, which ends with the last parenthesis: user and system time are the 12th and 13th, in hundredths.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rsplit_once(')').ok_or("no stat")?.1;
    let ticks: Result<Vec<f64>, _> = rest.split_whitespace().skip(11).take(2).map(str::parse).collect();
    Ok(ticks?.iter().sum::<f64>() / 100.0)
}

/// Seconds of CPU that the server's main thread has had.
async fn redis_cpu(server: &RedisServer) -> Result<f64, Failed> {
    let told = server.command("INFO cpu").await?;
    let of = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let user = of("used_cpu_user_main_thread:").ok_or("no INFO cpu")?;
    Ok(user + of("used_cpu_sys_main_thread:").ok_or("no INFO cpu")?)
}
