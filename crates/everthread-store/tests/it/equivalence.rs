//! Two stores that are given the same commands give the same answers.
//!
//! [`answers`] runs commands on any store and names what only the store picks (epochs, fences) by the order in which it
//! appears; times are left out. Whatever differs then is a difference in behaviour.

use crate::suite::{ALL, BY, change, entries, fresh, read_all};
use everthread_protocol::{Epoch, Fence, Millis, Record, RunId, Seq, SessionKey, Version};
use everthread_session::fold::{Limits, fold};
use everthread_store::embedded::{Durability, Embedded};
use everthread_store::{
    Change, Error, Fold, Folded, Head, Loaded, Producer, Refusal, Renewal, Store, Write, Written,
};
use proptest::prelude::*;
use std::collections::HashMap;

const SESSIONS: usize = 2;
const RUNS: usize = 3;
const HOUR_MS: u64 = 3_600_000;

/// One thing done to the store.
#[derive(Debug, Clone)]
pub enum Command {
    /// A write, right or wrong.
    Write(Plan),
    /// All records after a position, in pages of some size.
    Read { session: usize, after: u64, bytes_max: usize },
    /// The session as the core sees it.
    Load { session: usize },
    /// Heads of all sessions and of one that is not there.
    Heads,
    /// So many of the raw records folded, right or wrong.
    Fold { session: usize, records: usize, aim: Aim },
    /// Leases of one session's run renewed, twice with one that is not there between.
    Renew { session: usize, run: usize, fence: Choice, left_ms: u64 },
}

/// A write, in words that hold for any store: "the right fence", not a number.
#[derive(Debug, Clone)]
pub struct Plan {
    session: usize,
    count: u32,
    run: Option<usize>,
    producer: Option<(usize, Incarnation, Batch)>,
    fence: Option<(usize, Choice)>,
    change: Option<Decision>,
    not_after: Option<Choice>,
}

#[derive(Debug, Clone)]
struct Decision {
    expect: Expect,
    grant: Option<usize>,
    lease_ms: u64,
    revoke: Vec<usize>,
    unwritten: Option<(usize, u64)>,
}

/// A choice of fences, times, and so on.
#[derive(Debug, Clone, Copy)]
pub enum Choice {
    Right,
    Wrong,
}

/// What a fold gets right or wrong.
#[derive(Debug, Clone, Copy)]
pub enum Aim {
    Right,
    OtherEpoch,
    TooLate,
    InsideARecord,
    BeyondTheHead,
}

#[derive(Debug, Clone, Copy)]
enum Expect {
    New,
    Current,
    Stale,
}

#[derive(Debug, Clone, Copy)]
enum Incarnation {
    Same,
    Higher,
    Lower,
}

#[derive(Debug, Clone, Copy)]
enum Batch {
    Next,
    Last,
    First,
    Gap,
}

fn choice() -> impl Strategy<Value = Choice> {
    prop_oneof![6 => Just(Choice::Right), 1 => Just(Choice::Wrong)]
}

fn aim() -> impl Strategy<Value = Aim> {
    prop_oneof![
        6 => Just(Aim::Right), 1 => Just(Aim::OtherEpoch), 1 => Just(Aim::TooLate),
        1 => Just(Aim::InsideARecord), 1 => Just(Aim::BeyondTheHead)
    ]
}

/// Whole hours, so that the time that a test takes does not show.
fn lease() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![0, HOUR_MS, 5 * HOUR_MS, 1000 * HOUR_MS, u64::MAX])
}

