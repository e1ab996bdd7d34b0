//! Runs that a worker's connection hosts, and the sessions they are in.

use super::Connection;
use super::job::{self, Job, Kept, Write, WriteKind};
use super::parts::Parts;
use super::safety::{Confirmed, Question, Safety, Unsure};
use crate::metrics;
use crate::reader::fault_of;
use crate::tail::STOPPED;
use crate::trace::{About, Traced};
use bytes::Bytes;
use everthread_control::{Assignment, Seat, run_producer};
use everthread_protocol::entry::{self, Token, Writer};
use everthread_protocol::worker_frame::{
    Ack, Append, Decline, PlainAppend, Producer, Settle, WorkerFrame, WorkerServerFrame,
};
use everthread_protocol::{
    AgentName, Code, ControlId, Fault, Fence, Level, RequestId, RunId, Seq, SessionKey, TraceContext,
    Version, scan,
};
use everthread_session::Request;
use everthread_store::{Error, Follower, Following, Interest, Keeping, Refusal, Store, Written};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// What every write of a run names.
pub(super) struct Writing {
    pub key: SessionKey,
    pub run: RunId,
    pub agent: AgentName,
    /// The author of its blocks, as JSON.
    pub by: String,
    /// Who numbers them.
    pub producer: String,
}

/// A run that this connection's worker writes.
pub(super) struct Hosted {
    pub writing: Arc<Writing>,
    pub fence: Fence,
    pub attempt: u32,
    /// From here on the session's state knows that this worker holds it.
    pub since: Seq,
    /// Whether its `work` is sent: before that the worker knows nothing of it, and is told nothing.
    pub is_handed: bool,
    pub seat: Option<Arc<Seat>>,
    /// Its messages and parts; none while they are to be rebuilt.
    pub parts: Option<Parts>,
    /// What the next new batch must be, as far as this connection knows.
    pub next: Producer,
    /// `parts` and `next` come from the log, and nothing was written here since.
    pub is_rebuilt: bool,
    /// Writes that wait for the one before.
    pub queue: VecDeque<Queued>,
    /// Whether a write or a rebuild is under way.
    pub is_busy: bool,
    /// When what is being written was read, if its time is taken.
    pub read: Option<Instant>,
    /// Controls and ended children that the worker was told of.
    pub told_controls: HashSet<ControlId>,
    pub told_children: HashSet<RunId>,
    /// The messages of steers are being read: later ones wait, to be told in their order.
    pub is_reading_steers: bool,
    /// Which of its batches the worker may forget.
    pub safety: Safety,
    pub watch: u32,
}

/// A session that has hosted runs.
pub(super) struct Watched {
    pub key: SessionKey,
    pub version: Version,
    /// A load is under way; another is wanted after it.
    pub is_loading: bool,
    pub is_stale: bool,
    _following: Following,
}

/// Passes changes of a session's state on as marks.
struct Changes {
    wake: Arc<crate::tail::Wake>,
    number: u32,
}

impl Follower for Changes {
    fn record(&self, _record: everthread_protocol::Record) {}

    fn changed(&self) {
        self.wake.mark(self.number);
    }

    fn doubt(&self) {
        self.wake.mark(self.number);
    }
}

impl Hosted {
    /// A run of which nothing is known here but who holds it.
    fn new(kept: Kept, seat: Option<Arc<Seat>>, keeping: Keeping, watch: u32) -> Hosted {
        let writing = Writing {
            by: format!("{{\"kind\":\"agent\",\"id\":\"{}\"}}", kept.agent),
            producer: run_producer(&kept.run),
            key: kept.key,
            run: kept.run,
            agent: kept.agent,
        };
        Hosted {
            writing: Arc::new(writing),
            fence: kept.fence,
            attempt: kept.attempt,
            since: Seq::ZERO,
            is_handed: false,
            seat,
            parts: None,
            next: kept.next,
            is_rebuilt: false,
            queue: VecDeque::new(),
            is_busy: false,
            read: None,
            told_controls: HashSet::new(),
            told_children: HashSet::new(),
            is_reading_steers: false,
            safety: Safety::new(keeping),
            watch,
        }
    }
}

/// A write that waits for its turn, as far as it was read.
pub(super) struct Queued {
    id: RequestId,
    /// Of the frame.
    bytes: usize,
    /// When it was read, if its time is taken.
    read: Option<Instant>,
    /// What its worker says led to it.
    asked: Option<Box<TraceContext>>,
    trace: Option<Box<Traced>>,
    what: Unwritten,
}

