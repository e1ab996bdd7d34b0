//! A TCP proxy that fails on command: cuts, refuses, stalls, half-opens, or lets bytes through slowly or late.
//!
//! Owns its listener and every connection through it; all of them end with the value. The address stays the same
//! through a cut, which a closed listener could not promise.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// What the kernel may hold of what the upstream sent.
const RECEIVE_BYTES: u32 = 32 * 1024;
/// How long the upstream may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Most bytes that are passed on in one step.
const CHUNK_BYTES: usize = 16 * 1024;
/// A throttled connection gets its share this often.
const THROTTLE_TICK: Duration = Duration::from_millis(20);

/// What the network does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Bytes pass, at most so many per second, connection and direction.
    Open(Option<u64>),
    /// Bytes pass, each so much later.
    Late(Duration),
    /// Connections stay, no byte passes.
    Stalled,
    /// Connections stay, and bytes pass only the other way.
    HalfOpen(Direction),
    /// Connections are closed, new ones at once after they were accepted.
    Cut,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the upstream.
    Up,
    /// To the client.
    Down,
}

impl Weather {
    /// Whether bytes that go this way are held up.
    fn holds(self, way: Direction) -> bool {
        self == Weather::Stalled || self == Weather::HalfOpen(way)
    }
}

/// A proxy in front of one upstream.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    age_max: watch::Sender<Option<Duration>>,
    weather: watch::Sender<Weather>,
    upstream: watch::Sender<String>,
    swallowed: watch::Sender<Option<String>>,
    /// The accepting task, which owns the connections' tasks.
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// A proxy on a port of 127.0.0.1 for `upstream` (`host:port`).
    pub async fn start(upstream: impl Into<String>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::Open(None));
        let (upstream, target) = watch::channel(upstream.into());
        let (age_max, age) = watch::channel(None);
        let (swallowed, swallows) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, target, seen, age, swallows));
        Ok(Self { address, age_max, weather, upstream, swallowed, _tasks: tasks })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends new connections elsewhere, as a load balancer does when a node is gone.
    pub fn redirect(&self, upstream: impl Into<String>) {
        self.upstream.send_replace(upstream.into());
    }

    /// Drops every connection and refuses new ones until [`Proxy::heal`].
    pub fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
    }

    /// Keeps every connection but passes nothing until [`Proxy::heal`]: what a lost route looks like.
    pub fn stall(&self) {
        self.weather.send_replace(Weather::Stalled);
    }

    /// Keeps every connection, and passes nothing that goes this way until [`Proxy::heal`]: one side talks to nobody, and
    /// hears the other.
    pub fn half_open(&self, way: Direction) {
        self.weather.send_replace(Weather::HalfOpen(way));
    }

    /// Passes everything so much later, a piece at a time, in each direction.
    pub fn delay(&self, by: Duration) {
        self.weather.send_replace(Weather::Late(by));
    }

    /// Cuts each new connection when it is so old, whatever happens on it, as some meshes do. `None` for never.
    pub fn cut_at_age(&self, age: Option<Duration>) {
        self.age_max.send_replace(age);
    }

    /// Drops every piece that the upstream sends with this text in it, and passes everything else: single messages get lost,
    /// and nobody is told. `None` for nothing.
    pub fn swallow(&self, text: Option<&str>) {
        self.swallowed.send_replace(text.map(str::to_owned));
    }

    /// Passes at most so many bytes per second on each connection, in each direction.
    pub fn throttle(&self, bytes_per_s: u64) {
        self.weather.send_replace(Weather::Open(Some(bytes_per_s)));
    }

    /// Back to a perfect network.
    pub fn heal(&self) {
        self.weather.send_replace(Weather::Open(None));
    }
}

async fn accept(
    listener: TcpListener,
    upstream: watch::Receiver<String>,
    weather: watch::Receiver<Weather>,
    age_max: watch::Receiver<Option<Duration>>,
    swallowed: watch::Receiver<Option<String>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        if *weather.borrow() == Weather::Cut {
            continue;
        }
        let upstream = upstream.borrow().clone();
        let serving = serve(client, upstream, weather.clone(), swallowed.clone());
        match *age_max.borrow() {
            None => connections.spawn(serving),
            // The end of its time drops it.
            Some(age) => connections.spawn(async move { drop(timeout(age, serving).await) }),
        };
        while connections.try_join_next().is_some() {}
    }
}

/// A slow network holds little on its way: the kernel's own buffer would take megabytes before anybody felt it.
async fn connect(upstream: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = upstream.parse().map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_recv_buffer_size(RECEIVE_BYTES)?;
    socket.connect(address).await
}

