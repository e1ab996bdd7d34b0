//! Outbound frames: what the socket has not taken yet.
//!
//! Small frames are copied into one buffer, which is one plain write and costs less than a vectored write of their pieces;
//! only large ones are shared with all others who get them.

use bytes::{Buf as _, Bytes};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::Instant;

/// Pieces handed to one vectored write.
const SLICES_MAX: usize = 64;
/// A larger payload is shared, not copied. Tokens are far below, folded pages far above; the number itself was not measured.
const COPY_BYTES_MAX: usize = 2 * 1024;
/// What is copied grows to so much in one piece, and no further by moving it: the next payload is shared. How much a slow
/// peer holds for itself alone is bounded by the turns that fill its outbox.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// The writing half of a socket, with what waits for it.
pub struct Outbox {
    write: OwnedWriteHalf,
    pieces: VecDeque<Bytes>,
    /// What comes behind the pieces.
    last: Vec<u8>,
    bytes: usize,
    /// When the socket last took something, or was given something while it was idle.
    progress: Instant,
}

impl Outbox {
    pub(super) fn new(write: OwnedWriteHalf) -> Self {
        Self { write, pieces: VecDeque::new(), last: Vec::new(), bytes: 0, progress: Instant::now() }
    }

    /// Whether the socket has taken everything.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
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
    pub fn text(&mut self, text: impl Into<Vec<u8>>) {
        let text = text.into();
        self.frame(0x81, b"", text.len());
        if self.copies(text.len()) { self.copy(&text) } else { self.share(text.into()) }
    }

    /// Queues an `entries` frame: the attachment's prefix and the suffix that all followers share.
    pub fn entries(&mut self, prefix: &[u8], suffix: &Bytes) {
        self.frame(0x81, prefix, suffix.len());
        if self.copies(suffix.len()) { self.copy(suffix) } else { self.share(suffix.clone()) }
    }

    /// Queues the answer to a ping.
    pub fn pong(&mut self, payload: &[u8]) {
        self.frame(0x8a, b"", payload.len());
        self.copy(payload);
    }

    /// Queues a close frame.
    pub fn close(&mut self, code: u16) {
        self.frame(0x88, b"", 2);
        self.copy(&code.to_be_bytes());
    }

    /// Begins a frame whose payload is `prefix` and `rest` more bytes.
    fn frame(&mut self, first: u8, prefix: &[u8], rest: usize) {
        if self.is_empty() {
            self.progress = Instant::now();
            // Most often this is all there will be.
            self.last.reserve(HEADER_BYTES_MAX + prefix.len() + if self.copies(rest) { rest } else { 0 });
        }
        let before = self.last.len();
        header(&mut self.last, first, prefix.len() + rest);
        self.last.extend_from_slice(prefix);
        self.bytes += self.last.len() - before;
    }

    fn copies(&self, len: usize) -> bool {
        len <= COPY_BYTES_MAX && self.last.len() < COPIED_BYTES_MAX
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.last.extend_from_slice(bytes);
        self.bytes += bytes.len();
    }

