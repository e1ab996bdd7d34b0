//! One WebSocket: frames of JSON in and out, and nothing hidden.

use super::{PATIENCE, TOKEN};
use everthread_protocol::frame::SUBPROTOCOL;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use std::collections::VecDeque;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// An open WebSocket.
pub struct Socket {
    pub inner: WebSocketStream<TcpStream>,
    /// Read while something else was waited for, in order.
    unread: VecDeque<Value>,
    ids_made: u32,
}

/// What came in.
#[derive(Debug, PartialEq)]
pub enum Heard {
    Frame(Value),
    /// Closed, with this code if it came with one.
    Closed(Option<u16>),
}

impl Socket {
    /// A handshake with the token and the subprotocol.
    pub async fn open(address: SocketAddr, path: &str) -> Self {
        let token = format!("Bearer {TOKEN}");
        let headers = [("sec-websocket-protocol", SUBPROTOCOL), ("authorization", &token)];
        Self::open_with(address, path, &headers).await.unwrap()
    }

    pub async fn open_with(
        address: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = format!("ws://{address}{path}").into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (inner, _) = client_async(request, stream).await?;
        Ok(Self { inner, unread: VecDeque::new(), ids_made: 0 })
    }

    pub fn fresh_id(&mut self) -> String {
        self.ids_made += 1;
        format!("q{}", self.ids_made)
    }

    pub async fn send(&mut self, frame: &Value) {
        self.send_text(frame.to_string()).await;
    }

    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.inner.send(Message::text(text.into())).await.unwrap();
    }

    /// What comes next, pings of the protocol answered.
    pub async fn hear(&mut self) -> Heard {
        if let Some(frame) = self.unread.pop_front() {
            return Heard::Frame(frame);
        }
        self.hear_new(Instant::now() + PATIENCE).await.expect("nothing came")
    }

    /// What comes next, whenever that is.
    pub async fn hear_whenever(&mut self) -> Heard {
        loop {
            let soon = Instant::now() + PATIENCE;
            match self.unread.pop_front().map(Heard::Frame) {
                Some(heard) => return heard,
                None => {
                    if let Some(heard) = self.hear_new(soon).await {
                        return heard;
                    }
                }
            }
        }
    }

    async fn hear_new(&mut self, deadline: Instant) -> Option<Heard> {
        loop {
            let message = timeout_at(deadline, self.inner.next()).await.ok()?;
            match message {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    if frame["t"] == "ping" {
                        // The peer may have closed meanwhile: the next read tells.
                        drop(self.inner.send(Message::text(r#"{"t":"pong"}"#)).await);
                        continue;
                    }
                    return Some(Heard::Frame(frame));
                }
                Some(Ok(Message::Close(close))) => return Some(Heard::Closed(close.map(|c| c.code.into()))),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Some(Heard::Closed(None)),
            }
        }
    }

    /// The next ping, answered or not, and what else came before it dropped; none if the socket was closed first.
    pub async fn ping(&mut self, is_answered: bool) -> Option<()> {
        loop {
            let message = timeout_at(Instant::now() + PATIENCE, self.inner.next()).await.expect("no ping");
            match message {
                Some(Ok(Message::Text(text))) if text.contains(r#""t":"ping""#) => break,
                Some(Ok(Message::Text(_) | Message::Ping(_))) => {}
                _ => return None,
            }
        }
        if is_answered {
            self.send_text(r#"{"t":"pong"}"#).await;
        }
        Some(())
    }

    /// Hears on and keeps everything for later; the code of the close.
    pub async fn hear_on(&mut self) -> Option<u16> {
        loop {
            match self.hear_new(Instant::now() + PATIENCE).await {
                Some(Heard::Frame(frame)) => self.unread.push_back(frame),
                Some(Heard::Closed(code)) => return code,
                None => {}
            }
        }
    }

    /// The next frame.
    pub async fn frame(&mut self) -> Value {
        match self.hear().await {
            Heard::Frame(frame) => frame,
            Heard::Closed(code) => panic!("closed with {code:?}"),
        }
    }

    /// The next frame that `matches`; others stay unread.
    pub async fn wait(&mut self, matches: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.unread.iter().position(&matches) {
            return self.unread.remove(at).unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.hear_new(deadline).await {
                Some(Heard::Frame(frame)) if matches(&frame) => return frame,
                Some(Heard::Frame(frame)) => self.unread.push_back(frame),
                Some(Heard::Closed(code)) => panic!("closed with {code:?}, heard {:?}", self.unread),
                None => panic!("it never came; heard {:?}", self.unread),
            }
        }
    }

    /// Sends a request under a fresh id, unless it has one, and waits for what answers it.
    pub async fn ask(&mut self, mut frame: Value) -> Value {
        if frame["id"].is_null() {
            frame["id"] = self.fresh_id().into();
        }
        let id = frame["id"].clone();
        self.send(&frame).await;
        self.wait(|heard| heard["id"] == id || heard["control"] == id).await
    }

    /// Reads on to the close, and tells its code.
    pub async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Heard::Closed(code) = self.hear().await {
                return code;
            }
        }
    }
}
