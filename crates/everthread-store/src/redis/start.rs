//! The start: whether the servers can be reached and worked with, and if not, whether it is worth waiting for them.

use super::check::{Level, advised, examine};
use super::link::Failure;
use super::route::Shards;
use super::shard::Way;
use super::{Options, Redis};
use std::time::Duration;
use tokio::time::timeout;

/// How long one start waits for Redis.
pub(super) const START_MAX: Duration = Duration::from_secs(5);

/// Why a store does not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Waiting does not mend it: somebody must change something.
    #[error("{0}")]
    Lasting(String),
    /// It may work in a moment.
    #[error("{0}")]
    Passing(String),
}

impl Redis {
    /// Waits until these servers can be worked with. What waiting does not mend is a reason not to start; all else is logged:
    /// a node that is started while one shard is down serves the others.
    pub(super) async fn started(&self, options: &Options) -> Result<(), StartError> {
        let reached = self.reached().await;
        let findings = if reached.is_ok() {
            // What writes may promise is known from the beginning.
            let shards = self.inner.shards.all();
            let looks = shards.iter().flat_map(|shard| [shard.confirmer.look(), shard.syncer.look()]);
            futures_util::future::join_all(looks).await;
            examine(options).await
        } else {
            // Whoever refuses us does so at once; who hardly answers is not to be judged.
            timeout(START_MAX, examine(options)).await.unwrap_or_default()
        };
        let lasting: Vec<_> = findings.iter().filter(|finding| finding.is_lasting()).collect();
        if !lasting.is_empty() {
            let told: Vec<_> = lasting.iter().map(ToString::to_string).collect();
            return Err(StartError::Lasting(told.join("; ")));
        }
        reached.map_err(|failure| StartError::Passing(advised(&failure.why())))?;
        for finding in findings.iter().filter(|finding| finding.level > Level::Good) {
            tracing::warn!("{finding}");
        }
        Ok(())
    }

    /// Waits for a connection to each primary; one is enough.
    async fn reached(&self) -> Result<(), Failure> {
        if let Shards::Many(cluster) = &self.inner.shards {
            cluster.known(START_MAX).await?;
        }
        let shards = self.inner.shards.all();
        let connected = shards.iter().map(|shard| async {
            let connected = shard.link(0, Way::Commands).connected(START_MAX).await;
            connected.map_err(|failure| failure.at(&shard.endpoint))
        });
        let connected = futures_util::future::join_all(connected).await;
        if connected.iter().any(Result::is_ok) { Ok(()) } else { connected.into_iter().collect() }
    }
}
