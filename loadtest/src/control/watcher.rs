//! A client that follows one session, checks every frame, and, if it is the session's first, asks for what is due.

use super::plan::{Kind, Phase, Plan};
use crate::shared::Start;
use crate::socket::{Socket, Target};
use anyhow::{Context as _, bail, ensure};
use everthread_protocol::control::Mode;
use everthread_protocol::entry::{ControlKind, Target as Whom};
use everthread_protocol::frame::{
    Attach, Attached, ClientFrame, Control, ControlTag, Entries, From, Hello, ServerFrame, Stage,
};
use everthread_protocol::{Epoch, RunId, Seq, SessionId};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long joining may take.
const JOIN_MAX: Duration = Duration::from_secs(60);

/// What the log has told of the session's run.
#[derive(Debug, Default)]
pub struct Seen {
    /// The run, once it is known.
    pub run: Option<RunId>,
    /// Whether the run has written.
    pub has_written: bool,
    /// `run.ended`, with outcomes.
    pub ends: Vec<String>,
    /// `control.settled`, with controls and outcomes.
    pub settled: Vec<(String, String)>,
}

/// One follower of one session.
pub struct Watcher {
    socket: Socket,
    epoch: Epoch,
    seq: Seq,
    seen: Seen,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    run: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    outcome: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    control: Option<Cow<'a, str>>,
}

impl Watcher {
    /// Connects and attaches from the start.
    pub async fn join(target: &Target, session: &SessionId) -> anyhow::Result<Watcher> {
        let joined = async {
            let mut socket = Socket::connect(target, "/v1/connect").await?;
            let (id, subject, kind) = ("1".parse()?, None, None);
            let hello = Hello { id, token: None, client: None, device: None, subject, kind };
            let attach = Attach {
                id: "2".parse()?,
                session: session.clone(),
                from: From::Start,
                presence: false,
                fold_ms: None,
            };
            socket.queue(&ClientFrame::Hello(hello).encode());
            socket.send(&ClientFrame::Attach(attach).encode()).await?;
            let mut this = Watcher { socket, epoch: Epoch(0), seq: Seq::ZERO, seen: Seen::default() };
            loop {
                let bytes = this.socket.next().await?.context("the node hung up")?;
                if is_entries(&bytes) {
                    this.take(&bytes, &mut |_| ())?;
                    continue;
                }
                match serde_json::from_slice(&bytes)? {
                    ServerFrame::Attached(Attached { epoch, .. }) => this.epoch = epoch,
                    ServerFrame::Live { .. } => return anyhow::Ok(this),
                    ServerFrame::Welcome(_) => {}
                    _ => bail!("while joining: {}", String::from_utf8_lossy(&bytes)),
                }
            }
        };
        tokio::time::timeout(JOIN_MAX, joined).await.context("joining took too long")?
    }

    /// Follows until the run has ended.
    pub async fn until_ended(&mut self) -> anyhow::Result<()> {
        self.until(|seen| !seen.ends.is_empty()).await
    }

    /// Follows until a condition holds.
    pub async fn until(&mut self, is_so: impl Fn(&Seen) -> bool) -> anyhow::Result<()> {
        while !is_so(&self.seen) {
            let bytes = self.socket.next().await?.context("the node hung up")?;
            self.on_frame(&bytes, &mut |_| ()).await?;
        }
        Ok(())
    }

    /// What it has seen so far.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Follows, and if it `asks`, steers and cancels as planned, until all is over; what it has seen.
    pub async fn watch(
        mut self,
        plan: Arc<Plan>,
        session: usize,
        asks: bool,
        start: Arc<Start>,
        mut phase: watch::Receiver<Phase>,
        ended: Arc<watch::Sender<usize>>,
    ) -> anyhow::Result<Seen> {
        // Backwards: the last one is due first.
        let mut todo: Vec<Kind> = if asks { plan.asked_of(session) } else { Vec::new() };
        loop {
            let next = start.get().zip(todo.last()).map(|(start, kind)| *start + plan.due(*kind, session));
            let at = next.unwrap_or_else(Instant::now);
            tokio::select! {
                bytes = self.socket.next() => {
                    let bytes = bytes?.context("the node hung up")?;
                    let mut on_event = |event: Event| {
                        let Some(start) = start.get() else { return };
                        match event {
                            Event::Settled(kind) => plan.settled(kind, session, *start),
                            Event::Ended => {
                                plan.settled(plan.cancel_of(session), session, *start);
                                ended.send_modify(|ended| *ended += 1);
                            }
                        }
                    };
                    self.on_frame(&bytes, &mut on_event).await?;
                }
                () = tokio::time::sleep_until(at.into()), if next.is_some() => {
                    let (Some(start), Some(kind)) = (start.get(), todo.pop()) else { continue };
                    plan.sent(kind, session, *start);
                    self.ask(kind, session).await?;
                }
                changed = phase.changed() => {
                    changed.context("the scenario is gone")?;
                    if *phase.borrow_and_update() == Phase::Over {
                        return Ok(self.seen);
                    }
                }
            }
        }
    }