enum Unwritten {
    /// Entries of the run.
    Append { fence: Fence, producer: Producer, entries: Bytes, ack: Option<Level> },
    /// A frame that asks for a decision: there are few, and each is read again in its turn.
    Other(Bytes),
}

impl Queued {
    /// Part of the frame in `bytes`.
    pub fn append(append: Append<'_>, bytes: &Bytes) -> (RunId, Queued) {
        let entries = bytes.slice_ref(append.entries.get().as_bytes());
        let read = metrics::is_sampled(append.producer.batch).then(Instant::now);
        let Append { id, run, fence, producer, ack, traceparent, .. } = append;
        let what = Unwritten::Append { fence, producer, entries, ack };
        let asked = traceparent.and_then(|text| text.parse().ok()).map(Box::new);
        (run, Queued { id, bytes: bytes.len(), read, asked, trace: None, what })
    }

    /// The same, read the short way.
    pub fn plain(append: PlainAppend<'_>, bytes: &Bytes) -> (RunId, Queued) {
        let entries = bytes.slice_ref(append.entries);
        let PlainAppend { fence, producer, .. } = append;
        let read = metrics::is_sampled(producer.batch).then(Instant::now);
        let what = Unwritten::Append { fence, producer, entries, ack: None };
        (append.run, Queued { id: append.id, bytes: bytes.len(), read, asked: None, trace: None, what })
    }

    fn is_append(&self) -> bool {
        matches!(self.what, Unwritten::Append { .. })
    }

    /// The frame in `bytes`.
    pub fn other(id: RequestId, bytes: Bytes) -> Queued {
        let (read, asked, trace) = (None, None, None);
        Queued { id, bytes: bytes.len(), read, asked, trace, what: Unwritten::Other(bytes) }
    }
}

impl<S: Store> Connection<S> {
    /// The run, if it is still hosted under that fence: what was begun for an earlier attempt is not for a later one.
    pub(super) fn hosted(&mut self, run: &RunId, fence: Fence) -> Option<&mut Hosted> {
        self.runs.get_mut(run).filter(|hosted| hosted.fence == fence)
    }

    /// A run was claimed for this worker.
    pub(super) fn on_assignment(&mut self, assignment: Assignment) {
        let attempt = assignment.attempt();
        let Some(seat) = self.seats.get(&assignment.run.agent).cloned() else {
            return self.give_back(assignment.key, assignment.id, attempt);
        };
        let hosted = self.runs.get(&assignment.id);
        if hosted
            .is_some_and(|hosted| hosted.writing.key == assignment.key && hosted.fence == assignment.fence)
        {
            // A claim whose answer was lost, and that was found again.
            return seat.release();
        }
        if self.runs.contains_key(&assignment.id) {
            // Two sessions use one run id, and frames name runs only: this worker cannot serve both at once.
            tracing::warn!(key = %assignment.key, run = %assignment.id, "a run id is in use on this connection");
            self.give_back(assignment.key, assignment.id, attempt);
            return seat.release();
        }
        let claimed = Kept {
            key: assignment.key.clone(),
            run: assignment.id.clone(),
            agent: assignment.run.agent.clone(),
            fence: assignment.fence,
            attempt,
            next: Producer { incarnation: u64::from(attempt), batch: 1 },
        };
        let keeping = self.edge.desk.store().keeping(&assignment.key);
        let mut hosted = Hosted::new(claimed, Some(seat), keeping, self.watch(&assignment.key));
        hosted.since = assignment.seq;
        // An earlier attempt may have left something open.
        hosted.parts = (attempt == 1).then(Parts::default);
        self.runs.insert(assignment.id.clone(), hosted);
        self.jobs.push(Box::pin(job::work(self.edge.clone(), assignment)));
    }

    /// A run that the worker held before its connection was lost.
    pub(super) fn host_kept(&mut self, kept: Kept) {
        // It has its place there already.
        let seat = self.seats.get(&kept.agent).cloned();
        let watch = self.watch(&kept.key);
        let run = kept.run.clone();
        let keeping = self.edge.desk.store().keeping(&kept.key);
        let mut hosted = Hosted::new(kept, seat, keeping, watch);
        hosted.is_handed = true;
        self.runs.insert(run, hosted);
        self.wake.mark(watch);
    }

