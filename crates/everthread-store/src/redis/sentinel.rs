//! Where the primary is, by word of the sentinels.
//!
//! Owns one connection to each sentinel. Each is asked every second, and at once when it announces a new primary; the
//! answer with the greatest configuration epoch counts, so that a sentinel which was away cannot lead back to a primary
//! that was replaced. Whoever has a connection to another server than the one that counts hears of it.

use super::address::{Endpoint, Login};
use super::dial::Dialer;
use super::link::{Backoff, Failure};
use ::redis::aio::MultiplexedConnection;
use ::redis::{PushInfo, PushKind, Value};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// Between two questions to a sentinel that has nothing to announce.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long a sentinel may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long the word of a sentinel counts that is gone since. Longer than any failover, so that the one who led it and died
/// is still believed when another, who has missed it, is not.
const WORD_KEPT: Duration = Duration::from_secs(60);
/// How long who dials waits for a first word.
const WORD_MAX: Duration = Duration::from_secs(2);

/// A primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Primary {
    /// Grows with every failover.
    epoch: u64,
    pub(super) endpoint: Endpoint,
}

/// The sentinels of one primary.
pub(super) struct Sentinels {
    /// What they call it.
    name: String,
    sentinels: Vec<(Endpoint, Dialer)>,
    /// What each has said last, and when, or why it said nothing.
    words: Mutex<Vec<Result<(Primary, Instant), String>>>,
    /// What counts of that.
    known: watch::Sender<Option<Primary>>,
    /// Somebody doubts what is known.
    ask: Vec<Notify>,
}

impl Sentinels {
    /// Sentinels that [`Sentinels::keep`] will ask.
    pub(super) fn new(dialer: &Dialer, endpoints: &[Endpoint], name: &str, login: &Login) -> Self {
        let sentinels: Vec<_> = endpoints
            .iter()
            .map(|endpoint| (endpoint.clone(), dialer.to_sentinel(endpoint.clone(), login)))
            .collect();
        Self {
            name: name.to_owned(),
            words: Mutex::new(vec![Err("not asked yet".to_owned()); sentinels.len()]),
            known: watch::Sender::new(None),
            ask: sentinels.iter().map(|_| Notify::new()).collect(),
            sentinels,
        }
    }

    /// Asks them, for ever.
    pub(super) async fn keep(self: &Arc<Self>) -> Infallible {
        futures_util::future::join_all((0..self.sentinels.len()).map(|n| self.listen(n))).await;
        std::future::pending().await
    }

    /// The primary, and a word when it is another.
    pub(super) async fn primary(&self) -> Result<(Endpoint, watch::Receiver<Option<Primary>>), Failure> {
        let mut known = self.known.subscribe();
        let endpoint = match timeout(WORD_MAX, known.wait_for(Option::is_some)).await {
            Ok(Ok(primary)) => primary.as_ref().map(|primary| primary.endpoint.clone()),
            _ => None,
        };
        endpoint.map(|endpoint| (endpoint, known)).ok_or_else(|| Failure::Down(self.trouble()))
    }

    /// What is known did not prove true.
    pub(super) fn ask_again(&self) {
        self.ask.iter().for_each(Notify::notify_one);
    }

    /// Why nobody knows the primary.
    fn trouble(&self) -> String {
        let words = self.words();
        let each = self.sentinels.iter().zip(words.iter()).map(|((endpoint, _), word)| match word {
            Ok((primary, _)) => format!("{endpoint} says {}", primary.endpoint),
            Err(why) => format!("{endpoint}: {why}"),
        });
        format!(
            "no sentinel tells where the primary {:?} is ({})",
            self.name,
            each.collect::<Vec<_>>().join("; ")
        )
    }

    async fn listen(&self, n: usize) -> Infallible {
        let mut backoff = Backoff::default();
        loop {
            let Err(failure) = self.listen_once(n, &mut backoff).await;
            let why = failure.why();
            tracing::debug!(sentinel = %self.sentinels[n].0, why, "a sentinel does not answer");
            {
                let mut words = self.words();
                if words[n].as_ref().is_ok_and(|(_, at)| at.elapsed() > WORD_KEPT) || words[n].is_err() {
                    words[n] = Err(why);
                }
            }
            sleep(backoff.next()).await;
        }
    }

