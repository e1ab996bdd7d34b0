//! What is counted of the process itself: the runtime that carries all tasks, and whether the node is on its way out.
//! Looked at when somebody asks for the metrics. The table in docs/OPERATIONS.md has the same names.

use everthread_edge::metrics::Metrics;
use prometheus::{Counter, IntGauge};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeMetrics};

/// Gauges that are set when they are looked at.
pub struct Process {
    metrics: Metrics,
    is_draining: Arc<AtomicBool>,
    runtime: RuntimeMetrics,
    draining: IntGauge,
    workers: IntGauge,
    tasks: IntGauge,
    queue: IntGauge,
    busy: Counter,
}

impl Process {
    /// Those of the runtime that calls this, shown with the others.
    pub fn new(metrics: Metrics, is_draining: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let process = Self {
            metrics,
            is_draining,
            runtime: Handle::current().metrics(),
            draining: IntGauge::new(
                "everthread_draining",
                "Whether the node says good-bye: 1 from the signal on.",
            )?,
            workers: IntGauge::new("everthread_runtime_workers", "Threads that carry tasks.")?,
            tasks: IntGauge::new("everthread_runtime_tasks", "Tasks that have not ended.")?,
            queue: IntGauge::new(
                "everthread_runtime_queue_depth",
                "Tasks that could go on and that no thread has taken yet.",
            )?,
            busy: Counter::new(
                "everthread_runtime_busy_seconds_total",
                "Time that the threads spent on tasks, over all of them.",
            )?,
        };
        let gauges = [&process.draining, &process.workers, &process.tasks, &process.queue];
        process.metrics.also(gauges.map(|gauge| Box::new(gauge.clone()) as _).into());
        process.metrics.also(vec![Box::new(process.busy.clone())]);
        Ok(process)
    }

    /// All metrics of the node, in Prometheus' text format.
    pub fn render(&self) -> String {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.draining.set(i64::from(self.is_draining.load(Ordering::Acquire)));
        self.workers.set(count(self.runtime.num_workers()));
        self.tasks.set(count(self.runtime.num_alive_tasks()));
        self.queue.set(count(self.runtime.global_queue_depth()));
        let busy: Duration = (0..self.runtime.num_workers())
            .map(|worker| self.runtime.worker_total_busy_duration(worker))
            .sum();
        // Two who look at once may each have seen what the other has added.
        self.busy.inc_by((busy.as_secs_f64() - self.busy.get()).max(0.0));
        self.metrics.render()
    }
}
