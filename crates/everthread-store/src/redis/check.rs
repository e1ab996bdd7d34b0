//! Whether the servers are fit for this: what `doctor` prints and what a start looks at.
//!
//! [`examine`] asks each server on connections of its own, which end with it; nothing is changed there. What a server may
//! not be asked is passed over, and is no fault. A fault is what loses sessions or stops them; a warning is what will do so on
//! a bad day.

mod advice;
mod permissions;
mod server;

use super::address::{Address, Endpoint, Kind, Login};
use super::dial::Dialer;
use super::keys::Keys;
use super::link::Failure;
use super::slots::{Claim, SLOTS, claims, slot_of_key};
use super::{Options, START_MAX};
use crate::Error;
use advice::advised;
use server::{Asked, Place};
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
        matches!(self.about, "version" | "role" | "eviction" | "permissions")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.server.is_empty() { "" } else { " at " };
        write!(f, "{}{at}{}: {}", self.about, self.server, self.told)
    }
}

/// Looks at every server that `options` lead to.
pub async fn examine(options: &Options) -> Vec<Finding> {
    let mut findings = Findings::default();
    match find(options, &mut findings).await {
        Ok(places) => {
            let mut all = Vec::new();
            for place in &places {
                all.extend(one(place, &mut findings).await);
            }
            compare(&all, &mut findings);
        }
        Err(error) => findings.add(Level::Fault, "", "connection", error.to_string()),
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

async fn one(place: &Place, findings: &mut Findings) -> Option<Asked> {
    let name = place.endpoint.to_string();
    let asking = async {
        let denied = permissions::denied(place).await?;
        let asked = server::ask(place).await;
        Ok::<_, Failure>((if denied.is_empty() { Some(asked?) } else { asked.ok() }, denied))
    };
    match timeout(SERVER_MAX, asking).await {
        Ok(Ok((asked, denied))) => {
            // Who may not even ask that is told all that is missing.
            asked.iter().for_each(|asked| server::judge(place, asked, findings));
            permissions::judge(&name, &denied, findings);
            asked
        }
        Ok(Err(failure)) => {
            findings.add(Level::Fault, &name, "connection", advised(&failure.why()));
            None
        }
        Err(_) => {
            findings.add(Level::Fault, &name, "connection", format!("no answer within {SERVER_MAX:?}"));
            None
        }
    }
}

/// Which primaries there are, and what their set-up says about itself.
async fn find(options: &Options, findings: &mut Findings) -> Result<Vec<Place>, Error> {
    let keys = Keys::new(&options.prefix)?;
    let address = Address::parse(&options.url)?;
    let probe = |n| keys.probe(&options.node, n).key;
    let dialer = |endpoint: &Endpoint| Dialer::new(&address, endpoint.clone(), options.response_timeout);
    match &address.kind {
        Kind::One(endpoint) => Ok(vec![Place::new(endpoint, dialer(endpoint)?, probe(0), false, false)]),
        Kind::Sentinel { sentinels, name, login } => {
            let dialer = dialer(&sentinels[0])?;
            let primaries = watched(&dialer, sentinels, name, login, findings).await;
            if primaries.is_empty() {
                return Err(Error::Unavailable(format!("no sentinel tells where the primary {name:?} is")));
            }
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

/// What the sentinels say where the primary is: one server, if they agree.
async fn watched(
    dialer: &Dialer,
    sentinels: &[Endpoint],
    name: &str,
    login: &Login,
    findings: &mut Findings,
) -> Vec<Endpoint> {
    let mut primaries = Vec::new();
    for endpoint in sentinels {
        let (there, at) = (dialer.to_sentinel(endpoint.clone(), login), endpoint.to_string());
        match timeout(START_MAX, sentinel(&there, name)).await {
            Ok(Ok((primary, quorum))) => {
                match quorum {
                    Ok(told) => findings.add(Level::Good, &at, "sentinel", told),
                    Err(why) => findings.add(Level::Fault, &at, "sentinel", why),
                }
                if !primaries.contains(&primary) {
                    primaries.push(primary);
                }
            }
            Ok(Err(failure)) => {
                let told = format!("{}; the others must do without it", advised(&failure.why()));
                findings.add(Level::Warning, &at, "sentinel", told);
            }
            Err(_) => findings.add(Level::Warning, &at, "sentinel", "no answer"),
        }
    }
    if sentinels.len() < 3 {
        let told = "fewer than three sentinels are named: with one gone nobody may find the primary";
        findings.add(Level::Warning, "", "sentinels", told);
    }
    if primaries.len() > 1 {
        let list: Vec<_> = primaries.iter().map(ToString::to_string).collect();
        let told = format!("the sentinels do not agree on the primary: {}", list.join(", "));
        findings.add(Level::Fault, "", "sentinels", told);
    }
    primaries
}

/// The primaries of a cluster.
async fn members(
    dialer: &Dialer,
    seeds: &[Endpoint],
    by_name: bool,
    findings: &mut Findings,
) -> Result<Vec<Claim>, Error> {
    let (from, told) = cluster(dialer, seeds, findings).await?;
    let claims = claims(&told, &from, by_name)
        .ok_or_else(|| Error::Unavailable(format!("{from} gives a map that cannot be read")))?;
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

/// Where a sentinel says that the primary is, and whether enough of them could replace it.
async fn sentinel(dialer: &Dialer, name: &str) -> Result<(Endpoint, Result<String, String>), Failure> {
    let mut dialled = dialer.dial(|_| {}).await?;
    dialled
        .request(async |connection| {
            let mut command = ::redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
            let address: Option<(String, u16)> = command.query_async(connection).await?;
            let (host, port) =
                address.ok_or_else(|| Failure::Broken(format!("it knows no primary {name:?}")))?;
            let mut command = ::redis::cmd("SENTINEL");
            let quorum = command.arg("CKQUORUM").arg(name).query_async::<String>(connection).await;
            let quorum = quorum.map_err(|error| Failure::from(error).why());
            Ok((Endpoint::Tcp(host, port), quorum))
        })
        .await
}

/// What the first node that answers says of the cluster.
async fn cluster(
    dialer: &Dialer,
    seeds: &[Endpoint],
    findings: &mut Findings,
) -> Result<(Endpoint, String), Error> {
    let mut last = String::new();
    for seed in seeds {
        let asking = async {
            let mut dialled = dialer.to(seed.clone()).dial(|_| {}).await?;
            let mut command = ::redis::cmd("CLUSTER");
            command.arg("NODES");
            dialled.request(async |connection| Ok(command.query_async::<String>(connection).await?)).await
        };
        match timeout(START_MAX, asking).await {
            Ok(Ok(told)) => return Ok((seed.clone(), told)),
            Ok(Err(failure)) => last = advised(&failure.why()),
            Err(_) => "no answer".clone_into(&mut last),
        }
        findings.add(Level::Warning, &seed.to_string(), "connection", last.clone());
    }
    Err(Error::Unavailable(format!("no node of the cluster answers: {last}")))
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
