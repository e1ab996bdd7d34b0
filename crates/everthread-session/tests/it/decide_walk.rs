//! The model check: random interleavings of clients, workers, deaths, failovers and time on one session.
//!
//! A step is a few small numbers that mean something only in the state the session is in, so that a failing walk shrinks.
//! [`World`] checks after every step; at the end of a walk time passes and workers work until nothing is left.
//!
//! To run it big: `PROPTEST_CASES=30000 cargo test --release -p everthread-session --test it walk`. With
//! `EVERTHREAD_WALK_REPORT=<file>` it writes how many steps it made and how often it saw what.

use crate::world::{self, World};
use everthread_protocol::control::{What, WhenBusy, WhoMay};
use everthread_protocol::entry::{ControlOutcome, Outcome, RefusalReason, Role, Target};
use everthread_protocol::limits::STATE_BYTES_MAX;
use everthread_protocol::{ApprovalId, AuthorKind, ControlId, MessageId, RunId, Seq, WorkerId};
use everthread_session::decide::{Branch, Put, Regenerate};
use everthread_session::state::RunStatus;
use everthread_session::{Decision, Refusal, Request};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Walks (more with `PROPTEST_CASES`), and steps of each.
const WALKS: u32 = 1_500;
const STEPS: std::ops::Range<usize> = 1..160;
const AGENTS: [&str; 2] = ["guide", "helper"];
const OUTCOMES: [Outcome; 4] = [Outcome::Completed, Outcome::Cancelled, Outcome::Failed, Outcome::Lost];
const POLICIES: [WhenBusy; 4] = [WhenBusy::Enqueue, WhenBusy::Steer, WhenBusy::Interrupt, WhenBusy::Reject];
const POLICY_WORDS: [&str; 4] = ["enqueue", "steer", "interrupt", "reject"];
/// Who asks: Bea is an operator.
const PEOPLE: [&str; 3] = ["ann", "bob", "bea"];
/// Fences that workers remember, of runs that are theirs and of runs that are not any more.
const HANDS_MAX: usize = 24;

/// What every outcome of a default run of walks must have been seen of: else the walks have lost their way.
const SEEN: &[&str] = &[
    "approval.settled approved",
    "approval.settled denied",
    "approval.settled expired",
    "branch.begun",
    "branch.selected",
    "control.settled answer applied",
    "control.settled answer refused already_answered",
    "control.settled answer refused held",
    "control.settled answer refused no_approval",
    "control.settled answer refused not_allowed",
    "control.settled answer refused run_ended",
    "control.settled answer refused timeout",
    "control.settled answer refused wrong_digest",
    "control.settled cancel applied",
    "control.settled cancel expired timeout",
    "control.settled cancel refused held",
    "control.settled cancel refused no_active_run",
    "control.settled cancel refused run_ended",
    "control.settled interrupt applied",
    "control.settled interrupt refused held",
    "control.settled pause applied",
    "control.settled pause expired timeout",
    "control.settled pause refused held",
    "control.settled pause refused not_supported",
    "control.settled pause refused run_ended",
    "control.settled pause refused superseded",
    "control.settled resume applied",
    "control.settled resume refused superseded",
    "control.settled steer applied",
    "control.settled steer expired timeout",
    "control.settled steer refused held",
    "control.settled steer refused no_active_run",
    "control.settled steer refused not_supported",
    "control.settled steer refused run_ended",
    "control.settled steer refused superseded",
    "refused Busy",
    "refused Held",
    "refused Known",
    "refused NotEnded",
    "refused Waits",
    "run.ended cancelled cancel",
    "run.ended cancelled cancel_timeout",
    "run.ended cancelled held",
    "run.ended cancelled interrupt",
    "run.ended cancelled parent_ended",
    "run.ended cancelled replaced",
    "run.ended cancelled session_closed",
    "run.ended cancelled worker_lost",
    "run.ended completed",
    "run.ended lost worker_lost",
    "run.resumed",
    "run.returned declined",
    "run.returned worker_lost",
    "run.suspended",
    "session.held",
    "session.released",
    "the store lost a tail",
    "the store refused a stale fence",
];

