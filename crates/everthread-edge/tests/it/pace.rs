//! Attachments with `fold_ms`: fewer frames, the same session.

use crate::harness::client::{Client, hello};
use crate::harness::history::History;
use crate::harness::http::{create, input};
use crate::harness::worker::Job;
use crate::harness::{Engine, Random, Socket, Worker, World};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

on_both_engines!(
    a_stream_comes_in_few_frames_and_whole,
    what_is_decided_does_not_wait_for_the_pace,
    whatever_is_written_a_follower_with_a_pace_holds_the_same,
    attachments_of_one_connection_keep_their_own_pace,
);

const FOLD: Duration = Duration::from_millis(500);

async fn attach(address: SocketAddr, fold_ms: u64) -> Client {
    let mut socket = hello(address).await;
    let attach = json!({ "t": "attach", "session": "s", "from": "start", "fold_ms": fold_ms });
    let attached = socket.ask(attach).await;
    assert_eq!(attached["t"], "attached", "{attached}");
    Client { socket, history: History::new(), told: vec![], receipts: vec![], session: "s".into() }
}

async fn job(address: SocketAddr) -> (Worker, Job) {
    input(address, "s", "Hi").await;
    let mut worker = Worker::join(address, "w1", "guide", 1).await;
    let job = worker.work().await;
    (worker, job)
}

/// How many frames a pace allows in so long: the first, one per pace, and one for each that could not wait.
fn allowed(since: Instant, urgent: u64) -> u64 {
    2 + urgent + u64::try_from(since.elapsed().as_millis() / FOLD.as_millis()).unwrap()
}

async fn a_stream_comes_in_few_frames_and_whole<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let (mut worker, mut job) = job(here.address).await;
    let mut plain = attach(there.address, 0).await;
    let mut paced = [attach(there.address, 500).await, attach(there.address, 500).await];
    for client in paced.iter_mut().chain([&mut plain]) {
        client.told("live").await;
    }
    let before: Vec<u64> = paced.iter().map(|client| client.history.frames).collect();
    let since = Instant::now();
    for number in 0..100 {
        worker.say(&mut job, &format!("{number} ")).await;
    }
    plain.until("all of it", |history| history.answer(&job.run).ends_with("99 ")).await;
    for (client, before) in paced.iter_mut().zip(before) {
        client.until("all of it", |history| history.answer(&job.run).ends_with("99 ")).await;
        let frames = client.history.frames - before;
        assert!(frames <= allowed(since, 0), "{frames} frames in {:?}", since.elapsed());
        assert!(!client.told.iter().any(|told| told == "lag"), "{:?}", client.told);
    }
    assert!(plain.history.frames >= 100, "{}", plain.history.frames);
    worker.end(&mut job, "completed").await;
    for client in &mut paced {
        client.holds_the_state(here.address).await;
    }
}

/// Ends that are waited for one after the other: each would come a pace after the one before it.
const ENDS: usize = 40;

async fn what_is_decided_does_not_wait_for_the_pace<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let (mut worker, mut job) = job(node.address).await;
    let mut paced = attach(node.address, 500).await;
    paced.told("live").await;
    let mut at_once = 0;
    for round in 1..=ENDS {
        let message = format!("m{round}");
        let (mut open, mut made) = (Vec::new(), u32::try_from(round).unwrap() - 1);
        worker.append(&mut job, begin(&mut open, &mut made).into()).await;
        for offset in 0..2 {
            let piece = json!({ "type": "part.append", "message": message, "part": "p", "offset": offset, "text": "x" });
            worker.append(&mut job, json!([piece])).await;
        }
        let end = json!([{ "type": "message.end", "message": message, "status": "complete" }]);
        worker.append(&mut job, end).await;
        let written = Instant::now();
        paced.until("its end", |history| history.count("message.end") >= round).await;
        at_once += usize::from(written.elapsed() < FOLD / 2);
    }
    // A machine that stands still now and then holds some of them up.
    assert!(at_once > ENDS / 2, "{at_once} of {ENDS} ends came at once");
    worker.end(&mut job, "completed").await;
    assert_eq!(paced.ended(&job.run).await, "completed");
    paced.holds_the_state(node.address).await;
}

