//! What tests need of the outside world: a real Redis server per test, and a network between it and us that can fail.
//!
//! [`RedisServer`] owns a `redis-server` process in a temporary directory; [`RedisSentinels`] a primary with replicas and
//! the sentinels that watch them, [`RedisCluster`] primaries with a replica each; [`Proxy`] owns a TCP listener in front of
//! an upstream, and [`Balancer`] one in front of several nodes. All end with their value, so a test that fails leaves nothing behind.

mod balancer;
mod proxy;
mod redis_cluster;
mod redis_sentinels;
mod redis_server;

pub use balancer::Balancer;
pub use proxy::{Direction, Proxy};
pub use redis_cluster::RedisCluster;
pub use redis_sentinels::RedisSentinels;
pub use redis_server::{RedisOptions, RedisServer, newer_redis};

use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks whether something is so.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `probe` gives something, at most `limit`; says what it waited for when it never came.
async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let last = match probe().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        anyhow::ensure!(Instant::now() < deadline, "{what}: not within {limit:?}{last}");
        sleep(POLL).await;
    }
}
