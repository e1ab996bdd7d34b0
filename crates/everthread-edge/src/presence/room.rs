//! One session's presence as a node knows it. No I/O and no clock.
//!
//! Owns who is here through this node, who is present at all, and what has lately changed, as the ends of frames that all
//! attachments share. Its invariant: what the store was told and what it tells is compared at every read, so whatever was
//! lost on the way is said again.

use bytes::Bytes;
use everthread_protocol::limits::PRESENCE_LIST_MAX;
use everthread_protocol::{Author, Millis, NodeId};
use everthread_store::{PresenceChange, Present};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use tokio::time::Instant;

/// Changes that are kept for attachments that have not sent them yet; whoever needs more gets the whole list.
const CHANGES_KEPT: usize = 16;

/// Who somebody present is, besides what they tell of themselves.
#[derive(Debug, Clone)]
pub(super) struct Card {
    /// Names the member.
    pub member: String,
    /// The beginning of what is told of it: an object that is still open.
    head: String,
}

impl Card {
    /// The same device of the same person is the same member wherever it connects; without a device, each connection is
    /// one of its own.
    pub fn new(author: &Author, connection: &str) -> Self {
        let place = author.device.as_ref().map_or(connection, |device| device.as_str());
        let kind = serde_json::to_string(&author.kind).unwrap_or_default();
        let member = format!("{}/{}/{place}", kind.trim_matches('"'), author.id);
        let device =
            author.device.as_ref().map(|device| format!(",\"device\":\"{device}\"")).unwrap_or_default();
        Self { member, head: format!("{{\"kind\":{kind},\"subject\":\"{}\"{device}", author.id) }
    }

    fn about(&self, data: Option<&str>) -> String {
        match data {
            None | Some("{}") => format!("{}}}", self.head),
            Some(data) => format!("{},\"data\":{data}}}", self.head),
        }
    }
}

/// Somebody who is here through this node.
#[derive(Debug)]
struct Local {
    /// Attachments.
    joins: u32,
    /// When it goes, once there are none.
    leaves_at: Option<Instant>,
    card: Card,
    /// What it has told; nothing yet, since it came.
    data: Option<String>,
    /// The store does not know of this yet.
    is_news: bool,
}

/// Somebody present, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    since: Millis,
    about: String,
}

/// Everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Everybody {
    /// By name.
    Listed(BTreeMap<String, Shown>),
    /// Too many to be told.
    Counted(usize),
}

/// What the store is to be told.
#[derive(Debug, Default)]
pub(super) struct News {
    /// In no order.
    pub changes: Vec<PresenceChange>,
}

/// The state of a room.
#[derive(Debug)]
pub(super) struct Room {
    /// This start of this node.
    node: NodeId,
    locals: HashMap<String, Local>,
    /// Held here no more, and the store does not know yet.
    gone: BTreeSet<String>,
    everybody: Everybody,
    /// Other nodes that hold members.
    pub nodes: BTreeSet<NodeId>,
    /// Counts changes of `everybody`; 0 until it was read once.
    version: u64,
    /// The ends of frames that tell of the last changes, each with the version it leads to.
    changes: VecDeque<(u64, Bytes)>,
    /// The end of a frame that tells everybody.
    whole: Option<Bytes>,
}

