//! One session driven by requests, without a store: state, log, pool, fences and view, and what must hold between them.

use everthread_protocol::control::What;
use everthread_protocol::entry::{
    ControlOutcome, Object, Outcome, PartKind, PutPart, RefusalReason, Role, RunError, Target,
};
use everthread_protocol::limits::{OPEN_RUNS_MAX, PENDING_CONTROLS_MAX};
use everthread_protocol::{
    Author, AuthorKind, ControlId, Entry, Epoch, MessageId, Millis, Record, RunId, Seq,
};
use everthread_session::decide::{Ask, Put};
use everthread_session::state::RunStatus;
use everthread_session::view::{self, View};
use everthread_session::{Context, Decision, Refusal, Request, State, decide};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

pub const START: u64 = 1_763_700_000_000;
pub const GRACE_MS: u64 = 5_000;

pub fn context(now: u64, fresh: &str) -> Context {
    Context { now: Millis(now), fresh: fresh.into(), cancel_grace_ms: GRACE_MS }
}

pub fn parts() -> Vec<PutPart> {
    vec![PutPart { kind: PartKind::Text, value: "hi".into(), attrs: None }]
}

pub fn put(message: &str, agent: Option<&str>) -> Request {
    Request::Put(Put {
        message: message.parse().unwrap(),
        role: Role::User,
        parts: parts(),
        reply_to: None,
        agent: agent.map(|agent| agent.parse().unwrap()),
        params: None,
        when_busy: None,
    })
}

pub fn claim(run: &str, worker: &str) -> Request {
    Request::Claim { run: run.parse().unwrap(), worker: worker.parse().unwrap(), retries: false }
}

pub fn decline(run: &str, worker: &str, attempt: u32) -> Request {
    Request::Decline { run: run.parse().unwrap(), worker: worker.parse().unwrap(), attempt }
}

pub fn died(run: &str, worker: &str, wrote: bool) -> Request {
    Request::WorkerDied { run: run.parse().unwrap(), worker: worker.parse().unwrap(), wrote }
}

pub fn end(run: &str, outcome: Outcome) -> Request {
    let error = RunError { code: "c".into(), message: "m".into() };
    let error = (outcome == Outcome::Failed).then_some(error);
    Request::End { run: run.parse().unwrap(), outcome, error, usage: None }
}

pub fn child(parent: &str, id: &str, agent: &str) -> Request {
    Request::StartChild {
        run: parent.parse().unwrap(),
        child: id.parse().unwrap(),
        agent: agent.parse().unwrap(),
        parts: parts(),
        params: None,
    }
}

/// Somebody asks something of runs.
pub fn ask(id: &str, by: &Author, target: Target, what: What) -> Request {
    let (by, control) = (by.clone(), id.parse().unwrap());
    Request::Control(Box::new(Ask { control, by, target, what, expires_ms: None }))
}

pub fn cancel(id: &str, target: Target) -> Request {
    ask(id, &author("ann"), target, What::Cancel)
}

pub fn author(id: &str) -> Author {
    Author { kind: AuthorKind::User, id: id.parse().unwrap(), device: None }
}

/// What the log says of a run.
#[derive(Debug, Default)]
struct RunLog {
    input: Vec<String>,
    parent: Option<RunId>,
    ended: Option<Outcome>,
}

/// A session and everything around it.
#[derive(Debug)]
pub struct World {
    pub state: Option<State>,
    pub now: u64,
    /// Runs in the pools. A claim takes its run out, whatever the answer is, as the dispatcher does.
    pub pool: BTreeSet<RunId>,
    /// Fences in force.
    pub fences: BTreeMap<RunId, u64>,
    /// Runs whose present attempt has written.
    pub wrote: BTreeSet<RunId>,
    pub view: View,
    seq: u64,
    ids: u64,
    fences_made: u64,
    runs: BTreeMap<RunId, RunLog>,
    controls: BTreeMap<ControlId, (Target, Option<ControlOutcome>)>,
}

impl World {
    /// A session that was just opened.
    pub fn new() -> World {
        let mut world = World {
            state: None,
            now: START,
            pool: BTreeSet::new(),
            fences: BTreeMap::new(),
            wrote: BTreeSet::new(),
            view: View::new(),
            seq: 0,
            ids: 0,
            fences_made: 0,
            runs: BTreeMap::new(),
            controls: BTreeMap::new(),
        };
        world.must(&Request::Open { meta: Object::new() });
        world
    }

    /// The id that the next decision makes first.
    pub fn next_id(&self) -> String {
        format!("01{:08}", self.ids + 1)
    }

    /// What would be decided.
    pub fn decide(&self, request: &Request) -> Result<Decision, Refusal> {
        decide(self.state.as_ref(), request, &context(self.now, &self.next_id()))
    }

