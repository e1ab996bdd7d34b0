//! The redb file: its tables, its rows, and reads of what is committed.
//!
//! Owns the layout. Invariant: nothing here decides; rows are written only by the writer, in one transaction per group.

use super::{Durability, Options, lenient::LenientFile, pools::PoolRow, session::Producer};
use crate::{Error, Head, Page, Refusal};
use everthread_protocol::limits::EPOCHS_MAX;
use everthread_protocol::{
    Epoch, Fence, Millis, Record, RunId, Seq, SessionId, SessionKey, TenantId, Version,
};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Name of the file in the data directory.
const FILE: &str = "everthread.redb";
/// Layout of the tables; a file with a later one is refused. 1 had no folded records, 2 neither stubs nor bases.
const LAYOUT: u64 = 3;
/// Memory that redb may use for pages. Its default of 1 GiB is too much for a laptop.
const PAGE_CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Session → [`Meta`] as JSON. Small, written with every write.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Session → core state. Up to 64 KB, written only when it changes.
pub(super) const STATE: TableDefinition<'_, &str, &str> = TableDefinition::new("state");
/// (session number, seq of the last entry) → stored record, raw.
pub(super) const RECORDS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("records");
/// The same for older records, folded: up to [`Meta::folded_to`].
pub(super) const FOLDED: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("folded");
/// Session number → first seq that is kept, and what stands for what was before it.
pub(super) const BASES: TableDefinition<'_, u64, (u64, &str)> = TableDefinition::new("bases");
/// Session numbers whose folded records are staged: no session has them yet.
pub(super) const STAGED: TableDefinition<'_, u64, ()> = TableDefinition::new("staged");
/// (session number, producer) → [`Producer`] as JSON.
pub(super) const PRODUCERS: TableDefinition<'_, (u64, &str), &[u8]> = TableDefinition::new("producers");
/// (pool, ticket) → [`PoolRow`] as JSON.
pub(super) const POOLS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("pools");
/// (session, device) → epoch and seq of its durable cursor, and when it last acknowledged something.
pub(super) const DEVICES: TableDefinition<'_, (&str, &str), (u64, u64, u64)> =
    TableDefinition::new("devices");
/// Session → when it is due.
pub(super) const DEADLINES: TableDefinition<'_, &str, u64> = TableDefinition::new("deadlines");
/// (tenant, session) → when it was last active.
pub(super) const INDEX: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("index");
/// (tenant, last active, session): the index in the order in which it is listed, backwards.
pub(super) const RECENT: TableDefinition<'_, (&str, u64, &str), ()> = TableDefinition::new("recent");
/// Numbers of the engine: `layout`, `boot` (the greatest epoch handed out), `sessions`, `tickets`, `clock`.
pub(super) const ENGINE: TableDefinition<'_, &str, u64> = TableDefinition::new("engine");

/// What is kept of a session besides its state, records and producers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// Stands for the session in the keys of its records.
    pub number: u64,
    /// Changes of the state so far.
    pub changes: u64,
    /// Seq of the last entry.
    pub head: Seq,
    /// Known epochs with the first seq of each, oldest first; never empty once written.
    pub epochs: Vec<(Epoch, Seq)>,
    /// Fences in force.
    pub fences: BTreeMap<RunId, Fence>,
    /// The greatest fence ever granted here.
    pub fence_last: u64,
    /// When the session is next due, as its last decision said.
    pub next_due: Option<Millis>,
    /// Up to here the log is folded.
    #[serde(default)]
    pub folded_to: Seq,
    /// First seq that is kept; 0 if nothing was dropped.
    #[serde(default)]
    pub floor: Seq,
    /// Bytes of the blocks of all folded records.
    #[serde(default)]
    pub folded_bytes: u64,
    /// It is a stub: where log and state are, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived: Option<(String, Millis)>,
}

impl Meta {
    /// The epoch of the last write and its first seq.
    pub fn epoch(&self) -> (Epoch, Seq) {
        self.epochs.last().copied().unwrap_or_default()
    }

    /// From the next entry on, this epoch is in force. Whether it was not.
    pub fn begin_epoch(&mut self, epoch: Epoch) -> bool {
        if self.epoch().0 == epoch {
            return false;
        }
        self.epochs.push((epoch, self.head.next()));
        let excess = self.epochs.len().saturating_sub(EPOCHS_MAX);
        self.epochs.drain(..excess);
        true
    }