    async fn ask(&mut self, kind: Kind, session: usize) -> anyhow::Result<()> {
        let run = self.seen.run.clone().context("the run is not known")?;
        let text = RawValue::from_string(r#"{"text":"and then?"}"#.to_owned())?;
        let (name, kind, mode, payload) = match kind {
            Kind::Steer => ("s", ControlKind::Steer, Some(Mode::NextStep), Some(&*text)),
            Kind::Cancel | Kind::Storm => ("c", ControlKind::Cancel, None, None),
        };
        let (t, id, target) = (ControlTag::Control, format!("{name}{session}").parse()?, Whom::Run(run));
        let control =
            Control { t, id, attachment: 1, kind, target, mode, payload, expires_ms: None, ack: None };
        self.socket.send(&ClientFrame::Control(control).encode()).await
    }

    async fn on_frame(
        &mut self,
        bytes: &[u8],
        on_event: &mut (dyn FnMut(Event) + Send),
    ) -> anyhow::Result<()> {
        if is_entries(bytes) {
            return self.take(bytes, on_event);
        }
        match serde_json::from_slice(bytes)? {
            ServerFrame::Ping {} => self.socket.send(&ClientFrame::Pong {}.encode()).await?,
            ServerFrame::Receipt(receipt) => {
                if let Stage::Settled { outcome, .. } = receipt.stage {
                    let outcome = serde_json::to_value(outcome)?;
                    ensure!(outcome == "applied", "{} was {outcome}", receipt.control);
                }
            }
            ServerFrame::Live { .. } | ServerFrame::Lag { .. } => {}
            _ => bail!("unexpected: {}", String::from_utf8_lossy(bytes)),
        }
        Ok(())
    }

    /// Applies an `entries` frame.
    fn take(&mut self, bytes: &[u8], on_event: &mut (dyn FnMut(Event) + Send)) -> anyhow::Result<()> {
        let frame = Entries::decode(bytes).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        let place = || format!("frame {}..{} of epoch {} at {}", frame.from, frame.to, frame.epoch, self.seq);
        ensure!(frame.epoch == self.epoch || frame.since > self.seq, "not this log's: {}", place());
        ensure!(frame.to > self.seq && frame.from <= self.seq.next(), "twice or a gap: {}", place());
        for block in &frame.blocks {
            self.seen.has_written |= block.run.is_some();
            for entry in serde_json::from_str::<Vec<Entry<'_>>>(block.entries.get())? {
                let text = |text: Option<Cow<'_, str>>| text.unwrap_or_default().into_owned();
                ensure!(self.seen.ends.is_empty() || block.run.is_none(), "after the end: {}", place());
                match &*entry.kind {
                    "run.started" => self.seen.run = Some(text(entry.run).parse()?),
                    "run.ended" => {
                        self.seen.ends.push(text(entry.outcome));
                        on_event(Event::Ended);
                    }
                    "control.settled" => {
                        let control = text(entry.control);
                        if control.starts_with('s') {
                            on_event(Event::Settled(Kind::Steer));
                        }
                        self.seen.settled.push((control, text(entry.outcome)));
                    }
                    _ => {}
                }
            }
        }
        self.epoch = frame.epoch;
        self.seq = frame.to;
        Ok(())
    }
}

enum Event {
    Settled(Kind),
    Ended,
}

fn is_entries(bytes: &[u8]) -> bool {
    bytes.starts_with(br#"{"t":"entries""#)
}
