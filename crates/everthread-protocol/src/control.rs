//! What may be asked of runs, typed: the same for WebSocket and HTTP.

use crate::entry::{ControlKind, PutPart, strict_parts};
use crate::error::Fault;
use crate::id::{ApprovalId, MessageId, SubjectId};
use crate::limits::{ANSWER_BYTES_MAX, CONTROL_WAIT_MAX_MS};
use crate::record::{Author, AuthorKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// When a run takes in the message of a `steer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// At once: the model call under way is given up, the run goes on.
    Now,
    /// Before its next step.
    #[default]
    NextStep,
    /// After its end, in a run of its own.
    WhenIdle,
}

/// What becomes of input for an agent that is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenBusy {
    /// It waits for its turn.
    #[default]
    Enqueue,
    /// It steers the run at work.
    Steer,
    /// The run at work is cancelled and this one begins.
    Interrupt,
    /// It is refused as `busy`.
    Reject,
}

/// The one outcome of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Yes.
    Approved,
    /// No.
    Denied,
    /// Nobody answered in time.
    Expired,
}

/// Who may answer an approval. An empty list allows all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhoMay {
    /// These kinds of authors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<AuthorKind>,
    /// These subjects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<SubjectId>,
}

impl WhoMay {
    /// Whether `author` is among them.
    pub fn allows(&self, author: &Author) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&author.kind))
            && (self.subjects.is_empty() || self.subjects.contains(&author.id))
    }
}

/// A message as `steer` and `interrupt` carry it.
#[derive(Debug, Clone, PartialEq)]
pub struct NewInput {
    /// Its id; the server makes one that is left out.
    pub message: Option<MessageId>,
    /// Its content.
    pub parts: Vec<PutPart>,
}

/// What is asked of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// End it.
    Cancel,
    /// Take in a message.
    Steer {
        /// When.
        mode: Mode,
        /// Which.
        input: NewInput,
    },
    /// End it and begin anew with a message.
    Interrupt {
        /// Which.
        input: NewInput,
    },
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Take an answer.
    Answer {
        /// To which approval.
        approval: ApprovalId,
        /// `true` is yes.
        is_approved: bool,
        /// More than yes or no.
        value: Option<Value>,
        /// Digest of what was asked about.
        digest: Option<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputPayload {
    #[serde(default)]
    message: Option<MessageId>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default, deserialize_with = "some_strict_parts")]
    parts: Option<Vec<PutPart>>,
}

