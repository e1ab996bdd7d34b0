//! How sure writes are: who asks a primary whether its replicas and its disk have them.
//!
//! A task and a connection per primary, since `WAIT` holds up whatever comes behind it; and once more for what is to be on
//! its disk, since `WAITAOF` takes up to a second, which nobody else is to wait for. What is asked while a confirmation is
//! under way is confirmed together in the next: first every write is looked for in its session, as it stands there now; then
//! a mark is written, so that the connection's place in the stream of replication is behind all of them; then `WAIT` says
//! whether the replicas are there, too. All of it goes by one connection, and with it ends what was not confirmed: after a
//! failover another server answers, of which nothing is known. Invariant: a write is called replicated only if the server that
//! has it was asked, and had at that moment at least one replica and the word of every one that follows it, or did until a
//! moment ago, also after their word was had: a replica that has just left may be the next primary.

use super::dial::Dialer;
use super::link::{Link, Same};
use super::read::number;
use super::script::Scripts;
use crate::Error;
use ::redis::{RedisResult, Value};
use everthread_protocol::{Epoch, Level, Seq};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// Between two looks at who follows.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two questions to a server about its disk: one that does not let us ask notes every one.
const SETTINGS_EVERY: Duration = Duration::from_secs(60);
/// How long replicas and disk may take, where connections are not given up before.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a confirmation may take with all that it waits behind.
const CONFIRM_MAX: Duration = Duration::from_secs(6);
/// A replica that has said nothing for longer does not follow: nobody waits for it.
const LAG_MAX_S: u64 = 10;
/// A replica that has left is waited for so long: when one is promoted by hand, it leaves before anybody is told who is
/// primary now, and what the others confirm meanwhile is lost with the old one.
const LEFT_COUNTS: Duration = Duration::from_secs(5);
/// Writes that wait for a place in the next confirmation …
const QUEUE: usize = 1024;
/// … and that are confirmed together.
const TOGETHER_MAX: usize = 512;
/// How long a mark stays. It is there to be written, not to be read.
const MARK_MS: u64 = 1_000;
/// Releases that know `WAITAOF`.
const WAITAOF_SINCE: (u32, u32) = (7, 2);

/// A write that is to be sure.
#[derive(Debug, Clone)]
pub(super) struct Sought {
    /// The session's meta.
    pub(super) meta: String,
    /// In the same slot; whatever is there is overwritten.
    pub(super) mark: String,
    pub(super) epoch: Epoch,
    /// The log must reach to here …
    pub(super) to: Seq,
    /// … and the state have this version.
    pub(super) n: u64,
    pub(super) level: Level,
}

struct Ask {
    sought: Sought,
    answer: oneshot::Sender<Result<(), String>>,
}

/// What can be said of what is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Disk {
    /// Nothing.
    #[default]
    Unknown,
    /// What is answered is there.
    Always,
    /// The server can be asked.
    Asked,
}

/// What is known of a primary.
#[derive(Debug, Clone, Default)]
struct Standing {
    /// Which primary this is about.
    replid: String,
    /// Replicas that follow.
    replicas: u64,
    /// Replicas that must have a write.
    needed: u64,
    /// Whether there ever was one.
    had_replicas: bool,
    /// Whether it was ever known what is on the disk.
    had_disk: bool,
    disk: Disk,
    /// What a server said about its disk, and when.
    settings: Option<(Disk, Instant)>,
}

/// Replicas that a primary has had lately, by address: one that comes does not stand for one that has left.
#[derive(Debug, Default)]
struct Lately {
    /// Which primary: it changes with a failover, and then nobody has left.
    replid: String,
    following: BTreeSet<String>,
    /// Those that have left, and until when they count.
    left: BTreeMap<String, Instant>,
}

impl Lately {
    /// How many must have what is written now, while these follow.
    fn needed(&mut self, replid: &str, following: BTreeSet<String>, now: Instant) -> u64 {
        if self.replid == replid {
            let until = now + LEFT_COUNTS;
            let has_left = self.following.iter().filter(|replica| !following.contains(*replica));
            self.left.extend(has_left.map(|replica| (replica.clone(), until)));
        } else {
            *self = Lately { replid: replid.to_owned(), ..Lately::default() };
        }
        self.left.retain(|replica, until| !following.contains(replica) && *until > now);
        self.following = following;
        (self.following.len() + self.left.len()) as u64
    }
}

