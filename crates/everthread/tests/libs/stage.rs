//! What the tests of the libraries have in common.

use crate::node::{Node, TOKEN};
use everthread_client::{Client, Event, Follow};
use everthread_session::view::{Run as RunView, RunStatus, View};
use everthread_worker::{Builder, CancellationToken, Worker};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// For anything that should happen; a test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// A worker in this process, and a client that follows a fresh session.
pub struct Stage {
    tasks: TaskTracker,
    stop: CancellationToken,
    pub client: Client,
}

impl Stage {
    pub fn new(node: &Node, agents: impl FnOnce(Builder) -> Builder) -> Stage {
        let stage = Stage::idle(node);
        stage.work(node, &stage.stop, agents);
        stage
    }

    /// Without a worker.
    pub fn idle(node: &Node) -> Stage {
        let client = Client::builder(node.url(), TOKEN).connect();
        Stage { tasks: TaskTracker::new(), stop: CancellationToken::new(), client }
    }

    /// One more worker, until `stop`.
    pub fn work(&self, node: &Node, stop: &CancellationToken, agents: impl FnOnce(Builder) -> Builder) {
        let worker = agents(Worker::builder(node.url(), TOKEN)).drain_deadline(Duration::from_millis(100));
        self.tasks.spawn(worker.connect().unwrap().run(stop.clone()));
    }

    pub async fn close(self) {
        self.client.close().await;
        self.stop.cancel();
        self.tasks.close();
        timeout(DEADLINE, self.tasks.wait()).await.unwrap();
    }
}

/// Follows until the view is as wanted.
pub async fn until<T>(follow: &mut Follow, mut wanted: impl FnMut(&View) -> Option<T>) -> T {
    let following = async {
        loop {
            if let Some(found) = wanted(follow.view().unwrap()) {
                return found;
            }
            let event = follow.next().await.unwrap();
            assert!(!matches!(event, Event::Gone(_) | Event::Reset(_)), "{event:?}");
        }
    };
    match timeout(DEADLINE, following).await {
        Ok(found) => found,
        Err(_) => panic!("not in time; the view is {:#?}", follow.view()),
    }
}

pub fn ended(view: &View, agent: &str) -> Option<RunView> {
    view.runs().iter().find(|run| run.agent.as_str() == agent && run.status == RunStatus::Ended).cloned()
}

pub fn answer(view: &View, agent: &str) -> String {
    let of = |run: &everthread_protocol::RunId| view.run(run).is_some_and(|run| run.agent.as_str() == agent);
    let message = view.messages().iter().find(|message| message.run.as_ref().is_some_and(of));
    message.map_or_else(String::new, |m| m.parts[0].value.as_str().unwrap_or_default().to_owned())
}

/// The last run of an agent.
pub fn last_run(view: &View, agent: &str) -> Option<RunView> {
    view.runs().iter().rev().find(|run| run.agent.as_str() == agent).cloned()
}

/// The texts of a run's messages.
pub fn texts(view: &View, run: &everthread_protocol::RunId) -> Vec<String> {
    let own = view.messages().iter().filter(|message| message.run.as_ref() == Some(run));
    let text = |message: &everthread_session::view::Message| {
        let parts = message.parts.iter().filter_map(|part| part.value.as_str());
        parts.collect::<String>()
    };
    own.map(text).collect()
}
