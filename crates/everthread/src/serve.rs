//! `dev` and `serve`: bind everything, start, wait for a signal, drain.

use crate::config::{Durability, Mode, NodeArgs, start_log, without_password};
use crate::otlp::{Exporter, OtlpArgs};
use crate::{admin, config, console, demo, openai};
use anyhow::Context as _;
use everthread_archive::Archive;
use everthread_control::TaskGroup;
use everthread_edge::auth::Auth;
use everthread_edge::{Config, Edge, archiving, http, listen};
use everthread_protocol::NodeId;
use everthread_store::Store;
use everthread_store::embedded::{self, Embedded};
use everthread_store::redis::{Options, Redis};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// What the kernel buffers per socket: enough for a fast link, little enough that a slow client's backlog stays in the log,
/// where it costs nothing.
const SEND_BUFFER_BYTES: u32 = 256 * 1024;

/// How much longer than a WebSocket, which is closed with a code that says why, any other connection may take no byte.
const STALL_MARGIN: Duration = Duration::from_secs(2);

/// The agent that a model of the environment serves in `dev`.
const DEMO_MODEL_AGENT: &str = "model";

/// Runs a node until it is told to stop.
pub async fn run(mode: Mode, args: NodeArgs) -> anyhow::Result<()> {
    start_log(&args)?;
    for name in config::unknown_variables_here() {
        tracing::warn!(name, "a variable that is no setting of this release");
    }
    #[cfg(feature = "planted-faults")]
    plant_fault()?;
    let token = args.token(mode)?;
    args.leases()?;
    args.keeping.folding()?;
    args.keeping.retention()?;
    args.otlp.target()?;
    let node: NodeId = match &args.node {
        Some(node) => node.parse().context("--node")?,
        None => format!("n-{}", ulid::Ulid::generate().to_string().to_lowercase()).parse().context("node")?,
    };
    let public = bind(args.listen).with_context(|| format!("cannot listen on {} (--listen)", args.listen))?;
    let admin = bind(args.admin).with_context(|| format!("cannot listen on {} (--admin)", args.admin))?;
    let archive = args.archive.open()?;
    let background = TaskGroup::new();
    let sockets = Sockets { public, admin };
    match &args.redis {
        Some(url) => {
            let options = Options::new(url, &args.redis_prefix, node.clone());
            let tracker = tokio_util::task::TaskTracker::new();
            let store = Redis::connect(options, &tracker, &background.token())
                .await
                .with_context(|| {
                    let url = without_password(url);
                    format!("cannot use the Redis at {url} (`everthread doctor` with the same settings says what to do)")
                })?;
            tracing::info!(url = without_password(url), prefix = args.redis_prefix, "store: Redis");
            node_until_stopped(mode, args, token, node, store, archive, sockets).await?;
        }
        None => {
            let durability = match args.durability {
                Durability::PowerCut => embedded::Durability::PowerCut,
                Durability::Crash => embedded::Durability::Crash,
            };
            let options = embedded::Options { dir: Some(args.data_dir.clone()), durability };
            let store = tokio::task::spawn_blocking(move || Embedded::open(options)).await??;
            tracing::info!(dir = %args.data_dir.display(), "store: embedded");
            node_until_stopped(mode, args, token, node, store, archive, sockets).await?;
        }
    }
    background.close(Duration::from_secs(1)).await;
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

struct Sockets {
    public: TcpListener,
    admin: TcpListener,
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn node_until_stopped<S: Store>(
    mode: Mode,
    args: NodeArgs,
    token: String,
    node: NodeId,
    store: S,
    archive: Option<everthread_archive::Options>,
    sockets: Sockets,
) -> anyhow::Result<()> {
    let stall_max = Duration::from_millis(args.stall_ms);
    let archived_after = archive.as_ref().map(|options| options.after);
    let store = Arc::new(Archive::new(Arc::new(store), archive));
    store.begin().await.context("--archive")?;
    let acks = args.acks();
    acks.check(&*store).map_err(|error| error.fault()).context("--ack and --ack-decisions")?;
    let archiving = archived_after.map(|after| archiving::Options::new(store.clone(), after));
    let counts = store.counts().collectors();
    let auth = Auth::new(token.clone(), "default".parse()?, browser_hosts(args.listen));
    let config = Config {
        node,
        auth: auth.clone(),
        leases: args.leases()?,
        heartbeat: Duration::from_millis(args.heartbeat_ms),
        stall_max,
        presence: args.presence()?,
        acks,
        rebuild_every: Duration::from_millis(args.rebuild_every_ms),
        folding: args.keeping.folding()?,
        retention: args.keeping.retention()?,
        archive: archiving,
        upgrades_per_s: args.upgrades_per_s,
    };
    let edge = Edge::start(store.clone(), config);
    edge.metrics.also(counts);
    let traces = TaskGroup::new();
    start_traces(&args.otlp, &edge, &traces)?;
    let draining = Arc::new(AtomicBool::new(false));
    let stop_accepting = CancellationToken::new();

    let is_local = args.listen.ip().is_loopback();
    let page = console::PageConfig {
        token: (mode == Mode::Dev && is_local).then(|| token.clone()),
        agents: agents(mode),
    };
    let routes = http::router(edge.clone()).merge(console::router(auth, &page));
    let (public, admin_address) = (sockets.public.local_addr()?, sockets.admin.local_addr()?);
    let servers = TaskGroup::new();
    serve_on(&servers, sockets.public, routes, stall_max, stop_accepting.clone());
    // The admin port answers until the very end.
    let routes = admin::router(edge.clone(), draining.clone())?;
    serve_on(&servers, sockets.admin, routes, stall_max, servers.token());
    tracing::info!("console: http://{public}/console");
    tracing::info!("metrics: http://{admin_address}/metrics");

    let demo = TaskGroup::new();
    if mode == Mode::Dev {
        start_demo(&demo, public, token);
    }

    wait_for_signal(&servers).await?;
    let pause = args.drain_delay();
    tracing::info!(
        connections = edge.departures.len(),
        ?pause,
        "stopping: not ready, then good-bye to everybody"
    );
    draining.store(true, Ordering::Release);
    // The demo's runs end while there is still a node to write to.
    demo.close(Duration::from_secs(2)).await;
    // Whoever sends connections here learns that it should not while they are still good.
    tokio::time::sleep(pause).await;
    stop_accepting.cancel();
    if !edge.drain(Duration::from_millis(args.drain_ms)).await {
        tracing::warn!("some connections did not take their leave in time");
    }
    servers.close(Duration::from_secs(1)).await;
    traces.close(Duration::from_secs(2)).await;
    // What is on its way into the archive or back is whole where it was.
    store.close(Duration::from_secs(1)).await;
    tracing::info!("stopped");
    Ok(())
}

/// Traces what goes on in the node, if somebody is to get it.
fn start_traces<S: Store>(args: &OtlpArgs, edge: &Edge<S>, tasks: &TaskGroup) -> anyhow::Result<()> {
    let Some(target) = args.target()? else { return Ok(()) };
    let node = edge.config.node.as_str();
    let (tracer, exporter) = Exporter::new(target, args.otlp_ratio, node, &edge.metrics)?;
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

/// A token that fires at the first signal; a second one ends the process at once.
pub fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (fired, group) = (stop.clone(), TaskGroup::new());
    let tasks = group.clone();
    group.spawn(async move {
        if let Err(error) = wait_for_signal(&tasks).await {
            tracing::error!(%error, "signals cannot be received");
        }
        fired.cancel();
    });
    Ok(stop)
}

/// The first signal drains, a second one ends the process at once.
async fn wait_for_signal(tasks: &TaskGroup) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tasks.spawn_until_stopped(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(config::SECOND_SIGNAL_EXIT);
    });
    Ok(())
}
