//! A worker's connection.
use crate::Edge;
use crate::socket::{Inbound, Outbox};
use everthread_store::Store;

pub async fn serve<S: Store>(_edge: Edge<S>, _inbound: Inbound, _outbox: Outbox, _token: Option<String>) {}
