//! `everthread worker openai`: serves an agent with any OpenAI-compatible Chat Completions endpoint, streaming.

mod conversation;
mod sse;
mod tools;
mod turn;
mod upstream;

use clap::Args;
use conversation::{Reader, Said};
use everthread_worker::{AgentOptions, CancellationToken, Failure, PartKind, PastMessage, Role, Run, Worker};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tools::Tools;
pub use tools::digest;
use turn::Turn;
use upstream::Upstream;

/// Characters of earlier messages that are sent along, newest first: about eight thousand tokens.
const CONTEXT_CHARS_MAX: usize = 32_000;
/// Answers with calls of tools in one run. A model that calls tools for ever comes to an end.
const STEPS_MAX: usize = 16;

/// Configuration of the worker.
#[derive(Debug, Clone, Args)]
pub struct OpenAiArgs {
    /// Address of the endpoint, up to and including /v1.
    #[arg(
        long,
        env = "OPENAI_BASE_URL",
        hide_env_values = true,
        default_value = "https://api.openai.com/v1"
    )]
    pub base_url: String,
    /// Name of the model.
    #[arg(long, env = "EVERTHREAD_MODEL")]
    pub model: String,
    /// The agent that it serves.
    #[arg(long, env = "EVERTHREAD_AGENT")]
    pub agent: String,
    /// Runs at once.
    #[arg(long, env = "EVERTHREAD_CAPACITY", default_value_t = 16)]
    pub capacity: u32,
    /// The node to connect to.
    #[arg(long, env = "EVERTHREAD_URL", hide_env_values = true, default_value = "ws://127.0.0.1:7400")]
    pub url: String,
    /// The token that the node wants. Without one, that of a `dev` in ./.everthread.
    #[arg(long, env = "EVERTHREAD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Key of the endpoint.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// What the model is told first.
    #[arg(long, env = "EVERTHREAD_SYSTEM_PROMPT", hide_env_values = true)]
    pub system: Option<String>,
    /// Tokens of one answer at most.
    #[arg(long, env = "EVERTHREAD_MAX_TOKENS", default_value_t = 1024)]
    pub max_tokens: u32,
    /// How long the endpoint may take until its first token, in milliseconds.
    #[arg(long, env = "EVERTHREAD_FIRST_TOKEN_MS", default_value_t = 120_000)]
    pub first_token_ms: u64,
    /// How long it may be silent between two tokens, in milliseconds.
    #[arg(long, env = "EVERTHREAD_IDLE_MS", default_value_t = 60_000)]
    pub idle_ms: u64,
    /// File with the tools that the model may call: see docs/OPERATIONS.md.
    #[arg(long, env = "EVERTHREAD_TOOLS")]
    pub tools: Option<PathBuf>,
}

/// What every run of the worker uses.
struct Model {
    upstream: Upstream,
    tools: Tools,
    /// The tools as the endpoint takes them.
    declared: Option<Vec<Value>>,
    system: Option<String>,
}

/// Works until `stop`.
pub async fn run(args: OpenAiArgs, token: String, stop: CancellationToken) -> anyhow::Result<()> {
    let upstream = Upstream::new(&args)?;
    let tools = Tools::new(args.tools.as_deref())?;
    let (declared, system) = (tools.declared(), args.system.clone());
    let model = Arc::new(Model { upstream, tools, declared, system });
    tracing::info!(url = args.url, agent = args.agent, model = args.model, "worker: connecting");
    let answer_run = move |run: Run| {
        let model = model.clone();
        async move {
            // A cancel drops the request, which closes the connection to the endpoint: it stops generating.
            run.unless_stopped(answer(&run, &model)).await
        }
    };
    let options = AgentOptions::new().steerable().retry_lost();
    let worker = Worker::builder(args.url, token).agent_with(&args.agent, args.capacity, options, answer_run);
    worker.connect()?.run(stop).await?;
    Ok(())
}

async fn answer(run: &Run, model: &Model) -> Result<(), Failure> {
    let reader = Reader::new(run);
    let past = reader.conversation(run.messages());
    let mut said: Vec<Said> = past.iter().map(|message| Said::past(message, &reader)).collect();
    let mut is_answered = reader.is_answered(&past);
    if let Some((at, turn)) = left_over(run, &reader, &past, &mut said).await? {
        said[at] = turn.carry_out(run, &model.tools).await?;
    }
    if !is_answered {
        conversation::move_unanswered(&mut said);
    }
    loop {
        while let Some(steer) = run.try_steer() {
            said.push(Said::text(Role::User, steer.consume()?.text()));
            is_answered = false;
        }
        // An answer that calls no tool, and after which nobody said more, is the last one.
        if is_answered {
            return Ok(());
        }
        if said.iter().filter(|said| said.is_own && !said.calls.is_empty()).count() >= STEPS_MAX {
            return Err(Failure::new(
                "too_many_steps",
                format!("the model has called tools {STEPS_MAX} times and has no answer"),
            ));
        }
        // A later attempt comes back to here if the answer was not whole.
        run.step("model").await?;
        let messages = conversation::render(&said, model.system.as_deref());
        let mut turn = Turn::default();
        let writing = async {
            let answer = model.upstream.ask(&messages, model.declared.as_deref()).await?;
            turn.write(run, answer).await
        };
        let is_whole = tokio::select! {
            result = writing => result.map(|()| true)?,
            // As with a cancel, but the run goes on.
            () = run.steered_now() => false,
        };
        if is_whole {
            let answer = turn.carry_out(run, &model.tools).await?;
            is_answered = answer.calls.is_empty();
            said.push(answer);
        } else {
            said.extend(turn.give_up().await?);
        }
    }
}

/// What an earlier attempt of this run left: an answer that is whole is carried out, at its place in the conversation; one
/// that is not is taken back, and asked for again.
async fn left_over(
    run: &Run,
    reader: &Reader,
    past: &[&PastMessage],
    said: &mut Vec<Said>,
) -> Result<Option<(usize, Turn)>, Failure> {
    let Some(at) = said.iter().rposition(|said| said.is_own) else { return Ok(None) };
    let past = past[at];
    if !past.is_open() {
        return Ok(None);
    }
    let has_calls = conversation::of_kind(past, PartKind::ToolCall).next().is_some();
    if let Some(turn) = Turn::again(run, reader, past).filter(|_| has_calls) {
        return Ok(Some((at, turn)));
    }
    run.step_reset().await?;
    said.remove(at);
    Ok(None)
}

/// Deadlines of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// Until its first token.
    pub first: Duration,
    /// Between two tokens.
    pub idle: Duration,
}
