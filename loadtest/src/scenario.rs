//! What scenarios have in common: the nodes, what is watched, and where the report goes.

pub mod idle;
pub mod join;
pub mod stream;

use crate::cli::NodeArgs;
use crate::meter::Latency;
use crate::process::Watched;
use crate::report::{Output, Report};
use crate::sampler::Watch;
use crate::setup::stamp;
use crate::socket::Target;
use serde_json::{Map, Value};

/// Where a scenario runs, and what it looks at.
#[derive(Debug, Clone)]
pub struct Env {
    /// The nodes.
    pub targets: Vec<Target>,
    /// What is watched.
    pub watch: Watch,
    /// Threads of the generator.
    pub threads: usize,
    /// Where the report goes.
    pub output: Output,
    /// What names of this run begin with.
    pub stamp: u64,
}

impl Env {
    /// As the command line says.
    pub async fn new(node: &NodeArgs) -> anyhow::Result<Env> {
        let mut targets = Vec::new();
        for url in &node.url {
            targets.push(Target::resolve(url, &node.token, node.sources).await?);
        }
        let processes = Watched::parse(&node.pid)?;
        let watch = Watch { processes, redis: node.redis.clone(), quiet: node.quiet };
        let output = Output { json: node.json.clone(), html: node.html.clone(), label: node.label.clone() };
        Ok(Env { targets, watch, threads: node.threads.max(1), output, stamp: stamp() })
    }

    /// An empty report.
    pub fn report(&self, scenario: &str) -> Report {
        let mut report = Report::new(scenario, &self.output.label, self.stamp);
        report.params.insert("nodes".to_owned(), self.targets.len().into());
        report.params.insert("threads".to_owned(), self.threads.into());
        report
    }
}

/// The fields of something that serializes to an object.
pub fn fields(of: &impl serde::Serialize) -> anyhow::Result<Map<String, Value>> {
    match serde_json::to_value(of)? {
        Value::Object(fields) => Ok(fields),
        _ => Ok(Map::new()),
    }
}

/// Latencies that a scenario measured by itself.
pub fn latencies(report: &mut Report, all: &[(&'static str, Option<Latency>)]) {
    report.latency_ms.extend(all.iter().filter_map(|(name, latency)| Some((*name, (*latency)?))));
}
