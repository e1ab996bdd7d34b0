//! What every control, and every word about a control, does in every state of a run: one sentence per row.

use crate::decide_table::check;
use crate::world;
use everthread_protocol::control::{Mode, What};
use everthread_protocol::entry::{ControlOutcome, Outcome, RefusalReason, Target};
use everthread_session::Request;

pub fn run(id: &str) -> Target {
    Target::Run(id.parse().unwrap())
}

pub fn agent(name: &str) -> Target {
    Target::Agent(name.parse().unwrap())
}

fn steer(mode: Mode, target: Target) -> Request {
    world::ask("c1", target, What::Steer { mode, input: world::input(Some("m")) })
}

fn interrupt(target: Target) -> Request {
    world::ask("c1", target, What::Interrupt { input: world::input(Some("m")) })
}

fn pause(target: Target) -> Request {
    world::ask("c1", target, What::Pause)
}

fn resume(target: Target) -> Request {
    world::ask("c1", target, What::Resume)
}

pub fn answer(by: &str, target: Target, approval: &str, is_approved: bool, digest: Option<&str>) -> Request {
    let approval = approval.parse().unwrap();
    let what = What::Answer { approval, is_approved, value: None, digest: digest.map(str::to_owned) };
    world::ask_as(by, "c1", target, what)
}

fn settle(outcome: ControlOutcome, reason: Option<RefusalReason>) -> Request {
    Request::Settle { run: "r".parse().unwrap(), control: "c0".parse().unwrap(), outcome, reason }
}

pub const NO_RUN: &str = "refused no_run: there is no such run";
pub const CLOSED: &str = "refused session_closed: the session is closed";
pub const NOT_HELD: &str = "refused fenced: the run is over or with another worker";

#[test]
fn a_steer_puts_its_message_into_the_run_or_into_a_new_one() {
    let steer = |target| steer(Mode::NextStep, target);
    check(&[
        (
            "a run that waits takes it into its input",
            "waiting",
            steer(run("r")),
            "message.put m; control.requested c1 m; control.settled r c1 applied",
        ),
        (
            "also one that is paused",
            "waiting and paused",
            steer(run("r")),
            "message.put m; control.requested c1 m; control.settled r c1 applied",
        ),
        (
            "a worker is asked to take it in",
            "active",
            steer(run("r")),
            "message.put m; control.requested c1 m",
        ),
        (
            "also by the input of its run",
            "active",
            steer(Target::Input("i".parse().unwrap())),
            "message.put m; control.requested c1 m",
        ),
        ("also by its agent", "active", steer(agent("guide")), "message.put m; control.requested c1 m"),
        ("also while it is paused", "paused", steer(run("r")), "message.put m; control.requested c1 m"),
        (
            "also while it is being cancelled",
            "cancelling",
            steer(run("r")),
            "message.put m; control.requested c1 m",
        ),
        ("a second one waits along", "steered", steer(run("r")), "message.put m; control.requested c1 m"),
        (
            "a suspended run takes it into its input",
            "suspended",
            steer(run("r")),
            "message.put m; control.requested c1 m; control.settled r c1 applied",
        ),
    ]);
}

