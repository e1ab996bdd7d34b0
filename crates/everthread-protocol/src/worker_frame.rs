//! Frames between workers and the edge: `GET /v1/worker`, subprotocol `everthread.v1`.
//!
//! `append`, `end`, `suspend`, `settle` and `start_child` share one numbering per run (`producer`): a batch that is sent again is answered with
//! what it got the first time, and a missing one is refused with the number that is expected.

use crate::control::{Mode, Verdict, WhoMay};
use crate::entry::{
    ControlKind, ControlOutcome, Object, Outcome, PutPart, RefusalReason, RunError, strict_error,
    strict_parts,
};
use crate::error::Fault;
use crate::frame::{Bye, ErrorFrame, encode, frame_type, kind, parse};
use crate::id::{AgentName, ApprovalId, ControlId, RequestId, RunId, SessionId, WorkerId};
use crate::level::Level;
use crate::limits::{FRAME_BYTES_MAX, WORKER_AGENTS_MAX, WORKER_CAPACITY_MAX};
use crate::plain::{Plain, push_number};
use crate::position::{Epoch, Fence, Seq, Version};
use crate::record::Author;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A frame from a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum WorkerFrame<'a> {
    /// First frame.
    Hello(WorkerHello),
    /// The worker does not want the run it was given.
    Decline(Decline),
    /// The run is over.
    End(End),
    /// Another agent is to work for this run.
    StartChild(StartChild),
    /// The run waits for people.
    Suspend(Suspend),
    /// A control other than `cancel` has its outcome.
    Settle(Settle),
    /// No new runs for this connection.
    Drain {},
    /// Answer to `ping`.
    Pong {},
    /// Entries of a run. It carries its own `t`: a tagged enum would copy the entries.
    #[serde(skip)]
    Append(Append<'a>),
}

impl<'a> WorkerFrame<'a> {
    /// Reads a frame.
    pub fn decode(bytes: &'a [u8]) -> Result<WorkerFrame<'a>, Fault> {
        // Nearly all frames, as nearly everybody writes them: not read twice to learn their type.
        let is_append = bytes.len() <= FRAME_BYTES_MAX && bytes.starts_with(br#"{"t":"append","#);
        if is_append || frame_type(bytes)? == "append" {
            return parse(bytes).map(WorkerFrame::Append);
        }
        let frame = parse(bytes)?;
        if let WorkerFrame::Hello(WorkerHello { agents, runs, .. }) = &frame {
            // With the token of a run a worker offers nothing and names that run.
            if (agents.is_empty() && runs.is_empty()) || agents.len() > WORKER_AGENTS_MAX {
                return Err(Fault::bad_request(format!("a worker offers 1 to {WORKER_AGENTS_MAX} agents")));
            }
            if agents.iter().any(|a| a.capacity == 0 || a.capacity > WORKER_CAPACITY_MAX) {
                return Err(Fault::bad_request(format!("capacity is 1 to {WORKER_CAPACITY_MAX}")));
            }
        }
        Ok(frame)
    }

    /// The frame as text.
    pub fn encode(&self) -> String {
        match self {
            WorkerFrame::Append(append) => encode(append),
            other => encode(other),
        }
    }
}

/// First frame of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerHello {
    /// Correlates `welcome`.
    pub id: RequestId,
    /// Unless it came with the handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// This process: a new one for every start.
    pub worker: WorkerId,
    /// What it offers.
    pub agents: Vec<Offer>,
    /// Runs it holds from before the connection was lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Held>,
}

/// A role that a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The agent.
    pub name: AgentName,
    /// Runs of it at once.
    pub capacity: u32,
    /// What becomes of a run that has written when its worker dies.
    #[serde(default, skip_serializing_if = "OnLost::is_default")]
    pub on_lost: OnLost,
}

/// What becomes of a run that has written when its worker dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// It ends as `lost`.
    #[default]
    End,
    /// Another worker gets it as a new attempt, and sees what was written.
    Retry,
}

