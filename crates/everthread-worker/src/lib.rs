//! Agent workers in Rust.
//!
//! A worker offers agents; the server hands it runs; a function per agent executes each run and writes messages to the
//! session as it goes. The library keeps the connection, numbers and repeats writes, holds the function back when too
//! much is unconfirmed, and ends the run with what the function returns.
//!
//! The life of a token: [`Part::append`] puts it into the run's outbox, next to what is there already. The connection
//! makes a batch of the outbox when the last one is confirmed, and keeps it until it is safe. When the connection breaks,
//! the next one names the runs at hand and sends the unconfirmed batches again, unchanged: the server answers what it knows
//! already as a duplicate. Nothing is dropped and nothing is doubled; if the log has lost more than is kept here, the run
//! ends as failed with `lost_tail`.
//!
//! The life of a control: somebody presses Stop, and [`Run::cancelled`] fires; somebody pauses, and the next write waits;
//! somebody says more, and [`Run::next_steer`] has it. Outcomes travel among the run's writes, numbered and repeated
//! like these, so the log tells what came before and after them. [`Run::approve`] turns it around: the run asks, is put
//! aside, and begins anew with the answer.
//!
//! ```no_run
//! use everthread_worker::{Error, Role, Run, Worker};
//!
//! async fn hello(run: Run) -> Result<(), Error> {
//!     let mut message = run.message(Role::Assistant).await?;
//!     let mut text = message.text().await?;
//!     text.append(&format!("You said: {}", run.input_text())).await?;
//!     message.complete().await
//! }
//!
//! # async fn start() -> Result<(), everthread_worker::WorkerError> {
//! let worker = Worker::builder("ws://127.0.0.1:7400", "dev").agent("hello", 16, hello).connect()?;
//! worker.run(tokio_util::sync::CancellationToken::new()).await
//! # }
//! ```

mod approval;
mod asked;
mod connection;
mod error;
mod live;
mod message;
mod outbox;
mod reconnect;
mod run;
mod runs;
mod shared;
mod work;
mod worker;

pub use approval::{Answer, Approval};
pub use error::{Error, WorkerError};
pub use everthread_protocol::Level;
pub use everthread_protocol::control::{Mode, Verdict, WhoMay};
pub use everthread_protocol::entry::{
    Keep, MessageStatus, Object, Outcome, PartKind, PartStatus, PutPart, Role, RunError,
};
pub use everthread_protocol::record::{Author, AuthorKind};
pub use everthread_protocol::worker_frame::Answered;
pub use live::Steer;
pub use message::{Message, Part};
pub use run::{Cause, Child, Failure, Finish, Run};
pub use tokio_util::sync::CancellationToken;
pub use work::{PastMessage, PastPart};
pub use worker::{AgentOptions, Builder, Worker};
