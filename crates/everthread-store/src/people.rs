//! What the store keeps of people: how far each of their devices has read, and who is present.
//!
//! Neither is a part of the log. A device's durable cursor stands where it last was acknowledged; a member is present for
//! as long as the node lives that holds it.

use everthread_protocol::limits::DEVICE_IDLE_MS;
use everthread_protocol::{Cursor, DeviceId, Epoch, Millis, NodeId, Seq};
use std::time::Duration;

/// How often a device's cursor is mirrored to its consumer group at most, where there are such groups.
pub const MIRROR_EVERY: Duration = Duration::from_secs(1);

/// Who is present in a session is forgotten if nobody has asked for it for so long.
pub const PRESENCE_KEPT: Duration = Duration::from_secs(10 * 60);

/// A member of a session, as one node holds it. Several nodes may hold the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Who holds it: one start of a node, under a name of its own.
    pub node: NodeId,
    /// Names the member.
    pub member: String,
    /// What the node says of it, and when. Absent where there are too many.
    pub told: Option<Told>,
}

/// What a node says of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Since when it is present.
    pub since: Millis,
    /// When the node said so.
    pub at: Millis,
    /// Text of the node's choice.
    pub about: String,
}

/// A change of what a node holds in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceChange {
    /// Names the member. Not empty.
    pub member: String,
    /// Text about it, not empty, and since when it is present: by default since the node first held it. `None`: the node
    /// does not hold it any more.
    pub about: Option<(String, Option<Millis>)>,
}

/// How far a device has read a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Which.
    pub device: DeviceId,
    /// Its durable cursor. It may be of a log that is gone: see [`Device::acked`].
    pub cursor: Cursor,
    /// When it last acknowledged something.
    pub at: Millis,
}

impl Device {
    /// Whether it has acknowledged nothing for so long that it is forgotten.
    pub(crate) fn is_idle(&self, now: Millis) -> bool {
        now.0.saturating_sub(self.at.0) > DEVICE_IDLE_MS
    }

    /// Up to where it has read the log with these epochs and this head: of what the log has lost, nothing. `None` if its
    /// cursor is of a log that nobody remembers.
    pub fn acked(&self, epochs: &[(Epoch, Seq)], head: Seq) -> Option<Seq> {
        let index = epochs.iter().position(|(epoch, _)| *epoch == self.cursor.epoch)?;
        let end = epochs.get(index + 1).map_or(head, |(_, next)| Seq(next.0.saturating_sub(1)));
        Some(self.cursor.seq.min(end).min(head))
    }

    /// Of a device, or of one that is not known: [`Device::acked`], and how many seqs the log has after that.
    pub fn unread(device: Option<&Self>, epochs: &[(Epoch, Seq)], head: Seq) -> (Option<Seq>, u64) {
        let acked = device.and_then(|device| device.acked(epochs, head));
        (acked, head.0 - acked.unwrap_or(Seq::ZERO).0)
    }
}

/// Where a durable cursor stands after an acknowledgement: it never moves back, and nothing that the log has not is taken.
/// `None`: the acknowledged cursor is not of this log.
pub(crate) fn acknowledged(
    epochs: &[(Epoch, Seq)],
    head: Seq,
    known: Option<Cursor>,
    acked: Cursor,
) -> Option<Cursor> {
    // Later epochs begin at later seqs, so of two valid cursors the one with the greater place is the later one.
    let place = |cursor: Cursor| {
        let index = epochs.iter().position(|(epoch, _)| *epoch == cursor.epoch)?;
        let is_valid = cursor.seq <= head && epochs.get(index + 1).is_none_or(|(_, next)| cursor.seq < *next);
        is_valid.then_some((cursor.seq, index))
    };
    let new = place(acked)?;
    match known.and_then(|known| Some((known, place(known)?))) {
        Some((known, at)) if at >= new => Some(known),
        _ => Some(acked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(epoch: u64, seq: u64) -> Cursor {
        Cursor { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    #[test]
    fn a_cursor_goes_forward_within_the_log_and_gives_way_only_to_a_log_that_lost_it() {
        let epochs = [(Epoch(1), Seq(1)), (Epoch(2), Seq(61))];
        let after = |known: Option<Cursor>, acked| acknowledged(&epochs, Seq(80), known, acked);
        assert_eq!(after(None, cursor(2, 70)), Some(cursor(2, 70)));
        assert_eq!(after(Some(cursor(2, 70)), cursor(1, 60)), Some(cursor(2, 70)));
        assert_eq!(after(Some(cursor(1, 60)), cursor(2, 60)), Some(cursor(2, 60)));
        for lost in [cursor(2, 81), cursor(1, 61), cursor(3, 1)] {
            assert_eq!(after(Some(cursor(2, 70)), lost), None);
            assert_eq!(after(Some(lost), cursor(2, 65)), Some(cursor(2, 65)));
        }
    }

    #[test]
    fn what_the_log_has_lost_was_read_by_nobody() {
        let epochs = [(Epoch(1), Seq(1)), (Epoch(2), Seq(61))];
        let acked = |cursor| {
            let device = Device { device: "d".parse().unwrap(), cursor, at: Millis(0) };
            device.acked(&epochs, Seq(80))
        };
        assert_eq!(acked(cursor(2, 70)), Some(Seq(70)));
        assert_eq!(acked(cursor(1, 75)), Some(Seq(60)));
        assert_eq!(acked(cursor(2, 99)), Some(Seq(80)));
        assert_eq!(acked(cursor(3, 1)), None);
    }
}
