//! `everthread tail`: a session in the terminal, as it is written.
//!
//! Text is printed as it comes while one message is being written. When several are, each is printed by whole lines, every
//! one under the name of its writer, so that the output can be read.

use anyhow::Context as _;
use clap::Args;
use everthread_client::{Client, Event, Follow, Frame, From, View};
use everthread_protocol::entry::PartKind;
use everthread_session::view::{Message, PartState, Run, RunStatus};
use everthread_worker::CancellationToken;
use std::collections::{HashMap, HashSet};
use std::io::Write as _;

/// Configuration of `tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArgs {
    /// The session to follow.
    pub session: String,
    /// Address of a node.
    #[arg(long, env = "EVERTHREAD_URL", hide_env_values = true, default_value = "ws://127.0.0.1:7400")]
    pub url: String,
    /// The token to present.
    #[arg(long, env = "EVERTHREAD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Where to begin: `start`, `recent:N`, or a cursor.
    #[arg(long, env = "EVERTHREAD_FROM", default_value = "recent:20", value_parser = parse_from)]
    pub from: From,
}

fn parse_from(text: &str) -> Result<From, String> {
    if text == "start" {
        return Ok(From::Start);
    }
    if let Some(number) = text.strip_prefix("recent:") {
        return number.parse().map(From::Recent).map_err(|e| format!("recent:N with a number: {e}"));
    }
    text.parse().map(From::Cursor).map_err(|_| "start, recent:N or a cursor".to_owned())
}

/// Follows the session until `stop`, or until the server has no more to say.
pub async fn run(args: TailArgs, token: String, stop: CancellationToken) -> anyhow::Result<()> {
    let session = args.session.parse().context("SESSION")?;
    let name = concat!("everthread-tail/", env!("CARGO_PKG_VERSION"));
    let client = Client::builder(args.url, token).name(name).connect();
    let result = tokio::select! {
        result = follow(&client, session, args.from) => result,
        () = stop.cancelled() => Ok(()),
    };
    client.close().await;
    result
}

async fn follow(client: &Client, session: everthread_protocol::SessionId, from: From) -> anyhow::Result<()> {
    let mut follow = client.follow(session, from).await?;
    let mut printer = Printer::default();
    while let Some(event) = follow.next().await {
        match event {
            Event::Snapshot(_) | Event::Entries(_) => out(&text(&mut printer, &follow, &event)?)?,
            Event::Disconnected => note("disconnected, trying again …"),
            Event::Attached { resumed: true, .. } if printer.is_begun => note("connected again"),
            Event::Reset(reason) => {
                note(&format!("what was shown is no longer the log ({reason:?}); starting over"))
            }
            Event::Lost(error) => note(&format!("what was said was lost, and not taken again: {error}")),
            Event::Gone(error) => return Err(error.into()),
            Event::Attached { .. } | Event::Live(_) | Event::Lag(_) | Event::Presence(_) => {}
        }
    }
    Ok(())
}

fn out(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("the output is closed")
}

#[expect(clippy::print_stderr, reason = "notices stand beside the output, not in it")]
fn note(text: &str) {
    eprintln!("· {text}");
}

/// What an event adds to the output.
fn text(printer: &mut Printer, follow: &Follow, event: &Event) -> anyhow::Result<String> {
    match (follow.view(), event) {
        (Some(view), _) => Ok(printer.update(view)),
        (None, Event::Entries(frame)) => entries(printer, frame),
        (None, _) => Ok(String::new()),
    }
}

/// From a cursor there is no view to print: the entries themselves, one a line, each block after its cursor.
fn entries(printer: &mut Printer, frame: &Frame) -> anyhow::Result<String> {
    printer.is_begun = true;
    let mut out = format!("# {}.{}\n", frame.epoch, frame.to);
    for block in frame.entries()?.blocks {
        let list: Vec<&serde_json::value::RawValue> = serde_json::from_str(block.entries.get())?;
        for entry in list {
            out.push_str(entry.get());
            out.push('\n');
        }
    }
    Ok(out)
}

/// Turns states of a view into text that only grows.
#[derive(Debug, Default)]
struct Printer {
    is_begun: bool,
    /// Bytes shown of each part of a message that may still grow: by message reference and part.
    shown: HashMap<(String, String), String>,
    /// So many messages at the beginning are done with.
    done: usize,
    /// Runs whose end was shown.
    ended: HashSet<String>,
    /// Whose line the output is in.
    line: Option<String>,
}

impl Printer {
    /// What the output must grow by to show `view`.
    fn update(&mut self, view: &View) -> String {
        let mut out = String::new();
        let messages = view.messages();
        if messages.len() < self.done {
            // Taken back by a step, or another view.
            self.done = 0;
        }
        let is_crowded = messages[self.done..].iter().filter(|message| is_streaming(message)).count() > 1;
        for message in &messages[self.done..] {
            self.message(message, view, is_crowded, &mut out);
        }
        while messages.get(self.done).is_some_and(|message| !is_streaming(message)) {
            self.done += 1;
        }
        for run in view.runs() {
            self.run(run, &mut out);
        }
        self.is_begun = true;
        out
    }

