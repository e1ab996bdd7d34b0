//! The flags of folding and retention, and what they amount to.

use crate::archive::duration;
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use everthread_edge::{folder, retention};
use everthread_protocol::TenantId;
use everthread_session::Retention;
use std::num::NonZeroU64;
use std::time::Duration;

/// A look reads a session's oldest records: not after each of its folds.
const RETENTION_EVERY_MIN: Duration = Duration::from_millis(100);

/// How much of sessions is kept, and in which form.
#[derive(Debug, Clone, Args)]
pub struct KeepingArgs {
    /// How long sessions, and how much of them, are kept: ttl=90d,max-age=30d,max-bytes=4MiB, each of them if wanted. For one
    /// tenant with its name and a colon before it. May be given several times; in the variable, with spaces between.
    #[arg(long, env = "EVERTHREAD_RETENTION", value_delimiter = ' ')]
    pub retention: Vec<String>,
    /// So long a node waits at least before it looks again at what is to be dropped of a session.
    #[arg(long, env = "EVERTHREAD_RETENTION_EVERY", default_value = "1m", value_parser = duration)]
    pub retention_every: Duration,
    /// So many entries of a session that are not folded are folded after any write.
    #[arg(long, env = "EVERTHREAD_FOLD_AT", default_value_t = folder::Options::default().at_entries)]
    pub fold_at: u64,
    /// So many are folded after the end of a run.
    #[arg(long, env = "EVERTHREAD_FOLD_AT_END", default_value_t = folder::Options::default().at_end_entries)]
    pub fold_at_end: u64,
    /// The most recent entries that are not folded.
    #[arg(long, env = "EVERTHREAD_FOLD_KEEP", default_value_t = folder::Options::default().keep_entries)]
    pub fold_keep: u64,
}

impl KeepingArgs {
    /// When logs are folded, checked.
    pub fn folding(&self) -> anyhow::Result<folder::Options> {
        ensure!(
            self.fold_keep < self.fold_at_end && self.fold_at_end <= self.fold_at,
            "--fold-keep ({}) must be less than --fold-at-end ({}), and that at most --fold-at ({})",
            self.fold_keep,
            self.fold_at_end,
            self.fold_at
        );
        Ok(folder::Options {
            at_entries: self.fold_at,
            at_end_entries: self.fold_at_end,
            keep_entries: self.fold_keep,
        })
    }

    /// What is kept.
    pub fn retention(&self) -> anyhow::Result<retention::Options> {
        ensure!(
            self.retention_every >= RETENTION_EVERY_MIN,
            "--retention-every must be at least {} ms",
            RETENTION_EVERY_MIN.as_millis()
        );
        let mut options = retention::Options { pause: self.retention_every, ..Default::default() };
        for text in self.retention.iter().filter(|text| !text.is_empty()) {
            read_into(&mut options, text).with_context(|| format!("--retention {text}"))?;
        }
        Ok(options)
    }
}

/// Takes one flag; bounds that are said twice are both kept, so the stricter one holds.
fn read_into(options: &mut retention::Options, text: &str) -> anyhow::Result<()> {
    match text.split_once(':') {
        Some((tenant, bounds)) => {
            let tenant: TenantId =
                tenant.parse().context("what stands before the colon is no name of a tenant")?;
            let of_tenant = options.tenants.entry(tenant).or_default();
            *of_tenant = of_tenant.and(bounds_of(bounds)?);
        }
        None => options.all = options.all.and(bounds_of(text)?),
    }
    Ok(())
}

fn bounds_of(text: &str) -> anyhow::Result<Retention> {
    let mut bounds = Retention::default();
    for bound in text.split(',') {
        let (name, value) =
            bound.split_once('=').context("bounds look like ttl=90d,max-age=30d,max-bytes=4MiB")?;
        let bound = match name {
            "ttl" => Retention { ttl_ms: Some(time(value)?), ..Retention::default() },
            "max-age" => Retention { max_age_ms: Some(time(value)?), ..Retention::default() },
            "max-bytes" => Retention { max_bytes: Some(bytes(value)?), ..Retention::default() },
            other => bail!("{other} is none of ttl, max-age and max-bytes"),
        };
        bounds = bounds.and(bound);
    }
    Ok(bounds)
}

fn time(text: &str) -> anyhow::Result<NonZeroU64> {
    let time = duration(text).map_err(anyhow::Error::msg)?;
    let ms = u64::try_from(time.as_millis()).ok().and_then(NonZeroU64::new);
    ms.context("a time of nothing keeps nothing")
}

fn bytes(text: &str) -> anyhow::Result<NonZeroU64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => bail!("bytes are a number, or one with KiB, MiB or GiB"),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.and_then(NonZeroU64::new).with_context(|| format!("{text} is no number of bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(flags: &[&str]) -> KeepingArgs {
        let retention = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let retention_every = Duration::from_secs(1);
        KeepingArgs { retention, retention_every, fold_at: 3, fold_at_end: 2, fold_keep: 1 }
    }

    fn options(flags: &[&str]) -> anyhow::Result<retention::Options> {
        args(flags).retention()
    }

    #[test]
    fn looks_in_quick_succession_are_refused() {
        let every = |retention_every| KeepingArgs { retention_every, ..args(&[]) }.retention();
        assert_eq!(every(Duration::from_millis(100)).unwrap().pause, Duration::from_millis(100));
        assert!(every(Duration::from_millis(99)).is_err());
    }

    #[test]
    fn bounds_of_all_and_of_tenants_are_read_and_the_stricter_one_holds() {
        let read = options(&["ttl=90d,max-age=30d", "max-bytes=4MiB", "acme:ttl=1h", "ttl=80d"]).unwrap();
        let ms = |hours: u64| NonZeroU64::new(Duration::from_secs(hours * 3600).as_secs() * 1000);
        assert_eq!((read.all.ttl_ms, read.all.max_age_ms), (ms(80 * 24), ms(30 * 24)));
        assert_eq!(read.all.max_bytes.map(NonZeroU64::get), Some(4 << 20));
        assert_eq!(read.tenants[&"acme".parse::<TenantId>().unwrap()].ttl_ms, ms(1));
        assert!(options(&[]).unwrap().all.is_none() && options(&[""]).unwrap().all.is_none());
    }

    #[test]
    fn bounds_that_make_no_sense_are_refused() {
        for bad in [
            "90d",
            "ttl",
            "ttl=90",
            "ttl=0d",
            "age=1d",
            "max-bytes=4MB",
            "max-bytes=0",
            "a b:ttl=1d",
            "ttl=1d,",
        ] {
            assert!(options(&[bad]).is_err(), "{bad}");
        }
    }
}
