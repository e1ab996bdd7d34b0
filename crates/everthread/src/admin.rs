//! The admin port: liveness, readiness, metrics.

use crate::metrics::Process;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use everthread_edge::Edge;
use everthread_store::Store;
use prometheus::Gauge;
use prometheus::core::Collector;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Routes of the admin port. `draining` turns readiness off before anything else happens.
pub fn router<S: Store>(edge: Edge<S>, draining: Arc<AtomicBool>) -> anyhow::Result<Router> {
    let process = Arc::new(Process::new(edge.metrics.clone(), draining.clone())?);
    let (probed, probe_age) = (edge.clone(), ProbeAge::shown_by(&edge));
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
        .route(
            "/metrics",
            get(move || async move {
                probe_age.look(&probed);
                process.render()
            }),
        ))
}

/// How old the last probe of the store is that came back, looked at whenever somebody asks.
#[derive(Clone)]
struct ProbeAge(Option<Gauge>);

impl ProbeAge {
    fn shown_by<S: Store>(edge: &Edge<S>) -> Self {
        let help = "Since the last probe through the store's writes and its live feed came back.";
        let gauge = Gauge::new("everthread_probe_age_seconds", help).ok();
        edge.metrics.also(gauge.iter().map(|gauge| Box::new(gauge.clone()) as Box<dyn Collector>).collect());
        Self(gauge)
    }

    fn look<S: Store>(&self, edge: &Edge<S>) {
        if let Some(gauge) = &self.0 {
            gauge.set(edge.desk.store().probe_age().unwrap_or_default().as_secs_f64());
        }
    }
}