    fn watch(&mut self, key: &SessionKey) -> u32 {
        if let Some((number, _)) = self.watched.iter().find(|(_, watched)| watched.key == *key) {
            return *number;
        }
        self.watches_made += 1;
        let number = self.watches_made;
        let changes = Arc::new(Changes { wake: self.wake.clone(), number });
        let following = self.edge.desk.store().follow(key, Interest::Control, changes);
        self.watched.insert(
            number,
            Watched {
                key: key.clone(),
                version: Version::default(),
                is_loading: false,
                is_stale: false,
                _following: following,
            },
        );
        number
    }

    /// The run is no longer served here. What waited for its turn is refused: every write gets an answer.
    fn drop_run(&mut self, run: &RunId) {
        let Some(hosted) = self.runs.remove(run) else { return };
        for queued in hosted.queue {
            self.queued_bytes -= queued.bytes;
            self.error(Some(queued.id.to_string()), not_held());
        }
        if let Some(seat) = hosted.seat {
            seat.release();
        }
        if !self.runs.values().any(|other| other.watch == hosted.watch) {
            self.watched.remove(&hosted.watch);
        }
    }

    fn give_back(&self, key: SessionKey, run: RunId, attempt: u32) {
        let Some(me) = self.me.clone() else { return };
        let edge = self.edge.clone();
        self.edge.tasks.spawn_until_stopped(async move {
            // Not at once: the only worker there is might be this one again.
            tokio::time::sleep(edge.config.leases.heartbeat).await;
            if !edge.desk.give_back(&key, &run, &me.worker, attempt).await
                && let Err(failure) = edge.desk.worker_died(&key, &run, &me.worker, attempt).await
            {
                tracing::warn!(%key, %run, %failure, "a run that was declined after it began has no outcome");
            }
        });
    }

    pub(super) fn on_decline(&mut self, decline: &Decline) {
        let Some(hosted) = self.runs.get(&decline.run).filter(|hosted| hosted.fence == decline.fence) else {
            return;
        };
        let (key, attempt) = (hosted.writing.key.clone(), hosted.attempt);
        self.drop_run(&decline.run);
        self.give_back(key, decline.run.clone(), attempt);
    }

    /// `append` and the like: written when all earlier ones of the run are.
    pub(super) fn on_write(&mut self, run: &RunId, mut queued: Queued) {
        if let Some(tracer) = self.edge.tracer.get().filter(|_| queued.is_append()) {
            queued.trace = tracer.begin(queued.asked.as_deref());
        }
        let Some(hosted) = self.runs.get_mut(run) else {
            return self.error(Some(queued.id.to_string()), not_held());
        };
        self.queued_bytes += queued.bytes;
        hosted.queue.push_back(queued);
        if !hosted.is_busy {
            self.pump(run);
        }
    }

    /// Begins the next write of a run, if none is under way.
    pub(super) fn pump(&mut self, run: &RunId) {
        loop {
            let Some(hosted) = self.runs.get_mut(run).filter(|hosted| !hosted.is_busy) else { return };
            if hosted.queue.is_empty() {
                return;
            }
            if hosted.parts.is_none() {
                hosted.is_busy = true;
                let key = hosted.writing.key.clone();
                let work = job::rebuild(self.edge.clone(), key, run.clone(), hosted.fence);
                self.jobs.push(Box::pin(work));
                return;
            }
            let Some(mut queued) = hosted.queue.pop_front() else { return };
            self.queued_bytes -= queued.bytes;
            match prepare(hosted, &queued) {
                Ok(mut write) => {
                    write.trace = queued.trace.take();
                    (hosted.is_busy, hosted.read) = (true, queued.read);
                    hosted.safety.sent(queued.bytes);
                    hosted.is_rebuilt = false;
                    self.jobs.push(Box::pin(job::write(self.edge.clone(), write)));
                    return;
                }
                // Another connection may have written what seems to be missing: the log tells.
                Err(fault) if fault.code == Code::Gap && !hosted.is_rebuilt => {
                    hosted.parts = None;
                    self.queued_bytes += queued.bytes;
                    hosted.queue.push_front(queued);
                }
                Err(fault) => {
                    hosted.parts = None;
                    self.edge.metrics.appends.with_label_values(&[fault.code.as_str()]).inc();
                    self.error(Some(queued.id.to_string()), fault);
                }
            }
        }
    }

