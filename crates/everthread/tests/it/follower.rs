//! Followers that check what they get, and an agent that writes.

use crate::node::{Node, PATIENCE, TOKEN};
use everthread_client::{Client, Event, From};
use everthread_protocol::{Cursor, SessionId};
use everthread_session::view::{RunStatus, View};
use everthread_worker::{CancellationToken, Error, Role, Run, Worker};
use serde_json::Value;
use std::time::Duration;
use tokio::task::JoinSet;

/// An agent that writes numbered words.
#[derive(Debug, Clone, Copy)]
pub struct Streamer {
    pub tokens: usize,
    pub pause_ms: u64,
    /// Whether each token is confirmed before the next, so that each is a block of its own.
    pub each_alone: bool,
}

/// Stops its worker when dropped.
pub struct Serving(CancellationToken);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Streamer {
    /// Serves the agent `streamer` until the guard is dropped.
    pub fn serve(self, node: &Node, capacity: usize) -> Serving {
        self.serve_at(&node.url, capacity)
    }

    /// The same, by another way to a node.
    pub fn serve_at(self, url: &str, capacity: usize) -> Serving {
        let stop = CancellationToken::new();
        let worker = Worker::builder(url, TOKEN)
            .agent("streamer", u32::try_from(capacity).unwrap(), move |run| self.write(run))
            .drain_deadline(Duration::ZERO)
            .connect()
            .unwrap();
        let stopped = stop.clone();
        // A thread of its own: the crowd must not starve the writer.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(worker.run(stopped)).unwrap();
        });
        Serving(stop)
    }

    async fn write(self, run: Run) -> Result<(), Error> {
        let mut message = run.message(Role::Assistant).await?;
        let mut text = message.text().await?;
        for number in 0..self.tokens {
            text.append(&format!("{number}é ")).await?;
            if self.each_alone {
                run.flushed().await?;
            }
            if self.pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(self.pause_ms)).await;
            }
        }
        message.complete().await
    }
}

/// Whether the run that was asked for has ended.
pub fn is_over(view: &View) -> bool {
    view.runs().first().is_some_and(|run| run.status == RunStatus::Ended)
}

/// Follows a session to the end of its run, leaving and coming back after every few frames, and returns what it holds.
async fn come_and_go(url: String, session: SessionId, mut seed: u64) -> View {
    let mut view = View::new();
    loop {
        let client = Client::builder(&url, TOKEN).connect();
        let from = match view.seq().0 {
            0 => From::Start,
            _ => From::Cursor(Cursor { epoch: view.epoch(), seq: view.seq() }),
        };
        let mut follow = client.follow_raw(session.clone(), from).await.unwrap();
        // A fixed sequence per follower: the same seed leaves at the same frames.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut left = 5 + (seed >> 33) % 60;
        while left > 0 {
            match follow.next().await.expect("the client gave up") {
                Event::Entries(frame) => {
                    view.apply_blocks(&frame.entries().unwrap()).unwrap();
                    if is_over(&view) {
                        return view;
                    }
                    left -= 1;
                }
                Event::Attached { resumed, .. } => assert!(resumed, "the cursor was not taken"),
                Event::Live(_) | Event::Lag(_) | Event::Disconnected => {}
                other => panic!("{other:?}"),
            }
        }
        drop(follow);
        client.close().await;
    }
}

/// Followers of several sessions.
pub struct Crowd(JoinSet<(String, View)>);

impl Crowd {
    /// Makes sessions with one question each, and followers for them.
    pub async fn gather(node: &Node, sessions: usize, followers: usize) -> Crowd {
        let mut crowd = JoinSet::new();
        for number in 0..sessions {
            let session = format!("s{number}");
            node.ask(&session, "streamer", "go").await;
            for follower in 0..followers {
                let (url, session) = (node.url.clone(), session.clone());
                let seed = (number * 1000 + follower) as u64;
                crowd.spawn(async move {
                    let view = come_and_go(url, session.parse().unwrap(), seed).await;
                    (session, view)
                });
            }
        }
        Crowd(crowd)
    }

    /// Waits for all and compares what each holds with what the server holds.
    pub async fn all_end_like_the_server(mut self, node: &Node) {
        let mut known: std::collections::HashMap<String, Value> = std::collections::HashMap::new();
        while let Some(ended) =
            tokio::time::timeout(PATIENCE * 2, self.0.join_next()).await.expect("some never end")
        {
            let (session, view) = ended.unwrap();
            if !known.contains_key(&session) {
                known.insert(session.clone(), node.get(&format!("/v1/sessions/{session}/state")).await);
            }
            assert_eq!(serde_json::to_value(&view).unwrap(), known[&session], "{session}");
        }
        for (session, state) in known {
            assert_eq!(state["runs"][0]["outcome"], "completed", "{session}");
        }
    }
}