/// Whatever is asked, these are never refused for want of room: they bring work to its end.
fn must_fit(request: &Request) -> bool {
    match request {
        Request::Control(ask) => matches!(ask.what, What::Answer { value: None, .. }),
        Request::End { .. }
        | Request::Claim { .. }
        | Request::Decline { .. }
        | Request::Settle { .. }
        | Request::WorkerDied { .. }
        | Request::Hold { .. }
        | Request::Due
        | Request::Close { .. } => true,
        _ => false,
    }
}

/// What a worker remembers of a claim.
#[derive(Debug, Clone)]
struct Hand {
    run: RunId,
    worker: WorkerId,
    fence: u64,
    attempt: u32,
}

struct Walk {
    world: World,
    /// What a failover falls back to.
    saved: Option<World>,
    hands: Vec<Hand>,
    /// Params and ids are long, so that the state gets full.
    fat: bool,
    /// At the end no worker lives: each dies under the run that it gets.
    deadly: bool,
    seen: BTreeMap<String, u64>,
}

impl Walk {
    fn new(fat: bool, deadly: bool) -> Walk {
        Walk { world: World::new(), saved: None, hands: Vec::new(), fat, deadly, seen: BTreeMap::new() }
    }

    fn see(&mut self, what: &str) {
        *self.seen.entry(what.to_owned()).or_default() += 1;
    }

    fn ask(&mut self, request: &Request) -> bool {
        let answer = self.world.apply(request);
        self.look_at(request, &answer);
        answer.is_ok()
    }

    fn look_at(&mut self, request: &Request, answer: &Result<Decision, Refusal>) {
        match answer {
            Ok(decision) => {
                let labels: Vec<String> = decision.entries.iter().map(|e| self.world.label(e)).collect();
                labels.iter().for_each(|label| self.see(label));
            }
            Err(Refusal::Limit(limit)) => assert!(!must_fit(request), "{request:?}: {limit}"),
            Err(refusal) => {
                let name = format!("{refusal:?}");
                self.see(&format!("refused {}", name.split('(').next().unwrap()));
            }
        }
        let bytes = serde_json::to_string(&self.world.state).unwrap().len();
        assert!(bytes <= STATE_BYTES_MAX * 2, "{bytes} bytes");
    }

    /// A write with the fence that a worker remembers, which may be an old one.
    fn write(&mut self, hand: &Hand, request: &Request) {
        match self.world.write(&hand.run, hand.fence, request) {
            Some(answer) => self.look_at(request, &answer),
            None => self.see("the store refused a stale fence"),
        }
    }

    /// Any run that was ever requested, or one that never was.
    fn any_run(&self, pick: u8) -> RunId {
        let runs = &self.world.ledger.runs;
        let run = runs.keys().nth(usize::from(pick) % (runs.len() + 1));
        run.cloned().unwrap_or_else(|| "never".parse().unwrap())
    }

    /// A run that has no outcome, if there is one.
    fn open_run(&self, pick: u8) -> RunId {
        let runs: Vec<&RunId> = self.world.ledger.open_runs().map(|(id, _)| id).collect();
        runs.get(usize::from(pick) % runs.len().max(1))
            .map_or_else(|| self.any_run(pick), |run| (*run).clone())
    }

    fn hand(&self, pick: u8) -> Option<Hand> {
        self.hands.get(usize::from(pick) % self.hands.len().max(1)).cloned()
    }

    /// The hand of a run that is its worker's.
    fn live_hand(&self, pick: u8) -> Option<Hand> {
        let live = |hand: &&Hand| self.world.fences.get(&hand.run) == Some(&hand.fence);
        let hands: Vec<&Hand> = self.hands.iter().filter(live).collect();
        hands.get(usize::from(pick) % hands.len().max(1)).map(|hand| (*hand).clone())
    }

    fn worker(&self, pick: u8) -> String {
        if self.fat { format!("{:0>128}", pick % 3) } else { format!("w{}", pick % 3) }
    }

    /// An id for a message. Ids are the clients' own: one that the state remembers is refused, one that it has forgotten
    /// is the store's to know.
    fn message(&self, a: u8, b: u8) -> Option<MessageId> {
        let id: MessageId = format!("m{}", a % 24).parse().unwrap();
        let is_known = self.world.ledger.messages.contains(&id);
        (!is_known || (b.is_multiple_of(4) && self.remembers(&id))).then_some(id)
    }

