//! What is kept of a core state in a stub: what lists show of a session.

use everthread_protocol::Millis;
use everthread_session::state::RunStatus;
use everthread_session::{Brief, State};
use everthread_store::{Error, Loaded};

/// The brief state of a session that can be archived now, with when its last entry was written; `None` if it is at work.
///
/// A state that a newer release wrote is left to that release.
pub fn brief(loaded: &Loaded, last_at: Millis) -> Result<Option<String>, Error> {
    let corrupt = |error: serde_json::Error| Error::Corrupt(error.to_string());
    if everthread_session::state::schema_of(&loaded.state).map_err(corrupt)?
        > everthread_session::state::SCHEMA
    {
        return Ok(None);
    }
    let mut state: State = serde_json::from_str(&loaded.state).map_err(corrupt)?;
    let is_at_work = state.open_runs().next().is_some() || state.pending_controls().next().is_some();
    if is_at_work || state.next_due().is_some() || !loaded.fences.is_empty() {
        return Ok(None);
    }
    let ended_at = |status: &RunStatus| match status {
        RunStatus::Ended { at, .. } => Some(*at),
        RunStatus::Requested | RunStatus::Active { .. } | RunStatus::Suspended => None,
    };
    let newest = state.runs.iter().max_by_key(|(_, run)| (ended_at(&run.status), run.number));
    let newest = newest.map(|(id, _)| id.clone());
    state.runs.retain(|id, _| Some(id) == newest.as_ref());
    for run in state.runs.values_mut() {
        run.input.clear();
        run.approvals.clear();
        run.params = None;
    }
    state.controls.clear();
    state.values.clear();
    if let Some(hold) = &mut state.held {
        hold.input.clear();
    }
    Brief { state, written: last_at }.to_text().map(Some).map_err(corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::entry::Outcome;
    use everthread_protocol::{Seq, Version};
    use everthread_session::state::Run;

    fn of(state: &State) -> Option<State> {
        let loaded = Loaded {
            state: serde_json::to_string(state).unwrap(),
            version: Version::default(),
            now: Millis(9),
            head: Seq(1),
            epochs: Vec::new(),
            fences: Vec::new(),
            leases: Vec::new(),
            producers: Vec::new(),
        };
        let text = brief(&loaded, Millis(7)).unwrap()?;
        assert_eq!(Brief::written(&text), Some(Millis(7)));
        Some(serde_json::from_str(&text).unwrap())
    }

    fn ended(at: u64, number: u64) -> Run {
        let mut run = Run::requested("guide".parse().unwrap(), vec!["m".into()]);
        run.number = number;
        run.status = RunStatus::Ended { outcome: Outcome::Completed, at: Millis(at) };
        run
    }

    #[test]
    fn a_brief_state_keeps_what_lists_show_and_one_at_work_has_none() {
        let mut state = State::new([("title".to_owned(), "x".into())].into_iter().collect());
        state.values.insert("k".into(), 1.into());
        for (name, at, number) in [("r1", 5, 1), ("r2", 7, 2), ("r3", 7, 3)] {
            state.runs.insert(name.parse().unwrap(), ended(at, number));
        }
        let brief = of(&state).unwrap();
        assert_eq!(brief.meta, state.meta);
        assert_eq!(brief.runs.keys().map(|run| run.as_str()).collect::<Vec<_>>(), ["r3"]);
        assert!(brief.values.is_empty());

        state.runs.insert("r4".parse().unwrap(), Run::requested("guide".parse().unwrap(), Vec::new()));
        assert_eq!(of(&state), None);
    }
}
