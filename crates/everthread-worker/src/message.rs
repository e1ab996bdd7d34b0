//! Messages and parts that a run streams.
//!
//! A part counts its bytes itself, so a run function never sees an offset. Nothing needs to be closed: what a run leaves
//! open is closed by its end.

use crate::error::Error;
use crate::shared::Shared;
use crate::work::{PastMessage, PastPart};
use everthread_protocol::entry::{MessageStatus, Object, PartKind, PartStatus, Role};
use everthread_protocol::{Entry, MessageId, PartId};
use serde_json::{Value, json};
use std::sync::Arc;

/// Bytes of text in one append. Longer text is written in several, so that one always fits a block, whatever of it must
/// be escaped.
const APPEND_TEXT_BYTES_MAX: usize = 32 * 1024;

/// A message that is being written.
#[derive(Debug)]
pub struct Message {
    shared: Arc<Shared>,
    id: MessageId,
    parts: u64,
}

impl Message {
    pub(crate) async fn start(shared: Arc<Shared>, id: MessageId, role: Role) -> Result<Message, Error> {
        let entry = Entry::MessageStart { message: id.clone(), role };
        shared.write(|outbox| outbox.entry(&entry)).await?;
        Ok(Message { shared, id, parts: 0 })
    }

    /// A message that an earlier attempt of this run left open. Its next part gets a number that none of its parts has.
    pub(crate) fn again(shared: Arc<Shared>, past: &PastMessage) -> Option<Message> {
        if past.run.as_ref() != Some(&shared.run) || !past.is_open() {
            return None;
        }
        let numbers = past.parts.iter().filter_map(|part| part.part.as_str().strip_prefix('p')?.parse().ok());
        let parts = numbers.max().unwrap_or(0);
        Some(Message { shared, id: past.message.clone(), parts })
    }

    /// Its id within the run.
    pub fn id(&self) -> &MessageId {
        &self.id
    }

    /// Its name within the session.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.shared.run, self.id)
    }

    /// Begins a part for the text that people read.
    pub async fn text(&mut self) -> Result<Part, Error> {
        self.part(PartKind::Text, None).await
    }

    /// Begins a part for what the model thinks.
    pub async fn reasoning(&mut self) -> Result<Part, Error> {
        self.part(PartKind::Reasoning, None).await
    }

    /// Begins a call of a tool: append its arguments as they come, or set them. `call` ties the output to it.
    pub async fn tool_call(&mut self, name: &str, call: &str) -> Result<Part, Error> {
        self.part(PartKind::ToolCall, attrs(json!({ "name": name, "call": call }))).await
    }

    /// Begins what a tool gave back.
    pub async fn tool_output(&mut self, name: &str, call: &str) -> Result<Part, Error> {
        self.part(PartKind::ToolOutput, attrs(json!({ "name": name, "call": call }))).await
    }

    /// Begins any part.
    pub async fn part(&mut self, kind: PartKind, attrs: Option<Object>) -> Result<Part, Error> {
        self.parts += 1;
        let part: PartId = format!("p{}", self.parts).parse()?;
        let entry = Entry::PartStart { message: self.id.clone(), part: part.clone(), kind, attrs };
        self.shared.write(|outbox| outbox.entry(&entry)).await?;
        Ok(Part { shared: self.shared.clone(), message: self.id.clone(), id: part, bytes: 0 })
    }

    /// Goes on with a part of this message that an earlier attempt left open; `None` if it is not open.
    pub fn part_again(&self, past: &PastPart) -> Option<Part> {
        let bytes = past.value.as_str().map_or(0, |text| text.len() as u64);
        let part =
            || Part { shared: self.shared.clone(), message: self.id.clone(), id: past.part.clone(), bytes };
        past.is_open().then(part)
    }

    /// The message is complete, and with it its open parts.
    pub async fn complete(self) -> Result<(), Error> {
        self.end(MessageStatus::Complete, None).await
    }

    /// The message is over.
    pub async fn end(self, status: MessageStatus, usage: Option<Object>) -> Result<(), Error> {
        let entry = Entry::MessageEnd { message: self.id.clone(), status, usage };
        self.shared.write(|outbox| outbox.entry(&entry)).await
    }
}

fn attrs(value: Value) -> Option<Object> {
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// A part of a message that is being written.
#[derive(Debug)]
pub struct Part {
    shared: Arc<Shared>,
    message: MessageId,
    id: PartId,
    /// UTF-8 bytes of its value.
    bytes: u64,
}

impl Part {
    /// Its id within the message.
    pub fn id(&self) -> &PartId {
        &self.id
    }

    /// Adds text. It waits only while too much is unconfirmed. Cancel safe in that what was taken is counted.
    pub async fn append(&mut self, text: &str) -> Result<(), Error> {
        let mut rest = text;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.floor_char_boundary(APPEND_TEXT_BYTES_MAX));
            let (message, part, offset) = (self.message.as_str(), self.id.as_str(), self.bytes);
            let bytes = &mut self.bytes;
            self.shared
                .write(|outbox| {
                    outbox.append(message, part, offset, now)?;
                    *bytes = offset + now.len() as u64;
                    Ok(())
                })
                .await?;
            rest = later;
        }
        Ok(())
    }

    /// Replaces the value. Text that follows is added to it if it is a text.
    pub async fn set(&mut self, value: Value) -> Result<(), Error> {
        let bytes = value.as_str().map_or(0, |text| text.len() as u64);
        let entry = Entry::PartSet { message: self.message.clone(), part: self.id.clone(), value };
        self.shared.write(|outbox| outbox.entry(&entry)).await?;
        self.bytes = bytes;
        Ok(())
    }

    /// The part is done.
    pub async fn end(self) -> Result<(), Error> {
        self.end_with(PartStatus::Done, None).await
    }

    /// The part is over, with its last value if that differs from what was appended.
    pub async fn end_with(self, status: PartStatus, value: Option<Value>) -> Result<(), Error> {
        let entry = Entry::PartEnd { message: self.message.clone(), part: self.id.clone(), status, value };
        self.shared.write(|outbox| outbox.entry(&entry)).await
    }
}
