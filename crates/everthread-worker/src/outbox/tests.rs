//! The outbox against a model of the server that loses replies, connections and its own tail.

use super::*;
use everthread_protocol::entry::{Outcome, PartKind, PutPart, RunError};
use everthread_protocol::worker_frame::{End, NewApproval, WorkerFrame};
use everthread_protocol::{Fault, scan};
use proptest::prelude::*;

fn outbox() -> Outbox {
    let name = Name { local: 7, run: "r".parse().unwrap(), fence: Fence(9), incarnation: 2, ack: None };
    Outbox::new(name, BLOCK_BYTES_MAX)
}

fn later(ms: u64) -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_millis(ms)
}

fn entries(frame: &str) -> Vec<Entry> {
    match WorkerFrame::decode(frame.as_bytes()).unwrap() {
        WorkerFrame::Append(append) => {
            let raw = scan::entries(append.entries.get().as_bytes()).unwrap();
            raw.items.iter().map(|item| Entry::read(item.text)).collect()
        }
        WorkerFrame::End(_)
        | WorkerFrame::StartChild(_)
        | WorkerFrame::Settle(_)
        | WorkerFrame::Suspend(_) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

fn batch(frame: &str) -> u64 {
    match WorkerFrame::decode(frame.as_bytes()).unwrap() {
        WorkerFrame::Append(append) => append.producer.batch,
        WorkerFrame::End(end) => end.producer.batch,
        WorkerFrame::StartChild(child) => child.producer.batch,
        WorkerFrame::Settle(settle) => settle.producer.batch,
        WorkerFrame::Suspend(suspend) => suspend.producer.batch,
        other => panic!("{other:?}"),
    }
}

fn end(outcome: Outcome) -> Request {
    Request::End { outcome, error: None, usage: None }
}

fn child(id: &str) -> Request {
    Request::StartChild {
        child: id.parse().unwrap(),
        agent: "a".parse().unwrap(),
        parts: Vec::new(),
        params: None,
    }
}

fn suspend(id: &str) -> Request {
    let (approval, reason) = (id.parse().unwrap(), "?".to_owned());
    let (schema, digest, expires_ms, who, data) = (None, None, None, None, None);
    Request::Suspend {
        approvals: vec![NewApproval { approval, reason, schema, digest, expires_ms, who, data }],
    }
}

#[test]
fn the_first_write_goes_at_once_and_those_behind_it_are_gathered_into_one_entry() {
    let mut outbox = outbox();
    outbox.append("m1", "p1", 0, "He").unwrap();
    let first = outbox.next_frame(later(0)).unwrap();
    for (offset, text) in [(2, "l"), (3, "lo \"wörld\""), (14, "\n\u{1}")] {
        outbox.append("m1", "p1", offset, text).unwrap();
    }
    assert_eq!(outbox.next_frame(later(0)), None, "one write is under way");
    assert_eq!(outbox.written(1, 1, later(1)), []);
    let second = outbox.next_frame(later(1)).unwrap();
    assert_eq!((batch(&first), batch(&second)), (1, 2));
    let text = "llo \"wörld\"\n\u{1}".to_owned();
    let (message, part) = ("m1".parse().unwrap(), "p1".parse().unwrap());
    assert_eq!(entries(&second), [Entry::PartAppend { message, part, offset: 2, text }]);
}

#[test]
fn a_batch_keeps_within_the_limits_of_a_block() {
    let mut outbox = outbox();
    for n in 0..3000u64 {
        outbox.append("m1", if n % 2 == 0 { "p1" } else { "p2" }, n / 2, "x").unwrap();
    }
    let big = "\u{1}".repeat(32 * 1024);
    for n in 0..4u64 {
        outbox.append("m1", "p3", n * 32 * 1024, &big).unwrap();
    }
    let mut seen = 0;
    let mut number = 0;
    while let Some(frame) = outbox.next_frame(later(0)) {
        number += 1;
        seen += entries(&frame).len();
        assert!(frame.len() <= BLOCK_BYTES_MAX + 512);
        outbox.written(number, number, later(0));
    }
    assert!((3002..=3004).contains(&seen), "{seen}");
    assert!(outbox.is_settled());
}

#[test]
fn a_full_buffer_has_no_room_until_what_was_sent_is_safe() {
    let mut outbox = outbox();
    let text = "x".repeat(32 * 1024);
    let mut offset = 0;
    while outbox.has_room() {
        outbox.append("m1", "p1", offset, &text).unwrap();
        offset += text.len() as u64;
    }
    let mut number = 0;
    while outbox.next_frame(later(0)).is_some() {
        number += 1;
        outbox.written(number, 0, later(0));
    }
    assert!(!outbox.has_room(), "written, but the server may still lose it");
    outbox.forget_old(later(29_999));
    assert!(!outbox.has_room());
    outbox.forget_old(later(30_000));
    assert!(outbox.has_room());
}

#[test]
fn what_is_called_safe_later_is_forgotten_but_not_what_is_on_its_way_again() {
    let mut outbox = outbox();
    for n in 1..=3 {
        outbox.raw_entry(&format!(r#"{{"type":"x-a","n":{n}}}"#)).unwrap();
        assert_eq!(batch(&outbox.next_frame(later(0)).unwrap()), n);
        outbox.written(n, 0, later(0));
    }
    outbox.safe(2);
    assert_eq!((outbox.first(), outbox.kept.len()), (3, 1));
    outbox.raw_entry(r#"{"type":"x-a","n":4}"#).unwrap();
    outbox.next_frame(later(0)).unwrap();
    // The log has lost what was never called safe.
    outbox.refused(4, &Fault { expected: Some(3), ..Fault::new(Code::Gap, "3") }.into(), later(0));
    assert_eq!(batch(&outbox.next_frame(later(0)).unwrap()), 3);
    outbox.safe(4);
    assert_eq!(outbox.first(), 3, "it is not there yet");
    outbox.written(3, 0, later(0));
    outbox.safe(3);
    assert_eq!(outbox.first(), 4);
}

#[test]
fn a_level_is_named_in_every_append_and_nowhere_else() {
    let mut outbox = outbox();
    outbox.name.ack = Some(Level::Replicated);
    outbox.raw_entry(r#"{"type":"x-a"}"#).unwrap();
    let frame = outbox.next_frame(later(0)).unwrap();
    let WorkerFrame::Append(append) = WorkerFrame::decode(frame.as_bytes()).unwrap() else {
        panic!("{frame:?}")
    };
    assert_eq!(append.ack, Some(Level::Replicated));
    outbox.written(1, 1, later(0));
    outbox.end(end(Outcome::Completed));
    let frame = outbox.next_frame(later(0)).unwrap();
    assert!(!frame.as_str().contains("ack"), "{frame:?}");
}

#[test]
fn a_log_that_lost_more_than_is_kept_ends_the_run_as_failed() {
    let mut outbox = outbox();
    for n in 0..3 {
        outbox.append("m1", "p1", n, "x").unwrap();
        outbox.next_frame(later(0)).unwrap();
        outbox.written(n + 1, n + 1, later(0));
    }
    outbox.append("m1", "p1", 3, "x").unwrap();
    outbox.next_frame(later(0)).unwrap();
    let gap = Fault { expected: Some(2), ..Fault::new(Code::Gap, "") };
    let events = outbox.refused(4, &gap.into(), later(0));
    assert!(matches!(&events[..], [Event::Broken(Error::LostTail(_))]), "{events:?}");
    assert!(matches!(outbox.append("m1", "p1", 4, "x"), Err(Error::LostTail(_))));
    let frame = outbox.next_frame(later(0)).unwrap();
    assert!(frame.contains("lost_tail") && batch(&frame) == 2, "{frame}");
    assert_eq!(outbox.written(2, 2, later(0)), [Event::Over]);
}

#[test]
fn a_refused_child_leaves_its_number_to_the_next_write() {
    let mut outbox = outbox();
    outbox.request(child("c1")).unwrap();
    outbox.next_frame(later(0)).unwrap();
    outbox.append("m1", "p1", 0, "x").unwrap();
    let limit = Fault::new(Code::LimitReached, "64 open runs").into();
    let events = outbox.refused(1, &limit, later(0));
    assert!(matches!(&events[..], [Event::ChildRefused(id, Error::Refused { .. })] if id.as_str() == "c1"));
    assert_eq!(batch(&outbox.next_frame(later(0)).unwrap()), 1);
}

#[test]
fn a_refused_write_fails_the_run_and_says_why() {
    let mut outbox = outbox();
    outbox.raw_entry(r#"{"type":"nope"}"#).unwrap();
    outbox.next_frame(later(0)).unwrap();
    outbox.end(end(Outcome::Completed));
    outbox.refused(1, &Fault::new(Code::EntryNotAllowed, "unknown type").into(), later(0));
    let frame = outbox.next_frame(later(0)).unwrap();
    assert!(frame.contains("entry_not_allowed") && frame.contains("failed") && batch(&frame) == 1, "{frame}");
}

#[test]
fn a_fenced_run_sends_nothing_and_takes_nothing() {
    let mut outbox = outbox();
    outbox.append("m1", "p1", 0, "x").unwrap();
    outbox.fence();
    outbox.end(end(Outcome::Completed));
    assert_eq!(outbox.next_frame(later(0)), None);
    assert_eq!(outbox.append("m1", "p1", 1, "x"), Err(Error::Fenced));
}

#[test]
fn an_outcome_stands_among_the_writes_and_is_sent_again_unchanged() {
    let mut outbox = outbox();
    outbox.append("m1", "p1", 0, "a").unwrap();
    outbox.settle("c1".parse().unwrap(), None).unwrap();
    outbox.append("m1", "p1", 1, "b").unwrap();
    outbox.next_frame(later(0)).unwrap();
    outbox.written(1, 0, later(0));
    let settle = outbox.next_frame(later(0)).unwrap();
    assert!(settle.contains(r#""batch":2},"control":"c1","outcome":"applied"}"#), "{settle}");
    outbox.disconnected();
    assert_eq!(outbox.next_frame(later(1)).unwrap(), settle);
    outbox.written(2, 0, later(1));
    assert_eq!(batch(&outbox.next_frame(later(1)).unwrap()), 3);
}

#[test]
fn an_outcome_that_comes_too_late_leaves_its_number_to_the_next_write() {
    let mut outbox = outbox();
    let refusal = Some(RefusalReason::NotSupported);
    outbox.settle("c1".parse().unwrap(), refusal).unwrap();
    let settle = outbox.next_frame(later(0)).unwrap();
    assert!(settle.contains(r#""outcome":"refused","reason":"not_supported"}"#), "{settle}");
    outbox.append("m1", "p1", 0, "x").unwrap();
    let events = outbox.refused(1, &Fault::new(Code::NotFound, "settled before").into(), later(0));
    assert_eq!(events, [Event::SettleRefused("c1".parse().unwrap())]);
    assert_eq!(batch(&outbox.next_frame(later(0)).unwrap()), 1);
}

#[test]
fn an_outcome_that_is_refused_when_it_is_sent_again_leaves_its_number_to_those_after_it() {
    let mut outbox = outbox();
    outbox.settle("c1".parse().unwrap(), None).unwrap();
    outbox.next_frame(later(0)).unwrap();
    outbox.written(1, 0, later(0));
    for (n, text) in (2..).zip(["x", "y"]) {
        outbox.append("m1", "p1", n - 2, text).unwrap();
        outbox.next_frame(later(0)).unwrap();
        outbox.written(n, 0, later(0));
    }
    outbox.request(child("k1")).unwrap();
    outbox.next_frame(later(0)).unwrap();
    // The log has lost all of it, and by now the control has another outcome.
    let gap = Fault { expected: Some(1), ..Fault::new(Code::Gap, "") };
    outbox.refused(4, &gap.into(), later(0));
    assert!(outbox.next_frame(later(0)).unwrap().contains("settle"));
    let events = outbox.refused(1, &Fault::new(Code::IdConflict, "it is expired").into(), later(0));
    assert_eq!(events, [Event::SettleRefused("c1".parse().unwrap())]);
    for (number, text) in [(1, r#""text":"x""#), (2, r#""text":"y""#), (3, r#""child":"k1""#)] {
        let frame = outbox.next_frame(later(0)).unwrap();
        assert!(frame.contains(text) && frame.contains(&format!(r#""id":"7-{number}""#)), "{frame}");
        assert_eq!(batch(&frame), number);
        outbox.written(number, number, later(0));
    }
    outbox.end(end(Outcome::Completed));
    let frame = outbox.next_frame(later(0)).unwrap();
    assert!(frame.contains("completed") && batch(&frame) == 4, "{frame}");
}

fn ended(frame: &str) -> End {
    let WorkerFrame::End(end) = WorkerFrame::decode(frame.as_bytes()).unwrap() else { panic!("{frame}") };
    end
}

#[test]
fn an_end_says_no_more_than_the_server_takes() {
    let (code, message) = ("c".repeat(1000), "ö".repeat(150_000));
    let deep = (0..200).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
    let wide: Vec<u32> = (0..100_000).collect();
    for (usage, is_kept) in [(deep, false), (wide.into(), false), (serde_json::json!({ "n": 1 }), true)] {
        let mut outbox = outbox();
        let error = Some(RunError { code: code.clone(), message: message.clone() });
        let usage = serde_json::json!({ "tokens": usage }).as_object().cloned();
        outbox.end(Request::End { outcome: Outcome::Failed, error, usage });
        let frame = outbox.next_frame(later(0)).unwrap();
        assert!(frame.len() < 16 * 1024, "{}", frame.len());
        let End { error, usage, .. } = ended(&frame);
        let error = error.unwrap();
        assert!(error.message.starts_with("öö") && error.message.ends_with("ö…"));
        assert!(error.code.starts_with("ccc") && error.code.len() < 200);
        assert_eq!(usage.is_some(), is_kept);
    }
}

#[test]
fn an_end_that_is_refused_is_said_once_more_in_few_words_under_the_same_number() {
    let mut outbox = outbox();
    outbox.append("m1", "p1", 0, "x").unwrap();
    outbox.next_frame(later(0)).unwrap();
    outbox.written(1, 1, later(0));
    outbox.end(end(Outcome::Completed));
    outbox.next_frame(later(0)).unwrap();
    let refused = Fault::new(Code::BadRequest, "x".repeat(400_000)).into();
    let events = outbox.refused(2, &refused, later(0));
    assert!(matches!(&events[..], [Event::EndRefused(_)]) && !outbox.is_over(), "{events:?}");
    let frame = outbox.next_frame(later(0)).unwrap();
    assert!(frame.len() < 1024, "{}", frame.len());
    let End { outcome, error, producer, .. } = ended(&frame);
    assert_eq!((outcome, producer.batch, error.unwrap().code.as_str()), (Outcome::Failed, 2, "bad_request"));
    assert_eq!(outbox.refused(2, &refused, later(0)), [Event::Over]);
    assert_eq!(outbox.next_frame(later(0)), None);
}

/// As many characters as an id may have.
fn long_id() -> String {
    "i".repeat(128)
}

#[test]
fn no_write_becomes_a_frame_that_closes_the_connection() {
    let name = Name {
        local: u64::MAX,
        run: long_id().parse().unwrap(),
        fence: Fence(u64::MAX),
        incarnation: u64::MAX,
        ack: None,
    };
    let mut outbox = Outbox::new(name, usize::MAX);
    let part = |bytes: usize| PutPart { kind: PartKind::Text, value: "x".repeat(bytes).into(), attrs: None };
    let child = |bytes: usize| Request::StartChild {
        child: long_id().parse().unwrap(),
        agent: long_id().parse().unwrap(),
        parts: vec![part(bytes)],
        params: None,
    };
    let largest = (0..BLOCK_BYTES_MAX).rev().find(|bytes| child(*bytes).bytes() <= BLOCK_BYTES_MAX).unwrap();
    assert!(matches!(outbox.request(child(largest + 1)), Err(Error::TooLarge { .. })));
    outbox.request(child(largest)).unwrap();
    outbox.raw_entry(&format!("\"{}\"", "x".repeat(BLOCK_BYTES_MAX - 10))).unwrap();
    assert!(outbox.raw_entry(&"x".repeat(BLOCK_BYTES_MAX)).is_err());
    outbox.end(Request::failed("c", &"\u{1}".repeat(BLOCK_BYTES_MAX)));
    for number in 1..=3 {
        let frame = outbox.next_frame(later(0)).unwrap();
        assert!(frame.len() <= FRAME_BYTES_MAX, "{}", frame.len());
        outbox.written(number, number, later(0));
    }
    assert!(outbox.is_over());
}

#[test]
fn a_frame_that_is_too_large_all_the_same_is_the_failure_of_its_run() {
    let mut outbox = outbox();
    outbox.raw_entry_of_any_size(&format!("\"{}\"", "x".repeat(FRAME_BYTES_MAX)));
    outbox.next_frame(later(0)).unwrap();
    let events = outbox.too_large(later(0));
    assert!(
        matches!(&events[..], [Event::Broken(Error::Refused { code: Code::TooLarge, .. })]),
        "{events:?}"
    );
    let frame = outbox.next_frame(later(0)).unwrap();
    assert!(frame.len() < 1024 && frame.contains("too_large") && batch(&frame) == 1, "{frame}");
}

#[test]
fn a_run_that_waits_for_people_takes_and_sends_nothing_more() {
    let mut outbox = outbox();
    outbox.append("m1", "p1", 0, "x").unwrap();
    outbox.request(suspend("a1")).unwrap();
    assert!(!outbox.has_room(), "until the answer is there nobody writes");
    outbox.next_frame(later(0)).unwrap();
    outbox.written(1, 0, later(0));
    let asked = outbox.next_frame(later(0)).unwrap();
    outbox.disconnected();
    assert_eq!((outbox.next_frame(later(0)), batch(&asked)), (Some(asked.clone()), 2));
    assert_eq!(outbox.suspended(), None);
    assert_eq!(outbox.written(2, 0, later(0)), [Event::Suspended]);
    assert_eq!(outbox.suspended(), Some(Error::Suspended));
    assert_eq!(outbox.append("m1", "p1", 1, "x"), Err(Error::Suspended));
    outbox.end(end(Outcome::Completed));
    assert_eq!(outbox.next_frame(later(0)), None, "what the function returns counts for nothing");
}

#[test]
fn a_question_that_is_refused_is_said_and_the_run_goes_on() {
    let mut outbox = outbox();
    outbox.request(suspend("a1")).unwrap();
    outbox.next_frame(later(0)).unwrap();
    assert_eq!(outbox.refused(1, &Fault::new(Code::LimitReached, "32 approvals").into(), later(0)), []);
    let refused = outbox.suspended().unwrap();
    assert!(matches!(refused, Error::Refused { code: Code::LimitReached, .. }), "{refused:?}");
    outbox.append("m1", "p1", 0, "x").unwrap();
    assert_eq!(batch(&outbox.next_frame(later(0)).unwrap()), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8, String),
    Child,
    /// A control gets its outcome.
    Settle,
    /// The server takes the write and its answer arrives.
    Write,
    /// The server takes the write; the connection breaks before the answer.
    WriteAndBreak,
    /// The connection breaks before the server has the write.
    Break,
    /// As a write, but a control has another outcome by now.
    Late,
    /// The server asks to try again.
    Retry(bool),
    /// The server loses its last n writes that it never called safe.
    LoseTail(u64),
    /// What is written becomes safe.
    Safe,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u8, "[a-cäö\"\\\\\n]{1,6}").prop_map(|(part, text)| Step::Append(part, text)),
        1 => Just(Step::Child),
        1 => Just(Step::Settle),
        6 => Just(Step::Write),
        1 => Just(Step::WriteAndBreak),
        1 => Just(Step::Break),
        1 => Just(Step::Late),
        1 => any::<bool>().prop_map(Step::Retry),
        1 => (1..5u64).prop_map(Step::LoseTail),
        1 => Just(Step::Safe),
    ]
}

/// The server: the log of one producer.
#[derive(Default)]
struct Log {
    batches: Vec<String>,
    safe: u64,
}

impl Log {
    fn last(&self) -> u64 {
        self.batches.len() as u64
    }

    fn write(&mut self, frame: &str) -> Result<(), ErrorBody> {
        let number = batch(frame);
        let expected = self.last() + 1;
        if number > expected {
            return Err(Fault { expected: Some(expected), ..Fault::new(Code::Gap, "") }.into());
        }
        if number == expected {
            self.batches.push(frame.to_owned());
        } else if let Some(same) = self.batches.get(usize::try_from(number - 1).unwrap()) {
            assert_eq!(same, frame, "a repeat is the same write");
        }
        Ok(())
    }
}

struct Model {
    outbox: Outbox,
    log: Log,
    parts: [String; 3],
    now: u64,
    children: (u32, u32),
    /// Controls whose outcome is to stand in the log.
    settled: usize,
    controls: usize,
}

impl Model {
    fn exchange(&mut self, answer: impl FnOnce(&mut Log, &str) -> Option<Result<(), ErrorBody>>) -> bool {
        self.now += 5_000;
        let Some(frame) = self.outbox.next_frame(later(self.now)) else { return false };
        let events = match answer(&mut self.log, &frame) {
            Some(Ok(())) => self.outbox.written(self.log.last(), self.log.safe, later(self.now)),
            Some(Err(error)) => self.outbox.refused(batch(&frame), &error, later(self.now)),
            None => {
                self.outbox.disconnected();
                Vec::new()
            }
        };
        for event in events {
            match event {
                Event::ChildStarted(_) => self.children.1 += 1,
                Event::SettleRefused(_) => self.settled -= 1,
                event => assert_eq!(event, Event::Over),
            }
        }
        true
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(part, text) => {
                let id = format!("p{part}");
                let value = &mut self.parts[usize::from(part)];
                self.outbox.append("m1", &id, value.len() as u64, &text).unwrap();
                value.push_str(&text);
            }
            Step::Child => {
                self.children.0 += 1;
                self.outbox.request(child(&format!("c{}", self.children.0))).unwrap();
            }
            Step::Settle => {
                self.settled += 1;
                self.controls += 1;
                self.outbox.settle(format!("c{}", self.controls).parse().unwrap(), None).unwrap();
            }
            Step::Write => drop(self.exchange(|log, frame| Some(log.write(frame)))),
            Step::WriteAndBreak => drop(self.exchange(|log, frame| log.write(frame).ok().and(None))),
            Step::Break => drop(self.exchange(|_, _| None)),
            Step::Late => drop(self.exchange(|log, frame| {
                let is_new = batch(frame) == log.last() + 1;
                if is_new && frame.contains(r#""t":"settle""#) {
                    return Some(Err(Fault::new(Code::IdConflict, "").into()));
                }
                Some(log.write(frame))
            })),
            Step::Retry(is_written) => drop(self.exchange(|log, frame| {
                if is_written && log.write(frame).is_ok() {
                    return Some(Err(Fault::new(Code::Indeterminate, "").into()));
                }
                Some(Err(Fault::new(Code::Unavailable, "").into()))
            })),
            // Within the time for which what is not safe is kept.
            Step::LoseTail(n) => {
                let kept_from = self.outbox.first() - 1;
                let last =
                    self.log.last().saturating_sub(n).max(self.log.safe).max(kept_from.min(self.log.last()));
                self.log.batches.truncate(usize::try_from(last).unwrap());
            }
            Step::Safe => self.log.safe = self.log.last(),
        }
    }
}

proptest! {
    #[test]
    fn whatever_the_server_loses_or_repeats_the_log_holds_every_text_once_and_in_order(
        steps in prop::collection::vec(step(), 0..120)
    ) {
        let mut model = Model {
            outbox: outbox(),
            log: Log::default(),
            parts: Default::default(),
            now: 0,
            children: (0, 0),
            settled: 0,
            controls: 0,
        };
        for step in steps {
            model.step(step);
        }
        model.outbox.end(end(Outcome::Completed));
        for _ in 0..1000 {
            if !model.exchange(|log, frame| Some(log.write(frame))) {
                break;
            }
        }
        prop_assert!(model.outbox.is_over() && model.outbox.is_settled());
        let mut parts: [String; 3] = Default::default();
        for frame in &model.log.batches {
            for entry in entries(frame) {
                let Entry::PartAppend { part, offset, text, .. } = entry else { panic!("{entry:?}") };
                let value = &mut parts[usize::from(part.as_str().as_bytes()[1] - b'0')];
                prop_assert_eq!(value.len() as u64, offset);
                value.push_str(&text);
            }
        }
        prop_assert_eq!(parts, model.parts);
        prop_assert_eq!(model.children.0, model.children.1);
        let settled = model.log.batches.iter().filter(|frame| frame.contains(r#""t":"settle""#)).count();
        prop_assert_eq!(settled, model.settled);
    }
}
