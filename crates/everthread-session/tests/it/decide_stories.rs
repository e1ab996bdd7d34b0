//! Stories of control that went wrong somewhere: each is told once, from its beginning to the promise that it keeps.

use crate::decide_control::{agent, answer, run};
use crate::decide_table::line;
use crate::world::{self, GRACE_MS, World};
use everthread_protocol::control::{Mode, What, WhenBusy};
use everthread_protocol::entry::{ControlOutcome, Outcome, Target};
use everthread_protocol::limits::{
    APPROVAL_WAIT_MS, CANCEL_INPUT_WAIT_MS, PENDING_CONTROLS_MAX, RUN_INPUT_MAX, SETTLED_MAX,
    SETTLED_MEMORY_MS, STEER_WAIT_MS,
};
use everthread_protocol::{MessageId, Millis, RunId};
use everthread_session::{Refusal, Request};

fn input(message: &str) -> Target {
    Target::Input(message.parse().unwrap())
}

fn steer(id: &str, target: Target, message: &str) -> Request {
    world::ask(id, target, What::Steer { mode: Mode::NextStep, input: world::input(Some(message)) })
}

fn interrupt(id: &str, target: Target, message: &str) -> Request {
    world::ask(id, target, What::Interrupt { input: world::input(Some(message)) })
}

/// The run that has the message as input.
fn run_of(world: &World, message: &str) -> RunId {
    let message: MessageId = message.parse().unwrap();
    world.core().run_for_input(&message).unwrap().clone()
}

/// A session in which worker `w1` holds run `r` of agent `guide`.
fn active() -> World {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    world.start("r", "w1");
    world
}

fn steered() -> World {
    let mut world = active();
    world.must(&steer("s1", run("r"), "more"));
    world
}

#[test]
fn a_steer_that_crosses_the_end_of_its_run_becomes_the_input_of_a_new_run() {
    let mut world = steered();
    world.must(&world::end("r", Outcome::Completed));
    let new = run_of(&world, "more");
    world.start(new.as_str(), "w1");
    // The worker of the old run, late, says that it has taken it in: nothing happens.
    assert_eq!(world.decide(&world::settle("r", "s1", ControlOutcome::Applied)), Err(Refusal::NotHeld));
}

#[test]
fn a_steer_is_lost_with_no_worker_and_at_no_time() {
    for end in [world::died("r", "w1", 1, true), world::end("r", Outcome::Failed), world::hold()] {
        let mut world = steered();
        world.must(&end);
        if world.core().held.is_some() {
            world.must(&world::release());
        }
        assert!(world.core().runs[&run_of(&world, "more")].is_open(), "{end:?}");
    }
    let mut world = steered();
    world.now += STEER_WAIT_MS;
    let new = world.next_id();
    let expired =
        format!("run.requested {new}; control.settled {new} s1 expired timeout; enqueue {new} for guide");
    assert_eq!(line(&world.apply(&Request::Due)), expired);
}

#[test]
fn a_steer_that_is_due_together_with_the_cancel_of_its_run_becomes_one_run() {
    let mut world = active();
    let mut patient = steer("s1", run("r"), "more");
    if let Request::Control(ask) = &mut patient {
        ask.expires_ms = Some(GRACE_MS);
    }
    world.must(&patient);
    // The cancel is looked at before the steer.
    world.must(&world::cancel("c1", run("r")));
    world.now += GRACE_MS;
    world.must(&Request::Due);
    let having = world.core().runs.values().filter(|run| run.input.iter().any(|id| id == "more"));
    assert_eq!(having.count(), 1);
}

#[test]
fn steers_that_a_run_leaves_behind_go_together_and_in_order() {
    let mut world = active();
    for n in ["z", "b", "a"] {
        world.must(&steer(&format!("s-{n}"), run("r"), n));
    }
    world.must(&world::end("r", Outcome::Completed));
    assert_eq!(world.core().runs[&run_of(&world, "a")].input, ["z", "b", "a"]);
}

#[test]
fn many_steers_do_not_fill_the_input_of_a_run_beyond_its_limit() {
    let mut world = active();
    for n in 0..RUN_INPUT_MAX + 10 {
        world.must(&steer(&format!("s{n}"), run("r"), &format!("more{n}")));
        if world.core().controls[format!("s{n}").as_str()].is_pending() {
            world.must(&world::settle("r", &format!("s{n}"), ControlOutcome::Applied));
        }
        world.now += 1;
        // What waits in runs of its own is out of the way.
        let target = Target::Input(format!("more{n}").parse().unwrap());
        if run_of(&world, &format!("more{n}")).as_str() != "r" {
            world.must(&world::cancel(&format!("c{n}"), target));
        }
    }
    assert_eq!(world.core().runs["r"].input.len(), RUN_INPUT_MAX);
}

