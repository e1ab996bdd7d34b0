//! A run from its beginning to its verdict: start, load, break by the plan, mend, let it come to rest, read, check.

use crate::asker::{self, Pace, Shared};
use crate::check::{Promise, Rule, Verdict, check};
use crate::client::{Client, Options};
use crate::history::{self, Event, Recorder, What, now};
use crate::log::Log;
use crate::schedule::{Planned, plan};
use crate::world::{PATIENCE, TOKEN, World};
use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Until all runs have ended, once nothing new is asked for: longer than any deadline of a control.
const REST_MAX: Duration = Duration::from_secs(180);
/// A client's connection that is silent for longer is given up.
const SILENCE_MAX: Duration = Duration::from_secs(6);

/// What is driven.
#[derive(Debug, Clone)]
pub struct Load {
    /// Sessions.
    pub sessions: usize,
    /// Clients, spread over the sessions.
    pub clients: usize,
    /// How much is written.
    pub pace: Pace,
    /// Names of the kinds of faults; all if there are none.
    pub only: Vec<String>,
    /// Decides everything that is chosen.
    pub seed: u64,
    /// How long things are broken.
    pub length: Duration,
}

/// What came of a run.
pub struct Outcome {
    /// What the checker says.
    pub verdict: Verdict,
    /// The plan.
    pub planned: Vec<Planned>,
    /// Everything that was recorded.
    pub events: Vec<Event>,
}

/// Tasks that ask, and those that follow.
struct Tasks {
    /// Who puts things, until nothing new is to be asked for.
    putting: JoinSet<()>,
    /// Who presses buttons, until all runs have ended.
    asking: JoinSet<()>,
    following: JoinSet<()>,
    ends: watch::Sender<Option<BTreeMap<String, u64>>>,
    shared: Arc<Shared>,
    sessions: Vec<String>,
}

/// Runs all of it. Histories and logs of processes stay in `dir`.
pub async fn run(world: &mut World, load: &Load, dir: &Path, say: &impl Fn(&str)) -> anyhow::Result<Outcome> {
    let recorder = Recorder::buffered(&dir.join("history"))?;
    let mut tasks = begin(world, load, &recorder).await?;
    let mut kinds = world.faults();
    kinds.retain(|kind| load.only.is_empty() || load.only.contains(&kind.to_string().replace(' ', "-")));
    ensure!(!kinds.is_empty(), "no such faults here: {}", load.only.join(", "));
    let planned = plan(load.seed, load.length, &kinds);
    for one in &planned {
        say(&one.to_string());
    }
    break_things(world, &planned, load.length, &recorder, say).await?;
    say("mending, and waiting until all is at rest");
    world.mend().await?;
    tasks.shared.stopping.cancel();
    // What they put last may ask for runs. Who is never answered is found by the checker.
    if !all_end(&mut tasks.putting).await? {
        say("NOT AT REST: some who put things never get their answers");
    }
    let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?;
    let rested = rest(&http, world, &tasks.sessions).await;
    if let Err(error) = &rested {
        say(&format!("NOT AT REST: {error:#}"));
    }
    tasks.shared.giving_up.cancel();
    if !all_end(&mut tasks.asking).await? {
        bail!("some who ask never end");
    }
    let logs = read_all(&http, world, &tasks.sessions, dir).await?;
    let ends = logs.iter().map(|(session, told)| (session.clone(), told[0].head)).collect();
    tasks.ends.send_replace(Some(ends));
    // Those that never get there are found by the checker: they do not say what they hold.
    if !all_end(&mut tasks.following).await? {
        say(&format!("{} clients have not arrived", tasks.following.len()));
    }
    tasks.following.shutdown().await;
    recorder.finish()?;
    let mut events = history::read(&dir.join("history"))?;
    for path in world.histories() {
        if path.exists() {
            events.extend(history::read(&path)?);
        }
    }
    let mut verdict = check(&events, &logs, world.store.promise());
    if let Err(error) = rested {
        verdict.found(Rule::NotAtRest, "all", "driver", format!("{error:#}"));
    }
    Ok(Outcome { verdict, planned, events })
}

/// The checker once more, over what a run has left in `dir`: its histories, and its exports as the first node told them.
pub fn again(dir: &Path, promise: Promise) -> anyhow::Result<Outcome> {
    let (mut events, mut logs) = (history::read(&dir.join("history"))?, BTreeMap::new());
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with("history-") {
            events.extend(history::read(&path)?);
        } else if let Some(session) = name.strip_prefix("export-") {
            logs.insert(session.to_owned(), vec![Log::parse(&std::fs::read_to_string(&path)?)?]);
        }
    }
    Ok(Outcome { verdict: check(&events, &logs, promise), planned: Vec::new(), events })
}

