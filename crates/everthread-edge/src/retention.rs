//! Retention: old sessions are deleted, and old parts of others dropped.
//!
//! It is upkeep that the keeper of deadlines asks for: when a session's time has come, and after every fold. What is dropped
//! are folded records from the beginning of the log, and a base stands for them ([`Store::trim`]). Whole messages go, and
//! none that an open run or a pending control needs.
//!
//! **Invariant:** whatever is dropped or deleted is dropped or deleted as it was read: if the session has been decided upon
//! or written since, it is looked at again.

use crate::folder::{Folder, written_at};
use crate::metrics::Metrics;
use crate::reader::{PAGE_BYTES, Reader};
use crate::tail::{lock, since_of};
use everthread_control::{AtHead, Failure, Upkeep, millis};
use everthread_protocol::{Millis, Record, Seq, SessionKey, TenantId, Version};
use everthread_session::view::View;
use everthread_session::{Brief, Retention, State};
use everthread_store::{Error, Head, Loaded, Store, Trim, Trimmed};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes of folded records that one step reads: bounds its memory.
const STEP_BYTES: usize = 8 * 1024 * 1024;
/// Steps of one look; the next look goes on.
const STEPS_MAX: usize = 16;
/// A session with a bound on its age is looked at this often within that age: what is dropped is up to so much older.
const LOOKS_PER_AGE: u64 = 100;
/// An archived session with a bound on its age is brought back this often within that age.
const BACK_PER_AGE: u64 = 10;
/// How long that is waited for, and the pause before another look at one that takes longer.
const BACK_WAIT: Duration = Duration::from_millis(500);
const BACK_AGAIN_MS: u64 = 10 * 1000;
/// When a session that only has a bound on its bytes is first looked at: from there on after folds.
const SIZE_LOOK_MS: u64 = 60 * 60 * 1000;
/// Looks that are remembered.
const LOOKED_MAX: usize = 4096;

/// What is kept in a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Of every session.
    pub all: Retention,
    /// Of the sessions of a tenant, besides.
    pub tenants: BTreeMap<TenantId, Retention>,
    /// This long at least lies between two looks of one node at the same session.
    pub pause: Duration,
}

impl Default for Options {
    /// Everything is kept for ever, unless a session's meta says otherwise.
    fn default() -> Self {
        Self { all: Retention::default(), tenants: BTreeMap::new(), pause: Duration::from_secs(60) }
    }
}

/// Keeps sessions within their bounds. Cheap to clone.
pub struct Retainer<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Retainer<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<S> {
    reader: Reader<S>,
    folder: Folder<S>,
    options: Options,
    metrics: Metrics,
    /// When this node last looked: the keeper comes by more often than is worth a look.
    looked: Mutex<HashMap<SessionKey, Instant>>,
}

/// What is to go, and what must not.
struct Plan {
    /// What was written up to then.
    too_old: Option<Millis>,
    max_bytes: Option<NonZeroU64>,
    /// References of messages.
    needed: HashSet<String>,
}

/// What a step of trimming came to.
enum Step {
    /// There may be more to drop; the session is at this version.
    More(Version),
    /// Nothing more can be dropped now.
    Done,
    /// The session has changed meanwhile: another look is needed.
    Raced,
}

impl<S: Store> Retainer<S> {
    /// Trims with this folder.
    pub fn new(reader: Reader<S>, folder: Folder<S>, options: Options, metrics: Metrics) -> Self {
        let looked = Mutex::default();
        Self { inner: Arc::new(Inner { reader, folder, options, metrics, looked }) }
    }

    /// What is kept of a session: the strictest of what the deployment, its tenant and itself say.
    pub fn of(&self, key: &SessionKey, state: &State) -> Retention {
        let Options { all, tenants, .. } = &self.inner.options;
        let tenant = tenants.get(&key.tenant).copied().unwrap_or_default();
        // What a session says was checked when it was written.
        let own = Retention::of_meta(&state.meta).unwrap_or_default();
        all.and(tenant).and(own)
    }

    /// When the session was last written, or what is known of that: `None` if it was never.
    pub async fn last_written(&self, key: &SessionKey, head: Seq) -> Result<Option<Millis>, Error> {
        let page = self.inner.reader.page_here(key, Seq(head.0.saturating_sub(1)), 1).await?;
        match page.records.last() {
            Some(record) => written_at(record).map(Some),
            // All of it was dropped.
            None => Ok(self.base(key).await?.map(|(at, _)| at)),
        }
    }

    /// The base with the time of the last entry that it stands for.
    async fn base(&self, key: &SessionKey) -> Result<Option<(Millis, View)>, Error> {
        let broken = |e: serde_json::Error| Error::Corrupt(format!("a base: {e}"));
        let Some(base) = self.inner.reader.store().here().base(key).await? else { return Ok(None) };
        let at = View::base_written(&base.text).map_err(broken)?;
        Ok(Some((at, View::from_base(&base.text).map_err(broken)?)))
    }

