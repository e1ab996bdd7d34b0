//! The endpoint: one request per answer, read as it comes, with every failure typed.
//!
//! An answer is whole only with a `finish_reason` and `[DONE]`. Endpoints are known to end a stream cleanly without either when
//! they refuse a prompt, and to send `[DONE]` alone when they broke off.

use super::sse::{Decoder, Event};
use super::{Deadlines, OpenAiArgs};
use anyhow::Context as _;
use everthread_worker::Failure;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

/// Until the endpoint's socket is open.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of an endpoint's error that are read.
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// Characters of it that are logged.
const ERROR_CHARS_MAX: usize = 2_000;

/// An OpenAI-compatible endpoint.
pub struct Upstream {
    client: Client,
    url: String,
    model: String,
    api_key: Option<String>,
    max_tokens: u32,
    deadlines: Deadlines,
}

/// More of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// For people.
    pub content: Option<String>,
    /// The model's reasoning.
    pub reasoning: Option<String>,
    /// Calls of tools.
    pub calls: Vec<CallDelta>,
}

/// More of a call of a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct CallDelta {
    /// Which of the answer's calls.
    #[serde(default)]
    pub index: usize,
    /// Its id, once.
    #[serde(default)]
    pub id: Option<String>,
    /// Name and arguments.
    #[serde(default)]
    pub function: FunctionDelta,
}

/// Name of a tool, and more of its arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct FunctionDelta {
    /// Once.
    #[serde(default)]
    pub name: Option<String>,
    /// JSON as text, in pieces.
    #[serde(default)]
    pub arguments: Option<String>,
}

impl Upstream {
    /// An endpoint as configured. Nothing is sent yet.
    pub fn new(args: &OpenAiArgs) -> anyhow::Result<Upstream> {
        // Whoever installed one before chose the same.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            .build()
            .context("the HTTP client does not start")?;
        let url = format!("{}/chat/completions", args.base_url.trim_end_matches('/'));
        reqwest::Url::parse(&url).with_context(|| format!("--base-url {}", args.base_url))?;
        let deadlines = Deadlines {
            first: Duration::from_millis(args.first_token_ms),
            idle: Duration::from_millis(args.idle_ms),
        };
        let (model, api_key, max_tokens) = (args.model.clone(), args.api_key.clone(), args.max_tokens);
        Ok(Upstream { client, url, model, api_key, max_tokens, deadlines })
    }

    /// Sends the conversation and what tools there are. Dropping the answer ends the request.
    pub async fn ask(&self, messages: &[Value], tools: Option<&[Value]>) -> Result<Answer, Failure> {
        let mut body = json!({ "model": self.model, "messages": messages, "stream": true, "max_tokens": self.max_tokens });
        if let Some(tools) = tools {
            body["tools"] = tools.into();
        }
        let mut request = self.client.post(&self.url).json(&body);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let response = tokio::time::timeout(self.deadlines.first, request.send())
            .await
            .map_err(|_| Failure::new("upstream_timeout", "the model did not answer in time"))?
            .map_err(|error| unreachable_upstream(&error))?;
        if !response.status().is_success() {
            return Err(refused(response, self.deadlines.idle).await);
        }
        Ok(Answer {
            response,
            decoder: Decoder::default(),
            data: VecDeque::new(),
            deadlines: self.deadlines,
            has_begun: false,
            finished: None,
        })
    }
}

/// An answer that is being read.
pub struct Answer {
    response: Response,
    decoder: Decoder,
    data: VecDeque<String>,
    deadlines: Deadlines,
    has_begun: bool,
    finished: Option<String>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: ChunkDelta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct ChunkDelta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<CallDelta>>,
}

impl Answer {
    /// The next piece, or the end of a whole answer; anything else is a failure.
    pub async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            while let Some(data) = self.data.pop_front() {
                if let Some(event) = self.read(&data)? {
                    return Ok(event);
                }
            }
            let deadline = if self.has_begun { self.deadlines.idle } else { self.deadlines.first };
            let bytes = tokio::time::timeout(deadline, self.response.chunk())
                .await
                .map_err(|_| {
                    Failure::new("upstream_timeout", "the model fell silent in the middle of its answer")
                })?
                .map_err(|error| unreachable_upstream(&error))?;
            let Some(bytes) = bytes else {
                let message =
                    "the model's answer ended early; it may be that the conversation is too long for it";
                return Err(Failure::new("upstream_incomplete", message));
            };
            let mut data = Vec::new();
            self.decoder
                .push(&bytes, &mut data)
                .map_err(|e| Failure::new("upstream_broken", e.to_string()))?;
            self.data.extend(data);
        }
    }

    fn read(&mut self, data: &str) -> Result<Option<Event>, Failure> {
        if data.trim() == "[DONE]" {
            return match self.finished.as_deref() {
                Some("content_filter") => {
                    Err(Failure::new("content_filter", "the model's provider withheld the answer"))
                }
                Some(_) => Ok(Some(Event::Done)),
                None => Err(Failure::new("upstream_incomplete", "the model broke off its answer")),
            };
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(|_| {
            Failure::new("upstream_broken", "the model's endpoint sent what is no chat completion")
        })?;
        if let Some(error) = chunk.error {
            tracing::warn!(%error, "the endpoint failed in mid-answer");
            return Err(Failure::new(code_of(&error), "the model's endpoint reported an error"));
        }
        let Some(choice) = chunk.choices.into_iter().next() else { return Ok(None) };
        if choice.finish_reason.is_some() {
            self.finished = choice.finish_reason;
        }
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let ChunkDelta { content, reasoning_content, tool_calls } = choice.delta;
        let calls = tool_calls.unwrap_or_default();
        let delta = Delta { content: some(content), reasoning: some(reasoning_content), calls };
        if delta == Delta::default() {
            return Ok(None);
        }
        self.has_begun = true;
        Ok(Some(Event::Delta(delta)))
    }
}

