//! The worker and the client library against a real node: a process that is killed, and one that is asked.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod feed;
mod live;
mod model;
mod node;
mod stage;

use everthread_client::{Client, Event, Follow, From};
use everthread_protocol::entry::{Outcome, PartKind, PutPart, Target};
use everthread_worker::{Builder, CancellationToken, Cause, Error, Failure, Role, Run, Worker};
use node::{Node, TOKEN};
use serde_json::json;
use stage::{DEADLINE, Stage, answer, ended, until};
use std::time::Duration;
use tokio::time::timeout;

/// Pieces of the long answer.
const PIECES: usize = 300;

fn piece(n: usize) -> String {
    format!("{n}, wört\n")
}

/// Writes a long answer, slowly enough that there is a middle.
async fn long(run: Run) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    for n in 0..PIECES {
        text.append(&piece(n)).await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    message.complete().await
}

/// Goes on until somebody stops it, and says a last word.
async fn endless(run: Run) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    text.append("working").await?;
    assert_eq!(run.cancelled().await, Cause::Cancel);
    text.append(", stopped").await
}

/// Panics on purpose.
async fn broken(_run: Run) -> Result<(), Error> {
    panic!("on purpose")
}

/// Fails with more words than a frame holds.
async fn verbose(_run: Run) -> Result<(), Failure> {
    Err(Failure::new("verbose", "wört ".repeat(100_000)))
}

/// Has another agent work.
async fn parent(run: Run) -> Result<(), Error> {
    let parts = vec![PutPart { kind: PartKind::Text, value: "go".into(), attrs: None }];
    let mut child = run.start_child("long", parts).await?;
    let outcome = child.ended().await?;
    let mut message = run.message(Role::Assistant).await?;
    message.text().await?.append(&format!("child: {outcome:?}")).await
}

