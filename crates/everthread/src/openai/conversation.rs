//! The conversation: what was said, from the session and in this run, and how the endpoint takes it.
//!
//! A model's answer and what came of its tool calls are one thing here, as they are one message in the session: an answer
//! with calls is sent only together with their outputs, which is what endpoints insist on.

use super::CONTEXT_CHARS_MAX;
use everthread_worker::{PartKind, PastMessage, PastPart, Role, Run};
use serde_json::{Value, json};

/// Something that was said.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// By whom.
    pub role: Role,
    /// For people.
    pub text: String,
    /// Calls of tools that belong to it.
    pub calls: Vec<Exchange>,
    /// This run has said it.
    pub is_own: bool,
}

/// A call of a tool, and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Id by which the model knows it.
    pub call: String,
    /// Name of the tool.
    pub name: String,
    /// JSON as text.
    pub arguments: String,
    /// None as long as there is none.
    pub output: Option<String>,
}

impl Said {
    /// A text.
    pub fn text(role: Role, text: String) -> Self {
        Self { role, text, calls: Vec::new(), is_own: false }
    }

    /// A message of the session.
    pub fn past(message: &PastMessage, run: &Run) -> Self {
        let is_own = message.run.as_ref() == Some(run.id());
        let calls = of_kind(message, PartKind::ToolCall).filter_map(|part| exchange(message, part));
        Self { role: message.role, text: message.text(), calls: calls.collect(), is_own }
    }

    /// As the endpoint takes it, with the tools' outputs after the calls; nothing if it says nothing.
    fn render(&self) -> Vec<Value> {
        let role = match self.role {
            Role::Assistant => "assistant",
            Role::System => "system",
            _ => "user",
        };
        let done: Vec<(&Exchange, &String)> =
            self.calls.iter().filter_map(|call| Some((call, call.output.as_ref()?))).collect();
        if done.is_empty() {
            let message = json!({ "role": role, "content": self.text });
            return if self.text.is_empty() { Vec::new() } else { vec![message] };
        }
        let calls: Vec<Value> = done.iter().map(|(call, _)| call.render()).collect();
        let content = if self.text.is_empty() { Value::Null } else { self.text.clone().into() };
        let mut out = vec![json!({ "role": role, "content": content, "tool_calls": calls })];
        let outputs = done.iter().map(
            |(exchange, output)| json!({ "role": "tool", "tool_call_id": exchange.call, "content": output }),
        );
        out.extend(outputs);
        out
    }

    fn chars(&self) -> usize {
        let calls = self.calls.iter().map(|call| {
            call.arguments.chars().count() + call.output.as_ref().map_or(0, |output| output.chars().count())
        });
        self.text.chars().count() + calls.sum::<usize>()
    }
}

impl Exchange {
    fn render(&self) -> Value {
        let function = json!({ "name": self.name, "arguments": self.arguments });
        json!({ "id": self.call, "type": "function", "function": function })
    }
}

/// The parts of a kind.
pub fn of_kind(message: &PastMessage, kind: PartKind) -> impl Iterator<Item = &PastPart> {
    message.parts.iter().filter(move |part| part.kind == kind)
}

/// What came of a call, if it stands in the message and is whole.
pub fn output_of<'a>(message: &'a PastMessage, call: &str) -> Option<&'a PastPart> {
    of_kind(message, PartKind::ToolOutput).find(|part| part.attr("call") == Some(call))
}

fn exchange(message: &PastMessage, part: &PastPart) -> Option<Exchange> {
    let call = part.attr("call")?.to_owned();
    let output = output_of(message, &call).filter(|part| !part.is_open()).map(|part| as_text(&part.value));
    let name = part.attr("name")?.to_owned();
    Some(Exchange { call, name, arguments: as_text(&part.value), output })
}

/// A value as the model reads it.
pub fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The conversation as the endpoint takes it: as much of its end as fits, in order.
pub fn render(said: &[Said], system: Option<&str>) -> Vec<Value> {
    let mut out = Vec::new();
    let mut chars = 0;
    for said in said.iter().rev() {
        let mut rendered = said.render();
        if rendered.is_empty() {
            continue;
        }
        chars += said.chars();
        if chars > CONTEXT_CHARS_MAX && !out.is_empty() {
            break;
        }
        rendered.reverse();
        out.extend(rendered);
    }
    if let Some(system) = system {
        out.push(json!({ "role": "system", "content": system }));
    }
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(role: Role, text: &str) -> Said {
        Said::text(role, text.to_owned())
    }

    #[test]
    fn the_conversation_is_in_order_and_bounded_from_its_old_end() {
        let long = "x".repeat(CONTEXT_CHARS_MAX - 10);
        let all = [said(Role::User, "old"), said(Role::Assistant, &long), said(Role::User, "new")];
        let sent = render(&all, Some("be kind"));
        let roles: Vec<_> = sent.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        let longer = "x".repeat(CONTEXT_CHARS_MAX);
        let sent = render(&[said(Role::User, &longer), said(Role::User, "new")], None);
        assert_eq!(sent, [json!({ "role": "user", "content": "new" })]);
    }

    #[test]
    fn a_call_is_sent_with_its_output_or_not_at_all() {
        let call = |call: &str, output: Option<&str>| Exchange {
            call: call.to_owned(),
            name: "add".to_owned(),
            arguments: "{}".to_owned(),
            output: output.map(str::to_owned),
        };
        let mut answer = said(Role::Assistant, "");
        answer.calls = vec![call("c1", Some("3")), call("c2", None)];
        let sent = render(&[answer.clone()], None);
        assert_eq!(sent[0]["tool_calls"].as_array().unwrap().len(), 1);
        assert_eq!(sent[1], json!({ "role": "tool", "tool_call_id": "c1", "content": "3" }));
        answer.calls = vec![call("c2", None)];
        assert!(render(&[answer], None).is_empty());
    }
}
