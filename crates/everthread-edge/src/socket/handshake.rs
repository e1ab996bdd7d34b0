//! The WebSocket handshake (RFC 6455, section 4.2) on an HTTP/1.1 request, with our subprotocol and the token in it.

use super::{Inbound, Outbox};
use axum::body::Body;
use base64::Engine as _;
use bytes::BytesMut;
use everthread_protocol::frame::{SUBPROTOCOL, TOKEN_SUBPROTOCOL_PREFIX};
use everthread_protocol::{Code, Fault};
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use sha1::{Digest as _, Sha1};
use tokio::net::TcpStream;

/// RFC 6455, section 1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Bytes that the kernel keeps for a peer besides those that are under way to it. Its buffer alone would take megabytes, and
/// whoever reads slowly would get all of that, minutes old, before anything that is folded for it.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 32 * 1024;

/// A handshake that will become a socket once its response is sent.
pub struct Upgrade {
    pending: OnUpgrade,
    /// The token, if it came as a subprotocol.
    pub token: Option<String>,
}

/// Checks the request and makes the response that switches protocols.
pub fn accept(request: &mut Request<Body>) -> Result<(Upgrade, Response<Body>), Fault> {
    let headers = request.headers();
    if !has_token(headers, &header::CONNECTION, "upgrade")
        || !has_token(headers, &header::UPGRADE, "websocket")
    {
        return Err(Fault::bad_request("this address speaks WebSocket: send an upgrade request"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v.as_bytes() != b"13") {
        return Err(Fault::bad_request("Sec-WebSocket-Version must be 13"));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Fault::bad_request("Sec-WebSocket-Key is missing"))?;
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(ACCEPT_GUID).finalize();
    let answer = base64::engine::general_purpose::STANDARD.encode(digest);

    let offered = offered_protocols(headers);
    let speaks_ours = offered.iter().any(|p| p == SUBPROTOCOL);
    if !offered.is_empty() && !speaks_ours {
        return Err(Fault::bad_request(format!("offer the subprotocol {SUBPROTOCOL}")));
    }
    let token = offered.iter().find_map(|p| p.strip_prefix(TOKEN_SUBPROTOCOL_PREFIX)).map(str::to_owned);
    let pending = request.extensions_mut().remove::<OnUpgrade>().ok_or_else(|| {
        Fault::new(Code::NotSupported, "this connection cannot become a WebSocket: use HTTP/1.1")
    })?;

    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, answer);
    if speaks_ours {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    }
    let response = response
        .body(Body::empty())
        .map_err(|_| Fault::new(Code::Internal, "the response could not be made"))?;
    Ok((Upgrade { pending, token }, response))
}

impl Upgrade {
    /// The socket, once the response is out.
    pub async fn socket(self) -> Option<(Inbound, Outbox)> {
        let upgraded: Upgraded = self.pending.await.ok()?;
        let (stream, before) = match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => (parts.io.into_inner(), parts.read_buf),
            // A server that listens with axum's own, as tests and tools do.
            Err(upgraded) => {
                let parts = auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded).ok()?;
                (parts.io.into_inner(), parts.read_buf)
            }
        };
        // Elsewhere there is no such option, and slow readers are noticed later.
        #[cfg(target_os = "linux")]
        drop(socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX));
        let (read, write) = stream.into_split();
        // What the client sent right behind its request has been read already.
        Some((Inbound::new(read, BytesMut::from(&before[..])), Outbox::new(write)))
    }
}

fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

fn offered_protocols(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}
