//! The marker: an object at the root of an archive by which the archive is known.
//!
//! A directory that is not mounted looks like an empty one, and an empty archive has lost everything. So the first node that
//! uses a place leaves a marker in it, with a name of that archive; a place without it, or with that of another archive, does
//! not answer, whatever else it says.

use super::Bucket;
use crate::Error;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};

/// No tenant has this name.
const NAME: &str = "everthread!archive";
/// The form of the marker, and the highest that this release takes.
const FORM: u32 = 1;

/// The archive that a node uses, once it is known.
pub(super) type Known = Arc<OnceLock<String>>;

#[derive(Serialize, Deserialize)]
struct Marker {
    everthread_archive: u32,
    id: String,
}

impl Bucket {
    /// Takes the place into use: finds its marker, or leaves one. For the start of a node; from then on a place without it
    /// does not answer.
    pub async fn begin(&self) -> Result<(), Error> {
        let found = match self.marker().await? {
            Some(id) => id,
            None => {
                let id = ulid::Ulid::generate().to_string().to_lowercase();
                self.leave(&id).await?;
                // Of two nodes that start at once one was faster.
                self.marker().await?.ok_or(Error::Away("its marker cannot be read back"))?
            }
        };
        self.is_known(found)
    }

    /// Whether the place is there, and the one that was taken into use.
    pub(super) async fn is_here(&self) -> Result<(), Error> {
        let found = self.marker().await?.ok_or(Error::Away("its marker is not there"))?;
        self.is_known(found)
    }

    fn is_known(&self, found: String) -> Result<(), Error> {
        if *self.known.get_or_init(|| found.clone()) == found {
            Ok(())
        } else {
            Err(Error::Away("another archive is in its place"))
        }
    }

    async fn leave(&self, id: &str) -> Result<(), Error> {
        let marker = Marker { everthread_archive: FORM, id: id.to_owned() };
        let text = serde_json::to_vec(&marker).map_err(|error| Error::Url(error.to_string()))?;
        let path = self.marker_path();
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.within(self.store.put_opts(&path, text.clone().into(), create)).await {
            Ok(_) | Err(Error::Bucket(object_store::Error::AlreadyExists { .. })) => Ok(()),
            // Not every store can do that; two first starts at once are rare.
            Err(Error::Bucket(
                object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
            )) => self.within(self.store.put(&path, text.into())).await.map(drop),
            Err(error) => Err(error),
        }
    }

    /// What the marker says; `None` if there is none.
    async fn marker(&self) -> Result<Option<String>, Error> {
        let path = self.marker_path();
        let text = match self.within(async { self.store.get(&path).await?.bytes().await }).await {
            Err(Error::Bucket(object_store::Error::NotFound { .. })) => return Ok(None),
            text => text?,
        };
        let Ok(Marker { everthread_archive, id }) = serde_json::from_slice(&text) else {
            return Err(Error::Away("its marker cannot be read"));
        };
        if everthread_archive > FORM {
            return Err(Error::Away("a newer release has made it"));
        }
        Ok(Some(id))
    }

    fn marker_path(&self) -> Path {
        self.prefix.clone().join(NAME)
    }
}
