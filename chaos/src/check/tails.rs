//! Tails that logs have lost: what somebody was sent, or was told that it is in the log, in an incarnation that the log goes on
//! without. Whoever wrote it may have written it again: this counts, and judges nothing.

use super::Verdict;
use crate::history::{Event, What};
use crate::log::Log;
use std::collections::BTreeMap;

/// The first seq of an incarnation, as it was told, and the last seq that anybody saw in it.
type Seen = BTreeMap<u64, (u64, u64)>;

/// Counts them.
pub(super) fn count(events: &[Event], logs: &BTreeMap<&str, &Log>, verdict: &mut Verdict) {
    let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
    let mut see = |session, epoch, since: u64, to: u64| {
        let (first, last) = seen.entry(session).or_default().entry(epoch).or_insert((since, to));
        (*first, *last) = ((*first).min(since), (*last).max(to));
    };
    for event in events {
        match &event.what {
            What::Frames { session, epoch, since, to, .. } => see(session.as_str(), *epoch, *since, *to),
            What::PutAcked { session, place, .. } => see(session, place.epoch, place.seq, place.seq),
            _ => {}
        }
    }
    for (session, epochs) in seen {
        let Some(log) = logs.get(session) else { continue };
        for (epoch, (since, to)) in epochs {
            let lost = match log.all_epochs.iter().position(|(known, _)| *known == epoch) {
                Some(at) => log.all_epochs.get(at + 1).map_or(0, |(_, next)| (to + 1).saturating_sub(*next)),
                // Another took its place altogether. Old ones are forgotten, and were not lost.
                None if log.all_epochs.first().is_some_and(|(oldest, _)| epoch > *oldest) => to + 1 - since,
                None => 0,
            };
            verdict.tails.count += u64::from(lost > 0);
            verdict.tails.entries += lost;
            verdict.tails.longest = verdict.tails.longest.max(lost);
        }
    }
}
