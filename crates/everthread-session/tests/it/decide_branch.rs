//! What editing, regenerating and selecting do in every state of a run, one sentence per row.

use crate::decide_table::check;
use crate::world::{self, edit, regenerate};
use everthread_protocol::Seq;
use everthread_protocol::control::WhenBusy;
use everthread_session::Request;

const CLOSED: &str = "refused session_closed: the session is closed";

fn edit_when_busy(when_busy: WhenBusy, ends: &[&str]) -> Request {
    let Request::Put(mut put) = edit("m", Some("guide"), 3, ends) else { unreachable!() };
    put.when_busy = Some(when_busy);
    Request::Put(put)
}

#[test]
fn an_edit_begins_a_branch_and_cancels_what_works_on_the_message_it_replaces() {
    let of_guide = |ends: &[&str]| edit("m", Some("guide"), 3, ends);
    check(&[
        (
            "with nothing at work it is a put on a branch",
            "ended",
            of_guide(&[]),
            "branch.begun; message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "a run that waits ends at once",
            "waiting",
            of_guide(&["r"]),
            "branch.begun; run.ended r cancelled replaced; message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "a run that waits for people, too",
            "suspended",
            of_guide(&["r"]),
            "branch.begun; run.ended r cancelled replaced; message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "the worker of an active one is asked to end it",
            "active",
            of_guide(&["r"]),
            "branch.begun; control.requested F; message.put m; run.requested F-2; enqueue F-2 for guide; requested F-2",
        ),
        (
            "once is enough",
            "cancelling",
            of_guide(&["r"]),
            "branch.begun; message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "what the run has not taken in is replaced with it",
            "steered",
            of_guide(&["r"]),
            "branch.begun; control.settled c0 refused superseded; control.requested F; message.put m; run.requested F-2; enqueue F-2 for guide; requested F-2",
        ),
        (
            "what is at work elsewhere is left alone",
            "active",
            of_guide(&[]),
            "branch.begun; message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "for nobody it is only stored",
            "active",
            edit("m", None, 3, &["r"]),
            "branch.begun; control.requested F; message.put m",
        ),
        (
            "runs that are forgotten do not matter",
            "ended",
            of_guide(&["x", "r"]),
            "branch.begun; message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "an id in use is refused",
            "waiting",
            edit("i", Some("guide"), 3, &[]),
            "refused id_conflict: the id i is in use",
        ),
        (
            "a person who holds the session gets it",
            "held and suspended",
            of_guide(&["r"]),
            "branch.begun; run.ended r cancelled replaced; message.put m",
        ),
        ("nothing is edited in a closed session", "closed", of_guide(&[]), CLOSED),
    ]);
}

#[test]
fn an_edit_waits_for_what_is_at_work_elsewhere_unless_it_is_to_be_refused() {
    let begun = "branch.begun; message.put m; run.requested F; enqueue F for guide; requested F";
    let busy = "refused busy: the agent is at work and when_busy is reject: try again when its run has ended";
    check(&[
        ("it steers nothing", "active", edit_when_busy(WhenBusy::Steer, &[]), begun),
        ("it interrupts nothing", "active", edit_when_busy(WhenBusy::Interrupt, &[]), begun),
        ("it may be refused", "active", edit_when_busy(WhenBusy::Reject, &[]), busy),
        (
            "but not for what it replaces",
            "waiting",
            edit_when_busy(WhenBusy::Reject, &["r"]),
            "branch.begun; run.ended r cancelled replaced; message.put m; run.requested F; enqueue F for guide; requested F",
        ),
    ]);
}

#[test]
fn a_run_that_has_ended_is_done_again() {
    let again = |run: &str, ends: &[&str]| regenerate(run, &["i"], 3, ends);
    check(&[
        (
            "with the same input, on a branch",
            "ended",
            again("r", &[]),
            "branch.begun; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "also if the core has forgotten it",
            "ended",
            again("x", &[]),
            "branch.begun; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "what follows it is cancelled",
            "waiting",
            again("x", &["r"]),
            "branch.begun; run.ended r cancelled replaced; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "not while it goes on",
            "active",
            again("r", &[]),
            "refused busy: the run has not ended: cancel it first, or wait for its end",
        ),
        (
            "nor while it waits for people",
            "suspended",
            again("r", &[]),
            "refused busy: the run has not ended: cancel it first, or wait for its end",
        ),
        (
            "nor in the hands of a person",
            "held in the middle",
            again("r", &[]),
            "refused held: bea holds the session",
        ),
        ("nor in a closed session", "closed", again("r", &[]), CLOSED),
    ]);
}

#[test]
fn a_branch_is_selected_whatever_goes_on() {
    let select = || Request::Select { through: Seq(2) };
    check(&[
        ("while a run is active", "active", select(), "branch.selected"),
        ("while a person holds the session", "held", select(), "branch.selected"),
        ("not in a closed session", "closed", select(), CLOSED),
    ]);
}

#[test]
fn a_message_that_is_replaced_while_a_person_holds_the_session_is_no_input_of_its_release() {
    let mut world = world::World::new();
    world.must(&world::hold());
    world.must(&world::put("typo", Some("guide")));
    world.must(&world::put("more", Some("guide")));
    let Request::Put(mut put) = edit("right", Some("guide"), 2, &[]) else { unreachable!() };
    put.branch.as_mut().unwrap().drops = vec!["typo".into(), "more".into()];
    world.must(&Request::Put(put));
    world.must(&world::put("last", Some("guide")));
    let release = Request::Release { reason: None, agent: Some("guide".parse().unwrap()), run: true };
    let run = world.must(&release).requested.unwrap();
    assert_eq!(world.core().runs[&run].input, ["right", "last"]);
}

#[test]
fn a_run_that_replaces_another_goes_first() {
    let mut world = world::World::new();
    world.run("r", "guide", None, &["i"]);
    world.start("r", "w1");
    world.run("s", "guide", None, &["j"]);
    let new = world.must(&edit("m", Some("guide"), 2, &["r"])).requested.unwrap();
    world.must(&world::end("r", everthread_protocol::entry::Outcome::Cancelled));
    assert!(world.apply(&world::claim("s", "w1")).is_err());
    world.start(new.as_str(), "w1");
}

#[test]
fn of_runs_that_were_done_again_a_control_by_input_means_the_newest_that_is_open() {
    let mut world = world::World::new();
    world.run("r", "guide", None, &["i"]);
    world.start("r", "w1");
    world.must(&world::end("r", everthread_protocol::entry::Outcome::Completed));
    let second = world.must(&regenerate("r", &["i"], 3, &[])).requested.unwrap();
    let third = world.must(&regenerate("r", &["i"], 3, &[])).requested.unwrap();
    let input = "i".parse().unwrap();
    assert_eq!(world.core().run_for_input(&input), Some(&third));
    world.must(&world::cancel("c1", everthread_protocol::entry::Target::Input(input.clone())));
    assert_eq!(world.core().run_for_input(&input), Some(&second));
    world.must(&world::cancel("c2", everthread_protocol::entry::Target::Input(input.clone())));
    assert_eq!(world.core().run_for_input(&input), Some(&third), "all have ended: the newest");
}
