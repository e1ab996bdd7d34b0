//! Controls of clients, from WebSocket and HTTP alike.

use everthread_control::{Desk, Failure, Numbered};
use everthread_protocol::entry::Target;
use everthread_protocol::frame::{Receipt, Stage};
use everthread_protocol::{Author, Code, ControlId, Fault, SessionKey};
use everthread_session::state::ControlStage;
use everthread_session::{Refusal, Request, State};
use everthread_store::Store;

/// Asks that a run be ended. The same id again gets the first outcome.
pub async fn cancel<S: Store>(
    desk: &Desk<S>,
    key: &SessionKey,
    by: &Author,
    id: &ControlId,
    target: &Target,
) -> Result<Receipt, Fault> {
    let request = Request::Cancel { control: id.clone(), target: target.clone() };
    match desk.decide(key, by, &request, Numbered::No).await {
        Ok(decided) => {
            let state = decided.decision.map(|decision| decision.state);
            let stage = state.and_then(|state| stage_of(&state, id)).unwrap_or(Stage::Accepted);
            Ok(Receipt { control: id.clone(), stage, seq: decided.written.to })
        }
        Err(Failure::Refused(Refusal::Known)) => receipt(desk, key, id).await,
        Err(failure) => Err(failure.fault()),
    }
}

/// How far a control is.
pub async fn receipt<S: Store>(desk: &Desk<S>, key: &SessionKey, id: &ControlId) -> Result<Receipt, Fault> {
    let (loaded, state) = desk.load(key).await.map_err(|failure| failure.fault())?;
    let stage = stage_of(&state, id)
        .ok_or_else(|| Fault::new(Code::NotFound, "this control is not known to the session any more"))?;
    Ok(Receipt { control: id.clone(), stage, seq: loaded.head })
}

fn stage_of(state: &State, id: &ControlId) -> Option<Stage> {
    Some(match state.controls.get(id)?.stage {
        ControlStage::Pending { .. } => Stage::Accepted,
        ControlStage::Settled { outcome, reason, .. } => Stage::Settled { outcome, reason },
    })
}

/// Ready when the control has its outcome. Follows the log, where the outcome is an entry.
pub async fn settled<S: Store>(
    edge: &crate::Edge<S>,
    key: &SessionKey,
    id: &ControlId,
) -> Result<Receipt, Fault> {
    let (tail, _) = edge.tails.open(key).await.map_err(|e| e.fault())?;
    let wake = std::sync::Arc::new(crate::tail::Wake::default());
    let waiter = tail.wait(wake.clone(), 0);
    loop {
        waiter.rearm();
        wake.take(&mut Vec::new());
        let receipt = receipt(&edge.desk, key, id).await?;
        if receipt.stage != Stage::Accepted {
            return Ok(receipt);
        }
        wake.woken().await;
    }
}