impl OnLost {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    fn is_default(&self) -> bool {
        *self == Self::End
    }
}

/// A run that a worker holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Its session.
    pub session: SessionId,
    /// The run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
}

/// Who numbers the writes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Producer {
    /// Restart of the numbering; begins at the run's attempt.
    pub incarnation: u64,
    /// From 1, without gaps.
    pub batch: u64,
}

/// The `t` of an `append`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppendTag {
    /// The only one.
    #[default]
    Append,
}

/// Entries of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Append<'a> {
    /// Always `append`.
    pub t: AppendTag,
    /// Correlates the reply.
    pub id: RequestId,
    /// The run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
    /// Number of this write.
    pub producer: Producer,
    /// How sure the acknowledgement is to be; as the deployment has it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Level>,
    /// What led to it, as W3C Trace Context writes it. What is none is ignored.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Cow<'a, str>>,
    /// What is written.
    #[serde(borrow)]
    pub entries: &'a RawValue,
}

/// An append as our libraries write it, which nearly all frames of workers are: not read as JSON to learn that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainAppend<'a> {
    /// Correlates the reply.
    pub id: RequestId,
    /// The run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
    /// Number of this write.
    pub producer: Producer,
    /// What is written. Whoever scans it finds out whether it is an array of entries, and whether the frame was whole.
    pub entries: &'a [u8],
}