    async fn listen_once(&self, n: usize, backoff: &mut Backoff) -> Result<Infallible, Failure> {
        let heard = Arc::new(Notify::new());
        let told = heard.clone();
        let on_push = move |push: PushInfo| {
            if push.kind == PushKind::Message {
                told.notify_one();
            }
        };
        let mut dialled = self.sentinels[n].1.dial(on_push).await?;
        dialled
            .request(async |connection| {
                timeout(ANSWER_MAX, connection.subscribe("+switch-master")).await.map_err(|_| late())??;
                loop {
                    let primary = timeout(ANSWER_MAX, self.ask(connection)).await.map_err(|_| late())??;
                    *backoff = Backoff::default();
                    self.learn(n, primary);
                    tokio::select! {
                        () = heard.notified() => {}
                        () = self.ask[n].notified() => {}
                        () = sleep(ASK_EVERY) => {}
                    }
                }
            })
            .await
    }

    /// The epoch first: the address may be newer than it, which the next answer mends, but never older.
    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<Primary, Failure> {
        let mut pipeline = ::redis::pipe();
        pipeline.cmd("SENTINEL").arg("MASTER").arg(&self.name);
        pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
        let (about, address): (HashMap<String, Value>, Option<(String, u16)>) =
            pipeline.query_async(connection).await?;
        let (Some(epoch), Some((host, port))) = (epoch_of(&about), address) else {
            return Err(Failure::Broken("it does not know the primary".into()));
        };
        Ok(Primary { epoch, endpoint: Endpoint::Tcp(host, port) })
    }

    fn learn(&self, n: usize, primary: Primary) {
        let mut words = self.words();
        words[n] = Ok((primary, Instant::now()));
        let count = |known: &Option<Primary>| best(words.iter().flatten(), known.as_ref(), Instant::now());
        self.known.send_if_modified(|known| {
            let counts = count(known);
            if counts == *known {
                return false;
            }
            if let (Some(before), Some(now)) = (&*known, &counts)
                && before.endpoint != now.endpoint
            {
                tracing::warn!(before = %before.endpoint, now = %now.endpoint, "the sentinels have another primary");
            }
            *known = counts;
            true
        });
    }

    fn words(&self) -> MutexGuard<'_, Vec<Result<(Primary, Instant), String>>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts of what sentinels have said: the greatest epoch; within one, what counts already.
fn best<'a>(
    words: impl Iterator<Item = &'a (Primary, Instant)>,
    known: Option<&Primary>,
    now: Instant,
) -> Option<Primary> {
    words
        .filter(|(_, at)| now.duration_since(*at) <= WORD_KEPT)
        .map(|(primary, _)| primary)
        .max_by_key(|primary| (primary.epoch, known.is_some_and(|known| known.endpoint == primary.endpoint)))
        .cloned()
}

/// Which failover made the primary one, of what `SENTINEL MASTER` says.
pub(super) fn epoch_of(about: &HashMap<String, Value>) -> Option<u64> {
    about.get("config-epoch").and_then(|epoch| ::redis::from_redis_value_ref(epoch).ok())
}

fn late() -> Failure {
    Failure::Lost(format!("no answer within {ANSWER_MAX:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary(epoch: u64, port: u16) -> Primary {
        Primary { epoch, endpoint: Endpoint::Tcp("h".into(), port) }
    }

    #[tokio::test]
    async fn the_greatest_epoch_counts_and_a_sentinel_that_was_away_does_not_lead_back() {
        let now = Instant::now();
        let words = [(primary(1, 1), now), (primary(2, 2), now), (primary(1, 1), now)];
        assert_eq!(best(words.iter(), Some(&primary(1, 1)), now), Some(primary(2, 2)));
        assert_eq!(
            best(words[..1].iter(), Some(&primary(2, 2)), now),
            Some(primary(1, 1)),
            "all others are gone"
        );
    }

    #[tokio::test]
    async fn within_one_epoch_what_is_known_stays() {
        let now = Instant::now();
        let words = [(primary(1, 1), now), (primary(1, 2), now)];
        assert_eq!(best(words.iter(), Some(&primary(1, 1)), now), Some(primary(1, 1)));
        assert_eq!(best(words.iter(), Some(&primary(1, 2)), now), Some(primary(1, 2)));
    }

    #[tokio::test]
    async fn an_old_word_does_not_count() {
        let now = Instant::now();
        let later = now + WORD_KEPT + Duration::from_secs(1);
        let words = [(primary(9, 9), now), (primary(1, 1), later)];
        assert_eq!(best(words.iter(), Some(&primary(9, 9)), later), Some(primary(1, 1)));
    }
}
