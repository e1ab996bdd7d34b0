//! A lean WebSocket client (RFC 6455): a follower must cost the measuring machine as little as possible.
//!
//! A silent socket holds no buffer. Frames are masked with a key of zeros: the node still does its part of the work, the
//! load test saves its own. Fragments are refused: the node never sends any.

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use everthread_protocol::frame::SUBPROTOCOL;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What one read may add to the buffer.
const READ_BYTES: usize = 4 * 1024;
/// Bytes of the answer to a handshake.
const HANDSHAKE_BYTES_MAX: usize = 8 * 1024;
/// The key of the handshake; what it is does not matter to anybody.
const KEY: &str = "ZXZlcnRocmVhZC1sb2FkdA==";

/// Where the node is, and what opens it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address of the node.
    pub address: SocketAddr,
    /// `host:port` as it stands in the URL.
    pub host: String,
    /// The token.
    pub token: String,
}

impl Target {
    /// Reads `ws://host:port`.
    pub async fn resolve(url: &str, token: &str) -> anyhow::Result<Target> {
        let host =
            url.strip_prefix("ws://").context("--url is ws://host:port: the load test speaks no TLS")?;
        let host = host.trim_end_matches('/').to_owned();
        let address = tokio::net::lookup_host(&host).await.with_context(|| format!("--url {url}"))?.next();
        Ok(Target {
            address: address.with_context(|| format!("--url {url} has no address"))?,
            host,
            token: token.to_owned(),
        })
    }
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
        let mut stream = TcpStream::connect(target.address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
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
        let [first, second, rest @ ..] = &self.inbox[..] else { return Ok(None) };
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
        if self.inbox.len() < header + len {
            return Ok(None);
        }
        let opcode = first & 0x0f;
        self.inbox.advance(header);
        Ok(Some((opcode, self.inbox.split_to(len).freeze())))
    }

    /// Puts a text frame into the buffer that [`Socket::flush`] writes.
    pub fn queue(&mut self, text: &str) {
        match (u8::try_from(text.len()), u16::try_from(text.len())) {
            (Ok(short @ ..=125), _) => self.out.extend_from_slice(&[0x81, 0x80 | short]),
            (_, Ok(long)) => {
                let [a, b] = long.to_be_bytes();
                self.out.extend_from_slice(&[0x81, 0x80 | 126, a, b]);
            }
            _ => {
                self.out.extend_from_slice(&[0x81, 0x80 | 127]);
                self.out.extend_from_slice(&(text.len() as u64).to_be_bytes());
            }
        }
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(text.as_bytes());
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
