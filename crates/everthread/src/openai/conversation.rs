//! The conversation: what was said, from the session and in this run, and how the endpoint takes it.
//!
//! A model's answer and what came of its tool calls are one thing here, as they are one message in the session: an answer
//! with calls is sent only together with their outputs, which is what endpoints insist on.

use super::CONTEXT_CHARS_MAX;
use everthread_protocol::RunId;
use everthread_worker::{PartKind, PastMessage, PastPart, Role, Run};
use serde_json::{Value, json};

/// A run, as its messages are told from others.
#[derive(Debug)]
pub struct Reader {
    run: RunId,
    /// References of its input.
    input: Vec<String>,
}

impl Reader {
    /// Of this run.
    pub fn new(run: &Run) -> Self {
        Self { run: run.id().clone(), input: run.input().map(PastMessage::reference).collect() }
    }

    fn is_own(&self, message: &PastMessage) -> bool {
        message.run.as_ref() == Some(&self.run)
    }

    fn is_input(&self, message: &PastMessage) -> bool {
        self.input.contains(&message.reference())
    }

    /// What the run goes by, of the messages of its session.
    ///
    /// What people have said since, to others or to a run that waits, is not for it. What other runs have said since, mostly
    /// the one it waited for, comes before its input: it is the last thing that the model reads.
    pub fn conversation<'a>(&self, messages: &'a [PastMessage]) -> Vec<&'a PastMessage> {
        let first = messages.iter().position(|message| self.is_input(message)).unwrap_or(messages.len());
        let (before, since) = messages.split_at(first);
        let (others, rest): (Vec<_>, Vec<_>) =
            since.iter().partition(|message| message.run.is_some() && !self.is_own(message));
        let is_for_another = |message: &PastMessage| {
            message.run.is_none() && message.role == Role::User && !self.is_input(message)
        };
        let rest = rest.into_iter().filter(|message| !is_for_another(message));
        before.iter().chain(others).chain(rest).collect()
    }

    /// Whether an earlier attempt of the run has surely answered all of its input. If the run took in more than it began
    /// with, the session does not tell what of it was known when the last answer was asked for.
    pub fn is_answered(&self, conversation: &[&PastMessage]) -> bool {
        let last = conversation.iter().rev().find(|message| self.is_own(message));
        let is_whole = |message: &&&PastMessage| {
            message.status == "complete" && of_kind(message, PartKind::ToolCall).next().is_none()
        };
        self.input.len() <= 1 && last.is_some_and(|last| is_whole(&last))
    }
}

/// Puts what may have come too late for the last answer of an earlier attempt behind it. What was said while the answer
/// was awaited stands before it in the session, whether or not the run had taken it in by then.
pub fn move_unanswered(said: &mut Vec<Said>) {
    let Some(answer) = said.iter().rposition(|said| said.is_own && said.calls.is_empty()) else { return };
    let earlier = said[..answer].iter().rposition(|said| said.is_own);
    // The first of the input was there before any answer was asked for.
    let known = earlier.or_else(|| said[..answer].iter().position(|said| said.is_input));
    let late: Vec<Said> =
        said.extract_if(known.map_or(0, |at| at + 1)..answer, |said| said.is_input).collect();
    let behind = answer + 1 - late.len();
    said.splice(behind..behind, late);
}

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
    /// It is for this run to answer.
    pub is_input: bool,
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
        Self { role, text, calls: Vec::new(), is_own: false, is_input: false }
    }

    /// A message of the session.
    pub fn past(message: &PastMessage, to: &Reader) -> Self {
        let calls = of_kind(message, PartKind::ToolCall).filter_map(|part| exchange(message, part));
        let (is_own, is_input) = (to.is_own(message), to.is_input(message));
        Self { role: message.role, text: message.text(), calls: calls.collect(), is_own, is_input }
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

    /// Messages as `run:id`, or `id` if they were put; those of a run are answers.
    fn messages(references: &[&str]) -> Vec<PastMessage> {
        let message = |reference: &&str| {
            let (run, id) = reference.split_once(':').map_or((None, *reference), |(run, id)| (Some(run), id));
            let role = if run.is_some() { "assistant" } else { "user" };
            let parts = json!([{ "part": "p1", "kind": "text", "status": "done", "value": id }]);
            let message =
                json!({ "message": id, "run": run, "role": role, "status": "complete", "parts": parts });
            serde_json::from_value(message).unwrap()
        };
        references.iter().map(message).collect()
    }

    fn reader(input: &[&str]) -> Reader {
        Reader { run: "r2".parse().unwrap(), input: input.iter().map(ToString::to_string).collect() }
    }

    fn texts(reader: &Reader, messages: &[PastMessage]) -> Vec<String> {
        reader.conversation(messages).into_iter().map(PastMessage::text).collect()
    }

    #[test]
    fn what_people_say_to_other_runs_is_left_out_and_what_those_answered_comes_before_the_input() {
        let all = messages(&["u1", "u2", "r1:a1", "u3", "s2", "r2:b1", "r3:c1"]);
        assert_eq!(texts(&reader(&["u2", "s2"]), &all), ["u1", "a1", "c1", "u2", "s2", "b1"]);
        assert_eq!(texts(&reader(&["u1"]), &all)[..4], ["a1", "c1", "u1", "b1"]);
        assert_eq!(texts(&reader(&["u9"]), &all).len(), all.len(), "an input that is too far back");
    }

    #[test]
    fn an_answer_of_an_earlier_attempt_counts_only_for_an_input_that_surely_came_before_it() {
        let is_answered = |input: &[&str], references: &[&str]| {
            let messages = messages(references);
            let reader = reader(input);
            reader.is_answered(&reader.conversation(&messages))
        };
        assert!(is_answered(&["u1"], &["u1", "r2:b1"]));
        assert!(!is_answered(&["u1"], &["u1", "r1:a1"]));
        assert!(!is_answered(&["u1", "s1"], &["u1", "s1", "r2:b1"]), "it may have come too late");
        assert!(!is_answered(&["u1", "s1"], &["u1", "r2:b1", "s1"]));
        let mut partial = messages(&["u1", "r2:b1"]);
        partial[1].status = "partial".to_owned();
        let reader = reader(&["u1"]);
        assert!(!reader.is_answered(&reader.conversation(&partial)));
    }

    #[test]
    fn what_may_have_come_too_late_for_an_answer_is_put_behind_it() {
        let moved = |input: &[&str], references: &[&str]| {
            let reader = reader(input);
            let messages = messages(references);
            let mut said: Vec<Said> = reader
                .conversation(&messages)
                .into_iter()
                .map(|message| Said::past(message, &reader))
                .collect();
            move_unanswered(&mut said);
            said.into_iter().map(|said| said.text).collect::<Vec<_>>()
        };
        assert_eq!(moved(&["u1", "s1"], &["u0", "u1", "s1", "r2:b1"]), ["u0", "u1", "b1", "s1"]);
        assert_eq!(
            moved(&["u1", "s1", "s2"], &["u1", "s1", "r2:b1", "s2", "r2:b2"]),
            ["u1", "s1", "b1", "b2", "s2"]
        );
        assert_eq!(moved(&["u1", "s1"], &["u1", "r2:b1", "s1"]), ["u1", "b1", "s1"]);
        assert_eq!(moved(&["u1"], &["u1", "r1:a1"]), ["a1", "u1"]);
    }
}