    fn remembers(&self, message: &MessageId) -> bool {
        let state = self.world.core();
        let is = |input: &Vec<String>| input.iter().any(|id| id == message.as_str());
        state.runs.values().any(|run| is(&run.input))
            || state.held.as_ref().is_some_and(|hold| is(&hold.input))
            || state.controls.values().any(|control| control.message.as_ref() == Some(message))
    }

    fn target(&self, a: u8, b: u8) -> Target {
        match b % 12 {
            0 | 1 => Target::Input(format!("m{}", a % 24).parse().unwrap()),
            2 | 3 => Target::Agent(AGENTS[usize::from(a) % 2].parse().unwrap()),
            4 => Target::All(true),
            5 => Target::Run(self.any_run(a)),
            6 | 7 => Target::Run(self.open_run(a)),
            _ => Target::Run(self.live_hand(a).map_or_else(|| self.open_run(a), |hand| hand.run)),
        }
    }

    /// What a client may want.
    fn client_request(&self, what: u8, a: u8, b: u8) -> Option<Request> {
        Some(match what {
            0..=17 => {
                let agent = [Some(AGENTS[0]), Some(AGENTS[0]), Some(AGENTS[1]), None][usize::from(b) % 4];
                let params = self.fat.then(|| json!({"p": "x".repeat(usize::from(a) * 16)}));
                Request::Put(Put {
                    message: self.message(a, b)?,
                    role: if b % 16 == 15 { Role::Operator } else { Role::User },
                    parts: world::parts(),
                    reply_to: None,
                    agent: agent.map(|agent| agent.parse().unwrap()),
                    params: params.and_then(|params| params.as_object().cloned()),
                    when_busy: POLICIES.get(usize::from(b / 4) % 6).copied(),
                    branch: b.is_multiple_of(5).then(|| self.branch(a, b)),
                })
            }
            18..=44 => {
                let control: ControlId = format!("c{}", a % 48).parse().unwrap();
                let input = |id: Option<MessageId>| world::input(id.as_ref().map(|id| id.as_str()));
                let id = if a.is_multiple_of(2) { Some(self.message(b, a)?) } else { None };
                let what = match what {
                    18..=20 => What::Cancel,
                    21..=26 => What::Steer {
                        mode: serde_json::from_value(json!(
                            ["now", "next_step", "when_idle"][usize::from(b) % 3]
                        ))
                        .unwrap(),
                        input: input(id),
                    },
                    27 | 28 => What::Interrupt { input: input(id) },
                    29..=32 => What::Pause,
                    33..=36 => What::Resume,
                    _ => return Some(self.answer(control, a, b)),
                };
                let by = PEOPLE[usize::from(b) % 3];
                let mut request = world::ask_as(by, control.as_str(), self.target(a / 2, b), what);
                if let (Request::Control(ask), 0) = (&mut request, a % 4) {
                    ask.expires_ms = Some(1_000 + u64::from(b) * 10);
                }
                request
            }
            45 => world::hold(),
            46..=50 => Request::Release {
                reason: None,
                agent: (a.is_multiple_of(4)).then(|| AGENTS[1].parse().unwrap()),
                run: !a.is_multiple_of(5),
            },
            51 => Request::SetValue { key: format!("k{}", a % 80), value: json!(b) },
            52 => {
                let policy = POLICY_WORDS.get(usize::from(b) % 6);
                let patch = json!({"agent": AGENTS[usize::from(a) % 2], "when_busy": policy, "gone": null});
                Request::Update { patch: patch.as_object().unwrap().clone() }
            }
            53 if a < 30 => Request::Close { reason: None },
            53 if a < 50 => Request::Select { through: Seq(u64::from(b)) },
            53 => self.again(a, b)?,
            _ => Request::Events,
        })
    }

