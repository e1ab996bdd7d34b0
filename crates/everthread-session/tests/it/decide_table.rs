//! What every request does in every state of a run, one sentence per row.
//!
//! The answer is written as one line: the entries, then what changes besides the log. `…` in an expected line stands for
//! whatever the core made up.

use crate::world::{self, World, context};
use everthread_protocol::control::{Mode, What, WhoMay};
use everthread_protocol::entry::{ControlOutcome, Object, Outcome, RunError, Target};
use everthread_protocol::limits::{
    CANCEL_INPUT_WAIT_MS, OPEN_RUNS_MAX, PENDING_CONTROLS_MAX, SETTLED_MAX, SETTLED_MEMORY_MS,
    STATE_BYTES_MAX,
};
use everthread_protocol::{AuthorKind, Code, Entry};
use everthread_session::state::SCHEMA;
use everthread_session::{Decision, Refusal, Request, State, decide};
use serde_json::json;

/// An answer as one line.
pub fn line(answer: &Result<Decision, Refusal>) -> String {
    let decision = match answer {
        Ok(decision) => decision,
        Err(refusal) => return format!("refused {}: {refusal}", refusal.fault().code.as_str()),
    };
    let mut words: Vec<String> = decision.entries.iter().map(entry).collect();
    if let Some(run) = &decision.grant {
        words.push(format!("grant {run}"));
    }
    words.extend(decision.revoke.iter().map(|run| format!("revoke {run}")));
    words.extend(decision.enqueue.iter().map(|(run, agent)| format!("enqueue {run} for {agent}")));
    words.extend(decision.unwritten.iter().map(|run| format!("unless {run} wrote")));
    words.extend(decision.requested.iter().map(|run| format!("requested {run}")));
    words.extend(decision.control.iter().map(|control| format!("as control {control}")));
    words.join("; ")
}

fn entry(entry: &Entry) -> String {
    let value = serde_json::to_value(entry).unwrap();
    let text =
        |key: &str| value.get(key).and_then(|v| v.as_str()).map(|v| format!(" {v}")).unwrap_or_default();
    let mut words = value["type"].as_str().unwrap().to_owned();
    for key in ["run", "control", "approval", "message", "worker", "verdict", "outcome", "reason", "key"] {
        words += &text(key);
    }
    if value.get("forced").is_some() {
        words += " forced";
    }
    words
}

/// The run `r` and its neighbours, in one of the states.
pub fn state(name: &str) -> State {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    match name {
        "waiting" => {}
        "active" => world.start("r", "w1"),
        "cancelling" => {
            world.start("r", "w1");
            world.must(&world::cancel("c0", Target::Run("r".parse().unwrap())));
        }
        "ended" => {
            world.start("r", "w1");
            world.must(&world::end("r", Outcome::Completed));
        }
        "waiting behind another" => {
            world.run("s", "guide", None, &["j"]);
        }
        "active before another" => {
            world.start("r", "w1");
            world.run("s", "guide", None, &["j"]);
        }
        "with children" => {
            world.start("r", "w1");
            world.run("waiting-child", "helper", Some("r"), &["j"]);
            world.run("active-child", "helper", Some("r"), &["k"]);
            world.start("active-child", "w2");
        }
        "closed" => {
            world.start("r", "w1");
            world.must(&Request::Close { reason: None });
        }
        of_control => controlled(&mut world, of_control),
    }
    world.state.unwrap()
}

