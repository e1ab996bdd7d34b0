//! The law of folding, in the stores: random logs, folded at random moments, read from random cursors, in both engines.

#[expect(dead_code, reason = "what the law of the pure fold needs besides")]
#[path = "../../../everthread-session/tests/it/log.rs"]
mod log;

use crate::suite::folding::{catch_up, folded, text};
use crate::suite::{ALL, append, change, fresh, one};
use everthread_protocol::Seq;
use everthread_session::fold::Limits;
use everthread_session::view::View;
use everthread_store::embedded::Embedded;
use everthread_store::redis::{Options, Redis};
use everthread_store::{Fold, Folded, Store, Write};
use everthread_testkit::RedisServer;
use log::{Log, make, steps};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What is done after a record was written.
#[derive(Debug, Clone)]
enum Then {
    Nothing,
    /// Folds so many parts of 255 of what is raw.
    Fold {
        part: u8,
        is_small: bool,
    },
    /// A reader goes on, in pages of some size.
    Read {
        reader: usize,
        bytes_max: usize,
    },
}

const READERS: usize = 4;

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![
        4 => Just(Then::Nothing),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(part, is_small)| Then::Fold { part, is_small }),
        2 => (0..READERS, prop::sample::select(vec![1, 400, ALL]))
            .prop_map(|(reader, bytes_max)| Then::Read { reader, bytes_max }),
    ]
}

/// Plays a log into a store, and tells what all readers see at its end.
async fn play<S: Store>(store: &S, log: &Log, plan: &[Then]) -> String {
    let key = fresh();
    store.write(&key, Write { change: Some(change(None, "s")), ..one() }).await.unwrap();
    let mut readers: Vec<View> = (0..READERS).map(|_| View::new()).collect();
    // It reads every record as soon as it is written, so it never meets a fold.
    let mut live = View::new();
    let mut cursors = vec![live.clone()];
    for (record, then) in log.records.iter().zip(plan.iter().cycle()) {
        let block = &record.parse_blocks().unwrap()[0];
        let count = u32::try_from(record.to.0 - record.from.0 + 1).unwrap();
        let write =
            Write { by: block.by.get(), run: block.run.as_ref(), ..append(block.entries.get(), count) };
        store.write(&key, write).await.unwrap();
        catch_up(store, &key, &mut live, ALL).await;
        cursors.push(live.clone());
        match then {
            Then::Nothing => {}
            Then::Read { reader, bytes_max } => {
                catch_up(store, &key, &mut readers[*reader], *bytes_max).await;
            }
            Then::Fold { part, is_small } => {
                let head = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
                let raw = head.seq.0 - head.folded_to.0;
                let to = Seq(head.folded_to.0 + raw * u64::from(*part) / 255);
                let small = Limits { record_bytes: 600, text_bytes: 20 };
                let limits = if *is_small { small } else { Limits::default() };
                let (epoch, records) = folded(store, &key, to, limits).await;
                if !records.is_empty() {
                    let result = store.fold(&key, Fold { epoch, records: &records }).await;
                    assert_eq!(result, Ok(Folded::Done));
                }
            }
        }
    }
    let whole = text(&live);
    for view in readers.iter_mut().chain(&mut cursors) {
        catch_up(store, &key, view, ALL).await;
        assert_eq!(text(view), whole);
    }
    let epoch = format!("\"{}\"", live.epoch());
    timeless(&whole.replace(&epoch, "\"epoch\""))
}

/// Without the times, which are the store's own.
fn timeless(view: &str) -> String {
    fn strip(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(map) => {
                map.remove("at");
                map.values_mut().for_each(strip);
            }
            serde_json::Value::Array(all) => all.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(view).unwrap();
    strip(&mut value);
    value.to_string()
}

#[test]
fn whenever_a_log_is_folded_every_cursor_comes_to_the_same_view_in_both_engines() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let server = runtime.block_on(RedisServer::start()).unwrap();
    let options = Options::new(server.url(), "et", "n1".parse().unwrap());
    let redis = runtime.block_on(Redis::connect(options, &TaskTracker::new(), &stop)).unwrap();
    let memory = Embedded::memory().unwrap();
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let plans = prop::collection::vec(then(), 1..40);
    proptest!(config, |(steps in steps(0..120), plan in plans)| {
        let log = make(&steps);
        let (left, right) = runtime.block_on(async {
            (play(&memory, &log, &plan).await, play(&redis, &log, &plan).await)
        });
        prop_assert_eq!(left, right);
    });
}
