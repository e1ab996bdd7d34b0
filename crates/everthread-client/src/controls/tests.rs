//! Controls and a server that answers, forgets and refuses.

use super::*;
use crate::control::{Ask, Asked, RECEIPTS_MAX};
use everthread_protocol::entry::Target;
use everthread_protocol::error::ErrorBody;
use everthread_protocol::{Code, Fault};
use serde_json::{Value, json};

fn receipt(control: &str, stage: &str) -> Receipt {
    let mut receipt = json!({ "control": control, "stage": stage, "seq": 5 });
    match stage {
        "delivered" => receipt["worker"] = "w".into(),
        "settled" => receipt["outcome"] = "applied".into(),
        _ => {}
    }
    serde_json::from_value(receipt).unwrap()
}

type Receipts = mpsc::Receiver<Result<Receipt, Error>>;

/// A control under the id `c`, asked with the follower 7.
fn asked() -> (Controls, Receipts) {
    let ask = Ask::steer(Target::Run("r".parse().unwrap()), "hi").id("c".parse().unwrap());
    let mut controls = Controls::default();
    let (receipts, handle) = mpsc::channel(RECEIPTS_MAX);
    controls.ask(7, body(ask), receipts);
    (controls, handle)
}

fn body(ask: Ask) -> ControlBody {
    ask.into_body(None, || "fresh".to_owned()).unwrap()
}

fn attached(key: u64) -> Option<u32> {
    (key == 7).then_some(1)
}

fn fault(code: Code) -> Error {
    ErrorBody::from(Fault::new(code, "")).into()
}

#[test]
fn every_kind_has_its_frame() {
    let run = || Target::Run("r".parse().unwrap());
    let frame =
        |ask: Ask| -> Value { serde_json::from_str(&body(ask.id("c".parse().unwrap())).frame(3)).unwrap() };
    let of = |rest: Value| {
        let mut frame = json!({ "t": "control", "id": "c", "attachment": 3, "target": { "run": "r" } });
        frame.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        frame
    };
    assert_eq!(frame(Ask::cancel(run())), of(json!({ "kind": "cancel" })));
    assert_eq!(
        frame(Ask::steer(run(), "hi").mode(everthread_protocol::control::Mode::Now)),
        of(json!({ "kind": "steer", "mode": "now", "payload": { "text": "hi" } }))
    );
    assert_eq!(
        frame(Ask::interrupt(run(), "no").message("m".parse().unwrap())),
        of(json!({ "kind": "interrupt", "payload": { "text": "no", "message": "m" } }))
    );
    assert_eq!(
        frame(Ask::pause(run()).expires(Duration::from_secs(1))),
        of(json!({ "kind": "pause", "expires_ms": 1000 }))
    );
    assert_eq!(
        frame(Ask::approve("r".parse().unwrap(), "a".parse().unwrap()).digest("d").value(json!(1))),
        of(
            json!({ "kind": "answer", "payload": { "approval": "a", "decision": "approved", "digest": "d", "value": 1 } })
        )
    );
}

#[tokio::test]
async fn a_control_is_asked_again_on_the_next_socket_and_each_stage_is_said_once() {
    let now = Instant::now();
    let (mut controls, mut handle) = asked();
    assert!(controls.due(now, |_| None).is_empty(), "not before its session is attached");
    assert_eq!(controls.due(now, attached).len(), 1);
    assert!(controls.due(now, attached).is_empty());
    controls.receipt(receipt("c", "accepted"));
    let first = handle.try_recv().unwrap().unwrap();
    controls.disconnected();
    assert_eq!(controls.due(now, attached).len(), 1);
    for stage in ["accepted", "delivered", "delivered", "settled", "settled"] {
        controls.receipt(receipt("c", stage));
    }
    let mut asked = Asked::new("c".parse().unwrap(), first, handle);
    assert_eq!(asked.next().await.unwrap(), Some(receipt("c", "accepted")));
    assert_eq!(asked.next().await.unwrap(), Some(receipt("c", "delivered")));
    assert!(asked.settled().await.unwrap().is_applied());
    assert_eq!(controls.len(), 0);
}

#[test]
fn one_that_the_node_has_lost_sight_of_is_asked_again_after_a_while() {
    let now = Instant::now();
    let (mut controls, _handle) = asked();
    controls.due(now, attached);
    let again = controls.next_try(|_| true).unwrap();
    assert_eq!(controls.next_try(|_| false), None);
    assert_eq!(controls.due(again, attached).len(), 1);
}

#[test]
fn an_error_that_may_go_away_is_tried_again_and_any_other_ends_the_handle() {
    let now = Instant::now();
    let (mut controls, mut handle) = asked();
    controls.due(now, attached);
    assert!(controls.failed("c", fault(Code::Unavailable), now).is_none());
    assert!(handle.try_recv().is_err());
    assert_eq!(controls.due(now + RETRY, attached).len(), 1);
    assert!(controls.failed("other", fault(Code::NoRun), now).is_some());
    assert!(controls.failed("c", fault(Code::NoRun), now).is_none());
    assert!(handle.try_recv().unwrap().is_err());
    assert_eq!(controls.len(), 0);
}

#[test]
fn a_handle_ends_with_its_follower_and_a_dropped_one_is_forgotten() {
    let now = Instant::now();
    let (mut controls, mut handle) = asked();
    controls.give_up(Some(8), &Error::Closed);
    controls.give_up(Some(7), &Error::Closed);
    assert!(matches!(handle.try_recv(), Ok(Err(Error::Closed))));
    let (mut controls, handle) = asked();
    drop(handle);
    assert!(controls.due(now, attached).is_empty());
    assert_eq!(controls.len(), 0);
}
