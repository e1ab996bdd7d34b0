//! One primary: what it is asked, and what is made of its answers.

use super::super::address::Endpoint;
use super::super::confirm::knows_waitaof;
use super::super::dial::Dialer;
use super::super::link::Failure;
use super::{Findings, Level};
use ::redis::Value;
use ::redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Sharded pub/sub, and time in scripts that write, came with this release.
const MAJOR_MIN: u32 = 7;
/// Round trips that are timed; the shortest counts.
const PINGS: u32 = 5;
/// Every write waits for at least one round trip, a decision for two.
const ROUND_TRIP_GOOD: Duration = Duration::from_millis(5);
/// A clock that differs by more from ours shows: times of entries, the end of tokens.
const CLOCK_OFF_MAX_MS: i64 = 1000;
/// Of the memory that it may use, so much in percent is too much.
const MEMORY_FULL_PERCENT: u64 = 85;

/// A primary that is to be looked at.
pub(super) struct Place {
    pub(super) endpoint: Endpoint,
    pub(super) dialer: Dialer,
    /// A key of the deployment in one of its slots.
    pub(super) key: String,
    /// Whether another may take over for it.
    pub(super) has_failover: bool,
    /// Whether it is meant to be part of a cluster.
    pub(super) is_cluster: bool,
}

impl Place {
    pub(super) fn new(
        endpoint: &Endpoint,
        dialer: Dialer,
        key: String,
        has_failover: bool,
        is_cluster: bool,
    ) -> Self {
        Self { endpoint: endpoint.clone(), dialer, key, has_failover, is_cluster }
    }
}

/// What it said.
pub(super) struct Asked {
    /// Fields of `INFO`.
    info: HashMap<String, String>,
    /// Its settings, as far as we may read them.
    config: HashMap<String, String>,
    /// Why it may not be asked what is on its disk, in its words; nothing if it may, or does not know the question.
    waitaof_denied: Option<String>,
    round_trip: Duration,
    /// How far its clock is ahead of ours.
    pub(super) clock_ahead_ms: i64,
}

impl Asked {
    fn info(&self, name: &str) -> &str {
        self.info.get(name).map(String::as_str).unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.info(name).parse().unwrap_or(0)
    }

    fn config(&self, name: &str) -> Option<&str> {
        self.config.get(name).map(String::as_str)
    }
}

/// Asks it.
pub(super) async fn ask(place: &Place) -> Result<Asked, Failure> {
    let mut dialled = place.dialer.dial(|_| {}).await?;
    dialled.request(async |connection| questions(connection).await).await
}

