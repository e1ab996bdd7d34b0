//! The web console, compiled into the binary. On a loopback address of `dev` the page gets the development token with it.

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use everthread_edge::auth::Auth;

const INDEX: &str = include_str!("../../../console/dist/index.html");
const SCRIPT: &str = include_str!("../../../console/dist/app.js");
const STYLE: &str = include_str!("../../../console/dist/style.css");
/// Stands in the page where its configuration goes.
const PLACEHOLDER: &str = "<!--everthread-config-->";
/// Nothing but our own files and our own sockets.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page is told.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PageConfig {
    /// The development token; without it the page asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Agents to choose from.
    pub agents: Vec<String>,
}

/// Routes of the console. Pages are only given to whom `auth` lets in: the token is in them.
pub fn router(auth: Auth, config: &PageConfig) -> Router {
    let json = serde_json::to_string(config).unwrap_or_default().replace('<', "\\u003c");
    let block = format!("<script type=\"application/json\" id=\"everthread-config\">{json}</script>");
    let page = INDEX.replace(PLACEHOLDER, &block);
    let index = move |headers: HeaderMap| async move {
        match auth.check_origin(&headers) {
            Ok(()) => asset("text/html; charset=utf-8", page),
            Err(fault) => (StatusCode::FORBIDDEN, fault.to_string()).into_response(),
        }
    };
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/console") }))
        .route("/console", get(index.clone()))
        .route("/console/", get(index))
        .route(
            "/console/app.js",
            get(|| async { asset("text/javascript; charset=utf-8", SCRIPT.to_owned()) }),
        )
        .route("/console/style.css", get(|| async { asset("text/css; charset=utf-8", STYLE.to_owned()) }))
}

fn asset(kind: &'static str, body: String) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
