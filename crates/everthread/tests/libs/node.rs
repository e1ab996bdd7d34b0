//! A node as a process of its own, on an embedded store that outlives it.

use everthread_protocol::SessionId;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// What the node wants.
pub const TOKEN: &str = "a-token-for-tests";

/// A running node.
pub struct Node {
    process: Child,
    port: u16,
    admin: u16,
    dir: tempfile::TempDir,
    http: reqwest::Client,
}

impl Node {
    /// Starts one on free ports.
    pub async fn start() -> Node {
        // Without effect if another test of this process was first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let (port, admin) = (free_port(), free_port());
        let dir = tempfile::tempdir().unwrap();
        let process = spawn(port, admin, dir.path());
        let node = Node { process, port, admin, dir, http: reqwest::Client::new() };
        node.ready().await;
        node
    }

    /// Where clients and workers connect.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// Where its socket is.
    pub fn address(&self) -> (&'static str, u16) {
        ("127.0.0.1", self.port)
    }

    /// Makes a session.
    pub async fn session(&self, id: &str) -> SessionId {
        let url = format!("http://127.0.0.1:{}/v1/sessions", self.port);
        let body = serde_json::json!({ "session": id });
        self.http.post(url).bearer_auth(TOKEN).json(&body).send().await.unwrap().error_for_status().unwrap();
        id.parse().unwrap()
    }

    /// Ends the process as a crash would.
    pub fn kill9(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again on the same ports and data.
    pub async fn restart(&mut self) {
        self.process = spawn(self.port, self.admin, self.dir.path());
        self.ready().await;
    }

    async fn ready(&self) {
        let url = format!("http://127.0.0.1:{}/readyz", self.admin);
        let asking = async {
            while !self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), asking).await.unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn spawn(port: u16, admin: u16, dir: &std::path::Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_everthread"))
        .arg("serve")
        .args(["--listen", &format!("127.0.0.1:{port}"), "--admin", &format!("127.0.0.1:{admin}")])
        .args(["--token", TOKEN, "--data-dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
