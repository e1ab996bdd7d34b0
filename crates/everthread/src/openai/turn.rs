//! One answer of the model: how it is written to the session as it comes, and how its calls of tools are carried out.
//!
//! A call's part is open from its first character until its output stands in the log. The arguments are a text while they
//! come and JSON once they are whole: that is how a later attempt knows an answer that was whole from one that was not.

use super::conversation::{self, Exchange, Reader, Said, as_text};
use super::sse::Event;
use super::tools::{Output, Tools, digest};
use super::upstream::{Answer, CallDelta, Delta};
use everthread_worker::{
    Approval, Error, Failure, Message, MessageStatus, Part, PartKind, PartStatus, PastMessage, Role, Run,
    Verdict,
};
use serde_json::Value;

/// Calls of one answer. A model that makes more is told so.
const CALLS_MAX: usize = 32;

/// An answer while it is written and carried out.
#[derive(Debug, Default)]
pub struct Turn {
    /// None until there is something to write.
    message: Option<Message>,
    text: String,
    reasoning_part: Option<Part>,
    text_part: Option<Part>,
    calls: Vec<Call>,
    /// Calls that an earlier attempt is done with.
    done: Vec<Exchange>,
}

/// A call of a tool.
#[derive(Debug)]
struct Call {
    /// Id by which the model knows it.
    id: String,
    name: String,
    /// As they came.
    text: String,
    /// Open until the output is written.
    part: Part,
    /// What came of it, as the model reads it.
    output: Option<String>,
    /// Where that goes, if an earlier attempt has begun to write it.
    output_part: Option<Part>,
}

impl Call {
    /// The JSON of the arguments, or the text if it is none.
    fn arguments(&self) -> Value {
        let text = if self.text.trim().is_empty() { "{}" } else { &self.text };
        serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
    }
}

impl Turn {
    /// Writes an answer as it comes. May be dropped and ended with [`Turn::give_up`].
    pub async fn write(&mut self, run: &Run, mut answer: Answer) -> Result<(), Failure> {
        while let Event::Delta(delta) = answer.next().await? {
            self.add(run, delta).await?;
        }
        for part in [self.reasoning_part.take(), self.text_part.take()].into_iter().flatten() {
            part.end().await?;
        }
        for call in &mut self.calls {
            let arguments = call.arguments();
            call.part.set(arguments).await?;
        }
        Ok(())
    }

    async fn add(&mut self, run: &Run, delta: Delta) -> Result<(), Failure> {
        let message = match &mut self.message {
            Some(message) => message,
            none => none.insert(run.message(Role::Assistant).await?),
        };
        if let Some(thought) = &delta.reasoning {
            let part = match &mut self.reasoning_part {
                Some(part) => part,
                none => none.insert(message.reasoning().await?),
            };
            part.append(thought).await?;
        }
        if let Some(content) = &delta.content {
            if let Some(part) = self.reasoning_part.take() {
                part.end().await?;
            }
            let part = match &mut self.text_part {
                Some(part) => part,
                none => none.insert(message.text().await?),
            };
            part.append(content).await?;
            self.text.push_str(content);
        }
        for call in delta.calls {
            add_call(message, &mut self.calls, call).await?;
        }
        Ok(())
    }

    /// The answer was given up: what there is of it stays.
    pub async fn give_up(self) -> Result<Option<Said>, Error> {
        let Some(message) = self.message else { return Ok(None) };
        message.end(MessageStatus::Partial, None).await?;
        Ok(Some(Said { is_own: true, ..Said::text(Role::Assistant, self.text) }))
    }

    /// An answer that an earlier attempt of this run wrote to its end but did not carry out.
    pub fn again(run: &Run, reader: &Reader, past: &PastMessage) -> Option<Turn> {
        let message = run.message_again(past)?;
        let mut calls = Vec::new();
        for part in conversation::of_kind(past, PartKind::ToolCall) {
            // Arguments that are no text are whole.
            if part.value.is_string() {
                return None;
            }
            let id = part.attr("call")?.to_owned();
            let written = conversation::output_of(past, &id);
            let output = written.filter(|output| !output.is_open()).map(|output| as_text(&output.value));
            if let Some(handle) = message.part_again(part) {
                let (name, text) = (part.attr("name")?.to_owned(), part.value.to_string());
                let output_part = written.and_then(|output| message.part_again(output));
                calls.push(Call { id, name, text, part: handle, output, output_part });
            }
        }
        let mut done = Said::past(past, reader).calls;
        done.retain(|exchange| calls.iter().all(|call| call.id != exchange.call));
        Some(Turn { message: Some(message), text: past.text(), calls, done, ..Turn::default() })
    }

