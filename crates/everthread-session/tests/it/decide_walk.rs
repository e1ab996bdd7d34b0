//! Random interleavings of clients, workers, deaths and time on one session; [`World`] checks after every step.
//!
//! A step is a few small numbers that mean something only in the state the session is in, so that a failing walk shrinks.

use crate::world::{self, World};
use everthread_protocol::entry::{Outcome, Target};
use everthread_protocol::limits::STATE_BYTES_MAX;
use everthread_protocol::{MessageId, RunId, WorkerId};
use everthread_session::state::RunStatus;
use everthread_session::{Refusal, Request};
use proptest::prelude::*;
use serde_json::json;

/// Walks (more with `PROPTEST_CASES`), and steps of each.
const WALKS: u32 = 1_500;
const STEPS: std::ops::Range<usize> = 1..120;
const AGENTS: [&str; 2] = ["guide", "helper"];
const OUTCOMES: [Outcome; 4] = [Outcome::Completed, Outcome::Cancelled, Outcome::Failed, Outcome::Lost];

/// Whatever is asked, these are never refused for want of room: they bring work to its end.
fn must_fit(request: &Request) -> bool {
    matches!(
        request,
        Request::End { .. }
            | Request::Claim { .. }
            | Request::Decline { .. }
            | Request::WorkerDied { .. }
            | Request::Due
            | Request::Close { .. }
    )
}

struct Walk {
    world: World,
    /// Params and ids are long, so that the state gets full.
    fat: bool,
}

impl Walk {
    fn ask(&mut self, request: Request) {
        if let Err(Refusal::Limit(limit)) = self.world.apply(&request) {
            assert!(!must_fit(&request), "{request:?}: {limit}");
        }
        let bytes = serde_json::to_string(&self.world.state).unwrap().len();
        assert!(bytes <= STATE_BYTES_MAX * 2, "{bytes} bytes");
    }

    /// Any run that was ever requested, or one that never was.
    fn any_run(&self, pick: u8) -> RunId {
        let runs = self.world.all_runs();
        runs.get(usize::from(pick) % (runs.len() + 1)).cloned().unwrap_or_else(|| "never".parse().unwrap())
    }

    /// A run that some worker holds, with that worker.
    fn held(&self, pick: u8) -> Option<(RunId, WorkerId)> {
        let state = self.world.state.as_ref().unwrap();
        let held: Vec<_> = state.active_runs().map(|(run, worker)| (run.clone(), worker.clone())).collect();
        held.get(usize::from(pick) % held.len().max(1)).cloned()
    }

    fn worker(&self, pick: u8) -> String {
        if self.fat { format!("{:0>128}", pick % 3) } else { format!("w{}", pick % 3) }
    }