    /// Decides and carries it out as the desk and the store do, and checks everything that must hold.
    pub fn apply(&mut self, request: &Request) -> Result<Decision, Refusal> {
        let decision = self.decide(request);
        self.ids += 1;
        if let Request::Claim { run, .. } = request {
            self.pool.remove(run);
        }
        match &decision {
            // The store refuses this one: `HasWritten`.
            Ok(decided) if decided.unwritten.as_ref().is_some_and(|run| self.wrote.contains(run)) => {
                return Err(Refusal::NotHeld);
            }
            Ok(decided) => self.commit(decided),
            Err(_) => {}
        }
        self.check();
        decision
    }

    /// For requests that cannot be refused.
    pub fn must(&mut self, request: &Request) -> Decision {
        self.apply(request).unwrap_or_else(|refusal| panic!("{request:?}: {refusal}"))
    }

    /// Requests a run of a given id: put into the state directly, as if by a `Put` long ago.
    pub fn run(&mut self, id: &str, agent: &str, parent: Option<&str>, input: &[&str]) {
        let run: RunId = id.parse().unwrap();
        let agent: everthread_protocol::AgentName = agent.parse().unwrap();
        let input: Vec<String> = input.iter().map(ToString::to_string).collect();
        let parent: Option<RunId> = parent.map(|parent| parent.parse().unwrap());
        let mut decision = self.must(&Request::Events);
        decision.entries.push(Entry::RunRequested {
            run: run.clone(),
            agent: agent.clone(),
            input: input.clone(),
            parent_run: parent.clone(),
            params: None,
        });
        let number = decision.state.runs.values().map(|run| run.number).max().unwrap_or(0) + 1;
        let mut state = everthread_session::state::Run::requested(agent.clone(), input);
        (state.number, state.parent) = (number, parent);
        decision.state.runs.insert(run.clone(), state);
        decision.enqueue.push((run, agent));
        self.commit(&decision);
        self.check();
    }

    /// A worker takes a run.
    pub fn start(&mut self, run: &str, worker: &str) {
        self.must(&claim(run, worker));
    }

    fn commit(&mut self, decision: &Decision) {
        for (run, _) in &decision.enqueue {
            self.pool.insert(run.clone());
        }
        for run in &decision.revoke {
            assert!(self.fences.remove(run).is_some(), "{run} has no fence to revoke");
            self.wrote.remove(run);
        }
        if let Some(run) = &decision.grant {
            self.fences_made += 1;
            assert!(self.fences.insert(run.clone(), self.fences_made).is_none(), "{run} has two fences");
        }
        self.log(&decision.entries);
        self.view(&decision.entries);
        self.state = Some(decision.state.clone());
    }

    fn view(&mut self, entries: &[Entry]) {
        if entries.is_empty() {
            return;
        }
        let from = self.seq + 1;
        self.seq += entries.len() as u64;
        let block = json!([{"by": {"kind": "system", "id": "x"}, "at": self.now, "entries": entries}]);
        let blocks = serde_json::to_vec(&block).unwrap().into();
        let record = Record { epoch: Epoch(1), from: Seq(from), to: Seq(self.seq), blocks };
        assert_eq!(self.view.apply(&record, Seq(1)).unwrap(), view::Applied::Yes);
    }

    /// Reads a block as the log of truth would be read, and refuses whatever breaks a promise.
    fn log(&mut self, block: &[Entry]) {
        let ends_here =
            |run: &RunId| block.iter().any(|e| matches!(e, Entry::RunEnded { run: r, .. } if r == run));
        let mut asked_here: BTreeSet<&ControlId> = BTreeSet::new();
        for entry in block {
            match entry {
                Entry::RunRequested { run, input, parent_run, .. } => {
                    let new = RunLog { input: input.clone(), parent: parent_run.clone(), ended: None };
                    assert!(self.runs.insert(run.clone(), new).is_none(), "{run} requested twice");
                }
                Entry::RunStarted { run, .. } => {
                    assert_eq!(self.runs[run].ended, None, "{run} starts after its end");
                }
                Entry::RunEnded { run, outcome, .. } => {
                    let known = self.runs.get_mut(run).unwrap();
                    assert_eq!(known.ended.replace(*outcome), None, "{run} ends twice");
                }
                Entry::ControlRequested { control, target, .. } => {
                    asked_here.insert(control);
                    let new = (target.clone(), None);
                    assert!(self.controls.insert(control.clone(), new).is_none(), "{control} asked twice");
                }
                Entry::ControlSettled { control, outcome, reason, run, .. } => {
                    let known = self.controls.get_mut(control).unwrap();
                    assert_eq!(known.1.replace(*outcome), None, "{control} settled twice");
                    let target = known.0.clone();
                    let Some(run) = run else {
                        assert_eq!(*reason, Some(RefusalReason::Timeout));
                        continue;
                    };
                    let meant = match &target {
                        Target::Run(target) => target == run,
                        Target::Input(message) => self.runs[run].input.iter().any(|i| i == message.as_str()),
                        Target::Agent(_) | Target::All(_) => true,
                    };
                    assert!(meant, "{control} meant {target:?} and hit {run}");
                    // What was pending is settled by the end of its run, and by nothing else.
                    assert!(
                        ends_here(run) || asked_here.contains(control),
                        "{control} settled without its run"
                    );
                    if *outcome == ControlOutcome::Applied {
                        assert!(ends_here(run), "{control} applied without the end of {run}");
                        assert_eq!(self.runs[run].ended, Some(Outcome::Cancelled));
                    }
                }
                _ => {}
            }
        }
    }

