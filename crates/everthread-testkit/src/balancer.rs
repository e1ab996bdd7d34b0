//! A load balancer for TCP connections, as one stands in front of a deployment: asks each node whether it is ready, gives
//! a new connection to the ready one with the fewest, and tries another where connecting fails.
//!
//! Owns its listener and every connection through it; all of them end with the value. Connections that are open are left
//! alone, whatever the checks say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Between two checks of a node.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// How long a check, or connecting, may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Checks in a row that must fail before a node gets nothing new.
const FALL: u32 = 2;

/// A load balancer in front of some nodes.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    backends: Arc<Vec<Backend>>,
    /// The accepting task, which owns the connections' tasks, and the checks.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Backend {
    address: SocketAddr,
    admin: SocketAddr,
    is_up: AtomicBool,
    open: AtomicUsize,
}

impl Balancer {
    /// A balancer on a port of 127.0.0.1 for nodes with these public and admin addresses.
    pub async fn start(nodes: impl IntoIterator<Item = (SocketAddr, SocketAddr)>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let backend = |(address, admin)| Backend {
            address,
            admin,
            is_up: AtomicBool::new(true),
            open: AtomicUsize::new(0),
        };
        let backends: Arc<Vec<Backend>> = Arc::new(nodes.into_iter().map(backend).collect());
        let mut tasks = JoinSet::new();
        for index in 0..backends.len() {
            tasks.spawn(check(backends.clone(), index));
        }
        tasks.spawn(accept(listener, backends.clone()));
        Ok(Self { address, backends, _tasks: tasks })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections to each node.
    pub fn open(&self) -> Vec<usize> {
        self.backends.iter().map(|backend| backend.open.load(Ordering::SeqCst)).collect()
    }
}

/// Asks a node for ever whether it is ready.
async fn check(backends: Arc<Vec<Backend>>, index: usize) {
    let (backend, mut failed) = (&backends[index], 0);
    loop {
        let is_ready = timeout(ANSWER_MAX, is_ready(backend.admin)).await;
        failed = if matches!(is_ready, Ok(Ok(true))) { 0 } else { failed + 1 };
        backend.is_up.store(failed < FALL, Ordering::SeqCst);
        sleep(CHECK_EVERY).await;
    }
}

async fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

async fn accept(listener: TcpListener, backends: Arc<Vec<Backend>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(serve(client, backends.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, until either side closes it.
async fn serve(mut client: TcpStream, backends: Arc<Vec<Backend>>) {
    let mut order: Vec<&Backend> = backends.iter().collect();
    let rank =
        |backend: &&Backend| (!backend.is_up.load(Ordering::SeqCst), backend.open.load(Ordering::SeqCst));
    order.sort_by_key(rank);
    for backend in order {
        // Counted before it is there, or all that come at once would go to the same.
        backend.open.fetch_add(1, Ordering::SeqCst);
        if let Ok(Ok(mut server)) = timeout(ANSWER_MAX, TcpStream::connect(backend.address)).await {
            drop(client.set_nodelay(true));
            drop(server.set_nodelay(true));
            drop(copy_bidirectional(&mut client, &mut server).await);
            backend.open.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        backend.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that says its name to whoever connects, and whether it is ready.
    async fn node(name: &'static str, ready: Arc<AtomicBool>) -> (SocketAddr, SocketAddr, JoinSet<()>) {
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, admin_address) = (public.local_addr().unwrap(), admin.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = public.accept().await {
                stream.write_all(name.as_bytes()).await.unwrap();
                kept.push(stream);
            }
        });
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = admin.accept().await {
                let status = if ready.load(Ordering::SeqCst) { "200 OK" } else { "503 No" };
                drop(stream.read(&mut [0; 512]).await);
                let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                drop(stream.write_all(head.as_bytes()).await);
            }
        });
        (address, admin_address, tasks)
    }

    async fn ask(balancer: &Balancer) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
        let mut name = [0; 1];
        stream.read_exact(&mut name).await.unwrap();
        (String::from_utf8(name.to_vec()).unwrap(), stream)
    }

    #[tokio::test]
    async fn connections_are_spread_and_go_elsewhere_from_a_node_that_is_not_ready_or_gone() {
        let (is_a_ready, is_b_ready) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let (a, a_admin, a_tasks) = node("a", is_a_ready).await;
        let (b, b_admin, _b_tasks) = node("b", is_b_ready.clone()).await;
        let balancer = Balancer::start([(a, a_admin), (b, b_admin)]).await.unwrap();
        let (first, second) = (ask(&balancer).await, ask(&balancer).await);
        assert_ne!(first.0, second.0);
        is_b_ready.store(false, Ordering::SeqCst);
        let looks = crate::wait_for("down", Duration::from_secs(20), async || {
            Ok((!balancer.backends[1].is_up.load(Ordering::SeqCst)).then_some(()))
        });
        looks.await.unwrap();
        let mut kept = Vec::new();
        for _ in 0..3 {
            kept.push(ask(&balancer).await);
            assert_eq!(kept.last().unwrap().0, "a");
        }
        // Nothing listens there any more: whoever is left gets it, ready or not.
        drop(a_tasks);
        let asked = crate::wait_for("the other", Duration::from_secs(20), async || {
            let mut stream = TcpStream::connect(balancer.address()).await?;
            let mut name = [0; 1];
            Ok((stream.read(&mut name).await? == 1 && name == *b"b").then_some(()))
        });
        asked.await.unwrap();
    }
}
