//! The flags of the archive, and what they amount to.

use crate::config::without_password;
use anyhow::{Context as _, ensure};
use clap::Args;
use everthread_archive::{Bucket, Options};
use std::time::Duration;

/// A session that is archived sooner comes back before its reader has scrolled.
const AFTER_MIN: Duration = Duration::from_secs(1);

/// Where sessions go that nobody uses.
#[derive(Debug, Clone, Args)]
pub struct ArchiveArgs {
    /// Keep sessions that nobody uses in a directory or a bucket: file:///path, s3://bucket/prefix, gs://bucket/prefix or
    /// az://container/prefix. Credentials and regions come from the variables of the cloud.
    #[arg(long, env = "EVERTHREAD_ARCHIVE", hide_env_values = true)]
    pub archive: Option<String>,
    /// How long after its last entry a session is archived: a number with ms, s, m, h or d.
    #[arg(long, env = "EVERTHREAD_ARCHIVE_AFTER", default_value = "1d", value_parser = duration)]
    pub archive_after: Duration,
}

impl ArchiveArgs {
    /// The archive, if one is wanted. Nothing is asked of it yet.
    pub fn open(&self) -> anyhow::Result<Option<Options>> {
        let Some(url) = &self.archive else { return Ok(None) };
        ensure!(self.archive_after >= AFTER_MIN, "--archive-after must be at least 1s");
        ensure!(!url.starts_with("memory:"), "--archive memory: forgets everything when this process ends");
        // TLS needs it, and nobody else may have installed it.
        drop(rustls::crypto::ring::default_provider().install_default());
        // Those of the clouds only: others have names that a cloud would take for settings of its own, such as REGION.
        let of_a_cloud =
            |name: &str| ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|cloud| name.starts_with(cloud));
        let texts =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let bucket = Bucket::open(url, texts.filter(|(name, _)| of_a_cloud(name)))
            .with_context(|| format!("--archive {}", without_password(url)))?;
        tracing::info!(url = without_password(url), after = ?self.archive_after, "archive");
        Ok(Some(Options::new(bucket, self.archive_after)))
    }

    /// Tries it; what it is, for people.
    pub async fn check(&self) -> anyhow::Result<String> {
        let (Some(options), Some(url)) = (self.open()?, &self.archive) else { return Ok(String::new()) };
        let url = without_password(url);
        options.bucket.check().await.with_context(|| format!("--archive {url} cannot be used"))?;
        Ok(format!(", archive {url} after {:?}", self.archive_after))
    }
}

/// A number with a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("a number with ms, s, m, h or d, such as 36h".to_owned()),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    ms.map(Duration::from_millis).ok_or_else(|| format!("{text} is no duration"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_with_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("36h"), Ok(Duration::from_secs(36 * 3600)));
        assert_eq!(duration("1d"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "5", "d", "1 d", "-1s", "1w", "1.5h", "99999999999999999999d", "9999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