impl Room {
    /// Nobody is known yet.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            locals: HashMap::new(),
            gone: BTreeSet::new(),
            everybody: Everybody::Listed(BTreeMap::new()),
            nodes: BTreeSet::new(),
            version: 0,
            changes: VecDeque::new(),
            whole: None,
        }
    }

    /// Whether the store was read.
    pub fn is_known(&self) -> bool {
        self.version > 0
    }

    /// Whether there are too many to list.
    pub fn is_counted(&self) -> bool {
        matches!(self.everybody, Everybody::Counted(_))
    }

    /// Members that this node holds.
    pub fn held(&self) -> usize {
        self.locals.len()
    }

    /// Whether the store is to be told something.
    pub fn has_news(&self) -> bool {
        !self.gone.is_empty() || self.locals.values().any(|local| local.is_news)
    }

    /// Somebody joins, or joins once more.
    pub fn join(&mut self, card: Card) {
        self.gone.remove(&card.member);
        let new = Local { joins: 0, leaves_at: None, card: card.clone(), data: None, is_news: true };
        let local = self.locals.entry(card.member).or_insert(new);
        local.joins += 1;
        local.leaves_at = None;
    }

    /// One attachment less; without any, the member goes at `leaves_at`.
    pub fn leave(&mut self, member: &str, leaves_at: Instant) {
        let Some(local) = self.locals.get_mut(member) else { return };
        local.joins = local.joins.saturating_sub(1);
        if local.joins == 0 {
            local.leaves_at = Some(leaves_at);
        }
    }

    /// The session is gone, and with it everybody at once.
    pub fn end(&mut self) {
        self.gone.extend(self.locals.drain().map(|(member, _)| member));
    }

    /// Somebody tells something else of itself.
    pub fn tell(&mut self, member: &str, data: String) {
        if let Some(local) = self.locals.get_mut(member)
            && local.data.as_ref() != Some(&data)
        {
            local.data = Some(data);
            local.is_news = true;
        }
    }

    /// Lets those go whose time has come. Returns whether there were any.
    pub fn expire(&mut self, now: Instant) -> bool {
        let gone: Vec<String> = self
            .locals
            .iter()
            .filter(|(_, local)| local.leaves_at.is_some_and(|at| at <= now))
            .map(|(member, _)| member.clone())
            .collect();
        for member in &gone {
            self.locals.remove(member);
        }
        let any = !gone.is_empty();
        self.gone.extend(gone);
        any
    }

    /// The store may have forgotten everything.
    pub fn say_all_again(&mut self) {
        self.locals.values_mut().for_each(|local| local.is_news = true);
    }

    /// What the store is to be told. Only once the room is known: who comes back goes on as the member that is there.
    pub fn take_news(&mut self) -> News {
        let mut changes = Vec::new();
        let known = match &self.everybody {
            Everybody::Listed(known) => Some(known),
            Everybody::Counted(_) => None,
        };
        for (member, local) in self.locals.iter_mut().filter(|(_, local)| local.is_news) {
            local.is_news = false;
            let before = known.and_then(|known| known.get(member));
            let about = match (&local.data, before) {
                (None, Some(before)) => before.about.clone(),
                (data, _) => local.card.about(data.as_deref()),
            };
            let since = before.map(|before| before.since);
            changes.push(PresenceChange { member: member.clone(), about: Some((about, since)) });
        }
        let gone = std::mem::take(&mut self.gone).into_iter();
        changes.extend(gone.map(|member| PresenceChange { member, about: None }));
        News { changes }
    }

    /// The store was not told: it is to be told again.
    pub fn take_back(&mut self, news: News) {
        for change in news.changes {
            match (self.locals.get_mut(&change.member), change.about) {
                (Some(local), _) => local.is_news = true,
                (None, None) => drop(self.gone.insert(change.member)),
                (None, Some(_)) => {}
            }
        }
    }

    /// Takes what the store tells. Returns whether others see a difference.
    pub fn learn(&mut self, present: &[Present]) -> bool {
        let own: BTreeSet<&str> =
            present.iter().filter(|one| one.node == self.node).map(|one| one.member.as_str()).collect();
        for (member, local) in &mut self.locals {
            // One that is about to leave is not said again: what has forgotten it may be another session by now.
            local.is_news |= local.joins > 0 && !own.contains(member.as_str());
        }
        let strays = own.iter().filter(|member| !self.locals.contains_key(**member));
        self.gone.extend(strays.map(|member| (*member).to_owned()));
        self.nodes =
            present.iter().map(|one| &one.node).filter(|node| **node != self.node).cloned().collect();
        let now = merged(present);
        if self.is_known() && now == self.everybody {
            return false;
        }
        let change = change(&self.everybody, &now);
        self.everybody = now;
        self.version += 1;
        self.whole = None;
        self.changes.push_back((self.version, change));
        if self.changes.len() > CHANGES_KEPT {
            self.changes.pop_front();
        }
        true
    }

    /// What an attachment is sent that has seen `seen`, or nothing yet; and what it has seen then.
    pub fn after(&mut self, seen: Option<u64>) -> Option<(Vec<Bytes>, u64)> {
        if !self.is_known() || seen == Some(self.version) {
            return None;
        }
        let first = self.changes.front().map_or(self.version, |(version, _)| *version);
        let frames = match seen {
            Some(seen) if first <= seen + 1 => {
                let new = self.changes.iter().filter(|(version, _)| *version > seen);
                new.map(|(_, change)| change.clone()).collect()
            }
            _ => vec![self.whole.get_or_insert_with(|| whole(&self.everybody)).clone()],
        };
        Some((frames, self.version))
    }
}

