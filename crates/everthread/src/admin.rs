//! The admin port: liveness, readiness, metrics.

use crate::metrics::Process;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use everthread_edge::Edge;
use everthread_store::Store;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Routes of the admin port. `draining` turns readiness off before anything else happens.
pub fn router<S: Store>(edge: Edge<S>, draining: Arc<AtomicBool>) -> anyhow::Result<Router> {
    let process = Arc::new(Process::new(edge.metrics.clone(), draining.clone())?);
    Ok(Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if draining.load(Ordering::Acquire) {
                    (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
                } else if edge.desk.store().is_ready() {
                    (StatusCode::OK, "ok\n")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n")
                }
            }),
        )
        .route("/metrics", get(move || async move { process.render() })))
}
