//! Forks: a session that begins with a part of another one.
//!
//! The source's log is read up to the cut, folded on the way, staged page by page, and planted with the block that ends
//! what was open there. Nothing of the source changes. Who dies on the way leaves nothing but what is staged, which the
//! store forgets. A repeat finds the fork by what its meta says, so its id makes the request idempotent.

use crate::Edge;
use crate::reader::{PAGE_BYTES, fault_of, view_of};
use everthread_protocol::entry::Object;
use everthread_protocol::{Author, Code, Cursor, Epoch, Fault, Seq, SessionKey};
use everthread_session::fold::{Limits, fold_past};
use everthread_session::forked::{Forked, Origin, fork, forked_from, truncate};
use everthread_session::state::SCHEMA;
use everthread_session::view::{self, View};
use everthread_session::{Refusal, State};
use everthread_store::pages::since_of;
use everthread_store::{Base, Error, First, Loaded, Over, Pages, Plant, Planted, Store};
use std::time::Duration;

/// How often the source is read anew because it was trimmed meanwhile.
const TRIES_MAX: u32 = 4;
/// Forks that a node makes at once: each holds a View and fills the store. Others wait …
pub const FORKS_MAX: usize = 4;
/// … for so long.
const TURN_MAX: Duration = Duration::from_secs(10);

/// A fork that is there.
pub(crate) struct Done {
    /// Where its log ends.
    pub cursor: Cursor,
    /// Its meta.
    pub meta: Object,
    /// The last seq that it has from its source.
    pub at: Seq,
    /// It was there before.
    pub existed: bool,
}

/// What was read of the source, and is staged.
struct Cut {
    view: View,
    epochs: Vec<(Epoch, Seq)>,
    floor: Seq,
    /// What stands for the part of the source below the floor.
    base: Option<Base>,
    bytes: u64,
}

/// Makes `target` a fork of `source` as it stood at `at`, or now; `patch` changes its meta.
pub(crate) async fn make<S: Store>(
    edge: &Edge<S>,
    source: &SessionKey,
    target: &SessionKey,
    by: &Author,
    at: Option<Seq>,
    patch: &Object,
) -> Result<Done, Fault> {
    // Before anything else: who deletes the fork from here on has the last word, however slow this is.
    let gone = edge.desk.store().gone(target).await.map_err(|error| fault_of(target, &error))?;
    // Before the source: that may be gone, or be folded in another way, since the first answer was lost.
    if let Some((done, origin)) = existing(edge, source, target).await?
        && at.is_none_or(|at| at == done.at || at == origin.asked)
    {
        return Ok(done);
    }
    let Ok(Ok(_turn)) = tokio::time::timeout(TURN_MAX, edge.forks.acquire()).await else {
        return Err(Fault::new(Code::Overloaded, "FORKS_MAX: too many forks at once on this node"));
    };
    let (loaded, state) = edge.desk.load(source).await.map_err(|failure| failure.fault())?;
    let at = check(&loaded, &state, at)?;
    let (name, cut) = staged(edge, source, target, at).await?;
    let forked = fork(&cut.view, &source.session, at, patch).map_err(|refusal| refusal.fault())?;
    match plant(edge, target, gone, by, (&name, &cut), &forked)
        .await
        .map_err(|error| fault_of(target, &error))?
    {
        Planted::Done { epoch, to, .. } => {
            let done = Done {
                cursor: Cursor { epoch, seq: to },
                meta: forked.state.meta.clone(),
                at: cut.view.seq(),
                existed: false,
            };
            edge.desk.arm_upkeep(target, &forked.state, loaded.now, true).await;
            list(edge, target, &loaded).await;
            Ok(done)
        }
        Planted::Elsewhere => match existing(edge, source, target).await? {
            Some((done, origin)) if done.at == cut.view.seq() || origin.asked == at => Ok(done),
            Some(_) => Err(Fault::new(Code::IdConflict, "the session exists, and is no such fork")),
            None => Err(Fault::new(Code::NoSession, "the fork was deleted while it was made")),
        },
    }
}

/// The target, if it exists. One that is no fork of the source is a conflict.
async fn existing<S: Store>(
    edge: &Edge<S>,
    source: &SessionKey,
    target: &SessionKey,
) -> Result<Option<(Done, Origin)>, Fault> {
    let (loaded, state) = match edge.desk.load(target).await.map_err(|failure| failure.fault()) {
        Ok(found) => found,
        Err(fault) if fault.code == Code::NoSession => return Ok(None),
        Err(fault) => return Err(fault),
    };
    match forked_from(&state.meta) {
        Some(origin) if origin.session == source.session => {
            // Whoever made it may have died before it was in the list, and due.
            edge.desk.arm_upkeep(target, &state, loaded.now, true).await;
            list(edge, target, &loaded).await;
            let cursor = Cursor { epoch: loaded.version.epoch, seq: loaded.head };
            let done = Done { cursor, meta: state.meta, at: origin.seq, existed: true };
            Ok(Some((done, origin)))
        }
        _ => Err(Fault::new(Code::IdConflict, "the session exists, and is no fork of this one")),
    }
}

