//! The checker of histories: what must be true of any log, whatever happened while it was written.

use crate::node::Node;
use everthread_protocol::frame::Entries;
use everthread_session::view::View;
use serde_json::Value;
use std::collections::HashMap;

/// A log that was checked.
#[derive(Debug)]
pub struct History {
    /// Every entry, with when it was written and by which run's worker, if by one.
    pub entries: Vec<Entry>,
    pub state: Value,
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub at: u64,
    pub by_run: Option<String>,
    pub kind: String,
    pub body: Value,
}

impl History {
    /// Reads a session, in which no run is open any more, from all `nodes`, and checks that
    ///
    /// - they hold the same entries, without a gap, and the same state, which is what the entries come to;
    /// - every run has one end, after which there is nothing of it;
    /// - every control has one outcome, and every approval at most one.
    pub async fn checked(nodes: &[&Node], session: &str) -> History {
        let records = nodes[0].records(session).await;
        let state = nodes[0].get(&format!("/v1/sessions/{session}/state")).await;
        for other in &nodes[1..] {
            assert_eq!(other.records(session).await, records, "{session}: nodes differ");
            assert_eq!(
                other.get(&format!("/v1/sessions/{session}/state")).await,
                state,
                "{session}: nodes differ"
            );
        }
        let mut view = View::new();
        for record in &records {
            let mut frame = record.clone();
            frame["t"] = "entries".into();
            frame["attachment"] = 1.into();
            view.apply_blocks(&Entries::decode(frame.to_string().as_bytes()).unwrap()).unwrap();
        }
        assert_eq!(
            serde_json::to_value(&view).unwrap(),
            state,
            "{session}: the state is not that of the log"
        );
        let blocks = records.iter().flat_map(|record| record["blocks"].as_array().unwrap());
        let entries = blocks.flat_map(|block| {
            block["entries"].as_array().unwrap().iter().map(|entry| Entry {
                at: block["at"].as_u64().unwrap(),
                by_run: block["run"].as_str().map(str::to_owned),
                kind: entry["type"].as_str().unwrap().to_owned(),
                body: entry.clone(),
            })
        });
        let history = History { entries: entries.collect(), state };
        history.check_runs(session);
        history.check_pairs(session, "control.requested", "control.settled", |entry| {
            entry["control"].to_string()
        });
        history.check_settled_once(session);
        history
    }

    fn check_runs(&self, session: &str) {
        self.check_pairs(session, "run.requested", "run.ended", |entry| entry["run"].to_string());
        let mut ended: Vec<String> = Vec::new();
        for entry in &self.entries {
            let named = entry.kind.starts_with("run.").then(|| entry.body["run"].as_str()).flatten();
            if let Some(run) = entry.by_run.as_deref().or(named) {
                assert!(
                    !ended.iter().any(|over| over == run),
                    "{session}: after the end of its run: {entry:?}"
                );
            }
            if entry.kind == "run.ended" {
                ended.push(entry.body["run"].as_str().unwrap().to_owned());
            }
        }
    }

    /// Each `open` has one `close` of the same name, after it, and there is no other `close`.
    fn check_pairs(&self, session: &str, open: &str, close: &str, name: impl Fn(&Value) -> String) {
        let mut seen: HashMap<String, u32> = HashMap::new();
        for entry in &self.entries {
            if entry.kind == open {
                assert!(seen.insert(name(&entry.body), 0).is_none(), "{session}: twice: {entry:?}");
            } else if entry.kind == close {
                let count = seen.get_mut(&name(&entry.body));
                *count.unwrap_or_else(|| panic!("{session}: out of nothing: {entry:?}")) += 1;
            }
        }
        for (name, count) in seen {
            assert_eq!(count, 1, "{session}: {open} {name} has {count} {close}");
        }
    }

    fn check_settled_once(&self, session: &str) {
        let mut seen = Vec::new();
        for entry in self.of("approval.settled") {
            let name = (entry.body["run"].clone(), entry.body["approval"].clone());
            assert!(!seen.contains(&name), "{session}: settled twice: {entry:?}");
            seen.push(name);
        }
    }

    /// Entries of a type.
    pub fn of(&self, kind: &str) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.kind == kind)
    }

    /// Entries of a type that name a run.
    pub fn of_run(&self, kind: &str, run: &str) -> Vec<&Entry> {
        self.of(kind).filter(|entry| entry.body["run"] == run).collect()
    }

    /// The end of a run.
    pub fn end(&self, run: &str) -> &Entry {
        self.of_run("run.ended", run)[0]
    }

    /// Outcome and reason of a control.
    pub fn settled(&self, control: &str) -> (&str, &str) {
        let entry = self.of("control.settled").find(|entry| entry.body["control"] == control);
        let body = &entry.unwrap_or_else(|| panic!("no outcome of {control}")).body;
        (body["outcome"].as_str().unwrap(), body["reason"].as_str().unwrap_or_default())
    }

    /// What the worker of a run wrote last.
    pub fn last_of(&self, run: &str) -> &Entry {
        self.entries.iter().rfind(|entry| entry.by_run.as_deref() == Some(run)).unwrap()
    }

    /// All text that a run has written.
    pub fn text(&self, run: &str) -> String {
        let messages = self.state["messages"].as_array().unwrap().iter().filter(|m| m["run"] == run);
        let parts = messages.flat_map(|message| message["parts"].as_array().unwrap());
        parts.map(|part| part["value"].as_str().unwrap_or_default()).collect()
    }

    /// Text of a message that somebody put.
    pub fn input(&self, message: &str) -> &str {
        let messages = self.state["messages"].as_array().unwrap();
        let found = messages.iter().find(|m| m["message"] == message && m["run"].is_null());
        found.unwrap_or_else(|| panic!("no message {message}"))["parts"][0]["value"].as_str().unwrap()
    }

    /// Checks that a streamed text is the numbers from 0 on, without a gap: what was written stays, all of it.
    pub fn counts_up(&self, run: &str) {
        let text = self.text(run);
        let numbers: Vec<usize> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert!(!numbers.is_empty(), "nothing of {run} was kept");
        assert!(numbers.iter().enumerate().all(|(index, number)| index == *number), "{run}: {text}");
    }
}