#[test]
fn a_worker_that_dies_right_after_it_took_a_run_wedges_nothing() {
    let mut world = active();
    world.must(&world::died("r", "w1", 1, false));
    world.start("r", "w2");
    world.must(&world::end("r", Outcome::Completed));
}

#[test]
fn a_worker_that_retries_hands_its_run_on_at_most_four_times() {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    for attempt in 1..5 {
        world.must(&Request::Claim {
            run: "r".parse().unwrap(),
            worker: "w".parse().unwrap(),
            retries: true,
        });
        world.wrote.insert("r".parse().unwrap());
        let returned = "run.returned r worker_lost; revoke r; enqueue r for guide";
        assert_eq!(line(&world.apply(&world::died("r", "w", attempt, true))), returned, "{attempt}");
    }
    world.must(&Request::Claim { run: "r".parse().unwrap(), worker: "w".parse().unwrap(), retries: true });
    assert_eq!(
        line(&world.apply(&world::died("r", "w", 5, false))),
        "run.ended r lost worker_lost; revoke r"
    );
}

#[test]
fn a_worker_that_does_not_retry_loses_a_run_that_another_one_began() {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    world.must(&Request::Claim { run: "r".parse().unwrap(), worker: "w1".parse().unwrap(), retries: true });
    world.must(&world::died("r", "w1", 1, true));
    world.start("r", "w2");
    assert_eq!(
        line(&world.apply(&world::died("r", "w2", 2, true))),
        "run.ended r lost worker_lost; revoke r"
    );
}

#[test]
fn a_cancel_before_the_run_begins_means_that_it_never_begins() {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    world.must(&world::cancel("c1", run("r")));
    // Its item is still in the pool, and a worker takes it.
    assert_eq!(world.apply(&world::claim("r", "w1")), Err(Refusal::NotHeld));
}

#[test]
fn a_cancel_that_comes_late_does_not_touch_the_next_run() {
    let mut world = active();
    world.must(&world::put("next", Some("guide")));
    world.must(&world::end("r", Outcome::Completed));
    let next = run_of(&world, "next");
    world.start(next.as_str(), "w1");
    let late = "control.requested c1; control.settled r c1 refused run_ended";
    assert_eq!(line(&world.apply(&world::cancel("c1", run("r")))), late);
    assert!(world.core().runs[&next].is_open());
}

#[test]
fn a_cancel_of_all_does_not_touch_what_is_asked_for_after_it() {
    let mut world = active();
    for (control, target) in [("c1", agent("guide")), ("c2", Target::All(true))] {
        world.must(&world::cancel(control, target));
    }
    world.must(&world::put("next", Some("guide")));
    world.now += GRACE_MS;
    world.must(&Request::Due);
    let next = run_of(&world, "next");
    assert!(world.core().runs[&next].is_open());
    world.start(next.as_str(), "w1");
}

#[test]
fn a_cancel_that_the_worker_ignores_ends_the_run_when_its_grace_is_over() {
    let mut world = active();
    world.must(&world::cancel("c1", run("r")));
    world.now += GRACE_MS - 1;
    assert_eq!(world.decide(&Request::Due), Err(Refusal::NotDue));
    world.now += 1;
    let forced = "run.ended r cancelled cancel_timeout forced; control.settled r c1 applied; revoke r";
    assert_eq!(line(&world.apply(&Request::Due)), forced);
}

#[test]
fn a_suspended_run_does_not_escape_its_cancel() {
    let mut world = active();
    world.must(&world::cancel("c1", run("r")));
    world.must(&world::suspend("r", vec![world::approval("a")]));
    assert_eq!(world.core().open_runs().count(), 0);
}

#[test]
fn a_stop_gets_through_however_much_else_waits() {
    let mut world = active();
    for n in 0..PENDING_CONTROLS_MAX {
        world.must(&world::ask(&format!("p{n}"), run("r"), What::Pause));
    }
    let refusal = world.decide(&world::ask("more", run("r"), What::Pause)).unwrap_err();
    assert!(matches!(refusal, Refusal::Limit(text) if text.starts_with("PENDING_CONTROLS_MAX")));
    world.must(&world::cancel("stop", run("r")));
}

