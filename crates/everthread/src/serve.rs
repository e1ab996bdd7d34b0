//! `dev` and `serve`: bind everything, open the store, start, wait for a signal, drain.
//!
//! A signal is heard from the first moment on, and the admin port answers before the store is there: a node that waits for
//! its store is alive and not ready.

use crate::admin::Admin;
use crate::config::{Checked, Mode, NodeArgs, start_log};
use crate::otlp::Exporter;
use crate::store::{self, Links};
use crate::{config, console, demo, openai};
use anyhow::Context as _;
use everthread_archive::Archive;
use everthread_control::TaskGroup;
use everthread_edge::auth::Auth;
use everthread_edge::{Config, Edge, archiving, http, listen};
use everthread_store::Store;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// What the kernel buffers per socket: enough for a fast link, little enough that a slow client's backlog stays in the log,
/// where it costs nothing.
const SEND_BUFFER_BYTES: u32 = 256 * 1024;

/// How much longer than a WebSocket, which is closed with a code that says why, any other connection may take no byte.
const STALL_MARGIN: Duration = Duration::from_secs(2);

/// How long the demo agents may take to end what they are at.
const DEMO_END_MAX: Duration = Duration::from_secs(2);

/// The agent that a model of the environment serves in `dev`.
const DEMO_MODEL_AGENT: &str = "model";

/// What is open when a node is up ends side by side within this, so that with a second for what works behind connections
/// and [`crate::BLOCKING_MAX`] a node is gone 4.5 s after `--drain-ms`: operators are told 5.
const CLOSE_MAX: Duration = Duration::from_millis(1500);

/// Runs a node until it is told to stop.
pub async fn run(mode: Mode, args: NodeArgs) -> anyhow::Result<()> {
    // Before anything that takes time: until then the first process of a container does not hear a signal at all.
    let stop = stop_on_signal()?;
    start_log(&args)?;
    for name in config::unknown_variables_here() {
        tracing::warn!(name, "a variable that is no setting of this release");
    }
    #[cfg(feature = "planted-faults")]
    plant_fault()?;
    let checked = args.checked(mode)?;
    let public = bind(args.listen).with_context(|| format!("cannot listen on {} (--listen)", args.listen))?;
    let admin_socket = bind(args.admin).and_then(|socket| socket.listen(BACKLOG));
    let admin_socket = admin_socket.with_context(|| format!("cannot listen on {} (--admin)", args.admin))?;
    let archive = args.archive.open()?;
    let (servers, admin, admin_address) = (TaskGroup::new(), Admin::new(), admin_socket.local_addr()?);
    // The admin port answers from now until the very end.
    serve_on(&servers, admin_socket, admin.router(), stall_max(&args), servers.token());
    tracing::info!("metrics: http://{admin_address}/metrics");
    let redis = checked.redis.clone();
    let start = Start { mode, args, checked, archive, public, servers, admin, stop: stop.clone() };
    let running = async {
        match redis {
            Some(options) => {
                let opened = store::connect(mode, &options, &start.admin);
                let Some(opened) = stop.run_until_cancelled(opened).await else { return Ok(()) };
                let (store, links) = opened?;
                start.run(store, Some(links)).await
            }
            None => {
                let opened = store::open_embedded(&start.args);
                let Some(store) = stop.run_until_cancelled(opened).await else { return Ok(()) };
                start.run(store?, None).await
            }
        }
    };
    running.await?;
    tracing::info!("stopped");
    Ok(())
}

/// Plants the fault that the environment names, if it names one.
#[cfg(feature = "planted-faults")]
fn plant_fault() -> anyhow::Result<()> {
    use everthread_store::planted::{VARIABLE, plant};
    let Ok(name) = std::env::var(VARIABLE) else { return Ok(()) };
    let fault = name.parse().map_err(anyhow::Error::msg).context(VARIABLE)?;
    tracing::warn!(name, "a fault is planted in this node");
    plant(Some(fault));
    Ok(())
}

/// An address that is taken. Nobody can connect to it before it listens: while the node starts, clients go elsewhere at once.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    Ok(socket)
}