/// Waits until all of them have ended; false if some never do. One that panics is a fault of this program.
async fn all_end(tasks: &mut JoinSet<()>) -> anyhow::Result<bool> {
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("somebody who takes part has failed")?;
        }
        Ok(())
    };
    match timeout(PATIENCE, all).await {
        Ok(ended) => ended.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Makes the sessions and starts everybody.
async fn begin(world: &World, load: &Load, recorder: &Recorder) -> anyhow::Result<Tasks> {
    let entrances = world.entrances();
    let shared = Shared::new(entrances.clone(), TOKEN, recorder.clone(), load.pace)?;
    let sessions: Vec<String> = (0..load.sessions).map(|number| format!("s{number}")).collect();
    let (ends, seen) = watch::channel(None);
    let (mut putting, mut asking, mut following) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for (number, session) in sessions.iter().enumerate() {
        shared.make(session, crate::worker::WRITER).await?;
        let seed = load.seed.wrapping_mul(1_000).wrapping_add(number as u64 * 3);
        putting.spawn(asker::ask_for_runs(shared.clone(), session.clone(), seed));
        putting.spawn(asker::leave_marks(shared.clone(), session.clone(), seed + 1));
        asking.spawn(asker::press_buttons(shared.clone(), session.clone(), seed + 2));
    }
    for number in 0..load.clients {
        let options = Options {
            name: format!("client-{number}"),
            urls: entrances.clone(),
            token: TOKEN.to_owned(),
            session: sessions[number % sessions.len()].clone(),
            silence_max: SILENCE_MAX,
            // One in three is a phone: it comes and goes.
            leaves_after: if number % 3 == 0 { 300 } else { 0 },
            seed: load.seed.wrapping_mul(77_777).wrapping_add(number as u64),
        };
        recorder.note(&options.name, What::Follows { session: options.session.clone() });
        following.spawn(Client::new(options, recorder.clone(), seen.clone()).run());
    }
    Ok(Tasks { putting, asking, following, ends, shared, sessions })
}

/// Carries the plan out.
async fn break_things(
    world: &mut World,
    planned: &[Planned],
    length: Duration,
    recorder: &Recorder,
    say: &impl Fn(&str),
) -> anyhow::Result<()> {
    let began = Instant::now();
    let note = |one: &Planned, target: &str, phase: &str| {
        let (kind, target, phase) = (one.kind.to_string(), target.to_owned(), phase.to_owned());
        What::Fault { number: one.number, kind, target, phase }
    };
    let mut moments: Vec<(Duration, bool, &Planned)> =
        planned.iter().flat_map(|one| [(one.at, true, one), (one.at + one.lasts, false, one)]).collect();
    moments.sort_by_key(|(at, is_begin, one)| (*at, !is_begin, one.number));
    // What takes long, such as waiting for replicas that must be back before the next fault, moves the rest of the plan.
    let mut late = Duration::ZERO;
    for (at, is_begin, one) in moments {
        let moment = began + at + late;
        tokio::time::sleep_until(moment).await;
        if is_begin {
            // What it is done to is known only after it was done, and that may take a while.
            let prepared = world.store.prepare(one).await;
            let before = now();
            let begun = match prepared {
                Ok(()) => world.begin(one).await,
                Err(error) => Err(error),
            };
            match begun {
                Ok(target) => recorder.note_at(before, "driver", note(one, &target, "begin")),
                // Two faults may want the same process, which one of them has killed already.
                Err(error) => {
                    say(&format!("{one}: not done: {error:#}"));
                    recorder.note("driver", note(one, "", &format!("not done: {error:#}")));
                }
            }
        } else {
            // The others go on: what stays broken is found in the end, when all must be mended.
            let phase = match world.end(one).await {
                Ok(()) => "end".to_owned(),
                Err(error) => format!("not mended: {error:#}"),
            };
            if phase != "end" {
                say(&format!("{one}: {phase}"));
            }
            recorder.note("driver", note(one, "", &phase));
        }
        late += moment.elapsed();
    }
    tokio::time::sleep_until(began + length + late).await;
    Ok(())
}

/// Waits until no run is open in any session, as the first node tells it.
async fn rest(http: &reqwest::Client, world: &World, sessions: &[String]) -> anyhow::Result<()> {
    let began = Instant::now();
    for session in sessions {
        loop {
            let state = get(http, &world.nodes()[0], &format!("/v1/sessions/{session}/state")).await;
            let is_over = state.as_ref().is_ok_and(|text| {
                let state: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
                let none = |list: &str, what: fn(&serde_json::Value) -> bool| {
                    state[list].as_array().is_some_and(|all| all.iter().all(what))
                };
                none("runs", |run| run["status"] == "ended") && none("controls", |c| c["outcome"].is_string())
            });
            if is_over {
                break;
            }
            if began.elapsed() > REST_MAX {
                bail!("{session} is never at rest: {state:?}");
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

async fn get(http: &reqwest::Client, node: &str, path: &str) -> anyhow::Result<String> {
    let answer = http.get(format!("{node}{path}")).bearer_auth(TOKEN).send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    if !status.is_success() {
        bail!("{path}: {status} {text}");
    }
    Ok(text)
}

/// Every session as each node tells it; as the first one does it stays in `dir`, for whoever looks into a finding.
async fn read_all(
    http: &reqwest::Client,
    world: &World,
    sessions: &[String],
    dir: &Path,
) -> anyhow::Result<BTreeMap<String, Vec<Log>>> {
    let mut logs = BTreeMap::new();
    for session in sessions {
        let mut told = Vec::new();
        for node in world.nodes() {
            let began = Instant::now();
            let log = loop {
                let text = get(http, node, &format!("/v1/sessions/{session}/export")).await;
                let log = text.and_then(|text| {
                    if told.is_empty() {
                        std::fs::write(dir.join(format!("export-{session}")), &text)?;
                    }
                    Log::parse(&text)
                });
                match log {
                    Ok(log) => break log,
                    Err(error) if began.elapsed() > PATIENCE => {
                        return Err(error.context(format!("{session} cannot be read from {node}")));
                    }
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
            };
            told.push(log);
        }
        logs.insert(session.clone(), told);
    }
    Ok(logs)
}
