//! Clients in Rust: one connection, many sessions, through whatever happens to the socket.
//!
//! [`Client::follow`] attaches a session and gives its events in order, each exactly once, with the view they make. When
//! the socket breaks the client makes another and attaches every session again from where its follower stands; requests
//! without an answer are sent again under the same ids. [`RawConnection`] is the socket alone, for tests of the wire.
//!
//! The life of an entry here: the task reads a frame, compares its positions with the follower's, and puts it into the
//! follower's queue. If the queue is full, the session is detached, and attached again when the follower has caught up: a
//! slow follower costs a number, not memory, and holds up nobody else on the connection.
//!
//! The life of a control here: [`Session::control`] sends it and returns with its first receipt, and [`Asked`] tells the rest.
//! Receipts end with the socket, so the control is asked again on the next one, under the same id, until it has its outcome.

mod client;
mod connection;
mod control;
mod controls;
mod error;
mod feed;
mod follow;
mod kept;
mod people;
mod sessions;
mod stand;

pub use client::{Addressee, Builder, Client, How, Page, Session};
pub use control::{Ask, Asked, Settled};
pub use error::Error;
pub use everthread_protocol::Level;
pub use everthread_protocol::control::{Mode, WhenBusy};
pub use everthread_protocol::entry::{ControlOutcome, RefusalReason, Target};
pub use everthread_protocol::frame::{From, Member, Presence, Receipt, Stage, Summary};
pub use everthread_session::view::View;
pub use everthread_socket::{RawConnection, SocketError, Utf8Bytes};
pub use feed::Feed;
pub use follow::{Event, Follow, Frame};
pub use people::Present;
