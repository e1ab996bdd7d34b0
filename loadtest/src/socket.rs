//! A lean WebSocket client (RFC 6455): a follower must cost the measuring machine as little as possible.
//!
//! A silent socket holds no buffer. Frames are masked with a key of zeros: the node still does its part of the work, the
//! load test saves its own. Fragments are refused: the node never sends any.

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use everthread_protocol::frame::SUBPROTOCOL;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Poll, ready};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

/// What one read may add to the buffer.
const READ_BYTES: usize = 4 * 1024;
/// A buffer that a thread reads into for all its sockets, at first.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Addresses of this machine that connections to this machine come from.
const SOURCES: u32 = 32;
/// Bytes of the answer to a handshake.
const HANDSHAKE_BYTES_MAX: usize = 8 * 1024;
/// The key of the handshake; what it is does not matter to anybody.
const KEY: &str = "ZXZlcnRocmVhZC1sb2FkdA==";

/// Where a node is, and what opens it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address of the node.
    pub address: SocketAddr,
    /// `host:port` as it stands in the URL.
    pub host: String,
    /// The token.
    pub token: String,
    /// How many addresses of this machine connections come from; 0: whichever the kernel takes.
    pub sources: u32,
    /// Connections made so far: each comes from the next address.
    pub made: Arc<AtomicU32>,
}

impl Target {
    /// Reads `ws://host:port`.
    pub async fn resolve(url: &str, token: &str, sources: Option<u32>) -> anyhow::Result<Target> {
        let host =
            url.strip_prefix("ws://").context("--url is ws://host:port: the load test speaks no TLS")?;
        let host = host.trim_end_matches('/').to_owned();
        let address = tokio::net::lookup_host(&host).await.with_context(|| format!("--url {url}"))?.next();
        let address = address.with_context(|| format!("--url {url} has no address"))?;
        let is_here = address.ip().is_loopback() && address.is_ipv4();
        let sources = sources.unwrap_or(if is_here { SOURCES } else { 0 });
        ensure!(
            sources == 0 || is_here,
            "--sources are addresses 127.0.0.x: they reach nodes at 127.x.x.x only"
        );
        ensure!(sources <= 250, "--sources is at most 250");
        Ok(Target { address, host, token: token.to_owned(), sources, made: Arc::default() })
    }

