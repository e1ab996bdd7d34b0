//! The flag of retention, and what it amounts to.

use crate::archive::duration;
use clap::Args;
use everthread_edge::retention::Options;
use everthread_protocol::TenantId;
use everthread_session::Retention;
use std::num::NonZeroU64;

/// How long sessions, and how much of them, are kept.
#[derive(Debug, Clone, Args)]
pub struct RetentionArgs {
    /// What is kept: `ttl` (a session is deleted so long after its last entry), `max-age` (older entries are dropped) and
    /// `max-bytes` (of what is folded of a session), such as ttl=90d,max-age=30d,max-bytes=4MiB. With a tenant and a colon
    /// before it, of that tenant's sessions besides. Several, separated by semicolons in the environment.
    #[arg(long, env = "EVERTHREAD_RETENTION", value_delimiter = ';', value_parser = bounds)]
    pub retention: Vec<Bounds>,
}

/// What one use of the flag says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    tenant: Option<TenantId>,
    kept: Retention,
}

impl RetentionArgs {
    /// All of them together. Where several speak of the same sessions, the stricter one counts.
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        for Bounds { tenant, kept } in &self.retention {
            let of = match tenant {
                Some(tenant) => options.tenants.entry(tenant.clone()).or_default(),
                None => &mut options.all,
            };
            *of = of.and(*kept);
        }
        options
    }
}

fn bounds(text: &str) -> Result<Bounds, String> {
    let (tenant, list) = match text.split_once(':') {
        Some((tenant, list)) => (Some(tenant.parse().map_err(|e| format!("tenant: {e}"))?), list),
        None => (None, text),
    };
    let mut kept = Retention::default();
    for bound in list.split(',') {
        let (name, value) =
            bound.split_once('=').ok_or_else(|| format!("{bound:?} is no bound: name=value"))?;
        let (of, number) = match name {
            "ttl" => (&mut kept.ttl_ms, milliseconds(value)?),
            "max-age" => (&mut kept.max_age_ms, milliseconds(value)?),
            "max-bytes" => (&mut kept.max_bytes, bytes(value)?),
            _ => return Err(format!("{name:?} is none of ttl, max-age, max-bytes")),
        };
        *of = Some(NonZeroU64::new(number).ok_or_else(|| format!("{name} must be more than 0"))?);
    }
    Ok(Bounds { tenant, kept })
}

fn milliseconds(text: &str) -> Result<u64, String> {
    u64::try_from(duration(text)?.as_millis()).map_err(|_| format!("{text} is too long"))
}

/// A number, perhaps with KiB, MiB or GiB.
fn bytes(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("a number of bytes, or one with KiB, MiB or GiB".to_owned()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.ok_or_else(|| format!("{text:?} is no number of bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_for_all_and_for_a_tenant_and_the_stricter_one_counts() {
        let texts = ["ttl=90d,max-bytes=4MiB", "acme:ttl=30d,max-age=36h", "ttl=60d"];
        let retention = texts.map(|text| bounds(text).unwrap()).to_vec();
        let options = RetentionArgs { retention }.options();
        let days = |days: u64| NonZeroU64::new(days * 86_400_000);
        assert_eq!(options.all.ttl_ms, days(60));
        assert_eq!(options.all.max_bytes, NonZeroU64::new(4 << 20));
        let acme = options.tenants[&"acme".parse::<TenantId>().unwrap()];
        assert_eq!((acme.ttl_ms, acme.max_age_ms), (days(30), NonZeroU64::new(36 * 3_600_000)));
        assert_eq!(acme.max_bytes, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in
            ["", "ttl", "ttl=", "ttl=90", "ttl=0s", "age=3d", "max-bytes=4MB", "max-bytes=-1", "a b:ttl=3d"]
        {
            assert!(bounds(bad).is_err(), "{bad}");
        }
    }
}
