//! Object stores that fail, are slow, or hold something else than was written.

use crate::world::{Engine, World, head, is_archived, on_both_engines, say, session, view};
use async_trait::async_trait;
use everthread_archive::{Archive, Bucket, Options};
use everthread_protocol::{Seq, SessionKey};
use everthread_store::{ArchiveFault, Archived, Archiver as _, Error, Store as _};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
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
    a_session_comes_back_also_when_nobody_waits_for_it_any_more,
    who_waits_too_long_is_told_to_try_again_and_the_session_comes_back,
    what_failed_is_not_read_again_and_again,
    what_was_staged_in_vain_is_gone,
    an_object_store_that_hangs_is_given_up_and_works_again,
    an_upload_that_fails_is_aborted,
    a_session_is_deleted_though_the_archive_is_down_unless_it_is_in_it,
    what_a_deletion_could_not_take_out_of_the_archive_is_swept,
    a_deletion_does_not_wait_for_an_archive_that_hangs,
    an_archive_whose_directory_is_away_says_so_and_has_everything_when_it_is_back,
);

/// A store in memory that fails or waits when told to.
#[derive(Debug)]
struct Moody {
    inner: InMemory,
    fails_writes: AtomicBool,
    fails_parts: Arc<AtomicBool>,
    fails_reads: AtomicBool,
    fails_lists: AtomicBool,
    fails_deletes: AtomicBool,
    hangs_deletes: AtomicBool,
    aborted: Arc<AtomicU32>,
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
            fails_parts: Arc::default(),
            fails_reads: AtomicBool::new(false),
            fails_lists: AtomicBool::new(false),
            fails_deletes: AtomicBool::new(false),
            hangs_deletes: AtomicBool::new(false),
            aborted: Arc::default(),
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
        let inner = self.inner.put_multipart_opts(path, options).await?;
        let (fails, aborted) = (self.fails_parts.clone(), self.aborted.clone());
        Ok(Box::new(Parts { inner, fails, aborted }))
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
        if let Err(error) = broken(&self.fails_deletes) {
            return futures_util::stream::once(async { Err(error) }).boxed();
        }
        if self.hangs_deletes.load(Ordering::SeqCst) {
            return futures_util::stream::pending().boxed();
        }
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = broken(&self.fails_lists) {
            return futures_util::stream::once(async { Err(error) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An upload that fails when told to, and counts whether it is aborted.
#[derive(Debug)]
struct Parts {
    inner: Box<dyn MultipartUpload>,
    fails: Arc<AtomicBool>,
    aborted: Arc<AtomicU32>,
}

#[async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match broken(&self.fails) {
            Ok(()) => self.inner.put_part(data),
            Err(error) => async { Err(error) }.boxed(),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.aborted.fetch_add(1, Ordering::SeqCst);
        self.inner.abort().await
    }
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
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
    until("it is read again", async || node.load(&key).await.is_ok()).await;
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
        // One that has not yet failed with it.
        let node = world.node().await;
        let failed = node.load(&key).await.unwrap_err();
        assert!(matches!(failed, Error::Archive(ArchiveFault::Broken(_))), "{failed:?}");
        assert!(is_archived(&*node, &key).await, "it is not brought back in pieces");
    }
    world.objects.delete(&path).await.unwrap();
    let node = world.node().await;
    let missing = node.load(&key).await.unwrap_err().fault();
    assert_eq!((missing.code.as_str(), missing.message.contains("archive")), ("archive_broken", true));
    assert!(matches!(node.read(&key, Seq::ZERO, 9).await, Err(Error::Archive(ArchiveFault::Broken(_)))));
    assert!(head(&*node, &key).await.is_some());

    // Somebody has a copy.
    world.objects.put(&path, good.into()).await.unwrap();
    until("it is found", async || node.load(&key).await.is_ok()).await;
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

async fn a_session_comes_back_also_when_nobody_waits_for_it_any_more<E: Engine>() {
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
    // Their clients are gone.
    drop((first, second));
    moody.gate.add_permits(1);
    until("it is back", async || !is_archived(&*node, &key).await).await;
    assert_eq!(moody.reads.load(Ordering::SeqCst), asked, "it was read once");
}

async fn who_waits_too_long_is_told_to_try_again_and_the_session_comes_back<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let node = world.node_with(Some(world.bucket.clone().patient_for(Duration::from_secs(600)))).await;
    let (key, other) = (session(&*node, 10).await, session(&*node, 1).await);
    node.archive(&key).await.unwrap();
    Moody::set(&moody.is_gated, true);
    // More than may wait at once, so some are told at once and some after a while.
    let told = futures_util::future::join_all((0..60).map(|_| node.load(&key))).await;
    for failed in told {
        let failed = failed.unwrap_err();
        assert!(matches!(failed, Error::Archive(ArchiveFault::Busy(_))), "{failed:?}");
        let fault = failed.fault();
        assert!(fault.code.is_retryable() && fault.message.contains("try again"), "{fault:?}");
    }
    assert!(node.load(&other).await.unwrap().is_some());
    moody.gate.add_permits(1);
    until("it is back", async || !is_archived(&*node, &key).await).await;
}

async fn what_failed_is_not_read_again_and_again<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let options =
        Options { pause: Duration::from_secs(600), ..Options::new(world.bucket.clone(), Duration::ZERO) };
    let node = Archive::new(world.engine.store().await, Some(options));
    let key = session(&node, 10).await;
    node.archive(&key).await.unwrap();
    Moody::set(&moody.fails_reads, true);
    let before = moody.reads.load(Ordering::SeqCst);
    for _ in 0..50 {
        let failed = node.load(&key).await.unwrap_err();
        assert!(matches!(failed, Error::Archive(ArchiveFault::Silent(_))), "{failed:?}");
    }
    assert_eq!(moody.reads.load(Ordering::SeqCst), before + 1);
}