async fn list<S: Store>(edge: &Edge<S>, key: &SessionKey, loaded: &Loaded) {
    if let Err(error) = edge.desk.store().index(key, loaded.now).await {
        tracing::warn!(%key, %error, "a fork is not in the list");
    }
}

/// Where the source is cut.
fn check(loaded: &Loaded, state: &State, at: Option<Seq>) -> Result<Seq, Fault> {
    if state.schema > SCHEMA {
        return Err(Refusal::NewerSchema.fault());
    }
    // Known before anything is staged; of an earlier place only the log tells.
    if state.closed && at.is_none_or(|at| at == loaded.head) {
        return Err(Refusal::Closed.fault());
    }
    match at {
        Some(at) if at == Seq::ZERO || at > loaded.head => {
            Err(Fault::bad_request(format!("at is a seq of the session: 1 to {}", loaded.head)))
        }
        at => Ok(at.unwrap_or(loaded.head)),
    }
}

/// Stages the source up to `at` for the target, under a name that is returned.
async fn staged<S: Store>(
    edge: &Edge<S>,
    source: &SessionKey,
    target: &SessionKey,
    at: Seq,
) -> Result<(String, Cut), Fault> {
    for _ in 0..TRIES_MAX {
        let name = ulid::Ulid::generate().to_string();
        if let Some(cut) = stage(edge, source, target, at, &name).await? {
            return Ok((name, cut));
        }
    }
    Err(changed())
}

/// Reads the source up to `at` and stages it for the target; `None` if it was trimmed or folded in the middle.
async fn stage<S: Store>(
    edge: &Edge<S>,
    source: &SessionKey,
    target: &SessionKey,
    at: Seq,
    name: &str,
) -> Result<Option<Cut>, Fault> {
    let store = edge.desk.store();
    let read = async |after: Seq| {
        let page = edge.reader.page(source, after, PAGE_BYTES).await;
        page.map_err(|error| fault_of(source, &error))
    };
    let mut page = read(Seq::ZERO).await?;
    let pages = Pages::begin(&**store, source, &page).await.map_err(|error| fault_of(source, &error))?;
    let Some(mut pages) = pages else { return Ok(None) };
    let mut view = view_of(pages.base.as_ref()).map_err(broken)?;
    if at < view.seq() {
        let message =
            format!("the session is kept from {} on: it cannot be forked before that", page.head.floor);
        return Err(Fault::new(Code::BadCursor, message));
    }
    let mut bytes = 0;
    loop {
        if !pages.is_exact(&page) {
            return Ok(None);
        }
        // What was read so far is of another log.
        if !pages.take(&page) {
            return Err(changed());
        }
        let mut parts = Vec::new();
        for record in page.records.iter().take_while(|record| record.from <= at) {
            let Some(part) = truncate(record, at).map_err(broken)? else { break };
            view.apply(&part, since_of(&page.epochs, &part)).map_err(|error| match error {
                view::Error::Gap { .. } => changed(),
                error => broken(error),
            })?;
            let is_cut = part.to < record.to;
            parts.push(part);
            if is_cut {
                break;
            }
        }
        let folded = fold_past(&parts, page.head.folded_to, Limits::default()).map_err(broken)?;
        bytes += folded.iter().map(|record| record.blocks.len() as u64).sum::<u64>();
        store.stage(target, name, &folded).await.map_err(|error| fault_of(target, &error))?;
        if view.seq() >= at || view.seq() < pages.after() || page.records.is_empty() {
            let cut = Cut { view, epochs: page.epochs, floor: page.head.floor, base: pages.base, bytes };
            return if cut.view.seq() == Seq::ZERO { Err(changed()) } else { Ok(Some(cut)) };
        }
        page = read(pages.after()).await?;
    }
}

async fn plant<S: Store>(
    edge: &Edge<S>,
    target: &SessionKey,
    gone: Option<Epoch>,
    by: &Author,
    (name, cut): (&str, &Cut),
    forked: &Forked,
) -> Result<Planted, Error> {
    let text = |e: serde_json::Error| Error::Corrupt(e.to_string());
    let by = serde_json::to_string(by).map_err(text)?;
    let entries = serde_json::to_string(&forked.entries).map_err(text)?;
    let state = serde_json::to_string(&forked.state).map_err(text)?;
    let head = cut.view.seq();
    // What began after the cut is of the source alone.
    let epochs: Vec<_> = cut.epochs.iter().copied().filter(|(_, since)| *since <= head).collect();
    let plant = Plant {
        over: Over::Nothing { gone },
        epochs: &epochs,
        head,
        changes: 1,
        fence_last: 0,
        floor: cut.floor,
        base: cut.base.as_ref().map(|base| base.text.as_str()),
        folded_bytes: cut.bytes,
        state: &state,
        next_due: None,
        first: Some(First {
            by: &by,
            entries: &entries,
            count: u32::try_from(forked.entries.len()).unwrap_or(u32::MAX),
        }),
    };
    edge.desk.store().plant(target, name, plant).await
}

fn changed() -> Fault {
    Fault::new(Code::Conflict, "the session lost a part while it was forked: try again")
}

fn broken(error: impl std::fmt::Display) -> Fault {
    tracing::error!(%error, "a session cannot be forked");
    Fault::new(Code::Internal, "the server cannot read this session")
}
