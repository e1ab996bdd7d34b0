//! A run and a server that takes what it writes.

use super::*;
use crate::asked::Asked;
use crate::outbox::{Name, Outbox};
use crate::run::Cause;
use crate::shared::Ready;
use crate::work::Input;
use everthread_protocol::entry::Role;
use everthread_protocol::limits::BLOCK_BYTES_MAX;
use everthread_protocol::worker_frame::{Work, WorkerControl};
use everthread_protocol::{Code, Fault, Fence};
use futures::{is_pending, settled_frames};

/// A run whose `answers` and `messages` are these.
fn run(answers: &str, messages: &str) -> Run {
    let work = format!(
        r#"{{"run":"r","session":"s","agent":"a","fence":"9","attempt":2,"epoch":"1","seq":1,"input":[],
            "answers":{answers},"token":"only-r","messages":{messages}}}"#
    );
    let work: Work<'_> = serde_json::from_str(&work).unwrap();
    let name = Name { local: 7, run: work.run.clone(), fence: Fence(9), incarnation: 2, ack: None };
    let outbox = Outbox::new(name, BLOCK_BYTES_MAX);
    let (session, agent) = (work.session.clone(), work.agent.clone());
    let shared = Shared::new(session, agent, 2, outbox, Asked::new(true), Arc::<Ready>::default());
    Run { shared: Arc::new(shared), input: Arc::new(Input::new(&work)) }
}

