//! The guide: explains what the reader is looking at, and what to try next. It can be steered while it talks.

use super::{deletion, tokens, type_out};
use everthread_worker::{Error, Message, MessageStatus, Part, Role, Run, Steer};
use serde_json::json;
use std::time::Duration;

/// Between tokens: about forty a second, the pace of a large model.
const PAUSE: Duration = Duration::from_millis(24);

/// What can be asked, by words in the question.
const TOPICS: &[(&[&str], &str)] = &[
    (&["own agent", "my agent", "an agent", "worker", "python", "rust", "typescript", "sdk", "code"], WORKER),
    (&["cut", "connection", "offline", "resum", "reload", "disconnect"], RESUME),
    (&["kill", "crash", "restart", "durab", "lost", "lose"], CRASH),
    (&["cursor", "seq", "epoch", "position"], CURSOR),
    (&["stop", "cancel", "interrupt"], STOP),
    (&["steer", "pause", "approv", "control"], STEER),
];

const WELCOME: &str = "\
You are looking at a **session**: a durable, ordered log that an agent writes to and any number of people follow. \
I am a small demo agent in the same process, and every few characters you see arriving are one entry of that log.

Nobody holds a private pipe to me. Your browser only remembers a position, the *cursor* at the top of the page. \
That has pleasant consequences, and you can try each of them while I am still writing:

- **Reload this page now.** The answer is not restarted and not cut short: you get everything so far, then the rest.
- **Open a second tab**, or the same address on another device. Both show the same words at the same time.
- **Press “Cut connection”.** Your socket is closed for a few seconds; afterwards the page asks for what follows its cursor.
- **Kill the server** with `kill -9` and start it again. What was acknowledged is there; my run, which dies with the \
process, ends as `lost` instead of “generating…” for ever.
- **Press Stop.** Closing a tab never stops an answer. Stop always does.
- **Write while I write.** I take it in and change direction, in the same run.
- **Ask me to delete something.** I have a tool for that, and it asks you first.

Ask me about *resuming*, *crashes*, *cursors*, *stopping*, *steering*, or *how to connect your own agent*. Or pick the agent \
`orchestra`: it starts three sub-agents that all write to this session themselves, side by side.";

const RESUME: &str = "\
When your connection goes, nothing happens to the answer: it is written to the session, not to your socket.

Your browser keeps one number per session, its **cursor**: *I have applied everything up to here*. When it is back it \
says `attach` with that cursor, and the server answers with what follows:

1. if the missing stretch is still in the node's memory, the very same bytes that everybody else got;
2. if you were away for longer, the log, **folded**: the many small appends of each message merged into one;
3. if the log itself is no longer the one you knew, a typed `reset` and a snapshot. Never silence.

Each append carries the position at which it applies, so an overlap is harmless: a token can be delivered twice and still \
stands there once. Try it: press **Cut connection** while I go on, and watch the text catch up without a gap.";

const CRASH: &str = "\
An entry is acknowledged only when it is durable. This server uses the embedded store: entries are gathered for a few \
milliseconds, committed to disk together, and only then answered and shown to you. So what you have seen survives \
`kill -9`, and with the default `--durability power-cut` also a power cut.

What about the run that was writing? A worker holds a run under a **lease** with a number, its *fence*. When the worker is \
gone, the run does not hang:

- if it had written nothing yet, it goes back to the pool and another worker gets it;
- if it had, it ends as `lost`, and everybody sees that it did, within seconds;
- and if the old worker wakes up after all, the store refuses its writes: the fence is no longer in force.

Try it: `kill -9` this server in the middle of my answer, start it again with the same command, and look at this page. You \
do not even need to reload it.";

const CURSOR: &str = "\
Every entry of a session has a **seq**: 1, 2, 3 … without gaps, whoever writes and however many at once. Your **cursor** is \
`epoch.seq`, the small number at the top of the page.

The *epoch* is the incarnation of the log. It changes when the store has restarted. A cursor from before goes on \
undisturbed as long as the log still has what it points at; if a tail was lost, which can happen with an asynchronous \
replica, the cursor no longer fits, and you are told so with a `reset` instead of being shown a different past.

Because a client is a cursor and not a queue, joining late, resuming, following live and being slow are one and the same \
operation: *read from the cursor*. A slow phone costs the server a number.";

const STOP: &str = "\
**Stop** is a request of its own, not a closed connection. It is written to the log first, so everybody sees that it was \
asked. Then it is delivered to whichever worker holds the run, through whichever node that worker is connected to.

A well-behaved worker stops and ends the run as `cancelled`; what it had written stays. A worker that hangs gets a grace of \
five seconds; then the run is fenced and ended by force. If the run was still waiting for a worker, it ends at once; if it \
was over already, the request is refused with that reason. In every case there is exactly one outcome, and it never touches \
the next run.

Press **Stop** now, if you like: I will not mind.";

