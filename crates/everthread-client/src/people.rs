//! What a followed session knows of people across sockets: what this device has read, and who is present. No I/O.
//!
//! Each new attachment is told again what the last one may have lost: taking it twice is harmless. A `presence` frame that
//! does not follow the one before it is answered by asking for everybody.

use everthread_protocol::Seq;
use everthread_protocol::frame::{Ack, ClientFrame, Member, Presence, PresenceTag, SetPresence};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// One session's part.
#[derive(Debug, Default)]
pub(crate) struct People {
    /// Everything up to here is read on this device.
    acked: Option<Seq>,
    /// The attachment of this socket was told so.
    is_acked: bool,
    /// Whether to be present.
    pub is_present: bool,
    /// What the others are told.
    data: Option<Box<RawValue>>,
    /// The attachment of this socket was told so.
    is_told: bool,
    /// Number of the last `presence` frame of this socket.
    n: u64,
    /// Everybody is to be asked for.
    has_gap: bool,
}

impl People {
    /// Of a session that is to be attached.
    pub fn new(is_present: bool) -> Self {
        Self { is_present, ..Self::default() }
    }

    /// This device has read everything up to `seq`.
    pub fn ack(&mut self, seq: Seq) {
        if self.acked.is_none_or(|acked| acked < seq) {
            (self.acked, self.is_acked) = (Some(seq), false);
        }
    }

    /// Tells the others something else.
    pub fn tell(&mut self, data: Box<RawValue>) {
        (self.data, self.is_told) = (Some(data), false);
    }

    /// There is a new attachment, or none.
    pub fn begin(&mut self) {
        (self.is_acked, self.is_told, self.n, self.has_gap) = (false, false, 0, false);
    }

    /// Takes a frame; `None` if something before it is missing.
    pub fn receive(&mut self, text: &str) -> Option<Presence> {
        let frame: Presence = serde_json::from_str(text).ok()?;
        let is_whole = frame.members.is_some() || frame.count.is_some();
        let follows = frame.n == self.n + 1;
        self.n = frame.n;
        self.has_gap |= !is_whole && !follows;
        (is_whole || follows).then_some(frame)
    }

    /// What is to be sent to the attachment `number`.
    pub fn due(&mut self, attachment: u32) -> Vec<String> {
        let mut frames = Vec::new();
        if let Some(seq) = self.acked.filter(|_| !self.is_acked) {
            self.is_acked = true;
            frames.push(ClientFrame::Ack(Ack { attachment, seq }).encode());
        }
        let mut presence = |data| {
            let set = SetPresence { t: PresenceTag::Presence, attachment, data };
            frames.push(ClientFrame::Presence(set).encode());
        };
        if let Some(data) = self.data.as_deref().filter(|_| self.is_present && !self.is_told) {
            self.is_told = true;
            presence(Some(data));
        }
        if std::mem::take(&mut self.has_gap) {
            presence(None);
        }
        frames
    }
}

/// Who is present, as a follower holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    members: BTreeMap<String, Member>,
    count: Option<u64>,
}

impl Present {
    /// Everybody, oneself too; nobody is listed where they are too many.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count.unwrap_or(self.members.len() as u64)
    }

    pub(crate) fn apply(&mut self, frame: &Presence) {
        if frame.members.is_some() || frame.count.is_some() {
            self.members.clear();
        }
        self.count = frame.count;
        let new = frame.members.iter().flatten().chain(&frame.joined).chain(&frame.changed);
        self.members.extend(new.map(|member| (member.member.clone(), member.clone())));
        for member in &frame.left {
            self.members.remove(member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_is_told_once_and_the_next_one_again() {
        let mut people = People::new(true);
        people.ack(Seq(4));
        people.ack(Seq(2));
        people.tell(RawValue::from_string("{}".into()).unwrap());
        let frames =
            [r#"{"t":"ack","attachment":1,"seq":4}"#, r#"{"t":"presence","attachment":1,"data":{}}"#];
        assert_eq!(people.due(1), frames);
        assert!(people.due(1).is_empty());
        people.begin();
        assert_eq!(people.due(2).len(), 2);
    }

    #[test]
    fn a_gap_asks_for_everybody() {
        let (mut people, mut present) = (People::new(true), Present::default());
        let ann = r#"{"member":"user/ann/d","kind":"user","subject":"ann","since":1}"#;
        let mut take = |n: u64, more: &str| {
            let text = format!(r#"{{"t":"presence","attachment":1,"n":{n},{more}}}"#);
            let frame = people.receive(&text);
            if let Some(frame) = &frame {
                present.apply(frame);
            }
            (frame.is_some(), present.count(), people.due(1))
        };
        assert_eq!(take(1, r#""members":[]"#), (true, 0, vec![]));
        assert_eq!(take(2, &format!(r#""joined":[{ann}]"#)), (true, 1, vec![]));
        let ask = vec![r#"{"t":"presence","attachment":1}"#.to_owned()];
        assert_eq!(take(4, r#""left":["user/ann/d"]"#), (false, 1, ask));
        assert_eq!(take(5, r#""count":300"#), (true, 300, vec![]));
        assert_eq!(take(6, &format!(r#""members":[{ann}]"#)), (true, 1, vec![]));
    }
}
