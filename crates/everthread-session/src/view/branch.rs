//! Branches: the messages of a session are a tree, and one way through it is the current branch.
//!
//! The log is cut into stretches. Messages of one stretch follow each other; a stretch begins where something goes on
//! from elsewhere than the end of the list, and says `after` what. A place in the tree is a seq: the newest message up to
//! there within the stretch it lies in, else what that stretch goes on from. So a message that a step reset drops leaves
//! its successors with its predecessor, and none of this ever needs a message that a snapshot has left out.

use super::{Control, Message, OpenRun, Run, Session, View};
use everthread_protocol::entry::Target;
use everthread_protocol::{RunId, Seq};
use serde::{Deserialize, Serialize};

/// From here on the log goes on from elsewhere than the end of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Seq at which it begins. It ends where the next one begins.
    pub from: Seq,
    /// The place that it goes on from.
    pub after: Seq,
}

/// The end of a stretch that is still growing.
const OPEN_END: Seq = Seq(u64::MAX);

/// A stretch, by its number: 0 is from the beginning of the log, `n` is `branches[n - 1]`.
type Number = usize;

impl Session {
    fn stretch_of(&self, place: Seq) -> Number {
        self.branches.partition_point(|stretch| stretch.from <= place)
    }

    fn begin_of(&self, number: Number) -> Seq {
        number.checked_sub(1).map_or(Seq::ZERO, |at| self.branches[at].from)
    }

    fn end_of(&self, number: Number) -> Seq {
        self.branches.get(number).map_or(OPEN_END, |next| Seq(next.from.0.saturating_sub(1)))
    }

    fn after_of(&self, number: Number) -> Option<Seq> {
        number.checked_sub(1).map(|at| self.branches[at].after)
    }

    /// Where the current branch ends.
    fn end(&self) -> Seq {
        self.tip.unwrap_or(OPEN_END)
    }

    /// The ways from `place` back to the beginning: first and last seq of a piece of each stretch.
    fn way_to(&self, mut place: Seq) -> impl Iterator<Item = (Seq, Seq)> {
        let mut number = Some(self.stretch_of(place));
        std::iter::from_fn(move || {
            let here = number?;
            let piece = (self.begin_of(here), place);
            place = self.after_of(here).unwrap_or_default();
            // Always so in what a server wrote.
            number = self.after_of(here).map(|after| self.stretch_of(after)).filter(|before| *before < here);
            Some(piece)
        })
    }

    /// Whether the branch that ends at `end` goes through `place`.
    fn goes_through(&self, end: Seq, place: Seq) -> bool {
        self.way_to(end).any(|(first, last)| first <= place && place <= last)
    }

    /// The newest stretch whose branch goes through `place`.
    fn newest_through(&self, place: Seq) -> Number {
        let own = self.stretch_of(place);
        let mut goes_through = vec![false; self.branches.len() + 1];
        goes_through[own] = true;
        for number in own + 1..goes_through.len() {
            let after = self.branches[number - 1].after;
            let before = self.stretch_of(after);
            goes_through[number] = goes_through[before] && (before != own || place <= after);
        }
        goes_through.iter().rposition(|is| *is).unwrap_or(own)
    }

    /// `branch.begun` at `seq`.
    pub(super) fn begin_branch(&mut self, seq: Seq, after: Seq) {
        if after < seq {
            self.branches.push(Stretch { from: seq, after });
            self.tip = None;
        }
    }

    /// `branch.selected`.
    pub(super) fn select_branch(&mut self, through: Seq) {
        let newest = self.newest_through(through);
        self.tip = (newest < self.branches.len()).then(|| self.end_of(newest));
    }

    /// Something begins at `seq`: at the end of the current branch, or of the one on which its maker stands.
    fn grow(&mut self, seq: Seq, maker: Option<Seq>) {
        match maker.filter(|place| !self.goes_through(self.end(), *place)) {
            None => {
                if let Some(tip) = self.tip.take() {
                    self.branches.push(Stretch { from: seq, after: tip });
                }
            }
            Some(place) => {
                let newest = self.newest_through(place);
                if newest < self.branches.len() {
                    let before = Seq(seq.0.saturating_sub(1));
                    self.tip.get_or_insert(before);
                    self.branches.push(Stretch { from: seq, after: self.end_of(newest) });
                }
            }
        }
    }
}

impl View {
    /// The messages of the current branch that are held, oldest first.
    pub fn branch(&self) -> Vec<&Message> {
        self.branch_to(self.session.end())
    }

    /// The messages that a run works on, oldest first: the current branch if the run stands on it, else its own.
    pub fn branch_of(&self, run: &RunId) -> Vec<&Message> {
        let place = self.run(run).map(|run| self.place_of(run));
        match place.filter(|place| !self.session.goes_through(self.session.end(), *place)) {
            Some(place) => self.branch_to(self.session.end_of(self.session.newest_through(place))),
            None => self.branch(),
        }
    }

    fn branch_to(&self, end: Seq) -> Vec<&Message> {
        let mut pieces: Vec<_> = self.session.way_to(end).collect();
        pieces.reverse();
        let held = |(first, last): (Seq, Seq)| {
            let start = self.messages.partition_point(|message| message.seq < first);
            let end = self.messages.partition_point(|message| message.seq <= last);
            self.messages.get(start..end).unwrap_or_default()
        };
        pieces.into_iter().flat_map(held).collect()
    }

