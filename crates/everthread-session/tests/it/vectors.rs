//! The golden vectors in `sdk/conformance/vectors`: made from the data in `vectors_data` and `vectors_frames`, checked to
//! be current. With `EVERTHREAD_UPDATE_VECTORS=1` they are written; review the difference.

use crate::{vectors_branch, vectors_data, vectors_frames};
use everthread_protocol::control::{What, check_wait};
use everthread_protocol::entry::{Writer, check, check_message};
use everthread_protocol::frame::{ClientFrame, Entries, ServerFrame, Snapshot};
use everthread_protocol::scan::{self, Problem, RawEntries};
use everthread_protocol::worker_frame::{WorkerFrame, WorkerServerFrame};
use everthread_protocol::{Code, Cursor, Fault};
use everthread_session::view::{Applied, Error, View};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Compares a file with what it should hold, or writes it when asked to.
fn current(name: &str, content: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/conformance/vectors").join(name);
    let text = serde_json::to_string_pretty(content).unwrap() + "\n";
    if std::env::var_os("EVERTHREAD_UPDATE_VECTORS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "{name} is not current: run with EVERTHREAD_UPDATE_VECTORS=1 and review the difference"
    );
}

fn names_are_unique(cases: &[Value]) {
    let names: BTreeSet<&str> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), cases.len());
}

/// Runs a case of `view.json` and adds what comes out of it.
fn run(mut case: Value) -> Value {
    let mut view = match case.get("start") {
        None => View::new(),
        Some(start) => {
            let text = start.to_string();
            let Snapshot { epoch, seq, state, messages, .. } = serde_json::from_str(&text).unwrap();
            View::from_snapshot(epoch, seq, state.get(), messages.get()).unwrap()
        }
    };
    let mut results = Vec::new();
    for frame in case["frames"].as_array().unwrap() {
        let text = frame.to_string();
        results.push(match view.apply_blocks(&Entries::decode(text.as_bytes()).unwrap()) {
            Ok(Applied::Yes) => "applied",
            Ok(Applied::Duplicate) => "duplicate",
            Err(Error::Gap { .. }) => "gap",
            Err(Error::Inconsistent { .. }) => "inconsistent",
            Err(Error::Invalid(e)) => panic!("{}: {e}", case["name"]),
        });
    }
    let failed = results.iter().find(|result| matches!(**result, "gap" | "inconsistent")).copied();
    case["view"] = match failed {
        Some(error) => {
            assert_eq!(results.last(), Some(&error), "{}: nothing follows an error", case["name"]);
            json!({"error": error})
        }
        None => serde_json::to_value(&view).unwrap(),
    };
    if case.get("tree").is_some() {
        case["tree"] = vectors_branch::tree(&view);
    }
    case["results"] = json!(results);
    case
}

#[test]
fn view_vectors_are_current() {
    let cases: Vec<Value> = vectors_data::view_cases().into_iter().map(run).collect();
    names_are_unique(&cases);
    for case in &cases {
        // What a case expects in its own words, as far as it says so.
        if let Some(same) = case.get("same_view_as") {
            let other = cases.iter().find(|other| other["name"] == *same).unwrap();
            assert_eq!(case["view"], other["view"], "{}", case["name"]);
        }
    }
    current("view.json", &json!({"cases": cases}));
}

#[test]
fn cursor_vectors_are_current() {
    let vectors = vectors_frames::cursors();
    for case in vectors["valid"].as_array().unwrap() {
        let cursor: Cursor = case["cursor"].as_str().unwrap().parse().unwrap();
        assert_eq!((json!(cursor.epoch), json!(cursor.seq)), (case["epoch"].clone(), case["seq"].clone()));
    }
    for text in vectors["invalid"].as_array().unwrap() {
        assert!(text.as_str().unwrap().parse::<Cursor>().is_err(), "{text}");
    }
    current("cursor.json", &vectors);
}

fn scanned(text: &str) -> Result<RawEntries<'_>, Fault> {
    scan::entries(text.as_bytes()).map_err(|e| match e.problem {
        Problem::TooLarge | Problem::TooMany => Fault::new(Code::TooLarge, e.to_string()),
        _ => Fault::bad_request(e.to_string()),
    })
}

/// What the edge does with a client's frame before it looks at the session.
fn client(text: &str) -> Result<(), Fault> {
    match ClientFrame::decode(text.as_bytes())? {
        ClientFrame::Put(put) => {
            let entries = scanned(put.entries.get())?;
            for (at, entry) in entries.items.iter().enumerate() {
                match &*entry.kind {
                    "message.put" => drop(check_message(&entries, at)?),
                    "state.set" => drop(check(&entries, at, |_| true)?),
                    _ => drop(check(&entries, at, |writer| writer == Writer::Anyone)?),
                }
            }
        }
        ClientFrame::Control(control) => {
            What::read(control.kind, control.mode, control.payload)?;
            check_wait(control.expires_ms)?;
        }
        _ => {}
    }
    Ok(())
}

/// What the edge does with a worker's frame before it looks at the run.
fn worker(text: &str) -> Result<(), Fault> {
    if let WorkerFrame::Append(append) = WorkerFrame::decode(text.as_bytes())? {
        let entries = scanned(append.entries.get())?;
        for at in 0..entries.items.len() {
            check(&entries, at, |writer| writer != Writer::Decided)?;
        }
    }
    Ok(())
}