async fn what_was_staged_in_vain_is_gone<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let key = session(&*node, 1_500).await;
    node.archive(&key).await.unwrap();
    let (path, good) = object(&world, &key).await;
    let end = good.len() - 9;
    world.objects.put(&path, good.slice(..end).into()).await.unwrap();
    assert!(node.load(&key).await.is_err());
    world.engine.has_nothing_staged().await;
}

async fn an_upload_that_fails_is_aborted<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let key = "acme/large".parse().unwrap();
    let large = vec![7; 6 << 20];
    Moody::set(&moody.fails_parts, true);
    let mut upload = world.bucket.upload(&key, "x");
    assert!(upload.push(&large).await.is_err());
    upload.abort().await;
    assert_eq!(moody.aborted.load(Ordering::SeqCst), 1);

    // Nor does one stay that cannot be ended.
    Moody::set(&moody.fails_parts, false);
    let mut upload = world.bucket.upload(&key, "y");
    upload.push(&large).await.unwrap();
    Moody::set(&moody.fails_parts, true);
    assert!(upload.finish().await.is_err());
    upload.abort().await;
    assert_eq!(moody.aborted.load(Ordering::SeqCst), 2);
}

async fn a_session_is_deleted_though_the_archive_is_down_unless_it_is_in_it<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let node = world.node().await;
    let (never, once, now) = (session(&*node, 3).await, session(&*node, 3).await, session(&*node, 3).await);
    node.archive(&once).await.unwrap();
    say(&*node, &once).await;
    node.archive(&now).await.unwrap();
    Moody::set(&moody.fails_lists, true);
    Moody::set(&moody.fails_deletes, true);
    for key in [&never, &once] {
        assert!(node.delete(key).await.unwrap().is_some());
        assert_eq!(head(&*node, key).await, None);
    }
    let failed = node.delete(&now).await.unwrap_err();
    assert!(matches!(failed, Error::Archive(ArchiveFault::Silent(_))), "{failed:?}");
    assert!(is_archived(&*node, &now).await);

    Moody::set(&moody.fails_lists, false);
    Moody::set(&moody.fails_deletes, false);
    assert!(node.load(&now).await.unwrap().is_some());
    assert_eq!(world.bucket.list(&once).await.unwrap().len(), 1);
    node.sweep(&once).await.unwrap();
    assert!(world.bucket.list(&once).await.unwrap().is_empty());
    node.sweep(&now).await.unwrap();
    assert_eq!(world.bucket.list(&now).await.unwrap().len(), 1, "it is there");
}

