//! What a run asks people, and what they answer.

use crate::error::Error;
use everthread_protocol::Author;
use everthread_protocol::control::{Verdict, WhoMay};
use everthread_protocol::entry::Object;
use everthread_protocol::worker_frame::{Answered, NewApproval};
use serde_json::Value;
use std::time::Duration;

/// A question to people, on whose answer a run waits: see [`crate::Run::approve`].
#[derive(Debug, Clone)]
pub struct Approval {
    id: String,
    reason: String,
    schema: Option<Value>,
    digest: Option<String>,
    expires: Option<Duration>,
    who: Option<WhoMay>,
    data: Option<Object>,
}

impl Approval {
    /// A question. The same question must have the same `id` in every attempt of the run: name it by what it is about (the
    /// id of a tool call, say), not by chance.
    pub fn new(id: impl Into<String>, reason: impl Into<String>) -> Self {
        let (id, reason) = (id.into(), reason.into());
        Self { id, reason, schema: None, digest: None, expires: None, who: None, data: None }
    }

    /// Digest of what is asked about. Whoever approves names the same, and an answer about another one does not count.
    pub fn digest(mut self, digest: impl Into<String>) -> Self {
        self.digest = Some(digest.into());
        self
    }

    /// JSON Schema of the answer's value, for whoever shows a form. The value is not checked against it.
    pub fn schema(mut self, schema: Value) -> Self {
        self.schema = Some(schema);
        self
    }

    /// How long it waits for an answer; a day unless said otherwise.
    pub fn expires(mut self, after: Duration) -> Self {
        self.expires = Some(after);
        self
    }

    /// Who may answer; everybody unless said otherwise.
    pub fn who(mut self, who: WhoMay) -> Self {
        self.who = Some(who);
        self
    }

    /// Name and arguments of a tool and the like, to be shown.
    pub fn data(mut self, data: Object) -> Self {
        self.data = Some(data);
        self
    }

    /// The answer to this question among those that the run was given, or the question as it is to be asked now.
    ///
    /// An approval is used once. If the one with this id was about something else, its answer says nothing about this:
    /// the question is asked under the id with `.2` at its end, then `.3` and so on. Every attempt finds the same.
    pub(crate) fn look_up(&self, answers: &[Answered]) -> Result<Found, Error> {
        let mut id = self.id.clone();
        let mut number = 1;
        while let Some(found) = answers.iter().find(|answered| answered.approval.as_str() == id) {
            if found.digest == self.digest {
                let Answered { verdict, value, answered_by, .. } = found.clone();
                return Ok(Found::Answer(Answer { verdict, value, answered_by }));
            }
            number += 1;
            id = format!("{}.{number}", self.id);
        }
        let expires_ms = self.expires.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        Ok(Found::Question(NewApproval {
            approval: id.parse()?,
            reason: self.reason.clone(),
            schema: self.schema.clone(),
            digest: self.digest.clone(),
            expires_ms,
            who: self.who.clone(),
            data: self.data.clone(),
        }))
    }
}

/// How far an approval is.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    /// It was answered.
    Answer(Answer),
    /// It is to be asked.
    Question(NewApproval),
}

/// The answer to an [`Approval`].
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Yes, no, or nobody answered in time.
    pub verdict: Verdict,
    /// More than yes or no.
    pub value: Option<Value>,
    /// Who answered; nobody did if it expired.
    pub answered_by: Option<Author>,
}

impl Answer {
    /// Whether it was a yes.
    pub fn is_approved(&self) -> bool {
        self.verdict == Verdict::Approved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(id: &str, digest: Option<&str>, verdict: Verdict) -> Answered {
        let digest = digest.map(str::to_owned);
        Answered { approval: id.parse().unwrap(), verdict, answered_by: None, value: None, digest }
    }

    fn question(found: Found) -> String {
        match found {
            Found::Question(question) => question.approval.to_string(),
            Found::Answer(answer) => panic!("{answer:?}"),
        }
    }

    #[test]
    fn an_answer_about_other_arguments_is_none_and_the_question_is_asked_under_the_next_id() {
        let pay = Approval::new("pay", "Pay?").digest("d2");
        let mut answers = vec![answered("other", Some("d2"), Verdict::Approved)];
        assert_eq!(question(pay.look_up(&answers).unwrap()), "pay");
        answers.push(answered("pay", Some("d1"), Verdict::Approved));
        assert_eq!(question(pay.look_up(&answers).unwrap()), "pay.2");
        answers.push(answered("pay.2", None, Verdict::Approved));
        assert_eq!(question(pay.look_up(&answers).unwrap()), "pay.3");
        answers.push(answered("pay.3", Some("d2"), Verdict::Denied));
        let Found::Answer(answer) = pay.look_up(&answers).unwrap() else { panic!("it was answered") };
        assert!(!answer.is_approved());
    }

    #[test]
    fn an_id_that_is_none_is_said() {
        assert!(matches!(Approval::new("a b", "?").look_up(&[]), Err(Error::Unreadable(_))));
    }
}
