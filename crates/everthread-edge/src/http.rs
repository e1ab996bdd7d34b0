//! HTTP: routes, typed errors for everything that goes wrong on the way to them, and the doors to the WebSockets.

mod archive;
mod branch;
mod control;
mod devices;
mod fork;
mod presence;
mod read;

use crate::auth::Identity;
use crate::departure::Guest;
use crate::feed::summary::Row;
use crate::put::{self, Intent, PutDone};
use crate::reader::fault_of;
use crate::{Edge, client, feed, socket, sse, worker};
use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put as put_route};
use everthread_control::{Numbered, read_state};
use everthread_protocol::control::WhenBusy;
use everthread_protocol::entry::{Object, PutPart, Role, strict_parts};
use everthread_protocol::error::ErrorBody;
use everthread_protocol::frame::Summary;
use everthread_protocol::limits::{FRAME_BYTES_MAX, PAGE_SESSIONS_MAX};
use everthread_protocol::{
    AgentName, Code, Cursor, DeviceId, Fault, Level, MessageId, Millis, RequestId, SessionId, SessionKey,
    scan,
};
use everthread_session::Request as Ask;
use everthread_session::decide::{Put, meta_with};
use everthread_store::Store;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::time::Duration;

/// What the framework says before what is wrong with a query; it tells a client nothing.
const QUERY_FAILED: &str = "Failed to deserialize query string: ";
/// Sessions taken off a list at once, because they are gone.
const UNINDEXED_AT_ONCE: usize = 16;
/// How long the body of a request may take. It is small.
const BODY_MAX: Duration = Duration::from_secs(20);

/// A fault as a response.
pub(crate) struct Failed(pub Fault);

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Failed(fault)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let code = self.0.code;
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(status, &json!({ "error": ErrorBody::from(self.0) }));
        // For whoever counts.
        response.extensions_mut().insert(code);
        response
    }
}

pub(crate) type Answer = Result<Response, Failed>;

pub(crate) fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let text = serde_json::to_string(body).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// All routes of the public port.
pub fn router<S: Store>(edge: Edge<S>) -> Router {
    Router::new()
        .route("/v1/connect", get(connect_client::<S>))
        .route("/v1/worker", get(connect_worker::<S>))
        .route("/v1/feed", get(feed::sse::follow::<S>))
        .route("/v1/sessions", get(list::<S>).post(create::<S>))
        .route("/v1/sessions/{session}", get(show::<S>).patch(update::<S>).delete(delete::<S>))
        .route("/v1/sessions/{session}/input", post(input::<S>))
        .route("/v1/sessions/{session}/control", post(control::ask::<S>))
        .route("/v1/sessions/{session}/control/{control}", get(control::show::<S>))
        .route("/v1/sessions/{session}/hold", post(control::hold::<S>))
        .route("/v1/sessions/{session}/release", post(control::release::<S>))
        .route("/v1/sessions/{session}/regenerate", post(branch::regenerate::<S>))
        .route("/v1/sessions/{session}/archive", post(archive::archive::<S>))
        .route("/v1/sessions/{session}/select", post(branch::select::<S>))
        .route("/v1/sessions/{session}/fork", post(fork::make::<S>))
        .route("/v1/sessions/{session}/entries", get(read::entries::<S>).post(write_entries::<S>))
        .route("/v1/sessions/{session}/devices", get(devices::list::<S>))
        .route(
            "/v1/sessions/{session}/devices/{device}",
            put_route(devices::acknowledge::<S>).delete(devices::forget::<S>),
        )
        .route("/v1/sessions/{session}/presence", get(presence::show::<S>))
        .route("/v1/sessions/{session}/state", get(read::state::<S>))
        .route("/v1/sessions/{session}/messages", get(read::messages::<S>))
        .route("/v1/sessions/{session}/export", get(read::export::<S>))
        .route("/v1/sessions/{session}/follow", get(sse::follow::<S>))
        .fallback(|| async { Failed(Fault::new(Code::NotFound, "there is nothing at this address")) })
        .method_not_allowed_fallback(|| async {
            Failed(Fault::new(Code::NotSupported, "this address does not take this method"))
        })
        .layer(axum::middleware::from_fn_with_state(edge.clone(), watch_over::<S>))
        .with_state(edge)
}

/// Every request passes here: foreign pages are turned away, and what goes wrong is counted.
async fn watch_over<S: Store>(
    State(edge): State<Edge<S>>,
    request: Request,
    next: axum::middleware::Next,
) -> Response {
    let response = match edge.config.auth.check_origin(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(fault) => Failed(fault).into_response(),
    };
    if let Some(code) = response.extensions().get::<Code>() {
        edge.metrics.errors.with_label_values(&[code.as_str()]).inc();
    }
    response
}

