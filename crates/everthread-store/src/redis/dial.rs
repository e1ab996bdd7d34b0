//! Opens connections.
//!
//! The stream is ours, TCP, TLS or a Unix socket, and so is the future that moves its bytes: whoever dials runs the
//! driver, and a driver that is dropped fails at once whatever waits for an answer on it. That matters when a primary is
//! replaced while it hangs: what it says when it wakes must not count.

use super::address::{Address, Endpoint, Login, TlsFiles};
use super::link::Failure;
use super::sentinel::{Primary, Sentinels};
use crate::Error;
use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisConnectionInfo};
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// How long connecting may take, with all that a connection begins with.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Requests that wait for a place in the connection's write buffer; more wait at their callers, within the deadline.
const REQUEST_QUEUE: usize = 512;

/// The shortest pause between two attempts to connect, whatever has happened.
const PAUSE_MIN: Duration = Duration::from_millis(25);

/// What connections are called.
const NAME: &str = "everthread";

/// Moves a connection's bytes. Whoever drops it ends the connection and all that waits on it.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How to open connections to one primary.
#[derive(Clone)]
pub(super) struct Dialer {
    target: Target,
    wire: Arc<Wire>,
    /// Counts how often somebody found that the server is no primary any more.
    suspicion: Arc<watch::Sender<u64>>,
    /// Counts how often a connection was opened that can be used: who waits to try again need not wait any longer.
    found: Arc<watch::Sender<u64>>,
}

/// Where the primary is.
#[derive(Clone)]
enum Target {
    /// Always there.
    Fixed(Endpoint),
    /// Where sentinels say.
    Watched(Arc<Sentinels>),
}

/// What is the same for every server.
struct Wire {
    login: RedisConnectionInfo,
    tls: Option<Tls>,
    response_timeout: Duration,
}

struct Tls {
    connector: TlsConnector,
    /// The name in the certificate, where it is not the host.
    name: Option<ServerName<'static>>,
}

/// A connection that was opened.
pub(super) struct Dialled {
    pub(super) connection: MultiplexedConnection,
    pub(super) driver: Driver,
    pub(super) stale: Stale,
}

/// Tells when a connection is to be given up although it works: it leads to what is no primary any more.
pub(super) struct Stale {
    suspicion: watch::Receiver<u64>,
    moved: Option<(watch::Receiver<Option<Primary>>, Endpoint)>,
}

