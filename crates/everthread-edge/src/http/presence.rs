//! Route of presence: who is in a session now.

use super::{Answer, Named, enter};
use crate::Edge;
use crate::presence::{TOLD_MAX, tell_everybody};
use crate::reader::fault_of;
use axum::extract::State;
use axum::response::IntoResponse as _;
use everthread_store::{Error, Refusal, Store};
use http::{HeaderMap, StatusCode, header};

pub(super) async fn show<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    headers: HeaderMap,
) -> Answer {
    let (_, key) = enter(&edge, &headers, &session)?;
    let store = edge.desk.store();
    let heads = store.heads(std::slice::from_ref(&key)).await.map_err(|e| fault_of(&key, &e))?;
    if heads.iter().all(Option::is_none) {
        return Err(fault_of(&key, &Error::Refused(Refusal::NoSession)).into());
    }
    let present = store.present(&key, TOLD_MAX).await.map_err(|e| fault_of(&key, &e))?;
    let body = tell_everybody(&present);
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}