fn stall_max(args: &NodeArgs) -> Duration {
    Duration::from_millis(args.stall_ms)
}

/// What a node has when its store is opened.
struct Start {
    mode: Mode,
    args: NodeArgs,
    checked: Checked,
    archive: Option<everthread_archive::Options>,
    public: TcpSocket,
    servers: TaskGroup,
    admin: Admin,
    /// Fires at the first signal.
    stop: CancellationToken,
}

impl Start {
    /// Is a node on this store until it is told to stop.
    async fn run<S: Store>(self, store: S, links: Option<Links>) -> anyhow::Result<()> {
        let Start { mode, args, checked, archive, public, servers, admin, stop } = self;
        let archived_after = archive.as_ref().map(|options| options.after);
        let store = Arc::new(Archive::new(Arc::new(store), archive));
        let Some(begun) = stop.run_until_cancelled(store.begin()).await else { return Ok(()) };
        begun.context("--archive")?;
        let acks = args.acks();
        acks.check(&*store).map_err(|error| error.fault()).context("--ack and --ack-decisions")?;
        let archiving = archived_after.map(|after| archiving::Options::new(store.clone(), after));
        let counts = store.counts().collectors();
        let auth = Auth::new(checked.token.clone(), "default".parse()?, browser_hosts(args.listen));
        let config = Config {
            node: checked.node,
            auth: auth.clone(),
            leases: checked.leases,
            heartbeat: Duration::from_millis(args.heartbeat_ms),
            stall_max: stall_max(&args),
            presence: checked.presence,
            acks,
            rebuild_every: Duration::from_millis(args.rebuild_every_ms),
            folding: checked.folding,
            retention: checked.retention,
            archive: archiving,
            upgrades_per_s: args.upgrades_per_s,
        };
        let edge = Edge::start(store.clone(), config);
        edge.metrics.also(counts);
        let traces = TaskGroup::new();
        if let Some(target) = checked.traces {
            start_traces(target, args.otlp.otlp_ratio, &edge, &traces)?;
        }
        let page = console::PageConfig {
            token: (mode == Mode::Dev && args.listen.ip().is_loopback()).then(|| checked.token.clone()),
            agents: agents(mode),
        };
        let routes = http::router(edge.clone()).merge(console::router(auth, &page));
        let public = public.listen(BACKLOG);
        let public = public.with_context(|| format!("cannot listen on {} (--listen)", args.listen))?;
        let (address, stop_accepting) = (public.local_addr()?, CancellationToken::new());
        serve_on(&servers, public, routes, stall_max(&args), stop_accepting.clone());
        admin.is_up(edge.clone())?;
        tracing::info!("console: http://{address}/console");
        let demo = TaskGroup::new();
        if mode == Mode::Dev {
            start_demo(&demo, address, checked.token);
        }

        stop.cancelled().await;
        let pause = args.drain_delay();
        tracing::info!(
            connections = edge.departures.len(),
            ?pause,
            "stopping: not ready, then good-bye to everybody"
        );
        admin.drains();
        // The demo's runs end while there is still a node to write to; and whoever sends connections here learns that it
        // should not while they are still good.
        tokio::join!(demo.close(DEMO_END_MAX), tokio::time::sleep(pause));
        stop_accepting.cancel();
        if !edge.drain(Duration::from_millis(args.drain_ms)).await {
            tracing::warn!("some connections did not take their leave in time");
        }
        let closed = close(&servers, &traces, store.close(CLOSE_MAX), links.as_ref()).await;
        tracing::debug!(closed, "nothing is left");
        Ok(())
    }
}

/// Ends what is open side by side; false if something was still there after [`CLOSE_MAX`]. `archive` ends what is on its way
/// into the archive or back: it is whole where it was.
async fn close(
    servers: &TaskGroup,
    traces: &TaskGroup,
    archive: impl Future<Output = bool>,
    links: Option<&Links>,
) -> bool {
    let deadline = Instant::now() + CLOSE_MAX;
    let (servers, traces, archive) = tokio::join!(servers.close(CLOSE_MAX), traces.close(CLOSE_MAX), archive);
    // Last: all of these may use them.
    let links = match links {
        Some(links) => links.close(deadline.saturating_duration_since(Instant::now())).await,
        None => true,
    };
    servers && traces && archive && links
}

