//! The set-up of most tests of live control: a run that has begun on one node, and a client on another.

use super::worker::Job;
use super::{Client, Engine, Node, Worker, World, http};
use everthread_protocol::{Millis, RunId, SessionKey};
use everthread_store::{Loaded, Store as _};
use serde_json::{Value, json};

/// A run at work. The worker is at `here`, the client at `there`, and the session is `s`.
pub struct Begun<E: Engine> {
    pub client: Client,
    pub worker: Worker,
    pub job: Job,
    pub run: String,
    pub here: Node<E::Store>,
    pub there: Node<E::Store>,
    pub world: World<E>,
}

impl<E: Engine> Begun<E> {
    /// `w1` has room for one run of `guide`, has begun it, and has written nothing.
    pub async fn start() -> Self {
        Self::on(World::start().await, false).await
    }

    /// The same with a worker whose runs go on elsewhere if it dies.
    pub async fn retrying() -> Self {
        Self::on(World::start().await, true).await
    }

    /// The same with a lease that ends soon.
    pub async fn hurried() -> Self {
        Self::on(World::hurried().await, false).await
    }

    pub async fn on(world: World<E>, retries: bool) -> Self {
        let (here, there) = (world.node().await, world.node().await);
        http::create(here.address, "s").await;
        let run = http::input(here.address, "s", "Hi").await;
        let mut worker = if retries {
            Worker::join_retrying(here.address, "w1", "guide", 1).await
        } else {
            Worker::join(here.address, "w1", "guide", 1).await
        };
        let job = worker.work().await;
        assert_eq!(job.run, run);
        let client = worker.meanwhile(async {
            let mut client = Client::attach(there.address, "s", json!("start")).await;
            client.run_is(&run, "active").await;
            client
        });
        let client = client.await;
        Self { client, worker, job, run, here, there, world }
    }

    /// A control of the run, from the client.
    pub async fn ask(&mut self, id: &str, mut control: Value) {
        control["target"] = json!({ "run": self.run });
        self.client.ask(id, control).await;
    }

    /// The session as the store has it, from the client's node.
    pub async fn loaded(&self) -> Loaded {
        self.there.edge.desk.store().load(&key("s")).await.unwrap().unwrap()
    }

    /// When the lease of the run ends, on the store's clock; none once nobody holds it.
    pub async fn lease_ends(&self) -> Option<Millis> {
        let run: RunId = self.run.parse().unwrap();
        let leases = self.loaded().await.leases;
        leases.into_iter().find(|(id, _)| *id == run).map(|(_, ends)| ends)
    }

    /// The worker adds to its answer.
    pub async fn say(&mut self, text: &str) {
        self.worker.say(&mut self.job, text).await;
    }

    /// The worker ends its run, and the client sees it.
    pub async fn end(&mut self, outcome: &str) {
        let ack = self.worker.end(&mut self.job, outcome).await;
        assert_eq!(ack["t"], "ok", "{ack}");
        assert_eq!(self.client.ended(&self.run).await, outcome);
    }

    /// The client holds what both nodes say the session is.
    pub async fn all_agree(&mut self) {
        self.client.holds_the_state(self.here.address).await;
        self.client.holds_the_state(self.there.address).await;
    }
}

/// A session of the tests' one tenant.
pub fn key(session: &str) -> SessionKey {
    SessionKey { tenant: "default".parse().unwrap(), session: session.parse().unwrap() }
}