/// States that controls have brought about.
fn controlled(world: &mut World, name: &str) {
    let run = || Target::Run("r".parse().unwrap());
    let steer = What::Steer { mode: Mode::NextStep, input: world::input(Some("steered")) };
    let mut pay = world::approval("pay");
    (pay.digest, pay.who) =
        (Some("d".into()), Some(WhoMay { kinds: vec![AuthorKind::Operator], subjects: vec![] }));
    let approvals = vec![pay, world::approval("send")];
    match name {
        "waiting and paused" => drop(world.must(&world::ask("c0", run(), What::Pause))),
        "held" => drop(world.must(&world::hold())),
        "held and suspended" => {
            controlled(world, "suspended");
            world.must(&world::hold());
        }
        _ => {
            world.start("r", "w1");
            match name {
                "steered" => drop(world.must(&world::ask("c0", run(), steer))),
                "pausing" => drop(world.must(&world::ask("c0", run(), What::Pause))),
                "resuming" => drop(world.must(&world::ask("c0", run(), What::Resume))),
                "interrupted" => {
                    let what = What::Interrupt { input: world::input(Some("instead")) };
                    world.must(&world::ask("c0", run(), what));
                }
                "paused" => {
                    world.must(&world::ask("c0", run(), What::Pause));
                    world.must(&world::settle("r", "c0", ControlOutcome::Applied));
                }
                "held in the middle" => drop(world.must(&world::hold())),
                "suspended" => drop(world.must(&world::suspend("r", approvals))),
                "answered once" => {
                    world.must(&world::suspend("r", approvals));
                    let what = What::Answer {
                        approval: "send".parse().unwrap(),
                        is_approved: true,
                        value: None,
                        digest: None,
                    };
                    world.must(&world::ask_as("bob", "c0", run(), what));
                }
                other => unreachable!("{other}"),
            }
        }
    }
}

