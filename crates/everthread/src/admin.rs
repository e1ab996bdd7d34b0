//! The admin port: liveness, readiness, metrics. It answers from before the store is there until the very end.

use crate::metrics::Process;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use everthread_edge::Edge;
use everthread_store::Store;
use prometheus::Gauge;
use prometheus::core::Collector;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// What the admin port tells. A cheap handle.
#[derive(Clone)]
pub struct Admin {
    stage: Arc<RwLock<Stage>>,
    /// Turns readiness off before anything else happens.
    is_draining: Arc<AtomicBool>,
}

/// How far the node is.
#[derive(Clone)]
enum Stage {
    /// It waits for something, in words.
    Starting(String),
    /// There is a node.
    Up(Arc<Up>),
}

/// What can be asked of a node, whatever its store.
struct Up {
    is_ready: Box<dyn Fn() -> bool + Send + Sync>,
    metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl Admin {
    /// Of a process that starts.
    pub fn new() -> Self {
        let stage = Stage::Starting("the store is not open yet".to_owned());
        Self { stage: Arc::new(RwLock::new(stage)), is_draining: Arc::default() }
    }

    /// The node waits for something.
    pub fn waits(&self, why: String) {
        self.enter(Stage::Starting(why));
    }

    /// The node is there.
    pub fn is_up<S: Store>(&self, edge: Edge<S>) -> anyhow::Result<()> {
        let process = Process::new(edge.metrics.clone(), self.is_draining.clone())?;
        let (probed, probe_age) = (edge.clone(), ProbeAge::shown_by(&edge));
        let metrics = move || {
            probe_age.look(&probed);
            process.render()
        };
        let is_ready = move || edge.desk.store().is_ready();
        self.enter(Stage::Up(Arc::new(Up { is_ready: Box::new(is_ready), metrics: Box::new(metrics) })));
        Ok(())
    }

    /// The node is on its way out: not ready any more.
    pub fn drains(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    fn enter(&self, stage: Stage) {
        *self.stage.write().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn stage(&self) -> Stage {
        self.stage.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its routes.
    pub fn router(&self) -> Router {
        let (readiness, metrics) = (self.clone(), self.clone());
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(move || async move { readiness.readiness() }))
            .route("/metrics", get(move || async move { metrics.metrics() }))
    }

    fn readiness(&self) -> (StatusCode, String) {
        let unready = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
        match self.stage() {
            _ if self.is_draining.load(Ordering::Acquire) => unready("draining"),
            Stage::Starting(why) => unready(&format!("starting: {why}")),
            Stage::Up(up) if (up.is_ready)() => (StatusCode::OK, "ok\n".to_owned()),
            Stage::Up(_) => unready("the store does not answer"),
        }
    }

    fn metrics(&self) -> (StatusCode, String) {
        match self.stage() {
            Stage::Starting(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("starting: {why}\n")),
            Stage::Up(up) => (StatusCode::OK, (up.metrics)()),
        }
    }
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