    /// Whether the branch that ends at the place `end` goes through `place`.
    pub fn goes_through(&self, end: Seq, place: Seq) -> bool {
        self.session.goes_through(end, place)
    }

    /// Whether a message is on the current branch.
    pub fn is_on_branch(&self, message: &Message) -> bool {
        self.session.goes_through(self.session.end(), message.seq)
    }

    /// The messages that follow the same one as `message` does, itself among them, oldest first. Those that are held: two
    /// whose predecessor is not are alternatives if they go on from one place.
    pub fn alternatives(&self, message: &Message) -> Vec<&Message> {
        self.following(self.held_at(self.before(message)))
    }

    /// The messages of other branches that follow the last one of the current branch: answers that were given up for one
    /// that has not begun.
    pub fn continuations(&self) -> Vec<&Message> {
        match self.branch().last() {
            Some(last) => self.following(last.seq),
            None => Vec::new(),
        }
    }

    fn following(&self, place: Seq) -> Vec<&Message> {
        let follows = |message: &&Message| self.held_at(self.before(message)) == place;
        self.messages.iter().filter(follows).collect()
    }

    /// The place that `message` goes on from: where a branch begins that replaces it.
    pub fn before(&self, message: &Message) -> Seq {
        let number = self.session.stretch_of(message.seq);
        let first = self.session.begin_of(number);
        let is_first = !self.messages_within(first, Seq(message.seq.0.saturating_sub(1)));
        let after = self.session.after_of(number).filter(|_| is_first);
        after.unwrap_or(Seq(message.seq.0.saturating_sub(1)))
    }

    fn messages_within(&self, first: Seq, last: Seq) -> bool {
        let at = self.messages.partition_point(|message| message.seq < first);
        self.messages.get(at).is_some_and(|message| message.seq <= last)
    }

    /// Seq of the message at a place, or the place itself if that message is not held.
    fn held_at(&self, mut place: Seq) -> Seq {
        loop {
            let at = self.messages.partition_point(|message| message.seq <= place);
            let Some(found) = at.checked_sub(1).and_then(|at| self.messages.get(at)) else { return place };
            let number = self.session.stretch_of(place);
            if found.seq >= self.session.begin_of(number) {
                return found.seq;
            }
            let Some(after) = self.session.after_of(number) else { return place };
            place = after;
        }
    }

    /// The newest message of a reference: `message` or `run/message`.
    pub fn find(&self, reference: &str) -> Option<&Message> {
        let (run, id) = match reference.split_once('/') {
            Some((run, id)) => (Some(run), id),
            None => (None, reference),
        };
        let is_it = |m: &&Message| m.message.as_str() == id && m.run.as_ref().map(RunId::as_str) == run;
        self.messages.iter().rfind(is_it)
    }

    /// The open runs that no other run started and that work on `message` or on what follows it.
    pub fn runs_at_work_on(&self, message: &Message) -> Vec<&Run> {
        let steered = |run: &Run| {
            let carries = |c: &&Control| c.outcome.is_none() && c.message.as_ref() == Some(&message.message);
            let carriers = self.controls.iter().filter(carries);
            carriers.into_iter().any(|control| control.target == Target::Run(run.run.clone()))
        };
        let is_input = |run: &Run| {
            message.run.is_none()
                && (run.input.iter().any(|id| id == message.message.as_str()) || steered(run))
        };
        let follows = |run: &Run| self.session.goes_through(run.requested_seq, message.seq);
        let open = self.open.values().filter_map(|open| self.runs.get(open.at));
        let works = |run: &&Run| run.parent_run.is_none() && (follows(run) || is_input(run));
        let mut runs: Vec<&Run> = open.filter(works).collect();
        runs.sort_by_key(|run| run.requested_seq);
        runs
    }

    /// Where a run stands in the tree: where it was requested, or where the run stands that started it.
    fn place_of(&self, run: &Run) -> Seq {
        let mut root = run;
        while let Some(OpenRun { at, .. }) = root.parent_run.as_ref().and_then(|run| self.open.get(run)) {
            match self.runs.get(*at) {
                // A parent was requested before its children.
                Some(parent) if parent.requested_seq < root.requested_seq => root = parent,
                _ => break,
            }
        }
        root.requested_seq
    }

    /// A message begins, or a run is requested, at the end of a branch.
    pub(super) fn grow(&mut self, seq: Seq, maker: Maker<'_>) {
        if self.session.branches.is_empty() {
            return;
        }
        let of_run = |run: &RunId| self.open.get(run).and_then(|open| self.runs.get(open.at));
        let place = match maker {
            Maker::Anybody => None,
            Maker::Run(run) => of_run(run).map(|run| self.place_of(run)),
            Maker::Input(input) => {
                let carries = |message: Option<&str>| message.is_some_and(|id| input.iter().any(|i| i == id));
                let mut pending = self.controls.iter().rev().filter(|control| control.outcome.is_none());
                let carrier = pending.find(|c| carries(c.message.as_ref().map(|id| id.as_str())));
                carrier.map(|control| control.requested_seq)
            }
        };
        self.session.grow(seq, place);
    }
}

/// Who makes something, which says on which branch.
pub(super) enum Maker<'a> {
    /// It goes onto the current one.
    Anybody,
    /// A run, which stays on its own.
    Run(&'a RunId),
    /// A control without outcome that carries one of these messages, or anybody.
    Input(&'a [String]),
}
