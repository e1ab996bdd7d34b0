//! Workers that connect.

use crate::node::{Node, TOKEN};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_welcomed_before_it_is_told_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["serve"]).await;
    for number in 0..40 {
        let mut socket =
            everthread_socket::RawConnection::open(&node.url, "/v1/worker", Some(TOKEN)).await.unwrap();
        let agents = json!([{ "name": "a", "capacity": 1 }]);
        let hello = json!({ "t": "hello", "id": "1", "worker": format!("w{number}"), "agents": agents });
        socket.send(hello.to_string()).await.unwrap();
        let first: Value = serde_json::from_str(&socket.receive().await.unwrap()).unwrap();
        assert_eq!(first["t"], "welcome", "connection {number}");
    }
}
