//! What everybody recorded: one JSON object per line, who, when and what.
//!
//! Nobody judges here. A client notes what it was sent and asked, a worker what was confirmed to it, the driver what it broke;
//! [`crate::check`] reads all of it together with the logs as the nodes export them in the end.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in microseconds since the Unix epoch, on the clock of whoever wrote it.
    pub at: u64,
    /// Who: a client, a worker, an asker, the driver.
    pub who: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// A position in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Incarnation of the log.
    pub epoch: u64,
    /// Everything up to here.
    pub seq: u64,
}

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The primary has it: lost with a primary whose replica had not got it yet.
    #[default]
    Accepted,
    /// Every replica that was connected has it.
    Replicated,
    /// It is on disk.
    Fsynced,
}

impl Level {
    /// As nodes are told it.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Accepted => "accepted",
            Level::Replicated => "replicated",
            Level::Fsynced => "fsynced",
        }
    }

    /// As an answer names it; the least where it names none.
    pub fn named(name: Option<&str>) -> Level {
        match name {
            Some("replicated") => Level::Replicated,
            Some("fsynced") => Level::Fsynced,
            _ => Level::Accepted,
        }
    }
}

/// What happened to somebody.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// A client is about to follow.
    Follows {
        /// What.
        session: String,
    },
    /// A client was attached.
    Attached {
        /// To what.
        session: String,
        /// Where it said it stands; nothing if it asked for the start or for a snapshot.
        from: Option<Place>,
        /// Whether it asked for a snapshot.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        recent: bool,
        /// Whether the server says that it goes on from there.
        resumed: bool,
        /// Incarnation of the log as the server says.
        epoch: u64,
    },
    /// A client was sent frames of entries, each right behind the one before it.
    Frames {
        /// Of what.
        session: String,
        /// Incarnation.
        epoch: u64,
        /// First seq of that incarnation.
        since: u64,
        /// First seq of the first frame.
        from: u64,
        /// Last seq of the last frame.
        to: u64,
        /// How many frames.
        count: u64,
        /// When the first one came; `at` is when the last one did.
        first: u64,
    },
    /// A client was sent a snapshot.
    Snapshot {
        /// Of what.
        session: String,
        /// Where it stands.
        epoch: u64,
        /// Where it stands.
        seq: u64,
        /// First seq that is kept.
        floor: u64,
    },
    /// A client was told that what it holds is not of this log.
    Reset {
        /// Which log.
        session: String,
        /// In the server's words.
        reason: String,
    },
    /// A client was told that it has everything up to there.
    Live {
        /// Of what.
        session: String,
        /// Up to where.
        seq: u64,
    },
    /// A connection ended, or was left.
    Left {
        /// Why.
        why: String,
    },
    /// What a client holds in the end.
    Holds {
        /// Of what.
        session: String,
        /// Up to where.
        place: Place,
        /// How many messages, counted from the last.
        messages: usize,
        /// Whether these are all messages.
        whole: bool,
        /// Digest of these messages.
        digest: u64,
    },
    /// Something is about to be written; it may be asked for again under the same id.
    Put {
        /// Where.
        session: String,
        /// Id of the request.
        id: String,
        /// The message, or the mark.
        name: String,
        /// Its text.
        text: String,
    },
    /// It was acknowledged.
    PutAcked {
        /// Where.
        session: String,
        /// Id of the request.
        id: String,
        /// Where the answer says that it ends.
        place: Place,
        /// The run that was asked for with it.
        run: Option<String>,
        /// What the answer promises.
        #[serde(default)]
        level: Level,
    },
    /// A request was refused: asking again changes nothing.
    Refused {
        /// Id of the request.
        id: String,
        /// In the node's words.
        why: String,
    },
    /// A node said that the fault is its own.
    Internal {
        /// What was asked for.
        path: String,
        /// In the node's words.
        why: String,
    },
    /// A control is about to be asked for.
    Asked {
        /// Where.
        session: String,
        /// Its id.
        control: String,
        /// What for.
        kind: String,
        /// The run that is meant.
        run: String,
    },
    /// A receipt for a control.
    Receipt {
        /// Where.
        session: String,
        /// Its id.
        control: String,
        /// `accepted`, `delivered` or `settled`.
        stage: String,
        /// The outcome, if it has one.
        outcome: Option<String>,
        /// What the receipt promises of the request.
        #[serde(default)]
        level: Level,
    },
    /// A worker has begun a run.
    Began {
        /// Where.
        session: String,
        /// Which.
        run: String,
        /// Which attempt.
        attempt: u32,
    },
    /// What a worker has written of a run is confirmed, up to so many tokens.
    Confirmed {
        /// Where.
        session: String,
        /// Which.
        run: String,
        /// Which attempt.
        attempt: u32,
        /// Which time that it was begun, as its tokens say.
        execution: u32,
        /// How many tokens.
        tokens: u64,
        /// What the confirmation promises.
        #[serde(default)]
        level: Level,
    },
    /// A worker is done with a run.
    Done {
        /// Where.
        session: String,
        /// Which.
        run: String,
        /// Which attempt.
        attempt: u32,
        /// How it left.
        how: String,
    },
    /// The driver breaks something, or mends it.
    Fault {
        /// Number in the schedule.
        number: usize,
        /// What kind.
        kind: String,
        /// What it is done to.
        target: String,
        /// `begin`, `end`, or why it was not done.
        phase: String,
    },
}