    fn message(&mut self, message: &Message, view: &View, is_crowded: bool, out: &mut String) {
        let agent = message.run.as_ref().and_then(|run| view.run(run)).map(|run| run.agent.to_string());
        let speaker = agent.or_else(|| message.by["id"].as_str().map(str::to_owned)).unwrap_or_default();
        let run = message.run.as_ref().map_or_else(String::new, |run| format!("{run}/"));
        for part in &message.parts {
            let mut value = match &part.value {
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Null => continue,
                other => other.to_string(),
            };
            let key = (format!("{run}{}", message.message), part.part.to_string());
            let shown = self.shown.get(&key).map_or("", String::as_str);
            if is_crowded && part.status == PartState::Open && value.starts_with(shown) {
                // What follows the last line break waits until the line is whole.
                value.truncate(value.rfind('\n').map_or(0, |at| at + 1).max(shown.len()));
            }
            if value == shown {
                continue;
            }
            let (mark, fresh) = match value.strip_prefix(shown) {
                Some(fresh) => ("", fresh),
                None => (" (anew)", value.as_str()),
            };
            let label = format!("{speaker}{}{mark}", kind_label(part.kind, part.attrs.as_ref()));
            // The line goes on only for the part it was begun for.
            let line = format!("{label} {} {}", key.0, key.1);
            if self.line.as_ref() != Some(&line) {
                self.new_line(out);
                out.push_str(&format!("{label}: "));
                self.line = Some(line);
            }
            out.push_str(fresh);
            if fresh.ends_with('\n') && is_crowded {
                self.line = None;
            }
            self.shown.insert(key, value);
        }
    }

    fn run(&mut self, run: &Run, out: &mut String) {
        let id = format!("{}#{}", run.run, run.requested_seq);
        if run.status != RunStatus::Ended || self.ended.contains(&id) {
            return;
        }
        self.ended.insert(id);
        self.new_line(out);
        let outcome = run.outcome.map_or_else(String::new, |outcome| format!("{outcome:?}").to_lowercase());
        out.push_str(&format!("— {} {outcome}", run.agent));
        if let Some(error) = &run.error {
            out.push_str(&format!(": {} ({})", error.message, error.code));
        }
        out.push('\n');
    }

    fn new_line(&mut self, out: &mut String) {
        if self.line.take().is_some() {
            out.push('\n');
        }
    }
}

fn is_streaming(message: &Message) -> bool {
    message.status == everthread_session::view::MessageState::Streaming
}

fn kind_label(kind: PartKind, attrs: Option<&everthread_protocol::entry::Object>) -> String {
    let word = match kind {
        PartKind::Text => return String::new(),
        PartKind::Reasoning => "reasoning",
        PartKind::ToolCall => "calls",
        PartKind::ToolOutput => "output of",
        PartKind::File => "file",
        PartKind::Source => "source",
        PartKind::Data => "data",
    };
    let name = attrs.and_then(|attrs| attrs.get("name")).and_then(|name| name.as_str());
    name.map_or_else(|| format!(" ({word})"), |name| format!(" ({word} {name})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(parts: serde_json::Value, run_status: &str) -> View {
        let value = serde_json::json!({
            "epoch": "1", "seq": 9, "session": {"meta": {}, "closed": false},
            "runs": [{"run": "r", "agent": "guide", "status": run_status, "input": [], "requested_seq": 2,
                      "outcome": "completed"}],
            "messages": [{"message": "m1", "run": "r", "seq": 4, "at": 1, "by": {"kind": "agent", "id": "guide"},
                          "role": "assistant", "status": "streaming", "parts": parts}],
            "controls": [], "values": {}, "events": []
        });
        serde_json::from_value(value).unwrap()
    }

    fn part(id: &str, value: &str) -> serde_json::Value {
        serde_json::json!({"part": id, "kind": "text", "status": "open", "value": value})
    }

    #[test]
    fn text_grows_in_its_line_and_a_change_of_part_begins_another() {
        let mut printer = Printer::default();
        let mut next = |parts: &[serde_json::Value], status| printer.update(&view(parts.into(), status));
        assert_eq!(next(&[part("p1", "Hel")], "active"), "guide: Hel");
        assert_eq!(next(&[part("p1", "Hello")], "active"), "lo");
        assert_eq!(next(&[part("p1", "Hello")], "active"), "");
        assert_eq!(next(&[part("p1", "Hello"), part("p2", "x")], "active"), "\nguide: x");
        assert_eq!(
            next(&[part("p1", "Hi"), part("p2", "x")], "ended"),
            "\nguide (anew): Hi\n— guide completed\n"
        );
    }

    #[test]
    fn a_beginning_is_start_recent_or_a_cursor() {
        assert_eq!(parse_from("start"), Ok(From::Start));
        assert_eq!(parse_from("recent:5"), Ok(From::Recent(5)));
        assert!(matches!(parse_from("12.7"), Ok(From::Cursor(_))));
        assert!(parse_from("yesterday").is_err());
    }
}