fn agents(worker: Builder) -> Builder {
    worker
        .agent("long", 4, long)
        .agent("endless", 4, endless)
        .agent("broken", 4, broken)
        .agent("verbose", 4, verbose)
        .agent("parent", 4, parent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_twice_costs_no_text_and_doubles_none() {
    let mut node = Node::start().await;
    let session = node.session("killed").await;
    let stage = Stage::new(&node, agents);
    let mut follow = stage.client.follow(session, From::Start).await.unwrap();
    follow.session().input("go", Some("long")).await.unwrap();
    for pieces in [40, 150] {
        let so_far: usize = (0..pieces).map(|n| piece(n).len()).sum();
        until(&mut follow, |view| (answer(view, "long").len() >= so_far).then_some(())).await;
        node.kill9();
        node.restart().await;
    }
    let run = until(&mut follow, |view| ended(view, "long")).await;
    assert_eq!(run.outcome, Some(Outcome::Completed), "{run:?}");
    assert_eq!(run.attempt, Some(1), "the same worker went on");
    let expected: String = (0..PIECES).map(piece).collect();
    assert_eq!(answer(follow.view().unwrap(), "long"), expected);

    let mut fresh = stage.client.follow("killed".parse().unwrap(), From::Recent(50)).await.unwrap();
    until(&mut fresh, |view| ended(view, "long")).await;
    assert_eq!(fresh.view().unwrap().messages(), follow.view().unwrap().messages());
    drop((follow, fresh));
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_run_and_keeps_its_last_word() {
    let node = Node::start().await;
    let session = node.session("cancel").await;
    let stage = Stage::new(&node, agents);
    let mut follow = stage.client.follow(session, From::Start).await.unwrap();
    let done = follow.session().input("go", Some("endless")).await.unwrap();
    until(&mut follow, |view| (answer(view, "endless") == "working").then_some(())).await;
    let run = done.run.unwrap();
    follow.session().cancel(Target::Run(run)).await.unwrap();
    let run = until(&mut follow, |view| ended(view, "endless")).await;
    assert_eq!((run.outcome, run.forced), (Some(Outcome::Cancelled), false));
    assert_eq!(answer(follow.view().unwrap(), "endless"), "working, stopped");
    drop(follow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_or_a_flood_of_words_ends_the_run_as_failed_and_the_worker_goes_on() {
    let node = Node::start().await;
    let session = node.session("panic").await;
    let stage = Stage::new(&node, agents);
    let mut follow = stage.client.follow(session, From::Start).await.unwrap();
    follow.session().input("go", Some("broken")).await.unwrap();
    let run = until(&mut follow, |view| ended(view, "broken")).await;
    let error = run.error.unwrap();
    assert_eq!((error.code.as_str(), error.message.as_str()), ("panic", "on purpose"));

    follow.session().input("go", Some("verbose")).await.unwrap();
    let error = until(&mut follow, |view| ended(view, "verbose")).await.error.unwrap();
    assert!(error.code == "verbose" && error.message.ends_with('…'), "{}", error.message.len());

    follow.session().input("go", Some("parent")).await.unwrap();
    until(&mut follow, |view| ended(view, "parent")).await;
    assert_eq!(answer(follow.view().unwrap(), "parent"), "child: Completed");
    drop(follow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_is_repeated_under_its_id_is_written_once() {
    let node = Node::start().await;
    let session = node.session("twice").await;
    let stage = Stage::new(&node, agents);
    let mut follow = stage.client.follow(session, From::Start).await.unwrap();
    let id = stage.client.fresh_id();
    let entries =
        || serde_json::value::to_raw_value(&serde_json::json!([{"type": "x-mark", "n": 1}])).unwrap();
    let first = follow.session().put(&id, entries(), None).await.unwrap();
    let second = follow.session().put(&id, entries(), None).await.unwrap();
    assert_eq!((first.duplicate, second.duplicate), (false, true));
    assert_eq!(first.cursor, second.cursor);
    until(&mut follow, |view| (Some(view.seq()) == first.cursor.map(|c| c.seq)).then_some(())).await;
    drop(follow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_and_a_session_that_is_not_there_are_said_and_not_tried_for_ever() {
    let node = Node::start().await;
    let worker = Worker::builder(node.url(), "wrong").agent("long", 1, long).connect().unwrap();
    let ended = timeout(DEADLINE, worker.run(CancellationToken::new())).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
    let client = Client::builder(node.url(), "wrong").connect();
    let refused = timeout(DEADLINE, client.follow("s".parse().unwrap(), From::Start)).await.unwrap();
    assert!(refused.is_err());
    let client = Client::builder(node.url(), TOKEN).connect();
    let missing = timeout(DEADLINE, client.follow("nowhere".parse().unwrap(), From::Start)).await.unwrap();
    assert_eq!(missing.unwrap_err().to_string().split(':').next(), Some("no_session"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_finds_its_mark_and_those_who_are_present_each_other_over_a_node_that_is_killed() {
    let mut node = Node::start().await;
    let session = node.session("people").await;
    let connect = |subject: &str, device: &str| {
        let builder = Client::builder(node.url(), TOKEN).subject(subject.parse().unwrap());
        builder.device(device.parse().unwrap()).connect()
    };
    let (ann, bob) = (connect("ann", "phone"), connect("bob", "laptop"));
    let mut ann = ann.follow_present(session.clone(), From::Start).await.unwrap();
    let mut bob = bob.follow_present(session.clone(), From::Start).await.unwrap();
    let both = async |follow: &mut Follow| {
        let seeing = async {
            while follow.present().members().filter(|m| m.data.is_some()).count() < 2 {
                follow.next().await.unwrap();
            }
        };
        timeout(DEADLINE, seeing).await.unwrap();
    };
    ann.session().tell(&json!({ "viewing": "m1" })).await.unwrap();
    bob.session().tell(&json!({ "typing": true })).await.unwrap();
    both(&mut ann).await;
    both(&mut bob).await;
    bob.session().input("Hi", None).await.unwrap();
    let seq = until(&mut ann, |view| view.messages().last().map(|m| m.seq)).await;
    ann.session().ack(seq).await.unwrap();
    node.kill9();
    node.restart().await;
    // Everybody is told anew on the next connection, and the device says again what it has read.
    let told = async { while !matches!(ann.next().await, Some(Event::Presence(frame)) if frame.n == 1) {} };
    timeout(DEADLINE, told).await.unwrap();
    both(&mut ann).await;
    let phone = Client::builder(node.url(), TOKEN).subject("ann".parse().unwrap());
    let phone = phone.device("phone".parse().unwrap()).connect();
    let marked = async {
        loop {
            let mut again = phone.follow_raw(session.clone(), From::Device).await.unwrap();
            if let Some(Event::Attached { acked, unread, .. }) = again.next().await
                && acked == Some(seq)
            {
                return unread;
            }
        }
    };
    assert_eq!(timeout(DEADLINE, marked).await.unwrap(), Some(0));
}