fn frames_agree(cases: &[Value], read: fn(&str) -> Result<(), Fault>) {
    names_are_unique(cases);
    for case in cases {
        let code = read(case["frame"].as_str().unwrap()).err().map(|fault| fault.code.as_str());
        match code {
            None => assert_eq!(case["accepted"], true, "{case}"),
            Some(code) => assert_eq!(case["code"], code, "{case}"),
        }
    }
}

#[test]
fn client_frame_vectors_are_current() {
    let cases = vectors_frames::client_frames();
    frames_agree(&cases, client);
    current("client_frames.json", &json!({"cases": cases}));
}

#[test]
fn worker_frame_vectors_are_current() {
    let cases = vectors_frames::worker_frames();
    frames_agree(&cases, worker);
    current("worker_frames.json", &json!({"cases": cases}));
}

/// The `t` of a frame; a new kind of frame does not compile until it is here and in the vectors.
fn client_kind(frame: &ServerFrame<'_>) -> &'static str {
    match frame {
        ServerFrame::Welcome(_) => "welcome",
        ServerFrame::Attached(_) => "attached",
        ServerFrame::Snapshot(_) => "snapshot",
        ServerFrame::Live { .. } => "live",
        ServerFrame::Lag { .. } => "lag",
        ServerFrame::Reset { .. } => "reset",
        ServerFrame::Gone { .. } => "gone",
        ServerFrame::Ok(_) => "ok",
        ServerFrame::Error(_) => "error",
        ServerFrame::Receipt(_) => "receipt",
        ServerFrame::History(_) => "history",
        ServerFrame::Presence(_) => "presence",
        ServerFrame::Sessions(_) => "sessions",
        ServerFrame::Ping {} => "ping",
        ServerFrame::Bye(_) => "bye",
    }
}

fn worker_kind(frame: &WorkerServerFrame<'_>) -> &'static str {
    match frame {
        WorkerServerFrame::Welcome(_) => "welcome",
        WorkerServerFrame::Work(_) => "work",
        WorkerServerFrame::Ok(_) => "ok",
        WorkerServerFrame::Duplicate(_) => "duplicate",
        WorkerServerFrame::Safe { .. } => "safe",
        WorkerServerFrame::Error(_) => "error",
        WorkerServerFrame::Control(_) => "control",
        WorkerServerFrame::Fenced { .. } => "fenced",
        WorkerServerFrame::ChildEnded(_) => "child_ended",
        WorkerServerFrame::Ping {} => "ping",
        WorkerServerFrame::Bye(_) => "bye",
    }
}

#[test]
fn server_frame_vectors_are_current() {
    let vectors = vectors_frames::server_frames();
    let (mut seen, mut seen_worker) = (BTreeSet::new(), BTreeSet::new());
    for frame in vectors["client"].as_array().unwrap() {
        let text = frame.to_string();
        if frame["t"] == "entries" {
            Entries::decode(text.as_bytes()).unwrap();
            continue;
        }
        let read = ServerFrame::decode(text.as_bytes()).unwrap();
        assert_eq!(frame["t"], client_kind(&read));
        assert_eq!(serde_json::from_str::<Value>(&read.encode()).unwrap(), *frame);
        seen.insert(client_kind(&read));
    }
    for frame in vectors["worker"].as_array().unwrap() {
        let text = frame.to_string();
        let read = WorkerServerFrame::decode(text.as_bytes()).unwrap();
        assert_eq!(frame["t"], worker_kind(&read));
        assert_eq!(serde_json::from_str::<Value>(&read.encode()).unwrap(), *frame);
        seen_worker.insert(worker_kind(&read));
    }
    assert_eq!((seen.len(), seen_worker.len()), (15, 11), "one example of each: {seen:?} {seen_worker:?}");
    current("server_frames.json", &vectors);
}

fn problem(problem: &Problem) -> &'static str {
    match problem {
        Problem::Syntax(_) => "syntax",
        Problem::NotUtf8 => "not_utf8",
        Problem::TooDeep => "too_deep",
        Problem::TooLarge => "too_large",
        Problem::TooMany => "too_many",
        Problem::Empty => "empty",
        Problem::DoubledKey => "doubled_key",
        Problem::LoneSurrogate => "lone_surrogate",
        Problem::NotFinite => "not_finite",
        Problem::NoType => "no_type",
    }
}

/// The bytes of a case of `scan.json`: `text`, `hex`, or `pieces` of text with how often each stands.
fn bytes(case: &Value) -> Vec<u8> {
    if let Some(text) = case["text"].as_str() {
        return text.as_bytes().to_vec();
    }
    if let Some(hex) = case["hex"].as_str() {
        let digits: Vec<char> = hex.chars().collect();
        return digits
            .chunks(2)
            .map(|two| u8::from_str_radix(&String::from_iter(two), 16).unwrap())
            .collect();
    }
    let mut out = Vec::new();
    for piece in case["pieces"].as_array().unwrap() {
        let times = usize::try_from(piece[1].as_u64().unwrap()).unwrap();
        out.extend(piece[0].as_str().unwrap().repeat(times).into_bytes());
    }
    out
}

#[test]
fn scan_vectors_are_current() {
    let cases = vectors_frames::scans();
    names_are_unique(&cases);
    let mut problems = BTreeSet::new();
    for case in &cases {
        match scan::entries(&bytes(case)) {
            Ok(entries) => assert_eq!(case["accepted"], entries.items.len(), "{}", case["name"]),
            Err(error) => {
                assert_eq!(case["refused"], problem(&error.problem), "{}", case["name"]);
                problems.insert(problem(&error.problem));
            }
        }
    }
    assert_eq!(problems.len(), 10, "one case of each problem: {problems:?}");
    current("scan.json", &json!({"cases": cases}));
}
