//! A dangerous tool, pretended: the guide asks people before it uses it.
//!
//! The run has two attempts. The first writes the call and asks; the second, possibly in another process, finds the call
//! still open in the log, and the answer, and goes on from there.

use super::type_out;
use crate::openai::digest;
use everthread_worker::{Answer, Approval, Error, Message, Part, PartKind, PartStatus, Run, Verdict};
use serde_json::{Value, json};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(24);
const TOOL: &str = "delete_files";
const CALL: &str = "delete-1";
/// How long people have.
const EXPIRES: Duration = Duration::from_secs(60 * 60);

const OPENING: &str = "\
I have a tool for that, and it is marked **dangerous**: I may not use it before somebody says yes. (It only pretends: \
nothing of yours is touched.)

So I ask now and give my place back. No process waits for you: close the page, stop the server, come back tomorrow from \
another device. Whoever answers first decides, and the answer counts for exactly these arguments.";

/// Whether a question asks for it.
pub fn is_wanted(question: &str) -> bool {
    let question = question.to_lowercase();
    ["delete", "dangerous", "approve this"].iter().any(|word| question.contains(word))
}

/// What is to be deleted.
fn arguments() -> Value {
    json!({ "folder": "playground", "files": ["draft-1.txt", "draft-2.txt"] })
}

/// First attempt: says what it wants to do, and asks.
pub async fn ask(run: &Run, mut message: Message) -> Result<(), Error> {
    let mut text = message.text().await?;
    type_out(&mut text, OPENING, PAUSE).await?;
    text.end().await?;
    let mut call = message.tool_call(TOOL, CALL).await?;
    call.set(arguments()).await?;
    go_on(run, (message, call)).await
}

/// The call that an earlier attempt has left open, if there is one.
pub fn asked_before(run: &Run) -> Option<(Message, Part)> {
    let past = run.own_messages().find(|message| message.is_open())?;
    let call = past.parts.iter().find(|part| part.kind == PartKind::ToolCall && part.is_open())?;
    let message = run.message_again(past)?;
    let call = message.part_again(call)?;
    Some((message, call))
}

/// Does it if somebody has said yes.
pub async fn go_on(run: &Run, (mut message, call): (Message, Part)) -> Result<(), Error> {
    let question = "Delete two drafts in the folder “playground”?";
    let data = [("tool".to_owned(), TOOL.into()), ("arguments".to_owned(), arguments())];
    let approval = Approval::new(CALL, question)
        .digest(digest(TOOL, &arguments()))
        .expires(EXPIRES)
        .data(data.into_iter().collect());
    // The first attempt ends here.
    let answer = run.approve(approval).await?;
    let is_approved = answer.is_approved();
    call.end_with(if is_approved { PartStatus::Done } else { PartStatus::Denied }, None).await?;
    if is_approved {
        let mut output = message.tool_output(TOOL, CALL).await?;
        output.set(json!({ "deleted": 2, "pretended": true })).await?;
        output.end().await?;
    }
    let mut text = message.text().await?;
    type_out(&mut text, &closing(&answer, run.attempt()), PAUSE).await?;
    text.end().await?;
    message.complete().await
}

fn closing(answer: &Answer, attempt: u32) -> String {
    let who = answer.answered_by.as_ref().map_or("nobody", |by| by.id.as_str());
    let what = match answer.verdict {
        Verdict::Approved => format!("**{who}** said yes, so I did it, once."),
        Verdict::Denied => format!("**{who}** said no, so I did nothing."),
        Verdict::Expired => "Nobody answered in time, and that is a no.".to_owned(),
    };
    format!(
        "{what} This is attempt {attempt} of the same run: it found the question, and the answer, in the log."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_question_that_asks_for_it_gets_the_dangerous_tool() {
        assert!(is_wanted("Please DELETE my drafts"));
        for question in ["hi", "How do I steer or approve?", "What is a cursor?"] {
            assert!(!is_wanted(question), "{question}");
        }
    }

    #[test]
    fn the_closing_says_who_decided() {
        let by = serde_json::from_value(json!({ "kind": "user", "id": "ann" })).unwrap();
        let answer = Answer { verdict: Verdict::Denied, value: None, answered_by: Some(by) };
        assert!(closing(&answer, 2).starts_with("**ann** said no"));
    }
}
