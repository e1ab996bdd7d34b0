//! What every test needs: nodes with one store and one bucket, and sessions to archive.

use everthread_archive::{Archive, Bucket, Options};
use everthread_protocol::entry::{ControlKind, Outcome, Target};
use everthread_protocol::{Cursor, Millis, Record, Seq, SessionKey, Version};
use everthread_session::State;
use everthread_session::state::{Control, ControlStage, Run, RunStatus};
use everthread_session::view::View;
use everthread_store::embedded::{Durability, Embedded, Options as EmbeddedOptions};
use everthread_store::redis::{Options as RedisOptions, Redis};
use everthread_store::{Change, Head, Store, Write, Written};
use everthread_testkit::RedisServer;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub const ALL: usize = 1 << 22;
pub const BY: &str = r#"{"kind":"system","id":"test"}"#;

/// Runs each test on both engines.
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<crate::world::OnEmbedded>().await;
            })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<crate::world::OnRedis>().await;
            })+
        }
    };
}
pub(crate) use on_both_engines;

/// A store that nodes share.
pub trait Engine: Send + Sync + 'static {
    type Store: Store;
    async fn start() -> Self;
    /// The store as one more node has it.
    async fn store(&self) -> Arc<Self::Store>;
    /// Checks that nothing is put aside in the store, where that can be seen.
    async fn has_nothing_staged(&self) {}
}

pub struct OnEmbedded(Arc<Embedded>, #[expect(dead_code, reason = "deletes it")] tempfile::TempDir);

impl Engine for OnEmbedded {
    type Store = Embedded;

    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions { dir: Some(dir.path().to_owned()), durability: Durability::Crash };
        Self(Arc::new(Embedded::open(options).unwrap()), dir)
    }

    async fn store(&self) -> Arc<Embedded> {
        self.0.clone()
    }
}

pub struct OnRedis {
    server: RedisServer,
    stop: CancellationToken,
    _ends: DropGuard,
}

impl Engine for OnRedis {
    type Store = Redis;

    async fn start() -> Self {
        let stop = CancellationToken::new();
        let server = RedisServer::start().await.unwrap();
        Self { server, stop: stop.clone(), _ends: stop.drop_guard() }
    }

    async fn store(&self) -> Arc<Redis> {
        let options = RedisOptions::new(self.server.url(), "et", "n1".parse().unwrap());
        Arc::new(Redis::connect(options, &TaskTracker::new(), &self.stop).await.unwrap())
    }

    async fn has_nothing_staged(&self) {
        let keys = self.server.command("KEYS et:*").await.unwrap();
        assert!(keys.contains(":meta") && !keys.contains("staged"), "{keys}");
    }
}

/// An engine and a bucket.
pub struct World<E> {
    pub engine: E,
    pub objects: Arc<dyn ObjectStore>,
    pub bucket: Bucket,
}

impl<E: Engine> World<E> {
    pub async fn start() -> Self {
        Self::with(Arc::new(InMemory::new())).await
    }

    pub async fn with(objects: Arc<dyn ObjectStore>) -> Self {
        let bucket = Bucket::on(objects.clone(), Path::from("some/prefix"));
        bucket.begin().await.unwrap();
        Self { engine: E::start().await, objects, bucket }
    }

    /// One more node.
    pub async fn node(&self) -> Arc<Archive<E::Store>> {
        self.node_with(Some(self.bucket.clone())).await
    }

    pub async fn node_with(&self, bucket: Option<Bucket>) -> Arc<Archive<E::Store>> {
        let options = bucket.map(|bucket| Options {
            pause: Duration::from_millis(20),
            ..Options::new(bucket, Duration::from_secs(60))
        });
        Arc::new(Archive::new(self.engine.store().await, options))
    }
}

/// A key that no other test has.
pub fn fresh() -> SessionKey {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("acme/s{}", NEXT.fetch_add(1, Ordering::Relaxed)).parse().unwrap()
}

/// A state in which nothing goes on, with something that lists show and something that they do not.
pub fn quiet() -> State {
    let mut state = State::new([("title".to_owned(), "a title".into())].into_iter().collect());
    let mut run = Run::requested("guide".parse().unwrap(), vec!["m0".into()]);
    run.status = RunStatus::Ended { outcome: Outcome::Completed, at: Millis(5) };
    state.runs.insert("r1".parse().unwrap(), run);
    state.values.insert("k".into(), "v".into());
    state
}

