//! The route that archives a session now, for operators and tests.

use super::{Answer, Named, enter, json_response};
use crate::Edge;
use crate::reader::fault_of;
use axum::extract::{Request, State};
use everthread_protocol::{Code, Fault};
use everthread_store::{Archived, Store};
use http::StatusCode;
use serde_json::json;
use std::time::Duration;

/// How long a request waits. The archiving goes on, and the next request waits for the same.
const PATIENCE: Duration = Duration::from_secs(20);

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
    let Ok(archived) = tokio::time::timeout(PATIENCE, options.archiver.archive(&key)).await else {
        let message = "the session is still on its way into the archive: ask again";
        return Err(Fault::new(Code::Unavailable, message).into());
    };
    let archived = match archived.map_err(|error| fault_of(&key, &error))? {
        Archived::Done => true,
        Archived::Already => false,
        Archived::Busy | Archived::Recent { .. } => {
            return Err(Fault::new(Code::Busy, "something goes on in the session").into());
        }
    };
    Ok(json_response(StatusCode::OK, &json!({ "archived": archived })))
}
