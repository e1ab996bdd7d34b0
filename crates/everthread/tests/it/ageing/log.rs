//! A session's log as a node exports it.

use super::fleet::Shared;
use everthread_protocol::frame::Entries;
use everthread_session::fold::numbered;
use everthread_session::view::View;
use serde_json::Value;

/// An entry, or what several were merged into.
pub struct Logged {
    pub first: u64,
    pub last: u64,
    pub entry: Value,
    /// The run whose worker wrote it, if one did.
    pub by_run: Option<String>,
}

/// Everything that is kept of a session, in order.
pub struct Log {
    pub entries: Vec<Logged>,
    pub view: Value,
    /// First seq that is kept.
    pub floor: u64,
    pub to: u64,
}

impl Log {
    /// Reads it; nothing if the answer was cut off or refused for now. Panics at a gap or an overlap.
    pub async fn read(shared: &Shared, url: &str, session: &str) -> Option<Log> {
        let answer = shared.try_ask(url, &format!("/v1/sessions/{session}/export"), None).await;
        let text = match answer {
            Ok((200, text)) => text,
            Ok((status, text)) => {
                assert!(text.contains(r#""retryable":true"#), "{status} {text}");
                return None;
            }
            Err(error) => {
                // An export of a log that is trimmed meanwhile is cut off.
                assert!(shared.besides != super::Besides::Nothing, "an export was cut off: {error}");
                return None;
            }
        };
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).peekable();
        let head = lines.next().unwrap();
        let floor = head["floor"].as_u64().unwrap();
        let base = lines.next_if(|line| !line["base"].is_null());
        assert_eq!(base.is_some(), floor > 1, "{head}");
        let mut view =
            base.map_or_else(View::new, |line| View::from_base(&line["base"].to_string()).unwrap());
        assert_eq!(view.seq().0, floor - 1);
        let (mut entries, mut to) = (Vec::new(), floor - 1);
        for mut record in lines {
            assert_eq!(record["from"], to + 1, "a hole in an export, or an overlap");
            record["t"] = "entries".into();
            record["attachment"] = 1.into();
            let record = record.to_string();
            let record = Entries::decode(record.as_bytes()).unwrap();
            for block in &record.blocks {
                for (first, last, raw) in numbered(block, record.from).unwrap() {
                    let entry = serde_json::from_str(raw.get()).unwrap();
                    let by_run = block.run.as_ref().map(|run| run.to_string());
                    entries.push(Logged { first: first.0, last: last.0, entry, by_run });
                }
            }
            view.apply_blocks(&record).unwrap();
            to = record.to.0;
        }
        assert!(to >= head["seq"].as_u64().unwrap(), "an export that ends at {to}: {head}");
        let view = serde_json::to_value(&view).unwrap();
        // Also one that was open where the log begins now.
        let runs = view["runs"].as_array().unwrap();
        let named =
            |logged: &&Logged| matches!(logged.entry["type"].as_str(), Some("run.started" | "run.ended"));
        for Logged { entry, .. } in entries.iter().filter(named) {
            assert!(runs.iter().any(|run| run["run"] == entry["run"]), "{session} knows no run of {entry}");
        }
        Some(Log { entries, view, floor, to })
    }

    /// Marks from a seq on, with their seqs.
    pub fn marks(&self, from: u64) -> Vec<(u64, String)> {
        let marks = self.entries.iter().filter(|logged| logged.entry["type"] == "x-mark");
        let marks = marks.map(|logged| (logged.first, logged.entry["mark"].as_str().unwrap().to_owned()));
        marks.filter(|(seq, _)| *seq >= from).collect()
    }
}
