//! A listener for HTTP/1.1: accepts, serves each connection in a task of its own, and ends them in good order.
//!
//! Whoever connects says what it wants soon, or is let go: nothing is known of it yet, and it costs a file descriptor. If
//! very many do that, the one that has waited longest goes first: people ask at once.
//!
//! **Invariant:** at most [`UNASKED_MAX`] connections have not asked anything yet, each for at most [`FIRST_REQUEST_MAX`].

use crate::tail::lock;
use axum::Router;
use everthread_control::TaskGroup;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long the head of a connection's first request may take. A person on a bad line needs two or three round trips.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long the head of any other may take, from the answer before it. Longer than load balancers keep idle connections to a
/// node (nginx 60 s), so that it is they who close them, and never with a request under way.
const NEXT_REQUEST_MAX: Duration = Duration::from_secs(75);
/// Connections that have not asked anything yet.
const UNASKED_MAX: usize = 4096;
/// Pause where no connection can be accepted: mostly because there is no file descriptor left, and one becomes free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections end when they have said what they have to say; who waits for them has a deadline.
const ENDING_MAX: Duration = Duration::from_secs(3600);

/// Serves `routes` until `stop`, and then what is under way to its end. `tune` sets each socket's options.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    tune: impl Fn(&TcpStream),
    stop: CancellationToken,
) {
    serve_within(FIRST_REQUEST_MAX, UNASKED_MAX, listener, routes, tune, stop).await;
}

async fn serve_within(
    first_request_max: Duration,
    unasked_max: usize,
    listener: TcpListener,
    routes: Router,
    tune: impl Fn(&TcpStream),
    stop: CancellationToken,
) {
    let (connections, unasked) = (TaskGroup::new(), Arc::new(Unasked::new(unasked_max)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                tune(&stream);
                let (routes, unasked, stop) = (routes.clone(), unasked.clone(), connections.token());
                connections.spawn(connection(stream, routes, unasked, first_request_max, stop));
            }
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close(ENDING_MAX).await;
}

/// Whether only the connection that was being accepted is over.
fn is_of_the_peer(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    routes: Router,
    unasked: Arc<Unasked>,
    first_request_max: Duration,
    stop: CancellationToken,
) {
    let (place, crowded_out) = unasked.enter();
    let place = Arc::new(Mutex::new(Some(place)));
    let (asked, routes) = (place.clone(), TowerToHyperService::new(routes));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        lock(&asked).take();
        routes.call(request)
    });
    // Nobody upgrades from HTTP/2, and there a head has no deadline. (`auto::Builder::http1_only` does not hold for
    // connections with upgrades.)
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(NEXT_REQUEST_MAX);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let mut waited = pin!(tokio::time::timeout(first_request_max, crowded_out.notified()));
    let (mut is_ending, mut has_asked) = (false, false);
    loop {
        tokio::select! {
            result = &mut served => {
                if let Err(error) = result {
                    tracing::trace!(%error, "a connection has failed");
                }
                return;
            }
            // Elapsed or crowded out: the same.
            _ = &mut waited, if !has_asked => {
                has_asked = lock(&place).is_none();
                if !has_asked {
                    return;
                }
            }
            () = stop.cancelled(), if !is_ending => {
                is_ending = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Connections that have not asked anything yet, oldest first.
struct Unasked {
    max: usize,
    waiting: Mutex<(u64, BTreeMap<u64, Arc<Notify>>)>,
}

/// One of them; dropped when it asks.
struct Place {
    number: u64,
    all: Arc<Unasked>,
}

impl Unasked {
    fn new(max: usize) -> Self {
        Self { max, waiting: Mutex::default() }
    }

    /// One more; it is told when it has to go. If there are too many, the oldest has.
    fn enter(self: &Arc<Self>) -> (Place, Arc<Notify>) {
        let told = Arc::new(Notify::new());
        let mut waiting = lock(&self.waiting);
        waiting.0 += 1;
        let number = waiting.0;
        waiting.1.insert(number, told.clone());
        if waiting.1.len() > self.max
            && let Some((_, oldest)) = waiting.1.pop_first()
        {
            oldest.notify_one();
        }
        (Place { number, all: self.clone() }, told)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.all.waiting).1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const LONG: Duration = Duration::from_secs(600);
    const HALF: &[u8] = b"GET / HTTP/1.1\r\nHost: 127";

    async fn start(first_request_max: Duration, unasked_max: usize) -> (SocketAddr, TaskGroup) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tasks, routes) = (TaskGroup::new(), Router::new().route("/", get(|| async { "here" })));
        let stop = tasks.token();
        tasks.spawn(serve_within(first_request_max, unasked_max, listener, routes, |_| {}, stop));
        (address, tasks)
    }

    async fn say(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// Everything up to the end of the connection.
    async fn rest(mut stream: TcpStream) -> String {
        let mut told = Vec::new();
        // One that was cut says nothing more, too.
        drop(tokio::time::timeout(LONG, stream.read_to_end(&mut told)).await.expect("it stays open"));
        String::from_utf8(told).unwrap()
    }

    async fn asks(address: SocketAddr) -> bool {
        let asked = say(address, b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        rest(asked).await.ends_with("here")
    }

    #[tokio::test]
    async fn half_a_head_and_silence_are_let_go() {
        let (address, _tasks) = start(Duration::from_millis(50), 8).await;
        for bytes in [HALF, b""] {
            assert_eq!(rest(say(address, bytes).await).await, "");
        }
        assert!(asks(address).await);
    }

    #[tokio::test]
    async fn who_has_asked_once_is_not_hurried() {
        let (address, _tasks) = start(Duration::from_millis(50), 8).await;
        let mut stream = say(address, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let mut told = vec![0; 512];
        assert!(stream.read(&mut told).await.unwrap() > 0);
        // Whoever is silent for so long at the beginning is gone by now.
        assert_eq!(rest(say(address, HALF).await).await, "");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(rest(stream).await.ends_with("here"));
    }

    #[tokio::test]
    async fn another_protocol_is_not_spoken() {
        let (address, _tasks) = start(LONG, 8).await;
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let told = rest(say(address, preface).await).await;
        assert!(told.starts_with("HTTP/1.1 4") || told.is_empty(), "{told}");
    }

    #[tokio::test]
    async fn of_too_many_that_say_nothing_the_oldest_goes_and_others_are_served() {
        let (address, _tasks) = start(LONG, 4).await;
        let mut silent = Vec::new();
        for _ in 0..4 {
            silent.push(say(address, HALF).await);
            // It is accepted before the next one comes.
            assert!(silent.last().unwrap().peer_addr().is_ok() && asks(address).await);
        }
        silent.push(say(address, HALF).await);
        assert!(asks(address).await);
        // Those that asked stood in the list for a moment, too.
        for _ in 0..2 {
            assert_eq!(rest(silent.remove(0)).await, "");
        }
        let mut last = silent.pop().unwrap();
        last.write_all(b".0.0.1\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(rest(last).await.ends_with("here"), "the newest is still there");
    }

    #[tokio::test]
    async fn at_the_end_idle_connections_close_and_nobody_is_accepted() {
        let (address, tasks) = start(LONG, 8).await;
        let mut stream = say(address, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let mut told = vec![0; 512];
        assert!(stream.read(&mut told).await.unwrap() > 0);
        tasks.token().cancel();
        rest(stream).await;
        assert!(tasks.close(LONG).await);
        assert!(TcpStream::connect(address).await.is_err());
    }
}
