//! A client's connection with one or many attachments, each checked by a [`Track`]; it joins, follows, is slow, goes away and
//! comes back as planned.

use crate::corpus::Random;
use crate::meter::{Kind, micros};
use crate::shared::{Joined, Local, Phase};
use crate::socket::{Reader, Socket, Writer};
use crate::track::{Fault, Track};
use crate::wire;
use anyhow::{Context as _, bail};
use everthread_protocol::SessionId;
use everthread_protocol::frame::{Attach, Attached, ClientFrame, From, Hello, ServerFrame};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant as At;

/// How long joining may take.
const JOIN_MAX: Duration = Duration::from_secs(120);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(200);
/// How often a slow client reads.
const SLOW_READ: Duration = Duration::from_millis(100);
/// What the kernel may hold for one.
const SLOW_RECEIVE_BYTES: u32 = 4 * 1024;

/// Where a client begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// At the first entry.
    Start,
    /// With the last messages.
    Recent(usize),
}

/// What one connection does.
#[derive(Debug, Clone)]
pub struct LinkPlan {
    /// Which node, modulo how many there are.
    pub target: usize,
    /// Sessions that it attaches to.
    pub sessions: Vec<usize>,
    /// Where it begins.
    pub begin: Begin,
    /// Bytes per second that it reads, if it is slow.
    pub slow: Option<u32>,
    /// What is written within so long is to come as one frame.
    pub fold_ms: Option<u64>,
    /// When it joins, after the start; none: before it.
    pub join_at: Option<Duration>,
    /// Leaves once it is live.
    pub leaves: bool,
    /// When it loses its connection, after the start, in order.
    pub drops: Vec<Duration>,
}

impl LinkPlan {
    /// Follows some sessions from before the start to the end.
    pub fn follow(target: usize, sessions: Vec<usize>) -> LinkPlan {
        let (begin, slow, fold_ms, join_at) = (Begin::Start, None, None, None);
        let (leaves, drops) = (false, Vec::new());
        LinkPlan { target, sessions, begin, slow, fold_ms, join_at, leaves, drops }
    }
}

struct Attached1 {
    track: Track,
    session: usize,
    is_live: bool,
    /// Something was wrong with it: it is not looked at any more.
    is_broken: bool,
    asked: Instant,
}

/// A connection and what it follows.
pub struct Link {
    local: Rc<Local>,
    plan: LinkPlan,
    halves: Option<(Reader, Writer)>,
    attached: Vec<Attached1>,
    /// Which of them has which number.
    by_number: HashMap<u32, usize>,
    bytes: u64,
    /// Joining before the start is nobody's figure.
    is_measured: bool,
    random: Random,
}

impl Link {
    /// Not connected yet.
    pub fn new(local: Rc<Local>, plan: LinkPlan, seed: u64) -> Link {
        let now = Instant::now();
        let attach = |session: &usize| Attached1 {
            track: Track::new(local.shared.sessions[*session].script.clone()),
            session: *session,
            is_live: false,
            is_broken: false,
            asked: now,
        };
        let attached = plan.sessions.iter().map(attach).collect();
        let by_number = HashMap::new();
        Link {
            local,
            plan,
            halves: None,
            attached,
            by_number,
            bytes: 0,
            is_measured: false,
            random: Random(seed),
        }
    }

    /// Does what is planned, until everything is over.
    /// `permit` is given back once it has joined.
    pub async fn run(mut self, permit: Option<OwnedSemaphorePermit>) -> anyhow::Result<()> {
        let shared = self.local.shared.clone();
        let mut phase = shared.phase.subscribe();
        let mut due = Instant::now();
        if let Some(join_at) = self.plan.join_at {
            let _phase = phase.wait_for(|phase| *phase >= Phase::Begun).await?;
            due = *shared.start.get().context("no start")? + join_at;
            tokio::time::sleep_until(due.into()).await;
        }
        self.join(due, self.plan.join_at.is_some()).await?;
        drop(permit);
        if self.plan.leaves {
            self.left();
            return Ok(());
        }
        shared.count(&shared.joined);
        tokio::select! {
            biased;
            stopped = self.follow() => { stopped?; bail!("the node hung up on a follower") }
            begun = phase.wait_for(|phase| *phase >= Phase::Begun) => { let _phase = begun?; }
        }
        let start = *shared.start.get().context("no start")?;
        for at in std::mem::take(&mut self.plan.drops) {
            let due = start + at;
            if !self.follow_until(Some(due), &mut phase).await? {
                break;
            }
            self.halves = None;
            self.local.window.borrow_mut().counts.reconnects += 1;
            self.join(due, true).await?;
        }
        if *phase.borrow() < Phase::Over {
            self.follow_until(None, &mut phase).await?;
        }
        self.settle(true);
        Ok(())
    }

