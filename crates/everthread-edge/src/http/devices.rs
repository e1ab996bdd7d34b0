//! Routes of devices: how far each has read.

use super::{Answer, Named, NamedWithin, body, enter, json_response};
use crate::Edge;
use crate::reader::fault_of;
use axum::extract::{Request, State};
use everthread_protocol::{Code, Cursor, DeviceId, Fault, SessionKey};
use everthread_store::{Device, Error, Refusal, Store};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

pub(super) async fn list<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    headers: HeaderMap,
) -> Answer {
    let (_, key) = enter(&edge, &headers, &session)?;
    let listed = edge.desk.listed(&key).await.map_err(|f| f.fault())?;
    let devices = edge.desk.store().devices(&key).await.map_err(|e| fault_of(&key, &e))?;
    let shown = devices.iter().map(|device| {
        let mut shown = json!({ "device": device.device, "cursor": device.cursor, "at": device.at });
        let (acked, unread) = Device::unread(Some(device), &listed.epochs, listed.head.seq);
        if let Some(acked) = acked {
            shown["acked"] = json!(acked);
        }
        shown["unread_entries"] = json!(unread);
        shown
    });
    Ok(json_response(StatusCode::OK, &json!({ "devices": shown.collect::<Vec<_>>() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledged {
    cursor: Cursor,
}

pub(super) async fn acknowledge<S: Store>(
    State(edge): State<Edge<S>>,
    NamedWithin(session, device): NamedWithin,
    request: Request,
) -> Answer {
    let (_, key) = enter(&edge, request.headers(), &session)?;
    let device = named(&device)?;
    let Acknowledged { cursor } = body(request).await?;
    let stands = edge.desk.store().ack(&key, &device, cursor).await.map_err(|e| fault_of(&key, &e))?;
    let cursor = stands.ok_or_else(|| Fault::new(Code::BadCursor, "the cursor is not of this log"))?;
    Ok(json_response(StatusCode::OK, &json!({ "cursor": cursor })))
}

pub(super) async fn forget<S: Store>(
    State(edge): State<Edge<S>>,
    NamedWithin(session, device): NamedWithin,
    headers: HeaderMap,
) -> Answer {
    let (_, key) = enter(&edge, &headers, &session)?;
    let device = named(&device)?;
    let was_known = edge.desk.store().forget_device(&key, &device).await.map_err(|e| fault_of(&key, &e))?;
    if !was_known {
        let heads =
            edge.desk.store().heads(std::slice::from_ref(&key)).await.map_err(|e| fault_of(&key, &e))?;
        if heads.first().is_none_or(Option::is_none) {
            return Err(Error::Refused(Refusal::NoSession).fault().into());
        }
    }
    Ok(json_response(StatusCode::OK, &json!({ "forgotten": was_known })))
}

fn named(device: &str) -> Result<DeviceId, Fault> {
    device.parse().map_err(|e| Fault::bad_request(format!("device: {e}")))
}

/// How far a device has read each of these sessions; nothing if no device is asked for.
pub(super) async fn read_by<S: Store>(
    edge: &Edge<S>,
    keys: &[SessionKey],
    device: Option<&DeviceId>,
) -> Result<Vec<Option<Device>>, Fault> {
    match device {
        Some(device) => edge.desk.store().device_in(keys, device).await.map_err(|e| e.fault()),
        None => Ok(vec![None; keys.len()]),
    }
}
