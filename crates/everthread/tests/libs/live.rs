//! Live control through the libraries: steer, pause, approvals, interrupt, takeover, and runs that are taken over.

use crate::node::{Node, TOKEN};
use crate::stage::{DEADLINE, Stage, ended, last_run, texts, until};
use everthread_client::{
    Addressee, Ask, ControlOutcome, Error as ClientError, Event, Follow, From, Mode, RefusalReason, Settled,
    Stage as Stages, Target, WhenBusy,
};
use everthread_protocol::entry::Outcome;
use everthread_protocol::{Code, RunId};
use everthread_session::view::RunStatus;
use everthread_worker::{AgentOptions, Approval, Builder, CancellationToken, Error, Role, Run, Worker};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// Says what steers it, and ends with the word "enough".
async fn listener(run: Run) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    text.append("listening").await?;
    while let Some(steer) = run.next_steer().await {
        let said = steer.consume()?.text();
        text.append(&format!(", {said}")).await?;
        if said == "enough" {
            return message.complete().await;
        }
    }
    Err(Error::Stopped)
}

/// Writes until it is stopped. Hears nothing.
async fn chatter(run: Run) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    let talking = async {
        loop {
            text.append("x").await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    run.unless_stopped(talking).await
}

/// What the payer has done.
static PAYMENTS: AtomicU32 = AtomicU32::new(0);

/// Asks before it pays.
async fn payer(run: Run) -> Result<(), Error> {
    if run.answers().is_empty() {
        let mut message = run.message(Role::Assistant).await?;
        message.text().await?.append("may I?").await?;
        message.complete().await?;
    }
    let approval = Approval::new("pay", "Pay?").digest("d1").schema(json!({ "type": "number" }));
    let answer = run.approve(approval).await?;
    let mut message = run.message(Role::Assistant).await?;
    if answer.is_approved() {
        PAYMENTS.fetch_add(1, Ordering::SeqCst);
    }
    let by = answer.answered_by.map(|by| by.id.to_string()).unwrap_or_default();
    let said = format!("{:?} {:?} by {by}", answer.verdict, answer.value);
    message.text().await?.append(&said).await?;
    message.complete().await
}

/// Goes on with what an earlier attempt left open.
async fn stubborn(run: Run) -> Result<(), Error> {
    let again = run.own_messages().find_map(|past| {
        let message = run.message_again(past)?;
        let text = message.part_again(past.parts.first()?)?;
        Some((message, text))
    });
    let (message, mut text) = match again {
        Some(open) => open,
        None => {
            let mut message = run.message(Role::Assistant).await?;
            let text = message.text().await?;
            (message, text)
        }
    };
    text.append(&format!("attempt {};", run.attempt())).await?;
    if run.attempt() == 1 {
        run.cancelled().await;
        return Err(Error::Stopped);
    }
    message.complete().await
}

fn agents(worker: Builder) -> Builder {
    worker
        .agent_with("listener", 4, AgentOptions::new().steerable(), listener)
        .agent("chatter", 4, chatter)
        .agent("payer", 4, payer)
}

async fn play(name: &str) -> (Node, Stage, Follow) {
    let node = Node::start().await;
    let session = node.session(name).await;
    let stage = Stage::new(&node, agents);
    let follow = stage.client.follow(session, From::Start).await.unwrap();
    (node, stage, follow)
}

/// Has an agent work, and waits until its text begins so.
async fn begin(follow: &mut Follow, agent: &str, text: &str) -> RunId {
    let run = follow.session().input("go", Some(agent)).await.unwrap().run.unwrap();
    says(follow, &run, text).await;
    run
}

async fn says(follow: &mut Follow, run: &RunId, text: &str) {
    until(follow, |view| texts(view, run).iter().any(|said| said.starts_with(text)).then_some(())).await;
}

async fn settled(follow: &Follow, ask: Ask) -> Settled {
    let asked = timeout(DEADLINE, follow.session().control(ask)).await.unwrap().unwrap();
    timeout(DEADLINE, asked.settled()).await.unwrap().unwrap()
}

fn target(run: &RunId) -> Target {
    Target::Run(run.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steer_reaches_the_run_at_work_and_every_stage_is_told() {
    let (_node, stage, mut follow) = play("steer").await;
    let run = begin(&mut follow, "listener", "listening").await;
    let mut asked =
        follow.session().control(Ask::steer(target(&run), "louder").mode(Mode::Now)).await.unwrap();
    let mut stages = Vec::new();
    while let Some(receipt) = timeout(DEADLINE, asked.next()).await.unwrap().unwrap() {
        stages.push(receipt.stage);
    }
    assert_eq!(stages.first(), Some(&Stages::Accepted));
    let Some(Stages::Settled { outcome, run: took, .. }) = stages.last() else { panic!("{stages:?}") };
    assert_eq!((*outcome, took.as_ref()), (ControlOutcome::Applied, Some(&run)));
    says(&mut follow, &run, "listening, louder").await;
    assert!(settled(&follow, Ask::steer(target(&run), "enough")).await.is_applied());
    let run = until(&mut follow, |view| ended(view, "listener")).await;
    assert_eq!((run.outcome, run.input.len()), (Some(Outcome::Completed), 3), "what it took in is its input");
    drop(follow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hears_nothing_leaves_the_text_to_a_run_of_its_own() {
    let (_node, stage, mut follow) = play("deaf").await;
    let run = begin(&mut follow, "chatter", "x").await;
    let outcome = settled(&follow, Ask::steer(target(&run), "hello")).await;
    assert_eq!(
        (outcome.outcome, outcome.reason),
        (ControlOutcome::Refused, Some(RefusalReason::NotSupported))
    );
    let next = outcome.run.unwrap();
    assert_ne!(next, run);
    assert!(settled(&follow, Ask::cancel(target(&run))).await.is_applied());
    says(&mut follow, &next, "x").await;
    drop(follow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_writes_nothing_until_it_is_resumed() {
    let (_node, stage, mut follow) = play("pause").await;
    let run = begin(&mut follow, "chatter", "x").await;
    assert!(settled(&follow, Ask::pause(target(&run))).await.is_applied());
    until(&mut follow, |view| view.run(&run)?.paused.then_some(())).await;
    // As long as these take, a run that did not stand still would have written.
    for _ in 0..40 {
        let mark = serde_json::value::to_raw_value(&json!([{ "type": "x-mark" }])).unwrap();
        follow.session().put(&stage.client.fresh_id(), mark, None).await.unwrap();
    }
    let resumed = settled(&follow, Ask::resume(target(&run))).await;
    assert!(resumed.is_applied());
    let length = texts(follow.view().unwrap(), &run)[0].len();
    until(&mut follow, |view| (texts(view, &run)[0].len() > length).then_some(())).await;
    assert!(settled(&follow, Ask::cancel(target(&run))).await.is_applied());
    let log = log(&stage, "pause").await;
    let at = |kind: &str, of: &str| log.iter().position(|e| e["type"] == kind && e["kind"] == of);
    let requested = at("control.requested", "pause").unwrap();
    let pause = &log[requested]["control"];
    let stands = log.iter().position(|e| e["type"] == "control.settled" && e["control"] == *pause).unwrap();
    let goes_on = at("control.requested", "resume").unwrap();
    let meanwhile: Vec<_> = log[stands..goes_on].iter().filter(|e| e["type"] == "part.append").collect();
    assert!(goes_on - stands >= 40 && meanwhile.is_empty(), "{meanwhile:?}");
    drop(follow);
    stage.close().await;
}

/// Carries one connection to a node; what the worker says waits while `holds` is true.
async fn carry(listener: TcpListener, node: (&'static str, u16), mut holds: watch::Receiver<bool>) {
    let (worker, _) = listener.accept().await.unwrap();
    let (mut from_worker, mut to_worker) = worker.into_split();
    let (mut from_node, mut to_node) = TcpStream::connect(node).await.unwrap().into_split();
    let saying = async {
        let mut bytes = [0; 16 * 1024];
        while let Ok(length @ 1..) = from_worker.read(&mut bytes).await {
            holds.wait_for(|holds| !holds).await.unwrap();
            to_node.write_all(&bytes[..length]).await.unwrap();
        }
    };
    tokio::select! {
        () = saying => {}
        copied = tokio::io::copy(&mut from_node, &mut to_worker) => drop(copied),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_expired_before_the_worker_could_say_so_stops_nothing() {
    let node = Node::start().await;
    let session = node.session("late").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let (hold, holds) = watch::channel(false);
    let (tasks, stage, stop) = (TaskTracker::new(), Stage::idle(&node), CancellationToken::new());
    tasks.spawn(carry(listener, node.address(), holds));
    let worker = Worker::builder(url, TOKEN).drain_deadline(Duration::from_millis(100));
    tasks.spawn(agents(worker).connect().unwrap().run(stop.clone()));
    let mut follow = stage.client.follow(session, From::Start).await.unwrap();
    let run = begin(&mut follow, "chatter", "x").await;
    hold.send_replace(true);
    let late = settled(&follow, Ask::pause(target(&run)).expires(Duration::from_millis(300))).await;
    assert_eq!(late.outcome, ControlOutcome::Expired);
    hold.send_replace(false);
    // Longer than all that it can have written before it heard of the pause.
    until(&mut follow, |view| (texts(view, &run)[0].len() > 600).then_some(())).await;
    let view = follow.view().unwrap().run(&run).unwrap();
    assert!(!view.paused && view.status == RunStatus::Active, "{view:?}");
    assert!(settled(&follow, Ask::cancel(target(&run))).await.is_applied());
    stop.cancel();
    tasks.close();
    timeout(DEADLINE, tasks.wait()).await.unwrap();
    drop(follow);
    stage.close().await;
}

/// The entries of a session.
async fn log(stage: &Stage, session: &str) -> Vec<Value> {
    let mut follow = stage.client.follow_raw(session.parse().unwrap(), From::Start).await.unwrap();
    let mut log = Vec::new();
    loop {
        match timeout(DEADLINE, follow.next()).await.unwrap().unwrap() {
            Event::Entries(frame) => {
                for block in frame.entries().unwrap().blocks {
                    log.extend(serde_json::from_str::<Vec<Value>>(block.entries.get()).unwrap());
                }
            }
            Event::Live(_) => return log,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_ends_the_attempt_and_its_one_answer_begins_the_next() {
    let (_node, stage, mut follow) = play("pay").await;
    follow.session().input("go", Some("payer")).await.unwrap();
    let run =
        until(&mut follow, |view| last_run(view, "payer").filter(|run| run.status == RunStatus::Suspended));
    let run = run.await;
    assert_eq!(run.approvals[0].asked.digest.as_deref(), Some("d1"));
    let (id, approval) = (run.run.clone(), run.approvals[0].asked.approval.clone());
    let wrong = settled(&follow, Ask::approve(id.clone(), approval.clone()).digest("d2")).await;
    assert_eq!(wrong.reason, Some(RefusalReason::WrongDigest));
    let yes = || Ask::approve(id.clone(), approval.clone()).digest("d1").value(json!(7));
    let (one, other) = tokio::join!(settled(&follow, yes()), settled(&follow, yes()));
    let refused = if one.is_applied() { other } else { one };
    assert_eq!(refused.reason, Some(RefusalReason::AlreadyAnswered));
    assert!(refused.answered_by.is_some());
    let run = until(&mut follow, |view| ended(view, "payer")).await;
    assert_eq!((run.outcome, run.attempt), (Some(Outcome::Completed), Some(2)));
    let texts = texts(follow.view().unwrap(), &id);
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[1].starts_with("Approved Some(Number(7)) by "), "{texts:?}");
    assert_eq!(PAYMENTS.load(Ordering::SeqCst), 1);
    drop(follow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_run_and_begins_the_next_with_its_text() {
    let (_node, stage, mut follow) = play("interrupt").await;
    let run = begin(&mut follow, "chatter", "x").await;
    let outcome = settled(&follow, Ask::interrupt(target(&run), "rather this")).await;
    assert!(outcome.is_applied(), "{outcome:?}");
    let old = until(&mut follow, |view| ended(view, "chatter")).await;
    assert_eq!((old.run, old.outcome), (run.clone(), Some(Outcome::Cancelled)));
    let next = until(&mut follow, |view| last_run(view, "chatter").filter(|next| next.run != run)).await;
    says(&mut follow, &next.run, "x").await;
    drop(follow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_stops_the_agents_until_the_session_is_handed_back() {
    let (_node, stage, mut follow) = play("hold").await;
    let run = begin(&mut follow, "chatter", "x").await;
    let busy = Addressee { agent: Some("chatter".parse().unwrap()), when_busy: Some(WhenBusy::Reject) };
    let refused = follow.session().input_for("me too", &busy).await.unwrap_err();
    assert!(
        matches!(refused, ClientError::Refused { code: Code::Busy, .. }) || refused.is_retryable(),
        "{refused}"
    );
    follow.session().hold(Some("let me")).await.unwrap();
    let held = until(&mut follow, |view| ended(view, "chatter")).await;
    assert_eq!((held.run, held.outcome), (run.clone(), Some(Outcome::Cancelled)));
    let meanwhile = follow.session().input("a question", Some("chatter")).await.unwrap();
    assert_eq!(meanwhile.run, None);
    let released = follow.session().release(Some("chatter")).await.unwrap();
    says(&mut follow, &released.run.unwrap(), "x").await;
    drop(follow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_worker_stops_goes_on_at_another_where_it_was() {
    let node = Node::start().await;
    let session = node.session("stubborn").await;
    let stage = Stage::new(&node, agents);
    let stop = CancellationToken::new();
    let offer =
        |worker: Builder| worker.agent_with("stubborn", 1, AgentOptions::new().retry_lost(), stubborn);
    stage.work(&node, &stop, offer);
    let mut follow = stage.client.follow(session, From::Start).await.unwrap();
    let run = begin(&mut follow, "stubborn", "attempt 1;").await;
    stop.cancel();
    stage.work(&node, &CancellationToken::new(), offer);
    let done = until(&mut follow, |view| ended(view, "stubborn")).await;
    assert_eq!((done.outcome, done.attempt), (Some(Outcome::Completed), Some(2)));
    assert_eq!(texts(follow.view().unwrap(), &run), ["attempt 1;attempt 2;"]);
    drop(follow);
    drop(stage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_whose_node_dies_is_asked_again_and_its_handle_ends() {
    let (mut node, stage, mut follow) = play("died").await;
    let run = begin(&mut follow, "listener", "listening").await;
    let asked =
        follow.session().control(Ask::pause(target(&run)).expires(Duration::from_secs(20))).await.unwrap();
    node.kill9();
    node.restart().await;
    let outcome = timeout(DEADLINE, asked.settled()).await.unwrap().unwrap();
    assert!(outcome.is_applied(), "{outcome:?}");
    drop(follow);
    stage.close().await;
}
