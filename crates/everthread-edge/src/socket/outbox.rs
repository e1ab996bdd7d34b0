//! Outbound frames: what the socket has not taken yet.

use bytes::{Buf as _, Bytes};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::Instant;

/// Pieces handed to one vectored write; three per frame.
const SLICES_MAX: usize = 96;

/// The writing half of a socket, with what waits for it.
pub struct Outbox {
    write: OwnedWriteHalf,
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// When the socket last took something, or was given something while it was idle.
    progress: Instant,
}

impl Outbox {
    pub(super) fn new(write: OwnedWriteHalf) -> Self {
        Self { write, pieces: VecDeque::new(), bytes: 0, progress: Instant::now() }
    }

    /// Whether the socket has taken everything.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the socket last took something.
    pub fn progress(&self) -> Instant {
        self.progress
    }

    /// Queues a text frame.
    pub fn text(&mut self, text: String) {
        self.frame(0x81, [Bytes::from(text)]);
    }

    /// Queues an `entries` frame: the attachment's prefix and the suffix that all followers share.
    pub fn entries(&mut self, prefix: &Bytes, suffix: Bytes) {
        self.frame(0x81, [prefix.clone(), suffix]);
    }

    /// Queues the answer to a ping.
    pub fn pong(&mut self, payload: Bytes) {
        self.frame(0x8a, [payload]);
    }

    /// Queues a close frame.
    pub fn close(&mut self, code: u16) {
        self.frame(0x88, [Bytes::copy_from_slice(&code.to_be_bytes())]);
    }

    fn frame<const N: usize>(&mut self, first: u8, payload: [Bytes; N]) {
        if self.is_empty() {
            self.progress = Instant::now();
        }
        let len: usize = payload.iter().map(Bytes::len).sum();
        self.push(header(first, len));
        for piece in payload {
            self.push(piece);
        }
    }

    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Ready when the socket may take something. Cancel safe.
    pub async fn writable(&self) -> io::Result<()> {
        self.write.writable().await
    }

    /// Writes as much as the socket takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.pieces.len().min(SLICES_MAX);
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece);
            }
            match self.write.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.pieces.capacity() > SLICES_MAX {
            self.pieces = VecDeque::new();
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        self.progress = Instant::now();
        self.bytes -= written;
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > written {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}

/// The header of an unmasked frame.
fn header(first: u8, len: usize) -> Bytes {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ ..=125), _) => Bytes::copy_from_slice(&[first, short]),
        (_, Ok(long)) => {
            let [a, b] = long.to_be_bytes();
            Bytes::copy_from_slice(&[first, 126, a, b])
        }
        _ => {
            let mut out = [first, 127, 0, 0, 0, 0, 0, 0, 0, 0];
            out[2..].copy_from_slice(&(len as u64).to_be_bytes());
            Bytes::copy_from_slice(&out)
        }
    }
}