#[test]
fn what_a_user_has_stopped_is_not_begun_again_by_a_repeat() {
    let mut world = World::new();
    let put = world::put("i", Some("guide"));
    world.must(&put);
    let stopped = run_of(&world, "i");
    world.must(&world::cancel("c1", input("i")));
    // A device that was away sends everything again; an item of the pool comes twice.
    assert_eq!(world.decide(&put), Err(Refusal::IdInUse("i".into())));
    assert_eq!(world.decide(&world::cancel("c1", input("i"))), Err(Refusal::Known));
    assert_eq!(world.decide(&world::claim(stopped.as_str(), "w1")), Err(Refusal::NotHeld));
}

#[test]
fn a_control_that_may_have_been_forgotten_is_not_carried_out_again() {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    world.start("r", "w1");
    world.now += SETTLED_MEMORY_MS;
    let cancel = |made_at: u64| {
        let Request::Control(mut ask) = world::cancel("c1", Target::Agent("guide".parse().unwrap())) else {
            unreachable!()
        };
        ask.made_at = Some(Millis(made_at));
        Request::Control(ask)
    };
    let now = world.now;
    assert_eq!(world.decide(&cancel(now - SETTLED_MEMORY_MS)), Err(Refusal::TooOld));
    world.must(&cancel(now - SETTLED_MEMORY_MS + 1));
    // Where there is no room for memory it is shorter.
    let mut full = World::new();
    for n in 0..=SETTLED_MAX {
        full.must(&world::put(&format!("i{n}"), Some("guide")));
        full.must(&world::cancel(&format!("c{n}"), input(&format!("i{n}"))));
    }
    let Request::Control(mut ask) = world::cancel("c0", input("i0")) else { unreachable!() };
    ask.made_at = Some(Millis(full.now));
    assert_eq!(full.decide(&Request::Control(ask)), Err(Refusal::TooOld));
}

#[test]
fn a_repeated_control_does_nothing_whatever_it_asks() {
    let mut world = steered();
    let again = [steer("s1", run("r"), "more"), steer("s1", run("r"), "other")];
    for request in again {
        assert_eq!(world.decide(&request), Err(Refusal::Known), "{request:?}");
    }
    // Whoever asks something else under it learns that it is taken, and is not told a stranger's outcome.
    let other = [
        interrupt("s1", run("r"), "other"),
        world::ask("s1", run("never"), What::Resume),
        world::cancel("s1", run("r")),
    ];
    for request in other {
        assert_eq!(world.decide(&request), Err(Refusal::IdInUse("s1".into())), "{request:?}");
    }
    world.must(&world::end("r", Outcome::Completed));
    assert_eq!(world.decide(&steer("s1", run("r"), "more")), Err(Refusal::Known));
    world.now += SETTLED_MEMORY_MS;
    world.must(&Request::Events);
    assert_eq!(world.decide(&steer("s1", run("r"), "x")), Err(Refusal::NoRun));
}

#[test]
fn two_clicks_on_approve_run_the_tool_once() {
    let mut world = active();
    world.must(&world::suspend("r", vec![world::approval("pay")]));
    world.must(&answer("ann", run("r"), "pay", true, None));
    let mut second = answer("bob", run("r"), "pay", true, None);
    if let Request::Control(ask) = &mut second {
        ask.control = "c2".parse().unwrap();
    }
    let told = world.must(&second);
    let told = serde_json::to_value(&told.entries[1]).unwrap();
    assert_eq!((&told["reason"], &told["answered_by"]["id"]), (&"already_answered".into(), &"ann".into()));
    world.start("r", "w2");
    let answers = world.core().runs["r"].answers();
    assert_eq!(answers.len(), 1);
    // Used once: the same id is not asked for again.
    let again = world.decide(&world::suspend("r", vec![world::approval("pay")]));
    assert_eq!(again.unwrap_err(), Refusal::IdInUse("pay".into()));
}

#[test]
fn an_approval_that_nobody_gives_lets_the_run_go_on_and_takes_no_answer_any_more() {
    let mut world = active();
    world.must(&world::suspend("r", vec![world::approval("pay")]));
    world.now += APPROVAL_WAIT_MS;
    // The time is up, whoever notices it first.
    let late = "control.requested c1 pay; control.settled r c1 refused timeout";
    assert_eq!(line(&world.apply(&answer("ann", run("r"), "pay", true, None))), late);
    let expired = "approval.settled r pay expired; run.resumed r; enqueue r for guide";
    assert_eq!(line(&world.apply(&Request::Due)), expired);
    world.start("r", "w2");
}

