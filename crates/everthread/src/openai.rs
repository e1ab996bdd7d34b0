//! `everthread worker openai`: serves an agent with any OpenAI-compatible Chat Completions endpoint, streaming.

mod sse;
mod upstream;

use clap::Args;
use everthread_worker::{CancellationToken, Failure, PastMessage, Role, Run, Worker};
use serde_json::{Value, json};
use sse::Event;
use std::sync::Arc;
use std::time::Duration;
use upstream::{Delta, Upstream};

/// Characters of earlier messages that are sent along, newest first: about eight thousand tokens.
const CONTEXT_CHARS_MAX: usize = 32_000;

/// Configuration of the worker.
#[derive(Debug, Clone, Args)]
pub struct OpenAiArgs {
    /// Address of the endpoint, up to and including /v1.
    #[arg(long, env = "OPENAI_BASE_URL", default_value = "https://api.openai.com/v1")]
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
    #[arg(long, env = "EVERTHREAD_URL", default_value = "ws://127.0.0.1:7400")]
    pub url: String,
    /// The token that the node wants. Without one, that of a `dev` in ./.everthread.
    #[arg(long, env = "EVERTHREAD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Key of the endpoint.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// What the model is told first.
    #[arg(long, env = "EVERTHREAD_SYSTEM_PROMPT")]
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
}

/// Works until `stop`.
pub async fn run(args: OpenAiArgs, token: String, stop: CancellationToken) -> anyhow::Result<()> {
    let upstream = Arc::new(Upstream::new(&args)?);
    let args = Arc::new(args);
    tracing::info!(url = args.url, agent = args.agent, model = args.model, "worker: connecting");
    let agent = args.agent.clone();
    let (url, capacity) = (args.url.clone(), args.capacity);
    let answer_run = move |run: Run| {
        let (upstream, args) = (upstream.clone(), args.clone());
        async move {
            // A cancel drops the request, which closes the connection to the endpoint: it stops generating.
            let token = run.cancel_token();
            token.run_until_cancelled(answer(&run, &upstream, &args)).await.unwrap_or(Ok(()))
        }
    };
    Worker::builder(url, token).agent(&agent, capacity, answer_run).connect()?.run(stop).await?;
    Ok(())
}

async fn answer(run: &Run, upstream: &Upstream, args: &OpenAiArgs) -> Result<(), Failure> {
    let messages = conversation(run.messages(), args.system.as_deref());
    let mut answer = upstream.ask(&messages).await?;
    let mut message = run.message(Role::Assistant).await?;
    let (mut text, mut reasoning) = (None, None);
    loop {
        let delta = match answer.next().await? {
            Event::Delta(delta) => delta,
            Event::Done => break,
        };
        let Delta { content, reasoning: thought } = delta;
        if let Some(thought) = thought {
            if reasoning.is_none() {
                reasoning = Some(message.reasoning().await?);
            }
            if let Some(part) = &mut reasoning {
                part.append(&thought).await?;
            }
        }
        if let Some(content) = content {
            if let Some(part) = reasoning.take() {
                part.end().await?;
            }
            if text.is_none() {
                text = Some(message.text().await?);
            }
            if let Some(part) = &mut text {
                part.append(&content).await?;
            }
        }
    }
    message.complete().await?;
    Ok(())
}

/// The conversation as the endpoint takes it: plain texts, as many of the last ones as fit, in order.
fn conversation(messages: &[PastMessage], system: Option<&str>) -> Vec<Value> {
    let mut out = Vec::new();
    let mut chars = 0;
    for message in messages.iter().rev() {
        let text = message.text();
        if text.is_empty() {
            continue;
        }
        chars += text.chars().count();
        if chars > CONTEXT_CHARS_MAX && !out.is_empty() {
            break;
        }
        let role = match message.role {
            Role::Assistant => "assistant",
            Role::System => "system",
            Role::User | Role::Tool | Role::Operator => "user",
        };
        out.push(json!({ "role": role, "content": text }));
    }
    if let Some(system) = system {
        out.push(json!({ "role": "system", "content": system }));
    }
    out.reverse();
    out
}

/// Deadlines of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// Until its first token.
    pub first: Duration,
    /// Between two tokens.
    pub idle: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, text: &str) -> PastMessage {
        let parts = json!([{ "part": "1", "kind": "text", "value": text }]);
        serde_json::from_value(json!({ "message": "m", "role": role, "parts": parts })).unwrap()
    }

    #[test]
    fn the_conversation_is_in_order_and_bounded_from_its_old_end() {
        let long = "x".repeat(CONTEXT_CHARS_MAX - 10);
        let messages = [message("user", "old"), message("assistant", &long), message("user", "new")];
        let sent = conversation(&messages, Some("be kind"));
        let roles: Vec<_> = sent.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        let longer = "x".repeat(CONTEXT_CHARS_MAX);
        let sent = conversation(&[message("user", &longer), message("user", "new")], None);
        assert_eq!(sent, [json!({ "role": "user", "content": "new" })]);
    }
}
