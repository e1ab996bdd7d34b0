//! What every client was sent: contiguous, in order, once, with a reset where one is due and only there.

use super::{Promise, Rule, Verdict};
use crate::history::{Event, Place, What};
use crate::log::{Log, digest};
use std::collections::BTreeMap;

/// Where a client stands in a session, as its history says.
#[derive(Debug, Clone, Copy)]
struct Client {
    at: Option<Place>,
    /// What it holds ends here in the log's final form.
    holds: bool,
    /// Where it stood when it was reset without need, as it looks: what it is sent next tells.
    reset_from: Option<Place>,
    /// The incarnation in which its node stood when it attached, until it is sent something else.
    told: Option<u64>,
}

type Clients<'a> = BTreeMap<(&'a str, &'a str), Client>;

/// Replays every client's history.
pub(super) fn check(events: &[Event], logs: &BTreeMap<&str, &Log>, promise: Promise, verdict: &mut Verdict) {
    let mut clients = Clients::new();
    for event in events {
        let Some(session) = session_of(&event.what) else { continue };
        let new = Client { at: None, holds: false, reset_from: None, told: None };
        let client = clients.entry((session, event.who.as_str())).or_insert(new);
        let Some(log) = logs.get(session) else {
            verdict.found(Rule::NotArrived, session, &event.who, "nobody could read this session in the end");
            continue;
        };
        step(client, event, log, promise, verdict);
    }
    for ((session, who), _) in clients.iter().filter(|(_, client)| !client.holds) {
        verdict.found(Rule::NotArrived, session, who, "it has never said what it holds in the end");
    }
    verdict.looked.add("clients", clients.len() as u64);
}

fn session_of(what: &What) -> Option<&str> {
    match what {
        What::Follows { session }
        | What::Attached { session, .. }
        | What::Frames { session, .. }
        | What::Snapshot { session, .. }
        | What::Reset { session, .. }
        | What::Live { session, .. }
        | What::Holds { session, .. } => Some(session),
        _ => None,
    }
}

fn step(client: &mut Client, event: &Event, log: &Log, promise: Promise, verdict: &mut Verdict) {
    match &event.what {
        What::Attached { from, recent, epoch, .. } => {
            if let (Some(from), Some(at)) = (from, client.at)
                && *from != at
            {
                verdict.found(
                    Rule::Gap,
                    &log.session,
                    &event.who,
                    format!("it goes on from {from:?} and was sent everything up to {at:?}"),
                );
            }
            client.told = Some(*epoch);
            client.at = match from {
                Some(place) => Some(*place),
                None if *recent => None,
                None => Some(Place { epoch: *epoch, seq: 0 }),
            };
        }
        What::Reset { reason, .. } => {
            if let Some(Place { epoch, seq }) = client.at
                && log.is_valid(epoch, seq)
                && seq + 1 >= log.floor
            {
                client.reset_from = client.at;
                if promise == Promise::Kept {
                    needless(reason, epoch, seq, log, event, verdict);
                }
            }
            client.at = None;
            verdict.looked.add("resets", 1);
        }
        What::Snapshot { epoch, seq, .. } => {
            client.at = Some(Place { epoch: *epoch, seq: *seq });
            let told = client.told.take();
            let Some(from) = client.reset_from.take() else { return };
            // A primary that is cut off knows nothing of the incarnation that has begun elsewhere. Its node may have found the
            // new one by the time it reads the snapshot.
            let decided_in = told.map_or(*epoch, |told| told.min(*epoch));
            if promise == Promise::MayLoseTail && decided_in < from.epoch {
                verdict.looked.add("resets by a primary that was cut off", 1);
            } else if promise == Promise::MayLoseTail {
                needless("snapshot", from.epoch, from.seq, log, event, verdict);
            }
        }
        What::Frames { epoch, since, from, to, count, .. } => {
            client.told = None;
            verdict.looked.add("frames", *count);
            verdict.looked.add("delivered", to.saturating_sub(from.saturating_sub(1)));
            match wrong(client.at, *epoch, *since, *from, *to) {
                None => client.at = Some(Place { epoch: *epoch, seq: *to }),
                // A client that knows the protocol does not apply it.
                Some(rule) => {
                    let text = format!(
                        "{from}..{to} of {epoch}, which began at {since}, to somebody at {:?}",
                        client.at
                    );
                    verdict.found(rule, &log.session, &event.who, text);
                }
            }
        }
        What::Live { seq, .. } => {
            if let Some(at) = client.at.filter(|at| at.seq < *seq) {
                verdict.found(
                    Rule::Gap,
                    &log.session,
                    &event.who,
                    format!("it is live at {seq}, and it was sent nothing after {}", at.seq),
                );
            }
        }
        What::Holds { place, messages, whole, digest: held, .. } => {
            client.holds = true;
            if client.at != Some(*place) || place.seq != log.head || !log.is_valid(place.epoch, place.seq) {
                let text =
                    format!("it stands at {place:?}, was sent {:?}, the log ends at {}", client.at, log.head);
                verdict.found(Rule::NotArrived, &log.session, &event.who, text);
            }
            let all = log.view.messages();
            let known = all.len().checked_sub(*messages).map(|from| digest(&all[from..]));
            if known != Some(*held) || (*whole && *messages != all.len()) {
                let text = format!("its last {messages} messages are not the log's, which has {}", all.len());
                verdict.found(Rule::Differs, &log.session, &event.who, text);
            }
        }
        _ => {}
    }
}

fn needless(why: &str, epoch: u64, seq: u64, log: &Log, event: &Event, verdict: &mut Verdict) {
    let text = format!("{why}: {epoch}.{seq} is of this log: {:?}", log.epochs);
    verdict.found(Rule::NeedlessReset, &log.session, &event.who, text);
}

/// What is wrong with a frame for somebody who stands there.
fn wrong(at: Option<Place>, epoch: u64, since: u64, from: u64, to: u64) -> Option<Rule> {
    // A snapshot is due.
    let Some(at) = at else { return Some(Rule::Gap) };
    if epoch != at.epoch && since <= at.seq {
        Some(Rule::MissingReset)
    } else if from > at.seq + 1 {
        Some(Rule::Gap)
    } else if to <= at.seq {
        Some(Rule::Repeated)
    } else {
        None
    }
}
