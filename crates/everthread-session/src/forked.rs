//! Forks: a session that begins with what another one was up to a seq, and goes on by itself.
//!
//! Its log up to there is the other's, seq by seq; the first block of its own ends whatever was open. Approvals end with
//! their runs; devices, requests that were answered, and controls that are settled stay with the source.
//!
//! **Invariant:** in the view after that block nothing is open: no run, no message, no control, and nobody holds it.

use crate::decide::{Refusal, check_meta};
use crate::fold::numbered;
use crate::state::State;
use crate::view::{RunStatus, View};
use everthread_protocol::entry::{ControlOutcome, Object, Outcome, RefusalReason};
use everthread_protocol::record::InvalidRecord;
use everthread_protocol::{Entry, Record, Seq, SessionId};
use serde_json::{Value, json};
use std::io::Write as _;

/// Key of a fork's meta that says of what, and where.
pub const FORKED_FROM: &str = "forked_from";
/// Why runs and the hold of the source ended in the fork.
const REASON: &str = "forked";

/// How a fork begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Forked {
    /// Its first block.
    pub entries: Vec<Entry>,
    /// Its state after that.
    pub state: State,
}

/// Where a fork comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The source.
    pub session: SessionId,
    /// The last seq that it has from its source.
    pub seq: Seq,
    /// The seq that was asked for: greater, if that lay inside a merged append. A repeat of the request is known by it.
    pub asked: Seq,
}

/// What `meta` says the session was forked from, if it was.
pub fn forked_from(meta: &Object) -> Option<Origin> {
    let from = meta.get(FORKED_FROM)?;
    let session = from.get("session")?.as_str()?.parse().ok()?;
    let seq = Seq(from.get("seq")?.as_u64()?);
    Some(Origin { session, seq, asked: from.get("at").and_then(Value::as_u64).map_or(seq, Seq) })
}

/// How a fork of `source` begins that was asked for at `asked`, and whose view at the cut is `view`; `patch` changes its meta.
pub fn fork(view: &View, source: &SessionId, asked: Seq, patch: &Object) -> Result<Forked, Refusal> {
    if view.session().closed {
        return Err(Refusal::Closed);
    }
    let mut patch = patch.clone();
    let mut from = json!({ "session": source, "seq": view.seq() });
    if asked != view.seq() {
        from["at"] = json!(asked);
    }
    patch.insert(FORKED_FROM.to_owned(), from);
    let mut meta = view.session().meta.clone();
    for (key, value) in &patch {
        match value {
            Value::Null => drop(meta.remove(key)),
            value => drop(meta.insert(key.clone(), value.clone())),
        }
    }
    check_meta(&meta)?;
    let mut entries = vec![Entry::SessionUpdated { patch }];
    // Backwards: children were requested after their parents, and end before them.
    let open = view.runs().iter().rev().filter(|run| run.status != RunStatus::Ended);
    entries.extend(open.map(|run| Entry::RunEnded {
        run: run.run.clone(),
        outcome: Outcome::Cancelled,
        reason: Some(REASON.to_owned()),
        forced: false,
        error: None,
        usage: None,
    }));
    let pending = view.controls().iter().filter(|control| control.outcome.is_none());
    entries.extend(pending.map(|control| Entry::ControlSettled {
        control: control.control.clone(),
        outcome: ControlOutcome::Refused,
        reason: Some(RefusalReason::Forked),
        run: None,
        answered_by: None,
    }));
    if view.session().held.is_some() {
        entries.push(Entry::SessionReleased { reason: Some(REASON.to_owned()) });
    }
    let state = State { values: view.values().clone(), ..State::new(meta) };
    Ok(Forked { entries, state })
}

/// What of a record lies up to `at`, which it covers. Inside a merged append there is no exact cut: then it ends before it,
/// as [`View::apply_until`] does. `None` if nothing is left.
pub fn truncate(record: &Record, at: Seq) -> Result<Option<Record>, InvalidRecord> {
    if record.to <= at {
        return Ok(Some(record.clone()));
    }
    let blocks = record.parse_blocks()?;
    let mut spans = Vec::new();
    for block in &blocks {
        spans.extend(numbered(block, record.from)?.into_iter().map(|(first, last, _)| (first, last)));
    }
    let to = exact(&spans, at);
    if to < record.from {
        return Ok(None);
    }
    let mut out = b"[".to_vec();
    for block in &blocks {
        let kept: Vec<_> =
            numbered(block, record.from)?.into_iter().filter(|(_, last, _)| *last <= to).collect();
        let Some((from, ..)) = kept.first() else { continue };
        // Writing to a Vec cannot fail.
        let comma = if out.len() > 1 { "," } else { "" };
        drop(write!(out, "{comma}{{\"from\":{from},\"by\":{},\"at\":{}", block.by, block.at.0));
        if let Some(run) = &block.run {
            drop(write!(out, ",\"run\":\"{run}\""));
        }
        let spans: Vec<String> = kept.iter().map(|(first, last, _)| format!("[{first},{last}]")).collect();
        let entries: Vec<&str> = kept.iter().map(|(_, _, raw)| raw.get()).collect();
        drop(write!(out, ",\"spans\":[{}],\"entries\":[{}]}}", spans.join(","), entries.join(",")));
    }
    out.push(b']');
    Ok(Some(Record { to, blocks: out.into(), ..*record }))
}

/// The last seq up to `limit` that no entry lies across.
pub(crate) fn exact(spans: &[(Seq, Seq)], limit: Seq) -> Seq {
    let mut cut = limit;
    while let Some((first, _)) = spans.iter().find(|(first, last)| *first <= cut && cut < *last) {
        cut = Seq(first.0 - 1);
    }
    cut
}
