//! One WebSocket to a node: the handshake, text frames in and out, and how long to wait before the next try.
//!
//! The client and the worker library both speak text frames over a socket that may go at any time; this is what they
//! share. It knows the subprotocol and the close codes, and nothing of what the frames say. Every operation has a deadline
//! except [`Receiver::receive`], whose silence only the caller can judge.

mod backoff;

pub use backoff::{Backoff, random};
pub use tokio_tungstenite::tungstenite::Utf8Bytes;

use everthread_protocol::error::ErrorBody;
use everthread_protocol::frame::SUBPROTOCOL;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// From the first packet to the end of the handshake.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// For one frame to be taken by the socket. Longer than any pause of a healthy node, shorter than a person waits.
const SEND_DEADLINE: Duration = Duration::from_secs(20);
/// For the goodbye; after it the socket is simply dropped.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
/// A server that refuses may name how long to stay away; no longer than this.
const AFTER_MAX: Duration = Duration::from_secs(60);
/// Bytes of one frame from the server. A snapshot carries whole messages, so this is far above what may be sent.
const RECEIVED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why there is no connection, or no longer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SocketError {
    /// The address is not one.
    #[error("not an address of a node: {0}")]
    Address(String),
    /// The server answered the handshake with another status.
    #[error("the server refused the connection with status {status}: {body}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The beginning of what it said.
        body: String,
        /// When it wants to be asked again, if it said so.
        after: Option<Duration>,
    },
    /// No answer, or no room in the socket, in time.
    #[error("no progress on the connection within {0:?}")]
    Deadline(Duration),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The server closed it.
    #[error("the server closed the connection with code {code}: {reason}")]
    Closed {
        /// WebSocket close code; 1005 if it gave none.
        code: u16,
        /// What it said.
        reason: String,
    },
}

impl SocketError {
    /// Whether trying again unchanged is of no use.
    pub fn is_final(&self) -> bool {
        match self {
            SocketError::Address(_) => true,
            SocketError::Refused { status, .. } => matches!(status, 400 | 401 | 403),
            SocketError::Closed { code, .. } => (4400..4500).contains(code),
            SocketError::Deadline(_) | SocketError::Broken(_) => false,
        }
    }
}

impl SocketError {
    /// How long the server asks to stay away; no longer than a minute.
    pub fn after(&self) -> Option<Duration> {
        match self {
            SocketError::Refused { after, .. } => after.map(|after| after.min(AFTER_MAX)),
            _ => None,
        }
    }
}

impl From<WsError> for SocketError {
    fn from(error: WsError) -> Self {
        match error {
            WsError::Url(e) => SocketError::Address(e.to_string()),
            WsError::HttpFormat(e) => SocketError::Address(e.to_string()),
            WsError::Http(response) => {
                let body = response.body().as_deref().unwrap_or_default();
                let body = String::from_utf8_lossy(&body[..body.len().min(512)]).into_owned();
                let after = after_of(response.headers(), response.body().as_deref().unwrap_or_default());
                SocketError::Refused { status: response.status().as_u16(), body, after }
            }
            other => SocketError::Broken(other.to_string()),
        }
    }
}

/// The error of a node says it in milliseconds; `Retry-After`, which may be that of a load balancer, in seconds.
fn after_of(headers: &HeaderMap, body: &[u8]) -> Option<Duration> {
    let refusal = serde_json::from_slice::<Refusal>(body).ok();
    let seconds = || headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok();
    let precise = refusal.and_then(|refusal| refusal.error.after_ms).map(Duration::from_millis);
    precise.or_else(|| seconds().map(Duration::from_secs))
}

#[derive(Deserialize)]
struct Refusal {
    error: ErrorBody,
}

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A connection to a node, after the handshake and before any frame.
#[derive(Debug)]
pub struct RawConnection {
    sender: Sender,
    receiver: Receiver,
}

/// The writing half.
#[derive(Debug)]
pub struct Sender(SplitSink<Stream, Message>);

/// The reading half.
#[derive(Debug)]
pub struct Receiver(SplitStream<Stream>);

impl RawConnection {
    /// Connects to `path` of the node at `url` (`ws:`, `wss:`, `http:` or `https:`), with the token as a header if given.
    pub async fn open(url: &str, path: &str, token: Option<&str>) -> Result<RawConnection, SocketError> {
        let address = address(url, path)?;
        let mut request = address.as_str().into_client_request()?;
        let headers = request.headers_mut();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        if let Some(token) = token {
            let value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| SocketError::Address("the token has characters that no token has".to_owned()))?;
            headers.insert(header::AUTHORIZATION, value);
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(RECEIVED_BYTES_MAX))
            .max_frame_size(Some(RECEIVED_BYTES_MAX));
        let connecting = connect_async_with_config(request, Some(config), true);
        let (stream, _) = timeout(CONNECT_DEADLINE, connecting)
            .await
            .map_err(|_| SocketError::Deadline(CONNECT_DEADLINE))??;
        let (sink, stream) = stream.split();
        Ok(RawConnection { sender: Sender(sink), receiver: Receiver(stream) })
    }

    /// Sends one frame.
    pub async fn send(&mut self, frame: impl Into<Utf8Bytes>) -> Result<(), SocketError> {
        self.sender.send(frame.into()).await
    }

    /// The next frame. Cancel safe.
    pub async fn receive(&mut self) -> Result<Utf8Bytes, SocketError> {
        self.receiver.receive().await
    }

    /// Both halves, for one task each.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Says goodbye and drops the socket.
    pub async fn close(mut self) {
        self.sender.close().await;
    }
}

