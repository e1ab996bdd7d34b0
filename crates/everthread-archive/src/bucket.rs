//! Where archived sessions are: a folder per session in a directory, or in a bucket of S3, Google Cloud or Azure.
//!
//! The only place that speaks to `object_store`. Every step has a deadline. **Invariant:** an object is whole or not there;
//! its name is never used again, so one that is read or deleted is the one that was meant. And whatever is said not to be
//! there was looked for in the place itself: one that is not mounted, or was emptied, has lost its [`marker`], and answers
//! nothing at all.

mod leftovers;
mod marker;
mod upload;

pub use upload::Upload;

use crate::Error;
use bytes::Bytes;
use everthread_protocol::SessionKey;
use futures_util::{Stream, TryStreamExt as _};
use marker::Known;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, ObjectStoreScheme};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long one step may take, its repetitions included: a request, a part of an upload, the next bytes of an object.
const STEP_MAX: Duration = Duration::from_secs(15);
/// What every object's name ends with.
const SUFFIX: &str = ".jsonl.gz";

/// A place for objects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// What every name begins with.
    prefix: Path,
    /// If it is a directory.
    dir: Option<PathBuf>,
    step_max: Duration,
    known: Known,
}

impl Bucket {
    /// The place that a URL names: `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or
    /// `memory:///` for tests. `options` are settings of the cloud by the names of its variables (`AWS_REGION`, …); others
    /// are ignored. A directory is made here and never later; nothing else is asked of the place yet.
    pub fn open(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Bucket, Error> {
        let parsed = url::Url::parse(url).map_err(|error| Error::Url(error.to_string()))?;
        let (scheme, path) =
            ObjectStoreScheme::parse(&parsed).map_err(|error| Error::Url(error.to_string()))?;
        if !matches!(scheme, ObjectStoreScheme::Local) {
            let (store, prefix) = object_store::parse_url_opts(&parsed, options)?;
            return Ok(Bucket::on(store.into(), prefix));
        }
        let dir =
            parsed.to_file_path().map_err(|()| Error::Url(format!("{path} is no path of this machine")))?;
        let failed = |error: std::io::Error| Error::Url(format!("{}: {error}", dir.display()));
        std::fs::create_dir_all(&dir).map_err(failed)?;
        // What is archived leaves the store: it must outlive a power cut before that.
        let store = LocalFileSystem::new_with_prefix(&dir)?.with_fsync(true).with_automatic_cleanup(true);
        Ok(Bucket { dir: Some(dir), ..Bucket::on(Arc::new(store), Path::default()) })
    }

    /// On an object store of the caller's.
    pub fn on(store: Arc<dyn ObjectStore>, prefix: Path) -> Bucket {
        Bucket { store, prefix, dir: None, step_max: STEP_MAX, known: Known::default() }
    }

    /// Whether it is a directory of this machine.
    pub fn is_directory(&self) -> bool {
        self.dir.is_some()
    }

    /// The same with another deadline for every step.
    pub fn patient_for(self, step_max: Duration) -> Bucket {
        Bucket { step_max, ..self }
    }

    /// A name for an object of a session at its `changes`th change, never used before.
    pub fn fresh_name(key: &SessionKey, changes: u64) -> String {
        let nonce = ulid::Ulid::generate().to_string().to_lowercase();
        format!("{changes}-{nonce}-{}", ending(key))
    }

    /// Begins an object.
    pub fn upload(&self, key: &SessionKey, name: &str) -> Upload {
        Upload::new(self.clone(), self.path(key, name))
    }

    /// The bytes of an object, as they come.
    pub async fn read(
        &self,
        key: &SessionKey,
        name: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let got = match self.within(self.store.get(&self.path(key, name))).await {
            Err(Error::Bucket(object_store::Error::NotFound { .. })) => {
                self.is_here().await?;
                return Err(Error::Missing(name.to_owned()));
            }
            got => got?,
        };
        let bucket = self.clone();
        let pieces =
            futures_util::stream::unfold((got.into_stream(), bucket), |(mut pieces, bucket)| async {
                let piece = bucket.within(pieces.try_next()).await.transpose()?;
                Some((piece, (pieces, bucket)))
            });
        Ok(Box::pin(pieces))
    }

    /// Deletes an object; one that is not there is deleted.
    pub async fn delete(&self, key: &SessionKey, name: &str) -> Result<(), Error> {
        match self.within(self.store.delete(&self.path(key, name))).await {
            Err(Error::Bucket(object_store::Error::NotFound { .. })) => self.is_here().await,
            deleted => deleted,
        }
    }

    /// Names of all objects of a session.
    pub async fn list(&self, key: &SessionKey) -> Result<Vec<String>, Error> {
        let listed = self.store.list(Some(&self.folder(key)));
        let names =
            listed.try_filter_map(|object| async move { Ok(object.location.filename().map(str::to_owned)) });
        // A file system that knows no case has other sessions' objects in the same folder.
        let ending = ending(key);
        let names: Vec<String> = self.within(names.try_collect()).await?;
        self.is_here().await?;
        Ok(names.into_iter().filter(|name| name.ends_with(&ending)).collect())
    }

    /// Writes, reads and deletes a small object: whether the place can be used.
    pub async fn check(&self) -> Result<(), Error> {
        let nonce = ulid::Ulid::generate().to_string().to_lowercase();
        let path = self.prefix.clone().join(format!("check-{nonce}"));
        let content = Bytes::from(nonce);
        self.within(self.store.put(&path, content.clone().into())).await?;
        let read = self.within(async { self.store.get(&path).await?.bytes().await }).await?;
        self.within(self.store.delete(&path)).await?;
        if read != content {
            return Err(Error::Url("what was written is not what is read".to_owned()));
        }
        Ok(())
    }

    async fn within<T>(
        &self,
        step: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.step_max, step).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Error::Slow),
        }
    }

    fn folder(&self, key: &SessionKey) -> Path {
        self.prefix.clone().join(key.tenant.as_str()).join(key.session.as_str())
    }

    fn path(&self, key: &SessionKey, name: &str) -> Path {
        self.folder(key).join(name)
    }
}