fn decision() -> impl Strategy<Value = Decision> {
    let expect = prop_oneof![3 => Just(Expect::New), 6 => Just(Expect::Current), 1 => Just(Expect::Stale)];
    let unwritten = prop::option::weighted(0.3, (0..RUNS, 1..3_u64));
    (expect, prop::option::of(0..RUNS), lease(), prop::collection::vec(0..RUNS, 0..2), unwritten).prop_map(
        |(expect, grant, lease_ms, revoke, unwritten)| Decision {
            expect,
            grant,
            lease_ms,
            revoke,
            unwritten,
        },
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let incarnation = prop_oneof![
        8 => Just(Incarnation::Same), 1 => Just(Incarnation::Higher), 1 => Just(Incarnation::Lower)
    ];
    let batch = prop_oneof![
        8 => Just(Batch::Next), 2 => Just(Batch::Last), 1 => Just(Batch::First), 1 => Just(Batch::Gap)
    ];
    (
        0..SESSIONS,
        0..4_u32,
        prop::option::of(0..RUNS),
        prop::option::of((0..RUNS, incarnation, batch)),
        prop::option::weighted(0.3, (0..RUNS, choice())),
        prop::option::of(decision()),
        prop::option::weighted(0.2, choice()),
    )
        .prop_map(|(session, count, run, producer, fence, change, not_after)| Plan {
            session,
            count,
            run,
            producer,
            fence,
            change,
            not_after,
        })
}

/// An append as a run makes it: most of what a store is given, and what an engine may have a shorter way for.
fn run_append() -> impl Strategy<Value = Plan> {
    let batch = prop_oneof![9 => Just(Batch::Next), 1 => Just(Batch::Last), 1 => Just(Batch::Gap)];
    (0..SESSIONS, 1..4_u32, 0..RUNS, batch, choice()).prop_map(|(session, count, run, batch, fence)| Plan {
        session,
        count,
        run: Some(run),
        producer: Some((run, Incarnation::Same, batch)),
        fence: Some((run, fence)),
        change: None,
        not_after: None,
    })
}

/// Any sequence of commands.
pub fn commands() -> impl Strategy<Value = Vec<Command>> {
    let command = prop_oneof![
        8 => plan().prop_map(Command::Write),
        8 => run_append().prop_map(Command::Write),
        2 => (0..SESSIONS, 0..40_u64, prop::sample::select(vec![0, 300, ALL]))
            .prop_map(|(session, after, bytes_max)| Command::Read { session, after, bytes_max }),
        2 => (0..SESSIONS).prop_map(|session| Command::Load { session }),
        1 => Just(Command::Heads),
        3 => (0..SESSIONS, 1..6_usize, aim())
            .prop_map(|(session, records, aim)| Command::Fold { session, records, aim }),
        3 => (0..SESSIONS, 0..RUNS, choice(), lease())
            .prop_map(|(session, run, fence, left_ms)| Command::Renew { session, run, fence, left_ms }),
    ];
    prop::collection::vec(command, 1..60)
}

/// What the store answers to each command, in words that hold for any store.
pub async fn answers<S: Store>(store: &S, commands: &[Command]) -> Vec<String> {
    let mut teller = Teller { keys: (0..SESSIONS).map(|_| fresh()).collect(), ..Teller::default() };
    let mut answers = Vec::new();
    for (n, command) in commands.iter().enumerate() {
        answers.push(match command {
            Command::Write(plan) => teller.write(store, plan, n).await,
            Command::Read { session, after, bytes_max } => {
                teller.read(store, *session, *after, *bytes_max).await
            }
            Command::Load { session } => teller.load(store, *session).await,
            Command::Heads => teller.heads(store).await,
            Command::Fold { session, records, aim } => teller.fold(store, *session, *records, *aim).await,
            Command::Renew { session, run, fence, left_ms } => {
                teller.renew(store, *session, *run, *fence, *left_ms).await
            }
        });
    }
    answers
}

/// Follows what it has been answered, to be right or wrong on purpose, and tells it.
#[derive(Default)]
struct Teller {
    keys: Vec<SessionKey>,
    versions: HashMap<usize, Version>,
    fences: HashMap<(usize, usize), Fence>,
    producers: HashMap<(usize, usize), (u64, u64)>,
    /// Named apart for each session: whether two sessions share an epoch is the engine's business.
    epochs: HashMap<usize, Vec<Epoch>>,
    granted: Vec<Fence>,
    /// The session that the command is about.
    session: usize,
}

fn run(n: usize) -> RunId {
    format!("r{n}").parse().unwrap()
}

fn name<T: PartialEq>(known: &mut Vec<T>, value: T) -> usize {
    known.iter().position(|k| *k == value).unwrap_or_else(|| {
        known.push(value);
        known.len() - 1
    })
}

impl Teller {
    async fn write<S: Store>(&mut self, store: &S, plan: &Plan, n: usize) -> String {
        self.session = plan.session;
        let runs: Vec<RunId> = (0..RUNS).map(run).collect();
        let (text, state) = (entries(&n.to_string(), plan.count), format!("state {n}"));
        // Workers' writes keep none.
        let kept = if n.is_multiple_of(3) { format!("answer {n}") } else { String::new() };
        let numbered = plan.producer.map(|(who, incarnation, batch)| {
            let known = self.producers.get(&(plan.session, who)).copied();
            let (last_incarnation, last_batch) = known.unwrap_or((2, 0));
            let (incarnation, last) = match incarnation {
                Incarnation::Same => (last_incarnation, last_batch),
                Incarnation::Higher => (last_incarnation + 1, 0),
                Incarnation::Lower => (last_incarnation - 1, last_batch),
            };
            let batch = match batch {
                Batch::Next => last + 1,
                Batch::Last => last.max(1),
                Batch::First => 1,
                Batch::Gap => last + 3,
            };
            (format!("run:r{who}"), who, incarnation, batch)
        });
        let revoke: Vec<RunId> =
            plan.change.iter().flat_map(|decision| decision.revoke.iter().map(|n| run(*n))).collect();
        let decided = plan.change.as_ref().map(|decision| {
            let current = self.versions.get(&plan.session).copied().unwrap_or_default();
            let expect = match decision.expect {
                Expect::New => None,
                Expect::Current => Some(current),
                Expect::Stale => Some(Version { n: current.n + 7, ..current }),
            };
            Change {
                grant: decision.grant.map(|n| &runs[n]),
                lease_ms: decision.lease_ms,
                revoke: &revoke,
                unwritten: decision.unwritten.map(|(n, incarnation)| (&runs[n], incarnation)),
                next_due: Some(Millis(9)),
                ..change(expect, &state)
            }
        });
        let write = Write {
            by: BY,
            run: plan.run.map(|n| &runs[n]),
            entries: &text,
            count: plan.count,
            producer: numbered.as_ref().map(|(key, _, incarnation, batch)| Producer {
                key,
                incarnation: *incarnation,
                batch: *batch,
                answer: &kept,
            }),
            fence: plan.fence.map(|(n, choice)| (&runs[n], self.fence(plan.session, n, choice))),
            change: decided,
            not_after: plan.not_after.map(|choice| match choice {
                Choice::Right => Millis(1 << 50),
                Choice::Wrong => Millis(1),
            }),
        };
        let result = store.write(&self.keys[plan.session], write).await;
        if let Ok(written) = &result {
            self.versions.insert(plan.session, written.version);
            if written.duplicate.is_none() {
                if let Some((_, who, incarnation, batch)) = numbered {
                    self.producers.insert((plan.session, who), (incarnation, batch));
                }
                if let (Some(fence), Some(n)) = (written.fence, plan.change.as_ref().and_then(|d| d.grant)) {
                    self.fences.insert((plan.session, n), fence);
                }
            }
        }
        self.written(result)
    }

    fn written(&mut self, result: Result<Written, Error>) -> String {
        match result {
            Ok(w) => {
                let epoch = self.epoch(w.epoch);
                let fence = w.fence.map(|fence| name(&mut self.granted, fence));
                let (version, timed) = (self.version(w.version), w.at > Millis(0));
                format!(
                    "epoch {epoch} to {} timed {timed} {version} fence {fence:?} {} {:?}",
                    w.to, w.folded_to, w.duplicate
                )
            }
            Err(Error::Refused(Refusal::Conflict { current })) => {
                format!("conflict {}", self.version(current))
            }
            Err(e) => format!("{e:?}"),
        }
    }

    fn fence(&self, session: usize, run: usize, choice: Choice) -> Fence {
        let known = self.fences.get(&(session, run)).copied().unwrap_or(Fence(5));
        if matches!(choice, Choice::Right) { known } else { Fence(known.0 + 1) }
    }

    fn epoch(&mut self, epoch: Epoch) -> usize {
        name(self.epochs.entry(self.session).or_default(), epoch)
    }

    fn version(&mut self, version: Version) -> String {
        format!("version {}.{}", self.epoch(version.epoch), version.n)
    }

    async fn read<S: Store>(&mut self, store: &S, session: usize, after: u64, bytes_max: usize) -> String {
        self.session = session;
        let key = &self.keys[session];
        let page = match store.read(key, Seq(after), bytes_max).await {
            Ok(page) => page,
            Err(e) => return format!("{e:?}"),
        };
        let mut told = format!("{} ", self.version(page.head.version));
        for (epoch, since) in page.epochs {
            told += &format!("epoch {} since {since} ", self.epoch(epoch));
        }
        for record in read_all(store, &self.keys[session], Seq(after), bytes_max).await {
            told += &format!("[{} {}-{}", self.epoch(record.epoch), record.from, record.to);
            for block in record.parse_blocks().unwrap() {
                let timed = block.at > Millis(0);
                told += &format!(" {} {:?} {timed} {}", block.by, block.run, block.entries);
            }
            told += "]";
        }
        told
    }

    async fn load<S: Store>(&mut self, store: &S, session: usize) -> String {
        self.session = session;
        let Some(Loaded { state, version, now, head, epochs, fences, leases, producers }) =
            store.load(&self.keys[session]).await.unwrap()
        else {
            return "none".to_owned();
        };
        self.versions.insert(session, version);
        let fences: Vec<_> =
            fences.into_iter().map(|(run, fence)| (run, name(&mut self.granted, fence))).collect();
        let epochs: Vec<_> = epochs.into_iter().map(|(epoch, since)| (self.epoch(epoch), since)).collect();
        let (version, timed) = (self.version(version), now > Millis(0));
        let hours = |ends: Millis| (ends.0.saturating_sub(now.0) + HOUR_MS / 2) / HOUR_MS;
        let leases: Vec<_> = leases.into_iter().map(|(run, ends)| (run, hours(ends))).collect();
        format!(
            "{state} {version} timed {timed} head {head} {epochs:?} {fences:?} leases {leases:?} {producers:?}"
        )
    }

    async fn heads<S: Store>(&mut self, store: &S) -> String {
        let mut keys = self.keys.clone();
        keys.push(fresh());
        let heads = store.heads(&keys).await.unwrap();
        let told = heads.into_iter().enumerate().map(|(session, head)| self.head(session, head));
        told.collect::<Vec<_>>().join(", ")
    }

    async fn fold<S: Store>(&mut self, store: &S, session: usize, count: usize, aim: Aim) -> String {
        self.session = session;
        let key = &self.keys[session];
        let Some(head) = store.heads(std::slice::from_ref(key)).await.unwrap()[0] else {
            let records = [Record { epoch: Epoch(1), from: Seq(1), to: Seq(1), blocks: "[]".into() }];
            return format!("{:?}", store.fold(key, Fold { epoch: Epoch(1), records: &records }).await);
        };
        let mut raw = read_all(store, key, head.folded_to, ALL).await;
        raw.truncate(count);
        // One by one: what a fold merges depends on the times of the blocks, which are the store's own.
        let mut records = fold(&raw, Limits { record_bytes: 0, text_bytes: 99 }).unwrap();
        let mut epoch = head.epoch;
        let many = records.len() > 1;
        match (aim, records.last_mut()) {
            (Aim::OtherEpoch, _) => epoch.0 += 1,
            (Aim::TooLate, _) if many => drop(records.remove(0)),
            (Aim::InsideARecord, Some(last)) if last.to > last.from => last.to.0 -= 1,
            (Aim::BeyondTheHead, Some(last)) => last.to.0 = head.seq.0 + 1,
            _ => {}
        }
        match store.fold(key, Fold { epoch, records: &records }).await {
            Ok(Folded::NewEpoch { epoch }) => format!("moved to {}", self.epoch(epoch)),
            other => format!("{other:?}"),
        }
    }

    async fn renew<S: Store>(
        &mut self,
        store: &S,
        session: usize,
        n: usize,
        choice: Choice,
        left_ms: u64,
    ) -> String {
        let runs = vec![(run(n), self.fence(session, n, choice))];
        let one = Renewal { key: self.keys[session].clone(), runs, left_ms };
        let missing = Renewal { key: fresh(), ..one.clone() };
        let heads = store.renew(&[one.clone(), missing, one]).await.unwrap();
        assert_eq!((heads.len(), heads[0], heads[1]), (3, heads[2], None));
        let told = self.head(session, heads[0]);
        format!("{told} {}", self.load(store, session).await)
    }

    fn head(&mut self, session: usize, head: Option<Head>) -> String {
        self.session = session;
        let Some(head) = head else { return "none".to_owned() };
        let epoch = self.epoch(head.epoch);
        let (seq, folded_to) = (head.seq, head.folded_to);
        format!("{epoch} {} {seq} {folded_to} {} {}", head.since, head.version.n, head.active)
    }
}

/// Runs random commands on both stores and compares every answer.
pub fn compare<A: Store, B: Store>(runtime: &tokio::runtime::Runtime, a: &A, b: &B, cases: u32) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(commands in commands())| {
        let (left, right) = runtime.block_on(async {
            (answers(a, &commands).await, answers(b, &commands).await)
        });
        for (n, (left, right)) in left.iter().zip(&right).enumerate() {
            prop_assert_eq!(left, right, "command {}: {:?}", n, commands[n]);
        }
    });
}

#[test]
fn the_engine_on_disk_answers_like_the_one_in_memory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let disk = crate::embedded::open_with(dir.path(), Durability::Crash);
    compare(&runtime, &disk, &Embedded::memory().unwrap(), 64);
}

#[test]
fn random_commands_reach_every_kind_of_answer() {
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Embedded::memory().unwrap();
    let mut runner = TestRunner::deterministic();
    let all: Vec<String> = (0..200)
        .flat_map(|_| {
            let commands = commands().new_tree(&mut runner).unwrap().current();
            runtime.block_on(answers(&store, &commands))
        })
        .collect();
    for kind in [
        "epoch",
        "conflict",
        "Duplicate",
        "Fenced",
        "Gap",
        "Late",
        "HasWritten",
        "Exists",
        "NoSession",
        "[0 ",
        "leases [(",
        "Ok(Done)",
        "Elsewhere",
        "moved to",
        "NoSuchRecord",
    ] {
        assert!(all.iter().any(|answer| answer.contains(kind)), "no command was answered {kind}");
    }
}
