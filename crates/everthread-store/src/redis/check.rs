//! Whether the servers are fit for this: what `doctor` prints and what a start looks at.
//!
//! [`examine`] asks each server on connections of its own, which end with it; nothing is changed there. What a server may
//! not be asked is passed over, and is no fault. A fault is what loses sessions or stops them; a warning is what will do so on
//! a bad day. What waiting does not mend is told apart by what it is about: [`Finding::is_lasting`].

mod advice;
mod permissions;
mod server;

use super::Options;
use super::address::{Address, Endpoint, Kind, Login};
use super::dial::Dialer;
use super::keys::Keys;
use super::link::Failure;
use super::sentinel::epoch_of;
use super::slots::{Claim, SLOTS, claims, slot_of_key};
use super::start::START_MAX;
use crate::Error;
pub(super) use advice::advised;
use advice::kind_of;
use futures_util::future::join_all;
use server::{Asked, Place};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use tokio::time::timeout;

/// How long one server may take for all questions.
const SERVER_MAX: Duration = Duration::from_secs(10);
/// Primaries whose clocks differ by more: deadlines come late, or early, by as much.
const CLOCKS_APART_MAX_MS: i64 = 500;

/// How good or bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be, or worth knowing.
    Good,
    /// It will hurt on a bad day.
    Warning,
    /// It loses sessions or stops them.
    Fault,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Good => "ok",
            Level::Warning => "warning",
            Level::Fault => "error",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How good or bad it is.
    pub level: Level,
    /// At which server; empty for what concerns all of them.
    pub server: String,
    /// What was looked at, in a word.
    pub about: &'static str,
    /// What was found, and what to do where it is not good.
    pub told: String,
}

impl Finding {
    /// Whether waiting does not mend it: then a node does not start.
    pub fn is_lasting(&self) -> bool {
        self.level == Level::Fault
            && matches!(self.about, "address" | "login" | "version" | "role" | "eviction" | "permissions")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.server.is_empty() { "" } else { " at " };
        write!(f, "{}{at}{}: {}", self.about, self.server, self.told)
    }
}

/// Looks at every server that `options` lead to, at all of them at once.
pub async fn examine(options: &Options) -> Vec<Finding> {
    let mut findings = Findings::default();
    match find(options, &mut findings).await {
        Ok(places) => {
            let looks = join_all(places.iter().map(one)).await;
            let (all, told): (Vec<_>, Vec<_>) = looks.into_iter().unzip();
            findings.0.extend(told.into_iter().flat_map(|findings| findings.0));
            let all: Vec<_> = all.into_iter().flatten().collect();
            compare(&all, &mut findings);
        }
        Err((about, why)) => findings.add(Level::Fault, "", about, why),
    }
    findings.0
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, server: &str, about: &'static str, told: impl Into<String>) {
        self.0.push(Finding { level, server: server.to_owned(), about, told: told.into() });
    }
}

async fn one(place: &Place) -> (Option<Asked>, Findings) {
    let mut findings = Findings::default();
    let name = place.endpoint.to_string();
    let asking = async {
        let denied = permissions::denied(place).await?;
        let asked = server::ask(place).await;
        Ok::<_, Failure>((if denied.is_empty() { Some(asked?) } else { asked.ok() }, denied))
    };
    let asked = match timeout(SERVER_MAX, asking).await {
        Ok(Ok((asked, denied))) => {
            // Who may not even ask that is told all that is missing.
            asked.iter().for_each(|asked| server::judge(place, asked, &mut findings));
            permissions::judge(&name, &denied, &mut findings);
            asked
        }
        Ok(Err(failure)) => {
            let why = failure.why();
            findings.add(Level::Fault, &name, kind_of(&why), advised(&why));
            None
        }
        Err(_) => {
            findings.add(Level::Fault, &name, "connection", format!("no answer within {SERVER_MAX:?}"));
            None
        }
    };
    (asked, findings)
}

