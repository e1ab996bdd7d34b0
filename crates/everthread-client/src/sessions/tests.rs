//! What is sent when, without a socket.

use super::*;
use everthread_protocol::Code;
use serde_json::json;
use serde_json::value::to_raw_value;

struct Harness {
    sessions: Sessions,
    queue: mpsc::Receiver<Event>,
    overflowed: Arc<AtomicBool>,
}

/// A follower with room for three events, attached as number 1.
fn attached() -> Harness {
    let (queue, events) = mpsc::channel(3);
    let overflowed = Arc::<AtomicBool>::default();
    let mark = overflowed.clone();
    let (reply, _) = oneshot::channel();
    let mut sessions = Sessions::default();
    let session = "s".parse().unwrap();
    sessions.command(Command::Attach {
        key: 7,
        session,
        from: From::Start,
        presence: false,
        fold_ms: Some(40),
        queue,
        overflowed: mark,
        reply,
    });
    sessions.connected();
    assert!(sent(&mut sessions).contains(r#""from":"start","fold_ms":40"#));
    assert!(sessions.attached(&as_number(1)));
    Harness { sessions, queue: events, overflowed }
}

/// The answer to the attach of the follower 7.
fn as_number(number: u32) -> Attached {
    let answer = format!(
        r#"{{"id":"attach-7","attachment":{number},"session":"s","epoch":"5","head":9,"resumed":true}}"#
    );
    serde_json::from_str(&answer).unwrap()
}

fn sent(sessions: &mut Sessions) -> String {
    sessions.outgoing.drain(..).collect()
}

fn entries(sessions: &mut Sessions, number: u32, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        let head = format!(r#"{{"attachment":{number},"epoch":"5","since":1,"from":{seq},"to":{seq}}}"#);
        sessions.frame("entries", &serde_json::from_str(&head).unwrap(), head.as_str().into());
    }
}

fn seqs(queue: &mut mpsc::Receiver<Event>) -> Vec<u64> {
    let events = std::iter::from_fn(|| queue.try_recv().ok());
    events.filter_map(|e| if let Event::Entries(frame) = e { Some(frame.to.0) } else { None }).collect()
}

#[test]
fn a_full_follower_is_attached_again_from_the_last_entry_that_fitted() {
    let mut h = attached();
    entries(&mut h.sessions, 1, 1..=5);
    assert!(h.overflowed.load(Ordering::Acquire));
    assert!(sent(&mut h.sessions).contains("detach"));
    assert_eq!(seqs(&mut h.queue), [1, 2]);
    h.sessions.command(Command::Drained { key: 7 });
    assert!(sent(&mut h.sessions).contains(r#""from":"5.2""#));
    h.sessions.attached(&as_number(2));
    entries(&mut h.sessions, 2, 3..=4);
    assert_eq!(seqs(&mut h.queue), [3, 4]);
}

#[test]
fn a_deleted_session_ends_its_follower_and_everything_asked_of_it() {
    let no_session = |error: &Error| matches!(error, Error::Refused { code: Code::NoSession, .. });
    let mut h = attached();
    let (reply, mut answer) = oneshot::channel();
    let body = Body::History { id: "h1".parse().unwrap(), before: None, limit: 1 };
    h.sessions.command(Command::Request { key: 7, body, reply });
    sent(&mut h.sessions);
    h.sessions.gone(1);
    assert!(no_session(&answer.try_recv().unwrap().unwrap_err()));
    let events: Vec<Event> = std::iter::from_fn(|| h.queue.try_recv().ok()).collect();
    assert!(matches!(events.last(), Some(Event::Gone(error)) if no_session(error)), "{events:?}");
    h.sessions.disconnected();
    h.sessions.connected();
    assert_eq!(sent(&mut h.sessions), "", "nothing is asked for again, and nothing left");
}

#[test]
fn a_follower_whose_queue_is_full_learns_of_the_deletion_once_it_is_empty() {
    let mut h = attached();
    entries(&mut h.sessions, 1, 1..=2);
    h.sessions.gone(1);
    assert_eq!(sent(&mut h.sessions), "");
    assert_eq!(seqs(&mut h.queue), [1, 2]);
    h.sessions.command(Command::Drained { key: 7 });
    assert!(sent(&mut h.sessions).contains("attach-7"));
    assert!(h.sessions.reply("attach-7", Err(Error::deleted())));
    assert!(matches!(h.queue.try_recv(), Ok(Event::Gone(_))));
}

#[test]
fn a_reset_for_a_reason_of_a_later_release_is_a_reset() {
    let mut h = attached();
    let text = r#"{"t":"reset","attachment":1,"reason":"moonrise"}"#;
    h.sessions.frame("reset", &serde_json::from_str(text).unwrap(), text.into());
    let events: Vec<Event> = std::iter::from_fn(|| h.queue.try_recv().ok()).collect();
    assert!(matches!(events.last(), Some(Event::Reset(ResetReason::Epoch))), "{events:?}");
}

#[test]
fn a_gap_and_a_lost_socket_go_on_from_the_own_cursor_and_repeats_are_dropped() {
    let mut h = attached();
    entries(&mut h.sessions, 1, 1..=1);
    entries(&mut h.sessions, 1, 4..=4);
    assert!(sent(&mut h.sessions).contains(r#""from":"5.1""#));
    h.sessions.disconnected();
    h.sessions.connected();
    assert!(sent(&mut h.sessions).contains(r#""from":"5.1""#));
    assert_eq!(seqs(&mut h.queue), [1]);
    h.sessions.attached(&as_number(1));
    entries(&mut h.sessions, 1, 1..=2);
    assert_eq!(seqs(&mut h.queue), [2]);
}

#[test]
fn a_request_without_an_answer_is_sent_again_under_its_id_and_answered_once() {
    let mut h = attached();
    let (reply, mut answer) = oneshot::channel();
    let body = Body::History { id: "h1".parse().unwrap(), before: None, limit: 1 };
    h.sessions.command(Command::Request { key: 7, body, reply });
    assert!(sent(&mut h.sessions).contains(r#""id":"h1","attachment":1"#));
    h.sessions.disconnected();
    h.sessions.connected();
    assert!(!sent(&mut h.sessions).contains("h1"), "not before the session is attached");
    h.sessions.attached(&as_number(4));
    assert!(sent(&mut h.sessions).contains(r#""id":"h1","attachment":4"#));
    assert!(h.sessions.reply("h1", Err(Error::Closed)));
    assert!(answer.try_recv().unwrap().is_err());
    assert!(!h.sessions.reply("h1", Err(Error::Closed)));
}

/// Puts a mark, which is answered as being at `cursor`.
fn put(h: &mut Harness, id: &str, cursor: &str, ack: Option<&str>) {
    let (reply, mut answer) = oneshot::channel();
    let (agent, when_busy, replaces) = (None, None, None);
    let entries = to_raw_value(&json!([{ "type": "x-mark" }])).unwrap().into();
    let body = Body::Put { id: id.parse().unwrap(), agent, when_busy, replaces, ack: None, entries };
    h.sessions.command(Command::Request { key: 7, body, reply });
    assert!(sent(&mut h.sessions).contains(id));
    is_answered(h, id, cursor, ack);
    assert!(answer.try_recv().unwrap().is_ok());
}

fn is_answered(h: &mut Harness, id: &str, cursor: &str, ack: Option<&str>) {
    let mut done = json!({ "id": id, "cursor": cursor });
    if let Some(ack) = ack {
        done["ack"] = ack.into();
    }
    assert!(h.sessions.reply(id, Ok(Reply::Done(serde_json::from_value(done).unwrap()))));
}

fn reset(h: &mut Harness, reason: &str) -> String {
    let text = format!(r#"{{"t":"reset","attachment":1,"reason":"{reason}"}}"#);
    while h.queue.try_recv().is_ok() {}
    h.sessions.frame("reset", &serde_json::from_str(&text).unwrap(), text.as_str().into());
    sent(&mut h.sessions)
}

#[test]
fn after_a_reset_what_was_answered_is_asked_for_again_in_its_order_and_once() {
    let mut h = attached();
    put(&mut h, "p1", "5.10", None);
    put(&mut h, "p2", "5.11", Some("replicated"));
    put(&mut h, "p3", "5.12", Some("accepted"));
    assert_eq!(reset(&mut h, "retention"), "", "what is dropped there is old");
    let again = reset(&mut h, "epoch");
    let at = |id| again.find(id);
    assert!(at("p1") < at("p3") && at("p1").is_some() && at("p2").is_none(), "{again}");
    assert_eq!(reset(&mut h, "epoch"), "", "they are on their way");
    is_answered(&mut h, "p1", "6.3", Some("replicated"));
    is_answered(&mut h, "p3", "6.4", None);
    let again = reset(&mut h, "epoch");
    assert!(again.contains("p3") && !again.contains("p1"), "{again}");
}

#[test]
fn an_incarnation_that_begins_after_a_write_has_kept_it_and_one_that_begins_before_has_not() {
    let mut h = attached();
    entries(&mut h.sessions, 1, 1..=1);
    put(&mut h, "p2", "5.2", None);
    put(&mut h, "p3", "5.3", None);
    let text = r#"{"attachment":1,"epoch":"6","since":3,"from":2,"to":4}"#;
    h.sessions.frame("entries", &serde_json::from_str(text).unwrap(), text.into());
    let again = sent(&mut h.sessions);
    assert!(again.contains("p3") && !again.contains("p2"), "{again}");
}

#[test]
fn who_attaches_to_a_log_that_ends_before_a_write_writes_it_again_once_it_is_attached() {
    let mut h = attached();
    put(&mut h, "p9", "5.9", None);
    put(&mut h, "p10", "5.10", None);
    h.sessions.disconnected();
    h.sessions.connected();
    assert!(!sent(&mut h.sessions).contains("p10"));
    h.sessions.attached(&as_number(2));
    let again = sent(&mut h.sessions);
    assert!(again.contains("p10") && !again.contains("p9"), "the head is 9: {again}");
    while h.queue.try_recv().is_ok() {}
    // Nothing was heard of it: the next socket is asked.
    h.sessions.disconnected();
    h.sessions.connected();
    h.sessions.attached(&as_number(3));
    assert!(sent(&mut h.sessions).contains("p10"));
}

#[test]
fn what_cannot_be_written_again_is_told_and_what_may_be_later_is_tried_later() {
    let refused =
        |code, retryable| Error::Refused { code, message: String::new(), retryable, after_ms: None };
    let mut h = attached();
    put(&mut h, "p1", "5.10", None);
    assert!(reset(&mut h, "epoch").contains("p1"));
    assert!(h.sessions.reply("p1", Err(refused(Code::Unavailable, true))));
    let at = h.sessions.next_try().expect("it is tried again");
    h.sessions.advance(at);
    assert!(sent(&mut h.sessions).contains("p1"));
    while h.queue.try_recv().is_ok() {}
    assert!(h.sessions.reply("p1", Err(refused(Code::SessionClosed, false))));
    assert!(matches!(h.queue.try_recv(), Ok(Event::Lost(Error::Refused { code: Code::SessionClosed, .. }))));
    assert_eq!(h.sessions.next_try(), None);
}
