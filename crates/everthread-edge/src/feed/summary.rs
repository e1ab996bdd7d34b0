//! Summaries: sessions as lists and the feed show them.

use everthread_protocol::frame::{ApprovalBrief, EndedBrief, RunBrief, Summary};
use everthread_protocol::{Epoch, Millis, Seq, SessionId};
use everthread_session::State;
use everthread_session::state::RunStatus;
use everthread_store::{Device, Head, Listed};

/// A session as a node knows it.
#[derive(Debug, Clone)]
pub struct Row {
    /// Without what depends on who asks.
    pub summary: Summary,
    /// Where it stood when it was read.
    pub head: Head,
    /// About the bytes of the summary.
    pub bytes: usize,
    epochs: Vec<(Epoch, Seq)>,
}

impl Row {
    /// A session that was read, and was active at `at`.
    pub fn of(session: SessionId, at: Millis, listed: Listed) -> Row {
        let Listed { head, epochs, state } = listed;
        // What a newer release wrote, or what is left of an archived session, may not be readable: then it is shown without.
        let state: State =
            serde_json::from_str(&state).unwrap_or_else(|_| State::new(serde_json::Map::new()));
        let summary = summary_of(session, at, head.seq, state);
        let bytes = serde_json::to_string(&summary).map_or(0, |text| text.len());
        Row { summary, head, bytes, epochs }
    }

    /// With how far a device has read.
    pub fn for_device(&self, device: Option<&Device>) -> Summary {
        let (acked, unread) = Device::unread(device, &self.epochs, self.head.seq);
        Summary { acked, unread_entries: Some(unread), ..self.summary.clone() }
    }
}

fn summary_of(session: SessionId, active_at: Millis, seq: Seq, state: State) -> Summary {
    let mut open: Vec<_> = state.open_runs().collect();
    open.sort_by_key(|(_, run)| run.number);
    let runs = open.into_iter().map(|(id, run)| RunBrief {
        run: id.clone(),
        agent: run.agent.clone(),
        status: crate::control::status_word(&run.status).to_owned(),
    });
    let approvals = state.open_approvals().map(|(run, approval)| ApprovalBrief {
        run: run.clone(),
        approval: approval.approval.clone(),
        expires: approval.expires,
    });
    let ended = state.runs.iter().filter_map(|(run, r)| match r.status {
        RunStatus::Ended { outcome, at } => {
            Some((at, r.number, EndedBrief { run: run.clone(), outcome, at }))
        }
        RunStatus::Requested | RunStatus::Active { .. } | RunStatus::Suspended => None,
    });
    Summary {
        session,
        active_at,
        seq,
        runs: runs.collect(),
        approvals: approvals.collect(),
        ended: ended.max_by_key(|(at, number, _)| (*at, *number)).map(|(.., ended)| ended),
        held: state.held.is_some(),
        closed: state.closed,
        acked: None,
        unread_entries: None,
        meta: state.meta,
    }
}
