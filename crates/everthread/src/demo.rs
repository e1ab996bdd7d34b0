//! Demo agents of `dev` and `worker demo`, offline: one explains what the reader is looking at, one has three others work for it.
//!
//! They are ordinary workers: they connect to the node's own address and use the public library.

mod deletion;
mod guide;
mod orchestra;

use clap::Args;
use everthread_worker::{AgentOptions, CancellationToken, Error, Part, Worker, WorkerError};
use std::time::Duration;

/// Runs of each agent at once.
const CAPACITY: u32 = 16;

/// Agents that people may choose from.
pub const AGENTS: &[&str] = &["guide", "orchestra"];

/// Where `worker demo` serves them.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// The node to connect to.
    #[arg(long, env = "EVERTHREAD_URL", hide_env_values = true, default_value = "ws://127.0.0.1:7400")]
    pub url: String,
    /// The token that the node wants. Without one, that of a `dev` in ./.everthread.
    #[arg(long, env = "EVERTHREAD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// Serves the demo agents until `stop`.
pub async fn run(url: String, token: String, stop: CancellationToken) -> Result<(), WorkerError> {
    let mut builder = Worker::builder(url, token)
        .agent_with("guide", CAPACITY, AgentOptions::new().steerable(), guide::run)
        .agent("orchestra", CAPACITY, orchestra::run)
        .drain_deadline(Duration::from_millis(500));
    for (name, role) in orchestra::MEMBERS {
        builder = builder.agent(name, CAPACITY, move |run| orchestra::member(run, role));
    }
    builder.connect()?.run(stop).await
}

/// Writes a text as a model would: a few characters at a time, with pauses.
async fn type_out(part: &mut Part, text: &str, pause: Duration) -> Result<(), Error> {
    for token in tokens(text) {
        part.append(token).await?;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// Cuts a text into pieces of the size of tokens.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    const TOKEN_BYTES: usize = 5;
    text.split_inclusive([' ', '\n']).flat_map(|word| {
        let mut rest = word;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let at =
                if rest.len() <= TOKEN_BYTES + 2 { rest.len() } else { rest.ceil_char_boundary(TOKEN_BYTES) };
            let (token, later) = rest.split_at(at);
            rest = later;
            Some(token)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_the_text() {
        for text in ["", "a", "Hello, wonderful world.\n\n- über 😀😀😀😀 all", guide::answer_for_tests()]
        {
            assert_eq!(tokens(text).collect::<String>(), text);
        }
    }
}
