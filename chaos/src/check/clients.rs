//! What every client was sent: contiguous, in order, once, with a reset where one is due and only there.

use super::{Rule, Verdict};
use crate::history::{Event, Place, What};
use crate::log::{Log, digest};
use std::collections::BTreeMap;

/// Where a client stands in a session, as its history says.
#[derive(Debug, Clone, Copy)]
struct Client {
    at: Option<Place>,
    /// What it holds ends here in the log's final form.
    holds: bool,
}

type Clients<'a> = BTreeMap<(&'a str, &'a str), Client>;

/// Replays every client's history.
pub(super) fn check(events: &[Event], logs: &BTreeMap<&str, &Log>, verdict: &mut Verdict) {
    let mut clients = Clients::new();
    for event in events {
        let Some(session) = session_of(&event.what) else { continue };
        let client =
            clients.entry((session, event.who.as_str())).or_insert(Client { at: None, holds: false });
        let Some(log) = logs.get(session) else {
            verdict.found(Rule::NotArrived, session, &event.who, "nobody could read this session in the end");
            continue;
        };
        step(client, event, log, verdict);
    }
    for ((session, who), _) in clients.iter().filter(|(_, client)| !client.holds) {
        verdict.found(Rule::NotArrived, session, who, "it has never said what it holds in the end");
    }
    verdict.looked.add("clients", clients.len() as u64);
}

fn session_of(what: &What) -> Option<&str> {
    match what {
        What::Attached { session, .. }
        | What::Frames { session, .. }
        | What::Snapshot { session, .. }
        | What::Reset { session, .. }
        | What::Live { session, .. }
        | What::Holds { session, .. } => Some(session),
        _ => None,
    }
}

fn step(client: &mut Client, event: &Event, log: &Log, verdict: &mut Verdict) {
    let mut found = |rule, text: String| verdict.found(rule, &log.session, &event.who, text);
    match &event.what {
        What::Attached { from, recent, epoch, .. } => {
            if let (Some(from), Some(at)) = (from, client.at)
                && *from != at
            {
                found(Rule::Gap, format!("it goes on from {from:?} and was sent everything up to {at:?}"));
            }
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
                found(
                    Rule::NeedlessReset,
                    format!("{reason}: {epoch}.{seq} is of this log: {:?}", log.epochs),
                );
            }
            client.at = None;
            verdict.looked.add("resets", 1);
        }
        What::Snapshot { epoch, seq, .. } => {
            client.at = Some(Place { epoch: *epoch, seq: *seq });
        }
        What::Frames { epoch, since, from, to, count, .. } => {
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
                found(Rule::Gap, format!("it is live at {seq}, and it was sent nothing after {}", at.seq));
            }
        }
        What::Holds { place, messages, whole, digest: held, .. } => {
            client.holds = true;
            if client.at != Some(*place) || place.seq != log.head || !log.is_valid(place.epoch, place.seq) {
                let text =
                    format!("it stands at {place:?}, was sent {:?}, the log ends at {}", client.at, log.head);
                found(Rule::NotArrived, text);
            }
            let all = log.view.messages();
            let known = all.len().checked_sub(*messages).map(|from| digest(&all[from..]));
            if known != Some(*held) || (*whole && *messages != all.len()) {
                found(
                    Rule::Differs,
                    format!("its last {messages} messages are not the log's, which has {}", all.len()),
                );
            }
        }
        _ => {}
    }
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
