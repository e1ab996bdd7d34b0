//! Routes of branches: a run is done again, another branch is selected. Editing is a `put` or an input with `replaces`.

use super::{Answer, Named, body, enter, json_response};
use crate::{Edge, branch, put};
use axum::extract::{Request, State};
use everthread_protocol::entry::Object;
use everthread_protocol::{RequestId, RunId};
use everthread_store::Store;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Regenerate {
    id: Option<RequestId>,
    run: RunId,
    params: Option<Object>,
}

pub(super) async fn regenerate<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (identity, key) = enter(&edge, request.headers(), &session)?;
    let Regenerate { id, run, params } = body(request).await?;
    let id = id.unwrap_or_else(put::fresh_id);
    let (cursor, run) = branch::regenerate(&edge, &key, &identity.author, &id, &run, params).await?;
    Ok(json_response(StatusCode::ACCEPTED, &json!({ "cursor": cursor, "run": run })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Select {
    id: Option<RequestId>,
    message: String,
}

pub(super) async fn select<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (identity, key) = enter(&edge, request.headers(), &session)?;
    let Select { id, message } = body(request).await?;
    let id = id.unwrap_or_else(put::fresh_id);
    let cursor = branch::select(&edge, &key, &identity.author, &id, &message).await?;
    Ok(json_response(StatusCode::OK, &json!({ "cursor": cursor })))
}