/// Now, in microseconds since the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Writes a history. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Mutex<Out>>);

#[derive(Debug)]
enum Out {
    /// Each line at once: this process may be killed.
    Direct(File),
    Buffered(BufWriter<File>),
    /// For tests within a process.
    Memory(Vec<Event>),
}

impl Recorder {
    /// Into a file, in large pieces.
    pub fn buffered(path: &Path) -> anyhow::Result<Recorder> {
        Ok(Recorder(Arc::new(Mutex::new(Out::Buffered(BufWriter::new(File::create(path)?))))))
    }

    /// To the end of a file, line by line, so that a kill costs at most the last one.
    pub fn direct(path: &Path) -> anyhow::Result<Recorder> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Recorder(Arc::new(Mutex::new(Out::Direct(file)))))
    }

    /// Into memory.
    pub fn memory() -> Recorder {
        Recorder(Arc::new(Mutex::new(Out::Memory(Vec::new()))))
    }

    /// Notes something that happens now.
    pub fn note(&self, who: &str, what: What) {
        self.note_at(now(), who, what);
    }

    /// Notes something that happened then.
    pub fn note_at(&self, at: u64, who: &str, what: What) {
        let event = Event { at, who: who.to_owned(), what };
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match &mut *out {
            Out::Memory(events) => {
                events.push(event);
                return;
            }
            Out::Direct(file) => line(&event).and_then(|line| file.write_all(&line)),
            Out::Buffered(file) => line(&event).and_then(|line| file.write_all(&line)),
        };
        // A history with a hole proves nothing: better none.
        if let Err(error) = written {
            panic!("the history cannot be written: {error}");
        }
    }

    /// Everything that was written to memory; what was written to a file is there after this.
    pub fn finish(&self) -> std::io::Result<Vec<Event>> {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *out {
            Out::Memory(events) => Ok(events.clone()),
            Out::Buffered(file) => file.flush().map(|()| Vec::new()),
            Out::Direct(_) => Ok(Vec::new()),
        }
    }
}

fn line(event: &Event) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a history. A last line without an end is that of a process that was killed, and is left out.
pub fn read(path: &Path) -> anyhow::Result<Vec<Event>> {
    let text = std::fs::read_to_string(path)?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let events = whole.lines().map(|line| {
        serde_json::from_str(line).map_err(|error| anyhow::anyhow!("{}: {error}: {line}", path.display()))
    });
    events.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_it_was_written_but_for_a_line_that_a_kill_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let recorder = Recorder::direct(&path).unwrap();
        let what = What::Attached {
            session: "s".into(),
            from: Some(Place { epoch: 5, seq: 3 }),
            recent: false,
            resumed: true,
            epoch: 5,
        };
        recorder.note_at(7, "c1", what.clone());
        recorder.note_at(8, "c1", What::Left { why: "cut".into() });
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(r#"{"at":9,"who":"c1","wha"#);
        std::fs::write(&path, text).unwrap();
        let events = read(&path).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0], Event { at: 7, who: "c1".into(), what });
    }
}
