//! Many attachments on one connection: none of them is in the way of the others.

use crate::harness::client::hello;
use crate::harness::http::create;
use crate::harness::{Engine, Heard, NO_FOLDING, Request, World};
use futures_util::{StreamExt as _, stream};
use serde_json::json;

on_both_engines!(one_attachment_that_floods_does_not_hold_up_a_thousand_others);

const QUIET: usize = 999;
/// Blocks of the flood, and bytes of each: far more than the buffers of both sockets take.
const BLOCKS: usize = 96;
const BLOCK_BYTES: usize = 250_000;

async fn one_attachment_that_floods_does_not_hold_up_a_thousand_others<E: Engine>() {
    let world = World::<E>::folding(NO_FOLDING).await;
    let node = world.node().await;
    let at = node.address;
    let names = (0..QUIET).map(|n| format!("q{n}")).chain(["flood".into()]);
    stream::iter(names.clone()).for_each_concurrent(16, |name| async move { create(at, &name).await }).await;
    let mut socket = hello(at).await;
    for (n, name) in names.enumerate() {
        let from = json!({ "recent": 0 });
        socket.send(&json!({ "t": "attach", "id": format!("a{n}"), "session": name, "from": from })).await;
    }
    for _ in 0..=QUIET {
        socket.wait(|frame| frame["t"] == "live").await;
    }
    // The client reads nothing while the flood comes, and after it one entry in each of the others.
    let block = json!({ "entries": [{ "type": "x-flood", "text": "x".repeat(BLOCK_BYTES) }] });
    for _ in 0..BLOCKS {
        Request::post("/v1/sessions/flood/entries", &block).send(at).await.with(202);
    }
    let word = json!({ "entries": [{ "type": "x-word" }] });
    let word = &word;
    stream::iter(0..QUIET)
        .for_each_concurrent(16, |n| async move {
            Request::post(format!("/v1/sessions/q{n}/entries"), word).send(at).await.with(202);
        })
        .await;
    let (mut heard, mut flood) = (0, 0);
    while heard < QUIET {
        let Heard::Frame(frame) = socket.hear().await else { panic!("closed") };
        match (frame["t"].as_str(), frame["blocks"][0]["entries"][0]["type"].as_str()) {
            (Some("entries"), Some("x-word")) => heard += 1,
            (Some("entries"), Some("x-flood")) => flood += frame["blocks"].as_array().unwrap().len(),
            _ => {}
        }
    }
    // What stood in the buffers of the sockets goes first, and then a turn each.
    assert!(flood < BLOCKS / 2, "{flood} of {BLOCKS} blocks of the flood came before the last of the others");
    while flood < BLOCKS {
        let Heard::Frame(frame) = socket.hear().await else { panic!("closed") };
        if frame["t"] == "entries" {
            flood += frame["blocks"].as_array().unwrap().len();
        }
    }
}