impl<'a> PlainAppend<'a> {
    /// `None` if it is anything else, or written in another way: [`WorkerFrame::decode`] tells.
    pub fn read(bytes: &'a [u8]) -> Option<PlainAppend<'a>> {
        if bytes.len() > FRAME_BYTES_MAX {
            return None;
        }
        let mut plain = Plain::new(bytes);
        plain.eat(br#"{"t":"append","id":""#)?;
        let id = plain.string()?.parse().ok()?;
        plain.eat(br#","run":""#)?;
        let run = plain.string()?.parse().ok()?;
        plain.eat(br#","fence":""#)?;
        let fence = Fence(plain.number()?);
        plain.eat(br#"","producer":{"incarnation":"#)?;
        let incarnation = plain.number()?;
        plain.eat(br#","batch":"#)?;
        let batch = plain.number()?;
        plain.eat(br#"},"entries":"#)?;
        let is_list = |entries: &&[u8]| entries.starts_with(b"[") && entries.ends_with(b"]");
        let entries = plain.rest().strip_suffix(b"}").filter(is_list)?;
        Some(PlainAppend { id, run, fence, producer: Producer { incarnation, batch }, entries })
    }
}

/// The run is over.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Correlates the reply.
    pub id: RequestId,
    /// The run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
    /// Number of this write.
    pub producer: Producer,
    /// `completed`, `cancelled` or `failed`.
    pub outcome: Outcome,
    /// With `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "strict_error")]
    pub error: Option<RunError>,
    /// Tokens and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Object>,
}

/// Another agent is to work for this run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartChild {
    /// Correlates the reply.
    pub id: RequestId,
    /// The parent run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
    /// Number of this write.
    pub producer: Producer,
    /// Who is to work.
    pub agent: AgentName,
    /// Id of the new run, chosen by the worker.
    pub child: RunId,
    /// What it is told: becomes a message of the session.
    #[serde(deserialize_with = "strict_parts")]
    pub parts: Vec<PutPart>,
    /// Passed to the child's worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Object>,
}

/// The run waits for people. Once this is confirmed the run is not this worker's any more.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suspend {
    /// Correlates the reply.
    pub id: RequestId,
    /// The run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
    /// Number of this write.
    pub producer: Producer,
    /// What it waits for, at least one.
    pub approvals: Vec<NewApproval>,
}

/// Something that a run waits for, as its worker asks for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewApproval {
    /// Its id, unique in the run and used once.
    pub approval: ApprovalId,
    /// What is asked, for people.
    pub reason: String,
    /// JSON Schema of the answer's `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Digest of what is asked about: an answer that approves must name the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How long it waits for an answer; a day if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Who may answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<WhoMay>,
    /// Tool name, arguments and the like, to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Object>,
}

/// A control other than `cancel` has its outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settle {
    /// Correlates the reply.
    pub id: RequestId,
    /// The run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
    /// Number of this write.
    pub producer: Producer,
    /// Which control.
    pub control: ControlId,
    /// `applied` or `refused`.
    pub outcome: ControlOutcome,
    /// With `refused`: `not_supported` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RefusalReason>,
}

/// The worker does not want the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decline {
    /// The run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
}

/// A frame to a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum WorkerServerFrame<'a> {
    /// Answer to `hello`.
    Welcome(WorkerWelcome),
    /// A run for this worker, already claimed for it. Read apart: a tagged enum cannot lend out raw bytes.
    #[serde(skip_deserializing)]
    Work(Work<'a>),
    /// A write is done.
    Ok(Ack),
    /// A write was done before.
    Duplicate(Ack),
    /// Earlier writes of a run may be forgotten.
    Safe {
        /// The run.
        run: RunId,
        /// Up to this batch.
        batch: u64,
    },
    /// A write failed.
    Error(ErrorFrame),
    /// Somebody asks something of a run.
    Control(WorkerControl),
    /// The run is no longer this worker's: stop working on it.
    Fenced {
        /// The run.
        run: RunId,
    },
    /// A child run of one of this worker's runs is over.
    ChildEnded(ChildEnded),
    /// Answer with `pong`.
    Ping {},
    /// The server closes the connection.
    Bye(Bye),
}

impl<'a> WorkerServerFrame<'a> {
    /// Reads a frame. A type that this release does not know is an error: skip it, see [`kind`].
    pub fn decode(bytes: &'a [u8]) -> Result<WorkerServerFrame<'a>, Fault> {
        match &*kind(bytes)? {
            "work" => parse(bytes).map(WorkerServerFrame::Work),
            _ => parse(bytes),
        }
    }

    /// The frame as text.
    pub fn encode(&self) -> String {
        encode(self)
    }
}

/// Answer to a worker's `hello`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerWelcome {
    /// Of the `hello`.
    pub id: RequestId,
    /// This connection, for logs.
    pub connection: String,
    /// The node that serves it.
    pub node: String,
    /// The server pings this often; a worker that is silent for `lease_ms` is dead.
    pub heartbeat_ms: u64,
    /// How long a run stays this worker's without a sign of life.
    pub lease_ms: u64,
    /// Bytes of the entries of one write.
    pub block_bytes_max: usize,
    /// Runs that the worker named and still holds; others it named are not its own any more.
    pub kept: Vec<RunId>,
}

/// A run for a worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Work<'a> {
    /// The run.
    pub run: RunId,
    /// Its session.
    pub session: SessionId,
    /// Which of the worker's agents is meant.
    pub agent: AgentName,
    /// To be named in every write.
    pub fence: Fence,
    /// From 1; also the first incarnation of the producer.
    pub attempt: u32,
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// The messages before and including the input are those up to here.
    pub seq: Seq,
    /// The run that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_run: Option<RunId>,
    /// As requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Object>,
    /// Ids of the input messages, with those of steers that earlier attempts took in.
    pub input: Vec<String>,
    /// Answers to what earlier attempts asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answered>,
    /// A token that can write this run and nothing else.
    pub token: String,
    /// The last messages of the session, whole, the input among them.
    #[serde(borrow)]
    pub messages: &'a RawValue,
}

/// A write is done, and with it every earlier batch of that producer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Of the request.
    pub id: RequestId,
    /// The run.
    pub run: RunId,
    /// The last batch that is written.
    pub batch: u64,
    /// Seq of its last entry.
    pub to: Seq,
    /// Version of the session's state: when it moves, somebody decided something.
    pub version: Version,
    /// The last batch that the worker may forget.
    pub safe: u64,
    /// How sure this is, if it was asked or is more than `accepted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Level>,
}