async fn connect_client<S: Store>(State(edge): State<Edge<S>>, request: Request) -> Answer {
    // Workers are few, and their runs wait for them: they are not held back.
    match edge.admission.pass() {
        Ok(()) => upgrade(edge, request, client::serve),
        Err(pause) => Ok(refused_for(pause)),
    }
}

async fn connect_worker<S: Store>(State(edge): State<Edge<S>>, request: Request) -> Answer {
    upgrade(edge, request, |edge, inbound, outbox, token, guest| {
        Box::pin(worker::serve(edge, inbound, outbox, token, guest))
    })
}

type Serve<S> = fn(
    Edge<S>,
    socket::Inbound,
    socket::Outbox,
    Option<String>,
    Guest,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Too many clients have connected just now: when this one may come again.
fn refused_for(pause: Duration) -> Response {
    let fault = Fault::new(Code::Overloaded, "too many clients connect at once: come again later");
    let after_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    let body = ErrorBody { after_ms: Some(after_ms), ..ErrorBody::from(fault) };
    let mut response = json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": body }));
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, header::HeaderValue::from(after_ms.div_ceil(1000)));
    response.extensions_mut().insert(Code::Overloaded);
    response
}

fn upgrade<S: Store>(edge: Edge<S>, mut request: Request, serve: Serve<S>) -> Answer {
    if edge.departures.is_begun() {
        return Err(
            Fault::new(Code::Draining, "this node is shutting down: connect again, to another").into()
        );
    }
    let token = crate::auth::bearer(request.headers()).map(str::to_owned);
    let (upgrade, response) = socket::accept(&mut request)?;
    let token = token.or(upgrade.token.clone());
    let (tasks, guest) = (edge.tasks.clone(), edge.departures.enter());
    tasks.spawn(async move {
        if let Some((inbound, outbox)) = upgrade.socket().await {
            serve(edge, inbound, outbox, token, guest).await;
        }
    });
    Ok(response)
}

/// The session of the path, as text.
pub(crate) struct Named(pub String);

impl<T: Send + Sync> FromRequestParts<T> for Named {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &T) -> Result<Self, Failed> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(session) = path.map_err(|e| Fault::bad_request(format!("session: {}", e.body_text())))?;
        Ok(Named(session))
    }
}

/// The session of the path and what is named below it, as text.
pub(crate) struct NamedWithin(pub String, pub String);

impl<T: Send + Sync> FromRequestParts<T> for NamedWithin {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &T) -> Result<Self, Failed> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((session, within)) =
            path.map_err(|e| Fault::bad_request(format!("address: {}", e.body_text())))?;
        Ok(NamedWithin(session, within))
    }
}

/// A session's key from the path, for somebody whose token is good.
pub(crate) fn enter<S: Store>(
    edge: &Edge<S>,
    headers: &HeaderMap,
    session: &str,
) -> Result<(Identity, SessionKey), Fault> {
    let identity = edge.config.auth.check_headers(headers)?;
    let session: SessionId = session.parse().map_err(|e| Fault::bad_request(format!("session: {e}")))?;
    let key = SessionKey { tenant: identity.tenant.clone(), session };
    Ok((identity, key))
}

/// A JSON body, checked like everything that is kept.
async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Fault> {
    body_within(BODY_MAX, request).await
}

async fn body_within<T: DeserializeOwned>(most: Duration, request: Request) -> Result<T, Fault> {
    let read = axum::body::to_bytes(request.into_body(), FRAME_BYTES_MAX);
    let Ok(read) = tokio::time::timeout(most, read).await else {
        return Err(Fault::bad_request(format!("a body comes within {} s", most.as_secs())));
    };
    let bytes = read.map_err(|_| {
        Fault::new(Code::TooLarge, format!("FRAME_BYTES_MAX: a body has at most {FRAME_BYTES_MAX} bytes"))
    })?;
    let bytes = if bytes.is_empty() { bytes::Bytes::from_static(b"{}") } else { bytes };
    scan::value(&bytes).map_err(|e| Fault::bad_request(format!("body: {e}")))?;
    // A struct would be read from an array as well: then what a field means would depend on its place.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Fault::bad_request("body: an object is wanted"));
    }
    // What is wrong is of little use without where.
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&bytes))
        .map_err(|e| Fault::bad_request(format!("body: {e}")))
}

