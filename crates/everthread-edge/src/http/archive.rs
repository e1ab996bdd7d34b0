//! The route that archives a session now, for operators and tests.

use super::{Answer, Named, enter, json_response};
use crate::Edge;
use axum::extract::{Request, State};
use everthread_protocol::{Code, Fault};
use everthread_store::{Archived, Store};
use http::StatusCode;
use serde_json::json;

pub(super) async fn archive<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (_, key) = enter(&edge, request.headers(), &session)?;
    let Some(options) = &edge.config.archive else {
        let message = "this node has no archive: start it with --archive";
        return Err(Fault::new(Code::NotSupported, message).into());
    };
    let archived = match options.archiver.archive(&key).await.map_err(|error| error.fault())? {
        Archived::Done => true,
        Archived::Already => false,
        Archived::Busy => return Err(Fault::new(Code::Busy, "something goes on in the session").into()),
    };
    Ok(json_response(StatusCode::OK, &json!({ "archived": archived })))
}
