//! One session driven by requests, without a store: state, log, pool, fences and view, and what must hold between them.

use crate::ledger::{Ledger, Stands};
use everthread_protocol::control::{NewInput, What, WhenBusy};
use everthread_protocol::entry::{
    ControlKind, ControlOutcome, Object, Outcome, PartKind, PutPart, RefusalReason, Role, RunError, Target,
};
use everthread_protocol::limits::{OPEN_RUNS_MAX, PENDING_CONTROLS_MAX, RUN_INPUT_MAX};
use everthread_protocol::worker_frame::NewApproval;
use everthread_protocol::{Author, AuthorKind, Entry, Epoch, Millis, Record, RunId, Seq};
use everthread_session::decide::{Ask, Branch, Put, Regenerate, agent_of};
use everthread_session::state::{Run, RunStatus};
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
    put_when_busy(message, agent, None)
}

pub fn put_when_busy(message: &str, agent: Option<&str>, when_busy: Option<WhenBusy>) -> Request {
    Request::Put(Put {
        message: message.parse().unwrap(),
        role: Role::User,
        parts: parts(),
        reply_to: None,
        agent: agent.map(|agent| agent.parse().unwrap()),
        params: None,
        when_busy,
        branch: None,
    })
}

/// A message that takes the place of another, on which `ends` are at work.
pub fn edit(message: &str, agent: Option<&str>, after: u64, ends: &[&str]) -> Request {
    let Request::Put(mut put) = put(message, agent) else { unreachable!() };
    put.branch = Some(branch(after, ends));
    Request::Put(put)
}

pub fn branch(after: u64, ends: &[&str]) -> Branch {
    Branch {
        after: Seq(after),
        ends: ends.iter().map(|run| run.parse().unwrap()).collect(),
        drops: Vec::new(),
    }
}

pub fn regenerate(run: &str, input: &[&str], after: u64, ends: &[&str]) -> Request {
    Request::Regenerate(Box::new(Regenerate {
        run: run.parse().unwrap(),
        agent: "guide".parse().unwrap(),
        input: input.iter().map(ToString::to_string).collect(),
        params: None,
        branch: branch(after, ends),
    }))
}

pub fn claim(run: &str, worker: &str) -> Request {
    Request::Claim { run: run.parse().unwrap(), worker: worker.parse().unwrap(), retries: false }
}

pub fn decline(run: &str, worker: &str, attempt: u32) -> Request {
    Request::Decline { run: run.parse().unwrap(), worker: worker.parse().unwrap(), attempt }
}