    /// The version of the state.
    pub fn version(&self) -> Version {
        Version { epoch: self.epoch().0, n: self.changes }
    }

    /// Refuses what needs log or state if it is a stub.
    pub fn must_be_whole(&self) -> Result<(), Refusal> {
        if self.archived.is_some() { Err(Refusal::Archived) } else { Ok(()) }
    }

    /// Where the log ends.
    pub fn to_head(&self) -> Head {
        let (epoch, since) = self.epoch();
        let active = u32::try_from(self.fences.len()).unwrap_or(u32::MAX);
        let (seq, version, folded_to) = (self.head, self.version(), self.folded_to);
        let (floor, folded_bytes) = (self.floor.max(Seq(1)), self.folded_bytes);
        let archived = self.archived.is_some();
        Head { epoch, since, seq, version, active, folded_to, floor, folded_bytes, archived }
    }
}

/// What the writer starts with.
pub(super) struct Opened {
    /// The file.
    pub disk: Disk,
    /// Epoch of everything that is written from here on.
    pub boot: Epoch,
    /// The clock's last known time.
    pub clock: Millis,
    /// Sessions so far.
    pub sessions: u64,
    /// Everything that waits in pools: pool, ticket, row.
    pub pools: Vec<(String, u64, PoolRow)>,
    /// Every deadline.
    pub deadlines: Vec<(SessionKey, Millis)>,
}

/// The database.
pub(super) struct Disk(Database);

impl Disk {
    /// Opens or creates the database, and begins a new boot epoch, durably.
    pub fn open(options: &Options, now_us: u64) -> Result<Opened, Error> {
        let disk = Disk(database(options)?);
        let txn = disk.begin()?;
        let (boot, clock, sessions);
        {
            // Creating every table here lets readers open them without asking whether they exist.
            txn.open_table(META).map_err(failed)?;
            txn.open_table(STATE).map_err(failed)?;
            txn.open_table(RECORDS).map_err(failed)?;
            txn.open_table(FOLDED).map_err(failed)?;
            txn.open_table(BASES).map_err(failed)?;
            txn.open_table(PRODUCERS).map_err(failed)?;
            txn.open_table(POOLS).map_err(failed)?;
            txn.open_table(DEADLINES).map_err(failed)?;
            txn.open_table(DEVICES).map_err(failed)?;
            txn.open_table(INDEX).map_err(failed)?;
            txn.open_table(RECENT).map_err(failed)?;
            super::plant::clear_staged(&txn)?;
            let mut engine = txn.open_table(ENGINE).map_err(failed)?;
            let layout = engine.get("layout").map_err(failed)?.map_or(LAYOUT, |v| v.value());
            if !(1..=LAYOUT).contains(&layout) {
                return Err(Error::Unavailable(format!(
                    "the data directory has layout {layout}; this release reads layouts up to {LAYOUT}"
                )));
            }
            let last = engine.get("boot").map_err(failed)?.map_or(0, |v| v.value());
            boot = now_us.max(last + 1);
            clock = engine.get("clock").map_err(failed)?.map_or(0, |v| v.value());
            sessions = engine.get("sessions").map_err(failed)?.map_or(0, |v| v.value());
            engine.insert("layout", LAYOUT).map_err(failed)?;
            engine.insert("boot", boot).map_err(failed)?;
        }
        txn.commit().map_err(failed)?;
        let (pools, deadlines) = disk.indexes()?;
        // The last boot bounds the clock too: it was the time then.
        let clock = Millis(clock.max(boot / 1000));
        Ok(Opened { disk, boot: Epoch(boot), clock, sessions, pools, deadlines })
    }

    /// Begins the transaction of one group.
    pub fn begin(&self) -> Result<redb::WriteTransaction, Error> {
        self.0.begin_write().map_err(failed)
    }

    /// Begins a read of what is committed.
    pub fn reading(&self) -> Result<redb::ReadTransaction, Error> {
        self.0.begin_read().map_err(failed)
    }

    /// Meta and state of a session.
    pub fn session(&self, key: &SessionKey) -> Result<Option<(Meta, String)>, Error> {
        Snapshot::of(self)?.session(key)
    }