/// One in which a run waits for a worker.
pub fn at_work() -> State {
    let mut state = quiet();
    state.runs.insert("r2".parse().unwrap(), Run::requested("guide".parse().unwrap(), Vec::new()));
    state
}

/// One in which a control waits for its outcome.
pub fn asked() -> State {
    let mut state = quiet();
    let control = Control {
        kind: ControlKind::Cancel,
        target: Target::Input("m9".parse().unwrap()),
        by: None,
        runs: Vec::new(),
        mode: None,
        message: None,
        number: 1,
        stage: ControlStage::Pending { expires: Millis(u64::MAX / 4) },
    };
    state.controls.insert("c1".parse().unwrap(), control);
    state
}

fn write(entries: &str, count: u32) -> Write<'_> {
    Write { by: BY, run: None, entries, count, producer: None, fence: None, change: None, not_after: None }
}

fn change(expect: Option<Version>, state: &str) -> Change<'_> {
    Change { expect, state, next_due: None, grant: None, lease_ms: 0, revoke: &[], unwritten: None }
}

/// A session of so many messages, the longer ones of some tokens each.
pub async fn session<S: Store>(store: &S, messages: u64) -> SessionKey {
    let key = fresh();
    let state = serde_json::to_string(&quiet()).unwrap();
    let opened = r#"[{"type":"session.opened","meta":{"title":"a title"}}]"#;
    let first = Write { change: Some(change(None, &state)), ..write(opened, 1) };
    store.write(&key, first).await.unwrap();
    let at = Millis(1);
    for n in 0..messages {
        let text = format!("message {n} é ").repeat(1 + usize::try_from(n % 7).unwrap() * 30);
        let entries = serde_json::json!([
            {"type": "message.put", "message": format!("m{n}"), "role": "user", "parts": [{"kind": "text", "value": text}]},
            {"type": "x-at", "n": at.0 + n}
        ]);
        store.write(&key, write(&entries.to_string(), 2)).await.unwrap();
    }
    key
}

/// Writes one entry.
pub async fn say<S: Store>(store: &S, key: &SessionKey) -> Written {
    store.write(key, write(r#"[{"type":"x-more"}]"#, 1)).await.unwrap()
}

/// Sets the state.
pub async fn decide<S: Store>(store: &S, key: &SessionKey, state: &State) -> Written {
    let version = store.load(key).await.unwrap().unwrap().version;
    let text = serde_json::to_string(state).unwrap();
    let decided =
        Write { change: Some(change(Some(version), &text)), ..write(r#"[{"type":"x-decided"}]"#, 1) };
    store.write(key, decided).await.unwrap()
}

pub async fn head<S: Store>(store: &S, key: &SessionKey) -> Option<Head> {
    store.heads(std::slice::from_ref(key)).await.unwrap().pop().unwrap()
}

pub async fn is_archived<S: Store>(store: &S, key: &SessionKey) -> bool {
    head(store, key).await.is_some_and(|head| head.archived)
}

/// Every record after a seq.
pub async fn read_all<S: Store>(store: &S, key: &SessionKey, after: Seq) -> Vec<Record> {
    let (mut records, mut after) = (Vec::new(), after);
    loop {
        let page = store.read(key, after, 300_000).await.unwrap();
        let Some(last) = page.records.last() else { return records };
        after = last.to;
        records.extend(page.records);
    }
}

/// What a client sees of the session.
pub async fn view<S: Store>(store: &S, key: &SessionKey) -> serde_json::Value {
    let epochs = store.load(key).await.unwrap().unwrap().epochs;
    let mut view = View::new();
    for record in read_all(store, key, Seq::ZERO).await {
        let since = epochs.iter().find(|(epoch, _)| *epoch == record.epoch).unwrap().1;
        view.apply(&record, since).unwrap();
    }
    serde_json::to_value(&view).unwrap()
}

pub fn cursor(head: &Head) -> Cursor {
    Cursor { epoch: head.epoch, seq: head.seq }
}