    fn step(&mut self, (what, a, b): (u8, u8, u8)) {
        let message: MessageId = format!("m{}", a % 12).parse().unwrap();
        match what {
            0..=19 => {
                let agent = [Some(AGENTS[0]), Some(AGENTS[1]), None][usize::from(b) % 3];
                let mut request = world::put(message.as_str(), agent);
                if let (Request::Put(put), true) = (&mut request, self.fat) {
                    put.params = json!({"p": "x".repeat(usize::from(a) * 16)}).as_object().cloned();
                }
                // Ids of messages are the clients' own; asking twice under one id is refused while it is remembered.
                let is_known = self.world.has_input(&message);
                if !is_known || b.is_multiple_of(4) && self.remembers(&message) {
                    self.ask(request);
                }
            }
            20..=31 => {
                let target = match b % 3 {
                    0 => Target::Input(message),
                    _ => Target::Run(self.any_run(b)),
                };
                let known = self.world.state.as_ref().unwrap().controls.contains_key(&control(a));
                if known || !self.world.was_asked(&control(a)) {
                    self.ask(world::cancel(control(a).as_str(), target));
                }
            }
            32..=54 => {
                let pooled: Vec<RunId> = self.world.pool.iter().cloned().collect();
                let run = match pooled.get(usize::from(a) % pooled.len().max(1)) {
                    Some(run) if b > 20 => run.clone(),
                    // An item that comes twice, or comes late.
                    _ => self.any_run(a),
                };
                self.ask(world::claim(run.as_str(), &self.worker(b)));
            }
            55..=64 => {
                if let Some((run, _)) = self.held(a) {
                    self.world.wrote.insert(run);
                }
            }
            65..=74 => {
                if let Some((run, _)) = self.held(a) {
                    self.ask(world::end(run.as_str(), OUTCOMES[usize::from(b) % 4]));
                }
            }
            75..=80 => {
                if let Some((run, _)) = self.held(a) {
                    let id = format!("child{}", b % 40);
                    if !self.world.all_runs().iter().any(|run| run.as_str() == id) {
                        self.ask(world::child(run.as_str(), &id, AGENTS[usize::from(b) % 2]));
                    }
                }
            }
            81..=84 => self.decline(a, b),
            85..=89 => self.die(a, b),
            90..=92 => self.ask(Request::Due),
            93..=95 => self.world.now += u64::from(a) * 40,
            96 => self.world.now += u64::from(a) * 4_000,
            97 => self.ask(Request::SetValue { key: format!("k{}", a % 80), value: json!(b) }),
            98 => {
                let patch = json!({"agent": AGENTS[usize::from(a) % 2], "n": b, "gone": null});
                self.ask(Request::Update { patch: patch.as_object().unwrap().clone() });
            }
            _ if a < 60 => self.ask(Request::Close { reason: None }),
            _ => self.ask(Request::Events),
        }
    }

    fn remembers(&self, message: &MessageId) -> bool {
        let runs = &self.world.state.as_ref().unwrap().runs;
        runs.values().any(|run| run.input.iter().any(|input| input == message.as_str()))
    }

    fn decline(&mut self, a: u8, b: u8) {
        let Some((run, worker)) = self.held(a) else { return };
        let attempt = self.world.state.as_ref().unwrap().runs[&run].attempts;
        let worker = if b < 60 { self.worker(b).parse().unwrap() } else { worker };
        self.ask(Request::Decline { run, worker, attempt: attempt - u32::from(b == 255) });
    }

    /// As the desk does: what is believed to be unwritten and is not, is decided again.
    fn die(&mut self, a: u8, b: u8) {
        let Some((run, worker)) = self.held(a) else { return };
        self.ask(Request::WorkerDied { run: run.clone(), worker: worker.clone(), wrote: b > 200 });
        if self.world.wrote.contains(&run) {
            self.ask(Request::WorkerDied { run, worker, wrote: true });
        }
    }

    /// Time goes on, workers take what there is and end it, until nothing is left.
    fn settle(&mut self) {
        for _ in 0..400 {
            self.world.now += 60_000;
            self.ask(Request::Due);
            while let Some((run, _)) = self.held(0) {
                self.ask(world::end(run.as_str(), Outcome::Completed));
            }
            let Some(run) = self.world.pool.first().cloned() else { break };
            self.ask(world::claim(run.as_str(), "w"));
        }
        self.world.now += 60_000;
        self.ask(Request::Due);
        let waiting = self.world.state.as_ref().unwrap().runs.values();
        assert_eq!(waiting.filter(|run| run.status == RunStatus::Requested).count(), 0);
        self.world.check_all_is_settled();
    }
}

fn control(pick: u8) -> everthread_protocol::ControlId {
    format!("c{}", pick % 30).parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: WALKS.max(ProptestConfig::default().cases), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_every_run_and_every_control_has_exactly_one_outcome(
        steps in prop::collection::vec((0u8..100, any::<u8>(), any::<u8>()), STEPS),
        fat in prop::bool::weighted(0.2),
    ) {
        let mut walk = Walk { world: World::new(), fat };
        for step in steps {
            walk.step(step);
        }
        walk.settle();
    }
}
