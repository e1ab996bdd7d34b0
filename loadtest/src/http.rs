//! The few HTTP requests that set a scenario up: one connection, one request at a time.

use crate::socket::Target;
use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// A connection that is kept.
pub struct Http {
    target: Target,
    stream: TcpStream,
    inbox: BytesMut,
}

impl Http {
    /// Connects.
    pub async fn connect(target: &Target) -> anyhow::Result<Http> {
        let stream = target.connect(None).await?;
        Ok(Http { target: target.clone(), stream, inbox: BytesMut::new() })
    }

    /// Posts a body and expects a status of 2xx.
    pub async fn post(&mut self, path: &str, body: &str) -> anyhow::Result<()> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.target.host,
            self.target.token,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        let (head, body_len) = loop {
            if let Some(end) = self.inbox.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.inbox[..end]).to_lowercase();
                self.inbox.advance(end + 4);
                let len = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                let len: usize = len.context("an answer without a length")?.trim().parse()?;
                break (head, len);
            }
            self.fill().await?;
        };
        ensure!(body_len <= ANSWER_BYTES_MAX, "POST {path}: the answer is too large");
        while self.inbox.len() < body_len {
            self.fill().await?;
        }
        let answer = self.inbox.split_to(body_len);
        if !head.starts_with("http/1.1 2") {
            bail!(
                "POST {path}: {} {}",
                head.lines().next().unwrap_or_default(),
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(())
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        ensure!(self.stream.read_buf(&mut self.inbox).await? > 0, "the node hung up");
        Ok(())
    }
}
