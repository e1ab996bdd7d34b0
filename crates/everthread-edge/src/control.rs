//! Controls of clients, from WebSocket and HTTP alike, and how their askers learn what became of them.

use crate::Edge;
use crate::trace::Traced;
use everthread_control::{Desk, Failure, Numbered};
use everthread_protocol::control::{What, check_wait};
use everthread_protocol::entry::{ControlKind, Target};
use everthread_protocol::frame::{Receipt, Stage};
use everthread_protocol::{
    AgentName, Author, Code, ControlId, Cursor, Fault, Level, RequestId, RunId, SessionKey,
};
use everthread_session::decide::Ask;
use everthread_session::state::{ControlStage, RunStatus};
use everthread_session::{Refusal, Request, State};
use everthread_store::{Follower, Following, Interest, Loaded, Store, Written};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often a control is looked at whose wake-ups may have been lost.
const LOOK: Duration = Duration::from_secs(2);

/// A control that is in the log, or was.
pub struct Asked {
    /// How far it is.
    pub receipt: Receipt,
    /// When it was asked for here, unless that was before.
    pub at: Option<Instant>,
}

/// Asks something of runs. The same id again gets the first outcome.
pub async fn ask<S: Store>(
    edge: &Edge<S>,
    key: &SessionKey,
    control: Ask,
    level: Option<Level>,
) -> Result<Asked, Fault> {
    let at = Instant::now();
    match accept(&edge.desk, key, control, level).await {
        Ok((receipt, is_new)) => {
            let at = is_new.then_some(at);
            at.inspect(|at| edge.metrics.control(*at, &receipt.stage));
            Ok(Asked { receipt, at })
        }
        Err(fault) => {
            edge.metrics.control_failed(at);
            Err(fault)
        }
    }
}

/// How far it is, and whether it was not known before.
async fn accept<S: Store>(
    desk: &Desk<S>,
    key: &SessionKey,
    ask: Ask,
    asked: Option<Level>,
) -> Result<(Receipt, bool), Fault> {
    check_wait(ask.expires_ms)?;
    let desk = &desk.asked_for(asked).map_err(|error| error.fault())?;
    let id = ask.control.clone();
    match desk.decide(key, &ask.by.clone(), &Request::Control(Box::new(ask)), Numbered::No).await {
        Ok(decided) => {
            let state = decided.decision.map(|decision| decision.state);
            let stage = state.and_then(|state| stage_of(&state, &id)).unwrap_or(Stage::Accepted);
            let ack = crate::put::told_level(decided.level, asked);
            Ok((Receipt { control: id, stage, seq: decided.written.to, ack }, true))
        }
        Err(Failure::Refused(Refusal::Known)) => {
            let (receipt, loaded) = found(desk, key, &id).await?;
            // The first answer may have been lost because it was not sure.
            let level = desk.settle_loaded(key, &loaded).await.map_err(|failure| failure.fault())?;
            Ok((Receipt { ack: crate::put::told_level(level, asked), ..receipt }, false))
        }
        Err(failure) => Err(failure.fault()),
    }
}

/// A control from the fields of a request.
pub fn read(
    control: ControlId,
    by: Author,
    target: Target,
    kind: ControlKind,
    mode: Option<everthread_protocol::control::Mode>,
    payload: Option<&serde_json::value::RawValue>,
    expires_ms: Option<u64>,
) -> Result<Ask, Fault> {
    let what = What::read(kind, mode, payload)?;
    let made_at = crate::put::made_at(control.as_str());
    Ok(Ask { control, by, target, what, made_at, expires_ms })
}

/// How far a control is, as its worker has confirmed it too.
pub async fn receipt_now<S: Store>(
    desk: &Desk<S>,
    key: &SessionKey,
    id: &ControlId,
) -> Result<Receipt, Fault> {
    let mut receipt = receipt(desk, key, id).await?;
    if receipt.stage == Stage::Accepted {
        let found = desk.store().delivered(key, std::slice::from_ref(id)).await;
        if let Some(worker) = found.map_err(|e| e.fault())?.pop().flatten() {
            receipt.stage = Stage::Delivered { worker };
        }
    }
    Ok(receipt)
}

/// How far a control is, as the log has it.
pub async fn receipt<S: Store>(desk: &Desk<S>, key: &SessionKey, id: &ControlId) -> Result<Receipt, Fault> {
    found(desk, key, id).await.map(|(receipt, _)| receipt)
}

async fn found<S: Store>(
    desk: &Desk<S>,
    key: &SessionKey,
    id: &ControlId,
) -> Result<(Receipt, Loaded), Fault> {
    let (loaded, state) = desk.load(key).await.map_err(|failure| failure.fault())?;
    let stage = stage_of(&state, id)
        .ok_or_else(|| Fault::new(Code::NotFound, "this control is not known to the session any more"))?;
    Ok((Receipt { control: id.clone(), stage, seq: loaded.head, ack: None }, loaded))
}

fn stage_of(state: &State, id: &ControlId) -> Option<Stage> {
    Some(match state.controls.get(id)?.stage.clone() {
        ControlStage::Pending { .. } => Stage::Accepted,
        ControlStage::Settled { outcome, reason, run, answered_by, .. } => {
            Stage::Settled { outcome, reason, run, answered_by }
        }
    })
}