impl Stale {
    /// Waits until it is so. Cancel safe.
    pub(super) async fn wait(&mut self) {
        let moved = async {
            match &mut self.moved {
                Some((known, mine)) => {
                    let is_other =
                        |known: &Option<Primary>| known.as_ref().is_some_and(|known| known.endpoint != *mine);
                    drop(known.wait_for(is_other).await);
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.suspicion.changed() => {}
            () = moved => {}
        }
    }
}

impl Dialer {
    fn at(target: Target, wire: Arc<Wire>) -> Self {
        Self { target, wire, suspicion: Arc::default(), found: Arc::default() }
    }

    /// To the one server or, by way of `sentinels`, to the primary.
    pub(super) fn new(
        address: &Address,
        endpoint: Endpoint,
        response_timeout: Duration,
    ) -> Result<Self, Error> {
        let tls = address.tls.as_ref().map(tls).transpose();
        let tls = tls.map_err(|why| Error::Unavailable(format!("TLS to Redis: {why}")))?;
        let wire = Wire { login: login(&address.login), tls, response_timeout };
        Ok(Self::at(Target::Fixed(endpoint), Arc::new(wire)))
    }

    /// To another server of the same kind.
    pub(super) fn to(&self, endpoint: Endpoint) -> Self {
        Self::at(Target::Fixed(endpoint), self.wire.clone())
    }

    /// To a sentinel, where we may be somebody else.
    pub(super) fn to_sentinel(&self, endpoint: Endpoint, login_there: &Login) -> Self {
        let wire = Wire {
            login: login(login_there),
            tls: self
                .wire
                .tls
                .as_ref()
                .map(|tls| Tls { connector: tls.connector.clone(), name: tls.name.clone() }),
            response_timeout: self.wire.response_timeout,
        };
        Self::at(Target::Fixed(endpoint), Arc::new(wire))
    }

    /// To the primary that `sentinels` know.
    pub(super) fn watched(&self, sentinels: Arc<Sentinels>) -> Self {
        Self::at(Target::Watched(sentinels), self.wire.clone())
    }

    /// The server is no primary: all connections that were opened before this are given up.
    pub(super) fn suspect(&self) {
        self.suspicion.send_modify(|times| *times = times.wrapping_add(1));
    }

    /// A connection can be used: others to the same server need not wait.
    pub(super) fn found(&self) {
        self.found.send_modify(|times| *times = times.wrapping_add(1));
    }

    /// Tells when the server was found, to [`pause`].
    pub(super) fn finds(&self) -> watch::Receiver<u64> {
        self.found.subscribe()
    }

    /// One connection; `on_push` is called with what the server sends unasked, in the order in which it comes.
    pub(super) async fn dial(
        &self,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<Dialled, Failure> {
        let opening = async {
            // What is suspected while we dial counts.
            let suspicion = self.suspicion.subscribe();
            let (endpoint, known) = match &self.target {
                Target::Fixed(endpoint) => (endpoint.clone(), None),
                Target::Watched(sentinels) => {
                    let (endpoint, known) = sentinels.primary().await?;
                    (endpoint.clone(), Some((known, endpoint)))
                }
            };
            let stale = Stale { suspicion, moved: known };
            let (connection, driver) = self.wire.open(&endpoint, on_push).await?;
            let mut dialled = Dialled { connection, driver, stale };
            dialled.request(async |connection| name(connection).await).await?;
            if let Target::Watched(sentinels) = &self.target {
                let checked = dialled.request(async |connection| is_primary(connection).await).await;
                match checked {
                    Ok(true) => {}
                    other => {
                        sentinels.ask_again();
                        other?;
                        return Err(Failure::Down(format!("{endpoint} is not the primary yet, or no more")));
                    }
                }
            }
            Ok(dialled)
        };
        match timeout(CONNECT_MAX, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::Down(format!("no connection within {CONNECT_MAX:?}"))),
        }
    }
}

impl Dialled {
    /// A request while nobody runs the driver yet.
    pub(super) async fn request<T>(
        &mut self,
        request: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            answer = request(&mut self.connection) => answer,
            () = &mut self.driver => Err(Failure::Lost("the connection was closed".into())),
        }
    }
}

/// Waits before the next attempt to connect, so long unless another connection to the same server has been made since
/// `finds` was last looked at: after an outage a node is there with all that it has, or not at all. Never hardly at all, so
/// that connections to what closes them at once do not wake each other without end.
pub(super) async fn pause(long: Duration, finds: &mut watch::Receiver<u64>) {
    let least = long.min(PAUSE_MIN);
    sleep(least).await;
    match timeout(long.saturating_sub(least), finds.changed()).await {
        Ok(Ok(())) | Err(_) => {}
        // Nobody is left who could find it.
        Ok(Err(_)) => sleep(long).await,
    }
}

/// For operators, who see it in `CLIENT LIST`. A server that does not want to know it is none the worse.
async fn name(connection: &mut MultiplexedConnection) -> Result<(), Failure> {
    let named = ::redis::cmd("CLIENT").arg("SETNAME").arg(NAME).query_async::<()>(connection).await;
    named.or_else(|error| if error.is_io_error() { Err(error.into()) } else { Ok(()) })
}

async fn is_primary(connection: &mut MultiplexedConnection) -> Result<bool, Failure> {
    let role: Vec<::redis::Value> = ::redis::cmd("ROLE").query_async(connection).await?;
    Ok(matches!(role.first(), Some(::redis::Value::BulkString(role)) if role == b"master"))
}

impl Wire {
    async fn open(
        &self,
        endpoint: &Endpoint,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<(MultiplexedConnection, Driver), Failure> {
        let down = |what: &str, error: std::io::Error| Failure::Down(format!("{what} {endpoint}: {error}"));
        match endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| down("cannot connect to", e))?;
                self.begin(stream, on_push).await
            }
            Endpoint::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                let stream = stream.map_err(|e| down("cannot connect to", e))?;
                // Nagle's delay costs more than half of the throughput on a network.
                stream.set_nodelay(true).map_err(|e| down("cannot use the socket to", e))?;
                let Some(tls) = &self.tls else { return self.begin(stream, on_push).await };
                let name = match &tls.name {
                    Some(name) => name.clone(),
                    None => ServerName::try_from(host.clone()).map_err(|_| {
                        Failure::Down(format!("{host} is no name that a certificate can have"))
                    })?,
                };
                let stream = tls.connector.connect(name, stream).await;
                self.begin(stream.map_err(|e| down("no TLS with", e))?, on_push).await
            }
        }
    }

    async fn begin<S>(
        &self,
        stream: S,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<(MultiplexedConnection, Driver), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let push = move |info: PushInfo| {
            on_push(info);
            Ok::<(), Infallible>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(self.response_timeout))
            .set_pipeline_buffer_size(REQUEST_QUEUE)
            .set_push_sender(push);
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&self.login, stream, config).await?;
        Ok((connection, Box::pin(driver)))
    }
}