    /// How long it is too early for another look; a look is noted.
    fn pause_left(&self, key: &SessionKey) -> Option<Duration> {
        let pause = self.inner.options.pause;
        let mut looked = lock(&self.inner.looked);
        if let Some(left) = looked.get(key).and_then(|at| pause.checked_sub(at.elapsed()))
            && !left.is_zero()
        {
            return Some(left);
        }
        if looked.len() >= LOOKED_MAX {
            looked.retain(|_, at| at.elapsed() < pause);
        }
        // Still full: the next look may come too early, and costs a little.
        if looked.len() < LOOKED_MAX {
            looked.insert(key.clone(), Instant::now());
        }
        None
    }

    async fn look(
        &self,
        key: &SessionKey,
        loaded: &Loaded,
        state: &State,
    ) -> Result<Option<Millis>, Failure> {
        let wanted = self.of(key, state);
        if wanted.is_none() {
            return Ok(None);
        }
        if let Some(left) = self.pause_left(key) {
            return Ok(Some(loaded.now.plus(millis(left))));
        }
        let now = loaded.now;
        let last = self.last_written(key, loaded.head).await?;
        let ends = last.and_then(|last| wanted.ends_at(last));
        if ends.is_some_and(|ends| ends <= now) && self.delete(key, loaded).await? {
            return Ok(None);
        }
        let too_old = wanted.too_old_at(now);
        let needed = state.needed_messages();
        if let Some(until) = too_old {
            self.inner.folder.fold_until(key, until, &needed).await?;
        }
        let plan = Plan { too_old, max_bytes: wanted.max_bytes, needed };
        let is_done = self.trim(key, loaded.version, &plan).await?;
        let soon = now.plus(millis(self.inner.options.pause));
        let again = match wanted.max_age_ms {
            Some(age) => self.oldest(key).await?.map(|oldest| {
                let pause = millis(self.inner.options.pause).max(age.get() / LOOKS_PER_AGE);
                oldest.plus(age.get()).max(now.plus(pause))
            }),
            None => None,
        };
        let more = (!is_done).then_some(soon);
        let ends = ends.map(|ends| if ends > now { ends } else { soon });
        Ok(ends.into_iter().chain(again).chain(more).min())
    }

    /// What is due of an archived session. Nothing here waits for an object store.
    async fn look_at_stub(&self, key: &SessionKey, head: &Head, now: Millis) -> Result<AtHead, Failure> {
        let store = self.inner.reader.store();
        let keys = std::slice::from_ref(key);
        let (Some(Some(listed)), Some(Some(stub))) =
            (store.states(keys).await?.pop(), store.stubbed(keys).await?.pop())
        else {
            // It has come back, or is gone.
            return Ok(AtHead::Leave(Some(now)));
        };
        let wanted = self.of(key, &serde_json::from_str(&listed.state)?);
        let ends = wanted.ends_at(Brief::written(&listed.state).unwrap_or(stub.at));
        if ends.is_some_and(|ends| ends <= now) && store.delete_if(key, head.version, head.seq).await? {
            self.count("deleted");
            return Ok(AtHead::Leave(None));
        }
        // What is in the archive gets too old there: now and then it is brought back, and goes there again without that.
        let is_empty = head.floor > head.seq;
        let trims = wanted.max_age_ms.filter(|_| !is_empty).map(|age| stub.at.plus(age.get() / BACK_PER_AGE));
        if trims.is_some_and(|at| at <= now) {
            // It goes on coming back without this.
            return match tokio::time::timeout(BACK_WAIT, store.load(key)).await {
                Ok(Ok(_)) => Ok(AtHead::Leave(Some(now))),
                Ok(Err(Error::Archive(_))) | Err(_) => Ok(AtHead::Leave(Some(now.plus(BACK_AGAIN_MS)))),
                Ok(Err(error)) => Err(error.into()),
            };
        }
        Ok(AtHead::Leave(ends.into_iter().chain(trims).min()))
    }

    /// Deletes the session, if it is still as it was loaded.
    async fn delete(&self, key: &SessionKey, loaded: &Loaded) -> Result<bool, Error> {
        let is_gone = self.inner.reader.store().delete_if(key, loaded.version, loaded.head).await?;
        if is_gone {
            self.count("deleted");
            tracing::info!(%key, "a session was deleted after its time");
        }
        Ok(is_gone)
    }

