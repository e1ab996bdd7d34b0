//! Telling a worker what is new in the sessions of its runs: controls, ended children, and runs that are no longer its own.
//!
//! A control counts as delivered when the worker has answered a ping that was sent after it.

use super::Connection;
use super::hosted::Hosted;
use super::job::{self, SteerRead};
use everthread_protocol::entry::{ControlKind, Outcome};
use everthread_protocol::worker_frame::{ChildEnded, WorkerControl, WorkerServerFrame};
use everthread_protocol::{Code, ControlId, Fault, Fence, Millis, RunId, SessionKey};
use everthread_session::State;
use everthread_session::state::{Control, RunStatus};
use everthread_store::{Loaded, Store};

/// A control that was sent and not confirmed yet.
pub(super) struct Delivery {
    /// The ping that was sent right after it.
    ping: u64,
    key: SessionKey,
    control: ControlId,
}

impl<S: Store> Connection<S> {
    /// The state of a watched session: tells the worker what is new in it for its runs.
    pub(super) fn on_looked(&mut self, number: u32, result: Result<(Loaded, State), Fault>) {
        let Some(watched) = self.watched.get_mut(&number) else { return };
        watched.is_loading = false;
        match result {
            Ok((loaded, state)) => {
                watched.version = loaded.version;
                let runs = self.runs.iter().filter(|(_, hosted)| hosted.watch == number);
                let runs: Vec<RunId> = runs.map(|(run, _)| run.clone()).collect();
                for run in runs {
                    self.tell(&run, &loaded, &state);
                }
            }
            Err(fault) if fault.code == Code::NoSession => {
                // It was deleted, and its runs with it.
                let runs = self.runs.iter().filter(|(_, hosted)| hosted.watch == number);
                let runs: Vec<RunId> = runs.map(|(run, _)| run.clone()).collect();
                runs.iter().for_each(|run| self.fenced(run));
            }
            // The next renewal looks again.
            Err(fault) => tracing::debug!(%fault, "a session's state could not be looked at"),
        }
        self.load_watched(number);
    }

    fn tell(&mut self, run: &RunId, loaded: &Loaded, state: &State) {
        let mut steers = Vec::new();
        let is_handed = self.runs.get(run).is_some_and(|hosted| hosted.is_handed);
        let asked = if is_handed { state.controls_of(run) } else { Vec::new() };
        if let Some(hosted) = self.runs.get_mut(run) {
            // What is settled or forgotten is not told again.
            hosted.told_controls.retain(|told| asked.iter().any(|(id, ..)| *id == told));
            hosted.told_children.retain(|told| state.runs.contains_key(told));
        }
        for (id, control, expires) in asked {
            let Some(hosted) = self.runs.get_mut(run) else { return };
            let steer = control.message.as_ref().filter(|_| control.kind == ControlKind::Steer);
            // Texts of earlier ones are still being read: this one comes after them.
            if steer.is_some() && hosted.is_reading_steers {
                continue;
            }
            if !hosted.told_controls.insert(id.clone()) {
                continue;
            }
            let frame = frame_of(run, id, control, loaded.now, expires);
            match steer {
                Some(message) => steers.push((frame, message.clone())),
                None => self.send_control(frame),
            }
        }
        let Some(hosted) = self.runs.get_mut(run) else { return };
        if !steers.is_empty() {
            hosted.is_reading_steers = true;
            let held = (run.clone(), hosted.fence);
            let work = job::steers(self.edge.clone(), hosted.writing.key.clone(), held, steers);
            self.jobs.push(Box::pin(work));
        }
        for (child, outcome) in ended_children(state, run).filter(|_| is_handed) {
            if hosted.told_children.insert(child.clone()) {
                let frame = ChildEnded { run: run.clone(), child: child.clone(), outcome };
                self.outbox.text(WorkerServerFrame::ChildEnded(frame).encode());
            }
        }
        // A state from before the claim cannot know of it; a write under way may be the very end of it: its answer tells.
        if !is_held(loaded, run, hosted) && !hosted.is_busy && loaded.head >= hosted.since {
            self.fenced(run);
        }
    }

    /// The messages of steers have been read, one after the other in the order in which they were asked.
    pub(super) fn on_steers(&mut self, (run, fence): &(RunId, Fence), steers: Vec<SteerRead>) {
        // Those of an earlier attempt became its input.
        let Some(hosted) = self.runs.get_mut(run).filter(|hosted| hosted.fence == *fence) else { return };
        hosted.is_reading_steers = false;
        let watch = hosted.watch;
        let mut is_all = true;
        for (frame, result) in steers {
            match result {
                Ok(()) => self.send_control(frame),
                Err(fault) => {
                    is_all = false;
                    tracing::warn!(%run, control = %frame.control, %fault, "a steer is told later");
                    if let Some(hosted) = self.runs.get_mut(run) {
                        hosted.told_controls.remove(&frame.control);
                    }
                }
            }
        }
        if is_all {
            // Others may have come meanwhile.
            self.wake.mark(watch);
        } else if let Some(watched) = self.watched.get_mut(&watch) {
            // The next renewal finds it changed.
            watched.version = everthread_protocol::Version::default();
        }
    }

    fn send_control(&mut self, frame: WorkerControl) {
        let Some(hosted) = self.runs.get(&frame.run) else { return };
        let (key, control) = (hosted.writing.key.clone(), frame.control.clone());
        self.outbox.text(WorkerServerFrame::Control(frame).encode());
        self.ping();
        self.deliveries.push_back(Delivery { ping: self.pings, key, control });
    }

    /// The worker has answered a ping: what was sent before it has arrived.
    pub(super) fn on_pong(&mut self) {
        self.pongs += 1;
        let Some(me) = &self.me else { return };
        while let Some(delivery) = self.deliveries.pop_front_if(|delivery| delivery.ping <= self.pongs) {
            let Delivery { key, control, .. } = delivery;
            self.edge.metrics.controls_delivered.inc();
            self.jobs.push(Box::pin(job::mark_delivered(self.edge.clone(), key, control, me.worker.clone())));
        }
    }
}

/// What a worker is told. An interrupt is the same to it as a cancel: its run is to end.
fn frame_of(run: &RunId, id: &ControlId, control: &Control, now: Millis, expires: Millis) -> WorkerControl {
    let kind = if control.kind == ControlKind::Interrupt { ControlKind::Cancel } else { control.kind };
    let grace_ms = expires.0.saturating_sub(now.0);
    let (run, control, mode) = (run.clone(), id.clone(), control.mode);
    WorkerControl { run, control, kind, grace_ms, mode, message: None }
}

fn is_held(loaded: &Loaded, run: &RunId, hosted: &Hosted) -> bool {
    loaded.fences.iter().any(|(id, fence)| id == run && *fence == hosted.fence)
}

fn ended_children<'a>(state: &'a State, parent: &'a RunId) -> impl Iterator<Item = (&'a RunId, Outcome)> {
    state.runs.iter().filter(move |(_, run)| run.parent.as_ref() == Some(parent)).filter_map(|(id, run)| {
        match run.status {
            RunStatus::Ended { outcome, .. } => Some((id, outcome)),
            RunStatus::Requested | RunStatus::Active { .. } | RunStatus::Suspended => None,
        }
    })
}