/// Why there is nothing to look at: what it is about, and in words.
type Nowhere = (&'static str, String);

/// Which primaries there are, and what their set-up says about itself.
async fn find(options: &Options, findings: &mut Findings) -> Result<Vec<Place>, Nowhere> {
    let unusable = |error: Error| ("address", error.to_string());
    let keys = Keys::new(&options.prefix).map_err(unusable)?;
    let address = Address::parse(&options.url).map_err(unusable)?;
    let probe = |n| keys.probe(&options.node, n).key;
    let dialer = |endpoint: &Endpoint| {
        Dialer::new(&address, endpoint.clone(), options.response_timeout).map_err(unusable)
    };
    match &address.kind {
        Kind::One(endpoint) => Ok(vec![Place::new(endpoint, dialer(endpoint)?, probe(0), false, false)]),
        Kind::Sentinel { sentinels, name, login } => {
            let dialer = dialer(&sentinels[0])?;
            let primaries = watched(&dialer, sentinels, name, login, findings).await?;
            let place = |at: &Endpoint| Place::new(at, dialer.to(at.clone()), probe(0), true, false);
            Ok(primaries.iter().map(place).collect())
        }
        Kind::Cluster(seeds) => {
            let dialer = dialer(&seeds[0])?;
            let claims = members(&dialer, seeds, address.tls.is_some(), findings).await?;
            let place = |claim: &Claim| {
                let is_here = |key: &String| {
                    let slot = slot_of_key(key);
                    claim.slots.iter().any(|(from, to)| (*from..=*to).contains(&slot))
                };
                let key = (0..16 * u32::from(SLOTS)).map(probe).find(is_here)?;
                Some(Place::new(&claim.endpoint, dialer.to(claim.endpoint.clone()), key, true, true))
            };
            Ok(claims.iter().filter(|claim| !claim.slots.is_empty()).filter_map(place).collect())
        }
    }
}

/// What the sentinels say where the primary is: one server, if those agree who know of the latest failover. What others
/// say counts as little as it does where the primary is looked for.
async fn watched(
    dialer: &Dialer,
    sentinels: &[Endpoint],
    name: &str,
    login: &Login,
    findings: &mut Findings,
) -> Result<Vec<Endpoint>, Nowhere> {
    let asked = join_all(sentinels.iter().map(async |endpoint| {
        let there = dialer.to_sentinel(endpoint.clone(), login);
        (endpoint.to_string(), timeout(START_MAX, sentinel(&there, name)).await)
    }));
    let mut primaries: Vec<(u64, Endpoint)> = Vec::new();
    let mut nowhere = ("connection", "no answer".to_owned());
    for (at, told) in asked.await {
        match told {
            Ok(Ok((epoch, primary, quorum))) => {
                match quorum {
                    Ok(told) => findings.add(Level::Good, &at, "sentinel", told),
                    Err(why) => findings.add(Level::Fault, &at, "sentinel", why),
                }
                primaries.push((epoch, primary));
            }
            Ok(Err(failure)) => {
                let why = failure.why();
                let told = format!("{}; the others must do without it", advised(&why));
                findings.add(Level::Warning, &at, "sentinel", told);
                nowhere = more_lasting(nowhere, &why);
            }
            Err(_) => findings.add(Level::Warning, &at, "sentinel", "no answer"),
        }
    }
    if sentinels.len() < 3 {
        let told = "fewer than three sentinels are named: with one gone nobody may find the primary";
        findings.add(Level::Warning, "", "sentinels", told);
    }
    let mut named: Vec<_> = primaries.iter().map(|(_, endpoint)| endpoint.to_string()).collect();
    named.dedup();
    if named.len() > 1 {
        let told = format!("the sentinels do not agree on the primary: {}", named.join(", "));
        findings.add(Level::Fault, "", "sentinels", told);
    }
    let latest = primaries.iter().map(|(epoch, _)| *epoch).max();
    let latest = latest.ok_or_else(|| {
        let (about, why) = nowhere;
        (about, format!("no sentinel tells where the primary {name:?} is: {why}"))
    })?;
    primaries.retain(|(epoch, _)| *epoch == latest);
    let mut endpoints: Vec<_> = primaries.into_iter().map(|(_, endpoint)| endpoint).collect();
    endpoints.dedup();
    Ok(endpoints)
}

/// The primaries of a cluster.
async fn members(
    dialer: &Dialer,
    seeds: &[Endpoint],
    by_name: bool,
    findings: &mut Findings,
) -> Result<Vec<Claim>, Nowhere> {
    let (from, told) = cluster(dialer, seeds, findings).await?;
    let claims = claims(&told, &from, by_name)
        .ok_or_else(|| ("connection", format!("{from} gives a map that cannot be read")))?;
    let ranges = claims.iter().flat_map(|claim| &claim.slots);
    let served: usize = ranges.map(|(from, to)| usize::from(to - from) + 1).sum();
    if served < usize::from(SLOTS) {
        let told =
            format!("{} of {SLOTS} slots are served by nobody: assign them", usize::from(SLOTS) - served);
        findings.add(Level::Fault, "", "cluster", told);
    }
    let with_slots = claims.iter().filter(|claim| !claim.slots.is_empty()).count();
    if with_slots < 3 {
        let told = format!("{with_slots} primaries: fewer than three cannot agree that one is gone");
        findings.add(Level::Warning, "", "cluster", told);
    } else {
        findings.add(Level::Good, "", "cluster", format!("{with_slots} primaries serve {served} slots"));
    }
    Ok(claims)
}

/// Since which failover a sentinel says that the primary is where, and whether enough of them could replace it.
async fn sentinel(dialer: &Dialer, name: &str) -> Result<(u64, Endpoint, Result<String, String>), Failure> {
    let mut dialled = dialer.dial(|_| {}).await?;
    dialled
        .request(async |connection| {
            let mut command = ::redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
            let address: Option<(String, u16)> = command.query_async(connection).await?;
            let (host, port) =
                address.ok_or_else(|| Failure::Broken(format!("it knows no primary {name:?}")))?;
            let mut command = ::redis::cmd("SENTINEL");
            let about: HashMap<String, ::redis::Value> =
                command.arg("MASTER").arg(name).query_async(connection).await?;
            let mut command = ::redis::cmd("SENTINEL");
            let quorum = command.arg("CKQUORUM").arg(name).query_async::<String>(connection).await;
            let quorum = quorum.map_err(|error| Failure::from(error).why());
            Ok((epoch_of(&about).unwrap_or(0), Endpoint::Tcp(host, port), quorum))
        })
        .await
}

/// What the first node that answers says of the cluster; each that does not is told.
async fn cluster(
    dialer: &Dialer,
    seeds: &[Endpoint],
    findings: &mut Findings,
) -> Result<(Endpoint, String), Nowhere> {
    let asked = join_all(seeds.iter().map(async |seed| {
        let asking = async {
            let mut dialled = dialer.to(seed.clone()).dial(|_| {}).await?;
            let mut command = ::redis::cmd("CLUSTER");
            command.arg("NODES");
            dialled.request(async |connection| Ok(command.query_async::<String>(connection).await?)).await
        };
        (seed, timeout(START_MAX, asking).await)
    }));
    let (mut first, mut nowhere) = (None, ("connection", String::new()));
    for (seed, told) in asked.await {
        let why = match told {
            Ok(Ok(told)) => {
                first.get_or_insert((seed.clone(), told));
                continue;
            }
            Ok(Err(failure)) => failure.why(),
            Err(_) => "no answer".to_owned(),
        };
        findings.add(Level::Warning, &seed.to_string(), kind_of(&why), advised(&why));
        nowhere = more_lasting(nowhere, &why);
    }
    let (about, why) = nowhere;
    first.ok_or_else(|| (about, format!("no node of the cluster answers: {why}")))
}

/// What is told of several who do not answer: rather what waiting does not mend.
fn more_lasting(before: Nowhere, why: &str) -> Nowhere {
    if before.0 == "connection" { (kind_of(why), advised(why)) } else { before }
}

/// What shows only side by side.
fn compare(all: &[Asked], findings: &mut Findings) {
    let offsets = all.iter().map(|asked| asked.clock_ahead_ms);
    let (Some(least), Some(most)) = (offsets.clone().min(), offsets.max()) else { return };
    if all.len() > 1 {
        let apart = most - least;
        let told = format!("the clocks of the primaries are {apart} ms apart");
        if apart > CLOCKS_APART_MAX_MS {
            findings.add(
                Level::Fault,
                "",
                "clocks",
                format!("{told}: deadlines are wrong by as much; synchronize them (NTP)"),
            );
        } else {
            findings.add(Level::Good, "", "clocks", told);
        }
    }
}
