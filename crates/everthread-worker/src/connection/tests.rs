//! What a connection makes of frames, without a socket.

use super::*;
use crate::run::{Finish, Run};
use crate::worker::{AgentFn, Served};
use everthread_protocol::entry::Outcome;
use everthread_protocol::worker_frame::{Offer, OnLost};
use std::collections::BTreeMap;

const CAPACITY: u32 = 300;

fn config() -> Config {
    let offer = Offer { name: "a".parse().unwrap(), capacity: CAPACITY, on_lost: OnLost::End };
    Config {
        url: String::new(),
        token: String::new(),
        id: "w1".parse().unwrap(),
        offers: vec![offer],
        drain_deadline: Duration::ZERO,
    }
}

/// An agent whose runs wait until they are stopped.
fn runs() -> Runs {
    let function: AgentFn = Arc::new(|run: Run| {
        Box::pin(async move {
            run.cancelled().await;
            Finish::from(Outcome::Completed)
        })
    });
    let served = Served { function, is_steerable: false, on_lost: OnLost::End, ack: None };
    Runs::new(BTreeMap::from([("a".parse().unwrap(), served)]))
}

fn work(run: &str) -> String {
    format!(
        r#"{{"t":"work","run":"{run}","session":"s","agent":"a","fence":"9","attempt":1,"epoch":"1","seq":1,"input":[],
            "token":"t","messages":[]}}"#
    )
}

fn sent(connection: &mut Connection<'_>) -> Vec<String> {
    std::iter::from_fn(|| connection.next_frame()).map(|frame| frame.to_string()).collect()
}

#[tokio::test]
async fn however_many_wait_every_ping_has_its_pong_and_every_run_that_is_not_taken_its_decline() {
    let (config, runs, shutdown) = (config(), runs(), CancellationToken::new());
    shutdown.cancel();
    let mut connection = Connection::new(&config, &runs, &shutdown);
    for n in 0..CAPACITY {
        assert!(connection.frame(&work(&format!("r{n}"))).is_ok());
        assert!(connection.frame(r#"{"t":"ping"}"#).is_ok());
    }
    let frames = sent(&mut connection);
    let of = |kind: &str| u32::try_from(frames.iter().filter(|frame| frame.contains(kind)).count()).unwrap();
    assert_eq!((of("pong"), of("decline")), (CAPACITY, CAPACITY));
    assert_eq!(frames[0], r#"{"t":"pong"}"#, "the server waits for it");
}

#[tokio::test]
async fn a_control_that_comes_before_its_run_is_not_answered_and_is_heard_when_it_comes_again() {
    let (config, runs, shutdown) = (config(), runs(), CancellationToken::new());
    let _abort = runs.abort_guard();
    let mut connection = Connection::new(&config, &runs, &shutdown);
    for kind in ["pause", "steer", "cancel"] {
        let asked =
            format!(r#"{{"t":"control","run":"r1","control":"{kind}","kind":"{kind}","grace_ms":1000}}"#);
        assert!(connection.frame(&asked).is_ok());
    }
    assert_eq!(sent(&mut connection), Vec::<String>::new());
    assert!(connection.frame(&work("r1")).is_ok());
    assert_eq!(sent(&mut connection), Vec::<String>::new());
    let again = r#"{"t":"control","run":"r1","control":"pause","kind":"pause","grace_ms":1000}"#;
    assert!(connection.frame(again).is_ok());
    assert!(runs.get(&"r1".parse().unwrap()).unwrap().is_held());
    let frames = sent(&mut connection);
    assert!(frames[0].contains(r#""control":"pause","outcome":"applied"}"#), "{frames:?}");
    assert_eq!(frames.len(), 1, "{frames:?}");
}

#[tokio::test]
async fn a_connection_begins_with_as_many_runs_as_a_frame_holds() {
    let (config, runs, shutdown) = (config(), runs(), CancellationToken::new());
    let _abort = runs.abort_guard();
    let mut connection = Connection::new(&config, &runs, &shutdown);
    let count = 2500;
    for n in 0..count {
        assert!(connection.frame(&work(&format!("{n:0128}"))).is_ok());
    }
    let (hello, held) = connection.greeting().unwrap_or_else(|_| panic!("no greeting"));
    assert!(hello.len() <= FRAME_BYTES_MAX && hello.len() > FRAME_BYTES_MAX - 400, "{}", hello.len());
    assert!(held.len() < count);
    assert_eq!(runs.held().len(), held.len(), "the others are given up");
}

#[tokio::test]
async fn a_write_that_no_frame_holds_is_not_sent_and_fails_its_run() {
    let (config, runs, shutdown) = (config(), runs(), CancellationToken::new());
    let _abort = runs.abort_guard();
    let mut connection = Connection::new(&config, &runs, &shutdown);
    assert!(connection.frame(&work("r1")).is_ok());
    let run = runs.get(&"r1".parse().unwrap()).unwrap();
    run.with(|outbox| outbox.raw_entry_of_any_size(&format!("\"{}\"", "x".repeat(FRAME_BYTES_MAX))));
    run.offer();
    let frames = sent(&mut connection);
    assert!(frames.len() == 1 && frames[0].contains(r#""outcome":"failed""#), "{}", frames.len());
    assert_eq!(run.cause(), Some(Cause::Broken));
}

#[tokio::test]
async fn a_server_that_gives_more_runs_than_were_offered_is_not_listened_to() {
    let (config, runs, shutdown) = (config(), runs(), CancellationToken::new());
    shutdown.cancel();
    let mut connection = Connection::new(&config, &runs, &shutdown);
    for n in 0..CAPACITY {
        assert!(connection.frame(&work(&format!("r{n}"))).is_ok());
    }
    assert!(matches!(connection.frame(&work("more")), Err(Left::Lost(_))));
}