pub(crate) fn query<T: DeserializeOwned>(request: &Request) -> Result<T, Fault> {
    Query::<T>::try_from_uri(request.uri()).map(|Query(query)| query).map_err(|e| {
        let text = e.body_text();
        Fault::bad_request(format!("query: {}", text.strip_prefix(QUERY_FAILED).unwrap_or(&text)))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    session: Option<SessionId>,
    agent: Option<AgentName>,
    title: Option<String>,
    #[serde(default)]
    meta: Object,
}

async fn create<S: Store>(State(edge): State<Edge<S>>, request: Request) -> Answer {
    let identity = edge.config.auth.check_headers(request.headers())?;
    let create: Create = body(request).await?;
    let session = create.session.unwrap_or_else(put::fresh_id);
    let key = SessionKey { tenant: identity.tenant.clone(), session };
    let meta = meta_with(create.meta, create.agent.as_ref(), create.title.as_deref());
    let open = Ask::Open { meta: meta.clone() };
    match edge.desk.decide(&key, &identity.author, &open, Numbered::No).await {
        Ok(decided) => {
            let cursor = Cursor { epoch: decided.written.epoch, seq: decided.written.to };
            let body = json!({ "session": key.session, "cursor": cursor, "meta": meta });
            Ok(json_response(StatusCode::CREATED, &body))
        }
        Err(failure) if failure.fault().code == Code::IdConflict => {
            let (loaded, state) = edge.desk.load(&key).await.map_err(|f| f.fault())?;
            let cursor = Cursor { epoch: loaded.version.epoch, seq: loaded.head };
            let body = json!({ "session": key.session, "cursor": cursor, "meta": state.meta });
            Ok(json_response(StatusCode::OK, &body))
        }
        Err(failure) => Err(failure.fault().into()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<usize>,
    after: Option<String>,
    device: Option<DeviceId>,
}

async fn list<S: Store>(State(edge): State<Edge<S>>, request: Request) -> Answer {
    let identity = edge.config.auth.check_headers(request.headers())?;
    let asked: ListQuery = query(&request)?;
    let limit = asked.limit.unwrap_or(50);
    if !(1..=PAGE_SESSIONS_MAX).contains(&limit) {
        return Err(Fault::bad_request(format!("limit is 1 to {PAGE_SESSIONS_MAX}")).into());
    }
    let after = asked.after.as_deref().map(read_page_mark).transpose()?;
    let store = edge.desk.store();
    let found = store.sessions(&identity.tenant, after, limit).await.map_err(|e| e.fault())?;
    let next =
        (found.len() == limit).then(|| found.last().map(|(id, at)| format!("{}.{id}", at.0))).flatten();
    let keys: Vec<SessionKey> = found
        .iter()
        .map(|(session, _)| SessionKey { tenant: identity.tenant.clone(), session: session.clone() })
        .collect();
    let read = devices::read_by(&edge, &keys, asked.device.as_ref()).await?;
    let states = store.states(&keys).await.map_err(|e| e.fault())?;
    let (mut sessions, mut gone) = (Vec::<Summary>::with_capacity(found.len()), Vec::new());
    for (((key, (session, at)), listed), read) in keys.into_iter().zip(found).zip(states).zip(read) {
        let Some(listed) = listed else {
            gone.push((key, at));
            continue;
        };
        let row = Row::of(session, at, listed);
        sessions.push(if asked.device.is_some() { row.for_device(read.as_ref()) } else { row.summary });
    }
    // The index is only an index.
    let forget = stream::iter(gone).for_each_concurrent(UNINDEXED_AT_ONCE, |(key, at)| async move {
        if let Err(error) = store.unindex(&key, at).await {
            tracing::debug!(%key, %error, "a session that is gone stays in the index");
        }
    });
    forget.await;
    let mut answer = json!({ "sessions": sessions });
    if let Some(next) = next {
        answer["next"] = Value::String(next);
    }
    Ok(json_response(StatusCode::OK, &answer))
}

fn read_page_mark(mark: &str) -> Result<(Millis, SessionId), Fault> {
    let bad = || Fault::bad_request("after is the \"next\" of the page before");
    let (at, session) = mark.split_once('.').ok_or_else(bad)?;
    Ok((Millis(at.parse().map_err(|_| bad())?), session.parse().map_err(|_| bad())?))
}

/// Deletes a session, whoever follows it or works in it.
async fn delete<S: Store>(State(edge): State<Edge<S>>, Named(session): Named, headers: HeaderMap) -> Answer {
    let (identity, key) = enter(&edge, &headers, &session)?;
    let deleted = edge.desk.store().delete(&key).await.map_err(|e| fault_of(&key, &e))?;
    if let Some(deleted) = &deleted {
        edge.metrics.deletions.inc();
        tracing::info!(%key, by = %identity.author.id, head = %deleted.head, "a session was deleted");
    }
    Ok(json_response(StatusCode::OK, &json!({ "deleted": deleted.is_some() })))
}

async fn show<S: Store>(State(edge): State<Edge<S>>, Named(session): Named, headers: HeaderMap) -> Answer {
    let (_, key) = enter(&edge, &headers, &session)?;
    let listed = edge.desk.listed(&key).await.map_err(|f| f.fault())?;
    let state = read_state(&listed.state).map_err(|f| f.fault())?;
    let runs: Vec<Value> = state
        .open_runs()
        .map(|(id, run)| {
            let status = crate::control::status_word(&run.status);
            json!({ "run": id, "agent": run.agent, "status": status })
        })
        .collect();
    let cursor = Cursor { epoch: listed.head.epoch, seq: listed.head.seq };
    let mut body = json!({
        "session": key.session, "cursor": cursor, "meta": state.meta, "closed": state.closed, "runs": runs,
    });
    if listed.head.archived {
        body["archived"] = true.into();
    }
    Ok(json_response(StatusCode::OK, &body))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    meta: Object,
}

async fn update<S: Store>(State(edge): State<Edge<S>>, Named(session): Named, request: Request) -> Answer {
    let (identity, key) = enter(&edge, request.headers(), &session)?;
    let update: Update = body(request).await?;
    let ask = Ask::Update { patch: update.meta };
    let decided =
        edge.desk.decide(&key, &identity.author, &ask, Numbered::No).await.map_err(|f| f.fault())?;
    let cursor = Cursor { epoch: decided.written.epoch, seq: decided.written.to };
    Ok(json_response(StatusCode::OK, &json!({ "cursor": cursor })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    id: Option<RequestId>,
    text: Option<String>,
    #[serde(default, deserialize_with = "strict_parts")]
    parts: Option<Vec<PutPart>>,
    agent: Option<AgentName>,
    params: Option<Object>,
    reply_to: Option<String>,
    message: Option<MessageId>,
    when_busy: Option<WhenBusy>,
    replaces: Option<String>,
    ack: Option<Level>,
}

async fn input<S: Store>(State(edge): State<Edge<S>>, Named(session): Named, request: Request) -> Answer {
    let (identity, key) = enter(&edge, request.headers(), &session)?;
    let input: Input = body(request).await?;
    let parts = match (input.text, input.parts) {
        (Some(text), None) => vec![PutPart::text(text)],
        (None, Some(parts)) => parts,
        _ => return Err(Fault::bad_request("send either \"text\" or \"parts\"").into()),
    };
    let Input { reply_to, agent, params, when_busy, ack, .. } = input;
    let message = input.message.unwrap_or_else(put::fresh_id);
    let put = Put { message, role: Role::User, parts, reply_to, agent, params, when_busy, branch: None };
    let intent = Intent::Message(put, input.replaces);
    let id = input.id.unwrap_or_else(put::fresh_id);
    let done = put::carry_out(&edge, &key, &identity.author, &id, intent, ack).await?;
    Ok(json_response(StatusCode::ACCEPTED, &put_body(&done)))
}

fn put_body(done: &PutDone) -> Value {
    let mut body = json!({ "cursor": done.cursor });
    if let Some(message) = &done.message {
        body["message"] = json!(message);
    }
    if let Some(run) = &done.run {
        body["run"] = json!(run);
    }
    if let Some(control) = &done.control {
        body["control"] = json!(control);
    }
    if done.duplicate {
        body["duplicate"] = true.into();
    }
    if let Some(level) = done.ack {
        body["ack"] = json!(level);
    }
    body
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteEntries {
    id: Option<RequestId>,
    agent: Option<AgentName>,
    when_busy: Option<WhenBusy>,
    replaces: Option<String>,
    ack: Option<Level>,
    /// As they stand: what is written is what was sent.
    entries: Box<RawValue>,
}

async fn write_entries<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (identity, key) = enter(&edge, request.headers(), &session)?;
    let write: WriteEntries = body(request).await?;
    let intent = Intent::read(write.entries.get(), write.agent, write.when_busy, write.replaces)?;
    let id = write.id.unwrap_or_else(put::fresh_id);
    let done = put::carry_out(&edge, &key, &identity.author, &id, intent, write.ack).await?;
    Ok(json_response(StatusCode::ACCEPTED, &put_body(&done)))
}

/// A cursor of a query: absent and `0` mean the start.
pub(crate) fn read_after(text: Option<&str>) -> Result<Option<Cursor>, Fault> {
    match text {
        None | Some("0" | "") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Fault::new(Code::BadCursor, "after is a cursor, \"<epoch>.<seq>\", or 0")),
    }
}

/// An empty body, for responses that stream.
pub(crate) fn stream_response(body: Body) -> Response {
    (
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")],
        [("x-accel-buffering", "no")],
        body,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let endless = Body::from_stream(stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let given_up = body_within::<Update>(Duration::from_millis(10), Request::new(endless)).await;
        let fault = given_up.err().unwrap();
        assert_eq!(fault.code, Code::BadRequest, "{fault}");
    }
}