    /// Drops what is to go; whether all of it that can go is gone.
    async fn trim(&self, key: &SessionKey, mut version: Version, plan: &Plan) -> Result<bool, Error> {
        if plan.too_old.is_none() && plan.max_bytes.is_none() {
            return Ok(true);
        }
        for _ in 0..STEPS_MAX {
            match self.step(key, version, plan).await? {
                Step::More(moved) => version = moved,
                Step::Done => return Ok(true),
                Step::Raced => break,
            }
            tokio::task::yield_now().await;
        }
        Ok(false)
    }

    /// Reads folded records from the floor on, and drops those up to the last place that is wanted and possible.
    async fn step(&self, key: &SessionKey, version: Version, plan: &Plan) -> Result<Step, Error> {
        let (mut at, mut view) = self.base(key).await?.unwrap_or_default();
        let (from, mut read) = (view.seq().next(), view.seq());
        let (mut passed, mut is_full) = (0, false);
        let mut found: Option<(Seq, u64, String)> = None;
        'log: while !is_full {
            let page = self.inner.reader.page_here(key, read, PAGE_BYTES).await?;
            if page.head.floor != from {
                return Ok(Step::Raced);
            }
            let folded = page.records.iter().take_while(|record| record.to <= page.head.folded_to);
            let before = read;
            for record in folded {
                let dropped = found.as_ref().map_or(0, |(_, bytes, _)| *bytes);
                let written = written_at(record)?;
                if !plan.wants(written, page.head.folded_bytes.saturating_sub(dropped)) {
                    break 'log;
                }
                let since = since_of(&page.epochs, record);
                view.apply(record, since).map_err(|e| Error::Corrupt(e.to_string()))?;
                if plan.needs_of(&view, record) {
                    break 'log;
                }
                (read, at, passed) = (record.to, at.max(written), passed + record.blocks.len());
                if !view.has_open_messages() {
                    let base = view.base(at).map_err(|e| Error::Corrupt(e.to_string()))?;
                    found = Some((read.next(), passed as u64, base));
                }
                is_full = passed >= STEP_BYTES;
            }
            if read == before {
                break;
            }
        }
        let Some((floor, bytes, base)) = found else { return Ok(Step::Done) };
        let trim = Trim { expect: version, from, floor, bytes, base: &base };
        let trimmed = self.inner.reader.store().trim(key, trim).await?;
        if trimmed != Trimmed::Done {
            self.count("raced");
            tracing::debug!(%key, ?trimmed, "a session is trimmed another time");
            return Ok(Step::Raced);
        }
        self.count("trimmed");
        self.inner.metrics.dropped_bytes.inc_by(bytes);
        let moved = Version { epoch: version.epoch, n: version.n + 1 };
        Ok(if is_full { Step::More(moved) } else { Step::Done })
    }

    /// When the oldest entry that is kept was written.
    async fn oldest(&self, key: &SessionKey) -> Result<Option<Millis>, Error> {
        let page = self.inner.reader.page_here(key, Seq::ZERO, 1).await?;
        page.records.first().map(written_at).transpose()
    }

    fn count(&self, what: &str) {
        self.inner.metrics.retained.with_label_values(&[what]).inc();
    }
}

impl Plan {
    /// Whether a record written then goes, while folded ones of so many bytes are kept.
    fn wants(&self, written: Millis, kept_bytes: u64) -> bool {
        self.too_old.is_some_and(|until| written <= until)
            || self.max_bytes.is_some_and(|most| kept_bytes > most.get())
    }

    /// Whether a message that began in the record, the last one of the view, is needed.
    fn needs_of(&self, view: &View, record: &Record) -> bool {
        let begun = view.messages().iter().rev().take_while(|message| message.seq >= record.from);
        begun.into_iter().any(|message| match &message.run {
            None => self.needed.contains(message.message.as_str()),
            Some(run) => self.needed.contains(&format!("{run}/{}", message.message)),
        })
    }
}

impl<S: Store> Upkeep for Retainer<S> {
    fn first_look(&self, key: &SessionKey, state: &State, now: Millis) -> Option<Millis> {
        let wanted = self.of(key, state);
        let times = wanted.ttl_ms.into_iter().chain(wanted.max_age_ms).map(NonZeroU64::get);
        times.chain(wanted.max_bytes.map(|_| SIZE_LOOK_MS)).min().map(|wait| now.plus(wait))
    }

    fn at_head<'a>(
        &'a self,
        key: &'a SessionKey,
        head: &'a Head,
        now: Millis,
    ) -> BoxFuture<'a, Result<AtHead, Failure>> {
        if head.archived {
            self.look_at_stub(key, head, now).boxed()
        } else {
            ready(Ok(AtHead::Load)).boxed()
        }
    }

    fn keep<'a>(
        &'a self,
        key: &'a SessionKey,
        _head: &'a Head,
        loaded: &'a Loaded,
        state: &'a State,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>> {
        self.look(key, loaded, state).boxed()
    }
}
