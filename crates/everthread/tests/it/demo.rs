//! The demo agents, steered and asked.

use crate::node::Node;
use serde_json::{Value, json};

/// The last run of session `s`.
async fn run(node: &Node) -> Value {
    let state = node.get("/v1/sessions/s/state").await;
    state["runs"].as_array().and_then(|runs| runs.last()).cloned().unwrap_or_default()
}

/// The parts of a kind of all messages, with their status.
async fn parts(node: &Node, kind: &str) -> Vec<Value> {
    let state = node.get("/v1/sessions/s/state").await;
    let messages = state["messages"].as_array().unwrap().iter();
    messages.flat_map(|m| m["parts"].as_array().unwrap().clone()).filter(|p| p["kind"] == kind).collect()
}

async fn control(node: &Node, body: Value) {
    let receipt = node.post("/v1/sessions/s/control?wait_ms=20000", body).await;
    assert_eq!(
        (receipt["stage"].as_str(), receipt["outcome"].as_str()),
        (Some("settled"), Some("applied")),
        "{receipt}"
    );
}

#[tokio::test]
async fn the_guide_asks_before_it_deletes_and_goes_on_in_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["dev"]).await;
    let id = node.ask("s", "guide", "Please delete my drafts").await;
    node.wait_until("asked", async |node: &Node| run(node).await["status"] == "suspended").await;
    let mut node = node;
    node.kill9();
    let node = node.restart(dir.path(), &["dev"]).await;
    let approval = run(&node).await["approvals"][0].clone();
    let payload =
        json!({ "approval": approval["approval"], "decision": "approved", "digest": approval["digest"] });
    control(&node, json!({ "kind": "answer", "target": { "run": id }, "payload": payload })).await;
    node.wait_until("done", async |node: &Node| run(node).await["outcome"] == "completed").await;
    assert_eq!(run(&node).await["attempt"], 2);
    let calls = parts(&node, "tool_call").await;
    assert_eq!(calls.iter().filter(|part| part["attrs"]["name"] == "delete_files").count(), 1, "{calls:?}");
    assert!(calls.iter().all(|part| part["status"] == "done"), "{calls:?}");
    assert_eq!(parts(&node, "tool_output").await.last().unwrap()["value"]["deleted"], 2);
}

#[tokio::test]
async fn the_guide_turns_to_what_is_said_while_it_talks() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["dev"]).await;
    let id = node.ask("s", "guide", "hello").await;
    // The first text is the question's own. A run that has not begun would be given what steers it with its input.
    node.wait_until("talking", async |node: &Node| parts(node, "text").await.len() > 1).await;
    let payload = json!({ "text": "What is a cursor?" });
    let target = json!({ "run": id });
    control(&node, json!({ "kind": "steer", "mode": "now", "target": target, "payload": payload })).await;
    let says = async |node: &Node| {
        let last = parts(node, "text").await.pop().unwrap();
        last["value"].as_str().unwrap_or_default().contains("Understood")
    };
    node.wait_until("understood", says).await;
    assert_eq!(run(&node).await["run"], id, "the same run");
    control(&node, json!({ "kind": "cancel", "target": { "run": id } })).await;
}