    /// Connects from the next address; `receive_bytes` bounds what the kernel holds for a client that does not read.
    pub async fn connect(&self, receive_bytes: Option<u32>) -> anyhow::Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(bytes) = receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if self.sources > 0 {
            let nth = self.made.fetch_add(1, Ordering::Relaxed) % self.sources;
            let source = Ipv4Addr::new(127, 0, 0, u8::try_from(nth + 2)?);
            socket.bind((source, 0).into()).with_context(|| format!("cannot use {source}"))?;
        }
        let stream = socket.connect(self.address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Reads whatever is there into one buffer that all sockets of a thread share, and takes frames out of it in place.
pub struct Reader {
    half: OwnedReadHalf,
    /// The beginning of a frame that is not there yet.
    pending: Vec<u8>,
}

/// What a thread's sockets are read into.
pub fn scratch() -> RefCell<Vec<u8>> {
    RefCell::new(vec![0; SCRATCH_BYTES])
}

impl Reader {
    /// Waits for bytes, reads at most `bytes_max` of them, and hands over every text frame that is whole; how many bytes
    /// came, none once the node has closed. Cancel safe.
    pub async fn pump(
        &mut self,
        scratch: &RefCell<Vec<u8>>,
        bytes_max: usize,
        on_frame: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<usize>> {
        poll_fn(|context| {
            let scratch = &mut *scratch.borrow_mut();
            let begin = self.pending.len();
            if scratch.len() < begin + READ_BYTES {
                scratch.resize(begin * 2 + READ_BYTES, 0);
            }
            let end = scratch.len().min(begin.saturating_add(bytes_max));
            let mut buffer = ReadBuf::new(&mut scratch[begin..end]);
            ready!(Pin::new(&mut self.half).poll_read(context, &mut buffer))?;
            let read = buffer.filled().len();
            Poll::Ready(self.take(&mut scratch[..begin + read], read, on_frame))
        })
        .await
    }

    fn take(
        &mut self,
        bytes: &mut [u8],
        read: usize,
        on_frame: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<usize>> {
        if read == 0 {
            return Ok(None);
        }
        bytes[..self.pending.len()].copy_from_slice(&self.pending);
        let mut rest = &bytes[..];
        while let Some((opcode, payload)) = frame(rest)? {
            match opcode {
                1 => on_frame(&rest[payload.clone()])?,
                8 => return Ok(None),
                9 | 10 => {}
                other => bail!("the node sent a frame of type {other}"),
            }
            rest = &rest[payload.end..];
        }
        self.pending.clear();
        if rest.is_empty() {
            self.pending = Vec::new();
        } else {
            self.pending.extend_from_slice(rest);
        }
        Ok(Some(read))
    }
}

/// The other half.
pub struct Writer {
    half: OwnedWriteHalf,
    out: Vec<u8>,
}

impl Writer {
    /// Puts a text frame into the buffer that [`Writer::flush`] writes.
    pub fn queue(&mut self, text: &[u8]) {
        header(text.len(), &mut |bytes| self.out.extend_from_slice(bytes));
        self.out.extend_from_slice(text);
    }

    /// Puts a text frame there that `write` makes in place, of 126 to 65 535 bytes.
    pub fn queue_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> anyhow::Result<()> {
        let begin = self.out.len();
        self.out.extend_from_slice(&[0x81, 0x80 | 126, 0, 0, 0, 0, 0, 0]);
        write(&mut self.out);
        let len = self.out.len() - begin - 8;
        ensure!(len > 125, "a frame is too short for its header");
        let len = u16::try_from(len).context("a frame is too long for its header")?;
        self.out[begin + 2..begin + 4].copy_from_slice(&len.to_be_bytes());
        Ok(())
    }

    /// Bytes that the socket has not taken yet.
    pub fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Writes what the socket takes now; true if that was all.
    pub fn flush(&mut self) -> io::Result<bool> {
        let mut written = 0;
        let result = loop {
            if written == self.out.len() {
                break Ok(true);
            }
            match self.half.try_write(&self.out[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.out.drain(..written);
        result
    }
}

/// The header of a text frame of `len` bytes, with a mask of zeros.
fn header(len: usize, put: &mut dyn FnMut(&[u8])) {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ ..=125), _) => put(&[0x81, 0x80 | short]),
        (_, Ok(long)) => {
            let [a, b] = long.to_be_bytes();
            put(&[0x81, 0x80 | 126, a, b]);
        }
        _ => {
            put(&[0x81, 0x80 | 127]);
            put(&(len as u64).to_be_bytes());
        }
    }
    put(&[0; 4]);
}

/// The first frame of some bytes, if it is whole: its type, and where its payload is.
fn frame(bytes: &[u8]) -> anyhow::Result<Option<(u8, Range<usize>)>> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    ensure!(first & 0xf0 == 0x80, "the node sent a fragment or reserved bits");
    ensure!(second & 0x80 == 0, "the node masked a frame");
    let (header, len) = match second {
        126 => {
            let Some(bytes) = rest.first_chunk::<2>() else { return Ok(None) };
            (4, usize::from(u16::from_be_bytes(*bytes)))
        }
        127 => {
            let Some(bytes) = rest.first_chunk::<8>() else { return Ok(None) };
            (10, usize::try_from(u64::from_be_bytes(*bytes))?)
        }
        short => (2, usize::from(*short)),
    };
    Ok((bytes.len() >= header + len).then_some((first & 0x0f, header..header + len)))
}

/// One WebSocket.
pub struct Socket {
    stream: TcpStream,
    inbox: BytesMut,
    out: BytesMut,
}

impl Socket {
    /// Connects and shakes hands.
    pub async fn connect(target: &Target, path: &str) -> anyhow::Result<Socket> {
        Socket::connect_with(target, path, None).await
    }

    /// The same, with a bound for what the kernel holds for a client that does not read.
    pub async fn connect_with(
        target: &Target,
        path: &str,
        receive_bytes: Option<u32>,
    ) -> anyhow::Result<Socket> {
        let mut stream = target.connect(receive_bytes).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\nAuthorization: Bearer {}\r\n\r\n",
            target.host, target.token
        );
        stream.write_all(request.as_bytes()).await?;
        let mut inbox = BytesMut::with_capacity(1024);
        let end = loop {
            if let Some(end) = inbox.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            ensure!(inbox.len() < HANDSHAKE_BYTES_MAX, "the answer to the handshake does not end");
            ensure!(stream.read_buf(&mut inbox).await? > 0, "the node hung up during the handshake");
        };
        let answer = inbox.split_to(end + 4);
        if !answer.starts_with(b"HTTP/1.1 101") {
            bail!(
                "the handshake was refused: {}",
                String::from_utf8_lossy(&answer).lines().next().unwrap_or_default()
            );
        }
        Ok(Socket { stream, inbox, out: BytesMut::new() })
    }

    /// The next text message; none once the node has closed. Cancel safe.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some((opcode, payload)) = self.frame()? {
                match opcode {
                    1 => return Ok(Some(payload)),
                    8 => return Ok(None),
                    9 | 10 => continue,
                    other => bail!("the node sent a frame of type {other}"),
                }
            }
            if self.inbox.is_empty() {
                self.inbox = BytesMut::new();
                self.stream.readable().await?;
            }
            self.inbox.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Ok(None);
            }
        }
    }

    fn frame(&mut self) -> anyhow::Result<Option<(u8, Bytes)>> {
        let Some((opcode, payload)) = frame(&self.inbox)? else { return Ok(None) };
        self.inbox.advance(payload.start);
        Ok(Some((opcode, self.inbox.split_to(payload.len()).freeze())))
    }

    /// Puts a text frame into the buffer that [`Socket::flush`] writes.
    pub fn queue(&mut self, text: &str) {
        header(text.len(), &mut |bytes| self.out.extend_from_slice(bytes));
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Its two halves, for a thread that shares one buffer.
    pub fn split(self) -> (Reader, Writer) {
        let (read, write) = self.stream.into_split();
        (Reader { half: read, pending: self.inbox.to_vec() }, Writer { half: write, out: self.out.to_vec() })
    }

    /// Whether everything is written.
    pub fn is_flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Writes what the socket takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.stream.try_write(&self.out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.out.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next message, or room to write while something waits to be written. Cancel safe.
    pub async fn turn(&mut self) -> anyhow::Result<Turn> {
        if self.is_flushed() {
            return Ok(Turn::Message(self.next().await?));
        }
        // What has been read already comes first: readiness does not tell of it.
        if let Some((1, payload)) = self.frame()? {
            return Ok(Turn::Message(Some(payload)));
        }
        let ready = self.stream.ready(tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE).await?;
        if ready.is_writable() {
            self.flush()?;
        }
        if ready.is_readable() {
            self.inbox.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.inbox) {
                Ok(0) => return Ok(Turn::Message(None)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Turn::Progress)
    }

    /// Writes a text frame whole.
    pub async fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.queue(text);
        self.stream.write_all_buf(&mut self.out).await?;
        self.out = BytesMut::new();
        Ok(())
    }
}

/// What a turn brought.
pub enum Turn {
    /// A message; none once the node has closed.
    Message(Option<Bytes>),
    /// Something was written or read.
    Progress,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_whole_however_the_bytes_are_cut() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target {
            address: listener.local_addr().unwrap(),
            host: "h".into(),
            token: "t".into(),
            sources: 3,
            made: Arc::default(),
        };
        let texts: Vec<String> = [5, 125, 126, 70_000, 1].iter().map(|len| "x".repeat(*len)).collect();
        let sent = texts.clone();
        let server = async move {
            let (mut stream, from) = listener.accept().await.unwrap();
            assert_eq!(from.ip().to_string(), "127.0.0.2", "the first of three");
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
            let mut bytes = Vec::new();
            for text in sent {
                // As a client would, but unmasked.
                let begin = bytes.len();
                header(text.len(), &mut |part| bytes.extend_from_slice(part));
                bytes.truncate(bytes.len() - 4);
                bytes[begin + 1] &= 0x7f;
                bytes.extend_from_slice(text.as_bytes());
            }
            for piece in bytes.chunks(777) {
                stream.write_all(piece).await.unwrap();
                stream.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let client = async {
            let (mut reader, _writer) = Socket::connect(&target, "/").await.unwrap().split();
            let (scratch, mut got) = (scratch(), Vec::new());
            loop {
                let mut on_frame = |frame: &[u8]| {
                    got.push(String::from_utf8(frame.to_vec()).unwrap());
                    Ok(())
                };
                if reader.pump(&scratch, usize::MAX, &mut on_frame).await.unwrap().is_none() {
                    return got;
                }
            }
        };
        let ((), got) = tokio::join!(server, client);
        assert_eq!(got, texts);
    }
}