    pub(super) fn on_rebuilt(&mut self, run: &RunId, fence: Fence, result: Result<(Parts, Producer), Fault>) {
        let Some(hosted) = self.hosted(run, fence) else { return };
        hosted.is_busy = false;
        match result {
            Ok((parts, next)) => {
                hosted.parts = Some(parts);
                hosted.next = next;
                hosted.is_rebuilt = true;
            }
            Err(fault) if fault.code == Code::NoSession => self.fenced(run),
            Err(fault) => {
                // Refuse what waits: it was not written, and the worker sends it again.
                for queued in std::mem::take(&mut hosted.queue) {
                    self.queued_bytes -= queued.bytes;
                    self.error(Some(queued.id.to_string()), fault.clone());
                }
            }
        }
        self.pump(run);
    }

    pub(super) fn on_written(&mut self, done: job::WriteDone) {
        let job::WriteDone { id, writing, fence, producer, is_last, ack, trace, result } = done;
        let run = &writing.run;
        match &result {
            Ok(written) if written.duplicate.is_none() => self.edge.metrics.appended.inc(),
            Ok(_) => self.edge.metrics.appends.with_label_values(&["duplicate"]).inc(),
            Err(fault) => self.edge.metrics.appends.with_label_values(&[fault.code.as_str()]).inc(),
        }
        if let Some((trace, tracer)) = trace.zip(self.edge.tracer.get()) {
            let (key, agent, batch) = (&writing.key, writing.agent.as_str(), producer.batch);
            let about = About { key, run: run.as_str(), agent, batch };
            tracer.acked(&trace, about, result.as_ref().map(|written| written.to));
        }
        let batch_of =
            |written: &Written| written.duplicate.as_ref().map_or(producer.batch, |first| first.batch);
        let (mut safe, mut read) = (None, None);
        if let Some(hosted) = self.hosted(run, fence) {
            hosted.is_busy = false;
            read = hosted.read.take();
            if let Ok(written) = &result {
                let is_sure = ack.is_some_and(|level| level > Level::Accepted);
                let batch = batch_of(written);
                safe = Some(hosted.safety.written(batch, producer.incarnation, written, is_sure));
            }
        }
        match result {
            Ok(written) => {
                let is_repeat = written.duplicate.is_some();
                let batch = batch_of(&written);
                let safe = safe.unwrap_or(batch);
                let (to, version) = (written.to, written.version);
                let ack = Ack { id, run: run.clone(), batch, to, version, safe, ack };
                self.outbox.text(ack.encode(is_repeat));
                self.edge.metrics.acked(read);
                if let Some(hosted) = self.hosted(run, fence) {
                    let next = Producer { incarnation: producer.incarnation, batch: batch + 1 };
                    let is_new = producer == hosted.next && !is_repeat;
                    if !is_new && next != hosted.next {
                        // Another connection has written, too: what is open is not known here.
                        hosted.parts = None;
                    }
                    hosted.next = next;
                    let (watch, is_pressing) = (hosted.watch, hosted.safety.is_pressing());
                    if is_pressing {
                        self.confirm(Some(run));
                    }
                    if self.watched.get(&watch).is_some_and(|watched| watched.version != written.version) {
                        self.wake.mark(watch);
                    }
                }
                if is_last && self.hosted(run, fence).is_some() {
                    self.drop_run(run);
                }
            }
            Err(fault) => {
                let is_lost = matches!(fault.code, Code::Fenced | Code::NoSession);
                self.error(Some(id.to_string()), fault);
                if let Some(hosted) = self.hosted(run, fence) {
                    hosted.parts = None;
                    if is_lost {
                        self.fenced(run);
                    }
                }
            }
        }
        self.pump(run);
    }

    /// Tells workers what has become safe by age, and asks about what can be asked about.
    pub(super) fn on_safety_tick(&mut self) {
        let now = tokio::time::Instant::now();
        for (run, hosted) in &mut self.runs {
            let keeping = self.edge.desk.store().keeping(&hosted.writing.key);
            if let Some(batch) = hosted.safety.tick(keeping, now) {
                self.outbox.text(WorkerServerFrame::Safe { run: run.clone(), batch }.encode());
            }
        }
        self.confirm(None);
    }

