//! What every control, and every word about a control, does in every state of a run: one sentence per row.

use crate::decide_table::check;
use crate::world;
use everthread_protocol::control::{Mode, What, WhenBusy};
use everthread_protocol::entry::{ControlOutcome, Outcome, RefusalReason, Target};
use everthread_session::Request;

fn run(id: &str) -> Target {
    Target::Run(id.parse().unwrap())
}

fn agent(name: &str) -> Target {
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

/// Bea, an operator, says yes with the right digest.
fn approve(target: Target) -> Request {
    answer("bea", target, "pay", true, Some("d"))
}

fn answer(by: &str, target: Target, approval: &str, is_approved: bool, digest: Option<&str>) -> Request {
    let approval = approval.parse().unwrap();
    let what = What::Answer { approval, is_approved, value: None, digest: digest.map(str::to_owned) };
    world::ask_as(by, "c1", target, what)
}

fn settle(outcome: ControlOutcome, reason: Option<RefusalReason>) -> Request {
    Request::Settle { run: "r".parse().unwrap(), control: "c0".parse().unwrap(), outcome, reason }
}

const NO_RUN: &str = "refused no_run: there is no such run";
const CLOSED: &str = "refused session_closed: the session is closed";
const NOT_HELD: &str = "refused fenced: the run is over or with another worker";

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
            world::ask("c0", run("r"), What::Pause),
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
        ("nor what has its outcome", "paused", settle(Refused, None), ""),
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
            world::died("r", "w1", false),
            "run.returned r worker_lost; control.settled r c0 applied; revoke r; enqueue r for guide; unless r wrote",
        ),
        (
            "the worker dies, and the run with it",
            "steered",
            world::died("r", "w1", true),
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
            world::died("r", "w1", false),
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
            world::died("r", "w1", false),
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

#[test]
fn an_answer_counts_once_and_only_of_whoever_may_give_it() {
    let by = |who: &str, approval: &str, yes, digest| answer(who, run("r"), approval, yes, digest);
    check(&[
        (
            "yes, with the digest",
            "suspended",
            approve(run("r")),
            "control.requested c1 pay; control.settled r c1 applied; approval.settled r pay approved",
        ),
        (
            "yes, without the digest",
            "suspended",
            by("bea", "pay", true, None),
            "control.requested c1 pay; control.settled r c1 refused wrong_digest",
        ),
        (
            "yes, to other arguments",
            "suspended",
            by("bea", "pay", true, Some("e")),
            "control.requested c1 pay; control.settled r c1 refused wrong_digest",
        ),
        (
            "no needs no digest",
            "suspended",
            by("bea", "pay", false, None),
            "control.requested c1 pay; control.settled r c1 applied; approval.settled r pay denied",
        ),
        (
            "no, to other arguments",
            "suspended",
            by("bea", "pay", false, Some("e")),
            "control.requested c1 pay; control.settled r c1 refused wrong_digest",
        ),
        (
            "a digest where none was asked about",
            "suspended",
            by("ann", "send", true, Some("d")),
            "control.requested c1 send; control.settled r c1 refused wrong_digest",
        ),
        (
            "by somebody who may not",
            "suspended",
            by("ann", "pay", true, Some("d")),
            "control.requested c1 pay; control.settled r c1 refused not_allowed",
        ),
        (
            "by anybody, where anybody may",
            "suspended",
            by("ann", "send", true, None),
            "control.requested c1 send; control.settled r c1 applied; approval.settled r send approved",
        ),
        (
            "to nothing that was asked",
            "suspended",
            by("bea", "x", true, None),
            "control.requested c1 x; control.settled r c1 refused no_approval",
        ),
        (
            "the second is told who was first",
            "answered once",
            by("ann", "send", false, None),
            "control.requested c1 send; control.settled r c1 refused already_answered",
        ),
        (
            "the last one lets the run go on",
            "answered once",
            approve(run("r")),
            "control.requested c1 pay; control.settled r c1 applied; approval.settled r pay approved; run.resumed r; enqueue r for guide",
        ),
        (
            "by its agent",
            "answered once",
            approve(agent("guide")),
            "control.requested c1 pay; control.settled r c1 applied; approval.settled r pay approved; run.resumed r; enqueue r for guide",
        ),
        (
            "to a run that waits",
            "waiting",
            approve(run("r")),
            "control.requested c1 pay; control.settled r c1 refused no_approval",
        ),
        (
            "to a run that works",
            "active",
            approve(run("r")),
            "control.requested c1 pay; control.settled r c1 refused no_approval",
        ),
        (
            "to a run that has ended",
            "ended",
            approve(run("r")),
            "control.requested c1 pay; control.settled r c1 refused run_ended",
        ),
        (
            "to an agent that has nothing to do",
            "ended",
            approve(agent("guide")),
            "control.requested c1 pay; control.settled c1 refused no_active_run",
        ),
        ("to a run never heard of", "active", approve(run("x")), NO_RUN),
        (
            "to all",
            "suspended",
            approve(Target::All(true)),
            "refused bad_request: only a cancel can be of all runs",
        ),
        (
            "while a person holds the session",
            "held and suspended",
            approve(run("r")),
            "control.requested c1 pay; control.settled r c1 refused held",
        ),
        ("in a closed session", "closed", approve(run("r")), CLOSED),
    ]);
}

#[test]
fn a_suspended_run_waits_without_a_worker() {
    let ask = || vec![world::approval("a")];
    let wait = |ms: u64| {
        let mut asked = world::approval("a");
        asked.expires_ms = Some(ms);
        world::suspend("r", vec![asked])
    };
    check(&[
        (
            "a run that works may wait for people",
            "active",
            world::suspend("r", ask()),
            "run.suspended r; revoke r",
        ),
        (
            "not for nothing",
            "active",
            world::suspend("r", vec![]),
            "refused bad_request: a run is suspended for at least one approval",
        ),
        (
            "not for one thing twice",
            "active",
            world::suspend("r", [ask(), ask()].concat()),
            "refused id_conflict: the id a is in use",
        ),
        (
            "not for no time",
            "active",
            wait(0),
            "refused bad_request: expires_ms of an approval is from 1 ms to 30 days",
        ),
        (
            "not for ever",
            "active",
            wait(u64::MAX),
            "refused bad_request: expires_ms of an approval is from 1 ms to 30 days",
        ),
        (
            "not for more than there may be",
            "active",
            world::suspend("r", (0..33).map(|n| world::approval(&format!("a{n}"))).collect()),
            "refused limit_reached: limit reached: OPEN_APPROVALS_MAX: 32 approvals of this session wait for an answer",
        ),
        (
            "one that is being cancelled ends instead",
            "cancelling",
            world::suspend("r", ask()),
            "run.ended r cancelled cancel; control.settled r c0 applied; revoke r",
        ),
        ("nobody suspends what waits", "waiting", world::suspend("r", ask()), NOT_HELD),
        ("nor what is suspended", "suspended", world::suspend("r", ask()), NOT_HELD),
        ("nor what has ended", "ended", world::suspend("r", ask()), NOT_HELD),
        ("nor what never was", "active", world::suspend("x", ask()), NOT_HELD),
        ("it is not claimed", "suspended", world::claim("r", "w2"), NOT_HELD),
        ("nor ended by a worker", "suspended", world::end("r", Outcome::Completed), NOT_HELD),
        ("nor lost with one", "suspended", world::died("r", "w1", true), NOT_HELD),
        ("nor given back", "suspended", world::decline("r", "w1", 1), NOT_HELD),
        ("nor does it start children", "suspended", world::child("r", "new", "helper"), NOT_HELD),
        (
            "a cancel ends it at once",
            "suspended",
            world::cancel("c1", run("r")),
            "control.requested c1; run.ended r cancelled cancel; control.settled r c1 applied",
        ),
        (
            "a close ends it",
            "suspended",
            Request::Close { reason: None },
            "run.ended r cancelled session_closed forced; session.closed",
        ),
        ("a person who takes over leaves it as it is", "suspended", world::hold(), "session.held"),
    ]);
}

#[test]
fn a_cancel_of_many_means_those_that_are_open_now() {
    check(&[
        (
            "all of an agent",
            "active before another",
            world::cancel("c1", agent("guide")),
            "control.requested c1; run.ended s cancelled cancel",
        ),
        (
            "all that wait end at once",
            "waiting behind another",
            world::cancel("c1", Target::All(true)),
            "control.requested c1; run.ended r cancelled cancel; run.ended s cancelled cancel; control.settled s c1 applied",
        ),
        (
            "all, with children",
            "with children",
            world::cancel("c1", Target::All(true)),
            "control.requested c1; run.ended waiting-child cancelled cancel",
        ),
        (
            "children of an agent",
            "with children",
            world::cancel("c1", agent("helper")),
            "control.requested c1; run.ended waiting-child cancelled cancel",
        ),
        (
            "a suspended one, too",
            "suspended",
            world::cancel("c1", Target::All(true)),
            "control.requested c1; run.ended r cancelled cancel; control.settled r c1 applied",
        ),
        (
            "nobody",
            "ended",
            world::cancel("c1", Target::All(true)),
            "control.requested c1; control.settled c1 refused no_active_run",
        ),
        (
            "nobody of that name",
            "active",
            world::cancel("c1", agent("x")),
            "control.requested c1; control.settled c1 refused no_active_run",
        ),
        (
            "all is all or nothing",
            "active",
            world::cancel("c1", Target::All(false)),
            "refused bad_request: target is {\"all\":true}",
        ),
        (
            "also while a person holds the session",
            "held",
            world::cancel("c1", Target::All(true)),
            "control.requested c1; run.ended r cancelled cancel; control.settled r c1 applied",
        ),
        ("an interrupted run", "interrupted", world::cancel("c1", run("r")), "control.requested c1"),
        ("a paused run", "paused", world::cancel("c1", run("r")), "control.requested c1"),
        (
            "one that waits and is paused",
            "waiting and paused",
            world::cancel("c1", run("r")),
            "control.requested c1; run.ended r cancelled cancel; control.settled r c1 applied",
        ),
    ]);
}

#[test]
fn input_for_an_agent_at_work_does_what_the_policy_says() {
    use WhenBusy::{Enqueue, Interrupt, Reject, Steer};
    let put = |policy| world::put_when_busy("m", Some("guide"), Some(policy));
    check(&[
        (
            "it waits for its turn behind one at work",
            "active",
            put(Enqueue),
            "message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "it steers one at work",
            "active",
            put(Steer),
            "message.put m; control.requested F m; requested r; as control F",
        ),
        (
            "it interrupts one at work",
            "active",
            put(Interrupt),
            "message.put m; control.requested F m; run.requested F-2; enqueue F-2 for guide; requested F-2; as control F",
        ),
        (
            "it is refused by one at work",
            "active",
            put(Reject),
            "refused busy: the agent is at work and when_busy is reject: try again when its run has ended",
        ),
        (
            "one that waits is at work, too: behind it",
            "waiting",
            put(Enqueue),
            "message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "into it",
            "waiting",
            put(Steer),
            "message.put m; control.requested F m; control.settled r F applied; requested r; as control F",
        ),
        (
            "instead of it",
            "waiting",
            put(Interrupt),
            "message.put m; control.requested F m; run.requested F-2; run.ended r cancelled interrupt; control.settled r F applied; enqueue F-2 for guide; requested F-2; as control F",
        ),
        (
            "not beside it",
            "waiting",
            put(Reject),
            "refused busy: the agent is at work and when_busy is reject: try again when its run has ended",
        ),
        (
            "one that is suspended is at work, too: behind it",
            "suspended",
            put(Enqueue),
            "message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "into a suspended one",
            "suspended",
            put(Steer),
            "message.put m; control.requested F m; control.settled r F applied; requested r; as control F",
        ),
        (
            "instead of a suspended one",
            "suspended",
            put(Interrupt),
            "message.put m; control.requested F m; run.requested F-2; run.ended r cancelled interrupt; control.settled r F applied; enqueue F-2 for guide; requested F-2; as control F",
        ),
        (
            "not beside a suspended one",
            "suspended",
            put(Reject),
            "refused busy: the agent is at work and when_busy is reject: try again when its run has ended",
        ),
        (
            "an agent that is free begins: enqueue",
            "ended",
            put(Enqueue),
            "message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        ("steer", "ended", put(Steer), "message.put m; run.requested F; enqueue F for guide; requested F"),
        (
            "interrupt",
            "ended",
            put(Interrupt),
            "message.put m; run.requested F; enqueue F for guide; requested F",
        ),
        ("reject", "ended", put(Reject), "message.put m; run.requested F; enqueue F for guide; requested F"),
        (
            "another agent is not concerned",
            "active",
            world::put_when_busy("m", Some("other"), Some(Reject)),
            "message.put m; run.requested F; enqueue F for other; requested F",
        ),
        (
            "children do not make their agent busy",
            "with children",
            world::put_when_busy("m", Some("helper"), Some(Reject)),
            "message.put m; run.requested F; enqueue F for helper; requested F",
        ),
        ("a person who holds the session gets it: enqueue", "held", put(Enqueue), "message.put m"),
        ("steer", "held and suspended", put(Steer), "message.put m"),
        ("interrupt", "held and suspended", put(Interrupt), "message.put m"),
        ("reject", "held and suspended", put(Reject), "message.put m"),
    ]);
}

#[test]
fn while_a_person_holds_the_session_nothing_begins() {
    let to_nobody = Request::Release { reason: None, agent: None, run: false };
    let to_other = Request::Release { reason: None, agent: Some("other".parse().unwrap()), run: true };
    check(&[
        (
            "what works is cut off",
            "active",
            world::hold(),
            "session.held; run.ended r cancelled held forced; revoke r",
        ),
        (
            "also what is being cancelled",
            "cancelling",
            world::hold(),
            "session.held; run.ended r cancelled held forced; control.settled r c0 applied; revoke r",
        ),
        (
            "also what is interrupted: what it asked for waits",
            "interrupted",
            world::hold(),
            "session.held; run.ended r cancelled held forced; control.settled r c0 applied; revoke r; enqueue 0100000004 for guide",
        ),
        (
            "children go with their parents",
            "with children",
            world::hold(),
            "session.held; run.ended active-child cancelled held forced; run.ended r cancelled held forced; run.ended waiting-child cancelled parent_ended; revoke active-child; revoke r",
        ),
        ("what waits, waits", "waiting", world::hold(), "session.held"),
        ("nobody takes it over twice", "held", world::hold(), "refused held: bea holds the session"),
        ("nor when it is closed", "closed", world::hold(), CLOSED),
        (
            "nothing is claimed",
            "held",
            world::claim("r", "w1"),
            "refused conflict: another run of the agent goes first, this one is paused, or a person holds the session",
        ),
        (
            "what waits may be cancelled",
            "held",
            world::cancel("c1", run("r")),
            "control.requested c1; run.ended r cancelled cancel; control.settled r c1 applied",
        ),
        (
            "nobody but who holds it hands it back",
            "active",
            world::release(),
            "refused bad_request: nobody holds the session",
        ),
        (
            "where nobody was cut off, what waits may begin",
            "held",
            world::release(),
            "session.released; enqueue r for guide",
        ),
        (
            "whoever was cut off goes on",
            "held in the middle",
            world::release(),
            "session.released; run.requested F; enqueue F for guide; requested F",
        ),
        (
            "or another one",
            "held",
            to_other,
            "session.released; run.requested F; enqueue F for other; enqueue r for guide; requested F",
        ),
        ("or nobody", "held", to_nobody, "session.released; enqueue r for guide"),
    ]);
}
