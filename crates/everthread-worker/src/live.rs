//! A run at work and the people who watch it: messages that steer it, pauses, and questions it waits for.

use crate::approval::{Answer, Approval, Found};
use crate::error::Error;
use crate::run::Run;
use crate::shared::Shared;
use crate::work::PastMessage;
use everthread_protocol::ControlId;
use everthread_protocol::control::Mode;
use everthread_protocol::entry::RefusalReason;
use everthread_protocol::worker_frame::Answered;
use std::sync::Arc;
use std::time::Instant;

impl Run {
    /// The next message that steers this run; `None` when the function should stop. Needs [`AgentOptions::steerable`].
    /// Cancel safe.
    ///
    /// ```no_run
    /// # use everthread_worker::{Error, Run};
    /// # async fn work(run: Run) -> Result<(), Error> {
    /// # let mut conversation = Vec::new();
    /// # async fn call_the_model(_: &[everthread_worker::PastMessage]) {}
    /// loop {
    ///     tokio::select! {
    ///         () = call_the_model(&conversation) => {}
    ///         // Dropping the call gives it up.
    ///         () = run.steered_now() => {}
    ///     }
    ///     let mut is_steered = false;
    ///     while let Some(steer) = run.try_steer() {
    ///         conversation.push(steer.consume()?);
    ///         is_steered = true;
    ///     }
    ///     if !is_steered {
    ///         return Ok(());
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// [`AgentOptions::steerable`]: crate::AgentOptions::steerable
    pub async fn next_steer(&self) -> Option<Steer> {
        let next = |_: &mut _| match self.cause() {
            Some(_) => Some(None),
            None => self.try_steer().map(Some),
        };
        self.shared.until(next).await
    }

    /// A message that steers this run, if one waits.
    pub fn try_steer(&self) -> Option<Steer> {
        let (control, mode, message) = self.shared.with_asked(|asked| asked.take(Instant::now()))?;
        Some(Steer { shared: self.shared.clone(), control, mode, message })
    }

    /// Completes when a message waits for which the work at hand should be given up ([`Mode::Now`]): race it against a
    /// call of a model, then take it with [`Run::try_steer`]. Cancel safe.
    pub async fn steered_now(&self) {
        let is_urgent =
            |_: &mut _| self.shared.with_asked(|asked| asked.has_urgent(Instant::now())).then_some(());
        self.shared.until(is_urgent).await;
    }

    /// Whether somebody has paused this run. Its writes wait then, so that a function that does nothing about it stands
    /// still at its next write; when the run should stop they wait no longer.
    pub fn is_paused(&self) -> bool {
        self.shared.is_held()
    }

    /// Completes when somebody pauses this run, for what should not go on behind its back. Cancel safe.
    pub async fn paused(&self) {
        self.shared.until(|_| self.is_paused().then_some(())).await;
    }

    /// Completes when this run is not paused, or should stop. Cancel safe.
    pub async fn wait_while_paused(&self) {
        self.shared.until(|_| (!self.is_paused()).then_some(())).await;
    }

    /// Asks people, and returns what they answered.
    ///
    /// **The function does not wait for it.** If there is no answer yet, what was written goes to the log, the run is given
    /// back to the server, and this returns [`Error::Suspended`]: leave the function with it, by `?`. What the function
    /// returns then counts for nothing. The worker is free for other runs, and may be stopped: people have as long as they
    /// need. When they have answered, the run begins anew, as a new attempt on any worker, **from the top of the
    /// function**. This call then returns the answer at once.
    ///
    /// So whatever stands before a question runs again. What it wrote is in [`Run::own_messages`]; what it did outside the
    /// log, it must not do twice. Three ways, in this order: look at [`Run::answers`] first; put the question before
    /// what it is about; give what is done an idempotency key that all attempts share.
    ///
    /// ```no_run
    /// use everthread_worker::{Approval, Error, Role, Run};
    ///
    /// async fn pay_bill(run: Run) -> Result<(), Error> {
    ///     // The same in every attempt: made of the input, not of the clock or by chance.
    ///     let (payee, cents) = ("ann", 4200);
    ///     let digest = format!("{payee}:{cents}");
    ///     if run.answers().is_empty() {
    ///         // Only in the first attempt: people have read it when the second begins.
    ///         let mut message = run.message(Role::Assistant).await?;
    ///         message.text().await?.append("I have a bill to pay.").await?;
    ///         message.complete().await?;
    ///     }
    ///     let answer = run.approve(Approval::new("pay", "Pay 42.00 to Ann?").digest(digest)).await?;
    ///     // From here on there is an answer. The worker may still die between the payment and its line in the log, so the
    ///     // payment carries a key by which the other side knows it again.
    ///     let text = if answer.is_approved() {
    ///         pay(payee, cents, &format!("{}-pay", run.id())).await;
    ///         "Paid."
    ///     } else {
    ///         "Then not."
    ///     };
    ///     let mut message = run.message(Role::Assistant).await?;
    ///     message.text().await?.append(text).await?;
    ///     message.complete().await
    /// }
    /// # async fn pay(_payee: &str, _cents: u32, _key: &str) {}
    /// ```
    ///
    /// An answer counts for the digest it was given for. If the question of this id was about another one, it is asked
    /// again, as `id.2`, `id.3`, …: somebody who has approved one payment has not approved the next.
    ///
    /// **Not cancel safe**: a call that is dropped may have asked.
    pub async fn approve(&self, approval: Approval) -> Result<Answer, Error> {
        match approval.look_up(self.answers())? {
            Found::Answer(answer) => Ok(answer),
            Found::Question(question) => Err(self.shared.suspend(vec![question]).await),
        }
    }

    /// [`Run::approve`] for several at once: people see all of them, and the run begins anew when the last is answered.
    pub async fn approve_all(&self, approvals: Vec<Approval>) -> Result<Vec<Answer>, Error> {
        let (mut answers, mut questions) = (Vec::new(), Vec::new());
        for approval in &approvals {
            match approval.look_up(self.answers())? {
                Found::Answer(answer) => answers.push(answer),
                Found::Question(question) => questions.push(question),
            }
        }
        if questions.is_empty() { Ok(answers) } else { Err(self.shared.suspend(questions).await) }
    }

    /// What people answered to the questions of earlier attempts.
    pub fn answers(&self) -> &[Answered] {
        &self.input.answers
    }
}

/// A message for a run at work.
///
/// It is this run's once it is consumed. One that is neither consumed nor refused is not lost: when the run ends, it becomes
/// the input of a new one.
#[must_use = "a message that is not consumed becomes the input of a new run"]
#[derive(Debug)]
pub struct Steer {
    shared: Arc<Shared>,
    control: ControlId,
    mode: Mode,
    message: PastMessage,
}

impl Steer {
    /// When the message should be taken in.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The control that it came with.
    pub fn control(&self) -> &ControlId {
        &self.control
    }

    /// The message, to look at. Whoever acts on it must consume it, or another run will, too.
    pub fn message(&self) -> &PastMessage {
        &self.message
    }

    /// Takes the message into this run: from here on it is part of its input, in later attempts as well.
    pub fn consume(self) -> Result<PastMessage, Error> {
        self.settle(None)?;
        Ok(self.message)
    }

    /// Leaves the message to a run of its own, which the server asks for at once.
    pub fn refuse(self) -> Result<(), Error> {
        self.settle(Some(RefusalReason::NotSupported))
    }

    fn settle(&self, refusal: Option<RefusalReason>) -> Result<(), Error> {
        self.shared.with(|outbox| outbox.settle(self.control.clone(), refusal))?;
        self.shared.offer();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