    /// Follows until an instant (true) or until everything is over.
    async fn follow_until(
        &mut self,
        until: Option<Instant>,
        phase: &mut tokio::sync::watch::Receiver<Phase>,
    ) -> anyhow::Result<bool> {
        let at = until.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            stopped = self.follow() => { stopped?; bail!("the node hung up on a follower") }
            () = tokio::time::sleep_until(at.into()), if until.is_some() => Ok(true),
            over = phase.wait_for(|phase| *phase == Phase::Over) => { let _over = over?; Ok(false) }
        }
    }

    /// Reads until the node closes.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let phase = self.local.shared.phase.subscribe();
        loop {
            let mut at_once = usize::MAX;
            if let Some(slow) = self.plan.slow.filter(|_| *phase.borrow() < Phase::Drain) {
                tokio::time::sleep(SLOW_READ).await;
                at_once = usize::try_from(slow / 10)?.max(1);
            }
            if self.pump(at_once).await?.is_none() {
                return Ok(());
            }
        }
    }

    /// One read, and what came of it. Cancel safe.
    async fn pump(&mut self, bytes_max: usize) -> anyhow::Result<Option<usize>> {
        let Link { local, halves, attached, by_number, plan, bytes, is_measured, .. } = self;
        let (reader, writer) = halves.as_mut().context("not connected")?;
        let mut seen = Seen {
            local,
            attached,
            by_number,
            is_slow: plan.slow.is_some(),
            leaves: plan.leaves,
            is_measured: *is_measured,
            pongs: 0,
            again: None,
        };
        let mut arrived = None;
        let mut on_frame = |frame: &[u8]| {
            let arrived = *arrived.get_or_insert_with(Instant::now);
            seen.frame(frame, arrived)
        };
        let read = reader.pump(&local.scratch, bytes_max, &mut on_frame).await?;
        let (pongs, again) = (seen.pongs, seen.again.take());
        *bytes += read.unwrap_or(0) as u64;
        local.window.borrow_mut().counts.bytes += read.unwrap_or(0) as u64;
        (0..pongs).for_each(|_| writer.queue(br#"{"t":"pong"}"#));
        if let Some(index) = again {
            local.shared.retries.fetch_add(1, Ordering::Relaxed);
            let pause = RETRY + Duration::from_millis(self.random.below(200));
            tokio::time::sleep(pause).await;
            self.attach(index)?;
        } else if pongs > 0 {
            writer.flush()?;
        }
        Ok(read)
    }

    /// Connects and attaches, and reads until everything is live: for the first time, or again from where it stands.
    async fn join(&mut self, due: Instant, is_measured: bool) -> anyhow::Result<()> {
        let begun = At::now();
        self.is_measured = is_measured;
        loop {
            let tried = tokio::time::timeout_at(begun + JOIN_MAX, self.joined(due)).await;
            match tried.context("joining took too long")? {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > JOIN_MAX / 2 => return Err(error),
                // Refused, or hung up on: again, as clients do.
                Err(error) if self.attached.iter().all(|one| !one.is_broken) => {
                    self.local.shared.retries.fetch_add(1, Ordering::Relaxed);
                    drop(error);
                    tokio::time::sleep(RETRY + Duration::from_millis(self.random.below(300))).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn joined(&mut self, due: Instant) -> anyhow::Result<()> {
        let shared = self.local.shared.clone();
        let target = &shared.targets[self.plan.target % shared.targets.len()];
        let receive = self.plan.slow.map(|_| SLOW_RECEIVE_BYTES);
        let socket = Socket::connect_with(target, "/v1/connect", receive).await.context(
            "a follower cannot join (if files are the limit: raise `ulimit -n` here and for the node)",
        )?;
        self.record(Kind::Join, due);
        self.halves = Some(socket.split());
        self.by_number.clear();
        self.bytes = 0;
        let hello =
            Hello { id: "1".parse()?, token: None, client: None, device: None, subject: None, kind: None };
        self.queue(&ClientFrame::Hello(hello))?;
        for index in 0..self.attached.len() {
            self.attached[index].is_live = false;
            self.attach(index)?;
        }
        while self.attached.iter().any(|one| !one.is_live && !one.is_broken) {
            self.pump(usize::MAX).await?.context("the node hung up while a follower joined")?;
        }
        self.record(Kind::Live, due);
        Ok(())
    }

    fn record(&self, kind: Kind, due: Instant) {
        if self.is_measured {
            self.local.window.borrow_mut().record(kind, micros(due.elapsed()));
        }
    }

    fn queue(&mut self, frame: &ClientFrame<'_>) -> anyhow::Result<()> {
        let (_, writer) = self.halves.as_mut().context("not connected")?;
        writer.queue(frame.encode().as_bytes());
        writer.flush()?;
        Ok(())
    }

    fn attach(&mut self, index: usize) -> anyhow::Result<()> {
        let one = &mut self.attached[index];
        one.asked = Instant::now();
        let from = match (one.track.cursor(), self.plan.begin) {
            (Some(cursor), _) => From::Cursor(cursor),
            (None, Begin::Start) => From::Start,
            (None, Begin::Recent(messages)) => From::Recent(messages),
        };
        let session: SessionId = self.local.shared.sessions[one.session].name.clone();
        let id = format!("a{index}").parse()?;
        let fold_ms = self.plan.fold_ms;
        self.queue(&ClientFrame::Attach(Attach { id, session, from, presence: false, fold_ms }))
    }

    /// It is live and goes: notes what it needed. If everything has been said, it must have everything.
    fn left(&mut self) {
        let shared = &self.local.shared;
        let text_bytes =
            self.attached.iter().map(|one| one.track.position() - one.track.began_at()).sum::<u64>();
        let joined = Joined { bytes: self.bytes, text_bytes };
        shared.joins.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(joined);
        let is_drained = *shared.phase.borrow() >= Phase::Drain;
        self.settle(is_drained);
        shared.count(&shared.left);
    }

    /// Says what it has got, and should have.
    fn settle(&self, is_end: bool) {
        for one in &self.attached {
            self.local.shared.verify(|verified| {
                verified.followers += 1;
                let have = one.track.tokens();
                verified.tokens_delivered += have;
                verified.tokens_expected += if is_end { one.track.script().tokens } else { have };
                if is_end && !one.is_broken && !one.track.is_over() && one.track.script().tokens > 0 {
                    verified.unfinished += 1;
                    let (name, of) =
                        (&self.local.shared.sessions[one.session].name, one.track.script().tokens);
                    verified.problem(format!("unfinished: a follower of {name} has {have} of {of} tokens"));
                }
            });
        }
    }
}

/// The number of any frame's attachment.
#[derive(serde::Deserialize)]
struct Numbered {
    attachment: u32,
}

/// What a read is applied to.
struct Seen<'a> {
    local: &'a Local,
    attached: &'a mut [Attached1],
    by_number: &'a mut HashMap<u32, usize>,
    is_slow: bool,
    leaves: bool,
    is_measured: bool,
    pongs: usize,
    /// An attachment that was refused for now.
    again: Option<usize>,
}

impl Seen<'_> {
    fn frame(&mut self, frame: &[u8], arrived: Instant) -> anyhow::Result<()> {
        let Some((number, rest)) = wire::entries(frame) else { return self.other(frame) };
        let index = *self.by_number.get(&number).context("entries for an attachment that was not made")?;
        let one = &mut self.attached[index];
        if one.is_broken {
            return Ok(());
        }
        self.local.window.borrow_mut().counts.frames += 1;
        match one.track.take(frame, rest) {
            Ok(tokens) => self.taken(index, tokens, arrived),
            Err(fault) => self.fault(index, &fault),
        }
        Ok(())
    }

    fn taken(&mut self, index: usize, tokens: Range<u64>, arrived: Instant) {
        let (shared, one) = (&self.local.shared, &self.attached[index]);
        let session = &shared.sessions[one.session];
        // What a joiner catches up with was due before: it is no delivery whose time counts.
        if one.is_live && !tokens.is_empty() {
            let Some(arrived) = shared.micros(arrived) else { return };
            let mut window = self.local.window.borrow_mut();
            let count = tokens.end - tokens.start;
            if !self.is_slow {
                window.counts.deliveries += count;
                shared.board.deliveries.fetch_add(count, Ordering::Relaxed);
            }
            for token in tokens {
                let due = session.script.due_us(token);
                if due < shared.warmup_us {
                    continue;
                }
                if self.is_slow {
                    window.record(Kind::DeliverySlow, arrived.saturating_sub(due));
                    continue;
                }
                window.record(Kind::Delivery, arrived.saturating_sub(due));
                // If that is forgotten the token was late, and leaving it out would flatter.
                let handed = session.handed(token).unwrap_or(due);
                window.record(Kind::DeliveryFromSocket, arrived.saturating_sub(handed));
            }
        }
        if one.track.is_over() {
            if one.track.began_at() == 0 && one.track.hash() != session.hash() {
                let fault = Fault::Changed("its text has another hash than what was sent".to_owned());
                return self.fault(index, &fault);
            }
            if !self.leaves {
                shared.count(&shared.finished);
            }
        }
    }

    fn fault(&mut self, index: usize, fault: &Fault) {
        let one = &mut self.attached[index];
        one.is_broken = true;
        let shared = &self.local.shared;
        let who = format!("a follower of {}", shared.sessions[one.session].name);
        shared.verify(|verified| verified.fault(&who, fault));
        shared.count(&shared.finished);
    }

    fn other(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        if frame.starts_with(br#"{"t":"snapshot""#) {
            let snapshot: Numbered = serde_json::from_slice(frame)?;
            let index = *self.by_number.get(&snapshot.attachment).context("a snapshot, but not attached")?;
            if let Err(fault) = self.attached[index].track.snapshot(frame) {
                self.fault(index, &fault);
            }
            return Ok(());
        }
        match serde_json::from_slice(frame)? {
            ServerFrame::Ping {} => self.pongs += 1,
            ServerFrame::Lag { .. } => self.local.window.borrow_mut().counts.lags += 1,
            ServerFrame::Live { attachment, .. } => {
                let index = self.by_number.get(&attachment).context("live, but not attached")?;
                let one = &mut self.attached[*index];
                if !one.is_live {
                    one.is_live = true;
                    if self.is_measured {
                        self.local.window.borrow_mut().record(Kind::Attach, micros(one.asked.elapsed()));
                    }
                }
            }
            ServerFrame::Attached(Attached { id, attachment, epoch, .. }) => {
                let index = id.as_str().strip_prefix('a').and_then(|index| index.parse().ok());
                let index: usize = index.context("attached to what nobody asked for")?;
                self.attached.get_mut(index).context("attached to what is not there")?.track.attached(epoch);
                self.by_number.insert(attachment, index);
            }
            ServerFrame::Reset { attachment, .. } => {
                let index = *self.by_number.get(&attachment).context("reset, but not attached")?;
                self.fault(index, &Fault::Lost("the node does not take the cursor: reset".to_owned()));
            }
            ServerFrame::Error(error) if error.error.retryable && self.again.is_none() => {
                let index = error.id.as_ref().and_then(|id| id.strip_prefix('a')?.parse().ok());
                self.again = Some(index.context("an error that is nobody's")?);
            }
            ServerFrame::Welcome(_) => {}
            _ => bail!("unexpected: {}", String::from_utf8_lossy(frame)),
        }
        Ok(())
    }
}
