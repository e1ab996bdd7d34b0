//! Reads of the log: a bounded number of them at once per node, folded where asked, and shared where many want the same.

use crate::flights::Flights;
use everthread_protocol::{Fault, Record, Seq, SessionKey};
use everthread_session::fold::{Limits, fold_past};
use everthread_session::view::View;
use everthread_store::pages::since_of;
use everthread_store::{Base, Error, Page, Pages, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Reads of the log at once per node; the others wait.
const READS_MAX: usize = 64;
/// Bytes of blocks in one page of a replay, before it is folded.
pub const PAGE_BYTES: usize = 512 * 1024;
/// A view is begun so often, if the log is trimmed while it is being made.
const TRIMS_MAX: usize = 8;
/// How long a read may wait for its turn.
const TURN_MAX: Duration = Duration::from_secs(10);

/// Followers who were together and come back together stand a few entries apart: they share the page that begins at the
/// last multiple of this.
const NEAR: u64 = 64;
/// Beyond every head: seqs are below 2^53.
const BEYOND: Seq = Seq(1 << 53);

/// Reads logs. Cheap to clone.
pub struct Reader<S> {
    store: Arc<S>,
    turns: Arc<Semaphore>,
    ends: Flights<SessionKey, Arc<Page>>,
    pages: Flights<(SessionKey, Seq), Arc<Page>>,
    folded: Flights<(SessionKey, Seq), Arc<Page>>,
    views: Flights<SessionKey, Arc<(View, Page)>>,
}

impl<S> Clone for Reader<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            turns: self.turns.clone(),
            ends: self.ends.clone(),
            pages: self.pages.clone(),
            folded: self.folded.clone(),
            views: self.views.clone(),
        }
    }
}