    /// Asks the store whether what is written is sure: of one run, or all together.
    fn confirm(&mut self, only: Option<&RunId>) {
        let wanted = self
            .runs
            .iter_mut()
            .filter(|(run, hosted)| only.is_none_or(|only| only == *run) && hosted.safety.wants_confirming());
        let question = |(run, hosted): (&RunId, &mut Hosted)| -> Option<Question> {
            let (batch, written) = hosted.safety.confirm()?;
            let unsure = Unsure { run: run.clone(), fence: hosted.fence, batch, written };
            Some((hosted.writing.key.clone(), unsure))
        };
        let questions: Vec<Question> = wanted.filter_map(question).collect();
        if !questions.is_empty() {
            self.jobs.push(Box::pin(job::confirm(self.edge.clone(), questions)));
        }
    }

    fn on_confirmed(&mut self, all: Vec<Confirmed>) {
        for Confirmed { run, fence, batch, is_sure } in all {
            let Some(hosted) = self.hosted(&run, fence) else { continue };
            if let Some(batch) = hosted.safety.confirmed(batch, is_sure) {
                self.outbox.text(WorkerServerFrame::Safe { run, batch }.encode());
            }
        }
    }

    pub(super) fn fenced(&mut self, run: &RunId) {
        let Some(hosted) = self.runs.get(run) else { return };
        if hosted.is_handed {
            self.outbox.text(WorkerServerFrame::Fenced { run: run.clone() }.encode());
        }
        self.drop_run(run);
    }

    pub(super) fn on_wake(&mut self) -> Result<(), super::End> {
        let mut marked = Vec::new();
        self.wake.take(&mut marked);
        if marked.contains(&STOPPED) {
            self.begin_to_go();
        }
        for number in marked {
            let Some(watched) = self.watched.get_mut(&number) else { continue };
            watched.is_stale = true;
            self.load_watched(number);
        }
        Ok(())
    }

    pub(super) fn load_watched(&mut self, number: u32) {
        let Some(watched) = self.watched.get_mut(&number).filter(|w| w.is_stale && !w.is_loading) else {
            return;
        };
        watched.is_loading = true;
        watched.is_stale = false;
        self.jobs.push(Box::pin(job::look(self.edge.clone(), watched.key.clone(), number)));
    }

    pub(super) fn on_job(&mut self, job: Job) -> Result<(), super::End> {
        match job {
            Job::Greeted(Ok(greeted)) => self.on_greeted(greeted),
            Job::Greeted(Err((id, fault))) => {
                self.error(Some(id.to_string()), fault);
                return Err(super::End::Close(everthread_protocol::error::close::INTERNAL));
            }
            Job::Work((run, fence), Ok(frame)) => {
                if let Some(hosted) = self.hosted(&run, fence) {
                    hosted.is_handed = true;
                    let watch = hosted.watch;
                    self.outbox.text(frame);
                    // What was asked of it meanwhile comes behind it.
                    self.wake.mark(watch);
                }
            }
            Job::Work((run, fence), Err((key, error))) => {
                if error == Error::Refused(Refusal::NoSession) {
                    if self.hosted(&run, fence).is_some() {
                        self.drop_run(&run);
                    }
                    return Ok(());
                }
                let fault = fault_of(&key, &error);
                tracing::warn!(%key, %run, %fault, "a claimed run could not be handed out");
                if let Some(attempt) = self.hosted(&run, fence).map(|hosted| hosted.attempt) {
                    self.drop_run(&run);
                    self.give_back(key, run, attempt);
                }
            }
            Job::Written(done) => self.on_written(done),
            Job::Rebuilt((run, fence), result) => self.on_rebuilt(&run, fence, result),
            Job::Looked(number, result) => self.on_looked(number, result),
            Job::Steers(held, steers) => self.on_steers(&held, steers),
            Job::Confirmed(all) => self.on_confirmed(all),
            Job::Marked => {}
            Job::Renewed(heads) => {
                for (number, version) in heads {
                    if self.watched.get(&number).is_some_and(|watched| Some(watched.version) != version) {
                        self.wake.mark(number);
                    }
                }
            }
        }
        Ok(())
    }
}

fn not_held() -> Fault {
    Fault::new(Code::Fenced, "this connection does not hold the run: name it in hello, or stop working on it")
}