#[test]
fn a_steer_of_nothing_that_works_becomes_a_run_or_an_error() {
    let steer = |target| steer(Mode::NextStep, target);
    check(&[
        (
            "after the end it becomes a run of its own",
            "ended",
            steer(run("r")),
            "message.put m; control.requested c1 m; run.requested F; control.settled F c1 refused run_ended; enqueue F for guide",
        ),
        (
            "of an agent that has nothing to do, too",
            "ended",
            steer(agent("guide")),
            "message.put m; control.requested c1 m; run.requested F; control.settled F c1 refused no_active_run; enqueue F for guide",
        ),
        (
            "of an agent that waits, it joins what is next",
            "waiting behind another",
            steer(agent("guide")),
            "message.put m; control.requested c1 m; control.settled r c1 applied",
        ),
        ("a run never heard of is an error", "active", steer(run("x")), NO_RUN),
        ("an input never heard of, too", "active", steer(Target::Input("x".parse().unwrap())), NO_RUN),
        (
            "all is for cancel",
            "active",
            steer(Target::All(true)),
            "refused bad_request: only a cancel can be of all runs",
        ),
        (
            "the same id does nothing",
            "steered",
            world::ask("c0", run("r"), What::Steer { mode: Mode::Now, input: world::input(None) }),
            "refused id_conflict: the control is known",
        ),
        (
            "a message that was put before is none",
            "active",
            world::ask("c1", run("r"), What::Steer { mode: Mode::Now, input: world::input(Some("i")) }),
            "refused id_conflict: the id i is in use",
        ),
        (
            "a person who holds the session gets it",
            "held",
            steer(run("r")),
            "message.put m; control.requested c1 m; control.settled c1 refused held",
        ),
        ("nothing is steered in a closed session", "closed", steer(run("r")), CLOSED),
    ]);
    let idle = self::steer(Mode::WhenIdle, run("r"));
    check(&[
        (
            "for later, it waits as a run of its own",
            "active",
            idle.clone(),
            "message.put m; control.requested c1 m; run.requested F; control.settled F c1 applied; enqueue F for guide",
        ),
        (
            "also behind one that waits",
            "waiting",
            idle.clone(),
            "message.put m; control.requested c1 m; run.requested F; control.settled F c1 applied; enqueue F for guide",
        ),
        (
            "and behind one that is suspended",
            "suspended",
            idle,
            "message.put m; control.requested c1 m; run.requested F; control.settled F c1 applied; enqueue F for guide",
        ),
    ]);
}

#[test]
fn what_becomes_of_a_steer_that_waits() {
    use ControlOutcome::{Applied, Expired, Refused};
    check(&[
        ("the worker takes it in", "steered", settle(Applied, None), "control.settled r c0 applied"),
        (
            "the worker refuses it",
            "steered",
            settle(Refused, None),
            "run.requested F; control.settled F c0 refused not_supported; enqueue F for guide",
        ),
        (
            "with a reason",
            "steered",
            settle(Refused, Some(RefusalReason::NotAllowed)),
            "run.requested F; control.settled F c0 refused not_allowed; enqueue F for guide",
        ),
        (
            "a worker does not let it expire",
            "steered",
            settle(Expired, None),
            "refused bad_request: a worker settles as applied, or as refused with a reason",
        ),
        (
            "nor applies it with a reason",
            "steered",
            settle(Applied, Some(RefusalReason::Held)),
            "refused bad_request: a worker settles as applied, or as refused with a reason",
        ),
        ("what is not known changes nothing", "active", settle(Applied, None), ""),
        ("nor what has that outcome", "paused", settle(Applied, None), ""),
        (
            "what has another is to be undone",
            "paused",
            settle(Refused, None),
            "refused id_conflict: the id c0 is in use",
        ),
        (
            "a cancel is not the worker's to settle",
            "cancelling",
            settle(Refused, None),
            "refused bad_request: a worker settles steer, pause and resume of its own run",
        ),
        (
            "nor is an interrupt",
            "interrupted",
            settle(Applied, None),
            "refused bad_request: a worker settles steer, pause and resume of its own run",
        ),
        ("who holds no run settles nothing", "waiting and paused", settle(Applied, None), NOT_HELD),
        ("nor who has been suspended", "answered once", settle(Applied, None), NOT_HELD),
    ]);
}