pub fn died(run: &str, worker: &str, attempt: u32, wrote: bool) -> Request {
    Request::WorkerDied { run: run.parse().unwrap(), worker: worker.parse().unwrap(), attempt, wrote }
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

pub fn author(id: &str) -> Author {
    let kind = if id == "bea" { AuthorKind::Operator } else { AuthorKind::User };
    Author { kind, id: id.parse().unwrap(), device: None }
}

/// Ann asks something of runs.
pub fn ask(id: &str, target: Target, what: What) -> Request {
    ask_as("ann", id, target, what)
}

pub fn ask_as(by: &str, id: &str, target: Target, what: What) -> Request {
    let (by, control) = (author(by), id.parse().unwrap());
    Request::Control(Box::new(Ask { control, by, target, what, made_at: None, expires_ms: None }))
}

pub fn cancel(id: &str, target: Target) -> Request {
    ask(id, target, What::Cancel)
}

/// A message of the given id; the core makes one if there is none.
pub fn input(message: Option<&str>) -> NewInput {
    NewInput { message: message.map(|message| message.parse().unwrap()), parts: parts() }
}

pub fn approval(id: &str) -> NewApproval {
    NewApproval {
        approval: id.parse().unwrap(),
        reason: "may I?".into(),
        schema: None,
        digest: None,
        expires_ms: None,
        who: None,
        data: None,
    }
}

pub fn suspend(run: &str, approvals: Vec<NewApproval>) -> Request {
    Request::Suspend { run: run.parse().unwrap(), approvals }
}

pub fn settle(run: &str, control: &str, outcome: ControlOutcome) -> Request {
    Request::Settle { run: run.parse().unwrap(), control: control.parse().unwrap(), outcome, reason: None }
}

pub fn hold() -> Request {
    Request::Hold { by: author("bea"), reason: None }
}

pub fn release() -> Request {
    Request::Release { reason: None, agent: None, run: true }
}

/// A session and everything around it.
#[derive(Debug, Clone)]
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
    pub ledger: Ledger,
    /// Messages put for an agent, and whether they may go without a run.
    asked_for_work: BTreeMap<String, bool>,
    seq: u64,
    epoch: u64,
    since: u64,
    ids: u64,
    fences_made: u64,
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
            ledger: Ledger::default(),
            asked_for_work: BTreeMap::new(),
            seq: 0,
            epoch: 1,
            since: 1,
            ids: 0,
            fences_made: 0,
        };
        world.must(&Request::Open { meta: Object::new() });
        world
    }

    /// The id that the next decision makes first.
    pub fn next_id(&self) -> String {
        format!("01{:08}", self.ids + 1)
    }

    /// The state.
    pub fn core(&self) -> &State {
        self.state.as_ref().unwrap()
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
            Ok(decided) => {
                let before = self.state.take();
                self.commit(decided);
                self.note_messages(before.as_ref(), request, decided);
            }
            Err(_) => {}
        }
        self.check();
        decision
    }

    /// For requests that cannot be refused.
    pub fn must(&mut self, request: &Request) -> Decision {
        self.apply(request).unwrap_or_else(|refusal| panic!("{request:?}: {refusal}"))
    }

    /// A write by the worker that was given `fence`. The store refuses it if that is not the run's any more.
    pub fn write(&mut self, run: &RunId, fence: u64, request: &Request) -> Option<Result<Decision, Refusal>> {
        if self.fences.get(run) != Some(&fence) {
            return None;
        }
        let decision = self.apply(request);
        if decision.is_ok() && self.fences.contains_key(run) {
            self.wrote.insert(run.clone());
        }
        Some(decision)
    }

    /// Requests a run of a given id: put into the state directly, as if by a `Put` long ago.
    pub fn run(&mut self, id: &str, agent: &str, parent: Option<&str>, input: &[&str]) {
        let run: RunId = id.parse().unwrap();
        let input: Vec<String> = input.iter().map(ToString::to_string).collect();
        let mut decision = self.must(&Request::Events);
        for message in &input {
            let (message, parts) = (message.parse().unwrap(), parts());
            decision.entries.push(Entry::MessagePut { message, role: Role::User, parts, reply_to: None });
        }
        let mut state = Run::requested(agent.parse().unwrap(), input.clone());
        state.parent = parent.map(|parent| parent.parse().unwrap());
        state.number = decision.state.runs.values().map(|run| run.number).max().unwrap_or(0) + 1;
        decision.entries.push(Entry::RunRequested {
            run: run.clone(),
            agent: state.agent.clone(),
            input,
            parent_run: state.parent.clone(),
            params: None,
        });
        decision.enqueue.push((run.clone(), state.agent.clone()));
        decision.state.runs.insert(run, state);
        self.commit(&decision);
        self.check();
    }

    /// A worker takes a run.
    pub fn start(&mut self, run: &str, worker: &str) {
        self.must(&claim(run, worker));
    }

    /// The store has lost everything since `earlier`. Time, ids and fences do not go back; the pools are filled again from
    /// what is left, with what is not true any more still in them.
    pub fn fall_back_to(&mut self, earlier: &World) {
        let lost = std::mem::replace(self, earlier.clone());
        (self.now, self.ids, self.fences_made) = (lost.now, lost.ids, lost.fences_made);
        (self.epoch, self.since) = (lost.epoch + 1, self.seq + 1);
        self.pool.extend(lost.pool);
        let waits = |(id, run): (&RunId, &Run)| (run.status == RunStatus::Requested).then(|| id.clone());
        let waiting: Vec<RunId> = self.core().runs.iter().filter_map(waits).collect();
        self.pool.extend(waiting);
        self.check();
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
        self.ledger.block(&decision.entries);
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
        let record = Record { epoch: Epoch(self.epoch), from: Seq(from), to: Seq(self.seq), blocks };
        assert_eq!(self.view.apply(&record, Seq(self.since)).unwrap(), view::Applied::Yes);
    }

    /// Which messages ask for work, and which of them may go without a run.
    fn note_messages(&mut self, before: Option<&State>, request: &Request, decision: &Decision) {
        let Some(before) = before else { return };
        let mut free = Vec::new();
        match request {
            Request::Put(put) => {
                let own = agent_of(&before.meta).filter(|_| put.role == Role::User);
                if put.agent.is_some() || own.is_some() {
                    self.asked_for_work.insert(put.message.to_string(), false);
                }
                // What is replaced needs no run.
                free.extend(put.branch.iter().flat_map(|branch| branch.drops.clone()));
            }
            Request::Regenerate(again) => free.extend(again.branch.drops.clone()),
            // Whoever hands back decides whether anybody goes on.
            Request::Release { .. } if decision.requested.is_none() => {
                free.extend(before.held.iter().flat_map(|hold| hold.input.clone()));
            }
            _ => {}
        }
        let kept = |id: &String| decision.state.held.as_ref().is_some_and(|hold| hold.input.contains(id));
        if let (Some(was), Some(hold)) = (&before.held, &decision.state.held) {
            let dropped = was.input.iter().filter(|id| !kept(id) && !free.contains(id));
            let dropped: Vec<String> = dropped.cloned().collect();
            assert!(dropped.is_empty() || hold.input.len() == RUN_INPUT_MAX, "{dropped:?} dropped with room");
            free.extend(dropped);
        }
        for entry in &decision.entries {
            match entry {
                Entry::ControlRequested { message: Some(message), .. } => {
                    self.asked_for_work.insert(message.to_string(), false);
                }
                Entry::ControlSettled { control, run: None, reason, .. } => {
                    let message = self.ledger.controls[control].message.as_ref().map(ToString::to_string);
                    let replaced = *reason == Some(RefusalReason::Superseded);
                    free.extend(message.filter(|id| replaced && !kept(id)));
                }
                _ => {}
            }
        }
        for message in free {
            self.asked_for_work.entry(message).and_modify(|may_go| *may_go = true);
        }
    }

    /// What must hold between state, pools, fences, log and view at any time.
    fn check(&self) {
        let Some(state) = &self.state else { return };
        let fenced: Vec<&RunId> = self.fences.keys().collect();
        let active: Vec<&RunId> = state.active_runs().map(|(run, _)| run).collect();
        assert_eq!(fenced, active, "fences are those of active runs");
        assert!(state.open_runs().count() <= OPEN_RUNS_MAX);
        assert!(state.pending_controls().count() <= 2 * PENDING_CONTROLS_MAX + OPEN_RUNS_MAX);
        assert!(state.runs.values().all(|run| run.input.len() <= RUN_INPUT_MAX));
        let pends = state.pending_controls().next().is_some() || state.open_approvals().next().is_some();
        assert_eq!(state.next_due().is_some(), pends, "what pends is due some time, and nothing else is");
        self.check_log(state);
        self.check_nobody_is_stranded(state);
        self.check_view(state);
    }

    fn check_log(&self, state: &State) {
        assert_eq!((state.held.is_some(), state.closed), (self.ledger.is_held, self.ledger.is_closed));
        for (run, known) in &self.ledger.runs {
            let stands = state.runs.get(run).map(|run| match run.status {
                RunStatus::Requested => Stands::Waits,
                RunStatus::Active { .. } => Stands::Active,
                RunStatus::Suspended => Stands::Suspended,
                RunStatus::Ended { outcome, .. } => Stands::Ended(outcome),
            });
            assert!(
                stands == Some(known.stands) || (stands.is_none() && !known.is_open()),
                "{run}: {stands:?}"
            );
        }
        for (control, known) in &self.ledger.controls {
            let is_pending = state.controls.get(control).is_some_and(|control| control.is_pending());
            assert_eq!(is_pending, known.outcome.is_none(), "{control}: log and state disagree");
        }
        for (message, may_go) in &self.asked_for_work {
            let held = state.held.as_ref().is_some_and(|hold| hold.input.contains(message));
            assert!(
                *may_go || held || state.closed || self.ledger.is_looked_after(message),
                "nobody will ever work on {message}"
            );
        }
    }

    /// The first that waits of an agent that is free is in its pool, unless it is not to begin.
    fn check_nobody_is_stranded(&self, state: &State) {
        for (id, run) in state.open_runs() {
            if run.status != RunStatus::Requested || run.paused || state.held.is_some() {
                continue;
            }
            let place = |run: &Run| (run.attempts == 0, !run.goes_first, run.number);
            let goes_before = |other: &Run| match other.status {
                RunStatus::Active { .. } | RunStatus::Suspended => true,
                RunStatus::Requested => place(other) < place(run),
                RunStatus::Ended { .. } => false,
            };
            let comrades = state.runs.values().filter(|o| o.agent == run.agent && o.parent.is_none());
            let waits = run.parent.is_none() && comrades.into_iter().any(goes_before);
            assert!(waits || self.pool.contains(id), "{id} waits and nothing will wake it");
        }
    }

    fn check_view(&self, state: &State) {
        let open = || self.view.runs().iter().filter(|run| run.status != view::RunStatus::Ended);
        assert_eq!(open().count(), state.open_runs().count());
        for seen in open() {
            let run = &state.runs[&seen.run];
            let status = match &run.status {
                RunStatus::Requested => view::RunStatus::Requested,
                RunStatus::Suspended => view::RunStatus::Suspended,
                RunStatus::Active { worker } => {
                    assert_eq!(seen.worker.as_ref(), Some(worker));
                    view::RunStatus::Active
                }
                RunStatus::Ended { .. } => view::RunStatus::Ended,
            };
            assert_eq!((seen.status, seen.paused), (status, run.paused), "{}", seen.run);
            assert_eq!(seen.input, run.input, "{}", seen.run);
            assert_eq!(seen.attempt.unwrap_or(0), run.attempts);
            let verdicts = seen.approvals.iter().map(|a| (&a.asked.approval, a.verdict, &a.value));
            assert!(verdicts.eq(run.approvals.iter().map(|a| (&a.approval, a.verdict, &a.value))));
        }
        let pending: BTreeSet<_> =
            self.view.controls().iter().filter(|c| c.outcome.is_none()).map(|c| &c.control).collect();
        assert_eq!(pending, state.pending_controls().map(|(id, ..)| id).collect());
        let session = self.view.session();
        assert_eq!((&session.meta, session.closed), (&state.meta, state.closed));
        assert_eq!(session.held.is_some(), state.held.is_some());
        assert_eq!(self.view.values(), &state.values);
    }

    /// Nothing is left that time, or workers, could bring to an end.
    pub fn check_all_is_settled(&self) {
        assert_eq!(self.ledger.open_runs().next().map(|(id, _)| id), None, "has no outcome");
        for (control, known) in &self.ledger.controls {
            assert!(known.outcome.is_some(), "{control} has no outcome");
        }
        for (message, may_go) in &self.asked_for_work {
            let has_run = self.ledger.input_of.contains_key(message);
            assert!(*may_go || has_run || self.ledger.is_closed, "nobody ever worked on {message}");
        }
        assert_eq!(self.core().next_due(), None);
    }

    /// The label of an entry: what it says besides ids.
    pub fn label(&self, entry: &Entry) -> String {
        let value = serde_json::to_value(entry).unwrap();
        let mut words = vec![value["type"].as_str().unwrap().to_owned()];
        if let Entry::ControlSettled { control, .. } = entry {
            words.push(kind_word(self.ledger.controls[control].kind).to_owned());
        }
        for key in ["kind", "verdict", "outcome", "reason"] {
            words.extend(value.get(key).and_then(|v| v.as_str()).map(str::to_owned));
        }
        words.join(" ")
    }
}

fn kind_word(kind: ControlKind) -> &'static str {
    match kind {
        ControlKind::Cancel => "cancel",
        ControlKind::Steer => "steer",
        ControlKind::Interrupt => "interrupt",
        ControlKind::Pause => "pause",
        ControlKind::Resume => "resume",
        ControlKind::Answer => "answer",
    }
}
