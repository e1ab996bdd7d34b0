//! Object stores that fail, are slow, or hold something else than was written.

use crate::world::{Engine, World, head, is_archived, on_both_engines, say, session, view};
use async_trait::async_trait;
use everthread_protocol::{Seq, SessionKey};
use everthread_store::{ArchiveFault, Archived, Archiver as _, Error, Store as _};
use futures_util::FutureExt as _;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

on_both_engines!(
    a_session_that_cannot_be_written_stays,
    a_session_that_cannot_be_read_is_unavailable_until_it_can,
    a_broken_object_is_a_typed_error_and_nothing_is_lost,
    an_object_of_another_session_is_not_taken,
    who_gives_up_waiting_leaves_the_turn_to_the_next,
    an_object_store_that_hangs_is_given_up_and_works_again,
);

/// A store in memory that fails or waits when told to.
#[derive(Debug)]
struct Moody {
    inner: InMemory,
    fails_writes: AtomicBool,
    fails_reads: AtomicBool,
    /// Reads wait for one of these each, if they are counted.
    gate: Semaphore,
    is_gated: AtomicBool,
    reads: AtomicU32,
}

impl Moody {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            fails_writes: AtomicBool::new(false),
            fails_reads: AtomicBool::new(false),
            gate: Semaphore::new(0),
            is_gated: AtomicBool::new(false),
            reads: AtomicU32::new(0),
        })
    }

    fn set(flag: &AtomicBool, to: bool) {
        flag.store(to, Ordering::SeqCst);
    }
}

impl std::fmt::Display for Moody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("moody")
    }
}

fn broken(flag: &AtomicBool) -> Result<()> {
    if flag.load(Ordering::SeqCst) {
        return Err(object_store::Error::Generic { store: "moody", source: "not now".into() });
    }
    Ok(())
}

#[async_trait]
impl ObjectStore for Moody {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        broken(&self.fails_writes)?;
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        broken(&self.fails_writes)?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.is_gated.load(Ordering::SeqCst) {
            self.gate.acquire().await.unwrap().forget();
        }
        broken(&self.fails_reads)?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The one object of a session.
async fn object<E: Engine>(world: &World<E>, key: &SessionKey) -> (Path, bytes::Bytes) {
    let name = world.bucket.list(key).await.unwrap().pop().unwrap();
    let path = Path::from(format!("some/prefix/{}/{}/{name}", key.tenant, key.session));
    let bytes = world.objects.get(&path).await.unwrap().bytes().await.unwrap();
    (path, bytes)
}

async fn a_session_that_cannot_be_written_stays<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let node = world.node().await;
    let key = session(&*node, 10).await;
    let seen = view(&*node, &key).await;
    Moody::set(&moody.fails_writes, true);
    let failed = node.archive(&key).await.unwrap_err();
    assert!(matches!(failed, Error::Archive(ArchiveFault::Silent(_))), "{failed:?}");
    assert!(!is_archived(&*node, &key).await);
    assert_eq!(view(&*node, &key).await, seen);
    Moody::set(&moody.fails_writes, false);
    assert_eq!(node.archive(&key).await, Ok(Archived::Done));
}

async fn a_session_that_cannot_be_read_is_unavailable_until_it_can<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let node = world.node().await;
    let key = session(&*node, 10).await;
    let seen = view(&*node, &key).await;
    node.archive(&key).await.unwrap();
    Moody::set(&moody.fails_reads, true);
    let failed = node.load(&key).await.unwrap_err();
    assert!(failed.fault().code.is_retryable(), "{failed:?}");
    assert!(is_archived(&*node, &key).await);
    Moody::set(&moody.fails_reads, false);
    assert_eq!(view(&*node, &key).await, seen);
}

async fn a_broken_object_is_a_typed_error_and_nothing_is_lost<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 10).await;
    let seen = view(&*node, &key).await;
    node.archive(&key).await.unwrap();
    let (path, good) = object(&world, &key).await;
    let mut changed = good.to_vec();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    for bad in [&good[..good.len() / 2], &good[..good.len() - 9], &changed, b"", b"what is this?"] {
        world.objects.put(&path, bytes::Bytes::copy_from_slice(bad).into()).await.unwrap();
        let failed = node.load(&key).await.unwrap_err();
        assert!(matches!(failed, Error::Archive(ArchiveFault::Broken(_))), "{failed:?}");
        assert!(is_archived(&*node, &key).await, "it is not brought back in pieces");
    }
    world.objects.delete(&path).await.unwrap();
    assert!(matches!(node.read(&key, Seq::ZERO, 9).await, Err(Error::Archive(ArchiveFault::Broken(_)))));
    assert!(head(&*node, &key).await.is_some());

    // Somebody has a copy.
    world.objects.put(&path, good.into()).await.unwrap();
    assert_eq!(view(&*node, &key).await, seen);
}

async fn an_object_of_another_session_is_not_taken<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let (key, other) = (session(&*node, 10).await, session(&*node, 10).await);
    node.archive(&key).await.unwrap();
    node.archive(&other).await.unwrap();
    let (path, _) = object(&world, &key).await;
    let (_, bytes) = object(&world, &other).await;
    world.objects.put(&path, bytes.into()).await.unwrap();
    let failed = node.load(&key).await.unwrap_err();
    assert!(
        matches!(&failed, Error::Archive(ArchiveFault::Broken(why)) if why.contains(&other.to_string())),
        "{failed:?}"
    );
    assert!(node.load(&other).await.unwrap().is_some());
}

async fn who_gives_up_waiting_leaves_the_turn_to_the_next<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let node = world.node().await;
    let key = session(&*node, 10).await;
    node.archive(&key).await.unwrap();
    Moody::set(&moody.is_gated, true);
    let asked = moody.reads.load(Ordering::SeqCst) + 1;
    let mut first = Box::pin(node.load(&key));
    while moody.reads.load(Ordering::SeqCst) < asked {
        assert!((&mut first).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let mut second = Box::pin(node.load(&key));
    assert!((&mut second).now_or_never().is_none());
    // Its client is gone.
    drop(first);
    moody.gate.add_permits(1);
    assert!(second.await.unwrap().is_some());
}

async fn an_object_store_that_hangs_is_given_up_and_works_again<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let bucket = world.bucket.clone().patient_for(Duration::from_millis(50));
    let node = world.node_with(Some(bucket)).await;
    let key = session(&*node, 10).await;
    node.archive(&key).await.unwrap();
    Moody::set(&moody.is_gated, true);
    let failed = node.load(&key).await.unwrap_err();
    assert!(failed.fault().code.is_retryable(), "{failed:?}");
    Moody::set(&moody.is_gated, false);
    let before = head(&*node, &key).await.unwrap();
    let restored = async { node.load(&key).await.ok().flatten() };
    // The machine may be slow, too.
    let patient = world.node().await;
    let loaded = match restored.await {
        Some(loaded) => loaded,
        None => patient.load(&key).await.unwrap().unwrap(),
    };
    assert_eq!(loaded.head, before.seq);
    assert_eq!(say(&*node, &key).await.to, before.seq.next());
}