#[test]
fn a_steer_that_the_run_does_not_outlast_is_not_lost() {
    check(&[
        (
            "the run completes first",
            "steered",
            world::end("r", Outcome::Completed),
            "run.ended r completed; run.requested F; control.settled F c0 refused run_ended; revoke r; enqueue F for guide",
        ),
        (
            "the run fails first",
            "steered",
            world::end("r", Outcome::Failed),
            "run.ended r failed; run.requested F; control.settled F c0 refused run_ended; revoke r; enqueue F for guide",
        ),
        (
            "the worker dies, and nothing was written",
            "steered",
            world::died("r", "w1", 1, false),
            "run.returned r worker_lost; control.settled r c0 applied; revoke r; enqueue r for guide; unless r wrote",
        ),
        (
            "the worker dies, and the run with it",
            "steered",
            world::died("r", "w1", 1, true),
            "run.ended r lost worker_lost; run.requested F; control.settled F c0 refused run_ended; revoke r; enqueue F for guide",
        ),
        (
            "the worker gives the run back",
            "steered",
            world::decline("r", "w1", 1),
            "run.returned r declined; control.settled r c0 applied; revoke r; enqueue r for guide; unless r wrote",
        ),
        (
            "the run is suspended",
            "steered",
            world::suspend("r", vec![world::approval("a")]),
            "run.suspended r; control.settled r c0 applied; revoke r",
        ),
        (
            "a person takes over",
            "steered",
            world::hold(),
            "session.held; run.ended r cancelled held forced; control.settled c0 refused run_ended; revoke r",
        ),
        (
            "the session is closed",
            "steered",
            Request::Close { reason: None },
            "run.ended r cancelled session_closed forced; control.settled c0 refused run_ended; session.closed; revoke r",
        ),
        (
            "the run is interrupted: first what interrupts, then the steer",
            "steered",
            interrupt(run("r")),
            "message.put m; control.requested c1 m; run.requested F; enqueue F for guide",
        ),
    ]);
}

#[test]
fn an_interrupt_ends_the_run_and_asks_for_one_that_goes_first() {
    check(&[
        (
            "a run that waits ends at once",
            "waiting",
            interrupt(run("r")),
            "message.put m; control.requested c1 m; run.requested F; run.ended r cancelled interrupt; control.settled r c1 applied; enqueue F for guide",
        ),
        (
            "an active run's worker is asked",
            "active",
            interrupt(run("r")),
            "message.put m; control.requested c1 m; run.requested F; enqueue F for guide",
        ),
        (
            "also by its agent",
            "active",
            interrupt(agent("guide")),
            "message.put m; control.requested c1 m; run.requested F; enqueue F for guide",
        ),
        (
            "one that is being cancelled ends once",
            "cancelling",
            interrupt(run("r")),
            "message.put m; control.requested c1 m; run.requested F; enqueue F for guide",
        ),
        (
            "a suspended run ends at once",
            "suspended",
            interrupt(run("r")),
            "message.put m; control.requested c1 m; run.requested F; run.ended r cancelled interrupt; control.settled r c1 applied; enqueue F for guide",
        ),
        (
            "what has ended stays ended",
            "ended",
            interrupt(run("r")),
            "message.put m; control.requested c1 m; run.requested F; control.settled r c1 applied; enqueue F for guide",
        ),
        (
            "an agent that has nothing to do begins",
            "ended",
            interrupt(agent("guide")),
            "message.put m; control.requested c1 m; run.requested F; control.settled c1 applied; enqueue F for guide",
        ),
        (
            "a child has a parent that waits for it",
            "with children",
            interrupt(run("active-child")),
            "refused bad_request: a child run cannot be interrupted: cancel it, or interrupt its parent",
        ),
        ("a run never heard of is an error", "active", interrupt(run("x")), NO_RUN),
        (
            "all is for cancel",
            "active",
            interrupt(Target::All(true)),
            "refused bad_request: only a cancel can be of all runs",
        ),
        (
            "a person who holds the session gets the message",
            "held",
            interrupt(run("r")),
            "message.put m; control.requested c1 m; control.settled r c1 refused held",
        ),
        ("not in a closed session", "closed", interrupt(run("r")), CLOSED),
    ]);
}

