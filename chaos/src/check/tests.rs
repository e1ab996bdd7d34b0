//! The checker against made-up histories: it says nothing about those that are right, and names what is wrong with the others.

use super::*;
use crate::history::{Place, What};
use crate::log::digest;
use proptest::prelude::*;
use serde_json::{Value, json};

const EPOCH: u64 = 5;

/// One entry of a made-up log, and the run whose worker wrote it.
type Entry = (Option<&'static str>, Value);

/// A log of such entries, a record each, in one epoch unless others begin within it.
fn log_with(entries: &[Entry], epochs: &[(u64, u64)]) -> Log {
    let known: Vec<Value> =
        epochs.iter().map(|(epoch, since)| json!({ "epoch": epoch.to_string(), "since": since })).collect();
    let head = json!({ "session": "s", "meta": {}, "seq": entries.len(), "epochs": known, "floor": 1 });
    let mut lines = vec![head.to_string()];
    for ((by_run, entry), seq) in entries.iter().zip(1_u64..) {
        let (epoch, since) = epochs.iter().rev().find(|(_, since)| *since <= seq).unwrap();
        let mut block = json!({ "by": { "kind": "user", "id": "ann" }, "at": seq, "entries": [entry] });
        if let Some(run) = by_run {
            block["run"] = json!(run);
        }
        let record =
            json!({ "epoch": epoch.to_string(), "since": since, "from": seq, "to": seq, "blocks": [block] });
        lines.push(record.to_string());
    }
    Log::parse(&lines.join("\n")).unwrap()
}

fn log(entries: &[Entry]) -> Log {
    log_with(entries, &[(EPOCH, 1)])
}

/// A run that is asked for, is done, and has a control on its way.
fn story() -> Vec<Entry> {
    let mut all = vec![
        (None, json!({ "type": "session.opened", "meta": {} })),
        (
            None,
            json!({ "type": "message.put", "message": "q1", "role": "user", "parts": [{ "kind": "text", "value": "write 3 1 1" }] }),
        ),
        (None, json!({ "type": "run.requested", "run": "r1", "agent": "writer", "input": ["q1"] })),
        (None, json!({ "type": "run.started", "run": "r1", "worker": "w1", "attempt": 1 })),
        (Some("r1"), json!({ "type": "message.start", "message": "m1", "role": "assistant" })),
        (Some("r1"), json!({ "type": "part.start", "message": "m1", "part": "p1", "kind": "text" })),
    ];
    for number in 0..3 {
        let text = format!("1.7:{number} ");
        let entry = json!({ "type": "part.append", "message": "m1", "part": "p1", "offset": number * 6, "text": text });
        all.push((Some("r1"), entry));
    }
    all.extend([
        (None, json!({ "type": "control.requested", "control": "c1", "kind": "pause", "target": { "run": "r1" }, "expires": 9 })),
        (None, json!({ "type": "control.settled", "control": "c1", "outcome": "applied", "run": "r1" })),
        (Some("r1"), json!({ "type": "message.end", "message": "m1", "status": "complete" })),
        (None, json!({ "type": "run.ended", "run": "r1", "outcome": "completed" })),
        (None, json!({ "type": "x-mark", "mark": "k1" })),
    ]);
    all
}

fn event(who: &str, what: What) -> Event {
    Event { at: 0, who: who.to_owned(), what }
}

fn attached(from: Option<u64>) -> Event {
    let from = from.map(|seq| Place { epoch: EPOCH, seq });
    event("c", What::Attached { session: "s".into(), from, recent: false, resumed: true, epoch: EPOCH })
}

fn frames(epoch: u64, since: u64, from: u64, to: u64) -> Event {
    event("c", What::Frames { session: "s".into(), epoch, since, from, to, count: 1, first: 0 })
}

fn holds(log: &Log, epoch: u64) -> Event {
    let held = log.view.messages();
    let place = Place { epoch, seq: log.head };
    let (messages, digest) = (held.len(), digest(held));
    event("c", What::Holds { session: "s".into(), place, messages, whole: true, digest })
}

fn put(id: &str, name: &str, text: &str, acked: Option<u64>) -> Vec<Event> {
    let (session, id) = ("s".to_owned(), id.to_owned());
    let mut events = vec![event(
        "asker",
        What::Put { session: session.clone(), id: id.clone(), name: name.into(), text: text.into() },
    )];
    let place = acked.map(|seq| Place { epoch: EPOCH, seq });
    events.extend(place.map(|place| {
        event("asker", What::PutAcked { session, id, place, run: None, level: Level::Accepted })
    }));
    events
}

fn rules(events: &[Event], log: &Log) -> Vec<Rule> {
    let logs = BTreeMap::from([("s".to_owned(), vec![log.clone()])]);
    check(events, &logs, Promise::Kept).by_rule().into_keys().collect()
}

/// A story of which one entry is otherwise; `None` leaves it out.
fn changed(at: usize, to: Option<Entry>) -> Log {
    let mut entries = story();
    match to {
        Some(entry) => entries[at] = entry,
        None => drop(entries.remove(at)),
    }
    log(&entries)
}

fn with_more(more: Entry) -> Log {
    let mut entries = story();
    entries.push(more);
    log(&entries)
}

#[test]
fn a_story_in_which_all_is_right_has_no_violation() {
    let log = log(&story());
    let mut events = vec![attached(None), frames(EPOCH, 1, 1, 14), holds(&log, EPOCH)];
    events.extend(put("in-1", "q1", "write 3 1 1", Some(3)));
    events.extend(put("k1", "k1", "", Some(14)));
    let (session, run) = ("s".to_owned(), "r1".to_owned());
    events.push(event(
        "w",
        What::Confirmed {
            session: session.clone(),
            run,
            attempt: 1,
            execution: 7,
            tokens: 3,
            level: Level::Accepted,
        },
    ));
    let (control, outcome) = ("c1".to_owned(), Some("applied".to_owned()));
    events.push(event(
        "b",
        What::Receipt { session, control, stage: "settled".into(), outcome, level: Level::Accepted },
    ));
    assert_eq!(rules(&events, &log), []);
}

#[test]
fn who_is_never_answered_never_attached_or_told_of_a_nodes_own_fault_is_found() {
    let log = log(&story());
    assert_eq!(rules(&put("in-2", "never answered", "", None), &log), [Rule::Unanswered]);
    let mut refused = put("k1", "k1", "", None);
    refused.push(event("asker", What::Refused { id: "k1".into(), why: "no".into() }));
    assert_eq!(rules(&refused, &log), [Rule::Unanswered]);
    assert_eq!(rules(&[event("c", What::Follows { session: "s".into() })], &log), [Rule::NotArrived]);
    let internal = What::Internal { path: "/v1/sessions/s".into(), why: "corrupt".into() };
    assert_eq!(rules(&[event("asker", internal)], &log), [Rule::Internal]);
}

#[test]
fn a_control_that_replicas_had_is_in_the_log_even_where_a_tail_may_be_lost() {
    let logs = BTreeMap::from([("s".to_owned(), vec![log_with(&story(), &[(EPOCH, 1), (6, 15)])])]);
    let receipt = |level| What::Receipt {
        session: "s".into(),
        control: "c9".into(),
        stage: "accepted".into(),
        outcome: None,
        level,
    };
    let found = |level| check(&[event("b", receipt(level))], &logs, Promise::MayLoseTail).by_rule();
    assert_eq!(found(Level::Accepted).len(), 0);
    assert_eq!(found(Level::Replicated).into_keys().collect::<Vec<_>>(), [Rule::Lost]);
}

#[test]
fn what_was_acknowledged_and_is_missing_elsewhere_or_doubled_is_found() {
    assert_eq!(rules(&put("k1", "k1", "", Some(13)), &changed(13, None)), [Rule::Lost]);
    assert_eq!(rules(&put("k1", "k1", "", Some(2)), &log(&story())), [Rule::Lost]);
    let twice = with_more((None, json!({ "type": "x-mark", "mark": "k1" })));
    assert_eq!(rules(&put("k1", "k1", "", Some(14)), &twice), [Rule::Doubled]);
    assert_eq!(rules(&put("in-1", "q1", "another text", Some(3)), &log(&story())), [Rule::Lost]);
    let confirmed = What::Confirmed {
        session: "s".into(),
        run: "r1".into(),
        attempt: 1,
        execution: 7,
        tokens: 4,
        level: Level::Accepted,
    };
    assert_eq!(rules(&[event("w", confirmed)], &log(&story())), [Rule::Lost]);
}

#[test]
fn what_was_acknowledged_on_a_tail_that_is_lost_may_be_gone_where_nothing_else_was_promised() {
    let entries = &story()[..13];
    let log = log_with(entries, &[(EPOCH, 1), (6, 12)]);
    let logs = BTreeMap::from([("s".to_owned(), vec![log])]);
    let lost = put("k1", "k1", "", Some(14));
    assert_eq!(check(&lost, &logs, Promise::MayLoseTail).violations, []);
    assert_eq!(check(&lost, &logs, Promise::Kept).violations.len(), 1);
    let kept = put("k1", "k1", "", Some(11));
    assert_eq!(check(&kept, &logs, Promise::MayLoseTail).violations.len(), 1, "that place is not lost");
}

fn acked(id: &str, epoch: u64, seq: u64, level: Level) -> Event {
    let place = Place { epoch, seq };
    event("asker", What::PutAcked { session: "s".into(), id: id.into(), place, run: None, level })
}

#[test]
fn what_was_acknowledged_as_replicated_may_never_be_gone_and_what_was_put_again_is_healed() {
    // A tail that began at 12 was lost.
    let lost = log_with(&story()[..13], &[(EPOCH, 1), (6, 12)]);
    let whole = log_with(&story(), &[(EPOCH, 1), (6, 12)]);
    let check = |events: &[Event], log: &Log| {
        check(events, &BTreeMap::from([("s".to_owned(), vec![log.clone()])]), Promise::MayLoseTail)
    };
    let asked = put("k1", "k1", "", None).remove(0);
    let replicated = [asked.clone(), acked("k1", EPOCH, 14, Level::Replicated)];
    assert_eq!(check(&replicated, &lost).by_rule().into_keys().collect::<Vec<_>>(), [Rule::Lost]);
    let accepted = [asked.clone(), acked("k1", EPOCH, 14, Level::Accepted)];
    let verdict = check(&accepted, &lost);
    assert_eq!((verdict.violations.len(), verdict.levels[&Level::Accepted].gone), (0, 1));
    let healed =
        [asked.clone(), acked("k1", EPOCH, 13, Level::Accepted), acked("k1", 6, 14, Level::Accepted)];
    let verdict = check(&healed, &whole);
    assert_eq!((verdict.violations.len(), verdict.levels[&Level::Accepted].healed), (0, 1));
    // That it is there again is no excuse where more was promised.
    let again =
        [asked.clone(), acked("k1", EPOCH, 13, Level::Replicated), acked("k1", 6, 14, Level::Replicated)];
    assert_eq!(check(&again, &whole).by_rule().into_keys().collect::<Vec<_>>(), [Rule::Lost]);
    // Whoever was told by the new log that it is there relies on it.
    let again = [asked, acked("k1", EPOCH, 14, Level::Accepted), acked("k1", 6, 13, Level::Accepted)];
    assert_eq!(check(&again, &lost).by_rule().into_keys().collect::<Vec<_>>(), [Rule::Lost]);
}

#[test]
fn tokens_that_were_confirmed_may_be_gone_only_with_a_tail_and_an_attempt_that_was_taken_from_its_worker() {
    let confirmed = |execution, level| {
        let (session, run) = ("s".to_owned(), "r1".to_owned());
        event("w", What::Confirmed { session, run, attempt: 1, execution, tokens: 4, level })
    };
    let check = |event: Event, log: &Log| {
        check(&[event], &BTreeMap::from([("s".to_owned(), vec![log.clone()])]), Promise::MayLoseTail)
    };
    let ended = |entry: Value, since| {
        let mut entries = story();
        entries[12] = (None, entry);
        log_with(&entries, &[(EPOCH, 1), (6, since)])
    };
    let lost = json!({ "type": "run.ended", "run": "r1", "outcome": "lost", "reason": "worker_lost" });
    let verdict = check(confirmed(7, Level::Accepted), &ended(lost.clone(), 13));
    let kept = &verdict.levels[&Level::Accepted];
    assert_eq!((verdict.violations.len(), kept.tokens_gone, kept.taken), (0, 1, 1));
    assert_eq!(check(confirmed(7, Level::Replicated), &ended(lost.clone(), 13)).violations.len(), 1);
    assert_eq!(
        check(confirmed(7, Level::Accepted), &ended(lost, 8)).violations.len(),
        1,
        "no tail behind it"
    );
    // Nobody took this run from its worker, which has ended it.
    let completed = story()[12].1.clone();
    assert_eq!(check(confirmed(7, Level::Accepted), &ended(completed.clone(), 13)).violations.len(), 1);
    // The attempt was begun a second time where the log had lost that it had been begun.
    assert_eq!(check(confirmed(8, Level::Accepted), &ended(completed, 8)).violations, []);
}

#[test]
fn tails_that_somebody_saw_and_the_log_has_lost_are_counted() {
    let log = log_with(&story(), &[(EPOCH, 1), (8, 9)]);
    // Five entries of the first incarnation, and all seven of one that was lost with its primary.
    let events = [frames(EPOCH, 1, 1, 13), frames(7, 12, 12, 18), frames(8, 9, 9, 14)];
    let mut verdict = Verdict::default();
    tails::count(&events, &BTreeMap::from([("s", &log)]), &mut verdict);
    assert_eq!(verdict.tails, Tails { count: 2, entries: 12, longest: 7 });
}

#[test]
fn a_primary_that_is_cut_off_may_reset_whoever_comes_from_the_new_one_and_nobody_else_may() {
    let log = log_with(&story(), &[(EPOCH, 1), (6, 9)]);
    let reset = event("c", What::Reset { session: "s".into(), reason: "epoch".into() });
    let snapshot = |epoch, seq| event("c", What::Snapshot { session: "s".into(), epoch, seq, floor: 1 });
    let logs = BTreeMap::from([("s".to_owned(), vec![log.clone()])]);
    let stands = [attached(None), frames(EPOCH, 1, 1, 8), frames(6, 9, 9, 12), reset.clone()];
    let mut stale = stands.to_vec();
    // And once more where that ends.
    stale.extend([snapshot(EPOCH, 11), reset, snapshot(6, 14), holds(&log, 6)]);
    assert_eq!(check(&stale, &logs, Promise::MayLoseTail).violations, []);
    // By the time of the snapshot its node has found the new primary.
    let place = Some(Place { epoch: 6, seq: 12 });
    let again =
        What::Attached { session: "s".into(), from: place, recent: false, resumed: false, epoch: EPOCH };
    let mut late = stands[..3].to_vec();
    late.extend([event("c", again), stands[3].clone(), snapshot(6, 14), holds(&log, 6)]);
    assert_eq!(check(&late, &logs, Promise::MayLoseTail).violations, []);
    let mut needless = stands.to_vec();
    needless.extend([snapshot(6, 14), holds(&log, 6)]);
    let found = check(&needless, &logs, Promise::MayLoseTail).by_rule().into_keys().collect::<Vec<_>>();
    assert_eq!(found, [Rule::NeedlessReset]);
}

#[test]
fn runs_controls_and_approvals_without_exactly_one_outcome_are_found() {
    assert_eq!(rules(&[], &changed(12, None)), [Rule::RunOutcome]);
    assert_eq!(
        rules(&[], &with_more((None, json!({ "type": "run.ended", "run": "r1", "outcome": "lost" })))),
        [Rule::RunOutcome]
    );
    assert_eq!(rules(&[], &changed(10, None)), [Rule::ControlOutcome]);
    let again = json!({ "type": "control.settled", "control": "c1", "outcome": "expired" });
    assert_eq!(rules(&[], &with_more((None, again))), [Rule::ControlOutcome]);
    let told = What::Receipt {
        session: "s".into(),
        control: "c1".into(),
        stage: "settled".into(),
        outcome: Some("refused".into()),
        level: Level::Accepted,
    };
    assert_eq!(rules(&[event("b", told)], &log(&story())), [Rule::ControlOutcome]);
    let settled = |verdict: &str| {
        (None, json!({ "type": "approval.settled", "run": "r1", "approval": "pay", "verdict": verdict }))
    };
    let mut entries = story();
    entries.splice(11..11, [settled("approved"), settled("denied")]);
    assert_eq!(rules(&[], &log(&entries)), [Rule::ApprovalOutcome]);
}

#[test]
fn whoever_writes_without_the_fence_is_found() {
    let late = |message: &str| {
        (Some("r1"), json!({ "type": "message.start", "message": message, "role": "assistant" }))
    };
    assert_eq!(rules(&[], &with_more(late("m2"))), [Rule::StaleFence], "after its end");
    let mut entries = story();
    let returned = json!({ "type": "run.returned", "run": "r1", "reason": "worker_lost" });
    entries.splice(9..9, [(None, returned)]);
    assert_eq!(rules(&[], &log(&entries)), [Rule::StaleFence], "nobody holds it");
    let again = json!({ "type": "run.started", "run": "r1", "worker": "w2", "attempt": 2 });
    entries.splice(10..10, [(None, again)]);
    assert_eq!(rules(&[], &log(&entries)), [Rule::StaleFence], "the first attempt ends a message of its own");
}

#[test]
fn tokens_that_are_torn_or_doubled_are_found() {
    let append_at = |offset: u64, text: &str| {
        let entry =
            json!({ "type": "part.append", "message": "m1", "part": "p1", "offset": offset, "text": text });
        (Some("r1"), entry)
    };
    let append = |text: &str| append_at(6, text);
    assert_eq!(rules(&[], &changed(7, Some(append("1.7:2 ")))), [Rule::Torn]);
    assert_eq!(rules(&[], &changed(7, Some(append("1.7:0 ")))), [Rule::Torn]);
    assert_eq!(rules(&[], &changed(7, Some(append("rest. ")))), [Rule::Torn]);
    let twice = rules(&[], &changed(8, Some(append_at(12, "1.8:0 "))));
    assert_eq!(twice, [Rule::StaleFence], "two that held the same attempt");
}

#[test]
fn a_client_that_goes_on_in_a_new_epoch_on_what_the_log_has_lost_is_found_and_one_that_is_reset_is_not() {
    let log = log_with(&story(), &[(EPOCH, 1), (6, 9)]);
    let stands = [attached(None), frames(EPOCH, 1, 1, 10)];
    let mut wrong = stands.to_vec();
    wrong.extend([frames(6, 9, 11, 14), holds(&log, 6)]);
    // What does not follow is not taken, so it does not get to the end either.
    assert_eq!(rules(&wrong, &log), [Rule::MissingReset, Rule::NotArrived]);
    let mut right = stands.to_vec();
    let reset = What::Reset { session: "s".into(), reason: "epoch".into() };
    let snapshot = What::Snapshot { session: "s".into(), epoch: 6, seq: 12, floor: 1 };
    right.extend([event("c", reset), event("c", snapshot), frames(6, 9, 13, 14), holds(&log, 6)]);
    assert_eq!(rules(&right, &log), []);
    let before = [attached(None), frames(EPOCH, 1, 1, 8), frames(6, 9, 9, 14), holds(&log, 6)];
    assert_eq!(rules(&before, &log), [], "it held nothing that was lost");
}

#[test]
fn nodes_that_tell_different_logs_are_found() {
    let logs = BTreeMap::from([("s".to_owned(), vec![log(&story()), changed(13, None)])]);
    let verdict = check(&[], &logs, Promise::Kept);
    assert_eq!(verdict.by_rule().into_keys().collect::<Vec<_>>(), [Rule::NodesDiffer]);
}

/// What can be done to a history.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    Dropped,
    Doubled,
    Swapped,
    Reset,
    Otherwise,
    Silent,
}