/// Everybody, whoever holds them: since the first said so, as the last said.
fn merged(present: &[Present]) -> Everybody {
    let told: Option<Vec<_>> = present.iter().map(|one| Some((one, one.told.as_ref()?))).collect();
    let members: BTreeSet<&str> = present.iter().map(|one| one.member.as_str()).collect();
    let Some(mut told) = told.filter(|_| members.len() <= PRESENCE_LIST_MAX) else {
        return Everybody::Counted(members.len());
    };
    told.sort_by_key(|(one, told)| (told.at, one.node.clone()));
    let mut listed: BTreeMap<String, Shown> = BTreeMap::new();
    for (one, told) in told {
        let since = listed.get(&one.member).map_or(told.since, |before| before.since.min(told.since));
        listed.insert(one.member.clone(), Shown { since, about: told.about.clone() });
    }
    Everybody::Listed(listed)
}

/// Everybody as HTTP tells them: an object.
pub(crate) fn tell(present: &[Present]) -> String {
    let end = whole(&merged(present));
    format!("{{{}", String::from_utf8_lossy(&end[1..]))
}

/// A member as an object. What a node says of it is one, so it goes on where that begins.
fn object(member: &str, shown: &Shown) -> String {
    let name = serde_json::to_string(member).unwrap_or_default();
    let about = shown.about.trim_start_matches('{').trim_end();
    let about = about.strip_suffix('}').unwrap_or(about);
    format!("{{\"member\":{name},{about},\"since\":{}}}", shown.since.0)
}

fn list<'a>(members: impl Iterator<Item = (&'a String, &'a Shown)>) -> String {
    members.map(|(member, shown)| object(member, shown)).collect::<Vec<_>>().join(",")
}

/// The end of a frame that tells everybody.
fn whole(everybody: &Everybody) -> Bytes {
    match everybody {
        Everybody::Listed(all) => format!(",\"members\":[{}]}}", list(all.iter())).into(),
        Everybody::Counted(count) => format!(",\"count\":{count}}}").into(),
    }
}

/// The end of a frame that tells what is different.
fn change(before: &Everybody, now: &Everybody) -> Bytes {
    let (Everybody::Listed(before), Everybody::Listed(now)) = (before, now) else { return whole(now) };
    let joined = list(now.iter().filter(|(member, _)| !before.contains_key(*member)));
    let is_changed = |member: &String, shown: &Shown| before.get(member).is_some_and(|known| known != shown);
    let changed = list(now.iter().filter(|(member, shown)| is_changed(member, shown)));
    let left: Vec<_> = before.keys().filter(|member| !now.contains_key(*member)).collect();
    let mut end = String::new();
    for (name, members) in [("joined", joined), ("changed", changed)] {
        if !members.is_empty() {
            end.push_str(&format!(",\"{name}\":[{members}]"));
        }
    }
    if !left.is_empty() {
        end.push_str(&format!(",\"left\":{}", serde_json::to_string(&left).unwrap_or_default()));
    }
    end.push('}');
    end.into()
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