/// One connection, until either side closes it or the network is cut.
async fn serve(
    client: TcpStream,
    upstream: String,
    mut weather: watch::Receiver<Weather>,
    swallowed: watch::Receiver<Option<String>>,
) {
    let Ok(Ok(server)) = timeout(CONNECT_MAX, connect(&upstream)).await else { return };
    // A proxy that adds Nagle's delay would measure itself.
    drop(client.set_nodelay(true));
    drop(server.set_nodelay(true));
    let (client_reader, client_writer) = client.into_split();
    let (server_reader, server_writer) = server.into_split();
    let up = pump(client_reader, server_writer, weather.clone(), Direction::Up, None);
    let down = pump(server_reader, client_writer, weather.clone(), Direction::Down, Some(swallowed));
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = weather.wait_for(|w| *w == Weather::Cut) => {}
    }
}

/// Passes bytes one way until the end of the stream.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
    way: Direction,
    swallowed: Option<watch::Receiver<Option<String>>>,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(open) = weather.wait_for(|w| !w.holds(way)).await.map(|w| *w) else { return };
        let rate = if let Weather::Open(rate) = open { rate } else { None };
        let len = rate.map_or(CHUNK_BYTES, |rate| share(rate).clamp(1, CHUNK_BYTES));
        let Ok(len @ 1..) = from.read(&mut chunk[..len]).await else { return };
        let is_lost = |text: &str| contains(&chunk[..len], text.as_bytes());
        if swallowed.as_ref().is_some_and(|lost| lost.borrow().as_deref().is_some_and(is_lost)) {
            continue;
        }
        let now = *weather.borrow();
        if let Weather::Late(by) = now {
            sleep(by).await;
        }
        // The network may have stalled while the bytes were awaited.
        if weather.wait_for(|w| !w.holds(way)).await.is_err() || to.write_all(&chunk[..len]).await.is_err() {
            return;
        }
        if rate.is_some() {
            sleep(THROTTLE_TICK).await;
        }
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// Bytes of one tick at `bytes_per_s`.
fn share(bytes_per_s: u64) -> usize {
    let ticks_per_s = 1000 / u64::try_from(THROTTLE_TICK.as_millis()).unwrap_or(1000);
    usize::try_from(bytes_per_s / ticks_per_s).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    async fn echo() -> (String, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut sockets = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                sockets.spawn(async move {
                    let (mut reader, mut writer) = socket.into_split();
                    drop(tokio::io::copy(&mut reader, &mut writer).await);
                });
            }
        });
        (address, tasks)
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_a_heal_allows_new_ones_at_the_same_address() {
        let (upstream, _echo) = echo().await;
        let proxy = Proxy::start(upstream).await.unwrap();
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        socket.write_all(b"a").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'a');
        proxy.cut();
        assert!(socket.read_u8().await.is_err());
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(refused.read_u8().await.is_err());
        proxy.heal();
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        socket.write_all(b"b").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'b');
    }

    #[tokio::test]
    async fn a_half_open_connection_passes_bytes_one_way_and_the_others_when_it_heals() {
        let (upstream, _echo) = echo().await;
        let proxy = Proxy::start(upstream).await.unwrap();
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        socket.write_all(b"a").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'a');
        proxy.half_open(Direction::Down);
        socket.write_all(b"b").await.unwrap();
        assert!(timeout(Duration::from_millis(100), socket.read_u8()).await.is_err());
        proxy.heal();
        assert_eq!(socket.read_u8().await.unwrap(), b'b');
    }

    #[tokio::test]
    async fn what_is_swallowed_is_gone_and_everything_else_passes() {
        let (upstream, _echo) = echo().await;
        let proxy = Proxy::start(upstream).await.unwrap();
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.swallow(Some("lost"));
        socket.write_all(b"it is lost").await.unwrap();
        assert!(timeout(Duration::from_millis(100), socket.read_u8()).await.is_err());
        proxy.swallow(None);
        socket.write_all(b"b").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'b');
    }

    #[tokio::test]
    async fn a_connection_is_cut_at_its_age_though_bytes_pass() {
        let (upstream, _echo) = echo().await;
        let proxy = Proxy::start(upstream).await.unwrap();
        proxy.cut_at_age(Some(Duration::from_millis(50)));
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        let talking = async {
            while socket.write_all(b"a").await.is_ok() && socket.read_u8().await.is_ok() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), talking).await.expect("it is never cut");
    }

    #[tokio::test]
    async fn a_throttled_connection_takes_its_time() {
        let (upstream, _echo) = echo().await;
        let proxy = Proxy::start(upstream).await.unwrap();
        proxy.throttle(10_000);
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        let started = Instant::now();
        socket.write_all(&[7; 2_000]).await.unwrap();
        let mut back = [0; 2_000];
        socket.read_exact(&mut back).await.unwrap();
        assert!(started.elapsed() > Duration::from_millis(150), "{:?}", started.elapsed());
    }
}