    fn share(&mut self, piece: Bytes) {
        self.seal();
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    /// What was copied becomes a piece: something else comes behind it.
    fn seal(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.last).into());
        }
    }

    /// Ready when the socket may take something.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.as_ref().poll_write_ready(cx)
    }

    /// Ready when the socket may take something. Cancel safe.
    pub async fn writable(&self) -> io::Result<()> {
        self.write.writable().await
    }

    /// Writes as much as the socket takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.is_empty() {
            let written = match self.pieces.is_empty() {
                true => self.write.try_write(&self.last),
                false => self.write_pieces(),
            };
            match written {
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

    fn write_pieces(&mut self) -> io::Result<usize> {
        self.seal();
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.pieces.len().min(SLICES_MAX);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
        }
        self.write.try_write_vectored(&slices[..count])
    }

    fn advance(&mut self, mut written: usize) {
        self.progress = Instant::now();
        self.bytes -= written;
        if self.bytes == 0 {
            self.pieces.clear();
            // Most connections are silent most of the time: none keeps a buffer.
            self.last = Vec::new();
            return;
        }
        self.seal();
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

/// Of the header of an unmasked frame.
const HEADER_BYTES_MAX: usize = 10;

/// The header of an unmasked frame.
fn header(out: &mut Vec<u8>, first: u8, len: usize) {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ ..=125), _) => out.extend([first, short]),
        (_, Ok(long)) => {
            let [a, b] = long.to_be_bytes();
            out.extend([first, 126, a, b]);
        }
        _ => {
            out.extend([first, 127]);
            out.extend((len as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    /// Far more than anything here takes.
    const GENEROUS: Duration = Duration::from_secs(30);

    async fn pair() -> (Outbox, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (_read, write) = accepted.unwrap().0.into_split();
        (Outbox::new(write), peer.unwrap())
    }

    async fn flush_all(outbox: &mut Outbox) {
        loop {
            outbox.flush().unwrap();
            if outbox.is_empty() {
                return;
            }
            tokio::time::timeout(GENEROUS, outbox.writable()).await.unwrap().unwrap();
        }
    }

    async fn read(peer: &mut TcpStream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        tokio::time::timeout(GENEROUS, peer.read_exact(&mut bytes)).await.unwrap().unwrap();
        bytes
    }

    #[tokio::test]
    async fn small_frames_of_all_kinds_are_one_buffer_in_their_order() {
        let (mut outbox, mut peer) = pair().await;
        outbox.text("{}");
        outbox.entries(b"ab", &Bytes::from_static(b"cd"));
        outbox.pong(b"p");
        outbox.close(4503);
        assert!(outbox.pieces.is_empty(), "nothing is large");
        let expected = [&b"\x81\x02{}"[..], b"\x81\x04abcd", b"\x8a\x01p", b"\x88\x02\x11\x97"].concat();
        assert_eq!(outbox.bytes(), expected.len());
        flush_all(&mut outbox).await;
        assert_eq!(read(&mut peer, expected.len()).await, expected);
        assert_eq!(outbox.last.capacity(), 0, "who is silent has no buffer");
    }

    #[tokio::test]
    async fn what_is_large_is_shared_and_keeps_its_place_between_what_is_small() {
        let (mut outbox, mut peer) = pair().await;
        let large = Bytes::from(vec![b'x'; COPY_BYTES_MAX + 1]);
        outbox.text("a");
        outbox.entries(b"p", &large);
        outbox.text("b");
        assert!(outbox.pieces.iter().any(|piece| piece.as_ptr() == large.as_ptr()), "not copied");
        let mut expected = b"\x81\x01a\x81\x7e".to_vec();
        expected.extend(u16::try_from(large.len() + 1).unwrap().to_be_bytes());
        expected.extend([b"p", &large[..], b"\x81\x01b"].concat());
        assert_eq!(outbox.bytes(), expected.len());
        flush_all(&mut outbox).await;
        assert_eq!(read(&mut peer, expected.len()).await, expected);
    }

    #[tokio::test]
    async fn what_is_copied_for_a_peer_that_takes_nothing_does_not_grow_without_end_in_one_piece() {
        let (mut outbox, _peer) = pair().await;
        let suffix = Bytes::from(vec![b'x'; COPY_BYTES_MAX]);
        (0..100).for_each(|_| outbox.entries(b"p", &suffix));
        let is_shared = |piece: &&Bytes| piece.as_ptr() == suffix.as_ptr();
        assert!(
            outbox.pieces.iter().filter(is_shared).count()
                >= 100 * COPY_BYTES_MAX / (COPIED_BYTES_MAX + COPY_BYTES_MAX) - 1
        );
        let bound = COPIED_BYTES_MAX + 2 * (COPY_BYTES_MAX + HEADER_BYTES_MAX);
        assert!(outbox.pieces.iter().all(|piece| piece.len() <= bound) && outbox.last.len() <= bound);
        assert_eq!(outbox.bytes(), 100 * (4 + 1 + COPY_BYTES_MAX));
    }

    #[tokio::test]
    async fn what_a_full_socket_does_not_take_comes_later_and_whole() {
        let (mut outbox, mut peer) = pair().await;
        let mut expected = Vec::new();
        // More than any socket buffers: small and large ones in turn, so that writes end anywhere.
        for turn in 0u8..=255 {
            for len in [10, 125, 126, COPY_BYTES_MAX, COPY_BYTES_MAX + 1, 0x1_0000] {
                let suffix = Bytes::from(vec![turn; len]);
                outbox.entries(b"p", &suffix);
                header(&mut expected, 0x81, len + 1);
                expected.push(b'p');
                expected.extend_from_slice(&suffix);
            }
            outbox.flush().unwrap();
        }
        assert!(!outbox.is_empty() && outbox.bytes() < expected.len());
        let reading = read(&mut peer, expected.len());
        let ((), got) = tokio::join!(flush_all(&mut outbox), reading);
        assert!(got == expected, "not what was sent");
    }
}