proptest! {
    #[test]
    fn frames_that_follow_each_other_are_right_however_they_are_cut_and_connections_too(
        cuts in proptest::collection::vec((1_u64..5, any::<bool>()), 1..14),
    ) {
        let log = log(&story());
        prop_assert_eq!(rules(&history(&log, &cuts), &log), []);
    }

    #[test]
    fn whatever_is_done_to_a_history_that_is_right_is_found(
        cuts in proptest::collection::vec((1_u64..5, any::<bool>()), 4..14),
        at in any::<prop::sample::Index>(),
        wrong in prop::sample::select(vec![
            Wrong::Dropped, Wrong::Doubled, Wrong::Swapped, Wrong::Reset, Wrong::Otherwise, Wrong::Silent,
        ]),
    ) {
        let log = log(&story());
        let mut events = history(&log, &cuts);
        let is_frames = |event: &Event| matches!(event.what, What::Frames { .. });
        let places: Vec<usize> = (0..events.len()).filter(|at| is_frames(&events[*at])).collect();
        let place = places[at.index(places.len())];
        let expected: &[Rule] = match wrong {
            Wrong::Dropped => {
                events.remove(place);
                &[Rule::Gap, Rule::NotArrived]
            }
            Wrong::Doubled => {
                events.insert(place, events[place].clone());
                &[Rule::Repeated]
            }
            Wrong::Swapped => {
                // Of one connection: the next would say where it begins.
                prop_assume!(events.get(place + 1).is_some_and(is_frames));
                events.swap(place, place + 1);
                &[Rule::Gap]
            }
            Wrong::Reset => {
                events.insert(place + 1, event("c", What::Reset { session: "s".into(), reason: "epoch".into() }));
                &[Rule::NeedlessReset]
            }
            Wrong::Otherwise => {
                if let Some(Event { what: What::Holds { digest, .. }, .. }) = events.last_mut() {
                    *digest ^= 1;
                }
                &[Rule::Differs]
            }
            Wrong::Silent => {
                events.pop();
                &[Rule::NotArrived]
            }
        };
        let found = rules(&events, &log);
        prop_assert!(expected.iter().any(|rule| found.contains(rule)), "{:?}: {:?}", wrong, found);
    }
}

/// A client's history: frames of such lengths to the end of the log; where told, on a connection of their own.
fn history(log: &Log, cuts: &[(u64, bool)]) -> Vec<Event> {
    let (mut events, mut at) = (vec![attached(None)], 0);
    for (len, is_reconnect) in cuts.iter().cycle() {
        if at == log.head {
            break;
        }
        let to = (at + len).min(log.head);
        if *is_reconnect && at > 0 {
            events.push(event("c", What::Left { why: "cut".into() }));
            events.push(attached(Some(at)));
        }
        events.push(frames(EPOCH, 1, at + 1, to));
        at = to;
    }
    events.push(holds(log, EPOCH));
    events
}
