//! The route that forks a session.

use super::{Answer, Named, body, enter, json_response};
use crate::{Edge, fork, put};
use axum::extract::{Request, State};
use everthread_protocol::entry::Object;
use everthread_protocol::{Seq, SessionId, SessionKey};
use everthread_store::Store;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fork {
    at: Option<Seq>,
    session: Option<SessionId>,
    #[serde(default)]
    meta: Object,
}

pub(super) async fn make<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (identity, source) = enter(&edge, request.headers(), &session)?;
    let Fork { at, session, meta } = body(request).await?;
    let session = session.unwrap_or_else(put::fresh_id);
    let target = SessionKey { tenant: source.tenant.clone(), session };
    let done = fork::make(&edge, &source, &target, &identity.author, at, &meta).await?;
    let status = if done.existed { StatusCode::OK } else { StatusCode::CREATED };
    let body = json!({ "session": target.session, "cursor": done.cursor, "meta": done.meta, "at": done.at });
    Ok(json_response(status, &body))
}