impl Sender {
    /// Sends one frame. Not cancel safe: a frame that is given up half-way breaks the connection.
    pub async fn send(&mut self, frame: Utf8Bytes) -> Result<(), SocketError> {
        let sending = self.0.send(Message::Text(frame));
        timeout(SEND_DEADLINE, sending)
            .await
            .map_err(|_| SocketError::Deadline(SEND_DEADLINE))?
            .map_err(Into::into)
    }

    /// Takes one frame without writing it out; [`Sender::flush`] follows.
    pub async fn feed(&mut self, frame: Utf8Bytes) -> Result<(), SocketError> {
        let feeding = self.0.feed(Message::Text(frame));
        timeout(SEND_DEADLINE, feeding)
            .await
            .map_err(|_| SocketError::Deadline(SEND_DEADLINE))?
            .map_err(Into::into)
    }

    /// Writes out what was taken.
    pub async fn flush(&mut self) -> Result<(), SocketError> {
        let flushing = self.0.flush();
        timeout(SEND_DEADLINE, flushing)
            .await
            .map_err(|_| SocketError::Deadline(SEND_DEADLINE))?
            .map_err(Into::into)
    }

    /// Writes frames as they come, several at once if they are there, until the connection breaks or nobody makes any.
    pub async fn write_all(mut self, mut frames: mpsc::Receiver<Utf8Bytes>) -> SocketError {
        while let Some(frame) = frames.recv().await {
            let mut next = Some(frame);
            while let Some(frame) = next {
                if let Err(error) = self.feed(frame).await {
                    return error;
                }
                next = frames.try_recv().ok();
            }
            if let Err(error) = self.flush().await {
                return error;
            }
        }
        self.close().await;
        SocketError::Broken("closed from this side".to_owned())
    }

    /// Says goodbye. Whether the other side hears it makes no difference.
    pub async fn close(&mut self) {
        drop(timeout(CLOSE_DEADLINE, self.0.close()).await);
    }
}

impl Receiver {
    /// The next text frame; an error means the connection is over. Cancel safe.
    pub async fn receive(&mut self) -> Result<Utf8Bytes, SocketError> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                // The library answers pings itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => {
                    return Err(SocketError::Broken("the server sent a binary frame".to_owned()));
                }
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err(SocketError::Closed {
                        code: close.code.into(),
                        reason: close.reason.to_string(),
                    });
                }
                Some(Ok(Message::Close(None))) => {
                    return Err(SocketError::Closed { code: 1005, reason: String::new() });
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Err(SocketError::Broken("the connection ended".to_owned())),
            }
        }
    }
}

fn address(url: &str, path: &str) -> Result<String, SocketError> {
    let wrong =
        || SocketError::Address(format!("{url:?} does not begin with ws://, wss://, http:// or https://"));
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let scheme = match scheme {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        _ => return Err(wrong()),
    };
    Ok(format!("{scheme}://{}{path}", rest.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_way_to_write_the_address_leads_to_the_same_socket() {
        for url in ["ws://h:1", "http://h:1/", "ws://h:1/"] {
            assert_eq!(address(url, "/v1/worker").unwrap(), "ws://h:1/v1/worker");
        }
        assert_eq!(address("https://h/base", "/v1/connect").unwrap(), "wss://h/base/v1/connect");
        assert!(address("h:1", "/x").is_err());
        assert!(address("ftp://h", "/x").is_err());
    }

    #[test]
    fn a_server_that_refuses_says_when_to_come_again() {
        let (mut headers, none) = (HeaderMap::new(), HeaderMap::new());
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("7"));
        let fault = everthread_protocol::Fault::new(everthread_protocol::Code::Overloaded, "too many");
        let error = ErrorBody { after_ms: Some(1_234), ..ErrorBody::from(fault) };
        let body = serde_json::json!({ "error": error }).to_string();
        assert_eq!(after_of(&headers, body.as_bytes()), Some(Duration::from_millis(1_234)));
        assert_eq!(after_of(&headers, b"<html>busy</html>"), Some(Duration::from_secs(7)));
        assert_eq!(after_of(&none, b""), None);
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("Fri, 31 Dec 1999 23:59:59 GMT"));
        assert_eq!(after_of(&headers, b"{}"), None);
        let refused = |after| SocketError::Refused { status: 503, body: String::new(), after: Some(after) };
        assert_eq!(refused(Duration::from_secs(9_999)).after(), Some(AFTER_MAX));
    }

    #[test]
    fn only_what_cannot_change_by_itself_is_final() {
        let closed = |code| SocketError::Closed { code, reason: String::new() };
        assert!(closed(4401).is_final());
        assert!(!closed(4503).is_final());
        assert!(!closed(1006).is_final());
        let refused = |status| SocketError::Refused { status, body: String::new(), after: None };
        assert!(refused(401).is_final());
        assert!(!refused(503).is_final());
    }
}