fn some_strict_parts<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Vec<PutPart>>, D::Error> {
    strict_parts::<D, Vec<PutPart>>(d).map(Some)
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Decision {
    Approved,
    Denied,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerPayload {
    approval: ApprovalId,
    decision: Decision,
    #[serde(default)]
    value: Option<Value>,
    #[serde(default)]
    digest: Option<String>,
}

impl What {
    /// Reads what somebody asks: `payload` is that of the kind.
    pub fn read(kind: ControlKind, mode: Option<Mode>, payload: Option<&RawValue>) -> Result<What, Fault> {
        if mode.is_some() && kind != ControlKind::Steer {
            return Err(Fault::bad_request("mode comes with steer"));
        }
        match (kind, payload) {
            (ControlKind::Cancel, None) => Ok(What::Cancel),
            (ControlKind::Pause, None) => Ok(What::Pause),
            (ControlKind::Resume, None) => Ok(What::Resume),
            (ControlKind::Cancel | ControlKind::Pause | ControlKind::Resume, Some(_)) => {
                Err(Fault::bad_request("payload comes with steer, interrupt and answer"))
            }
            (ControlKind::Steer, payload) => {
                Ok(What::Steer { mode: mode.unwrap_or_default(), input: read_input(payload)? })
            }
            (ControlKind::Interrupt, payload) => Ok(What::Interrupt { input: read_input(payload)? }),
            (ControlKind::Answer, payload) => read_answer(payload),
        }
    }

    /// The kind as it stands in entries.
    pub fn kind(&self) -> ControlKind {
        match self {
            What::Cancel => ControlKind::Cancel,
            What::Steer { .. } => ControlKind::Steer,
            What::Interrupt { .. } => ControlKind::Interrupt,
            What::Pause => ControlKind::Pause,
            What::Resume => ControlKind::Resume,
            What::Answer { .. } => ControlKind::Answer,
        }
    }
}

fn read_input(payload: Option<&RawValue>) -> Result<NewInput, Fault> {
    let wanted = "payload is {\"text\"} or {\"parts\"}, and \"message\" if it has an id";
    let payload = payload.ok_or_else(|| Fault::bad_request(wanted))?;
    crate::scan::value(payload.get().as_bytes()).map_err(|e| Fault::bad_request(format!("payload: {e}")))?;
    let payload: InputPayload =
        serde_json::from_str(payload.get()).map_err(|e| Fault::bad_request(format!("payload: {e}")))?;
    let parts = match (payload.text, payload.parts) {
        (Some(text), None) => vec![PutPart::text(text)],
        (None, Some(parts)) => parts,
        (Some(_), Some(_)) | (None, None) => return Err(Fault::bad_request(wanted)),
    };
    Ok(NewInput { message: payload.message, parts })
}

fn read_answer(payload: Option<&RawValue>) -> Result<What, Fault> {
    let wanted = "payload is {\"approval\",\"decision\":\"approved\"|\"denied\",\"value\"?,\"digest\"?}";
    let payload = payload.ok_or_else(|| Fault::bad_request(wanted))?;
    if payload.get().len() > ANSWER_BYTES_MAX {
        let message = format!("ANSWER_BYTES_MAX: an answer has at most {ANSWER_BYTES_MAX} bytes");
        return Err(Fault::new(crate::Code::TooLarge, message));
    }
    crate::scan::value(payload.get().as_bytes()).map_err(|e| Fault::bad_request(format!("payload: {e}")))?;
    let AnswerPayload { approval, decision, value, digest } =
        serde_json::from_str(payload.get()).map_err(|e| Fault::bad_request(format!("payload: {e}")))?;
    Ok(What::Answer { approval, is_approved: matches!(decision, Decision::Approved), value, digest })
}

/// How long somebody is willing to wait for the outcome of a control.
pub fn check_wait(expires_ms: Option<u64>) -> Result<Option<u64>, Fault> {
    match expires_ms {
        Some(wait) if wait == 0 || wait > CONTROL_WAIT_MAX_MS => {
            Err(Fault::bad_request(format!("expires_ms is 1 to {CONTROL_WAIT_MAX_MS}")))
        }
        wait => Ok(wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: ControlKind, payload: &str) -> Result<What, Fault> {
        let payload = RawValue::from_string(payload.to_owned()).unwrap();
        What::read(kind, None, Some(&payload))
    }

    #[test]
    fn a_steer_carries_text_or_parts_and_not_both() {
        assert!(matches!(read(ControlKind::Steer, r#"{"text":"a"}"#), Ok(What::Steer { .. })));
        let parts = r#"{"message":"m","parts":[{"kind":"text","value":"a"}]}"#;
        assert!(matches!(read(ControlKind::Interrupt, parts), Ok(What::Interrupt { .. })));
        for bad in [r#"{}"#, r#"{"text":"a","parts":[]}"#, r#"{"text":"a","color":1}"#, "[]"] {
            assert!(read(ControlKind::Steer, bad).is_err(), "{bad}");
        }
        assert!(What::read(ControlKind::Steer, None, None).is_err());
    }

    #[test]
    fn an_answer_says_yes_or_no_to_one_approval() {
        let yes = r#"{"approval":"a","decision":"approved","digest":"d"}"#;
        assert!(matches!(read(ControlKind::Answer, yes), Ok(What::Answer { is_approved: true, .. })));
        for bad in [r#"{"approval":"a"}"#, r#"{"approval":"a","decision":"expired"}"#] {
            assert!(read(ControlKind::Answer, bad).is_err(), "{bad}");
        }
        let large = format!(r#"{{"approval":"a","decision":"denied","value":"{}"}}"#, "x".repeat(5000));
        assert_eq!(read(ControlKind::Answer, &large).unwrap_err().code, crate::Code::TooLarge);
    }

    #[test]
    fn what_takes_no_payload_refuses_one() {
        assert!(read(ControlKind::Cancel, "{}").is_err());
        assert!(What::read(ControlKind::Pause, Some(Mode::Now), None).is_err());
        assert_eq!(What::read(ControlKind::Resume, None, None).unwrap(), What::Resume);
    }
}
