//! The worker for OpenAI-compatible models as a process of its own, with a model and tools that the test plays.

use crate::node::{Node, TOKEN};
use crate::stage::{DEADLINE, Stage, ended, last_run, texts, until};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use everthread_client::{Ask, Follow, From, Mode, Receipt, Stage as Stages, Target};
use everthread_protocol::RunId;
use everthread_protocol::entry::{Outcome, PartKind};
use everthread_session::view::{PartState, RunStatus, View};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// What the model says to one request.
enum Line {
    Say(&'static str),
    /// Says this, and then nothing until the connection is dropped.
    Begin(&'static str),
    /// Says this as soon as the token fires.
    SayWhen(CancellationToken, &'static str),
    /// Says nothing until the token fires, and then this.
    Wait(CancellationToken, &'static str),
    Call(Vec<(&'static str, Value)>),
}

#[derive(Default)]
struct Seen {
    /// Conversations that the model was sent.
    asked: Vec<Value>,
    /// Tool, idempotency key, arguments.
    called: Vec<(String, String, Value)>,
    /// Answers that were given up.
    dropped: usize,
}

/// A model and its tools.
#[derive(Clone)]
struct Play {
    lines: Arc<Mutex<VecDeque<Line>>>,
    seen: Arc<watch::Sender<Seen>>,
}

impl Play {
    fn new(lines: impl IntoIterator<Item = Line>) -> Play {
        let lines = Arc::new(Mutex::new(lines.into_iter().collect()));
        Play { lines, seen: Arc::new(watch::Sender::new(Seen::default())) }
    }

    async fn until<T>(&self, mut wanted: impl FnMut(&Seen) -> Option<T>) -> T {
        let mut seen = self.seen.subscribe();
        let mut found = None;
        let waiting = seen.wait_for(|seen| {
            found = wanted(seen);
            found.is_some()
        });
        timeout(DEADLINE, waiting).await.unwrap().unwrap();
        found.unwrap()
    }
}

fn chunk(delta: Value, finish: Option<&str>) -> String {
    format!("data: {}\n\n", json!({ "choices": [{ "delta": delta, "finish_reason": finish }] }))
}

fn said(text: &str) -> String {
    text.split_inclusive(' ').map(|word| chunk(json!({ "content": word }), None)).collect()
}

fn end(finish: &str) -> String {
    chunk(json!({}), Some(finish)) + "data: [DONE]\n\n"
}

async fn completions(State(play): State<Play>, Json(body): Json<Value>) -> Body {
    play.seen.send_modify(|seen| seen.asked.push(body));
    let line = play.lines.lock().unwrap().pop_front();
    match line.unwrap_or(Line::Say("nothing left to say")) {
        Line::Say(text) => Body::from(said(text) + &end("stop")),
        Line::SayWhen(token, text) => {
            let waiting = async move {
                token.cancelled().await;
                Ok::<_, Infallible>(Bytes::from(said(text) + &end("stop")))
            };
            let first = futures_util::stream::once(async { Ok(Bytes::from(said("well, "))) });
            Body::from_stream(futures_util::StreamExt::chain(first, futures_util::stream::once(waiting)))
        }
        Line::Wait(token, text) => {
            token.cancelled().await;
            Body::from(said(text) + &end("stop"))
        }
        Line::Begin(text) => {
            let first =
                futures_util::stream::once(async move { Ok::<_, Infallible>(Bytes::from(said(text))) });
            let seen = play.seen.clone();
            let dropped = Dropped(seen);
            let rest = futures_util::stream::once(async move {
                let _dropped = dropped;
                std::future::pending::<Result<Bytes, Infallible>>().await
            });
            Body::from_stream(futures_util::StreamExt::chain(first, rest))
        }
        Line::Call(calls) => {
            let mut out = said("I look. ");
            for (index, (name, arguments)) in calls.into_iter().enumerate() {
                let text = arguments.to_string();
                let (one, two) = text.split_at(text.len() / 2);
                let call = json!({ "index": index, "id": format!("call{index}"), "type": "function", "function": { "name": name, "arguments": one } });
                out += &chunk(json!({ "tool_calls": [call] }), None);
                let more = json!({ "index": index, "function": { "arguments": two } });
                out += &chunk(json!({ "tool_calls": [more] }), None);
            }
            Body::from(out + &end("tool_calls"))
        }
    }
}

/// Notes that an answer was given up.
struct Dropped(Arc<watch::Sender<Seen>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.send_modify(|seen| seen.dropped += 1);
    }
}

async fn tool(
    State(play): State<Play>,
    axum::extract::Path(name): axum::extract::Path<String>,
    headers: HeaderMap,
    Json(arguments): Json<Value>,
) -> Json<Value> {
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let is_first = play.seen.borrow().called.is_empty();
    play.seen.send_modify(|seen| seen.called.push((name.clone(), key, arguments)));
    if is_first && name == "hang" {
        return std::future::pending().await;
    }
    Json(json!({ "done": name }))
}

/// A node, the worker, and a session that is followed.
struct Scene {
    stage: Stage,
    follow: Follow,
    play: Play,
    worker: Worker,
    _node: Node,
    _server: DropGuard,
    _dir: tempfile::TempDir,
}

struct Worker {
    process: Child,
    args: Vec<String>,
}

impl Worker {
    fn start(args: Vec<String>) -> Worker {
        let process = Command::new(env!("CARGO_BIN_EXE_everthread"))
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Worker { process, args }
    }

    fn kill9(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Scene {
    async fn new(session: &str, lines: impl IntoIterator<Item = Line>) -> Scene {
        let node = Node::start().await;
        let session = node.session(session).await;
        let play = Play::new(lines);
        let app = Router::new()
            .route("/v1/chat/completions", post(completions))
            .route("/tools/{name}", post(tool))
            .with_state(play.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let stopped = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            tokio::select! {
                result = axum::serve(listener, app) => result.unwrap(),
                () = stopped => {}
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let tools = dir.path().join("tools.json");
        let declare = |name: &str, dangerous: bool| {
            json!({ "name": name, "description": name, "parameters": { "type": "object" },
                    "url": format!("{base}/tools/{name}"), "dangerous": dangerous })
        };
        let list = json!([declare("look", false), declare("wipe", true), declare("hang", false)]);
        std::fs::write(&tools, list.to_string()).unwrap();
        let args = ["worker", "openai", "--agent", "model", "--model", "m", "--token", TOKEN];
        let args = args.into_iter().map(str::to_owned).chain([
            "--url".to_owned(),
            node.url(),
            "--base-url".to_owned(),
            format!("{base}/v1"),
            "--tools".to_owned(),
            tools.to_str().unwrap().to_owned(),
        ]);
        let worker = Worker::start(args.collect());
        let stage = Stage::idle(&node);
        let follow = stage.client.follow(session, From::Start).await.unwrap();
        Scene { stage, follow, play, worker, _node: node, _server: stop.drop_guard(), _dir: dir }
    }

    async fn ask(&mut self, text: &str) -> RunId {
        self.follow.session().input(text, Some("model")).await.unwrap().run.unwrap()
    }

    async fn says(&mut self, run: &RunId, text: &str) {
        until(&mut self.follow, |view| texts(view, run).iter().any(|said| said.contains(text)).then_some(()))
            .await;
    }

    async fn control(&self, ask: Ask) {
        let asked = self.follow.session().control(ask).await.unwrap();
        let outcome = timeout(DEADLINE, asked.settled()).await.unwrap().unwrap();
        assert!(outcome.is_applied(), "{outcome:?}");
    }

    async fn ended(&mut self) -> everthread_session::view::Run {
        until(&mut self.follow, |view| ended(view, "model")).await
    }

    /// Answers the approval that the run waits for.
    async fn answer(&mut self, is_approved: bool) {
        let run = until(&mut self.follow, |view| {
            last_run(view, "model").filter(|run| run.status == RunStatus::Suspended)
        });
        let run = run.await;
        let asked = &run.approvals.last().unwrap().asked;
        assert_eq!(asked.data.as_ref().unwrap()["tool"], "wipe");
        let answer = if is_approved { Ask::approve } else { Ask::deny };
        let digest = asked.digest.clone().unwrap();
        self.control(answer(run.run.clone(), asked.approval.clone()).digest(digest)).await;
    }

    async fn close(self) {
        drop(self.follow);
        self.stage.close().await;
    }
}

/// The roles and contents of a request.
fn conversation(asked: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let messages = asked["messages"].as_array().unwrap();
    messages.iter().map(|message| (text(&message["role"]), text(&message["content"]))).collect()
}

fn is(sent: &[(String, String)], expected: &[(&str, &str)]) {
    let sent: Vec<(&str, &str)> = sent.iter().map(|(role, content)| (&**role, &**content)).collect();
    assert_eq!(sent, expected);
}

/// How the calls of tools of a run stand.
fn calls(view: &View, run: &RunId) -> Vec<PartState> {
    let own = view.messages().iter().filter(|message| message.run.as_ref() == Some(run));
    own.flat_map(|m| &m.parts).filter(|p| p.kind == PartKind::ToolCall).map(|p| p.status).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_closes_the_connection_to_the_model() {
    let mut scene = Scene::new("cancel", [Line::Begin("once upon a time ")]).await;
    let run = scene.ask("a story").await;
    scene.says(&run, "once upon a time").await;
    scene.control(Ask::cancel(Target::Run(run))).await;
    scene.play.until(|seen| (seen.dropped == 1).then_some(())).await;
    assert_eq!(scene.ended().await.outcome, Some(Outcome::Cancelled));
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_steer_gives_the_answer_up_and_asks_again_with_the_message() {
    let mut scene = Scene::new("now", [Line::Begin("once upon "), Line::Say("fine, shorter")]).await;
    let run = scene.ask("a story").await;
    scene.says(&run, "once upon").await;
    scene.control(Ask::steer(Target::Run(run.clone()), "shorter").mode(Mode::Now)).await;
    scene.play.until(|seen| (seen.dropped == 1).then_some(())).await;
    assert_eq!(scene.ended().await.outcome, Some(Outcome::Completed));
    assert_eq!(texts(scene.follow.view().unwrap(), &run), ["once upon ", "fine, shorter"]);
    let sent = scene.play.until(|seen| seen.asked.get(1).map(conversation)).await;
    is(&sent, &[("user", "a story"), ("assistant", "once upon "), ("user", "shorter")]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patient_steer_waits_for_the_answer_and_then_asks_again() {
    let go_on = CancellationToken::new();
    let lines = [Line::SayWhen(go_on.clone(), "the end"), Line::Say("once more")];
    let mut scene = Scene::new("next", lines).await;
    let run = scene.ask("a story").await;
    scene.says(&run, "well,").await;
    let ask = Ask::steer(Target::Run(run.clone()), "another");
    let mut asked = scene.follow.session().control(ask).await.unwrap();
    let delivered = async {
        while !matches!(asked.next().await, Ok(Some(Receipt { stage: Stages::Delivered { .. }, .. }))) {}
    };
    timeout(DEADLINE, delivered).await.unwrap();
    go_on.cancel();
    let outcome = timeout(DEADLINE, asked.settled()).await.unwrap().unwrap();
    assert!(outcome.is_applied(), "{outcome:?}");
    scene.ended().await;
    assert_eq!(texts(scene.follow.view().unwrap(), &run), ["well, the end", "once more"]);
    let sent = scene.play.until(|seen| seen.asked.get(1).map(conversation)).await;
    is(&sent, &[("user", "a story"), ("assistant", "well, the end"), ("user", "another")]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dangerous_tool_is_called_once_somebody_has_approved_and_the_model_is_not_asked_again() {
    let both = vec![("look", json!({ "at": "disk" })), ("wipe", json!({ "path": "/scratch", "all": true }))];
    let mut scene = Scene::new("approve", [Line::Call(both), Line::Say("all gone")]).await;
    let run = scene.ask("clean up").await;
    let looked = scene.play.until(|seen| seen.called.first().cloned()).await;
    assert_eq!((looked.0.as_str(), looked.2), ("look", json!({ "at": "disk" })));
    // People have as long as they need: no worker waits for them.
    until(&mut scene.follow, |view| last_run(view, "model").filter(|r| r.status == RunStatus::Suspended))
        .await;
    scene.worker.kill9();
    scene.worker = Worker::start(scene.worker.args.clone());
    scene.answer(true).await;
    let ended = scene.ended().await;
    assert_eq!((ended.outcome, ended.attempt), (Some(Outcome::Completed), Some(2)), "{ended:?}");
    let (asked, called) = scene.play.until(|seen| Some((seen.asked.clone(), seen.called.clone()))).await;
    let names: Vec<&str> = called.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["look", "wipe"], "each once");
    assert!(called[1].1.starts_with(&format!("{run}.")) && called[0].1 != called[1].1, "{called:?}");
    assert_eq!(asked.len(), 2);
    let messages = asked[1]["messages"].as_array().unwrap();
    let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool"]);
    assert_eq!(messages[3]["content"], r#"{"done":"wipe"}"#);
    assert_eq!(calls(scene.follow.view().unwrap(), &run), [PartState::Done; 2]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_tool_is_not_called_and_the_model_is_told() {
    let wipe = vec![("wipe", json!({ "path": "/" }))];
    let mut scene = Scene::new("deny", [Line::Call(wipe), Line::Say("then not")]).await;
    let run = scene.ask("clean up").await;
    scene.answer(false).await;
    assert_eq!(scene.ended().await.outcome, Some(Outcome::Completed));
    assert_eq!(scene.play.until(|seen| Some(seen.called.len())).await, 0);
    let sent = scene.play.until(|seen| seen.asked.get(1).map(conversation)).await;
    assert!(sent[2].1.contains("denied by a person"), "{sent:?}");
    assert_eq!(calls(scene.follow.view().unwrap(), &run), [PartState::Denied]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_worker_dies_is_made_again_with_its_key_and_the_model_is_not_asked_for_it() {
    let hang = vec![("hang", json!({ "n": 1 }))];
    let mut scene = Scene::new("key", [Line::Call(hang), Line::Say("there it is")]).await;
    let run = scene.ask("go").await;
    scene.play.until(|seen| seen.called.first().map(|_| ())).await;
    scene.worker.kill9();
    scene.worker = Worker::start(scene.worker.args.clone());
    let ended = scene.ended().await;
    assert_eq!((ended.outcome, ended.attempt), (Some(Outcome::Completed), Some(2)), "{ended:?}");
    let (asked, called) = scene.play.until(|seen| Some((seen.asked.len(), seen.called.clone()))).await;
    assert_eq!((asked, called.len()), (2, 2));
    assert_eq!(called[0], called[1], "the tool can know by the key that it is the same call");
    assert_eq!(texts(scene.follow.view().unwrap(), &run), ["I look. ", "there it is"]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_worker_dies_is_asked_for_again_and_stands_there_once() {
    let mut scene = Scene::new("died", [Line::Begin("once upon "), Line::Say("a new one")]).await;
    let run = scene.ask("a story").await;
    scene.says(&run, "once upon").await;
    scene.worker.kill9();
    scene.worker = Worker::start(scene.worker.args.clone());
    let ended = scene.ended().await;
    assert_eq!((ended.outcome, ended.attempt), (Some(Outcome::Completed), Some(2)), "{ended:?}");
    assert_eq!(texts(scene.follow.view().unwrap(), &run), ["a new one"]);
    let sent = scene.play.until(|seen| seen.asked.get(1).map(conversation)).await;
    is(&sent, &[("user", "a story")]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steer_that_came_too_late_for_an_answer_is_answered_though_its_worker_dies() {
    let go_on = CancellationToken::new();
    let lines = [
        Line::Wait(go_on.clone(), "the end"),
        Line::Wait(CancellationToken::new(), "never said"),
        Line::Say("once more"),
    ];
    let mut scene = Scene::new("late", lines).await;
    let run = scene.ask("a story").await;
    scene.play.until(|seen| (seen.asked.len() == 1).then_some(())).await;
    let ask = Ask::steer(Target::Run(run.clone()), "another");
    let mut asked = scene.follow.session().control(ask).await.unwrap();
    let delivered = async {
        while !matches!(asked.next().await, Ok(Some(Receipt { stage: Stages::Delivered { .. }, .. }))) {}
    };
    timeout(DEADLINE, delivered).await.unwrap();
    go_on.cancel();
    assert!(timeout(DEADLINE, asked.settled()).await.unwrap().unwrap().is_applied());
    scene.play.until(|seen| (seen.asked.len() == 2).then_some(())).await;
    scene.worker.kill9();
    scene.worker = Worker::start(scene.worker.args.clone());
    let ended = scene.ended().await;
    assert_eq!((ended.outcome, ended.attempt), (Some(Outcome::Completed), Some(2)), "{ended:?}");
    assert_eq!(texts(scene.follow.view().unwrap(), &run), ["the end", "once more"]);
    let sent = scene.play.until(|seen| seen.asked.get(2).map(conversation)).await;
    is(&sent, &[("user", "a story"), ("assistant", "the end"), ("user", "another")]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_run_answers_its_own_input_though_others_wait() {
    let mut scene =
        Scene::new("queue", [Line::Begin("once upon "), Line::Say("a new one"), Line::Say("two!")]).await;
    let run = scene.ask("one").await;
    scene.says(&run, "once upon").await;
    let waiting = scene.ask("two").await;
    scene.worker.kill9();
    scene.worker = Worker::start(scene.worker.args.clone());
    let sent = scene.play.until(|seen| seen.asked.get(1).map(conversation)).await;
    is(&sent, &[("user", "one")]);
    scene.says(&waiting, "two!").await;
    let sent = scene.play.until(|seen| seen.asked.get(2).map(conversation)).await;
    is(&sent, &[("user", "one"), ("assistant", "a new one"), ("user", "two")]);
    scene.close().await;
}