impl Ack {
    /// The frame `ok`, or `duplicate` for a repeat, as [`WorkerServerFrame::encode`] writes it.
    pub fn encode(&self, is_repeat: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(160 + self.id.as_str().len() + self.run.as_str().len());
        let kind: &[u8] = if is_repeat { b"duplicate" } else { b"ok" };
        // Ids need no escapes.
        let texts: [(&[u8], &[u8]); 3] = [
            (b"{\"t\":\"", kind),
            (b"\",\"id\":\"", self.id.as_str().as_bytes()),
            (b"\",\"run\":\"", self.run.as_str().as_bytes()),
        ];
        for (name, text) in texts {
            out.extend_from_slice(name);
            out.extend_from_slice(text);
        }
        let numbers: [(&[u8], u64); 5] = [
            (b"\",\"batch\":", self.batch),
            (b",\"to\":", self.to.0),
            (b",\"version\":\"", self.version.epoch.0),
            (b".", self.version.n),
            (b"\",\"safe\":", self.safe),
        ];
        for (name, number) in numbers {
            out.extend_from_slice(name);
            push_number(&mut out, number);
        }
        if let Some(level) = self.ack {
            out.extend_from_slice(b",\"ack\":\"");
            out.extend_from_slice(level.as_str().as_bytes());
            out.push(b'"');
        }
        out.push(b'}');
        out
    }
}

/// The outcome of an approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Which approval.
    pub approval: ApprovalId,
    /// Its outcome.
    pub verdict: Verdict,
    /// Who answered; nobody did if it expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<Author>,
    /// The answer itself, if it is more than yes or no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Digest of what was asked about, as the approval had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Somebody asks something of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerControl {
    /// The run.
    pub run: RunId,
    /// The request.
    pub control: ControlId,
    /// What is asked: `cancel`, `steer`, `pause` or `resume`. A `cancel` is answered by ending the run, the others by `settle`.
    pub kind: ControlKind,
    /// How long the worker has.
    pub grace_ms: u64,
    /// With `steer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// With `steer`: the message, in View form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Value>,
}