/// Follows one control to its outcome.
pub struct Track<S> {
    edge: Edge<S>,
    key: SessionKey,
    id: ControlId,
    is_delivered: bool,
    /// When it was asked for here; its times are taken then.
    asked: Option<Instant>,
    traced: Option<Box<Traced>>,
    woken: Arc<Notify>,
    _following: Following,
}

struct Woken(Arc<Notify>);

impl Follower for Woken {
    fn record(&self, _record: everthread_protocol::Record) {}

    fn changed(&self) {
        self.0.notify_one();
    }

    fn doubt(&self) {
        self.0.notify_one();
    }
}

impl<S: Store> Track<S> {
    /// Follows a control that is accepted.
    pub fn new(edge: &Edge<S>, key: &SessionKey, id: &ControlId, asked: Option<Instant>) -> Track<S> {
        let woken = Arc::new(Notify::new());
        let following = edge.desk.store().follow(key, Interest::Control, Arc::new(Woken(woken.clone())));
        let (edge, key, id) = (edge.clone(), key.clone(), id.clone());
        let traced = asked.and_then(|_| edge.trace_of_control());
        Track { edge, key, id, is_delivered: false, asked, traced, woken, _following: following }
    }

    /// Which control.
    pub fn control(&self) -> &ControlId {
        &self.id
    }

    /// The next stage after `accepted`; the last one is `settled`. While the store does not answer it goes on waiting: an
    /// error is of a kind that does not pass.
    pub async fn next(&mut self) -> Result<Receipt, Fault> {
        loop {
            let found = match self.is_delivered {
                true => receipt(&self.edge.desk, &self.key, &self.id).await,
                false => receipt_now(&self.edge.desk, &self.key, &self.id).await,
            };
            match found {
                Ok(Receipt { stage: Stage::Accepted, .. }) => {}
                Ok(receipt) => {
                    self.is_delivered = true;
                    if let Some(asked) = self.asked {
                        self.edge.metrics.control(asked, &receipt.stage);
                    }
                    if let Some(traced) = &self.traced {
                        self.edge.trace_control(traced, &self.key, self.id.as_str(), &receipt.stage);
                    }
                    return Ok(receipt);
                }
                Err(fault) if fault.code.is_retryable() => {}
                Err(fault) => return Err(fault),
            }
            // Woken or not: the same.
            drop(tokio::time::timeout(LOOK, self.woken.notified()).await);
        }
    }
}

/// The receipt of a control after up to `wait`: settled if it has its outcome by then, else as far as it got. An error only
/// if the session was deleted meanwhile.
pub async fn wait_for<S: Store>(
    edge: &Edge<S>,
    key: &SessionKey,
    mut receipt: Receipt,
    asked: Option<Instant>,
    wait: Duration,
) -> Result<Receipt, Fault> {
    if is_settled(&receipt) || wait.is_zero() {
        return Ok(receipt);
    }
    let mut track = Track::new(edge, key, &receipt.control, asked);
    let waited = async {
        loop {
            match track.next().await {
                Ok(next) => receipt = next,
                Err(fault) if fault.code == Code::NoSession => return Err(fault),
                // A failure to wait is not one of the request: it is accepted.
                Err(_) => return Ok(()),
            }
            if is_settled(&receipt) {
                return Ok(());
            }
        }
    };
    match tokio::time::timeout(wait, waited).await {
        Ok(Err(fault)) => Err(fault),
        Ok(Ok(())) | Err(_) => Ok(receipt),
    }
}

/// Whether nothing comes after it.
pub fn is_settled(receipt: &Receipt) -> bool {
    matches!(receipt.stage, Stage::Settled { .. })
}

/// A person takes a session over. A repeat of `id` changes nothing.
pub async fn hold<S: Store>(
    desk: &Desk<S>,
    key: &SessionKey,
    by: &Author,
    id: &RequestId,
    reason: Option<String>,
) -> Result<Cursor, Fault> {
    let request = Request::Hold { by: by.clone(), reason };
    let (written, _) = once(desk, key, by, &format!("hold:{}:{id}", by.id), id, &request).await?;
    Ok(Cursor { epoch: written.epoch, seq: written.to })
}

/// A person hands a session back; the run that goes on with it, if any. A repeat of `id` changes nothing.
pub async fn release<S: Store>(
    desk: &Desk<S>,
    key: &SessionKey,
    by: &Author,
    id: &RequestId,
    reason: Option<String>,
    agent: Option<AgentName>,
    run: bool,
) -> Result<(Cursor, Option<RunId>), Fault> {
    let request = Request::Release { reason, agent, run };
    let (written, run) = once(desk, key, by, &format!("release:{}:{id}", by.id), id, &request).await?;
    Ok((Cursor { epoch: written.epoch, seq: written.to }, run))
}

async fn once<S: Store>(
    desk: &Desk<S>,
    key: &SessionKey,
    by: &Author,
    producer: &str,
    id: &RequestId,
    request: &Request,
) -> Result<(Written, Option<RunId>), Fault> {
    let numbered = Numbered::Request { key: producer, answer: "", made_at: crate::put::made_at(id.as_str()) };
    let decided = desk.decide(key, by, request, numbered).await.map_err(|failure| failure.fault())?;
    let run = crate::put::run_of(&decided);
    Ok((decided.written, run))
}

/// Where a run stands, as a word.
pub fn status_word(status: &RunStatus) -> &'static str {
    match status {
        RunStatus::Requested => "requested",
        RunStatus::Active { .. } => "active",
        RunStatus::Suspended => "suspended",
        RunStatus::Ended { .. } => "ended",
    }
}