async fn what_a_deletion_could_not_take_out_of_the_archive_is_swept<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let node = world.node().await;
    let key = session(&*node, 3).await;
    node.archive(&key).await.unwrap();
    Moody::set(&moody.fails_deletes, true);
    let failed = node.delete(&key).await.unwrap_err();
    assert!(matches!(failed, Error::Archive(ArchiveFault::Left(_))), "{failed:?}");
    let code = failed.fault().code;
    assert!(code.is_retryable() && !code.has_no_side_effects(), "{code:?}");
    assert_eq!(head(&*node, &key).await, None, "the session went first");
    // It is due at once, for whoever sweeps.
    let due = node.claim_due(10).await.unwrap();
    assert!(due.iter().any(|due| due.key == key), "{due:?}");
    assert!(node.sweep(&key).await.is_err());
    Moody::set(&moody.fails_deletes, false);
    assert_eq!(node.delete(&key).await.unwrap(), None);
    assert!(world.bucket.list(&key).await.unwrap().is_empty());
}

async fn a_deletion_does_not_wait_for_an_archive_that_hangs<E: Engine>() {
    let moody = Moody::new();
    let world = World::<E>::with(moody.clone()).await;
    let node = world.node().await;
    let key = session(&*node, 3).await;
    node.archive(&key).await.unwrap();
    Moody::set(&moody.hangs_deletes, true);
    // Less than the object store is given for every try.
    let deleted = tokio::time::timeout(Duration::from_secs(40), node.delete(&key)).await;
    let failed = deleted.expect("whoever deletes waits for every try").unwrap_err();
    assert!(matches!(failed, Error::Archive(ArchiveFault::Left(_))), "{failed:?}");
    assert_eq!(head(&*node, &key).await, None, "the session went first");
    Moody::set(&moody.hangs_deletes, false);
    node.sweep(&key).await.unwrap();
    assert!(world.bucket.list(&key).await.unwrap().is_empty());
}

async fn an_archive_whose_directory_is_away_says_so_and_has_everything_when_it_is_back<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let (place, aside) = (dir.path().join("archive"), dir.path().join("aside"));
    let bucket = Bucket::open(&format!("file://{}", place.display()), []).unwrap();
    bucket.begin().await.unwrap();
    let world = World::<E>::start().await;
    let node = world.node_with(Some(bucket.clone())).await;
    let (key, live) = (session(&*node, 10).await, session(&*node, 3).await);
    let seen = view(&*node, &key).await;
    node.archive(&key).await.unwrap();
    std::fs::rename(&place, &aside).unwrap();
    for is_empty_there in [false, true] {
        if is_empty_there {
            std::fs::create_dir(&place).unwrap();
        }
        for failed in [
            node.load(&key).await.unwrap_err(),
            node.delete(&key).await.unwrap_err(),
            node.archive(&live).await.unwrap_err(),
        ] {
            assert!(matches!(failed, Error::Archive(ArchiveFault::Silent(_))), "{failed:?}");
            assert!(failed.fault().message.contains("archive does not answer"));
        }
        assert!(is_archived(&*node, &key).await && !is_archived(&*node, &live).await);
    }
    assert!(node.delete(&live).await.unwrap().is_some());
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "nothing is made in its place");
    std::fs::remove_dir(&place).unwrap();
    std::fs::rename(&aside, &place).unwrap();
    until("it is back", async || node.load(&key).await.is_ok()).await;
    assert_eq!(view(&*node, &key).await, seen);
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
