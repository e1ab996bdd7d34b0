//! Traces, as a collector gets them: from the worker's append at one node to the client's frame at another.

use crate::follower::{Streamer, is_over};
use crate::node::{Node, PATIENCE, TOKEN};
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use everthread_client::{Client, Event, Follow, From};
use everthread_testkit::{RedisOptions, RedisServer};
use everthread_worker::{CancellationToken, Error, Role, Run, Worker};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Takes what is exported.
struct Collector {
    url: String,
    got: Arc<Mutex<Vec<Value>>>,
}

/// A span, and the node that made it.
#[derive(Debug, Clone)]
struct Spanned {
    node: String,
    span: Value,
}

impl Spanned {
    fn is(&self, name: &str, node: &str) -> bool {
        self.span["name"] == name && self.node == node
    }

    fn at(&self, field: &str) -> u64 {
        self.span[field].as_str().unwrap().parse().unwrap()
    }

    fn attribute(&self, key: &str) -> Value {
        attribute(&self.span["attributes"], key)
    }
}

fn attribute(all: &Value, key: &str) -> Value {
    let found = all.as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
    found.map_or(Value::Null, |found| found["value"].clone())
}

async fn take(State(got): State<Arc<Mutex<Vec<Value>>>>, Json(body): Json<Value>) -> Json<Value> {
    got.lock().unwrap().push(body);
    Json(json!({}))
}

impl Collector {
    async fn start() -> Collector {
        let got = Arc::<Mutex<Vec<Value>>>::default();
        let routes = Router::new().route("/v1/traces", post(take)).with_state(got.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let listener = listener.into_std().unwrap();
            runtime.block_on(async move {
                axum::serve(TcpListener::from_std(listener).unwrap(), routes).await.unwrap();
            });
        });
        Collector { url, got }
    }

    fn spans(&self) -> Vec<Spanned> {
        let mut spans = Vec::new();
        for resource in
            self.got.lock().unwrap().iter().flat_map(|body| body["resourceSpans"].as_array().unwrap())
        {
            let about = &resource["resource"]["attributes"];
            assert_eq!(attribute(about, "service.name")["stringValue"], "everthread");
            let node = attribute(about, "service.instance.id")["stringValue"].as_str().unwrap().to_owned();
            let scopes = resource["scopeSpans"].as_array().unwrap();
            for span in scopes.iter().flat_map(|scope| scope["spans"].as_array().unwrap()) {
                spans.push(Spanned { node: node.clone(), span: span.clone() });
            }
        }
        spans
    }

    /// Waits for a span.
    async fn wait_for(&self, is_it: impl Fn(&Spanned) -> bool) -> Spanned {
        let started = Instant::now();
        loop {
            if let Some(found) = self.spans().into_iter().find(&is_it) {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "it did not come: {:?}", self.spans());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Serves the agent `traced`, whose application is in the middle of a span.
fn serve(node: &Node) -> CancellationToken {
    let stop = CancellationToken::new();
    let write = |run: Run| async move {
        let mut message = run.message(Role::Assistant).await?;
        let mut text = message.text().await?;
        run.flushed().await?;
        run.set_traceparent(Some(&format!("00-{TRACE}-{SPAN}-01")));
        text.append("traced ").await?;
        run.flushed().await?;
        run.set_traceparent(None);
        text.append("and not").await?;
        message.complete().await?;
        Ok::<(), Error>(())
    };
    let worker = Worker::builder(&node.url, TOKEN).agent("traced", 1, write).connect().unwrap();
    let stopped = stop.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(worker.run(stopped)).unwrap();
    });
    stop
}