/// Confirms what is written to one primary.
pub(super) struct Confirmer {
    link: Arc<Link>,
    asks: mpsc::Sender<Ask>,
    standing: Mutex<Standing>,
    lately: Mutex<Lately>,
    wait_max: Duration,
    /// What it is asked for; only for the one is it of interest what is on the disk.
    level: Level,
}

/// What [`Confirmer::keep`] takes its work from.
pub(super) struct Asks(mpsc::Receiver<Ask>);

impl Confirmer {
    /// A confirmer that [`Confirmer::keep`] will serve; [`Confirmer::link`] is to be kept connected.
    pub(super) fn new(
        dialer: Dialer,
        scripts: Arc<Scripts>,
        response_timeout: Duration,
        level: Level,
    ) -> (Self, Asks) {
        let (asks, received) = mpsc::channel(QUEUE);
        let link = Arc::new(Link::new(dialer, scripts));
        let wait_max = WAIT_MAX.min(response_timeout / 2);
        let (standing, lately) = (Mutex::default(), Mutex::default());
        (Self { link, asks, standing, lately, wait_max, level }, Asks(received))
    }

    /// Its connection.
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Replicas that follow.
    pub(super) fn replicas(&self) -> u64 {
        self.standing().replicas
    }

    /// Whether a write here can be as sure as that.
    pub(super) fn offers(&self, level: Level) -> bool {
        let standing = self.standing();
        match level {
            Level::Accepted => true,
            Level::Replicated => standing.had_replicas,
            Level::Fsynced => standing.had_disk,
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        // Nothing panics while it is locked.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a write is sure; or why nobody knows whether it is.
    pub(super) async fn confirm(&self, sought: Sought) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let gone = || "the primary is not served any more".to_owned();
            self.asks.send(Ask { sought, answer }).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        match timeout(CONFIRM_MAX, asked).await {
            Ok(confirmed) => confirmed,
            Err(_) => Err(format!("not confirmed within {CONFIRM_MAX:?}")),
        }
    }

    /// Confirms, and looks who follows, for ever.
    pub(super) async fn keep(&self, Asks(mut asks): Asks) -> Infallible {
        let mut next_look = Instant::now();
        loop {
            let first = tokio::select! {
                ask = asks.recv() => ask,
                () = sleep_until(next_look) => None,
            };
            let Some(first) = first else {
                self.look().await;
                next_look = Instant::now() + LOOK_EVERY;
                continue;
            };
            let mut all = vec![first];
            while all.len() < TOGETHER_MAX
                && let Ok(ask) = asks.try_recv()
            {
                all.push(ask);
            }
            self.confirm_all(all).await;
        }
    }

    /// Learns who follows.
    pub(super) async fn look(&self) {
        let looking = async {
            let mut same = self.link.same().await.ok()?;
            let mut info = ::redis::pipe();
            info.cmd("INFO").arg("server").arg("replication").arg("persistence");
            let told = same.pipeline(&info).await.ok()?.pop()?.ok()?;
            let told = info_of(&told)?;
            self.learn(&told);
            if self.level == Level::Fsynced {
                let disk = self.disk(&mut same, &told).await;
                let mut standing = self.standing();
                standing.had_disk |= disk != Disk::Unknown;
                standing.disk = disk;
            }
            Some(())
        };
        if looking.await.is_none() {
            tracing::debug!("it is not known who follows the primary");
        }
    }

    async fn disk(&self, same: &mut Same, told: &str) -> Disk {
        let field = |name| told_of(told, name).unwrap_or_default();
        if field("aof_enabled") != "1" {
            return Disk::Unknown;
        }
        let is_new = knows_waitaof(field("redis_version"));
        let known = self.standing().settings;
        if let Some((disk, _)) = known.filter(|(_, at)| at.elapsed() < SETTINGS_EVERY) {
            return disk;
        }
        let mut asking = ::redis::pipe();
        asking.cmd("CONFIG").arg("GET").arg("appendfsync");
        if is_new {
            // Nothing to wait for: whether we may.
            asking.cmd("WAITAOF").arg(0).arg(0).arg(1);
        }
        let answers = same.pipeline(&asking).await.unwrap_or_default();
        let is = |value| matches!(answers.first(), Some(Ok(set)) if is_set(set, value));
        let disk = match answers.get(1) {
            // One that leaves it to the system never says that it is there.
            _ if is("no") => Disk::Unknown,
            Some(Ok(_)) => Disk::Asked,
            _ if is("always") => Disk::Always,
            _ => Disk::Unknown,
        };
        self.standing().settings = Some((disk, Instant::now()));
        disk
    }

    fn learn(&self, told: &str) {
        let following = following(told);
        let replicas = following.len() as u64;
        let replid = told_of(told, "master_replid").unwrap_or_default();
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = lately.needed(replid, following, Instant::now());
        drop(lately);
        let mut standing = self.standing();
        if standing.replicas != replicas && self.level == Level::Replicated {
            tracing::info!(before = standing.replicas, now = replicas, "replicas that follow the primary");
        }
        (standing.replicas, standing.needed) = (replicas, needed);
        standing.had_replicas |= replicas > 0;
        if standing.replid != replid {
            // Another server, which may be set up otherwise.
            (standing.disk, standing.settings) = (Disk::Unknown, None);
            replid.clone_into(&mut standing.replid);
        }
    }

    async fn confirm_all(&self, asks: Vec<Ask>) {
        let mut same = match self.link.same().await {
            Ok(same) => same,
            Err(failure) => return answer(asks, &Err(failure.why())),
        };
        let asks = self.look_for(&mut same, asks).await;
        let Standing { replicas, needed, .. } = *self.standing();
        // Without replicas what is on the disk may be had.
        let (asks, alone): (Vec<_>, Vec<_>) =
            asks.into_iter().partition(|ask| replicas > 0 || ask.sought.level == Level::Fsynced);
        answer(alone, &Err("no replica follows the primary now".into()));
        let Some(mark) = asks.first().map(|ask| ask.sought.mark.clone()) else { return };
        let waited = self.wait(&mut same, &mark, needed).await;
        let (synced, asks): (Vec<_>, Vec<_>) =
            asks.into_iter().partition(|ask| ask.sought.level == Level::Fsynced);
        answer(asks, &waited);
        if synced.is_empty() {
            return;
        }
        let disk = self.standing().disk;
        let on_disk = match (waited, disk) {
            (Ok(()), Disk::Asked) => self.wait_for_disk(&mut same).await,
            (Ok(()), Disk::Unknown) => Err("nobody can say what is on the disk now".into()),
            (waited, _) => waited,
        };
        answer(synced, &on_disk);
    }

    /// Those whose writes are there: the others are told that they are not.
    async fn look_for(&self, same: &mut Same, asks: Vec<Ask>) -> Vec<Ask> {
        let mut looking = ::redis::pipe();
        for ask in &asks {
            looking.cmd("HMGET").arg(&ask.sought.meta).arg("epoch").arg("head").arg("n");
        }
        looking.cmd("INFO").arg("replication");
        let mut answers = match same.pipeline(&looking).await {
            Ok(answers) if answers.len() == asks.len() + 1 => answers,
            Ok(_) => {
                answer(asks, &Err("fewer answers than questions".into()));
                return Vec::new();
            }
            Err(failure) => {
                answer(asks, &Err(failure.why()));
                return Vec::new();
            }
        };
        match answers.pop() {
            Some(Ok(told)) => self.learn(&info_of(&told).unwrap_or_default()),
            _ => {
                answer(asks, &Err("it is not known who follows the primary".into()));
                return Vec::new();
            }
        }
        let mut found = Vec::with_capacity(asks.len());
        for (ask, told) in asks.into_iter().zip(answers) {
            match told.map_err(|error| error.to_string()).and_then(|told| ask.sought.check(&told)) {
                Ok(()) => found.push(ask),
                Err(why) => answer([ask], &Err(why)),
            }
        }
        found
    }

    /// Marks the place, and waits until so many replicas have come to it; more, if one has left meanwhile.
    async fn wait(&self, same: &mut Same, mark: &str, replicas: u64) -> Result<(), String> {
        let mut waiting = ::redis::pipe();
        waiting.cmd("SET").arg(mark).arg("").arg("PX").arg(MARK_MS);
        if replicas > 0 {
            waiting.cmd("WAIT").arg(replicas).arg(self.wait_ms());
            waiting.cmd("INFO").arg("replication");
        }
        let answers = same.pipeline(&waiting).await.map_err(super::link::Failure::why)?;
        let answers: RedisResult<Vec<Value>> = answers.into_iter().collect();
        let answers = answers.map_err(|error| error.to_string())?;
        let [_, reached, told] = &answers[..] else { return Ok(()) };
        let reached = number(reached).map_err(|error| error.to_string())?;
        self.learn(&info_of(told).unwrap_or_default());
        let needed = self.standing().needed.max(replicas);
        if reached >= needed {
            Ok(())
        } else {
            Err(format!("{reached} of {needed} replicas have it within {:?}", self.wait_max))
        }
    }

    /// Waits for the disk of the primary itself.
    async fn wait_for_disk(&self, same: &mut Same) -> Result<(), String> {
        let mut waiting = ::redis::pipe();
        waiting.cmd("WAITAOF").arg(1).arg(0).arg(self.wait_ms());
        let answer = same.pipeline(&waiting).await.map_err(super::link::Failure::why)?.pop();
        match answer {
            Some(Ok(Value::Array(reached))) if reached.first() == Some(&Value::Int(1)) => Ok(()),
            Some(Ok(_)) => Err(format!("not on the disk within {:?}", self.wait_max)),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("no answer".into()),
        }
    }

    fn wait_ms(&self) -> u64 {
        // Redis takes 0 for ever.
        everthread_protocol::millis(self.wait_max).max(1)
    }
}

impl Sought {
    /// Whether the write is in a session of which `told` are epoch, head and version. Within one epoch nobody but one primary
    /// has written, so that whoever has come as far has all before it.
    fn check(&self, told: &Value) -> Result<(), String> {
        let Value::Array(told) = told else { return Err("an unknown answer".into()) };
        let number = |at: usize| match told.get(at) {
            Some(Value::Nil) | None => Ok(None),
            Some(value) => number(value).map(Some),
        };
        let read = || Ok((number(0)?, number(1)?.unwrap_or(0), number(2)?.unwrap_or(0)));
        let (epoch, head, n) = read().map_err(|error: Error| error.to_string())?;
        if epoch == Some(self.epoch.0) && head >= self.to.0 && n >= self.n {
            Ok(())
        } else {
            Err("the log is not the one that was written any more".into())
        }
    }
}

fn answer(asks: impl IntoIterator<Item = Ask>, result: &Result<(), String>) {
    for ask in asks {
        // Who does not wait any more need not know.
        drop(ask.answer.send(result.clone()));
    }
}

/// Whether a release can be asked whether its disk has something.
pub(super) fn knows_waitaof(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= WAITAOF_SINCE
}

/// Whether the answer to `CONFIG GET` of one setting is this.
fn is_set(answer: &Value, value: &str) -> bool {
    let all: Result<std::collections::HashMap<String, String>, _> = ::redis::from_redis_value_ref(answer);
    all.is_ok_and(|all| all.values().any(|set| set == value))
}

/// The answer to `INFO`, which has a type of its own.
fn info_of(told: &Value) -> Option<String> {
    ::redis::from_redis_value_ref(told).ok()
}

/// A field of `INFO`.
fn told_of<'a>(told: &'a str, name: &str) -> Option<&'a str> {
    told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The addresses of the replicas that follow a primary; none follow a replica, as far as we are concerned.
