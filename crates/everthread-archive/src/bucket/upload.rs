//! An object on its way into a bucket: in parts if it is large.
//!
//! **Invariant:** after [`Upload::abort`] nothing of it is left that this process can take back.

use super::Bucket;
use crate::Error;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};

/// An object that is larger is sent in parts of this size. Stores want all but the last to be alike, and not smaller.
pub(super) const PART_BYTES: usize = 5 * 1024 * 1024;

/// An object that is being written. It is not there before [`Upload::finish`].
pub struct Upload {
    bucket: Bucket,
    path: Path,
    /// What was not sent yet: less than a part.
    kept: Vec<u8>,
    /// Once there was a whole part.
    parts: Option<Box<dyn MultipartUpload>>,
    /// Whether the object may be there.
    may_be_there: bool,
}

impl Upload {
    pub(super) fn new(bucket: Bucket, path: Path) -> Upload {
        Upload { bucket, path, kept: Vec::new(), parts: None, may_be_there: false }
    }

    /// Adds bytes.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.kept.extend_from_slice(bytes);
        while self.kept.len() >= PART_BYTES {
            let rest = self.kept.split_off(PART_BYTES);
            let part = PutPayload::from(std::mem::replace(&mut self.kept, rest));
            let parts = match &mut self.parts {
                Some(parts) => parts,
                None => {
                    self.bucket.is_here().await?;
                    let begun = self.bucket.within(self.bucket.store.put_multipart(&self.path)).await?;
                    self.parts.insert(begun)
                }
            };
            self.bucket.within(parts.put_part(part)).await?;
        }
        Ok(())
    }

    /// The object is there, whole, and outlives whatever the place promises to outlive. If this fails, abort it.
    pub async fn finish(&mut self) -> Result<(), Error> {
        let last = PutPayload::from(std::mem::take(&mut self.kept));
        self.may_be_there = true;
        match &mut self.parts {
            None => {
                self.bucket.is_here().await?;
                self.bucket.within(self.bucket.store.put(&self.path, last)).await?;
            }
            Some(parts) => {
                if last.content_length() > 0 {
                    self.bucket.within(parts.put_part(last)).await?;
                }
                self.bucket.within(parts.complete()).await?;
            }
        }
        // A directory that went away meanwhile was made anew by the write, where nobody will look for it.
        self.bucket.is_here().await
    }

    /// Gives it up. What cannot be taken back is left to the rules of the bucket, and to whoever tidies up.
    pub async fn abort(mut self) {
        if let Some(parts) = &mut self.parts
            && let Err(error) = self.bucket.within(parts.abort()).await
        {
            tracing::debug!(%error, "an upload that was given up leaves parts");
        }
        if self.may_be_there
            && let Err(error) = self.bucket.within(self.bucket.store.delete(&self.path)).await
        {
            tracing::debug!(%error, "an upload that was given up may leave an object");
        }
    }
}