    /// Makes the calls and ends the message. Calls of dangerous tools wait for an approval: then this attempt of the run
    /// is over, and the next one comes here with [`Turn::again`].
    pub async fn carry_out(mut self, run: &Run, tools: &Tools) -> Result<Said, Error> {
        let Some(mut message) = self.message.take() else {
            return Ok(Said { is_own: true, ..Said::text(Role::Assistant, self.text) });
        };
        let (dangerous, harmless): (Vec<Call>, Vec<Call>) =
            self.calls.into_iter().partition(|call| tools.is_dangerous(&call.name));
        let mut exchanges = self.done;
        for call in harmless {
            exchanges.push(make(run, tools, &mut message, call).await?);
        }
        if !dangerous.is_empty() {
            let approvals = dangerous.iter().map(|call| approval(&message, call)).collect();
            // In the first attempt this is the end.
            let answers = run.approve_all(approvals).await?;
            for (call, answer) in dangerous.into_iter().zip(answers) {
                exchanges.push(if answer.is_approved() {
                    make(run, tools, &mut message, call).await?
                } else {
                    refuse(&mut message, call, answer.verdict).await?
                });
            }
        }
        message.complete().await?;
        Ok(Said { calls: exchanges, is_own: true, ..Said::text(Role::Assistant, self.text) })
    }
}

async fn add_call(message: &mut Message, calls: &mut Vec<Call>, delta: CallDelta) -> Result<(), Failure> {
    let CallDelta { index, id, function } = delta;
    if index >= calls.len() {
        if calls.len() == CALLS_MAX {
            return Err(Failure::new(
                "too_many_calls",
                format!("the model makes more than {CALLS_MAX} calls at once"),
            ));
        }
        let name = function.name.unwrap_or_default();
        // Endpoints are known to leave the id out, or to give all calls of an answer the same.
        let given = id.filter(|id| !id.is_empty() && calls.iter().all(|call| call.id != *id));
        let id = given.unwrap_or_else(|| format!("{}-{}", message.id(), calls.len()));
        let part = message.tool_call(&name, &id).await?;
        let (text, output, output_part) = (String::new(), None, None);
        calls.push(Call { id, name, text, part, output, output_part });
    }
    let last = calls.len() - 1;
    if let (Some(text), Some(call)) = (function.arguments, calls.get_mut(index.min(last))) {
        call.part.append(&text).await?;
        call.text.push_str(&text);
    }
    Ok(())
}

/// Names a call in its run: the same in every attempt, as the answer is not asked for again.
fn name(message: &Message, call: &Call) -> String {
    format!("{}.{}", message.id(), call.part.id())
}

fn approval(message: &Message, call: &Call) -> Approval {
    let arguments = call.arguments();
    let data = [("tool".to_owned(), call.name.clone().into()), ("arguments".to_owned(), arguments.clone())];
    Approval::new(name(message, call), format!("Call the tool {}?", call.name))
        .digest(digest(&call.name, &arguments))
        .data(data.into_iter().collect())
}

/// Makes a call, unless an earlier attempt has what came of it.
async fn make(run: &Run, tools: &Tools, message: &mut Message, call: Call) -> Result<Exchange, Error> {
    let key = format!("{}.{}", run.id(), name(message, &call));
    let arguments = call.arguments();
    let Call { id, name, text, part, output, output_part } = call;
    let output = match output {
        Some(output) => output,
        None => {
            // The call stands in the log before it is made: a later attempt must not ask the model for another instead.
            run.flushed().await?;
            // It is no write, so a pause has to be waited for.
            run.wait_while_paused().await;
            let output = tools.call(&name, &arguments, &key).await;
            let status = if output.is_good { PartStatus::Done } else { PartStatus::Error };
            write_output(message, output_part, (&name, &id), &output, status).await?;
            output.text()
        }
    };
    part.end().await?;
    Ok(Exchange { call: id, name, arguments: text, output: Some(output) })
}

/// Tells the model that a call was not made.
async fn refuse(message: &mut Message, call: Call, verdict: Verdict) -> Result<Exchange, Error> {
    let Call { id, name, text, part, output, output_part } = call;
    let why = match verdict {
        Verdict::Expired => "nobody allowed this call in time: it was not made",
        Verdict::Denied | Verdict::Approved => "this call was denied by a person: it was not made",
    };
    if output.is_none() {
        let output = Output { value: serde_json::json!({ "error": why }), is_good: false };
        write_output(message, output_part, (&name, &id), &output, PartStatus::Denied).await?;
    }
    part.end_with(PartStatus::Denied, None).await?;
    Ok(Exchange { call: id, name, arguments: text, output: Some(format!("error: {why}")) })
}

async fn write_output(
    message: &mut Message,
    begun: Option<Part>,
    (name, call): (&str, &str),
    output: &Output,
    status: PartStatus,
) -> Result<(), Error> {
    let part = match begun {
        Some(part) => part,
        None => message.tool_output(name, call).await?,
    };
    part.end_with(status, Some(output.value.clone())).await
}