    /// A branch that replaces what some of the open runs work on, and some of what a person holds.
    fn branch(&self, a: u8, b: u8) -> Branch {
        let state = self.world.core();
        let roots = state.open_runs().filter(|(_, run)| run.parent.is_none()).map(|(id, _)| id.clone());
        let held = state.held.iter().flat_map(|hold| hold.input.iter().cloned());
        Branch {
            after: Seq(u64::from(a)),
            ends: roots.skip(usize::from(b) % 3).take(usize::from(a) % 3).collect(),
            drops: held.skip(usize::from(a) % 2).collect(),
        }
    }

    /// A run that ended is done again, or one that did not is not.
    fn again(&self, a: u8, b: u8) -> Option<Request> {
        let run = self.any_run(a);
        let known = self.world.ledger.runs.get(&run).filter(|known| known.parent.is_none())?;
        let input = self.world.ledger.inputs_of.iter().filter(|(_, runs)| runs.contains(&run));
        Some(Request::Regenerate(Box::new(Regenerate {
            agent: known.agent.clone(),
            input: input.map(|(message, _)| message.clone()).collect(),
            params: None,
            branch: self.branch(b, a),
            run,
        })))
    }

    /// An answer to an approval that is open, mostly.
    fn answer(&self, control: ControlId, a: u8, b: u8) -> Request {
        let state = self.world.core();
        let asked = state.open_runs().flat_map(|(id, run)| run.approvals.iter().map(move |a| (id, a)));
        // A late one too, now and then.
        let asked = asked.filter(|(_, approval)| approval.is_open() || a.is_multiple_of(3));
        let open: Vec<(RunId, ApprovalId)> =
            asked.map(|(run, approval)| (run.clone(), approval.approval.clone())).collect();
        let (run, approval) = match open.get(usize::from(a) % (open.len() + 1)) {
            Some(open) => open.clone(),
            None if b.is_multiple_of(4) => (self.open_run(a), format!("a{}", b % 8).parse().unwrap()),
            None => return Request::Events,
        };
        let digest = [Some("right"), Some("right"), None, Some("wrong")][usize::from(b) % 4];
        let what = What::Answer {
            approval,
            is_approved: b % 5 < 3,
            value: (b.is_multiple_of(7)).then(|| json!({"n": b})),
            digest: digest.map(str::to_owned),
        };
        world::ask_as(PEOPLE[usize::from(b / 4) % 3], control.as_str(), Target::Run(run), what)
    }

    fn step(&mut self, (what, a, b): (u8, u8, u8)) {
        match what {
            0..=53 => match self.client_request(what, a, b) {
                Some(request) if !self.is_forgotten(&request) => drop(self.ask(&request)),
                _ => {}
            },
            54..=73 => {
                let pooled: Vec<RunId> = self.world.pool.iter().cloned().collect();
                let run = match pooled.get(usize::from(a) % pooled.len().max(1)) {
                    Some(run) if b > 20 => run.clone(),
                    // An item that comes twice, or comes late.
                    _ => self.any_run(a),
                };
                self.claim(&run, &self.worker(b), b.is_multiple_of(2));
            }
            74..=79 => {
                if let Some(hand) = self.live_hand(a) {
                    self.world.wrote.insert(hand.run);
                }
            }
            80..=99 => {
                // Now and then with a fence of long ago.
                let hand = if a.is_multiple_of(7) { self.hand(b) } else { self.live_hand(a) };
                if let Some(hand) = hand {
                    let request = self.worker_request(&hand, what, a, b);
                    self.write(&hand, &request);
                }
            }
            100..=102 => {
                if let Some(hand) = self.hand(a) {
                    let attempt = hand.attempt;
                    self.ask(&Request::Decline { run: hand.run, worker: hand.worker, attempt });
                }
            }
            103..=105 => self.die(a, b),
            106..=111 => drop(self.ask(&Request::Due)),
            112..=114 => self.world.now += u64::from(a) * 40,
            115 => self.world.now += u64::from(a) * 4_000,
            116 | 117 => self.race((a, b)),
            118 => self.saved = Some(self.world.clone()),
            _ => {
                if let Some(saved) = self.saved.take_if(|_| a > 100) {
                    self.world.fall_back_to(&saved);
                    self.see("the store lost a tail");
                }
            }
        }
    }