fn following(told: &str) -> BTreeSet<String> {
    if told_of(told, "role") != Some("master") {
        return BTreeSet::new();
    }
    let close = |line: &str| {
        let (name, about) = line.split_once(':')?;
        name.strip_prefix("slave")?.parse::<u32>().ok()?;
        let field =
            |name: &str| about.trim().split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let lag: u64 = field("lag")?.parse().ok()?;
        let is_close = field("state") == Some("online") && lag <= LAG_MAX_S;
        is_close.then_some(format!("{}:{}", field("ip")?, field("port")?))
    };
    told.lines().filter_map(close).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_follows_if_it_is_online_and_was_heard_of_lately() {
        let told = "# Replication\r\nrole:master\r\nconnected_slaves:3\r\n\
                    slave0:ip=10.0.0.2,port=6379,state=online,offset=10,lag=0\r\n\
                    slave1:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=0\r\n\
                    slave2:ip=10.0.0.4,port=6379,state=online,offset=4,lag=11\r\n\
                    master_replid:0f\r\n";
        assert_eq!(following(told), set(&["10.0.0.2:6379"]));
        assert_eq!(following(&told.replace("lag=11", "lag=10")), set(&["10.0.0.2:6379", "10.0.0.4:6379"]));
        assert_eq!(following(&told.replace("role:master", "role:slave")), set(&[]));
        assert_eq!(following(""), set(&[]));
        assert_eq!(told_of(told, "connected_slaves"), Some("3"));
    }

    fn set(replicas: &[&str]) -> BTreeSet<String> {
        replicas.iter().map(|&replica| replica.to_owned()).collect()
    }

    #[test]
    fn a_replica_that_has_just_left_is_waited_for_as_it_may_be_the_next_primary() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        assert_eq!(lately.needed("p1", set(&["a", "b"]), now), 2);
        // One is promoted: the other's word is not enough until everybody knows who is primary.
        assert_eq!(lately.needed("p1", set(&["a"]), now), 2);
        assert_eq!(lately.needed("p1", set(&["a"]), now + LEFT_COUNTS / 2), 2);
        // The time of one that leaves later begins when it leaves.
        let later = now + LEFT_COUNTS / 2;
        assert_eq!(lately.needed("p1", set(&[]), later), 2);
        assert_eq!(lately.needed("p1", set(&[]), now + LEFT_COUNTS), 1);
        assert_eq!(lately.needed("p1", set(&["a"]), now + LEFT_COUNTS), 1, "the other is gone for good");
        // The new primary has never had more.
        assert_eq!(lately.needed("p1", set(&["a", "b"]), later + LEFT_COUNTS), 2);
        assert_eq!(lately.needed("p2", set(&["a"]), later + LEFT_COUNTS), 1);
    }

    #[test]
    fn one_that_comes_does_not_stand_for_one_that_has_just_left() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        assert_eq!(lately.needed("p1", set(&["a"]), now), 1);
        // It is promoted while another one has its first copy.
        assert_eq!(lately.needed("p1", set(&["b"]), now), 2);
        assert_eq!(lately.needed("p1", set(&["b"]), now + LEFT_COUNTS), 1);
        assert_eq!(lately.needed("p1", set(&["a", "b"]), now + LEFT_COUNTS), 2);
    }

    #[test]
    fn a_write_is_there_only_in_its_own_epoch_and_if_log_and_state_have_come_as_far() {
        let sought = Sought {
            meta: String::new(),
            mark: String::new(),
            epoch: Epoch(5),
            to: Seq(10),
            n: 3,
            level: Level::Replicated,
        };
        let told = |fields: [&str; 3]| {
            Value::Array(fields.map(|field| Value::BulkString(field.as_bytes().to_vec())).to_vec())
        };
        assert_eq!(sought.check(&told(["5", "10", "3"])), Ok(()));
        assert_eq!(sought.check(&told(["5", "12", "4"])), Ok(()));
        for other in [["5", "9", "3"], ["5", "10", "2"], ["6", "12", "4"], ["4", "12", "4"]] {
            assert!(sought.check(&told(other)).is_err(), "{other:?}");
        }
        assert!(sought.check(&Value::Array(vec![Value::Nil, Value::Nil, Value::Nil])).is_err());
    }
}
