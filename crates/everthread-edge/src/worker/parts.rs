//! The open messages and parts of one run, as the edge that hosts it keeps them: enough to refuse an append at a wrong
//! offset or a reused id before it is stored. Rebuilt from the log when it may have missed something.

use everthread_protocol::entry::{Entry, Phase};
use everthread_protocol::limits::OPEN_PARTS_MAX;
use everthread_protocol::{Code, Fault, MessageId, PartId, RunId};
use everthread_session::view::{MessageState, PartState, View};
use serde_json::Value;
use std::collections::HashMap;

/// Messages and parts of one run.
#[derive(Debug, Default)]
pub struct Parts {
    messages: HashMap<MessageId, Message>,
    open_parts: usize,
    /// Started since the last step start: what a reset drops.
    since_step: Vec<(MessageId, Option<PartId>)>,
}

#[derive(Debug)]
struct Message {
    is_open: bool,
    parts: HashMap<PartId, Part>,
}

#[derive(Debug)]
struct Part {
    is_open: bool,
    /// UTF-8 length of the value; none if it is not a text.
    length: Option<u64>,
}

impl Parts {
    /// What the log says of a run.
    pub fn of_run(view: &View, run: &RunId) -> Parts {
        let mut all = Parts::default();
        for message in view.messages().iter().filter(|message| message.run.as_ref() == Some(run)) {
            let mut parts = HashMap::new();
            for part in &message.parts {
                let is_open = part.status == PartState::Open;
                all.open_parts += usize::from(is_open);
                parts.insert(part.part.clone(), Part { is_open, length: length(&part.value) });
                all.since_step.push((message.message.clone(), Some(part.part.clone())));
            }
            let is_open = message.status == MessageState::Streaming;
            all.messages.insert(message.message.clone(), Message { is_open, parts });
        }
        all
    }