    fn claim(&mut self, run: &RunId, worker: &str, retries: bool) -> bool {
        let worker: WorkerId = worker.parse().unwrap();
        let done = self.ask(&Request::Claim { run: run.clone(), worker: worker.clone(), retries });
        if done {
            let (fence, attempt) = (self.world.fences[run], self.world.core().runs[run].attempts);
            self.hands.push(Hand { run: run.clone(), worker, fence, attempt });
            if self.hands.len() > HANDS_MAX {
                let live = |hand: &Hand| self.world.fences.get(&hand.run) == Some(&hand.fence);
                if let Some(old) = self.hands.iter().position(|hand| !live(hand)) {
                    self.hands.remove(old);
                }
            }
        }
        done
    }

    fn worker_request(&self, hand: &Hand, what: u8, a: u8, b: u8) -> Request {
        let run = hand.run.as_str();
        match what {
            80..=82 => world::end(run, OUTCOMES[usize::from(b) % 4]),
            83..=85 => {
                // An id that the core has forgotten names something new: not here, where each run has one.
                let id: RunId = format!("{run}.{}", b % 4).parse().unwrap();
                let is_free =
                    self.world.core().runs.contains_key(&id) || !self.world.ledger.runs.contains_key(&id);
                let id = if is_free { id.to_string() } else { format!("{run}.{}", self.world.next_id()) };
                world::child(run, &id, AGENTS[usize::from(b) % 2])
            }
            86..=91 => {
                let ask = |n: u8| {
                    let mut asked = world::approval(&format!("a{}", n % 8));
                    asked.expires_ms = Some(1_000 + u64::from(b) * 500);
                    asked.digest = (n.is_multiple_of(2)).then(|| "right".to_owned());
                    asked.who = (n.is_multiple_of(3))
                        .then(|| WhoMay { kinds: vec![AuthorKind::Operator], subjects: Vec::new() });
                    asked
                };
                world::suspend(run, (0..=a % 3).map(|n| ask(b.wrapping_add(n))).collect())
            }
            _ => {
                let pending = self.world.core().controls_of(&hand.run);
                let control = match pending.get(usize::from(a) % (pending.len() + 1)) {
                    Some((id, ..)) => (*id).clone(),
                    // One that has its outcome, is not of this run, or never was.
                    None => format!("c{}", a % 60).parse().unwrap(),
                };
                let (outcome, reason) = match b % 6 {
                    0 => (ControlOutcome::Refused, None),
                    1 => (ControlOutcome::Refused, Some(RefusalReason::NotAllowed)),
                    _ => (ControlOutcome::Applied, None),
                };
                Request::Settle { run: hand.run.clone(), control, outcome, reason }
            }
        }
    }

    /// As the desk does: what is believed to be unwritten and is not, is decided again.
    fn die(&mut self, a: u8, b: u8) {
        let hand = if b.is_multiple_of(5) { self.hand(a) } else { self.live_hand(a) };
        let Some(Hand { run, worker, attempt, .. }) = hand else { return };
        let has_written = self.world.wrote.contains(&run);
        let (of, by) = (run.clone(), worker.clone());
        self.ask(&Request::WorkerDied { run: of, worker: by, attempt, wrote: b > 200 });
        if has_written && self.world.wrote.contains(&run) {
            self.ask(&Request::WorkerDied { run, worker, attempt, wrote: true });
        }
    }

    /// Two decide on the same state: the second is too late and decides anew.
    fn race(&mut self, (a, b): (u8, u8)) {
        let first = self.client_request(a % 54, a, b);
        let second = self.client_request(b % 54, b, a);
        let (Some(first), Some(second)) = (first, second) else { return };
        if self.is_forgotten(&first) || self.is_forgotten(&second) {
            return;
        }
        let stale = self.world.decide(&second);
        let before = self.world.state.clone();
        if !self.ask(&first) || self.world.state == before {
            assert_eq!(stale.is_ok(), self.world.decide(&second).is_ok(), "a refusal changes nothing");
        }
        if !self.is_forgotten(&second) {
            self.ask(&second);
        }
    }

