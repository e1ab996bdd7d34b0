//! Opens the store that a node works on, however long that takes.
//!
//! An outage of Redis is no reason for `serve` to end: who starts it again would only wait longer each time. It goes on
//! trying, and tells the admin port and the log why. What waiting does not mend ends it at once.

use crate::admin::Admin;
use crate::config::{Durability, Mode, NodeArgs, without_password};
use anyhow::Context as _;
use everthread_store::embedded::{self, Embedded};
use everthread_store::redis::{Options, Redis, StartError};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the tasks of an attempt to connect that has failed may take to end: they may be dropped at any await.
const ATTEMPT_END_MAX: Duration = Duration::from_secs(1);

/// The tasks that keep Redis connected.
#[derive(Debug, Default)]
pub struct Links {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Links {
    /// Ends them and waits for that; false if some were still there after `patience`.
    pub async fn close(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        timeout(patience, self.tasks.wait()).await.is_ok()
    }
}

/// The store in a file of this node.
pub async fn open_embedded(args: &NodeArgs) -> anyhow::Result<Embedded> {
    let durability = match args.durability {
        Durability::PowerCut => embedded::Durability::PowerCut,
        Durability::Crash => embedded::Durability::Crash,
    };
    let options = embedded::Options { dir: Some(args.data_dir.clone()), durability };
    let store = tokio::task::spawn_blocking(move || Embedded::open(options)).await??;
    tracing::info!(dir = %args.data_dir.display(), "store: embedded");
    Ok(store)
}

/// The store on Redis, as soon as that can be used. `dev` has somebody who waits for it, and gives up on what may pass.
///
/// Every attempt takes seconds, with growing pauses between the connections that it tries: there is none between attempts.
pub async fn connect(mode: Mode, options: &Options, admin: &Admin) -> anyhow::Result<(Redis, Links)> {
    let place = without_password(&options.url);
    let began = Instant::now();
    tracing::info!(url = place, "connecting to Redis");
    admin.waits(format!("connecting to the Redis at {place}"));
    loop {
        let links = Links::default();
        let error = match Redis::connect(options.clone(), &links.tasks, &links.stop).await {
            Ok(store) => {
                tracing::info!(url = place, prefix = options.prefix, "store: Redis");
                return Ok((store, links));
            }
            Err(error) => error,
        };
        links.close(ATTEMPT_END_MAX).await;
        match error {
            StartError::Passing(why) if mode == Mode::Serve => {
                let for_s = began.elapsed().as_secs();
                tracing::warn!(
                    url = place,
                    why,
                    for_s,
                    "Redis cannot be used yet; trying on (`everthread doctor` with the same settings says what to do)"
                );
                admin.waits(format!("Redis cannot be used yet: {why}"));
            }
            error => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot use the Redis at {place} (`everthread doctor` with the same settings says what to do)"
                    )
                });
            }
        }
    }
}
