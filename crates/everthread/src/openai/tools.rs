//! Tools: what the file says of them, and the one HTTP request that each call is.

use super::conversation::as_text;
use anyhow::{Context as _, ensure};
use everthread_worker::Object;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Bytes of a tool's answer; the rest is cut off, and the model is told.
const OUTPUT_BYTES_MAX: usize = 32 * 1024;
/// For a call, unless the file says otherwise.
const CALL_DEADLINE_MS: u64 = 30_000;
/// For a call, whatever the file says: as long as it lasts, a run and its worker wait.
const CALL_DEADLINE_MAX_MS: u64 = 10 * 60 * 1000;
/// Tools in the file.
const TOOLS_MAX: usize = 64;

/// One tool, as the file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// By which the model calls it.
    name: String,
    /// For the model.
    description: String,
    /// JSON Schema of its arguments.
    parameters: Object,
    /// The arguments are posted here.
    url: String,
    /// Whether people are asked before each call.
    #[serde(default)]
    dangerous: bool,
    /// How long a call may take.
    #[serde(default = "call_deadline_ms")]
    timeout_ms: u64,
}

fn call_deadline_ms() -> u64 {
    CALL_DEADLINE_MS
}

/// The tools of a worker.
#[derive(Debug)]
pub struct Tools {
    tools: BTreeMap<String, Tool>,
    client: Client,
}

/// What came of a call.
#[derive(Debug, PartialEq)]
pub struct Output {
    /// What the tool says, or what went wrong.
    pub value: Value,
    /// Whether it is what the tool says.
    pub is_good: bool,
}

impl Output {
    fn bad(message: impl Into<String>) -> Self {
        Self { value: json!({ "error": message.into() }), is_good: false }
    }

    /// As the model reads it.
    pub fn text(&self) -> String {
        as_text(&self.value)
    }
}

impl Tools {
    /// Those of a file, or none.
    pub fn new(path: Option<&Path>) -> anyhow::Result<Tools> {
        // Where an answer sends a call instead is not where its arguments were meant to go.
        let client = Client::builder().redirect(Policy::none()).build();
        let client = client.context("the HTTP client does not start")?;
        let tools = path.map_or_else(|| Ok(BTreeMap::new()), Self::read)?;
        Ok(Tools { tools, client })
    }

    /// A file is a JSON array.
    fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Tool>> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("--tools {shown}"))?;
        let list: Vec<Tool> = serde_json::from_str(&text).with_context(|| format!("--tools {shown}"))?;
        ensure!(list.len() <= TOOLS_MAX, "--tools {shown}: there are at most {TOOLS_MAX} tools");
        let mut tools = BTreeMap::new();
        for tool in list {
            let name = tool.name.clone();
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            ensure!(
                (1..=64).contains(&name.len()) && name.chars().all(is_word),
                "--tools {shown}: {name:?} is not the name of a tool: letters, digits, _ and -"
            );
            Url::parse(&tool.url).with_context(|| format!("--tools {shown}: the url of {name}"))?;
            ensure!(
                (1..=CALL_DEADLINE_MAX_MS).contains(&tool.timeout_ms),
                "--tools {shown}: timeout_ms of {name} is 1 to {CALL_DEADLINE_MAX_MS}"
            );
            ensure!(tools.insert(name.clone(), tool).is_none(), "--tools {shown}: {name} stands twice");
        }
        Ok(tools)
    }

    /// As the endpoint takes them; `None` if there are none.
    pub fn declared(&self) -> Option<Vec<Value>> {
        let declare = |tool: &Tool| {
            let Tool { name, description, parameters, .. } = tool;
            json!({ "type": "function",
                    "function": { "name": name, "description": description, "parameters": parameters } })
        };
        (!self.tools.is_empty()).then(|| self.tools.values().map(declare).collect())
    }

    /// Whether people are asked before `name` is called. What is not there is not dangerous.
    pub fn is_dangerous(&self, name: &str) -> bool {
        self.tools.get(name).is_some_and(|tool| tool.dangerous)
    }

    /// Calls a tool. Whatever goes wrong is told the model, which may do something about it. `key` is the same in every
    /// attempt at this call: the tool can know by it that it has done it already.
    pub async fn call(&self, name: &str, arguments: &Value, key: &str) -> Output {
        let Some(tool) = self.tools.get(name) else {
            return Output::bad(format!("there is no tool {name:?}"));
        };
        if !arguments.is_object() {
            return Output::bad("the arguments are not a JSON object");
        }
        let calling = self.request(tool, arguments, key);
        let deadline = Duration::from_millis(tool.timeout_ms);
        match tokio::time::timeout(deadline, calling).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => {
                tracing::warn!(%error, tool = name, "the tool cannot be reached");
                Output::bad("the tool cannot be reached")
            }
            Err(_) => Output::bad("the tool did not answer in time; whether it did anything is not known"),
        }
    }

    async fn request(&self, tool: &Tool, arguments: &Value, key: &str) -> reqwest::Result<Output> {
        let request = self.client.post(&tool.url).header("idempotency-key", key).json(arguments);
        let mut response = request.send().await?;
        let status = response.status();
        let mut body = Vec::new();
        while body.len() <= OUTPUT_BYTES_MAX
            && let Some(chunk) = response.chunk().await?
        {
            body.extend_from_slice(&chunk);
        }
        Ok(read_output(status, &body))
    }
}