    /// A session with the producers of its runs that have a fence.
    pub fn loaded(&self, key: &SessionKey) -> Result<Option<(Meta, String, Held)>, Error> {
        let snapshot = Snapshot::of(self)?;
        let Some((meta, state)) = snapshot.session(key)? else { return Ok(None) };
        meta.must_be_whole()?;
        let table = snapshot.0.open_table(PRODUCERS).map_err(failed)?;
        let mut held = Vec::new();
        for run in meta.fences.keys() {
            let row = table.get((meta.number, Producer::key_of(run).as_str())).map_err(failed)?;
            if let Some(row) = row {
                let producer: Producer = from_json(row.value())?;
                held.push((run.clone(), producer.incarnation, producer.batch));
            }
        }
        Ok(Some((meta, state, held)))
    }

    /// Every producer of a session.
    pub fn producers(&self, number: u64) -> Result<HashMap<String, Producer>, Error> {
        let snapshot = Snapshot::of(self)?;
        let table = snapshot.0.open_table(PRODUCERS).map_err(failed)?;
        let mut producers = HashMap::new();
        for row in table.range((number, "")..(number + 1, "")).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            producers.insert(key.value().1.to_owned(), from_json(value.value())?);
        }
        Ok(producers)
    }

    /// Metas of many sessions, from one snapshot.
    pub fn metas(&self, keys: &[SessionKey]) -> Result<Vec<Option<Meta>>, Error> {
        let snapshot = Snapshot::of(self)?;
        keys.iter().map(|key| snapshot.meta(key)).collect()
    }

    /// Records that end after `after`, with the head of the same snapshot.
    pub fn page(&self, key: &SessionKey, after: Seq, bytes_max: usize) -> Result<Option<Page>, Error> {
        let snapshot = Snapshot::of(self)?;
        let Some(meta) = snapshot.meta(key)? else { return Ok(None) };
        meta.must_be_whole()?;
        let mut page = Page { records: Vec::new(), head: meta.to_head(), epochs: meta.epochs };
        if after >= page.head.seq {
            return Ok(Some(page));
        }
        let mut bytes = 0;
        let mut next = Seq(after.0.saturating_add(1)).max(page.head.floor);
        for table in [FOLDED, RECORDS] {
            let table = snapshot.0.open_table(table).map_err(failed)?;
            for row in table.range((meta.number, next.0)..=(meta.number, u64::MAX)).map_err(failed)? {
                let (id, stored) = row.map_err(failed)?;
                let to = Seq(id.value().1);
                let record = Record::from_stored(stored.value(), to)
                    .map_err(|e| Error::Corrupt(format!("{key}, record {to}: {e}")))?;
                if record.from > next {
                    return Err(Error::Corrupt(format!("{key}: the log has no entry {next}")));
                }
                bytes += record.blocks.len();
                if bytes > bytes_max && !page.records.is_empty() {
                    return Ok(Some(page));
                }
                next = to.next();
                page.records.push(record);
            }
        }
        Ok(Some(page))
    }

    /// Whether a raw record ends there.
    pub fn has_record(&self, number: u64, to: Seq) -> Result<bool, Error> {
        let snapshot = Snapshot::of(self)?;
        let table = snapshot.0.open_table(RECORDS).map_err(failed)?;
        Ok(table.get((number, to.0)).map_err(failed)?.is_some())
    }

    /// Sessions of a tenant, latest first; of the same millisecond, last in the alphabet first.
    pub fn sessions(
        &self,
        tenant: &TenantId,
        after: Option<(Millis, SessionId)>,
        limit: usize,
    ) -> Result<Vec<(SessionId, Millis)>, Error> {
        let snapshot = Snapshot::of(self)?;
        let table = snapshot.0.open_table(RECENT).map_err(failed)?;
        let tenant = tenant.as_str();
        let range = match &after {
            Some((at, session)) => table.range((tenant, 0, "")..(tenant, at.0, session.as_str())),
            // No session's name is this long or begins like this: `~` comes after every character of an id.
            None => table.range((tenant, 0, "")..(tenant, u64::MAX, "~")),
        };
        let mut sessions = Vec::new();
        for row in range.map_err(failed)?.rev().take(limit) {
            let (key, _) = row.map_err(failed)?;
            let (_, at, session) = key.value();
            sessions.push((session.parse().map_err(|_| corrupt_key(session))?, Millis(at)));
        }
        Ok(sessions)
    }

    #[expect(clippy::type_complexity, reason = "named by the fields of `Opened` that it fills")]
    fn indexes(&self) -> Result<(Vec<(String, u64, PoolRow)>, Vec<(SessionKey, Millis)>), Error> {
        let snapshot = Snapshot::of(self)?;
        let (mut pools, mut deadlines) = (Vec::new(), Vec::new());
        for row in snapshot.0.open_table(POOLS).map_err(failed)?.iter().map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let (pool, ticket) = key.value();
            pools.push((pool.to_owned(), ticket, from_json(value.value())?));
        }
        for row in snapshot.0.open_table(DEADLINES).map_err(failed)?.iter().map_err(failed)? {
            let (key, at) = row.map_err(failed)?;
            deadlines.push((key.value().parse().map_err(|_| corrupt_key(key.value()))?, Millis(at.value())));
        }
        Ok((pools, deadlines))
    }
}