    /// What must hold between state, pools, fences, log and view at any time.
    fn check(&self) {
        let Some(state) = &self.state else { return };
        let fenced: Vec<&RunId> = self.fences.keys().collect();
        let active: Vec<&RunId> = state.active_runs().map(|(run, _)| run).collect();
        assert_eq!(fenced, active, "fences are those of active runs");
        assert!(state.open_runs().count() <= OPEN_RUNS_MAX);
        assert!(state.pending_controls().count() <= PENDING_CONTROLS_MAX + OPEN_RUNS_MAX);
        for (run, known) in &self.runs {
            let is_open = state.runs.get(run).is_some_and(|run| run.is_open());
            assert_eq!(is_open, known.ended.is_none(), "{run}: log and state disagree");
        }
        for (control, (_, outcome)) in &self.controls {
            let is_pending = state.controls.get(control).is_some_and(|control| control.is_pending());
            assert_eq!(is_pending, outcome.is_none(), "{control}: log and state disagree");
        }
        self.check_nobody_is_stranded(state);
        self.check_view(state);
    }

    fn check_nobody_is_stranded(&self, state: &State) {
        for (id, run) in state.open_runs() {
            let being_cancelled = !state.controls_of(id).is_empty();
            let parent_ended = run.parent.as_ref().is_some_and(|parent| self.runs[parent].ended.is_some());
            assert!(!parent_ended || being_cancelled, "{id} outlives its parent");
            if run.status != RunStatus::Requested {
                continue;
            }
            assert!(!being_cancelled, "{id} waits although it is cancelled");
            let comrades = || state.runs.iter().filter(|(_, r)| r.agent == run.agent && r.parent.is_none());
            let woken_later = run.parent.is_none()
                && comrades().any(|(id, r)| match r.status {
                    RunStatus::Active { .. } | RunStatus::Suspended => true,
                    RunStatus::Requested => self.pool.contains(id),
                    RunStatus::Ended { .. } => false,
                });
            assert!(woken_later || self.pool.contains(id), "{id} waits and nothing will wake it");
        }
    }

    fn check_view(&self, state: &State) {
        let seen: BTreeMap<&RunId, (view::RunStatus, Option<&str>)> = self
            .view
            .runs()
            .iter()
            .filter(|run| run.status != view::RunStatus::Ended)
            .map(|run| (&run.run, (run.status, run.worker.as_ref().map(|worker| worker.as_str()))))
            .collect();
        assert_eq!(seen.len(), state.open_runs().count());
        for (id, run) in state.open_runs() {
            match &run.status {
                RunStatus::Active { worker } => {
                    assert_eq!(seen[id], (view::RunStatus::Active, Some(worker.as_str())));
                }
                RunStatus::Requested => assert_eq!(seen[id].0, view::RunStatus::Requested),
                RunStatus::Suspended => assert_eq!(seen[id].0, view::RunStatus::Suspended),
                RunStatus::Ended { .. } => {}
            }
        }
        let open: BTreeSet<&ControlId> =
            self.view.controls().iter().filter(|c| c.outcome.is_none()).map(|c| &c.control).collect();
        assert_eq!(open, state.pending_controls().map(|(id, ..)| id).collect());
        assert_eq!(self.view.session().meta, state.meta);
        assert_eq!(self.view.session().closed, state.closed);
        assert_eq!(self.view.values(), &state.values);
    }

    /// At the end of everything: each run and each control has its one outcome.
    pub fn check_all_is_settled(&self) {
        for (run, known) in &self.runs {
            assert!(known.ended.is_some(), "{run} has no outcome");
            if let Some(parent) = &known.parent {
                assert!(self.runs[parent].ended.is_some());
            }
        }
        for (control, (_, outcome)) in &self.controls {
            assert!(outcome.is_some(), "{control} has no outcome");
        }
        assert_eq!(self.state.as_ref().unwrap().next_due(), None);
    }

    /// Whether a control of that id is in the log.
    pub fn was_asked(&self, control: &ControlId) -> bool {
        self.controls.contains_key(control)
    }

    /// Every run that was ever requested, oldest first.
    pub fn all_runs(&self) -> Vec<RunId> {
        self.runs.keys().cloned().collect()
    }

    /// Whether a message has asked for a run.
    pub fn has_input(&self, message: &MessageId) -> bool {
        self.runs.values().any(|run| run.input.iter().any(|input| input == message.as_str()))
    }
}