fn unreachable_upstream(error: &reqwest::Error) -> Failure {
    tracing::warn!(%error, "the endpoint cannot be reached");
    Failure::new("upstream_unreachable", "the model's endpoint cannot be reached")
}

/// Bodies of endpoints' errors differ, and may hold what is not for users: they are logged, and people get the kind.
async fn refused(mut response: Response, deadline: Duration) -> Failure {
    let status = response.status();
    let mut body = Vec::new();
    let reading = async {
        while body.len() < ERROR_BYTES_MAX
            && let Ok(Some(bytes)) = response.chunk().await
        {
            body.extend_from_slice(&bytes);
        }
    };
    // What it says until then has to do: the status alone tells that it refused.
    drop(tokio::time::timeout(deadline, reading).await);
    body.truncate(ERROR_BYTES_MAX);
    let body = String::from_utf8_lossy(&body);
    let shown: String = body.chars().take(ERROR_CHARS_MAX).collect();
    tracing::warn!(%status, body = shown, "the endpoint refused");
    let error: Value = serde_json::from_str(&body).unwrap_or_default();
    let message = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "the model's endpoint does not accept the key",
        StatusCode::NOT_FOUND => "the model's endpoint does not know the model or the address",
        StatusCode::TOO_MANY_REQUESTS => "the model's endpoint has too much to do: try again later",
        _ if error["error"]["code"] == "context_length_exceeded" => {
            "the conversation is too long for the model"
        }
        _ => "the model's endpoint refused the request",
    };
    let code = error.get("error").map_or_else(|| format!("upstream_{}", status.as_u16()), code_of);
    Failure::new(code, message)
}

fn code_of(error: &Value) -> String {
    let code = error["code"].as_str().or(error["type"].as_str()).unwrap_or("upstream_error");
    code.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    /// What comes of an endpoint that takes the request, answers `head` and goes on as `then` says.
    async fn refusal<F: Future<Output = ()>>(
        head: &str,
        idle_ms: u64,
        then: impl FnOnce(TcpStream) -> F,
    ) -> Failure {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let args = OpenAiArgs {
            base_url: format!("http://{}/v1", listener.local_addr().unwrap()),
            model: "m".to_owned(),
            agent: "a".to_owned(),
            capacity: 1,
            url: String::new(),
            token: None,
            api_key: None,
            system: None,
            max_tokens: 1,
            first_token_ms: 20_000,
            idle_ms,
            tools: None,
        };
        let upstream = Upstream::new(&args).unwrap();
        let serving = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            assert!(socket.read(&mut [0; 4096]).await.unwrap() > 0);
            socket.write_all(head.as_bytes()).await.unwrap();
            then(socket).await;
            std::future::pending::<()>().await;
        };
        let asking = tokio::time::timeout(Duration::from_secs(20), upstream.ask(&[], None));
        tokio::select! {
            answer = asking => answer.expect("in time").err().unwrap(),
            () = serving => unreachable!(),
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_refuses_and_falls_silent_is_not_waited_for() {
        let head = "HTTP/1.1 429 Slow\r\ncontent-length: 100\r\n\r\n{\"error\":";
        let failure = refusal(head, 50, |_socket| std::future::pending()).await;
        assert_eq!(failure.code, "upstream_429");
    }

    #[tokio::test]
    async fn an_endpoint_that_refuses_without_end_is_not_heard_out() {
        let head = "HTTP/1.1 500 Oops\r\n\r\n";
        let endless =
            |mut socket: TcpStream| async move { while socket.write_all(&[b'x'; 4096]).await.is_ok() {} };
        assert_eq!(refusal(head, 600_000, endless).await.code, "upstream_500");
    }

    #[tokio::test]
    async fn what_an_endpoint_says_when_it_refuses_is_read() {
        let body = r#"{"error":{"code":"context_length_exceeded"}}"#;
        let head = format!("HTTP/1.1 400 No\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let failure = refusal(&head, 20_000, |_socket| std::future::pending()).await;
        assert_eq!(failure.code, "context_length_exceeded");
        assert!(failure.message.contains("too long"));
    }
}