#[test]
fn an_interrupt_of_a_run_that_waits_wakes_whoever_comes_next() {
    let mut world = active();
    world.must(&world::put("second", Some("guide")));
    world.must(&world::suspend("r", vec![world::approval("pay")]));
    let second = run_of(&world, "second");
    world.must(&interrupt("x1", Target::Run(second), "instead"));
    let instead = run_of(&world, "instead");
    // Its item is taken and left, because the agent waits for people.
    assert_eq!(world.apply(&world::claim(instead.as_str(), "w1")), Err(Refusal::Waits));
    world.must(&answer("ann", run("r"), "pay", true, None));
    // The run that was begun is gone on with, then comes the other.
    assert_eq!(world.apply(&world::claim(instead.as_str(), "w1")), Err(Refusal::Waits));
    world.start("r", "w1");
    world.must(&world::end("r", Outcome::Completed));
    assert!(world.pool.contains(&instead));
    world.start(instead.as_str(), "w1");
}

#[test]
fn what_interrupts_goes_before_what_waits() {
    let mut world = active();
    world.must(&world::put("second", Some("guide")));
    world.must(&world::put_when_busy("third", Some("guide"), Some(WhenBusy::Interrupt)));
    world.must(&steer("s1", run("r"), "more"));
    world.must(&world::end("r", Outcome::Cancelled));
    let order = ["third", "second", "more"];
    for message in order {
        let run = run_of(&world, message);
        for other in order.iter().filter(|other| **other != message) {
            let other = run_of(&world, other);
            if world.core().runs[&other].is_open() {
                assert_eq!(
                    world.decide(&world::claim(other.as_str(), "w1")),
                    Err(Refusal::Waits),
                    "{message}"
                );
            }
        }
        world.start(run.as_str(), "w1");
        world.must(&world::end(run.as_str(), Outcome::Completed));
    }
}

#[test]
fn a_cancel_by_input_finds_the_run_that_a_steer_puts_it_into() {
    let mut world = steered();
    world.must(&world::cancel("c1", input("more")));
    world.must(&world::settle("r", "s1", ControlOutcome::Applied));
    world.now += GRACE_MS;
    let forced = "run.ended r cancelled cancel_timeout forced; control.settled r c1 applied; revoke r";
    assert_eq!(line(&world.apply(&Request::Due)), forced);
}

#[test]
fn a_message_that_was_cancelled_before_it_came_never_runs_however_it_comes() {
    for how in ["put", "steer", "interrupt", "left by a run"] {
        let mut world = active();
        match how {
            "put" => {
                world.must(&world::cancel("c1", input("m")));
                world.must(&world::put_when_busy("m", Some("guide"), Some(WhenBusy::Steer)));
            }
            "steer" => {
                world.must(&world::cancel("c1", input("m")));
                world.must(&steer("s1", run("r"), "m"));
            }
            "interrupt" => {
                world.must(&world::cancel("c1", input("m")));
                world.must(&interrupt("x1", run("r"), "m"));
            }
            _ => {
                world.must(&steer("s1", run("r"), "m"));
                world.must(&world::cancel("c1", input("m")));
                world.must(&world::end("r", Outcome::Completed));
            }
        }
        assert!(!world.core().runs[&run_of(&world, "m")].is_open(), "{how}");
        assert!(!world.core().controls["c1"].is_pending(), "{how}");
    }
}

#[test]
fn a_cancel_of_input_that_a_person_gets_is_told_so() {
    let mut world = World::new();
    world.must(&world::hold());
    world.must(&world::cancel("before", input("m")));
    let put = "message.put m; control.settled before refused held";
    assert_eq!(line(&world.apply(&world::put("m", Some("guide")))), put);
    let after = "control.requested after; control.settled after refused held";
    assert_eq!(line(&world.apply(&world::cancel("after", input("m")))), after);
    world.now += CANCEL_INPUT_WAIT_MS;
    assert_eq!(world.core().next_due(), None);
}

#[test]
fn what_is_said_to_a_person_is_the_input_of_whoever_goes_on() {
    let mut world = steered();
    world.must(&world::hold());
    for n in 0..RUN_INPUT_MAX {
        world.must(&world::put(&format!("m{n}"), Some("other")));
    }
    world.must(&world::release());
    let next = run_of(&world, "m0");
    let next = &world.core().runs[&next];
    // The last ones; the oldest, the steer that was cut off, stays in the session and is not named.
    assert_eq!((next.input.len(), next.agent.as_str()), (RUN_INPUT_MAX, "guide"));
    assert_eq!(next.input.last().map(String::as_str), Some("m63"));
}

#[test]
fn a_person_who_takes_over_is_not_written_over_by_a_worker_that_was_late() {
    let mut world = active();
    let (run, fence) = ("r".parse().unwrap(), world.fences["r"]);
    world.must(&world::hold());
    assert_eq!(world.write(&run, fence, &world::end("r", Outcome::Completed)), None);
    assert_eq!(world.apply(&world::claim("r", "w2")), Err(Refusal::NotHeld));
}