/// Compares rows of (sentence, state, request, expected line) and names every one that is wrong.
pub fn check(rows: &[(&str, &str, Request, &str)]) {
    let mut wrong = String::new();
    for (sentence, name, request, expected) in rows {
        let got = line(&decide(Some(&state(name)), request, &context(world::START + 1_000, "F")));
        if got != *expected {
            wrong += &format!("{sentence}\n  expected {expected}\n  got      {got}\n");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

const NOT_HELD: &str = "refused fenced: the run is over or with another worker";

#[test]
fn a_claim_takes_a_run_that_waits_and_no_other() {
    let claim = |run: &str| world::claim(run, "w1");
    check(&[
        ("a waiting run starts", "waiting", claim("r"), "run.started r w1; grant r"),
        ("an active run is not claimed again", "active", claim("r"), NOT_HELD),
        ("nor is one that is being cancelled", "cancelling", claim("r"), NOT_HELD),
        ("nor one that is over", "ended", claim("r"), NOT_HELD),
        ("an unknown run is not there", "active", claim("x"), "refused no_run: there is no such run"),
        (
            "runs of one agent go one after the other",
            "waiting behind another",
            claim("s"),
            "refused conflict: another run of the agent goes first, this one is paused, or a person holds the session",
        ),
        (
            "children go side by side with others of their agent",
            "with children",
            claim("waiting-child"),
            "run.started waiting-child w1; grant waiting-child",
        ),
        (
            "a closed session starts nothing",
            "closed",
            claim("r"),
            "refused session_closed: the session is closed",
        ),
    ]);
}

#[test]
fn a_decline_gives_back_a_run_that_the_worker_holds() {
    let decline = |run: &str, worker: &str| world::decline(run, worker, 1);
    check(&[
        ("a waiting run is held by nobody", "waiting", decline("r", "w1"), NOT_HELD),
        (
            "back to the pool",
            "active",
            decline("r", "w1"),
            "run.returned r declined; revoke r; enqueue r for guide; unless r wrote",
        ),
        ("another worker's run is not given back", "active", decline("r", "w2"), NOT_HELD),
        ("nor another attempt of its own", "active", world::decline("r", "w1", 2), NOT_HELD),
        (
            "a run that is being cancelled ends instead of starting anew",
            "cancelling",
            decline("r", "w1"),
            "run.ended r cancelled cancel; control.settled r c0 applied; revoke r",
        ),
        ("an ended run stays ended", "ended", decline("r", "w1"), NOT_HELD),
        ("nor in a closed session", "closed", decline("r", "w1"), NOT_HELD),
        ("an unknown run is held by nobody", "active", decline("x", "w1"), NOT_HELD),
    ]);
}

#[test]
fn an_end_ends_an_active_run_once() {
    let end = |outcome| world::end("r", outcome);
    check(&[
        ("a run that nobody holds is not ended by a worker", "waiting", end(Outcome::Completed), NOT_HELD),
        ("it completes", "active", end(Outcome::Completed), "run.ended r completed; revoke r"),
        ("it fails with an error", "active", end(Outcome::Failed), "run.ended r failed; revoke r"),
        (
            "it may end as cancelled unasked",
            "active",
            end(Outcome::Cancelled),
            "run.ended r cancelled; revoke r",
        ),
        (
            "a worker does not declare itself lost",
            "active",
            end(Outcome::Lost),
            "refused bad_request: a worker ends a run as completed, cancelled or failed",
        ),
        (
            "a cancel is applied by ending as cancelled",
            "cancelling",
            end(Outcome::Cancelled),
            "run.ended r cancelled; control.settled r c0 applied; revoke r",
        ),
        (
            "a cancel that came too late is refused in the same block",
            "cancelling",
            end(Outcome::Completed),
            "run.ended r completed; control.settled r c0 refused run_ended; revoke r",
        ),
        ("an ended run does not end again", "ended", end(Outcome::Completed), NOT_HELD),
        ("nor does one that its session took along", "closed", end(Outcome::Completed), NOT_HELD),
        (
            "the next run of the agent is put into the pool again",
            "active before another",
            end(Outcome::Completed),
            "run.ended r completed; revoke r; enqueue s for guide",
        ),
        (
            "children end with it: waiting ones at once, active ones by a cancel",
            "with children",
            end(Outcome::Completed),
            "run.ended r completed; control.requested F; run.ended waiting-child cancelled parent_ended; revoke r",
        ),
    ]);
    let no_error =
        Request::End { run: "r".parse().unwrap(), outcome: Outcome::Failed, error: None, usage: None };
    let error = Some(RunError { code: "c".into(), message: "m".into() });
    let needless =
        Request::End { run: "r".parse().unwrap(), outcome: Outcome::Completed, error, usage: None };
    let refused = "refused bad_request: failed comes with an error, other outcomes without";
    check(&[
        ("failed needs an error", "active", no_error, refused),
        ("completed has none", "active", needless, refused),
    ]);
}

#[test]
fn a_child_needs_an_open_parent_and_a_new_id() {
    let child = |parent: &str, id: &str| world::child(parent, id, "helper");
    let started = "message.put F; run.requested new; enqueue new for helper";
    check(&[
        ("an active run starts a child", "active", child("r", "new"), started),
        ("also while it is being cancelled", "cancelling", child("r", "new"), started),
        ("an ended run does not", "ended", child("r", "new"), NOT_HELD),
        ("an unknown run does not", "active", child("x", "new"), NOT_HELD),
        (
            "an id in use is refused",
            "with children",
            child("r", "active-child"),
            "refused id_conflict: the id active-child is in use",
        ),
        ("a run is not its own child", "active", child("r", "r"), "refused id_conflict: the id r is in use"),
        (
            "a closed session starts nothing",
            "closed",
            child("r", "new"),
            "refused session_closed: the session is closed",
        ),
    ]);
}

#[test]
fn a_cancel_ends_a_waiting_run_asks_an_active_one_and_is_refused_by_an_ended_one() {
    let cancel = |target: Target| world::cancel("c1", target);
    let run = |id: &str| Target::Run(id.parse().unwrap());
    let input = |id: &str| Target::Input(id.parse().unwrap());
    let at_once = "control.requested c1; run.ended r cancelled cancel; control.settled r c1 applied";
    let refused = "control.requested c1; control.settled r c1 refused run_ended";
    check(&[
        ("a waiting run ends at once", "waiting", cancel(run("r")), at_once),
        ("also when it is named by its input", "waiting", cancel(input("i")), at_once),
        ("an active run's worker is asked", "active", cancel(run("r")), "control.requested c1"),
        ("also by its input", "active", cancel(input("i")), "control.requested c1"),
        ("a second cancel waits along", "cancelling", cancel(run("r")), "control.requested c1"),
        ("an ended run refuses it", "ended", cancel(run("r")), refused),
        ("also by its input", "ended", cancel(input("i")), refused),
        (
            "a run never heard of is an error",
            "active",
            cancel(run("x")),
            "refused no_run: there is no such run",
        ),
        ("an input never heard of is waited for", "active", cancel(input("later")), "control.requested c1"),
        (
            "the same id is the same control",
            "cancelling",
            world::cancel("c0", run("r")),
            "refused id_conflict: the control is known",
        ),
        (
            "a closed session has nothing to cancel",
            "closed",
            cancel(run("r")),
            "refused session_closed: the session is closed",
        ),
    ]);
}

#[test]
fn a_dead_worker_returns_what_it_has_not_begun_and_loses_what_it_has() {
    let died = |worker: &str, wrote| world::died("r", worker, 1, wrote);
    check(&[
        ("nobody held it", "waiting", died("w1", false), NOT_HELD),
        (
            "unbegun, back to the pool",
            "active",
            died("w1", false),
            "run.returned r worker_lost; revoke r; enqueue r for guide; unless r wrote",
        ),
        ("begun, lost", "active", died("w1", true), "run.ended r lost worker_lost; revoke r"),
        (
            "an earlier attempt's death is none of its business",
            "active",
            world::died("r", "w1", 0, true),
            NOT_HELD,
        ),
        ("another worker's death is none of its business", "active", died("w2", true), NOT_HELD),
        (
            "a cancel is applied by the death",
            "cancelling",
            died("w1", true),
            "run.ended r cancelled worker_lost forced; control.settled r c0 applied; revoke r",
        ),
        ("ended before", "ended", died("w1", true), NOT_HELD),
        ("nor in a closed session", "closed", died("w1", true), NOT_HELD),
    ]);
}

#[test]
fn time_settles_what_nobody_settled() {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    world.start("r", "w1");
    world.must(&world::cancel("c0", Target::Run("r".parse().unwrap())));
    world.must(&world::cancel("c1", Target::Input("never".parse().unwrap())));
    assert_eq!(line(&world.decide(&Request::Due)), "refused conflict: nothing is due");
    world.now += world::GRACE_MS;
    let forced = "run.ended r cancelled cancel_timeout forced; control.settled r c0 applied; revoke r";
    assert_eq!(line(&world.apply(&Request::Due)), forced);
    assert_eq!(line(&world.decide(&Request::Due)), "refused conflict: nothing is due");
    world.now += CANCEL_INPUT_WAIT_MS;
    assert_eq!(line(&world.apply(&Request::Due)), "control.settled c1 expired timeout");
    assert_eq!(world.state.as_ref().unwrap().next_due(), None);
}

#[test]
fn an_input_that_was_cancelled_before_it_came_never_runs() {
    let mut world = World::new();
    world.must(&world::cancel("c0", Target::Input("i".parse().unwrap())));
    let put = world::put("i", Some("guide"));
    let answer = "message.put i; run.requested 1; run.ended 1 cancelled cancel; control.settled 1 c0 applied; requested 1";
    let fresh = world.next_id();
    assert_eq!(line(&world.apply(&put)), answer.replace('1', &fresh));
    let again = world.decide(&put);
    assert_eq!(again.unwrap_err(), Refusal::IdInUse("i".into()));
}

#[test]
fn a_repeated_control_is_known_also_after_the_session_closed() {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    world.start("r", "w1");
    let cancel = world::cancel("c0", Target::Run("r".parse().unwrap()));
    world.must(&cancel);
    world.must(&Request::Close { reason: None });
    assert_eq!(world.decide(&cancel).unwrap_err(), Refusal::Known);
    assert_eq!(
        world.decide(&world::cancel("c1", Target::Run("r".parse().unwrap()))).unwrap_err(),
        Refusal::Closed
    );
}

#[test]
fn closing_ends_every_open_run_and_nothing_is_left_in_a_pool() {
    let with =
        decide(Some(&state("with children")), &Request::Close { reason: None }, &context(world::START, "F"));
    let decision = with.unwrap();
    assert_eq!(decision.state.open_runs().count(), 0);
    assert_eq!(decision.state.pending_controls().count(), 0);
    assert!(decision.enqueue.is_empty(), "{:?}", decision.enqueue);
    assert!(matches!(decision.entries.last(), Some(Entry::SessionClosed { .. })));
}

#[test]
fn a_run_that_nobody_takes_in_earnest_is_given_up() {
    let mut world = World::new();
    world.run("r", "guide", None, &["i"]);
    for attempt in 1..5 {
        world.start("r", "w1");
        assert!(
            line(&world.apply(&world::died("r", "w1", attempt, false)))
                .starts_with("run.returned r worker_lost"),
            "{attempt}"
        );
    }
    world.start("r", "w1");
    assert_eq!(
        line(&world.apply(&world::died("r", "w1", 5, false))),
        "run.ended r lost worker_lost; revoke r"
    );

    world.run("s", "guide", None, &["j"]);
    let ended = (1..1_000).find(|attempt| {
        world.start("s", "w1");
        line(&world.apply(&world::decline("s", "w1", *attempt))) == "run.ended s failed declined; revoke s"
    });
    assert_eq!(ended, Some(32));
}

#[test]
fn a_session_opens_once_and_everything_else_needs_it() {
    let open = Request::Open { meta: Object::new() };
    assert_eq!(line(&decide(None, &open, &context(1, "F"))), "session.opened");
    assert_eq!(decide(Some(&state("active")), &open, &context(1, "F")).unwrap_err(), Refusal::Exists);
    assert_eq!(decide(None, &Request::Due, &context(1, "F")).unwrap_err(), Refusal::NoRun);
}

#[test]
fn a_state_of_a_newer_release_is_not_decided_upon() {
    let mut newer = state("active");
    newer.schema = SCHEMA + 1;
    let refusal = decide(Some(&newer), &Request::Due, &context(1, "F")).unwrap_err();
    assert_eq!((refusal.clone(), refusal.fault().code), (Refusal::NewerSchema, Code::Unavailable));
}

#[test]
fn meta_and_values_change_as_a_merge_patch_does() {
    let mut world = World::new();
    let object = |value: serde_json::Value| value.as_object().unwrap().clone();
    world.must(&Request::Update { patch: object(json!({"agent": "guide", "a": 1})) });
    world.must(&Request::Update { patch: object(json!({"a": null, "b": {"c": null}})) });
    assert_eq!(world.state.as_ref().unwrap().meta, object(json!({"agent": "guide", "b": {"c": null}})));
    let bad = world.decide(&Request::Update { patch: object(json!({"agent": "no name"})) }).unwrap_err();
    assert_eq!(bad.fault().code, Code::BadRequest);
    world.must(&Request::SetValue { key: "k".into(), value: json!(1) });
    world.must(&Request::SetValue { key: "k".into(), value: json!(null) });
    assert!(world.state.as_ref().unwrap().values.is_empty());
    // The session's own agent works on what a user says, and on nothing else.
    assert!(line(&world.decide(&world::put("i", None))).contains("run.requested"));
}

#[test]
fn what_does_not_fit_is_refused_by_the_name_of_its_limit() {
    let limit = |answer: Result<Decision, Refusal>, name: &str| {
        let refusal = answer.unwrap_err();
        assert!(matches!(refusal, Refusal::Limit(text) if text.starts_with(name)), "{name}: {refusal}");
        assert_eq!(refusal.fault().code, Code::LimitReached);
    };
    let mut world = World::new();
    for n in 0..OPEN_RUNS_MAX {
        world.must(&world::put(&format!("i{n}"), Some("guide")));
    }
    limit(world.decide(&world::put("more", Some("guide"))), "OPEN_RUNS_MAX");
    for n in 0..PENDING_CONTROLS_MAX {
        world.must(&world::cancel(&format!("c{n}"), Target::Input(format!("later{n}").parse().unwrap())));
    }
    limit(world.decide(&world::cancel("more", Target::Input("x".parse().unwrap()))), "PENDING_CONTROLS_MAX");
    // A cancel that has its outcome at once takes no place among those that wait.
    world.must(&world::cancel("c-now", Target::Input("i0".parse().unwrap())));

    let big = |bytes: usize| json!("x".repeat(bytes));
    let value = |key: &str, value| Request::SetValue { key: key.into(), value };
    world.must(&value("k0", big(9_000)));
    limit(world.decide(&value("k1", big(9_000))), "VALUES_BYTES_MAX");
    let alone = world.decide(&value("k", big(17_000))).unwrap_err();
    assert!(matches!(alone, Refusal::TooLarge(_)), "no other time is better for it: {alone}");
    for n in 0..64 {
        world.must(&value(&format!("k{n}"), json!(n)));
    }
    limit(world.decide(&value("more", json!(1))), "VALUES_MAX");
    let patch = json!({"a": big(9_000)}).as_object().unwrap().clone();
    let too_large = world.decide(&Request::Update { patch }).unwrap_err();
    assert!(
        matches!(too_large, Refusal::TooLarge(_)) && !too_large.fault().code.is_retryable(),
        "{too_large}"
    );
    let params = json!({"p": big(STATE_BYTES_MAX - 100)}).as_object().unwrap().clone();
    let child = Request::StartChild {
        run: "r".parse().unwrap(),
        child: "s".parse().unwrap(),
        agent: "guide".parse().unwrap(),
        parts: world::parts(),
        params: Some(params),
    };
    limit(decide(Some(&state("active")), &child, &context(world::START, "F")), "STATE_BYTES_MAX");
}

#[test]
fn a_session_with_much_behind_it_goes_on() {
    let mut world = World::new();
    let long = |n: usize| format!("{n:0>120}");
    for n in 0..2 * SETTLED_MAX {
        world.run(&long(n), &long(1), None, &[&long(n)]);
        world.start(&long(n), &long(2));
        world.must(&world::cancel(&long(n), Target::Run(long(n).parse().unwrap())));
        world.must(&world::end(&long(n), Outcome::Cancelled));
        world.now += 10;
    }
    let bytes = serde_json::to_string(&world.state).unwrap().len();
    assert!(bytes <= STATE_BYTES_MAX, "{bytes}");
    // The newest are still known.
    let last = world.state.as_ref().unwrap();
    assert!(last.runs.contains_key(long(2 * SETTLED_MAX - 1).as_str()));
    world.now += SETTLED_MEMORY_MS;
    world.must(&Request::Events);
    let state = world.state.unwrap();
    assert_eq!((state.runs.len(), state.controls.len()), (0, 0));
}

#[test]
fn a_session_that_is_full_still_ends_its_runs() {
    let mut world = World::new();
    let long = |n: usize| format!("{n:0>120}");
    let fat = |n: usize| {
        let mut put = world::put(&long(n), Some(&long(1)));
        if let Request::Put(put) = &mut put {
            put.params = json!({"p": "x".repeat(1_500)}).as_object().cloned();
        }
        put
    };
    let mut n = 0;
    while world.apply(&fat(n)).is_ok() {
        n += 1;
    }
    assert!(n > 20, "{n}");
    // Fill what is left, then run, cancel and end everything.
    while world.apply(&world::put(&long(1_000 + n), Some("a"))).is_ok() {
        n += 1;
    }
    let runs: Vec<String> = world.state.as_ref().unwrap().runs.keys().map(ToString::to_string).collect();
    let parent = &runs[0];
    world.start(parent, &long(3));
    world.must(&world::cancel(&long(0), Target::Run(parent.parse().unwrap())));
    for run in &runs {
        if world.apply(&world::claim(run, &long(4))).is_ok() || run == parent {
            world.must(&world::end(run, Outcome::Completed));
        }
    }
    world.must(&Request::Close { reason: None });
    assert_eq!(world.state.unwrap().open_runs().count(), 0);
}
