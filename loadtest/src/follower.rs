//! A follower: one socket, one attachment, and a check of everything that arrives on it.
//!
//! It follows the client's rule of docs/PROTOCOL.md to the letter and compares the delivered text with the script, byte by
//! byte. Whatever does not fit is an error that ends the scenario: a run that lost or doubled an entry has no figures.

use crate::measure::Measure;
use crate::script::{Script, Start};
use crate::socket::{Socket, Target};
use anyhow::{Context as _, bail, ensure};
use everthread_protocol::frame::{Attach, Attached, ClientFrame, Entries, From, Hello, ServerFrame};
use everthread_protocol::{Block, Epoch, Seq, SessionId};
use serde::Deserialize;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long joining may take.
const JOIN_MAX: Duration = Duration::from_secs(60);

/// A client that has attached and is live.
pub struct Follower {
    socket: Socket,
    epoch: Epoch,
    seq: Seq,
    /// Bytes of the script that have arrived, and how many of them before the open part.
    delivered: usize,
    part_begin: usize,
    /// Blocks that have arrived whole.
    blocks: usize,
    /// What happened besides.
    pub counts: Counts,
}

/// What a follower saw.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// `entries` frames.
    pub frames: u64,
    /// Entries in them, as they stood there.
    pub entries: u64,
    /// Bytes of all messages.
    pub bytes: u64,
    /// How often the node said that it lags.
    pub lags: u64,
}

/// An entry as far as a follower looks at it.
#[derive(Deserialize)]
struct Seen<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    offset: Option<usize>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    outcome: Option<Cow<'a, str>>,
}

impl Follower {
    /// Connects, says hello, attaches from the start, and reads until it is live.
    pub async fn join(target: &Target, session: &SessionId) -> anyhow::Result<Follower> {
        tokio::time::timeout(JOIN_MAX, Self::joined(target, session))
            .await
            .context("joining took too long")?
    }

    async fn joined(target: &Target, session: &SessionId) -> anyhow::Result<Follower> {
        let socket = Socket::connect(target, "/v1/connect").await?;
        let (epoch, seq) = (Epoch(0), Seq::ZERO);
        let counts = Counts::default();
        let mut this = Follower { socket, epoch, seq, delivered: 0, part_begin: 0, blocks: 0, counts };
        let hello =
            Hello { id: "1".parse()?, token: None, client: None, device: None, subject: None, kind: None };
        let attach = Attach {
            id: "2".parse()?,
            session: session.clone(),
            from: From::Start,
            presence: false,
            fold_ms: None,
        };
        this.socket.queue(&ClientFrame::Hello(hello).encode());
        this.socket.send(&ClientFrame::Attach(attach).encode()).await?;
        let nothing = Script::new(0, 0, Duration::ZERO, Duration::ZERO);
        loop {
            let bytes = this.socket.next().await?.context("the node hung up")?;
            if is_entries(&bytes) {
                this.take(&bytes, &nothing, &mut |_| ())?;
                continue;
            }
            match serde_json::from_slice(&bytes)? {
                ServerFrame::Attached(Attached { epoch, .. }) => this.epoch = epoch,
                ServerFrame::Live { .. } => return Ok(this),
                ServerFrame::Welcome(_) => {}
                _ => bail!("while joining: {}", String::from_utf8_lossy(&bytes)),
            }
        }
    }

    /// Follows until the run has ended, checking and measuring.
    pub async fn follow(
        mut self,
        script: Arc<Script>,
        start: Arc<Start>,
        measure: Arc<Measure>,
    ) -> anyhow::Result<Counts> {
        loop {
            let bytes = self.socket.next().await?.context("the node hung up")?;
            let arrived = Instant::now();
            self.counts.bytes += bytes.len() as u64;
            if !is_entries(&bytes) {
                self.on_other(&bytes).await?;
                continue;
            }
            let mut on_block = |block| {
                if let Some(start) = start.get() {
                    measure.delivered(&script, block, *start, arrived);
                }
            };
            if self.take(&bytes, &script, &mut on_block)? {
                ensure!(
                    self.delivered == script.text.len(),
                    "the run ended after {} of {} bytes",
                    self.delivered,
                    script.text.len()
                );
                return Ok(self.counts);
            }
        }
    }

    /// Stays attached and answers pings, until it is dropped.
    pub async fn idle(mut self) -> anyhow::Result<()> {
        loop {
            let bytes = self.socket.next().await?.context("the node hung up")?;
            ensure!(!is_entries(&bytes), "an idle session has an entry");
            self.on_other(&bytes).await?;
        }
    }

    async fn on_other(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match serde_json::from_slice(bytes)? {
            ServerFrame::Ping {} => self.socket.send(&ClientFrame::Pong {}.encode()).await,
            ServerFrame::Lag { .. } => {
                self.counts.lags += 1;
                Ok(())
            }
            ServerFrame::Live { .. } => Ok(()),
            _ => bail!("unexpected: {}", String::from_utf8_lossy(bytes)),
        }
    }

