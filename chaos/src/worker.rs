//! Workers that write tokens which tell whose they are, and note what was confirmed to them.
//!
//! What a run does is in its input: `write 40 15 8` writes 40 tokens with 15 ms between them and waits after every 8 until they
//! are confirmed; `pay 10 15 8` asks people first. A worker is a process of its own, for it is killed and frozen.

use crate::history::{Level, Recorder, What, now};
use anyhow::Context as _;
use everthread_worker::{AgentOptions, Approval, CancellationToken, Error, Role, Run, Worker};
use std::time::Duration;

/// Its runs end as lost if their worker dies after they have written.
pub const WRITER: &str = "writer";
/// Its runs go to another worker then.
pub const PHOENIX: &str = "phoenix";
/// Runs of each agent at once.
const CAPACITY: u32 = 64;

/// What a run is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Asks people before.
    pub asks: bool,
    /// How many tokens.
    pub tokens: u64,
    /// Milliseconds between two.
    pub pause_ms: u64,
    /// Waits for their confirmation after so many.
    pub confirm_every: u64,
}

impl Task {
    /// As the input of a run.
    pub fn text(&self) -> String {
        let verb = if self.asks { "pay" } else { "write" };
        format!("{verb} {} {} {}", self.tokens, self.pause_ms, self.confirm_every)
    }

    fn parse(text: &str) -> Option<Task> {
        let mut words = text.split_whitespace();
        let verb = words.next()?;
        let mut number = || words.next()?.parse().ok();
        let (tokens, pause_ms, confirm_every): (u64, u64, u64) = (number()?, number()?, number()?);
        Some(Task { asks: verb == "pay", tokens, pause_ms, confirm_every: confirm_every.max(1) })
    }
}

/// Who notes what in which history.
#[derive(Clone)]
struct Diary {
    name: String,
    /// What confirmations promise here.
    level: Level,
    recorder: Recorder,
}

impl Diary {
    fn note(&self, what: What) {
        self.recorder.note(&self.name, what);
    }
}

/// Serves both agents at `url` until `stop`, where what is confirmed is as sure as `level` says.
pub async fn serve(
    url: &str,
    token: &str,
    name: &str,
    level: Level,
    recorder: Recorder,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let diary = Diary { name: name.to_owned(), level, recorder };
    let act = move |run: Run| act(run, diary.clone());
    let worker = Worker::builder(url, token)
        .agent_with(WRITER, CAPACITY, AgentOptions::new().steerable(), act.clone())
        .agent_with(PHOENIX, CAPACITY, AgentOptions::new().steerable().retry_lost(), act)
        .drain_deadline(Duration::ZERO)
        .connect()?;
    worker.run(stop).await.context("the worker has stopped")
}

async fn act(run: Run, diary: Diary) -> Result<(), Error> {
    let (session, id, attempt) = (run.session().to_string(), run.id().to_string(), run.attempt());
    diary.note(What::Began { session: session.clone(), run: id.clone(), attempt });
    let result = perform(&run, &diary).await;
    let how = match (&result, run.cause()) {
        (_, Some(cause)) => format!("{cause:?}"),
        (Ok(()), None) => "done".to_owned(),
        (Err(error), None) => error.to_string(),
    };
    diary.note(What::Done { session, run: id, attempt, how });
    result
}

async fn perform(run: &Run, diary: &Diary) -> Result<(), Error> {
    // A steer that became the input of a run of its own is no task: then there is little to do.
    let idle = Task { asks: false, tokens: 3, pause_ms: 1, confirm_every: 1 };
    let task = Task::parse(&run.input_text()).unwrap_or(idle);
    if task.asks {
        run.approve(Approval::new("pay", "Pay?").digest("ann:4200")).await?;
    }
    let attempt = run.attempt();
    // No two that are begun for one run begin in the same microsecond.
    let execution = u32::try_from(now() % 100_000_000).unwrap_or(0);
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    for number in 0..task.tokens {
        if run.cause().is_some() {
            return Ok(());
        }
        text.append(&format!("{attempt}.{execution}:{number} ")).await?;
        while let Some(steer) = run.try_steer() {
            drop(steer.consume()?);
        }
        if (number + 1) % task.confirm_every == 0 {
            confirmed(run, diary, execution, number + 1).await?;
        }
        tokio::time::sleep(Duration::from_millis(task.pause_ms)).await;
    }
    message.complete().await?;
    confirmed(run, diary, execution, task.tokens).await
}

async fn confirmed(run: &Run, diary: &Diary, execution: u32, tokens: u64) -> Result<(), Error> {
    run.flushed().await?;
    let (session, attempt, level) = (run.session().to_string(), run.attempt(), diary.level);
    diary.note(What::Confirmed { session, run: run.id().to_string(), attempt, execution, tokens, level });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_read_as_it_was_written() {
        let task = Task { asks: true, tokens: 40, pause_ms: 15, confirm_every: 8 };
        assert_eq!(Task::parse(&task.text()), Some(task));
        assert_eq!(Task::parse("go on"), None);
    }
}