fn login(login: &Login) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(login.db);
    if let Some(user) = &login.user {
        info = info.set_username(user);
    }
    if let Some(password) = &login.password {
        info = info.set_password(password);
    }
    info
}

/// The one provider of the deployment, whatever else the process has linked.
fn tls(files: &TlsFiles) -> Result<Tls, String> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let certificates = |path: &Path| {
        let pem = read(path)?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let all = all.map_err(|e| format!("{} is no PEM of certificates: {e}", path.display()))?;
        if all.is_empty() { Err(format!("{} holds no certificate", path.display())) } else { Ok(all) }
    };
    let mut roots = rustls::RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (known, _) = roots.add_parsable_certificates(found.certs);
            if known == 0 {
                return Err("the system trusts no certificate: name a file with `ca=`".into());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_slice(&read(key)?);
            let private = private.map_err(|e| format!("{} is no PEM of a key: {e}", key.display()))?;
            config
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|e| format!("{} and {}: {e}", cert.display(), key.display()))?
        }
        _ => config.with_no_client_auth(),
    };
    let name = files.name.as_ref().map(|name| {
        ServerName::try_from(name.clone())
            .map_err(|_| "`name=` is no name that a certificate can have".to_owned())
    });
    Ok(Tls { connector: TlsConnector::from(Arc::new(config)), name: name.transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any test.
    const LONG: Duration = Duration::from_secs(3600);
    /// How long anything may take that is expected to happen.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::Tcp("127.0.0.1".into(), port)
    }

    fn dialer() -> Dialer {
        let address = Address::parse("redis://127.0.0.1:1").unwrap();
        Dialer::new(&address, endpoint(1), LONG).unwrap()
    }

    #[tokio::test]
    async fn who_waits_to_connect_tries_at_once_when_another_has_connected_to_the_same_server() {
        let dialer = dialer();
        let another = dialer.to(endpoint(2));
        let (mut finds, mut elsewhere) = (dialer.clone().finds(), another.finds());
        let mut waits = Box::pin(pause(LONG, &mut finds));
        // It waits for news already, not only for its shortest pause.
        assert!(timeout(PAUSE_MIN * 4, &mut waits).await.is_err());
        dialer.found();
        tokio::select! {
            biased;
            () = pause(LONG, &mut elsewhere) => panic!("it was another server"),
            () = waits => {}
            () = sleep(PATIENCE) => panic!("it waits on"),
        }
    }

    #[tokio::test]
    async fn what_was_found_while_an_attempt_failed_counts_once() {
        let dialer = dialer();
        let mut finds = dialer.finds();
        dialer.found();
        timeout(PATIENCE, pause(LONG, &mut finds)).await.expect("it waits on");
        assert!(timeout(PAUSE_MIN * 4, pause(LONG, &mut finds)).await.is_err());
    }
}