async fn questions(connection: &mut MultiplexedConnection) -> Result<Asked, Failure> {
    let mut round_trip = Duration::MAX;
    let mut clock_ahead_ms = 0;
    for _ in 0..PINGS {
        let (started, ours) = (Instant::now(), SystemTime::now());
        let (seconds, micros): (i64, i64) = ::redis::cmd("TIME").query_async(connection).await?;
        let took = started.elapsed();
        if took < round_trip {
            round_trip = took;
            let ours = ours + took / 2;
            let ours = ours.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            clock_ahead_ms = seconds * 1000 + micros / 1000 - i64::try_from(ours).unwrap_or(0);
        }
    }
    let told: String = ::redis::cmd("INFO").query_async(connection).await?;
    let pair =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    let info = told.lines().filter_map(pair).collect();
    let mut config = HashMap::new();
    for name in [
        "save",
        "appendfsync",
        "min-replicas-to-write",
        "cluster-require-full-coverage",
        "client-output-buffer-limit",
    ] {
        let mut command = ::redis::cmd("CONFIG");
        command.arg("GET").arg(name);
        match command.query_async::<HashMap<String, String>>(connection).await {
            Ok(values) => config.extend(values),
            // As it should be: nodes need not read settings.
            Err(error) if !error.is_io_error() => break,
            Err(error) => return Err(error.into()),
        }
    }
    let info: HashMap<String, String> = info;
    let mut waitaof_denied = None;
    if info.get("redis_version").is_some_and(|version| knows_waitaof(version)) {
        let mut command = ::redis::cmd("WAITAOF");
        // Nothing to wait for.
        command.arg(0).arg(0).arg(1);
        match command.query_async::<Value>(connection).await {
            Ok(_) => {}
            Err(error) if !error.is_io_error() => waitaof_denied = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Asked { info, config, waitaof_denied, round_trip, clock_ahead_ms })
}

/// What is to be made of it.
pub(super) fn judge(place: &Place, asked: &Asked, findings: &mut Findings) {
    let name = place.endpoint.to_string();
    let mut add = |level, about, told: String| findings.add(level, &name, about, told);
    let version = asked.info("redis_version");
    let major = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < MAJOR_MIN {
        add(Level::Fault, "version", format!("{version} is too old: {MAJOR_MIN}.0 or later is needed"));
    } else {
        add(Level::Good, "version", version.to_owned());
    }
    let took = asked.round_trip;
    let level = if took > ROUND_TRIP_GOOD { Level::Warning } else { Level::Good };
    let advice =
        if took > ROUND_TRIP_GOOD { ": every write waits so long; bring nodes and Redis closer" } else { "" };
    add(level, "round trip", format!("{:.2} ms{advice}", took.as_secs_f64() * 1000.0));
    let ahead = asked.clock_ahead_ms;
    if ahead.abs() > CLOCK_OFF_MAX_MS {
        let told = format!("{ahead} ms ahead of this machine's: synchronize both (NTP)");
        add(Level::Warning, "clock", told);
    } else {
        add(Level::Good, "clock", format!("{ahead} ms ahead of this machine's"));
    }
    role(place, asked, &mut add);
    memory(asked, &mut add);
    persistence(asked, &mut add);
    add(Level::Good, "fsynced", fsynced(asked));
    replicas(place, asked, &mut add);
    if let Some(limits) = asked.config("client-output-buffer-limit") {
        feed_buffer(limits, &mut add);
    }
}

fn role(place: &Place, asked: &Asked, add: &mut impl FnMut(Level, &'static str, String)) {
    if asked.info("role") != "master" {
        let of = format!("{}:{}", asked.info("master_host"), asked.info("master_port"));
        if place.has_failover {
            let told =
                format!("it was said to be a primary and is a replica of {of}: a failover is under way");
            add(Level::Fault, "failover", told);
        } else {
            add(Level::Fault, "role", format!("it is a replica of {of}: name its primary instead"));
        }
    }
    let is_cluster = asked.number("cluster_enabled") == 1;
    if is_cluster && !place.is_cluster {
        add(
            Level::Fault,
            "role",
            "it is part of a cluster: the address must begin with redis-cluster://".into(),
        );
    }
    if place.is_cluster && asked.config("cluster-require-full-coverage") == Some("yes") {
        let told = "cluster-require-full-coverage is yes: one lost shard stops the sessions of all others; set it to no";
        add(Level::Warning, "cluster", told.into());
    }
}

fn memory(asked: &Asked, add: &mut impl FnMut(Level, &'static str, String)) {
    let (policy, limit) = (asked.info("maxmemory_policy"), asked.number("maxmemory"));
    if policy == "noeviction" {
        add(Level::Good, "eviction", "noeviction".into());
    } else if limit > 0 && policy.starts_with("allkeys") {
        let told = format!(
            "maxmemory-policy is {policy}: parts of sessions vanish when memory is full; set noeviction"
        );
        add(Level::Fault, "eviction", told);
    } else {
        let told =
            format!("maxmemory-policy is {policy}: when memory is full something vanishes; set noeviction");
        add(Level::Warning, "eviction", told);
    }
    let used = asked.number("used_memory");
    if limit == 0 {
        let told = "maxmemory is not set: a full machine kills Redis, where a limit would refuse writes";
        add(Level::Warning, "memory", told.into());
    } else if used * 100 > limit * MEMORY_FULL_PERCENT {
        let told = format!("{} of {} MB are used: give it more, or add a shard", used >> 20, limit >> 20);
        add(Level::Warning, "memory", told);
    } else {
        add(Level::Good, "memory", format!("{} of {} MB are used", used >> 20, limit >> 20));
    }
}

fn persistence(asked: &Asked, add: &mut impl FnMut(Level, &'static str, String)) {
    let is_on = asked.number("aof_enabled") == 1;
    if !is_on {
        let saves = asked.config("save").is_some_and(|save| !save.is_empty());
        let last = if saves { "the last snapshot" } else { "its start" };
        let told = format!("appendonly is no: a restart forgets everything since {last}; set appendonly yes");
        add(Level::Warning, "persistence", told);
    } else if asked.info("aof_last_write_status") != "ok" {
        let told = "the append-only file cannot be written: see its disk, and its log";
        add(Level::Fault, "persistence", told.into());
    } else {
        let sync = asked.config("appendfsync");
        let told = sync.map_or_else(
            || "append-only file".into(),
            |sync| format!("append-only file, appendfsync {sync}"),
        );
        let level = if sync == Some("no") { Level::Warning } else { Level::Good };
        let advice =
            if sync == Some("no") { ": a power cut costs up to half a minute; set everysec" } else { "" };
        add(level, "persistence", format!("{told}{advice}"));
    }
}

/// Whether writes can be acknowledged as synced: nothing that a deployment must have.
fn fsynced(asked: &Asked) -> String {
    let (version, sync) = (asked.info("redis_version"), asked.config("appendfsync"));
    if asked.number("aof_enabled") != 1 {
        return "not to be had: appendonly is no".into();
    }
    match (sync, &asked.waitaof_denied) {
        (Some("no"), _) => "not to be had: appendfsync is no".into(),
        (_, None) if knows_waitaof(version) => "to be had: WAITAOF".into(),
        (Some("always"), _) => "to be had: appendfsync always".into(),
        (_, Some(why)) => format!("not to be had: give the user +waitaof ({why})"),
        (Some(_), None) => "not to be had: it takes Redis 7.2, or appendfsync always".into(),
        (None, None) => "not to be had, unless appendfsync is always and the user has +config|get".into(),
    }
}

fn replicas(place: &Place, asked: &Asked, add: &mut impl FnMut(Level, &'static str, String)) {
    let count = asked.number("connected_slaves");
    let mut online = 0;
    for n in 0..count {
        let about = asked.info.get(&format!("slave{n}")).map(String::as_str).unwrap_or_default();
        if about.contains("state=online") {
            online += 1;
        } else {
            add(Level::Warning, "replicas", format!("one does not follow yet: {about}"));
        }
    }
    let least: u64 = asked.config("min-replicas-to-write").and_then(|least| least.parse().ok()).unwrap_or(0);
    match (online, place.has_failover) {
        (0, true) => {
            add(Level::Warning, "replicas", "none: nobody can take over when this primary is gone".into());
        }
        (0, false) => add(Level::Good, "replicas", "none".into()),
        _ => add(Level::Good, "replicas", format!("{online} follow")),
    }
    if online < least {
        let told = format!("min-replicas-to-write is {least} and {online} follow: it refuses every write");
        add(Level::Fault, "replicas", told);
    } else if least == 0 && online >= 2 {
        let told = "min-replicas-to-write is 0: a primary that is cut off with some of its nodes goes on taking writes \
                    that the failover loses; with two replicas set it to 1";
        add(Level::Warning, "replicas", told.into());
    }
}

/// `… pubsub 33554432 8388608 60 …`
fn feed_buffer(limits: &str, add: &mut impl FnMut(Level, &'static str, String)) {
    let mut words = limits.split(' ').skip_while(|word| *word != "pubsub").skip(1);
    let hard: u64 = words.next().and_then(|hard| hard.parse().ok()).unwrap_or(0);
    if hard > 0 && hard < 64 << 20 {
        let told = format!(
            "client-output-buffer-limit pubsub is {} MB: a node that stalls for a moment under load is cut off the feed; \
             set 128mb 32mb 30",
            hard >> 20
        );
        add(Level::Warning, "feed", told);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::address::Address;
    use super::*;

    fn place(has_failover: bool, is_cluster: bool) -> Place {
        let (address, endpoint) = (Address::parse("redis://h").unwrap(), Endpoint::Tcp("h".into(), 1));
        let dialer = Dialer::new(&address, endpoint.clone(), Duration::from_secs(1)).unwrap();
        Place::new(&endpoint, dialer, "et:{node:n}".into(), has_failover, is_cluster)
    }

    /// What is bad of a server that is good but for these.
    fn bad(place: &Place, info: &[(&str, &str)], config: &[(&str, &str)]) -> Vec<(Level, &'static str)> {
        let good = [
            ("redis_version", "7.0.15"),
            ("role", "master"),
            ("maxmemory_policy", "noeviction"),
            ("maxmemory", "1000"),
            ("used_memory", "100"),
            ("aof_enabled", "1"),
            ("aof_last_write_status", "ok"),
            ("connected_slaves", "1"),
            ("slave0", "ip=h,port=2,state=online,offset=1,lag=0"),
        ];
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<HashMap<_, _>>()
        };
        let mut all = map(&good);
        all.extend(map(info));
        let asked = Asked {
            info: all,
            config: map(config),
            waitaof_denied: None,
            round_trip: Duration::ZERO,
            clock_ahead_ms: 0,
        };
        let mut findings = Findings::default();
        judge(place, &asked, &mut findings);
        let bad = findings.0.iter().filter(|finding| finding.level > Level::Good);
        bad.map(|finding| (finding.level, finding.about)).collect()
    }

    #[test]
    fn what_loses_sessions_is_a_fault_and_what_may_one_day_a_warning() {
        let (alone, watched) = (place(false, false), place(true, false));
        assert_eq!(bad(&alone, &[], &[]), []);
        for (info, level, about) in [
            (("redis_version", "6.2.1"), Level::Fault, "version"),
            (("role", "slave"), Level::Fault, "role"),
            (("cluster_enabled", "1"), Level::Fault, "role"),
            (("maxmemory_policy", "allkeys-lru"), Level::Fault, "eviction"),
            (("maxmemory_policy", "volatile-ttl"), Level::Warning, "eviction"),
            (("maxmemory", "0"), Level::Warning, "memory"),
            (("used_memory", "900"), Level::Warning, "memory"),
            (("aof_enabled", "0"), Level::Warning, "persistence"),
            (("aof_last_write_status", "err"), Level::Fault, "persistence"),
        ] {
            assert_eq!(bad(&alone, &[info], &[]), [(level, about)], "{info:?}");
        }
        assert_eq!(bad(&watched, &[("role", "slave")], &[]), [(Level::Fault, "failover")], "it mends itself");
        assert_eq!(bad(&watched, &[("connected_slaves", "0")], &[]), [(Level::Warning, "replicas")]);
        assert_eq!(bad(&alone, &[("connected_slaves", "0")], &[]), []);
        assert_eq!(bad(&alone, &[], &[("min-replicas-to-write", "2")]), [(Level::Fault, "replicas")]);
        assert_eq!(bad(&alone, &[], &[("appendfsync", "no")]), [(Level::Warning, "persistence")]);
        let limits = "normal 0 0 0 slave 1 1 1 pubsub 33554432 8388608 60";
        assert_eq!(bad(&alone, &[], &[("client-output-buffer-limit", limits)]), [(Level::Warning, "feed")]);
        let full = [("cluster-require-full-coverage", "yes")];
        assert_eq!(
            bad(&place(true, true), &[("cluster_enabled", "1")], &full),
            [(Level::Warning, "cluster")]
        );
    }
}