/// Traces what goes on in the node.
fn start_traces<S: Store>(
    target: reqwest::Url,
    ratio: f64,
    edge: &Edge<S>,
    tasks: &TaskGroup,
) -> anyhow::Result<()> {
    let (tracer, exporter) = Exporter::new(target, ratio, edge.config.node.as_str(), &edge.metrics)?;
    edge.trace(tracer);
    tasks.spawn(exporter.run(tasks.token()));
    Ok(())
}

/// Agents that the console offers.
fn agents(mode: Mode) -> Vec<String> {
    let mut agents: Vec<String> = match mode {
        Mode::Dev => demo::AGENTS.iter().map(|agent| (*agent).to_owned()).collect(),
        Mode::Serve => Vec::new(),
    };
    if mode == Mode::Dev && config::demo_model().is_some() {
        agents.push(DEMO_MODEL_AGENT.to_owned());
    }
    agents
}

/// Starts the demo agents, and a model as one more if the environment names one.
fn start_demo(demo: &TaskGroup, address: SocketAddr, token: String) {
    let url = format!("ws://{address}");
    if let Some(args) = config::demo_model().map(|model| model.args(&url, DEMO_MODEL_AGENT)) {
        let (token, stop) = (token.clone(), demo.token());
        demo.spawn(async move {
            if let Err(error) = openai::run(args, token, stop).await {
                tracing::error!(%error, "the model of OPENAI_BASE_URL is not served");
            }
        });
    }
    let stop = demo.token();
    demo.spawn(async move {
        if let Err(error) = demo::run(url, token, stop).await {
            tracing::error!(%error, "the demo agents have stopped");
        }
    });
}

fn serve_on(
    group: &TaskGroup,
    listener: TcpListener,
    routes: axum::Router,
    stall_max: Duration,
    stop: CancellationToken,
) {
    let tune = move |stream: &TcpStream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a socket keeps its delay");
        }
        end_when_stalled(stream, stall_max + STALL_MARGIN);
    };
    group.spawn(listen::serve(listener, routes, tune, stop));
}

/// Whoever asks for much by HTTP and takes none of it would hold it in memory for ever: the kernel ends such a connection.
fn end_when_stalled(stream: &TcpStream, after: Duration) {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(after)) {
        tracing::debug!(%error, "a socket may stall for ever");
    }
    // Elsewhere there is no such option.
    #[cfg(not(target_os = "linux"))]
    let (_, _) = (stream, after);
}

/// On a loopback address, the names that a browser on this machine may use for it; elsewhere every name.
fn browser_hosts(listen: SocketAddr) -> Vec<String> {
    if listen.ip().is_loopback() {
        vec!["localhost".into(), "127.0.0.1".into(), "[::1]".into(), listen.ip().to_string()]
    } else {
        Vec::new()
    }
}

/// A token that fires at the first signal; a second one ends the process at once. Signals count from when this returns.
pub fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let stop = CancellationToken::new();
    let fired = stop.clone();
    TaskGroup::new().spawn(async move {
        for is_first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if !is_first {
                std::process::exit(config::SECOND_SIGNAL_EXIT);
            }
            fired.cancel();
        }
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_open_is_closed_side_by_side() {
        // Each of them ends when the other has been told to: one after the other they would wait for ever.
        let (servers, traces) = (TaskGroup::new(), TaskGroup::new());
        for (group, other) in [(&servers, traces.token()), (&traces, servers.token())] {
            group.spawn(async move { other.cancelled().await });
        }
        let both = (servers.token(), traces.token());
        let archive = async {
            both.0.cancelled().await;
            both.1.cancelled().await;
            true
        };
        assert!(close(&servers, &traces, archive, Some(&Links::default())).await);
    }
}