/// What a worker may write next; `open` are the lengths of its open parts.
fn step(random: &mut Random, open: &mut Vec<(String, usize)>, made: &mut u32) -> Vec<Value> {
    let at = |random: &mut Random, open: &[(String, usize)]| {
        usize::try_from(random.below(open.len() as u64)).unwrap()
    };
    match random.below(20) {
        _ if open.is_empty() => begin(open, made),
        0 if open.len() < 3 => begin(open, made),
        1 => {
            let (message, _) = open.remove(at(random, open));
            vec![json!({ "type": "message.end", "message": message, "status": "complete" })]
        }
        2 => {
            let index = at(random, open);
            open[index].1 = 3;
            vec![json!({ "type": "part.set", "message": open[index].0, "part": "p", "value": "set" })]
        }
        3 => vec![json!({ "type": "event", "name": "progress", "data": made, "keep": "latest" })],
        4 => vec![json!({ "type": "x-mine", "type2": { "type": "run.ended" } })],
        5 => vec![json!({ "type": "run.step", "phase": "start" })],
        6 => {
            let mut entries = vec![json!({ "type": "run.step", "phase": "start" })];
            let begun = open.len();
            entries.extend(begin(open, made));
            open.truncate(begun);
            entries.push(json!({ "type": "run.step", "phase": "reset" }));
            entries
        }
        _ => {
            let index = at(random, open);
            let text = ["a", "wör", "😀 ", "lorem ipsum "][usize::try_from(random.below(4)).unwrap()];
            let (message, length) = &mut open[index];
            let offset = *length;
            *length += text.len();
            vec![
                json!({ "type": "part.append", "message": message, "part": "p", "offset": offset, "text": text }),
            ]
        }
    }
}

fn begin(open: &mut Vec<(String, usize)>, made: &mut u32) -> Vec<Value> {
    *made += 1;
    let message = format!("m{made}");
    open.push((message.clone(), 0));
    vec![
        json!({ "type": "message.start", "message": message, "role": "assistant" }),
        json!({ "type": "part.start", "message": message, "part": "p", "kind": "text" }),
    ]
}

async fn whatever_is_written_a_follower_with_a_pace_holds_the_same<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let (mut worker, mut job) = job(here.address).await;
    let mut clients = Vec::new();
    for fold_ms in [0, 1, 5, 20, 20, 100, 500] {
        clients.push(attach(there.address, fold_ms).await);
    }
    let mut random = Random::seeded(11);
    let (mut open, mut made) = (Vec::new(), 0);
    for _ in 0..300 {
        let mut entries = Vec::new();
        for _ in 0..=random.below(3) {
            entries.extend(step(&mut random, &mut open, &mut made));
        }
        let ack = worker.append(&mut job, entries.into()).await;
        assert_eq!(ack["t"], "ok", "{ack}");
    }
    worker.end(&mut job, "completed").await;
    for client in &mut clients {
        client.holds_the_state(here.address).await;
        assert!(!client.told.iter().any(|told| told == "reset"), "{:?}", client.told);
    }
    let frames: Vec<u64> = clients.iter().map(|client| client.history.frames).collect();
    assert!(frames[6] < frames[0], "{frames:?}");
}

async fn attachments_of_one_connection_keep_their_own_pace<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let (mut worker, mut job) = job(node.address).await;
    let mut socket: Socket = hello(node.address).await;
    for fold_ms in [500, 0, 500] {
        socket.ask(json!({ "t": "attach", "session": "s", "from": "start", "fold_ms": fold_ms })).await;
    }
    let mut histories = [History::new(), History::new(), History::new()];
    let since = Instant::now();
    for number in 0..60 {
        worker.say(&mut job, &format!("{number} ")).await;
    }
    while !histories.iter().all(|history| history.answer(&job.run).ends_with("59 ")) {
        let frame = socket.frame().await;
        if frame["t"] == "entries" {
            let number = usize::try_from(frame["attachment"].as_u64().unwrap()).unwrap();
            histories[number - 1].apply(&frame);
        }
    }
    assert!(histories[1].frames >= 60, "{}", histories[1].frames);
    // Catching up, before they are live, is at nobody's pace, and no more than what there was before the stream.
    for history in [&histories[0], &histories[2]] {
        assert!(history.frames <= 5 + allowed(since, 0), "{} in {:?}", history.frames, since.elapsed());
    }
    // One that goes takes its pace with it.
    socket.ask(json!({ "t": "detach", "attachment": 1 })).await;
    worker.say(&mut job, "end").await;
    worker.end(&mut job, "completed").await;
    while histories[2].outcome(&job.run).is_none() {
        let frame = socket.wait(|frame| frame["t"] == "entries" && frame["attachment"] != 2).await;
        if frame["attachment"] == 3 {
            histories[2].apply(&frame);
        }
    }
}
