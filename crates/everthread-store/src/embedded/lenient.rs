//! A database file that is synced once a second instead of at every commit: [`super::Durability::Crash`].
//!
//! Invariant: every commit has been handed to the operating system in full, so the death of this process loses nothing.

use redb::{BackendError, StorageBackend, backends::FileBackend};
use std::{
    io,
    ops::Bound,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a commit may stay in the operating system's memory.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// redb's own file, but for `sync_data`.
#[derive(Debug)]
pub(super) struct LenientFile {
    file: FileBackend,
    synced: Mutex<Instant>,
}

impl LenientFile {
    /// Over a file that nobody else has open.
    pub fn new(file: std::fs::File) -> Result<Self, redb::DatabaseError> {
        Ok(Self { file: FileBackend::new(file)?, synced: Mutex::new(Instant::now()) })
    }
}

impl StorageBackend for LenientFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if synced.elapsed() >= SYNC_EVERY {
            self.file.sync_data()?;
            *synced = Instant::now();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
