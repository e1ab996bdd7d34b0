//! The checker finds each planted fault, and the same injuries without a fault leave it nothing to find.
//!
//! One test, for a fault is planted in the whole process: one after the other.

use crate::nodes::{LEASE, Small};
use everthread_chaos::check::{Promise, Rule};
use everthread_store::planted::Fault;
use std::time::Duration;
use tokio::time::sleep;

/// How often each injury is done where nothing is planted.
const TIMES: usize = 3;

/// The live feed breaks while entries are written, and comes back in the middle of them.
async fn lose_wake_ups(small: &mut Small) {
    for _ in 0..4 {
        sleep(Duration::from_millis(60)).await;
        small.redis.command("CLIENT KILL TYPE pubsub").await.unwrap();
    }
    sleep(Duration::from_millis(200)).await;
}

/// A node cannot reach Redis while its runs are given away; what it has sent arrives afterwards.
async fn cut_a_node_off(small: &mut Small) {
    sleep(Duration::from_millis(200)).await;
    small.proxy(0).stall();
    sleep(LEASE * 2).await;
    small.proxy(0).heal();
    sleep(Duration::from_millis(400)).await;
}

/// Redis comes back as it was some time ago.
async fn lose_a_tail(small: &mut Small) {
    sleep(Duration::from_millis(300)).await;
    assert_eq!(small.redis.command("SAVE").await.unwrap(), "+OK\r\n");
    sleep(Duration::from_millis(300)).await;
    small.redis.restart().await.unwrap();
    sleep(Duration::from_millis(800)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_finds_every_planted_fault_and_nothing_where_there_is_none() {
    let mut small = Small::start(Some(Fault::GapCheck), 1).await;
    small.until_found(Rule::Gap, Promise::Kept, lose_wake_ups).await;
    let mut small = Small::start(Some(Fault::Fence), 2).await;
    small.until_found(Rule::StaleFence, Promise::Kept, cut_a_node_off).await;
    let mut small = Small::start(Some(Fault::Reset), 3).await;
    small.until_found(Rule::MissingReset, Promise::MayLoseTail, lose_a_tail).await;

    let mut small = Small::start(None, 4).await;
    for _ in 0..TIMES {
        lose_wake_ups(&mut small).await;
        cut_a_node_off(&mut small).await;
    }
    let verdict = small.verdict_at_rest(Promise::Kept).await;
    assert_eq!(verdict.violations, []);
    for what in ["clients", "frames", "acknowledged", "confirmations", "runs", "tokens"] {
        assert!(verdict.looked.of(what) > 0, "{what}: {:?}", verdict.looked);
    }
}