#[test]
fn an_interrupt_is_applied_however_the_run_ends() {
    check(&[
        (
            "the worker ends the run",
            "interrupted",
            world::end("r", Outcome::Cancelled),
            "run.ended r cancelled; control.settled r c0 applied; revoke r; enqueue 0100000004 for guide",
        ),
        (
            "the worker was quicker",
            "interrupted",
            world::end("r", Outcome::Completed),
            "run.ended r completed; control.settled r c0 applied; revoke r; enqueue 0100000004 for guide",
        ),
        (
            "the worker dies",
            "interrupted",
            world::died("r", "w1", 1, false),
            "run.ended r cancelled worker_lost forced; control.settled r c0 applied; revoke r; enqueue 0100000004 for guide",
        ),
        (
            "the worker gives the run back",
            "interrupted",
            world::decline("r", "w1", 1),
            "run.ended r cancelled cancel; control.settled r c0 applied; revoke r; enqueue 0100000004 for guide",
        ),
        (
            "the worker suspends the run",
            "interrupted",
            world::suspend("r", vec![world::approval("a")]),
            "run.ended r cancelled cancel; control.settled r c0 applied; revoke r; enqueue 0100000004 for guide",
        ),
    ]);
}

#[test]
fn pause_and_resume_hold_a_run_where_it_is() {
    check(&[
        (
            "one that waits is not begun",
            "waiting",
            pause(run("r")),
            "control.requested c1; control.settled r c1 applied",
        ),
        (
            "whoever claims it is told to wait",
            "waiting and paused",
            world::claim("r", "w1"),
            "refused conflict: another run of the agent goes first, this one is paused, or a person holds the session",
        ),
        (
            "it waits for its turn again",
            "waiting and paused",
            resume(run("r")),
            "control.requested c1; control.settled r c1 applied; enqueue r for guide",
        ),
        ("a worker is asked", "active", pause(run("r")), "control.requested c1"),
        ("also by its agent", "active", pause(agent("guide")), "control.requested c1"),
        (
            "a suspended run is not begun again after the answers",
            "suspended",
            pause(run("r")),
            "control.requested c1; control.settled r c1 applied",
        ),
        (
            "a resume that nobody needed is applied",
            "suspended",
            resume(run("r")),
            "control.requested c1; control.settled r c1 applied",
        ),
        (
            "a resume replaces a pause",
            "pausing",
            resume(run("r")),
            "control.requested c1; control.settled r c0 refused superseded",
        ),
        (
            "and a pause a resume",
            "resuming",
            pause(run("r")),
            "control.requested c1; control.settled r c0 refused superseded",
        ),
        ("a second pause waits along", "pausing", pause(run("r")), "control.requested c1"),
    ]);
}

#[test]
fn what_becomes_of_a_pause_that_waits() {
    check(&[
        (
            "the worker stands still",
            "pausing",
            settle(ControlOutcome::Applied, None),
            "control.settled r c0 applied",
        ),
        (
            "the worker cannot",
            "pausing",
            settle(ControlOutcome::Refused, None),
            "control.settled r c0 refused not_supported",
        ),
        (
            "the run ends first",
            "pausing",
            world::end("r", Outcome::Completed),
            "run.ended r completed; control.settled r c0 refused run_ended; revoke r",
        ),
        (
            "the worker dies: nobody begins it again",
            "pausing",
            world::died("r", "w1", 1, false),
            "run.returned r worker_lost; control.settled r c0 applied; revoke r; enqueue r for guide; unless r wrote",
        ),
        (
            "nor after people have answered",
            "pausing",
            world::suspend("r", vec![world::approval("a")]),
            "run.suspended r; control.settled r c0 applied; revoke r",
        ),
        (
            "what has ended does not pause",
            "ended",
            pause(run("r")),
            "control.requested c1; control.settled r c1 refused run_ended",
        ),
        (
            "nor does an agent that has nothing to do",
            "ended",
            pause(agent("guide")),
            "control.requested c1; control.settled c1 refused no_active_run",
        ),
        ("a run never heard of is an error", "active", pause(run("x")), NO_RUN),
        (
            "all is for cancel",
            "active",
            resume(Target::All(true)),
            "refused bad_request: only a cancel can be of all runs",
        ),
        (
            "not while a person holds the session",
            "held",
            pause(run("r")),
            "control.requested c1; control.settled r c1 refused held",
        ),
        ("not in a closed session", "closed", pause(run("r")), CLOSED),
    ]);
}
