//! Branches, from WebSocket and HTTP alike: what a message or a run is, where it stands and who works on it is read from
//! the whole session, and decided on the state which that reading is not older than.

use crate::Edge;
use crate::put::{made_at, run_of};
use crate::reader::fault_of;
use everthread_control::{Decided, Desk, Numbered};
use everthread_protocol::entry::{Object, Role};
use everthread_protocol::limits::BRANCHES_MAX;
use everthread_protocol::{Author, Code, Cursor, Fault, RequestId, RunId, Seq, SessionKey};
use everthread_session::decide::{Branch, Put, Regenerate};
use everthread_session::view::{Message, RunStatus, View};
use everthread_session::{Request, State};
use everthread_store::Store;

/// A message takes the place of another.
pub(crate) async fn edit<S: Store>(
    edge: &Edge<S>,
    desk: &Desk<S>,
    key: &SessionKey,
    by: &Author,
    numbered: Numbered<'_>,
    put: &Put,
    replaces: &str,
) -> Result<Decided, Fault> {
    let plan = |view: View, state: &State| {
        let message = find(&view, replaces)?;
        let mut put = put.clone();
        if put.role == Role::User && put.agent.is_none() {
            let asked = view.runs().iter().rev().find(|run| run.input.iter().any(|id| id == replaces));
            put.agent = asked.map(|run| run.agent.clone());
        }
        put.branch = Some(instead_of(&view, state, message)?);
        Ok(Request::Put(put))
    };
    desk.decide_as_read(key, by, numbered, || read(edge, key), plan).await
}

/// A run that has ended is done again. A repeat of `id` changes nothing.
pub(crate) async fn regenerate<S: Store>(
    edge: &Edge<S>,
    key: &SessionKey,
    by: &Author,
    id: &RequestId,
    run: &RunId,
    params: Option<Object>,
) -> Result<(Cursor, Option<RunId>), Fault> {
    let producer = format!("regenerate:{}:{id}", by.id);
    let numbered = Numbered::Request { key: &producer, answer: "", made_at: made_at(id.as_str()) };
    let plan = |view: View, state: &State| again(&view, state, run, params.clone());
    let decided = edge.desk.decide_as_read(key, by, numbered, || read(edge, key), plan).await?;
    edge.folder.after_write(key, &decided.written, false);
    let cursor = Cursor { epoch: decided.written.epoch, seq: decided.written.to };
    Ok((cursor, run_of(&decided)))
}

/// The newest branch through a message becomes the current one. A repeat of `id` changes nothing.
pub(crate) async fn select<S: Store>(
    edge: &Edge<S>,
    key: &SessionKey,
    by: &Author,
    id: &RequestId,
    message: &str,
) -> Result<Cursor, Fault> {
    let producer = format!("select:{}:{id}", by.id);
    let numbered = Numbered::Request { key: &producer, answer: "", made_at: made_at(id.as_str()) };
    let plan = |view: View, _: &State| {
        check_room(&view)?;
        Ok(Request::Select { through: find(&view, message)?.seq })
    };
    let decided = edge.desk.decide_as_read(key, by, numbered, || read(edge, key), plan).await?;
    edge.folder.after_write(key, &decided.written, false);
    Ok(Cursor { epoch: decided.written.epoch, seq: decided.written.to })
}

async fn read<S: Store>(edge: &Edge<S>, key: &SessionKey) -> Result<View, Fault> {
    let (view, _) = edge.reader.view(key).await.map_err(|error| fault_of(key, &error))?;
    Ok(view)
}

fn find<'a>(view: &'a View, reference: &str) -> Result<&'a Message, Fault> {
    let unknown =
        || Fault::new(Code::NotFound, "there is no such message: name it as message or run/message");
    view.find(reference).ok_or_else(unknown)
}

fn check_room(view: &View) -> Result<(), Fault> {
    if view.session().branches.len() < BRANCHES_MAX {
        return Ok(());
    }
    let message = format!("BRANCHES_MAX: a session has at most {BRANCHES_MAX} branches; go on in a new one");
    Err(Fault::new(Code::LimitReached, message))
}

/// A branch that replaces `message`.
fn instead_of(view: &View, state: &State, message: &Message) -> Result<Branch, Fault> {
    check_room(view)?;
    let ends = view.runs_at_work_on(message).into_iter().map(|run| run.run.clone()).collect();
    Ok(Branch { after: view.before(message), ends, drops: held_after(view, state, message.seq) })
}

/// Messages at or after `place` that are kept for the release of the session.
fn held_after(view: &View, state: &State, place: Seq) -> Vec<String> {
    let held = state.held.iter().flat_map(|hold| &hold.input);
    let follows = |id: &&String| view.find(id).is_some_and(|message| view.goes_through(message.seq, place));
    held.filter(follows).cloned().collect()
}

/// What asks for a run once more.
fn again(view: &View, state: &State, id: &RunId, params: Option<Object>) -> Result<Request, Fault> {
    let run = view.run(id).ok_or_else(|| Fault::new(Code::NoRun, "there is no such run"))?;
    if run.status != RunStatus::Ended {
        return Err(Fault::new(Code::Busy, "the run has not ended: cancel it first, or wait for its end"));
    }
    if run.parent_run.is_some() {
        return Err(Fault::bad_request("a child run is done again by the run that started it"));
    }
    let is_its = |message: &&Message| message.run.as_ref() == Some(id) && message.seq > run.requested_seq;
    let branch = match view.messages().iter().find(is_its) {
        Some(first) => instead_of(view, state, first)?,
        None => {
            check_room(view)?;
            let after = run.requested_seq;
            let follows = |other: &&everthread_session::view::Run| {
                other.status != RunStatus::Ended
                    && other.parent_run.is_none()
                    && view.goes_through(other.requested_seq, after)
            };
            let ends = view.runs().iter().filter(follows).map(|other| other.run.clone()).collect();
            Branch { after, ends, drops: held_after(view, state, after) }
        }
    };
    let stands_before =
        |id: &&String| view.find(id).is_some_and(|message| view.goes_through(branch.after, message.seq));
    let mut input: Vec<String> = run.input.iter().filter(stands_before).cloned().collect();
    if input.is_empty() {
        input = run.input.clone();
    }
    let (agent, params) = (run.agent.clone(), params.or_else(|| run.params.clone()));
    Ok(Request::Regenerate(Box::new(Regenerate { run: id.clone(), agent, input, params, branch })))
}
