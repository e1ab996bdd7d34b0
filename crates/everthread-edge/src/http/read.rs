//! Routes that read a session: its state, its messages, its log, all of it.

use super::{Answer, Named, enter, json_response, query, read_after};
use crate::Edge;
use crate::reader::{PAGE_BYTES, fault_of};
use crate::tail::{goes_on, lost, since_of, start_of};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use bytes::Bytes;
use everthread_protocol::frame::ResetReason;
use everthread_protocol::limits::{HISTORY_MESSAGES_MAX, PAGE_ENTRIES_MAX};
use everthread_protocol::{Code, Cursor, Fault, Record, Seq, SessionKey};
use everthread_session::state::meta_of;
use everthread_session::view::View;
use everthread_store::{Error, Page, Refusal, Store};
use futures_util::stream;
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntriesQuery {
    after: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn entries<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (_, key) = enter(&edge, request.headers(), &session)?;
    let asked: EntriesQuery = query(&request)?;
    let limit = asked.limit.unwrap_or(1000);
    if !(1..=PAGE_ENTRIES_MAX).contains(&limit) {
        return Err(Fault::bad_request(format!("limit is 1 to {PAGE_ENTRIES_MAX}")).into());
    }
    let after = read_after(asked.after.as_deref())?;
    let from = after.map_or(Seq::ZERO, |cursor| cursor.seq);
    let page = edge.reader.page(&key, from, PAGE_BYTES).await.map_err(|e| fault_of(&key, &e))?;
    let start = start_of(&page);
    match lost(&page, after.unwrap_or(Cursor { seq: Seq::ZERO, ..start })) {
        None => {}
        Some(ResetReason::Epoch) => {
            let message = "the cursor is not of this log any more: read the state and go on from its cursor";
            return Err(Fault::new(Code::BadCursor, message).into());
        }
        Some(ResetReason::Retention) => return Err(dropped(&page, "go on from its cursor").into()),
    }
    let mut out = String::from("{\"records\":[");
    let mut cursor = after.unwrap_or(Cursor { epoch: page.head.epoch, seq: Seq::ZERO });
    let mut taken = 0;
    for record in &page.records {
        if taken > 0 && taken + record.to.0 - record.from.0 + 1 > limit as u64 {
            break;
        }
        taken += record.to.0 - record.from.0 + 1;
        if !out.ends_with('[') {
            out.push(',');
        }
        push_object(&mut out, record, &page.epochs);
        cursor = Cursor { epoch: record.epoch, seq: record.to };
    }
    let live = cursor.seq >= page.head.seq;
    out.push_str(&format!("],\"cursor\":\"{cursor}\",\"live\":{live}}}"));
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], out).into_response())
}

/// What lies below the floor is gone; what is kept begins after a cursor.
fn dropped(page: &Page, instead: &str) -> Fault {
    let (floor, start) = (page.head.floor, start_of(page));
    let message = format!(
        "entries before seq {floor} were dropped: read what is kept, after {start}, or read the state and {instead}"
    );
    Fault::new(Code::BadCursor, message)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateQuery {
    at: Option<Seq>,
}

pub(super) async fn state<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (_, key) = enter(&edge, request.headers(), &session)?;
    let StateQuery { at } = query(&request)?;
    let (view, page) = edge.reader.view_at(&key, at).await.map_err(|e| fault_of(&key, &e))?;
    if at.is_some_and(|at| at < view.seq()) {
        return Err(dropped(&page, "leave `at` out").into());
    }
    Ok(json_response(StatusCode::OK, &view))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessagesQuery {
    before: Option<Seq>,
    limit: Option<usize>,
}

/// A page of messages, as in a `history` frame.
pub(super) async fn messages<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (_, key) = enter(&edge, request.headers(), &session)?;
    let MessagesQuery { before, limit } = query(&request)?;
    let limit = limit.unwrap_or(50);
    if !(1..=HISTORY_MESSAGES_MAX).contains(&limit) {
        return Err(Fault::bad_request(format!("limit is 1 to {HISTORY_MESSAGES_MAX}")).into());
    }
    let (view, _) = edge.reader.view(&key).await.map_err(|e| fault_of(&key, &e))?;
    let (messages, more) = view.messages_before(before, limit);
    Ok(json_response(StatusCode::OK, &json!({ "messages": messages, "more": more })))
}

/// The whole session as JSON Lines: what it is, then its records, page by page as the reader takes them.
pub(super) async fn export<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (_, key) = enter(&edge, request.headers(), &session)?;
    let loaded = edge.desk.store().load(&key).await.map_err(|e| fault_of(&key, &e))?;
    let loaded = loaded.ok_or_else(|| fault_of(&key, &Error::Refused(Refusal::NoSession)))?;
    // A release that decides otherwise keeps the same log.
    let meta = meta_of(&loaded.state).map_err(|e| fault_of(&key, &Error::Corrupt(e.to_string())))?;
    let epochs: Vec<_> =
        loaded.epochs.iter().map(|(epoch, since)| json!({ "epoch": epoch, "since": since })).collect();
    let base = edge.reader.store().base(&key).await.map_err(|e| fault_of(&key, &e))?;
    let floor = base.as_ref().map_or(Seq(1), |base| base.floor);
    let head = json!({
        "session": key.session, "meta": meta, "seq": loaded.head, "epochs": epochs, "floor": floor,
    });
    // Where the log begins, whatever its first epoch is.
    let epoch = base.as_ref().and_then(|base| View::from_base(&base.text).ok()).map(|view| view.epoch());
    let begin = Cursor { epoch: epoch.unwrap_or_default(), seq: Seq(floor.0 - 1) };
    let base = base.map(|base| format!("{{\"base\":{}}}\n", base.text)).unwrap_or_default();
    let reading = Some((edge, key, begin, loaded.head));
    let pages = stream::try_unfold(reading, |reading| async move {
        let Some((edge, key, after, until)) = reading else { return Ok(None) };
        if after.seq >= until {
            return Ok::<_, std::io::Error>(None);
        }
        let page =
            page(&edge, &key, after.seq).await.map_err(|fault| std::io::Error::other(fault.to_string()))?;
        // Trimmed, deleted and made anew, or a tail lost: better no export than one with a hole, or of two logs.
        if !goes_on(&page, after) {
            return Err(cut_short());
        }
        let Some(last) = page.records.last() else { return Err(cut_short()) };
        let next = Some((edge, key, Cursor { epoch: last.epoch, seq: last.to }, until));
        Ok(Some((lines(&page), next)))
    });
    let first = stream::iter([Ok(Bytes::from(format!("{head}\n{base}")))]);
    let body = Body::from_stream(futures_util::StreamExt::chain(first, pages));
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn cut_short() -> std::io::Error {
    std::io::Error::other("the session lost a part meanwhile: export it again")
}

async fn page<S: Store>(edge: &Edge<S>, key: &SessionKey, after: Seq) -> Result<Page, Fault> {
    edge.reader.page(key, after, PAGE_BYTES).await.map_err(|error| fault_of(key, &error))
}

fn lines(page: &Page) -> Bytes {
    let mut out = String::new();
    for record in &page.records {
        push_object(&mut out, record, &page.epochs);
        out.push('\n');
    }
    Bytes::from(out)
}

/// A record as an object of its own.
fn push_object(out: &mut String, record: &Record, epochs: &[(everthread_protocol::Epoch, Seq)]) {
    let suffix = record.frame_suffix(since_of(epochs, record));
    out.push('{');
    // The suffix of a frame begins with a comma, and ends the frame.
    out.push_str(&String::from_utf8_lossy(&suffix[1..]));
}