/// Incarnation and last batch of the producer of each run that has a fence.
pub(super) type Held = Vec<(RunId, u64, u64)>;

/// Everything as of one commit.
pub(super) struct Snapshot(redb::ReadTransaction);

impl Snapshot {
    pub fn of(disk: &Disk) -> Result<Self, Error> {
        disk.0.begin_read().map(Self).map_err(failed)
    }

    /// A table of it.
    pub fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        table: TableDefinition<'_, K, V>,
    ) -> Result<redb::ReadOnlyTable<K, V>, Error> {
        self.0.open_table(table).map_err(failed)
    }

    fn meta(&self, key: &SessionKey) -> Result<Option<Meta>, Error> {
        let row = self.0.open_table(META).map_err(failed)?.get(key.to_string().as_str()).map_err(failed)?;
        row.map(|row| from_json(row.value())).transpose()
    }

    pub fn session(&self, key: &SessionKey) -> Result<Option<(Meta, String)>, Error> {
        let Some(meta) = self.meta(key)? else { return Ok(None) };
        let state =
            self.0.open_table(STATE).map_err(failed)?.get(key.to_string().as_str()).map_err(failed)?;
        Ok(Some((meta, state.map_or_else(String::new, |row| row.value().to_owned()))))
    }
}

fn database(options: &Options) -> Result<Database, Error> {
    let mut builder = Database::builder();
    builder.set_cache_size(PAGE_CACHE_BYTES);
    let Some(dir) = &options.dir else {
        return builder.create_with_backend(redb::backends::InMemoryBackend::new()).map_err(failed);
    };
    let unusable = |e: std::io::Error| {
        Error::Unavailable(format!("the data directory {} cannot be used: {e}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(unusable)?;
    let path = dir.join(FILE);
    builder.set_repair_callback(|_| tracing::info!("the database was not closed: checking it"));
    let database = match options.durability {
        Durability::PowerCut => builder.create(&path),
        Durability::Crash => {
            let file =
                std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            LenientFile::new(file.map_err(unusable)?).and_then(|file| builder.create_with_backend(file))
        }
    };
    // The entry of a new file in its directory needs a sync of its own to survive a power cut.
    let database = database.map_err(|e| match e {
        redb::DatabaseError::DatabaseAlreadyOpen => {
            Error::Unavailable(format!("the data directory {} is in use by another process", dir.display()))
        }
        redb::DatabaseError::Storage(redb::StorageError::Io(e))
            if e.kind() != std::io::ErrorKind::InvalidData =>
        {
            unusable(e)
        }
        e => Error::Corrupt(format!("{} is not a usable database: {e}", path.display())),
    })?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(unusable)?;
    Ok(database)
}

/// The error of a database that does not do what it should.
pub(super) fn failed(e: impl Into<redb::Error>) -> Error {
    match e.into() {
        redb::Error::Corrupted(what) => Error::Corrupt(format!("the local database: {what}")),
        e => Error::Unavailable(format!("the local database: {e}")),
    }
}

/// A row as JSON.
pub(super) fn to_json(row: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(row).map_err(|e| Error::Corrupt(e.to_string()))
}

/// A row of JSON, read.
pub(super) fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Corrupt(format!("the local database: {e}")))
}

/// A key that cannot be one.
pub(super) fn corrupt_key(key: &str) -> Error {
    Error::Corrupt(format!("the local database: {key:?} is not a key"))
}