fn read_output(status: StatusCode, body: &[u8]) -> Output {
    let is_cut = body.len() > OUTPUT_BYTES_MAX;
    let text = String::from_utf8_lossy(&body[..body.len().min(OUTPUT_BYTES_MAX)]);
    if !status.is_success() {
        return Output {
            value: json!({ "error": format!("status {status}"), "body": text }),
            is_good: false,
        };
    }
    if is_cut {
        let value = format!("{text}\n[cut off after {OUTPUT_BYTES_MAX} bytes]").into();
        return Output { value, is_good: true };
    }
    let value = serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.into_owned()));
    Output { value, is_good: true }
}

/// What an approval of a call is about: SHA-256 of the tool's name, a line feed, and its arguments as JSON without spaces
/// whose objects have their keys in order.
pub fn digest(name: &str, arguments: &Value) -> String {
    let mut text = format!("{name}\n");
    write_canonical(arguments, &mut text);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(object) => {
            let sorted: BTreeMap<&String, &Value> = object.iter().collect();
            for (n, (key, value)) in sorted.into_iter().enumerate() {
                out.push(if n == 0 { '{' } else { ',' });
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
            }
            out.push_str(if object.is_empty() { "{}" } else { "}" });
        }
        Value::Array(array) => {
            for (n, value) in array.iter().enumerate() {
                out.push(if n == 0 { '[' } else { ',' });
                write_canonical(value, out);
            }
            out.push_str(if array.is_empty() { "[]" } else { "]" });
        }
        simple => out.push_str(&simple.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Tools> {
        // Whoever installed one before chose the same.
        drop(rustls::crypto::ring::default_provider().install_default());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tools.json");
        std::fs::write(&path, text).unwrap();
        Tools::new(Some(&path))
    }

    #[test]
    fn a_file_of_tools_is_checked_when_the_worker_starts() {
        let good = r#"[{"name":"add","description":"Adds.","parameters":{"type":"object"},"url":"http://127.0.0.1:1/add","dangerous":true}]"#;
        let tools = read(good).unwrap();
        assert!(tools.is_dangerous("add") && !tools.is_dangerous("other"));
        assert_eq!(tools.declared().unwrap()[0]["function"]["name"], "add");
        assert!(read("[]").unwrap().declared().is_none());
        let timed = |ms: u64| good.replace("\"dangerous\"", &format!("\"timeout_ms\":{ms},\"dangerous\""));
        assert!(read(&timed(CALL_DEADLINE_MAX_MS)).is_ok());
        let twice = format!("[{0},{0}]", &good[1..good.len() - 1]);
        for bad in [
            twice.as_str(),
            &good.replace("\"add\"", "\"a b\""),
            &good.replace("http:", ""),
            &good.replace("dangerous", "danger"),
            &timed(0),
            &timed(CALL_DEADLINE_MAX_MS + 1),
            "{}",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order_of_keys() {
        let one: Value = serde_json::from_str(r#"{"b":[1,{"d":null,"c":"é"}],"a":{}}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"a":{},"b":[1,{"c":"é","d":null}]}"#).unwrap();
        assert_eq!(digest("t", &one), digest("t", &other));
        assert_ne!(digest("t", &one), digest("u", &one));
        let expected = "sha256:53483cb46c6e871463e91efe3683f0ad7de603f6fff8eafbb2c42f5fef6d124e";
        assert_eq!(digest("t", &json!({})), expected);
    }

    #[test]
    fn what_a_tool_says_is_bounded_and_a_failure_is_told() {
        let long = "x".repeat(OUTPUT_BYTES_MAX + 1);
        let output = read_output(StatusCode::OK, long.as_bytes());
        assert!(output.is_good && output.text().ends_with("bytes]"));
        assert_eq!(read_output(StatusCode::OK, b"[1]").value, json!([1]));
        let failed = read_output(StatusCode::CONFLICT, b"no");
        assert!(!failed.is_good && failed.text().contains("409"), "{failed:?}");
    }
}