/// Checks a write against the run, and makes it ready for the store.
fn prepare(hosted: &mut Hosted, queued: &Queued) -> Result<Write, Fault> {
    let (fence, producer, kind) = match &queued.what {
        Unwritten::Append { fence, producer, entries, ack } => {
            if *fence != hosted.fence {
                return Err(not_held());
            }
            let count = check_append(hosted, *producer, entries)?;
            (*fence, *producer, WriteKind::Append { entries: entries.clone(), count, ack: *ack })
        }
        Unwritten::Other(bytes) => read_decision(&hosted.writing.run, bytes)?,
    };
    if fence != hosted.fence {
        return Err(not_held());
    }
    check_incarnation(hosted, producer)?;
    Ok(Write { id: queued.id.clone(), writing: hosted.writing.clone(), fence, producer, kind, trace: None })
}

/// One that is below the attempt is none of this fence's: nobody has numbered so, and for the store it may be new where for
/// us it is old, and so not to be checked.
fn check_incarnation(hosted: &Hosted, producer: Producer) -> Result<(), Fault> {
    let (told, attempt) = (producer.incarnation, hosted.attempt);
    if told < u64::from(attempt) {
        let message = format!("the incarnation is {told}, and begins at the run's attempt, {attempt}");
        return Err(Fault::bad_request(message));
    }
    Ok(())
}

fn read_decision(run: &RunId, bytes: &Bytes) -> Result<(Fence, Producer, WriteKind), Fault> {
    let frame = WorkerFrame::decode(bytes)?;
    scan::value(bytes).map_err(|e| Fault::bad_request(e.to_string()))?;
    let run = run.clone();
    Ok(match frame {
        WorkerFrame::End(end) => {
            let request = Request::End { run, outcome: end.outcome, error: end.error, usage: end.usage };
            (end.fence, end.producer, WriteKind::decided(request))
        }
        WorkerFrame::StartChild(child) => {
            let request = Request::StartChild {
                run,
                child: child.child,
                agent: child.agent,
                parts: child.parts,
                params: child.params,
            };
            (child.fence, child.producer, WriteKind::decided(request))
        }
        WorkerFrame::Suspend(suspend) => {
            let request = Request::Suspend { run, approvals: suspend.approvals };
            (suspend.fence, suspend.producer, WriteKind::decided(request))
        }
        WorkerFrame::Settle(settle) => {
            let Settle { control, outcome, reason, .. } = settle;
            let request = Request::Settle { run, control, outcome, reason };
            (settle.fence, settle.producer, WriteKind::decided(request))
        }
        _ => return Err(Fault::bad_request("not a write")),
    })
}

/// One pass over a block. A batch that was written before is not held against the parts again: the store answers it. One
/// that comes too early is not let through: it could not be checked.
fn check_append(hosted: &mut Hosted, producer: Producer, entries: &[u8]) -> Result<u32, Fault> {
    let Producer { incarnation, batch } = producer;
    let is_restart = incarnation > hosted.next.incarnation;
    let expected = if is_restart { 1 } else { hosted.next.batch };
    if incarnation >= hosted.next.incarnation && batch > expected {
        return Err(Error::Refused(Refusal::Gap { expected }).fault());
    }
    let is_new = incarnation >= hosted.next.incarnation && batch == expected;
    // Nearly all are a token that goes on where its part ends.
    if is_new
        && let Some(Token { message, part, offset, bytes }) = entry::token(entries)
        && hosted.parts.as_mut().is_some_and(|parts| parts.append(message, part, offset, bytes))
    {
        return Ok(1);
    }
    let raw = scan::entries(entries).map_err(|e| crate::put::fault_of_scan(&e))?;
    for index in 0..raw.items.len() {
        let parts = hosted.parts.as_mut().filter(|_| is_new);
        // Nearly all are tokens; what is wrong with one is said by the way that all others go.
        if let Some((parts, append)) = parts.zip(entry::part_append(&raw, index))
            && parts.append(&append.message, &append.part, append.offset, append.text.len())
        {
            continue;
        }
        // Whatever its number is: what seems to be a repeat is written if the store has lost the first.
        let entry = entry::check(&raw, index, |writer| writer != Writer::Decided)?;
        if is_new {
            let parts = hosted.parts.get_or_insert_with(Parts::default);
            parts.take(&entry).map_err(|mut fault| {
                fault.message = format!("entry {index}: {}", fault.message).into();
                fault
            })?;
        }
    }
    Ok(u32::try_from(raw.items.len()).unwrap_or(u32::MAX))
}