/// A child run is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildEnded {
    /// The parent, which this worker holds.
    pub run: RunId,
    /// The child.
    pub child: RunId,
    /// How it ended.
    pub outcome: Outcome,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn worker_frames_survive_the_wire() {
        for text in [
            r#"{"t":"hello","id":"1","worker":"w","agents":[{"name":"a","capacity":2}],"runs":[{"session":"s","run":"r","fence":"9"}]}"#,
            r#"{"t":"append","id":"1","run":"r","fence":"9","producer":{"incarnation":1,"batch":3},"entries":[{"type":"x-a","n" : 1}]}"#,
            r#"{"t":"end","id":"1","run":"r","fence":"9","producer":{"incarnation":1,"batch":3},"outcome":"completed"}"#,
            r#"{"t":"suspend","id":"1","run":"r","fence":"9","producer":{"incarnation":1,"batch":4},"approvals":[{"approval":"a","reason":"pay?","digest":"d","expires_ms":1000,"who":{"kinds":["operator"]}}]}"#,
            r#"{"t":"settle","id":"1","run":"r","fence":"9","producer":{"incarnation":1,"batch":5},"control":"c","outcome":"refused","reason":"not_supported"}"#,
            r#"{"t":"drain"}"#,
            r#"{"t":"decline","run":"r","fence":"9"}"#,
        ] {
            assert_eq!(WorkerFrame::decode(text.as_bytes()).unwrap().encode(), text);
        }
    }

    const APPEND: &str = r#"{"t":"append","id":"1.2","run":"r","fence":"9","producer":{"incarnation":1,"batch":3},"entries":[{"type":"x-a"}]}"#;

    #[test]
    fn an_append_is_read_the_short_way_only_if_it_is_exactly_as_we_write_it() {
        let plain = PlainAppend::read(APPEND.as_bytes()).unwrap();
        let WorkerFrame::Append(append) = WorkerFrame::decode(APPEND.as_bytes()).unwrap() else { panic!() };
        assert_eq!((plain.id, plain.run, plain.fence), (append.id, append.run, append.fence));
        assert_eq!((plain.producer, plain.entries), (append.producer, append.entries.get().as_bytes()));
        for odd in [
            APPEND.replace(':', ": "),
            APPEND.replace("\"9\"", "\"09\""),
            APPEND.replace("\"r\"", "\"r/\""),
            APPEND.replace("\"r\"", "\"\\u0072\""),
            APPEND.replace("append", "append2"),
            APPEND.replace("[{", "{").replace("}]", "}"),
            APPEND.replace("\"batch\"", "\"more\":1,\"batch\""),
            format!(" {APPEND}"),
            format!("{APPEND} "),
            APPEND.replace(r#""id":"1.2","run":"r""#, r#""run":"r","id":"1.2""#),
        ] {
            assert_eq!(PlainAppend::read(odd.as_bytes()), None, "{odd}");
        }
        for cut in 0..APPEND.len() {
            // What is left has no bracket to close it: the scan refuses it.
            let left = PlainAppend::read(&APPEND.as_bytes()[..cut]);
            assert!(left.is_none_or(|append| crate::scan::entries(append.entries).is_err()), "{cut}");
        }
        let doubled = APPEND.replace("}]}", r#"}],"entries":[]}"#);
        assert!(crate::scan::entries(PlainAppend::read(doubled.as_bytes()).unwrap().entries).is_err());
    }

    #[test]
    fn an_append_that_names_a_level_is_left_to_the_general_way_wherever_it_names_it() {
        for named in [
            APPEND.replace(r#","entries""#, r#","ack":"replicated","entries""#),
            APPEND.replace("}]}", r#"}],"ack":"replicated"}"#),
        ] {
            assert_eq!(PlainAppend::read(named.as_bytes()), None, "{named}");
            let Ok(WorkerFrame::Append(append)) = WorkerFrame::decode(named.as_bytes()) else {
                panic!("{named} is not read")
            };
            assert_eq!(append.ack, Some(Level::Replicated));
        }
        let unknown = APPEND.replace("}]}", r#"}],"ack":"sure"}"#);
        assert!(WorkerFrame::decode(unknown.as_bytes()).is_err());
    }

    #[test]
    fn an_ack_is_written_as_the_general_way_writes_it() {
        let ack = Ack {
            id: "1.2".parse().unwrap(),
            run: "r".parse().unwrap(),
            batch: 3,
            to: Seq(70),
            version: Version { epoch: Epoch(1_763_700_000_000_000), n: 0 },
            safe: 2,
            ack: None,
        };
        for ack in [ack.clone(), Ack { ack: Some(Level::Replicated), ..ack }] {
            let texts = [false, true].map(|is_repeat| String::from_utf8(ack.encode(is_repeat)).unwrap());
            let frames = [WorkerServerFrame::Ok(ack.clone()), WorkerServerFrame::Duplicate(ack)];
            assert_eq!(texts, frames.map(|frame| frame.encode()));
        }
    }

    #[test]
    fn a_worker_that_offers_nothing_or_too_much_is_told() {
        for agents in [
            "[]",
            r#"[{"name":"a","capacity":1,"on_lost":"shrug"}]"#,
            r#"[{"name":"a","capacity":0}]"#,
            r#"[{"name":"a","capacity":99999}]"#,
        ] {
            let text = format!(r#"{{"t":"hello","id":"1","worker":"w","agents":{agents}}}"#);
            assert!(WorkerFrame::decode(text.as_bytes()).is_err(), "{agents}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(WorkerFrame::decode(&bytes));
        }
    }
}