/// How the names of a session's objects end.
fn ending(key: &SessionKey) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.to_string().as_bytes());
    let digest: String = digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{digest}{SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::upload::PART_BYTES;
    use super::*;

    async fn all(bucket: &Bucket, key: &SessionKey, name: &str) -> Result<Vec<u8>, Error> {
        let pieces = bucket.read(key, name).await?;
        pieces
            .try_fold(Vec::new(), |mut all, piece| async move {
                all.extend_from_slice(&piece);
                Ok(all)
            })
            .await
    }

    async fn works(bucket: &Bucket) {
        bucket.check().await.unwrap();
        let begun = bucket.is_here().await;
        assert!(matches!(begun, Err(Error::Away(_))), "nothing is said before it is taken into use");
        bucket.begin().await.unwrap();
        bucket.begin().await.unwrap();
        let key: SessionKey = "acme/..x".parse().unwrap();
        let other: SessionKey = "acme/...".parse().unwrap();
        let large: Vec<u8> = (0..=250).cycle().take(PART_BYTES * 2 + 17).collect();
        for content in [&large[..], &large[..PART_BYTES], &large[..9], &[]] {
            let name = Bucket::fresh_name(&key, 3);
            let mut upload = bucket.upload(&key, &name);
            for piece in content.chunks(700_001) {
                upload.push(piece).await.unwrap();
            }
            assert!(!bucket.list(&key).await.unwrap().contains(&name));
            upload.finish().await.unwrap();
            assert_eq!(all(bucket, &key, &name).await.unwrap(), content);
            assert_eq!(bucket.list(&key).await.unwrap(), [&*name]);
            assert!(bucket.list(&other).await.unwrap().is_empty());
            bucket.delete(&key, &name).await.unwrap();
            bucket.delete(&key, &name).await.unwrap();
            assert!(matches!(all(bucket, &key, &name).await, Err(Error::Missing(_))));
        }
        assert!(bucket.list(&key).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_directory_keeps_objects() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/not/yet/there", dir.path().display());
        works(&Bucket::open(&url, []).unwrap()).await;
        let mut upload = Bucket::open(&url, []).unwrap().upload(&"a/b".parse().unwrap(), "x");
        upload.push(&vec![1; PART_BYTES + 1]).await.unwrap();
        upload.abort().await;
        let left = walk(dir.path());
        assert_eq!(left.len(), 1, "the marker: {left:?}");
    }

    #[tokio::test]
    async fn a_directory_that_is_away_answers_nothing_and_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (place, aside) = (dir.path().join("archive"), dir.path().join("aside"));
        let bucket = Bucket::open(&format!("file://{}", place.display()), []).unwrap();
        bucket.begin().await.unwrap();
        let key: SessionKey = "acme/s".parse().unwrap();
        let name = Bucket::fresh_name(&key, 1);
        let mut upload = bucket.upload(&key, &name);
        upload.push(b"what was").await.unwrap();
        upload.finish().await.unwrap();
        let mut under_way = bucket.upload(&key, "2-x.jsonl.gz");
        under_way.push(&vec![1; PART_BYTES + 1]).await.unwrap();

        // Not mounted: first there is no directory, then an empty one, then somebody else's.
        std::fs::rename(&place, &aside).unwrap();
        for step in 0..3 {
            let away = |result: Result<(), Error>, what: &str| {
                assert!(matches!(result, Err(Error::Away(_))), "{step} {what}: {result:?}");
            };
            away(bucket.list(&key).await.map(drop), "list");
            away(all(&bucket, &key, &name).await.map(drop), "read");
            away(bucket.delete(&key, &name).await, "delete");
            let mut upload = bucket.upload(&key, "3-x.jsonl.gz");
            upload.push(b"new").await.unwrap();
            away(upload.finish().await, "put");
            upload.abort().await;
            let mut upload = bucket.upload(&key, "4-x.jsonl.gz");
            away(upload.push(&vec![1; PART_BYTES + 1]).await, "a large put");
            upload.abort().await;
            match step {
                0 => {
                    assert!(!place.exists(), "nothing has made it anew");
                    std::fs::create_dir(&place).unwrap();
                }
                1 => {
                    assert!(walk(&place).is_empty());
                    let other = Bucket::open(&format!("file://{}", place.display()), []).unwrap();
                    other.begin().await.unwrap();
                }
                _ => {}
            }
        }
        let ended = under_way.finish().await;
        assert!(ended.is_err(), "what was begun before cannot be ended elsewhere");
        under_way.abort().await;

        std::fs::remove_dir_all(&place).unwrap();
        std::fs::rename(&aside, &place).unwrap();
        assert_eq!(all(&bucket, &key, &name).await.unwrap(), b"what was");
        assert_eq!(bucket.list(&key).await.unwrap(), [&*name]);
    }

    fn walk(dir: &std::path::Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }

    #[tokio::test]
    async fn memory_keeps_objects() {
        works(&Bucket::open("memory:///some/prefix", []).unwrap()).await;
    }

    #[test]
    fn a_url_that_names_no_place_is_refused() {
        for bad in ["", "/var/x", "ftp://x/y", "s3:", "http://x/y"] {
            assert!(Bucket::open(bad, []).is_err(), "{bad}");
        }
    }
}