async fn until_over(follow: &mut Follow) {
    let over = async {
        while !follow.view().is_some_and(is_over) {
            follow.next().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, over).await.unwrap();
}

/// The traces that stand in the blocks of a session.
async fn traces_in_log(node: &Node, session: &str) -> Vec<String> {
    let page = node.get(&format!("/v1/sessions/{session}/entries?after=0")).await;
    let records = page["records"].as_array().unwrap();
    let blocks = records.iter().flat_map(|record| record["blocks"].as_array().unwrap());
    blocks.filter_map(|block| block["trace"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_from_the_append_of_a_worker_to_the_frame_of_a_client_at_another_node() {
    let (collector, dir) = (Collector::start().await, tempfile::tempdir().unwrap());
    let redis = RedisServer::start_with(RedisOptions { tcp: true, ..RedisOptions::default() }).await.unwrap();
    let url = redis.tcp_url();
    // Only what the worker wants to have traced.
    let args =
        |node| ["serve", "--redis", &url, "--otlp", &collector.url, "--otlp-ratio", "0", "--node", node];
    let (here, there) =
        (Node::start(dir.path(), &args("here")).await, Node::start(dir.path(), &args("there")).await);
    let stop = serve(&here);
    here.post("/v1/sessions", json!({ "session": "s", "agent": "traced" })).await;
    let client = Client::builder(&there.url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    while !matches!(follow.next().await.unwrap(), Event::Live(_)) {}
    here.input("s", json!({ "text": "go" })).await;
    until_over(&mut follow).await;

    let deliver = collector.wait_for(|span| span.is("deliver", "there")).await;
    let append = collector.wait_for(|span| span.is("append", "here")).await;
    let store = collector.wait_for(|span| span.is("store write", "here")).await;
    for span in [&deliver, &append, &store] {
        assert_eq!(span.span["traceId"], TRACE, "{span:?}");
        assert_eq!(span.attribute("everthread.session")["stringValue"], "s");
        assert!(span.at("startTimeUnixNano") <= span.at("endTimeUnixNano"), "{span:?}");
    }
    assert_eq!(append.span["parentSpanId"], SPAN, "what the worker was in");
    assert_eq!(store.span["parentSpanId"], append.span["spanId"]);
    assert_eq!(deliver.span["parentSpanId"], append.span["spanId"]);
    assert_eq!(
        (&append.span["kind"], &store.span["kind"], &deliver.span["kind"]),
        (&json!(2), &json!(3), &json!(5))
    );
    assert_eq!(append.attribute("everthread.agent")["stringValue"], "traced");
    // What comes right behind it may be delivered in the same turn, of which the span has the last seq.
    let seq = |span: &Spanned| {
        span.attribute("everthread.seq")["intValue"].as_str().unwrap().parse::<u64>().unwrap()
    };
    assert!(seq(&append) <= seq(&deliver), "{append:?} {deliver:?}");
    // One machine, one clock.
    assert!(append.at("startTimeUnixNano") <= store.at("startTimeUnixNano"));
    assert!(store.at("endTimeUnixNano") <= append.at("endTimeUnixNano"));
    assert!(append.at("startTimeUnixNano") <= deliver.at("startTimeUnixNano"));
    // One append was traced, and no other.
    let names: Vec<Value> = collector.spans().into_iter().map(|span| span.span["name"].clone()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(here.metric("everthread_spans_total", "exported").await, 2.0);
    let span = append.span["spanId"].as_str().unwrap();
    assert_eq!(traces_in_log(&here, "s").await, [format!("00-{TRACE}-{span}-01")]);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_is_traced_from_its_acceptance_to_its_outcome() {
    let (collector, dir) = (Collector::start().await, tempfile::tempdir().unwrap());
    let args = ["serve", "--otlp", &collector.url, "--otlp-ratio", "1", "--node", "n"];
    let node = Node::start(dir.path(), &args).await;
    let _worker = Streamer { tokens: 100_000, pause_ms: 5, each_alone: true }.serve(&node, 1);
    let run = node.ask("s", "streamer", "go").await;
    collector.wait_for(|span| span.is("append", "n")).await;
    let ask = json!({ "id": "c1", "kind": "cancel", "target": { "run": run } });
    assert_eq!(node.control("s", ask, 20_000).await["outcome"], "applied");
    let control = collector.wait_for(|span| span.is("control", "n")).await;
    assert_eq!(control.attribute("everthread.outcome")["stringValue"], "applied");
    assert_eq!(control.attribute("everthread.control")["stringValue"], "c1");
    assert!(control.span.get("parentSpanId").is_none() && control.at("startTimeUnixNano") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stops_exports_what_it_has_and_a_part_of_what_is_not_asked_for_is_traced() {
    let (collector, dir) = (Collector::start().await, tempfile::tempdir().unwrap());
    let args = ["serve", "--otlp", &collector.url, "--otlp-ratio", "0.5"];
    let mut node = Node::start(dir.path(), &args).await;
    let _worker = Streamer { tokens: 200, pause_ms: 0, each_alone: true }.serve(&node, 1);
    node.ask("s", "streamer", "go").await;
    let client = Client::builder(&node.url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    until_over(&mut follow).await;
    let appends = node.metric("everthread_appends_total", "\"ok\"").await;
    assert!(node.terminate().success());
    let appended = collector.spans().into_iter().filter(|span| span.span["name"] == "append");
    let roots: Vec<Value> = appended.map(|span| span.span).collect();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let part = roots.len() as f64 / appends;
    assert!((0.3..0.7).contains(&part), "{} of {appends}", roots.len());
    assert!(roots.iter().all(|span| span.get("parentSpanId").is_none()));
    let traces: std::collections::HashSet<_> = roots.iter().map(|span| span["traceId"].to_string()).collect();
    assert_eq!(traces.len(), roots.len(), "each a trace of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_not_there_costs_nothing_but_the_traces() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody listens there any more.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let node =
        Node::start(dir.path(), &["serve", "--otlp", &format!("http://{address}"), "--otlp-ratio", "1"])
            .await;
    let _worker = Streamer { tokens: 50, pause_ms: 0, each_alone: true }.serve(&node, 1);
    node.ask("s", "streamer", "go").await;
    let client = Client::builder(&node.url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    until_over(&mut follow).await;
    let failed = async |node: &Node| node.metric("everthread_spans_total", "failed").await >= 50.0;
    node.wait_until("counted", failed).await;
    assert_eq!(node.log().matches("traces cannot be exported").count(), 1, "said once");
    assert!(node.is_ready().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_traced_unless_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["serve"]).await;
    let stop = serve(&node);
    node.ask("s", "traced", "go").await;
    let client = Client::builder(&node.url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    until_over(&mut follow).await;
    assert_eq!(traces_in_log(&node, "s").await, [""; 0]);
    assert_eq!(node.metric("everthread_spans_total", "").await, 0.0);
    stop.cancel();
}
