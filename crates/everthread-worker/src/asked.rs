//! What people ask of a run while it is at work: messages that steer it, and whether it stands still. No I/O.
//!
//! The server sends a control again until it has its outcome, so each is remembered for as long as it may come again.
//!
//! **Invariant:** a control gets at most one outcome from here, and a message is given to the function at most once.

use crate::work::PastMessage;
use everthread_protocol::ControlId;
use everthread_protocol::control::Mode;
use everthread_protocol::entry::{ControlKind, RefusalReason};
use everthread_protocol::limits::{PENDING_CONTROLS_MAX, SETTLED_MAX};
use everthread_protocol::worker_frame::WorkerControl;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A message that nobody has taken yet.
#[derive(Debug)]
struct Waiting {
    control: ControlId,
    mode: Mode,
    message: PastMessage,
    /// From then on it is the input of a new run.
    until: Instant,
}

/// An outcome for the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settlement {
    pub(crate) control: ControlId,
    /// Why it was not applied, if it was not.
    pub(crate) refusal: Option<RefusalReason>,
}

/// What is asked of one run.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Whether the function looks at what steers it.
    is_steerable: bool,
    /// As many as a session may have controls without outcome, at most.
    steers: VecDeque<Waiting>,
    /// Controls that are the function's or have their outcome, the last ones.
    known: VecDeque<ControlId>,
    /// Whether it stood still before `turns`.
    was_paused: bool,
    /// The last controls that paused (true) or resumed, oldest first: of those that the server goes by, the last counts.
    turns: VecDeque<(ControlId, bool)>,
}

impl Asked {
    pub(crate) fn new(is_steerable: bool) -> Self {
        let (steers, known, turns) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { is_steerable, steers, known, was_paused: false, turns }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.turns.back().map_or(self.was_paused, |(_, is_pause)| *is_pause)
    }

    /// Takes in a control other than `cancel`, and gives its outcome if it has one already.
    pub(crate) fn hear(&mut self, asked: WorkerControl, now: Instant) -> Option<Settlement> {
        let WorkerControl { control, kind, grace_ms, mode, message, .. } = asked;
        if self.known.contains(&control) {
            return None;
        }
        let until = now + Duration::from_millis(grace_ms);
        if let Some(waiting) = self.steers.iter_mut().find(|waiting| waiting.control == control) {
            waiting.until = until;
            return None;
        }
        match kind {
            ControlKind::Pause | ControlKind::Resume => {
                self.turn(control.clone(), kind == ControlKind::Pause);
                Some(self.settlement(control, None))
            }
            ControlKind::Steer => {
                let message = message.and_then(|message| serde_json::from_value(message).ok());
                let Some(message) = message.filter(|_| self.is_steerable) else {
                    // The server makes it the input of a new run at once, instead of when time is up.
                    return Some(self.settlement(control, Some(RefusalReason::NotSupported)));
                };
                let mode = mode.unwrap_or_default();
                self.steers.push_back(Waiting { control, mode, message, until });
                None
            }
            // Nothing of a worker's. `cancel` does not come here.
            ControlKind::Cancel | ControlKind::Interrupt | ControlKind::Answer => None,
        }
    }

    fn turn(&mut self, control: ControlId, is_pause: bool) {
        // No more than these are without an outcome at a time: whatever is older has been taken by the server.
        if self.turns.len() == PENDING_CONTROLS_MAX
            && let Some((_, was_pause)) = self.turns.pop_front()
        {
            self.was_paused = was_pause;
        }
        self.turns.push_back((control, is_pause));
    }

    fn settlement(&mut self, control: ControlId, refusal: Option<RefusalReason>) -> Settlement {
        self.know(control.clone());
        Settlement { control, refusal }
    }

    fn know(&mut self, control: ControlId) {
        if self.known.len() == SETTLED_MAX {
            self.known.pop_front();
        }
        self.known.push_back(control);
    }

    /// The next message that steers the run.
    pub(crate) fn take(&mut self, now: Instant) -> Option<(ControlId, Mode, PastMessage)> {
        while let Some(Waiting { control, mode, message, until }) = self.steers.pop_front() {
            self.know(control.clone());
            if until > now {
                return Some((control, mode, message));
            }
        }
        None
    }

    /// Whether a message waits for which the work at hand is to be given up.
    pub(crate) fn has_urgent(&self, now: Instant) -> bool {
        self.steers.iter().any(|waiting| waiting.mode == Mode::Now && waiting.until > now)
    }