    /// Applies an `entries` frame; true if the run has ended with it.
    fn take(
        &mut self,
        bytes: &[u8],
        script: &Script,
        on_block: &mut dyn FnMut(usize),
    ) -> anyhow::Result<bool> {
        let frame = Entries::decode(bytes).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        let place = || format!("frame {}..{} of epoch {} at {}", frame.from, frame.to, frame.epoch, self.seq);
        ensure!(frame.epoch == self.epoch || frame.since > self.seq, "not this log's: {}", place());
        // A single connection has no reason to get anything twice.
        ensure!(frame.to > self.seq, "twice: {}", place());
        ensure!(frame.from <= self.seq.next(), "gap: {}", place());
        self.counts.frames += 1;
        let mut is_over = false;
        let is_plain =
            frame.blocks.len() == 1 && frame.blocks[0].from.is_none() && frame.blocks[0].spans.is_none();
        for block in &frame.blocks {
            let count = self.take_block(block, frame.from, script, on_block, &mut is_over)?;
            if is_plain {
                let covers = frame.to.0 - frame.from.0 + 1;
                ensure!(count == covers, "frame {}..{} has {count} entries", frame.from, frame.to);
            }
        }
        self.epoch = frame.epoch;
        self.seq = frame.to;
        Ok(is_over)
    }

    fn take_block(
        &mut self,
        block: &Block<'_>,
        from: Seq,
        script: &Script,
        on_block: &mut dyn FnMut(usize),
        is_over: &mut bool,
    ) -> anyhow::Result<u64> {
        let entries: Vec<Seen<'_>> = serde_json::from_str(block.entries.get())?;
        let mut seq = block.from.unwrap_or(from);
        for (index, entry) in entries.iter().enumerate() {
            let last = block.spans.as_ref().and_then(|spans| spans.get(index)).map_or(seq, |span| span.1);
            seq = seq.next();
            if last <= self.seq {
                continue;
            }
            self.counts.entries += 1;
            match entry.kind.as_ref() {
                "part.start" => self.part_begin = self.delivered,
                "part.append" => {
                    let (offset, text) =
                        (entry.offset.context("no offset")?, entry.text.as_deref().context("no text")?);
                    self.append(offset, text, script)?;
                    while script.ends.get(self.blocks).is_some_and(|end| *end <= self.delivered) {
                        on_block(self.blocks);
                        self.blocks += 1;
                    }
                }
                "part.set" => bail!("nobody wrote a part.set"),
                "run.ended" => {
                    ensure!(
                        entry.outcome.as_deref() == Some("completed"),
                        "the run ended as {:?}",
                        entry.outcome
                    );
                    *is_over = true;
                }
                _ => {}
            }
        }
        Ok(entries.len() as u64)
    }

    /// Appends what is new of `text`, which must be what the script says.
    fn append(&mut self, offset: usize, text: &str, script: &Script) -> anyhow::Result<()> {
        let length = self.delivered - self.part_begin;
        ensure!(offset <= length, "an append at {offset} to a part of {length} bytes");
        let new = text.as_bytes().get(length - offset..).unwrap_or_default();
        let expected = script.text.as_bytes().get(self.delivered..self.delivered + new.len());
        ensure!(expected == Some(new), "the text differs from what was sent, at byte {}", self.delivered);
        self.delivered += new.len();
        Ok(())
    }
}

fn is_entries(bytes: &[u8]) -> bool {
    bytes.starts_with(br#"{"t":"entries""#)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    async fn follower() -> Follower {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
        };
        let target = Target { address, host: address.to_string(), token: "t".into() };
        let (socket, ()) = tokio::join!(Socket::connect(&target, "/"), server);
        let counts = Counts::default();
        Follower {
            socket: socket.unwrap(),
            epoch: Epoch(1),
            seq: Seq::ZERO,
            delivered: 0,
            part_begin: 0,
            blocks: 0,
            counts,
        }
    }

    fn frame(from: u64, entries: &str) -> String {
        let count = serde_json::from_str::<Vec<serde_json::Value>>(entries).unwrap().len() as u64;
        let to = from + count - 1;
        format!(
            r#"{{"t":"entries","attachment":1,"epoch":"1","since":1,"from":{from},"to":{to},"blocks":[{{"by":{{}},"at":1,"run":"r","entries":{entries}}}]}}"#
        )
    }

    fn script() -> Script {
        Script::new(3, 3, Duration::from_millis(20), Duration::ZERO)
    }

    #[tokio::test]
    async fn what_was_sent_is_accepted_and_every_block_is_counted_once() {
        let (script, mut follower, mut blocks) = (script(), follower().await, Vec::new());
        let mut seq = 1;
        for block in 0..3 {
            let text = frame(seq, &script.entries(block));
            follower.take(text.as_bytes(), &script, &mut |block| blocks.push(block)).unwrap();
            seq = follower.seq.0 + 1;
        }
        assert_eq!(blocks, [0, 1, 2]);
        assert_eq!(follower.delivered, script.text.len());
    }

    #[tokio::test]
    async fn a_lost_a_doubled_and_a_changed_block_are_each_an_error() {
        let script = script();
        for fault in ["lost", "doubled", "changed"] {
            let mut follower = follower().await;
            let first = frame(1, &script.entries(0));
            follower.take(first.as_bytes(), &script, &mut |_| ()).unwrap();
            let next = follower.seq.0 + 1;
            let bad = match fault {
                "lost" => frame(next + 1, &script.entries(2)),
                "doubled" => first,
                _ => frame(next, &script.entries(2)),
            };
            assert!(follower.take(bad.as_bytes(), &script, &mut |_| ()).is_err(), "{fault}");
        }
    }
}
