//! What people decide: answers to what a run waits for, cancels of many, input for an agent at work, takeover. One sentence
//! per row, as in `decide_control`.

use crate::decide_control::{CLOSED, NO_RUN, NOT_HELD, agent, answer, run};
use crate::decide_table::check;
use crate::world;
use everthread_protocol::control::WhenBusy;
use everthread_protocol::entry::{Outcome, Target};
use everthread_session::Request;

/// Bea, an operator, says yes with the right digest.
fn approve(target: Target) -> Request {
    answer("bea", target, "pay", true, Some("d"))
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
    ]);
}

#[test]
fn the_first_answer_wins_and_the_last_lets_the_run_go_on() {
    let by = |who: &str, approval: &str, yes, digest| answer(who, run("r"), approval, yes, digest);
    check(&[
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
    ]);
}

#[test]
fn an_answer_to_nothing_is_refused_by_the_reason() {
    check(&[
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
    ]);
}

#[test]
fn a_run_that_no_worker_holds_is_nobody_s_to_write() {
    let ask = || vec![world::approval("a")];
    check(&[
        ("nobody suspends what waits", "waiting", world::suspend("r", ask()), NOT_HELD),
        ("nor what is suspended", "suspended", world::suspend("r", ask()), NOT_HELD),
        ("nor what has ended", "ended", world::suspend("r", ask()), NOT_HELD),
        ("nor what never was", "active", world::suspend("x", ask()), NOT_HELD),
        ("it is not claimed", "suspended", world::claim("r", "w2"), NOT_HELD),
        ("nor ended by a worker", "suspended", world::end("r", Outcome::Completed), NOT_HELD),
        ("nor lost with one", "suspended", world::died("r", "w1", 1, true), NOT_HELD),
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
    ]);
}

#[test]
fn a_run_that_is_suspended_is_at_work() {
    use WhenBusy::{Enqueue, Interrupt, Reject, Steer};
    let put = |policy| world::put_when_busy("m", Some("guide"), Some(policy));
    check(&[
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
    ]);
}

#[test]
fn input_for_an_agent_that_is_free_asks_for_a_run() {
    use WhenBusy::{Enqueue, Interrupt, Reject, Steer};
    let put = |policy| world::put_when_busy("m", Some("guide"), Some(policy));
    check(&[
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