    /// The server took another outcome for this control: what it did here is undone.
    pub(crate) fn refused(&mut self, control: &ControlId) {
        self.turns.retain(|(turn, _)| turn != control);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(control: &str, kind: ControlKind, mode: Option<Mode>, grace_ms: u64) -> WorkerControl {
        let text = json!({ "message": control, "role": "user", "parts": [{ "part": "1", "kind": "text", "value": "hi" }] });
        let message = (kind == ControlKind::Steer).then_some(text);
        let (run, control) = ("r".parse().unwrap(), control.parse().unwrap());
        WorkerControl { run, control, kind, grace_ms, mode, message }
    }

    #[test]
    fn a_steer_is_given_once_however_often_it_is_sent() {
        let now = Instant::now();
        let mut desk = Asked::new(true);
        for _ in 0..2 {
            assert_eq!(desk.hear(asked("c1", ControlKind::Steer, Some(Mode::Now), 1000), now), None);
        }
        assert!(desk.has_urgent(now));
        let (control, mode, message) = desk.take(now).unwrap();
        assert_eq!((control.as_str(), mode, message.text().as_str()), ("c1", Mode::Now, "hi"));
        assert_eq!(desk.hear(asked("c1", ControlKind::Steer, Some(Mode::Now), 1000), now), None);
        assert!(desk.take(now).is_none() && !desk.has_urgent(now));
    }

    #[test]
    fn a_steer_whose_time_is_up_is_not_given() {
        let now = Instant::now();
        let mut desk = Asked::new(true);
        desk.hear(asked("c1", ControlKind::Steer, None, 10), now);
        desk.hear(asked("c2", ControlKind::Steer, None, 1000), now);
        assert_eq!(desk.take(now + Duration::from_millis(10)).unwrap().0.as_str(), "c2");
    }

    #[test]
    fn an_agent_that_is_not_steerable_refuses_at_once_and_once() {
        let now = Instant::now();
        let mut desk = Asked::new(false);
        let refusal = Some(RefusalReason::NotSupported);
        let settled = desk.hear(asked("c1", ControlKind::Steer, None, 1000), now).unwrap();
        assert_eq!(settled, Settlement { control: "c1".parse().unwrap(), refusal });
        assert_eq!(desk.hear(asked("c1", ControlKind::Steer, None, 1000), now), None);
    }

    #[test]
    fn a_pause_that_came_too_late_for_the_server_is_none() {
        let now = Instant::now();
        let mut desk = Asked::new(false);
        assert!(
            desk.hear(asked("c1", ControlKind::Pause, None, 1000), now).is_some_and(|s| s.refusal.is_none())
        );
        assert!(desk.is_paused());
        desk.refused(&"c1".parse().unwrap());
        assert!(!desk.is_paused());
        desk.hear(asked("c2", ControlKind::Pause, None, 1000), now);
        desk.hear(asked("c3", ControlKind::Resume, None, 1000), now);
        desk.refused(&"c2".parse().unwrap());
        assert!(!desk.is_paused(), "the last word counts");
    }

    #[test]
    fn outcomes_that_the_server_does_not_take_are_undone_in_whatever_order_it_says_so() {
        let now = Instant::now();
        let mut desk = Asked::new(false);
        let pause = |desk: &mut Asked, id: &str| desk.hear(asked(id, ControlKind::Pause, None, 1000), now);
        let resume = |desk: &mut Asked, id: &str| desk.hear(asked(id, ControlKind::Resume, None, 1000), now);
        pause(&mut desk, "c1");
        resume(&mut desk, "c2");
        desk.refused(&"c1".parse().unwrap());
        desk.refused(&"c2".parse().unwrap());
        assert!(!desk.is_paused(), "neither counts");
        pause(&mut desk, "c3");
        resume(&mut desk, "c4");
        desk.refused(&"c4".parse().unwrap());
        assert!(desk.is_paused(), "it was paused before");
        resume(&mut desk, "c5");
        pause(&mut desk, "c6");
        resume(&mut desk, "c7");
        for late in ["c7", "c6"] {
            desk.refused(&late.parse().unwrap());
        }
        assert!(!desk.is_paused());
        for n in 0..1000 {
            pause(&mut desk, &format!("p{n}"));
        }
        desk.refused(&"p999".parse().unwrap());
        assert!(desk.is_paused());
    }
}