fn ask(run: &Run, control: &str, asked: &str) {
    let frame = format!(r#"{{"run":"r","control":"{control}","grace_ms":60000,{asked}}}"#);
    run.shared.hear(serde_json::from_str::<WorkerControl>(&frame).unwrap());
}

fn steer(run: &Run, control: &str, mode: &str) {
    let message = format!(
        r#"{{"message":"{control}","role":"user","parts":[{{"part":"1","kind":"text","value":"{mode}"}}]}}"#
    );
    ask(run, control, &format!(r#""kind":"steer","mode":"{mode}","message":{message}"#));
}

mod futures {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    pub fn is_pending<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> bool {
        matches!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    }

    /// Lets the server take everything; the frames it got.
    pub fn settled_frames(run: &Run) -> Vec<String> {
        let mut frames = Vec::new();
        loop {
            let frame = run.shared.with(|outbox| outbox.next_frame(Instant::now()));
            let Some(frame) = frame else { return frames };
            frames.push(frame.to_string());
            let number = frames.len() as u64;
            let events = run.shared.with(|outbox| outbox.written(number, number, Instant::now()));
            run.shared.settle(events);
        }
    }
}

#[tokio::test]
async fn a_pause_holds_the_next_write_and_a_resume_lets_it_go() {
    let run = run("[]", "[]");
    ask(&run, "c1", r#""kind":"pause""#);
    run.paused().await;
    let mut starting = Box::pin(run.message(Role::Assistant));
    assert!(is_pending(&mut starting));
    ask(&run, "c2", r#""kind":"resume""#);
    starting.await.unwrap();
    run.wait_while_paused().await;
    let frames = settled_frames(&run);
    let order = ["c1", "c2", "message.start"];
    assert!(frames.iter().zip(order).all(|(frame, word)| frame.contains(word)), "{frames:?}");
    assert_eq!(frames.len(), 3);
}

#[tokio::test]
async fn a_pause_that_has_another_outcome_at_the_server_holds_nothing_any_more() {
    let run = run("[]", "[]");
    let mut message = run.message(Role::Assistant).await.unwrap();
    ask(&run, "c1", r#""kind":"pause""#);
    let mut going_on = Box::pin(message.text());
    assert!(is_pending(&mut going_on));
    let now = Instant::now();
    run.shared.with(|outbox| outbox.next_frame(now)).unwrap();
    let events = run.shared.with(|outbox| outbox.written(1, 1, now));
    run.shared.settle(events);
    run.shared.with(|outbox| outbox.next_frame(now)).unwrap();
    let late = Fault::new(Code::IdConflict, "it is expired").into();
    let events = run.shared.with(|outbox| outbox.refused(2, &late, now));
    assert!(!run.shared.settle(events), "the run goes on");
    going_on.await.unwrap();
    assert!(run.cause().is_none() && !run.is_paused());
    let frame = run.shared.with(|outbox| outbox.next_frame(now)).unwrap();
    assert!(frame.contains("part.start") && frame.contains(r#""batch":2}"#), "{frame}");
}

#[tokio::test]
async fn a_cancel_wakes_a_run_that_stands_still_and_takes_its_last_word() {
    let run = run("[]", "[]");
    ask(&run, "c1", r#""kind":"pause""#);
    let mut starting = Box::pin(run.message(Role::Assistant));
    assert!(is_pending(&mut starting));
    run.shared.stop(Cause::Cancel);
    starting.await.unwrap();
    assert!(!run.is_paused());
}

#[tokio::test]
async fn a_steer_is_applied_when_it_is_consumed_and_left_alone_when_it_is_dropped() {
    let run = run("[]", "[]");
    let mut urgent = Box::pin(run.steered_now());
    steer(&run, "c1", "next_step");
    assert!(is_pending(&mut urgent));
    steer(&run, "c2", "now");
    assert!(!is_pending(&mut urgent));
    let first = run.next_steer().await.unwrap();
    assert_eq!((first.mode(), first.message().text().as_str()), (Mode::NextStep, "next_step"));
    drop(first);
    assert_eq!(run.try_steer().unwrap().consume().unwrap().text(), "now");
    steer(&run, "c3", "now");
    run.try_steer().unwrap().refuse().unwrap();
    assert!(run.try_steer().is_none());
    let frames = settled_frames(&run);
    assert_eq!(frames.len(), 2, "{frames:?}");
    assert!(frames[0].contains(r#""control":"c2","outcome":"applied"}"#), "{frames:?}");
    assert!(
        frames[1].contains(r#""control":"c3","outcome":"refused","reason":"not_supported"}"#),
        "{frames:?}"
    );
    run.shared.stop(Cause::Cancel);
    assert!(run.next_steer().await.is_none());
}

#[tokio::test]
async fn a_question_goes_out_after_what_was_written_and_ends_the_attempt() {
    let run = run("[]", "[]");
    run.message(Role::Assistant).await.unwrap();
    let mut asking = Box::pin(run.approve(Approval::new("pay", "Pay?").digest("d1")));
    assert!(is_pending(&mut asking));
    let mut writing = Box::pin(run.step("more"));
    assert!(is_pending(&mut writing), "nothing goes out behind the question");
    let frames = settled_frames(&run);
    assert!(frames[0].contains("message.start") && frames[1].contains(r#""approval":"pay""#), "{frames:?}");
    assert_eq!(asking.await.unwrap_err(), Error::Suspended);
    assert_eq!(writing.await.unwrap_err(), Error::Suspended);
    assert_eq!(run.cancelled().await, Cause::Suspended);
    assert_eq!(frames.len(), 2);
}

#[tokio::test]
async fn the_next_attempt_finds_the_answers_and_asks_only_what_has_none() {
    let answers =
        r#"[{"approval":"a","verdict":"approved","value":{"n":1}},{"approval":"b","verdict":"expired"}]"#;
    let run = run(answers, "[]");
    let both = run.approve_all(vec![Approval::new("a", "?"), Approval::new("b", "?")]).await.unwrap();
    assert!(both[0].is_approved() && !both[1].is_approved());
    let mut third = Box::pin(run.approve_all(vec![Approval::new("a", "?"), Approval::new("c", "?")]));
    assert!(is_pending(&mut third));
    let frames = settled_frames(&run);
    assert!(
        frames[0].contains(r#""approval":"c""#) && !frames[0].contains(r#""approval":"a""#),
        "{frames:?}"
    );
}

#[tokio::test]
async fn a_new_attempt_goes_on_where_an_earlier_one_stopped() {
    let messages = r#"[{"message":"m1","run":"r","role":"assistant","status":"streaming","parts":[
        {"part":"p1","kind":"reasoning","status":"done","value":"hm"},{"part":"p2","kind":"text","status":"open","value":"wö"}]},
        {"message":"m1","run":"q","role":"assistant","status":"streaming","parts":[]},
        {"message":"m2","run":"r","role":"assistant","status":"complete","parts":[]}]"#;
    let run = run("[]", messages);
    let own: Vec<_> = run.own_messages().cloned().collect();
    assert_eq!(own.len(), 2);
    assert!(run.message_again(&own[1]).is_none() && run.message_again(&run.messages()[1]).is_none());
    let mut message = run.message_again(&own[0]).unwrap();
    assert!(message.part_again(&own[0].parts[0]).is_none());
    message.part_again(&own[0].parts[1]).unwrap().append("rt").await.unwrap();
    assert_eq!(message.text().await.unwrap().id().as_str(), "p3");
    let fresh = run.message(Role::Assistant).await.unwrap();
    assert_eq!((fresh.id().as_str(), run.token()), ("a2m1", "only-r"));
    let frames = settled_frames(&run);
    assert!(frames[0].contains(r#""part":"p2","offset":3,"text":"rt""#), "{frames:?}");
}