    /// Takes one entry of the run's worker, or says why it does not fit. After a fault the parts are to be rebuilt.
    pub fn take(&mut self, entry: &Entry) -> Result<(), Fault> {
        match entry {
            Entry::MessageStart { message, .. } => self.start_message(message),
            Entry::MessageEnd { message, .. } => self.end_message(message),
            Entry::PartStart { message, part, .. } => self.start_part(message, part),
            Entry::PartAppend { message, part, offset, text } => {
                let part = self.open_part(message, part)?;
                let length = part.length.filter(|length| length == offset).ok_or_else(|| {
                    let known = part.length.map_or("no text".to_owned(), |length| format!("{length} bytes"));
                    Fault::new(Code::BadOffset, format!("offset is {offset}, but the part has {known}"))
                })?;
                part.length = Some(length + text.len() as u64);
                Ok(())
            }
            Entry::PartSet { message, part, value } => {
                self.open_part(message, part)?.length = length(value);
                Ok(())
            }
            Entry::PartEnd { message, part, .. } => {
                self.open_part(message, part)?.is_open = false;
                self.open_parts -= 1;
                Ok(())
            }
            Entry::RunStep { phase: Phase::Start, .. } => {
                self.since_step.clear();
                Ok(())
            }
            Entry::RunStep { phase: Phase::Reset, .. } => {
                self.reset();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes a text that goes on where an open part ends; false if it is no such thing, and nothing has changed.
    pub fn append(&mut self, message: &str, part: &str, offset: u64, bytes: usize) -> bool {
        let message = self.messages.get_mut(message).filter(|message| message.is_open);
        let part = message.and_then(|message| message.parts.get_mut(part)).filter(|part| part.is_open);
        let Some(part) = part.filter(|part| part.length == Some(offset)) else { return false };
        part.length = Some(offset + bytes as u64);
        true
    }

    fn start_message(&mut self, id: &MessageId) -> Result<(), Fault> {
        if self.messages.contains_key(id) {
            return Err(Fault::new(Code::IdConflict, format!("message {id} was started before in this run")));
        }
        self.messages.insert(id.clone(), Message { is_open: true, parts: HashMap::new() });
        self.since_step.push((id.clone(), None));
        Ok(())
    }

    fn open_message(&mut self, id: &MessageId) -> Result<&mut Message, Fault> {
        self.messages
            .get_mut(id)
            .filter(|message| message.is_open)
            .ok_or_else(|| Fault::new(Code::BadRequest, format!("message {id} is not open in this run")))
    }

    fn end_message(&mut self, id: &MessageId) -> Result<(), Fault> {
        let message = self.open_message(id)?;
        message.is_open = false;
        let mut closed = 0;
        for part in message.parts.values_mut().filter(|part| part.is_open) {
            part.is_open = false;
            closed += 1;
        }
        self.open_parts -= closed;
        Ok(())
    }

    fn start_part(&mut self, message: &MessageId, part: &PartId) -> Result<(), Fault> {
        if self.open_parts >= OPEN_PARTS_MAX {
            let text = format!("OPEN_PARTS_MAX: a run has at most {OPEN_PARTS_MAX} open parts");
            return Err(Fault::new(Code::LimitReached, text));
        }
        let parts = &mut self.open_message(message)?.parts;
        if parts.contains_key(part) {
            return Err(Fault::new(Code::IdConflict, format!("part {part} of {message} was started before")));
        }
        parts.insert(part.clone(), Part { is_open: true, length: Some(0) });
        self.open_parts += 1;
        self.since_step.push((message.clone(), Some(part.clone())));
        Ok(())
    }

    fn open_part(&mut self, message: &MessageId, part: &PartId) -> Result<&mut Part, Fault> {
        self.messages
            .get_mut(message)
            .and_then(|found| found.parts.get_mut(part))
            .filter(|part| part.is_open)
            .ok_or_else(|| {
                Fault::new(Code::BadOffset, format!("part {part} of {message} is not open in this run"))
            })
    }

    fn reset(&mut self) {
        for (message, part) in std::mem::take(&mut self.since_step).into_iter().rev() {
            let dropped: Vec<Part> = match part {
                Some(part) => {
                    self.messages.get_mut(&message).and_then(|m| m.parts.remove(&part)).into_iter().collect()
                }
                None => self
                    .messages
                    .remove(&message)
                    .map(|m| m.parts.into_values().collect())
                    .unwrap_or_default(),
            };
            self.open_parts -= dropped.iter().filter(|part| part.is_open).count();
        }
    }
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(parts: &mut Parts, json: &str) -> Result<(), Code> {
        parts.take(&serde_json::from_str(json).unwrap()).map_err(|fault| fault.code)
    }

    fn begun() -> Parts {
        let mut parts = Parts::default();
        take(&mut parts, r#"{"type":"message.start","message":"m","role":"assistant"}"#).unwrap();
        take(&mut parts, r#"{"type":"part.start","message":"m","part":"p","kind":"text"}"#).unwrap();
        parts
    }

    fn append(offset: usize, text: &str) -> String {
        format!(r#"{{"type":"part.append","message":"m","part":"p","offset":{offset},"text":"{text}"}}"#)
    }

    #[test]
    fn offsets_count_utf8_bytes_and_must_meet_the_end() {
        let mut parts = begun();
        take(&mut parts, &append(0, "é😀")).unwrap();
        assert_eq!(take(&mut parts, &append(2, "a")), Err(Code::BadOffset));
        take(&mut parts, &append(6, "a")).unwrap();
        assert_eq!(take(&mut parts, &append(9, "a")), Err(Code::BadOffset));
    }

    #[test]
    fn what_is_closed_takes_nothing_and_its_id_is_not_free() {
        let mut parts = begun();
        take(&mut parts, r#"{"type":"message.end","message":"m","status":"complete"}"#).unwrap();
        assert_eq!(take(&mut parts, &append(0, "a")), Err(Code::BadOffset));
        let again = r#"{"type":"message.start","message":"m","role":"assistant"}"#;
        assert_eq!(take(&mut parts, again), Err(Code::IdConflict));
        assert_eq!(parts.open_parts, 0);
    }

    #[test]
    fn a_reset_drops_what_the_step_started() {
        let mut parts = begun();
        take(&mut parts, r#"{"type":"run.step","phase":"start"}"#).unwrap();
        take(&mut parts, r#"{"type":"part.start","message":"m","part":"q","kind":"text"}"#).unwrap();
        take(&mut parts, r#"{"type":"run.step","phase":"reset"}"#).unwrap();
        take(&mut parts, &append(0, "a")).unwrap();
        take(&mut parts, r#"{"type":"part.start","message":"m","part":"q","kind":"text"}"#).unwrap();
        assert_eq!(parts.open_parts, 2);
    }

    #[test]
    fn a_value_that_is_no_text_takes_no_appends() {
        let mut parts = begun();
        take(&mut parts, r#"{"type":"part.set","message":"m","part":"p","value":{"a":1}}"#).unwrap();
        assert_eq!(take(&mut parts, &append(0, "a")), Err(Code::BadOffset));
        take(&mut parts, r#"{"type":"part.set","message":"m","part":"p","value":"ab"}"#).unwrap();
        take(&mut parts, &append(2, "a")).unwrap();
    }
}