const STEER: &str = "\
Everything you can do to an answer while it is being written is a **control**: a request in the log with exactly one outcome, \
which everybody sees, from whichever device it came.

- **Steer**: say more. It reaches the run at work, at its next step or, if you are in a hurry, in the middle of a word. If the \
run ends before it has read it, your words become the input of the next run. They are never lost.
- **Pause** and **resume**: the run stands still where it is and keeps its place.
- **Interrupt**: stop and begin anew with these words, as one step: nothing slips in between.
- **Approve**: a run that wants to do something dangerous asks. It gives its worker back and waits, for a day if need be; \
the first answer wins, and whoever was second is told who was first. Ask me to *delete* something and you will see.
- **Take over**: the agents stop, and you answer yourself until you hand back.

Try it now: write *what is a cursor?* while I am still talking.";

const WORKER: &str = "\
An agent is a process that says which role it serves, gets runs, and writes entries. In Rust it is this:

```rust
async fn hello(run: Run) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    text.append(&format!(\"You said: {}\", run.input_text())).await?;
    message.complete().await
}

Worker::builder(\"ws://127.0.0.1:7400\", token).agent(\"hello\", 16, hello).connect()?.run(stop).await
```

The library reconnects, sends again what was not acknowledged, gathers tokens while a write is under way, and tells you \
when somebody pressed Stop. Any OpenAI-compatible model is one command:

```
everthread worker openai --base-url http://127.0.0.1:8080/v1 --model my-model --agent my-agent
```

Create a session with `\"agent\": \"my-agent\"`, and its input goes to your worker. The protocol is JSON over WebSocket, \
documented in `docs/PROTOCOL.md`, if you would rather write it yourself.";

/// The agent.
pub async fn run(run: Run) -> Result<(), Error> {
    // Dropping the future at any await is fine: what was appended was counted.
    run.unless_stopped(explain(&run)).await
}

async fn explain(run: &Run) -> Result<(), Error> {
    if let Some(asked) = deletion::asked_before(run) {
        return deletion::go_on(run, asked).await;
    }
    let mut question = run.input_text();
    let mut message = run.message(Role::Assistant).await?;
    look_at_the_session(run, &mut message, &question).await?;
    let mut opening = None;
    loop {
        if deletion::is_wanted(&question) {
            return deletion::ask(run, message).await;
        }
        let mut text = message.text().await?;
        if let Some(opening) = opening.take() {
            type_out(&mut text, opening, PAUSE).await?;
        }
        let Some(steer) = tell(run, &mut text, answer(&question)).await? else {
            text.end().await?;
            return message.complete().await;
        };
        question = steer.consume()?.text();
        message.end(MessageStatus::Partial, None).await?;
        message = run.message(Role::Assistant).await?;
        opening = Some("Understood, I leave that and turn to what you say.\n\n");
    }
}

async fn look_at_the_session(run: &Run, message: &mut Message, question: &str) -> Result<(), Error> {
    let mut reasoning = message.reasoning().await?;
    let thought = format!("The reader writes “{}”. I look at the session first.", shortened(question));
    type_out(&mut reasoning, &thought, PAUSE).await?;
    reasoning.end().await?;

    let mut call = message.tool_call("session_facts", "c1").await?;
    call.set(json!({ "session": run.session() })).await?;
    call.end().await?;
    let mut output = message.tool_output("session_facts", "c1").await?;
    output
        .set(json!({ "messages_before": run.messages().len(), "attempt": run.attempt(), "run": run.id() }))
        .await?;
    output.end().await
}

/// Writes a text until somebody steers: in the middle of a word if that is urgent, else at the end of a paragraph.
async fn tell(run: &Run, text: &mut Part, answer: &str) -> Result<Option<Steer>, Error> {
    for paragraph in answer.split_inclusive("\n\n") {
        for token in tokens(paragraph) {
            text.append(token).await?;
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = run.steered_now() => {
                    text.append(" …").await?;
                    break;
                }
            }
        }
        if let Some(steer) = run.try_steer() {
            return Ok(Some(steer));
        }
    }
    Ok(None)
}

fn answer(question: &str) -> &'static str {
    let question = question.to_lowercase();
    let fits = |words: &[&str]| words.iter().any(|word| question.contains(word));
    TOPICS.iter().find(|(words, _)| fits(words)).map_or(WELCOME, |(_, answer)| answer)
}

fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut out: String = text.chars().take(CHARS_MAX).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
pub(super) fn answer_for_tests() -> &'static str {
    WELCOME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_gets_its_topic_and_anything_else_the_welcome() {
        assert_eq!(answer("What happens when I CUT the connection?"), RESUME);
        assert_eq!(answer("What is a cursor?"), CURSOR);
        assert_eq!(answer("How do I connect my own agent?"), WORKER);
        assert_eq!(answer("Can I steer you?"), STEER);
        assert_eq!(answer("hi"), WELCOME);
    }
}
