//! The orchestra: an agent that has three others work for it. Each is a run of its own with `parent_run`, writes to the
//! session itself, and can be stopped alone; when the orchestra is stopped, they stop too.

use super::type_out;
use everthread_worker::{Error, Failure, Outcome, PartKind, PutPart, Role, Run};
use std::time::Duration;

/// The sub-agents.
pub const MEMBERS: &[(&str, Member)] = &[
    ("researcher", Member { pause: Duration::from_millis(20), text: RESEARCH }),
    ("critic", Member { pause: Duration::from_millis(34), text: CRITIQUE }),
    ("writer", Member { pause: Duration::from_millis(26), text: DRAFT }),
];

/// What a sub-agent does.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    pause: Duration,
    text: &'static str,
}

const RESEARCH: &str = "\
**What is known.** Three of us write to this session at once, and the log puts our entries into one order.

- Each of us is a run with its own lease and its own fence.
- The orchestrator relays nothing: what you read here I wrote to the session myself.
- Our entries interleave in the log; the page sorts them by run.";

const CRITIQUE: &str = "\
**What could go wrong.** If I crashed now, my run would end as `lost` and the other two would not notice. If the \
orchestrator were stopped, all three of us would be cancelled with it: a parent takes its children along.

I type more slowly than the others, so you can stop me alone.";

const DRAFT: &str = "\
**A first draft.** Sub-agents are easiest to follow when each has a place of its own on the page and none waits for \
another. On a phone the three columns become three cards, one below the other.

Reload the page while we write: all three of us will be where we were.";

const PAUSE: Duration = Duration::from_millis(24);

/// The orchestrator.
pub async fn run(run: Run) -> Result<(), Failure> {
    run.unless_stopped(conduct(&run)).await
}

async fn conduct(run: &Run) -> Result<(), Failure> {
    let question = run.input_text();
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    type_out(
        &mut text,
        "I ask a **researcher**, a **critic** and a **writer** to work on this side by side.\n\n",
        PAUSE,
    )
    .await?;
    let mut children = Vec::new();
    for (name, _) in MEMBERS {
        let part = PutPart { kind: PartKind::Text, value: question.clone().into(), attrs: None };
        children.push((name, run.start_child(name, vec![part]).await?));
    }
    let mut completed = 0;
    for (name, mut child) in children {
        let outcome = child.ended().await?;
        completed += usize::from(outcome == Outcome::Completed);
        let line = match outcome {
            Outcome::Completed => format!("- The {name} is done.\n"),
            Outcome::Cancelled => format!("- The {name} was stopped.\n"),
            Outcome::Failed | Outcome::Lost => format!("- The {name} did not finish.\n"),
        };
        type_out(&mut text, &line, PAUSE).await?;
    }
    let last = format!(
        "\n{completed} of {} finished. That is all: you have read the rest from them directly.",
        MEMBERS.len()
    );
    type_out(&mut text, &last, PAUSE).await?;
    message.complete().await?;
    Ok(())
}

/// A sub-agent.
pub async fn member(run: Run, member: &'static Member) -> Result<(), Error> {
    run.unless_stopped(play(&run, member)).await
}

async fn play(run: &Run, member: &Member) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    type_out(&mut text, member.text, member.pause).await?;
    message.complete().await
}
