//! One WebSocket: the handshake, an inbound reader that is polled, and an outbox.
//!
//! Frames to clients are pre-encoded and shared: a frame is a few bytes of header and prefix of its own, and a suffix that
//! every follower of the session gets. The outbox holds what the socket has not taken yet; its owner fills it only while it
//! is empty, so a slow peer costs one turn of frames and no more.

mod handshake;
mod inbound;
mod outbox;

pub use handshake::{Upgrade, accept};
pub use inbound::{Inbound, Message, ReadError};
pub use outbox::Outbox;
