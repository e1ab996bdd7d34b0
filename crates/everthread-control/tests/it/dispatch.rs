//! Runs find their workers, and none is left behind.

use everthread_control::{Assignment, Desk, Dispatcher, Leases, Numbered, Seat, TaskGroup, system_author};
use everthread_protocol::entry::{Object, Outcome, PutPart, Role};
use everthread_protocol::worker_frame::{Offer, OnLost};
use everthread_protocol::{PoolKey, SessionKey};
use everthread_session::Request;
use everthread_session::decide::Put;
use everthread_store::embedded::Embedded;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Long for a run to find its worker, and shorter than an item that was taken and left stays hidden. It is counted in moments,
/// which are longer on a machine that has no time for anybody.
const SOON: Duration = Duration::from_secs(4);
const MOMENT: Duration = Duration::from_millis(10);

struct Node {
    desk: Desk<Embedded>,
    dispatcher: Dispatcher<Embedded>,
    _tasks: TaskGroup,
}

fn node() -> Node {
    let tasks = TaskGroup::new();
    let desk = Desk::new(Arc::new(Embedded::memory().unwrap()), Leases::default());
    let dispatcher = Dispatcher::new(desk.clone(), "n1".parse().unwrap(), tasks.clone());
    Node { desk, dispatcher, _tasks: tasks }
}

impl Node {
    fn seat(&self, capacity: u32, occupied: u32) -> (Arc<Seat>, mpsc::Receiver<Assignment>) {
        let (assign, assigned) = mpsc::channel(64);
        let pool = PoolKey { tenant: "t".parse().unwrap(), agent: "guide".parse().unwrap() };
        let offer = Offer { name: pool.agent.clone(), capacity, on_lost: OnLost::End };
        (self.dispatcher.seat(pool, "w1".parse().unwrap(), &offer, occupied, assign), assigned)
    }

    async fn ask(&self, key: &SessionKey, request: Request) {
        self.desk.decide(key, &system_author(), &request, Numbered::No).await.unwrap();
    }

    async fn open(&self, name: &str) -> SessionKey {
        let key: SessionKey = format!("t/{name}").parse().unwrap();
        self.ask(&key, Request::Open { meta: Object::new() }).await;
        key
    }

    async fn put(&self, key: &SessionKey, message: &str) {
        let parts = vec![PutPart::text("hi")];
        let put = Put {
            message: message.parse().unwrap(),
            role: Role::User,
            parts,
            reply_to: None,
            agent: Some("guide".parse().unwrap()),
            params: None,
            when_busy: None,
            branch: None,
        };
        self.ask(key, Request::Put(put)).await;
    }

    async fn end(&self, done: Assignment) {
        let request = Request::End { run: done.id, outcome: Outcome::Completed, error: None, usage: None };
        self.ask(&done.key, request).await;
    }
}

async fn next(assigned: &mut mpsc::Receiver<Assignment>) -> Assignment {
    let soon = async {
        for _ in 0..SOON.as_millis() / MOMENT.as_millis() {
            tokio::time::sleep(MOMENT).await;
        }
    };
    tokio::select! {
        biased;
        assignment = assigned.recv() => assignment.unwrap(),
        () = soon => panic!("a run waits and nobody gets it"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_behind_another_is_taken_when_that_one_ends() {
    let node = node();
    let (seat, mut assigned) = node.seat(8, 0);
    for n in 0..40 {
        let key = node.open(&format!("s{n}")).await;
        node.put(&key, "i1").await;
        node.put(&key, "i2").await;
        node.put(&key, "i3").await;
    }
    for _ in 0..120 {
        let assignment = next(&mut assigned).await;
        node.end(assignment).await;
        seat.release();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_given_back_is_taken_again() {
    let node = node();
    let (seat, mut assigned) = node.seat(2, 0);
    for n in 0..40 {
        let key = node.open(&format!("s{n}")).await;
        node.put(&key, "i1").await;
        let first = next(&mut assigned).await;
        assert!(node.desk.give_back(&key, &first.id, &"w1".parse().unwrap(), 1).await);
        seat.release();
        // What comes late of the first attempt does not touch the second.
        let second = next(&mut assigned).await;
        assert_eq!((second.attempt(), &second.id), (2, &first.id));
        assert!(node.desk.give_back(&key, &first.id, &"w1".parse().unwrap(), 1).await);
        node.end(second).await;
        seat.release();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_takes_no_more_than_it_offers_nor_anything_once_it_drains() {
    let node = node();
    let (seat, mut assigned) = node.seat(1, 2);
    let key = node.open("s").await;
    node.put(&key, "i1").await;
    // Two runs from before and one place: only the end of both makes room.
    seat.release();
    let nothing = tokio::time::timeout(Duration::from_millis(1_500), assigned.recv()).await;
    assert!(nothing.is_err(), "the worker holds one run and offers one place");
    seat.release();
    let first = next(&mut assigned).await;
    seat.drain();
    node.end(first).await;
    seat.release();
    node.put(&key, "i2").await;
    assert!(tokio::time::timeout(Duration::from_millis(1_500), assigned.recv()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_whose_worker_is_gone_is_tried_once() {
    let node = node();
    // Somebody holds the seat still, as a claim under way does.
    let (_gone, nobody) = node.seat(64, 0);
    drop(nobody);
    let (seat, mut assigned) = node.seat(1, 0);
    for n in 0..4 {
        let key = node.open(&format!("s{n}")).await;
        node.put(&key, "i1").await;
        let got = next(&mut assigned).await;
        assert!(got.attempt() <= if n == 0 { 2 } else { 1 }, "attempt {} of run {n}", got.attempt());
        node.end(got).await;
        seat.release();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_not_heard_from_gets_nothing_until_it_is() {
    let node = node();
    let (silent, mut assigned) = node.seat(64, 0);
    silent.set_silent(true);
    let (_seat, mut others) = node.seat(1, 0);
    let key = node.open("s1").await;
    node.put(&key, "i1").await;
    next(&mut others).await;
    let key = node.open("s2").await;
    node.put(&key, "i1").await;
    assert!(tokio::time::timeout(Duration::from_millis(1_500), assigned.recv()).await.is_err());
    silent.set_silent(false);
    assert_eq!(next(&mut assigned).await.key, key);
}
