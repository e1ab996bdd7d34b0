//! Routes of controls, and of taking a session over.

use super::{Answer, Named, NamedWithin, body, enter, json_response, query};
use crate::{Edge, control, put};
use axum::extract::{Request, State};
use everthread_protocol::control::Mode;
use everthread_protocol::entry::{ControlKind, Target};
use everthread_protocol::{AgentName, ControlId, Fault, Level, RequestId};
use everthread_store::Store;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::time::Duration;

/// How long `?wait_ms=` may make a request wait.
const WAIT_MAX_MS: u64 = 30_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    id: Option<ControlId>,
    kind: ControlKind,
    target: Target,
    mode: Option<Mode>,
    payload: Option<Box<RawValue>>,
    expires_ms: Option<u64>,
    ack: Option<Level>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitQuery {
    wait_ms: Option<u64>,
}

impl WaitQuery {
    fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms.unwrap_or(0).min(WAIT_MAX_MS))
    }
}

pub(super) async fn ask<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (identity, key) = enter(&edge, request.headers(), &session)?;
    let wait = query::<WaitQuery>(&request)?.wait();
    let Asked { id, kind, target, mode, payload, expires_ms, ack } = body(request).await?;
    let id = id.unwrap_or_else(put::fresh_id);
    let asked = control::read(id, identity.author, target, kind, mode, payload.as_deref(), expires_ms)?;
    let asked = control::ask(&edge, &key, asked, ack).await?;
    let receipt = control::wait_for(&edge, &key, asked.receipt, asked.at, wait).await?;
    let status = if control::is_settled(&receipt) { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(json_response(status, &receipt))
}

pub(super) async fn show<S: Store>(
    State(edge): State<Edge<S>>,
    NamedWithin(session, control): NamedWithin,
    request: Request,
) -> Answer {
    let (_, key) = enter(&edge, request.headers(), &session)?;
    let wait = query::<WaitQuery>(&request)?.wait();
    let id: ControlId = control.parse().map_err(|e| Fault::bad_request(format!("control: {e}")))?;
    let receipt = control::receipt_now(&edge.desk, &key, &id).await?;
    let receipt = control::wait_for(&edge, &key, receipt, None, wait).await?;
    Ok(json_response(StatusCode::OK, &receipt))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hold {
    id: Option<RequestId>,
    reason: Option<String>,
}

pub(super) async fn hold<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (identity, key) = enter(&edge, request.headers(), &session)?;
    let Hold { id, reason } = body(request).await?;
    let id = id.unwrap_or_else(put::fresh_id);
    let cursor = control::hold(&edge.desk, &key, &identity.author, &id, reason).await?;
    Ok(json_response(StatusCode::OK, &json!({ "cursor": cursor })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    id: Option<RequestId>,
    reason: Option<String>,
    agent: Option<AgentName>,
    run: Option<bool>,
}

pub(super) async fn release<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (identity, key) = enter(&edge, request.headers(), &session)?;
    let Release { id, reason, agent, run } = body(request).await?;
    let id = id.unwrap_or_else(put::fresh_id);
    let goes_on = run.unwrap_or(true);
    let released = control::release(&edge.desk, &key, &identity.author, &id, reason, agent, goes_on);
    let (cursor, run) = released.await?;
    let mut answer = json!({ "cursor": cursor });
    if let Some(run) = run {
        answer["run"] = json!(run);
    }
    Ok(json_response(StatusCode::OK, &answer))
}