impl<S: Store> Reader<S> {
    /// A reader of a store.
    pub fn new(store: Arc<S>) -> Self {
        Self {
            store,
            turns: Arc::new(Semaphore::new(READS_MAX)),
            ends: Flights::default(),
            pages: Flights::default(),
            folded: Flights::default(),
            views: Flights::default(),
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// A page of the log as stored.
    pub async fn page(&self, key: &SessionKey, after: Seq, bytes_max: usize) -> Result<Page, Error> {
        let _turn = self.turn().await?;
        self.store.read(key, after, bytes_max).await
    }

    /// [`Reader::page`], for what nobody has asked for: see [`Store::here`].
    pub async fn page_here(&self, key: &SessionKey, after: Seq, bytes_max: usize) -> Result<Page, Error> {
        let _turn = self.turn().await?;
        self.store.here().read(key, after, bytes_max).await
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        let turn = tokio::time::timeout(TURN_MAX, self.turns.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| Error::Overloaded("too many reads at once".into()))
    }

    /// Where the log ends, shared with all who ask at the same time.
    pub async fn end(&self, key: &SessionKey) -> Result<Arc<Page>, Error> {
        let (this, of) = (self.clone(), key.clone());
        let read = move || async move { this.page(&of, BEYOND, 1).await.map(Arc::new) };
        self.ends.share(key.clone(), read).await
    }

    /// A page of the log with its appends merged: what the store has folded as it is, the rest folded here. Shared with all
    /// who ask at the same time.
    pub async fn folded_page(&self, key: &SessionKey, after: Seq) -> Result<Arc<Page>, Error> {
        let (this, of) = (self.clone(), key.clone());
        let read = move || async move { this.read_folded(&of, after).await.map(Arc::new) };
        self.folded.share((key.clone(), after), read).await
    }

    /// A page as stored, of one that begins shortly before and is shared with all who ask for that.
    async fn page_nearby(&self, key: &SessionKey, after: Seq) -> Result<Page, Error> {
        let start = Seq(after.0 - after.0 % NEAR);
        let (this, of) = (self.clone(), key.clone());
        let read = move || async move { this.page(&of, start, PAGE_BYTES).await.map(Arc::new) };
        let mut page = Arc::unwrap_or_clone(self.pages.share((key.clone(), start), read).await?);
        page.records.retain(|record| record.to > after);
        // What is in between may be large.
        if page.records.is_empty() && page.head.seq > after {
            return self.page(key, after, PAGE_BYTES).await;
        }
        Ok(page)
    }

    async fn read_folded(&self, key: &SessionKey, after: Seq) -> Result<Page, Error> {
        let mut page = self.page_nearby(key, after).await?;
        let is_raw = |record: &&Record| record.to > page.head.folded_to;
        // One alone is left as it was written: nothing is gained.
        if page.records.iter().rev().take_while(is_raw).count() > 1 {
            let folded = fold_past(&page.records, page.head.folded_to, Limits::default());
            page.records = folded.map_err(|e| Error::Corrupt(e.to_string()))?;
        }
        Ok(page)
    }

    /// [`Reader::view`], shared with all who ask at the same time.
    pub async fn shared_view(&self, key: &SessionKey) -> Result<Arc<(View, Page)>, Error> {
        let (this, of) = (self.clone(), key.clone());
        let read = move || async move { this.view(&of).await.map(Arc::new) };
        self.views.share(key.clone(), read).await
    }

    /// The session as it stands, with the page that brought its end.
    pub async fn view(&self, key: &SessionKey) -> Result<(View, Page), Error> {
        self.view_until(key, None).await
    }

    /// The session as it stood at a seq, or shortly before: see [`View::apply_until`]. Without one, as it stands. Where that
    /// was dropped, as it stood at the floor: later than was asked for.
    pub async fn view_at(&self, key: &SessionKey, at: Option<Seq>) -> Result<(View, Page), Error> {
        self.view_until(key, at).await
    }

    async fn view_until(&self, key: &SessionKey, at: Option<Seq>) -> Result<(View, Page), Error> {
        for _ in 0..TRIMS_MAX {
            if let Some(read) = self.try_view(key, at.unwrap_or(Seq(u64::MAX))).await? {
                return Ok(read);
            }
        }
        Err(Error::Unavailable("the session changes faster than it is read".into()))
    }

    /// The session as it stood when everything below the floor was dropped; `None` if nothing was.
    pub async fn base(&self, key: &SessionKey) -> Result<Option<View>, Error> {
        let base = self.store.base(key).await?;
        base.map(|base| view_of(Some(&base))).transpose()
    }

    /// `None` if the log lost something in the middle.
    async fn try_view(&self, key: &SessionKey, limit: Seq) -> Result<Option<(View, Page)>, Error> {
        let mut page = self.page(key, Seq::ZERO, PAGE_BYTES).await?;
        let Some(mut pages) = Pages::begin(&*self.store, key, &page).await? else { return Ok(None) };
        let mut view = view_of(pages.base.as_ref())?;
        loop {
            if !pages.take(&page) {
                return Ok(None);
            }
            for record in &page.records {
                let since = since_of(&page.epochs, record);
                view.apply_until(record, since, limit).map_err(|e| Error::Corrupt(e.to_string()))?;
            }
            if pages.after() >= page.head.seq.min(limit) || page.records.is_empty() {
                return Ok(Some((view, page)));
            }
            page = self.page(key, pages.after(), PAGE_BYTES).await?;
        }
    }
}

/// What a base says, or the beginning of everything.
pub fn view_of(base: Option<&Base>) -> Result<View, Error> {
    let view = base.map(|base| View::from_base(&base.text)).transpose();
    Ok(view.map_err(|e| Error::Corrupt(format!("a base: {e}")))?.unwrap_or_else(View::new))
}

/// A store's error as a client may see it, logged where it is the server's.
pub fn fault_of(key: &SessionKey, error: &Error) -> Fault {
    if let Error::Corrupt(what) = error {
        tracing::error!(%key, what, "broken session");
    }
    error.fault()
}
