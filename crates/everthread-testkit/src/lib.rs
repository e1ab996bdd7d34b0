//! What tests need of the outside world: a real Redis server per test, and a network between it and us that can fail.
//!
//! [`RedisServer`] owns a `redis-server` process in a temporary directory; [`Proxy`] owns a TCP listener in front of an
//! upstream. Both end with their value, so a test that fails leaves nothing behind.

mod proxy;
mod redis_server;

pub use proxy::{Direction, Proxy};
pub use redis_server::{RedisOptions, RedisServer};