    /// Whether the core has forgotten an id that the request uses: then it is the store's to know.
    fn is_forgotten(&self, request: &Request) -> bool {
        let (ledger, state) = (&self.world.ledger, self.world.core());
        let message = match request {
            Request::Put(put) => Some(&put.message),
            Request::Control(ask) => {
                if ledger.controls.contains_key(&ask.control) && !state.controls.contains_key(&ask.control) {
                    return true;
                }
                match &ask.what {
                    What::Steer { input, .. } | What::Interrupt { input } => input.message.as_ref(),
                    _ => None,
                }
            }
            _ => None,
        };
        message.is_some_and(|id| ledger.messages.contains(id) && !self.remembers(id))
    }

    /// Time passes until nothing is due any more; workers that hold something die, or end it.
    fn let_time_pass(&mut self) {
        for turn in 0..2_000_u64 {
            if let Some(hand) = self.live_hand(0) {
                match turn % 3 {
                    0 if !self.deadly => {
                        self.write(&hand, &world::end(hand.run.as_str(), Outcome::Completed))
                    }
                    _ => drop(self.ask(&world::died(
                        hand.run.as_str(),
                        hand.worker.as_str(),
                        hand.attempt,
                        true,
                    ))),
                }
            } else if let Some(due) = self.world.core().next_due() {
                self.world.now = self.world.now.max(due.0);
                assert!(self.ask(&Request::Due), "what is due can be done");
            } else if let Some(run) = self.world.pool.first().cloned() {
                self.claim(&run, "w", self.deadly || turn.is_multiple_of(2));
            } else {
                return;
            }
        }
        panic!("it never ends: {:?}", self.world.state);
    }

    /// After everything: what is left open waits for a person, and ends once people have gone on.
    fn settle(&mut self) {
        self.let_time_pass();
        let state = self.world.core();
        assert_eq!((state.pending_controls().count(), state.active_runs().count()), (0, 0));
        assert_eq!(state.open_approvals().count(), 0);
        let waits = |run: &&everthread_session::state::Run| run.status == RunStatus::Requested;
        let paused = state.runs.values().filter(waits).any(|run| run.paused);
        assert!(state.open_runs().next().is_none() || paused || state.held.is_some());
        if state.held.is_some() && !state.closed {
            self.ask(&world::release());
        }
        let paused = self.world.core().open_runs().filter(|(_, run)| run.paused);
        let paused: Vec<RunId> = paused.map(|(id, _)| id.clone()).collect();
        for (n, run) in paused.into_iter().enumerate() {
            self.ask(&world::ask(&format!("go-on-{n}"), Target::Run(run), What::Resume));
        }
        self.let_time_pass();
        self.world.check_all_is_settled();
    }
}

#[test]
fn whatever_the_order_every_run_control_and_approval_has_exactly_one_outcome() {
    let walks = WALKS.max(ProptestConfig::default().cases);
    let config = ProptestConfig { cases: walks, failure_persistence: None, ..ProptestConfig::default() };
    let steps = prop::collection::vec((0u8..120, any::<u8>(), any::<u8>()), STEPS);
    let total = RefCell::new((0_usize, BTreeMap::<String, u64>::new()));
    let walk = |(steps, fat): (Vec<(u8, u8, u8)>, bool)| {
        let count = steps.len();
        let mut walk = Walk::new(fat, count.is_multiple_of(4));
        steps.into_iter().for_each(|step| walk.step(step));
        walk.settle();
        let mut total = total.borrow_mut();
        total.0 += count;
        for (what, times) in walk.seen {
            *total.1.entry(what).or_default() += times;
        }
        Ok::<(), TestCaseError>(())
    };
    if let Err(failure) = TestRunner::new(config).run(&(steps, prop::bool::weighted(0.2)), walk) {
        panic!("{failure}");
    }
    let (steps, seen) = total.into_inner();
    if let Some(report) = std::env::var_os("EVERTHREAD_WALK_REPORT") {
        let lines = seen.iter().map(|(what, times)| format!("{times:>10} {what}\n"));
        std::fs::write(report, format!("{walks} walks, {steps} steps\n{}", lines.collect::<String>()))
            .unwrap();
    }
    let unseen: Vec<_> = SEEN.iter().filter(|what| !seen.contains_key(**what)).collect();
    assert!(unseen.is_empty(), "{walks} walks have not seen {unseen:?}");
}
