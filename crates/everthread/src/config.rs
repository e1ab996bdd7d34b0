//! Flags and environment, and what they mean together.

use crate::archive::ArchiveArgs;
use crate::keeping::KeepingArgs;
use crate::openai::OpenAiArgs;
use crate::otlp::OtlpArgs;
use anyhow::{Context as _, bail, ensure};
use clap::builder::RangedU64ValueParser;
use clap::{Args, CommandFactory as _, ValueEnum};
use everthread_control::{Acks, Leases};
use everthread_edge::admission::UPGRADES_PER_S;
use everthread_edge::presence::Times;
use everthread_edge::{folder, retention};
use everthread_protocol::{Level, NodeId};
use everthread_store::redis::Options;
use reqwest::Url;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Where `dev` keeps everything.
pub const DEV_DATA_DIR: &str = "./.everthread";
/// How long a stopping node still serves where load balancers may be in front of it: longer than HAProxy as in `deploy/`
/// needs for two checks that fail.
const DRAIN_DELAY: Duration = Duration::from_secs(2);
/// The longest time of a flag in milliseconds: a day.
const MILLISECONDS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Settings in the address of Redis that may stand in a log …
const TOLD: &[&str] = &["ca", "cert", "key", "name", "db", "user", "sentinel-user", "protocol"];
/// … and those that may not.
const SECRET: &[&str] = &["pass", "sentinel-pass"];
/// Exit status after a second signal.
pub const SECOND_SIGNAL_EXIT: i32 = 130;

/// Configuration of a node.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Address for clients, workers and the console.
    #[arg(long, env = "EVERTHREAD_LISTEN", default_value = "127.0.0.1:7400", value_parser = address)]
    pub listen: SocketAddr,
    /// Address for /livez, /readyz and /metrics.
    #[arg(long, env = "EVERTHREAD_ADMIN", default_value = "127.0.0.1:7401", value_parser = address)]
    pub admin: SocketAddr,
    /// Where the embedded store keeps its file.
    #[arg(long, env = "EVERTHREAD_DATA_DIR", default_value = DEV_DATA_DIR)]
    pub data_dir: PathBuf,
    /// Use this Redis (7.0 or later) instead of the embedded store: redis://host:port, redis-sentinel://host,host,host/NAME,
    /// redis-cluster://host,host or unix:///path; rediss… for TLS. `everthread doctor` looks at it.
    #[arg(long, env = "EVERTHREAD_REDIS", hide_env_values = true)]
    pub redis: Option<String>,
    /// First part of every key in Redis.
    #[arg(long, env = "EVERTHREAD_REDIS_PREFIX", default_value = "et")]
    pub redis_prefix: String,
    /// What the embedded store survives without losing an acknowledged entry.
    #[arg(long, env = "EVERTHREAD_DURABILITY", value_enum, default_value_t = Durability::PowerCut)]
    pub durability: Durability,
    /// What a worker's write survives before it is acknowledged, where the write does not say: accepted, replicated or
    /// fsynced.
    #[arg(long, env = "EVERTHREAD_ACK", default_value_t = Level::Accepted)]
    pub ack: Level,
    /// The same of everything that is decided, such as input, controls and ends of runs. If not given: replicated while the
    /// store has a replica that follows.
    #[arg(long, env = "EVERTHREAD_ACK_DECISIONS")]
    pub ack_decisions: Option<Level>,
    /// The token that clients and workers present. `dev` has one of its own if none is given.
    #[arg(long, env = "EVERTHREAD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Name of this node, for logs. Made at the start if none is given.
    #[arg(long, env = "EVERTHREAD_NODE")]
    pub node: Option<String>,
    /// How long a run stays with a worker that shows no sign of life, in milliseconds.
    #[arg(long, env = "EVERTHREAD_LEASE_MS", default_value_t = 4000, value_parser = milliseconds())]
    pub lease_ms: u64,
    /// How often workers are pinged, in milliseconds.
    #[arg(long, env = "EVERTHREAD_WORKER_HEARTBEAT_MS", default_value_t = 1000, value_parser = milliseconds())]
    pub worker_heartbeat_ms: u64,
    /// How long a worker whose socket closed may take to come back, in milliseconds.
    #[arg(long, env = "EVERTHREAD_RETURN_GRACE_MS", default_value_t = 1500, value_parser = milliseconds())]
    pub return_grace_ms: u64,
    /// How long a worker has to end a run that is cancelled, in milliseconds.
    #[arg(long, env = "EVERTHREAD_CANCEL_GRACE_MS", default_value_t = 5000, value_parser = milliseconds())]
    pub cancel_grace_ms: u64,
    /// How long a client may be silent before it is pinged, in milliseconds.
    #[arg(long, env = "EVERTHREAD_HEARTBEAT_MS", default_value_t = 25_000, value_parser = milliseconds())]
    pub heartbeat_ms: u64,
    /// How long a client's socket may take no byte before it is closed, in milliseconds.
    #[arg(long, env = "EVERTHREAD_STALL_MS", default_value_t = 60_000, value_parser = milliseconds())]
    pub stall_ms: u64,
    /// How long a node that shows no sign of life counts as living: then its members are not present any more, in
    /// milliseconds.
    #[arg(long, env = "EVERTHREAD_PRESENCE_TTL_MS", default_value_t = 10_000, value_parser = milliseconds())]
    pub presence_ttl_ms: u64,
    /// How long somebody who leaves is shown as present, and may come back, in milliseconds.
    #[arg(long, env = "EVERTHREAD_PRESENCE_GRACE_MS", default_value_t = 3_000, value_parser = milliseconds())]
    pub presence_grace_ms: u64,
    /// How long a stopping node is not ready and still serves, until load balancers have noticed, in milliseconds. 2000;
    /// on a loopback address 0.
    #[arg(long, env = "EVERTHREAD_DRAIN_DELAY_MS", value_parser = milliseconds())]
    pub drain_delay_ms: Option<u64>,
    /// How long a stopping node waits for its connections after that, in milliseconds: good-byes are spread over it.
    #[arg(long, env = "EVERTHREAD_DRAIN_MS", default_value_t = 5000, value_parser = milliseconds())]
    pub drain_ms: u64,
    /// How many clients may connect within a second; the others are told when to come again.
    #[arg(long, env = "EVERTHREAD_UPGRADES_PER_S", default_value_t = UPGRADES_PER_S,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub upgrades_per_s: u32,
    /// How often pools, deadlines and lists are built anew from the sessions, besides after every failover of Redis, in
    /// milliseconds.
    #[arg(long, env = "EVERTHREAD_REBUILD_EVERY_MS", default_value_t = 600_000, value_parser = milliseconds())]
    pub rebuild_every_ms: u64,
    #[command(flatten)]
    pub keeping: KeepingArgs,
    #[command(flatten)]
    pub archive: ArchiveArgs,
    #[command(flatten)]
    pub otlp: OtlpArgs,
    /// Form of the log.
    #[arg(long, env = "EVERTHREAD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged, such as `info` or `everthread_edge=debug`.
    #[arg(long, env = "EVERTHREAD_LOG", default_value = "info")]
    pub log: String,
}

/// What the embedded store survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// A power cut: every acknowledged entry is on the disk.
    PowerCut,
    /// A crash or kill of the process; faster.
    Crash,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object per line.
    Json,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With demo agents and a token of its own.
    Dev,
    /// In production.
    Serve,
}

/// What the flags of a node amount to.
#[derive(Debug)]
pub struct Checked {
    pub token: String,
    /// As given, or made now.
    pub node: NodeId,
    pub leases: Leases,
    pub presence: Times,
    pub folding: folder::Options,
    pub retention: retention::Options,
    /// Where traces go.
    pub traces: Option<Url>,
    /// If the store is on Redis.
    pub redis: Option<Options>,
}

impl NodeArgs {
    /// The times, checked against each other.
    fn leases(&self) -> anyhow::Result<Leases> {
        ensure!(
            self.worker_heartbeat_ms >= 100 && self.lease_ms >= 3 * self.worker_heartbeat_ms,
            "--lease-ms ({}) must be at least three times --worker-heartbeat-ms ({}, at least 100): a single lost ping \
             must not kill a run",
            self.lease_ms,
            self.worker_heartbeat_ms
        );
        ensure!(
            self.return_grace_ms <= self.lease_ms,
            "--return-grace-ms ({}) must not be longer than --lease-ms ({})",
            self.return_grace_ms,
            self.lease_ms
        );
        ensure!(self.cancel_grace_ms > 0, "--cancel-grace-ms must be more than 0");
        ensure!(self.heartbeat_ms >= 1000, "--heartbeat-ms must be at least 1000");
        ensure!(self.stall_ms >= 1000, "--stall-ms must be at least 1000");
        ensure!(self.rebuild_every_ms >= 1000, "--rebuild-every-ms must be at least 1000");
        Ok(Leases {
            lease: Duration::from_millis(self.lease_ms),
            heartbeat: Duration::from_millis(self.worker_heartbeat_ms),
            return_grace: Duration::from_millis(self.return_grace_ms),
            cancel_grace: Duration::from_millis(self.cancel_grace_ms),
        })
    }

    /// How sure acknowledgements are.
    pub fn acks(&self) -> Acks {
        Acks { appends: self.ack, decisions: self.ack_decisions }
    }

    /// The times of presence, checked against each other.
    fn presence(&self) -> anyhow::Result<Times> {
        ensure!(self.presence_ttl_ms >= 1000, "--presence-ttl-ms must be at least 1000");
        ensure!(
            self.presence_grace_ms <= self.presence_ttl_ms,
            "--presence-grace-ms ({}) must not be longer than --presence-ttl-ms ({})",
            self.presence_grace_ms,
            self.presence_ttl_ms
        );
        Ok(Times {
            node_ttl: Duration::from_millis(self.presence_ttl_ms),
            grace: Duration::from_millis(self.presence_grace_ms),
            ..Times::default()
        })
    }

    /// How long a stopping node still serves.
    pub fn drain_delay(&self) -> Duration {
        let default = if self.listen.ip().is_loopback() { Duration::ZERO } else { DRAIN_DELAY };
        self.drain_delay_ms.map_or(default, Duration::from_millis)
    }

    /// All that can be said of them before anything is opened or asked: what `serve` refuses, `check-config` does, too.
    pub fn checked(&self, mode: Mode) -> anyhow::Result<Checked> {
        let leases = self.leases()?;
        EnvFilter::try_new(&self.log).with_context(|| format!("--log {}", self.log))?;
        let node: NodeId = match &self.node {
            Some(node) => node.parse().context("--node")?,
            None => {
                format!("n-{}", ulid::Ulid::generate().to_string().to_lowercase()).parse().context("node")?
            }
        };
        let redis = self.redis.as_ref().map(|url| Options::new(url, &self.redis_prefix, node.clone()));
        if let Some(redis) = &redis {
            redis.check().context("--redis")?;
        }
        Ok(Checked {
            leases,
            presence: self.presence()?,
            folding: self.keeping.folding()?,
            retention: self.keeping.retention()?,
            traces: self.otlp.target()?,
            node,
            redis,
            token: self.token(mode)?,
        })
    }

    /// The token, or a reason not to start.
    fn token(&self, mode: Mode) -> anyhow::Result<String> {
        match (&self.token, mode) {
            (Some(token), _) => {
                ensure!(
                    token.len() >= 8 || self.listen.ip().is_loopback(),
                    "--token is too short for an address that others can reach: use at least 8 characters"
                );
                ensure!(
                    everthread_protocol::id::is_valid(token),
                    "--token: only A-Z a-z 0-9 _ . - (it travels in a WebSocket subprotocol), at most 128 characters"
                );
                Ok(token.clone())
            }
            (None, Mode::Dev) if self.listen.ip().is_loopback() => dev_token(&self.data_dir),
            (None, Mode::Dev) => bail!(
                "--listen {} can be reached by others, so --token (EVERTHREAD_TOKEN) is needed",
                self.listen
            ),
            (None, Mode::Serve) => {
                bail!("--token (EVERTHREAD_TOKEN) is needed: clients and workers present it")
            }
        }
    }
}

/// A time of which a mistyped zero more is no hundred years.
fn milliseconds() -> RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(..=MILLISECONDS_MAX)
}

/// Where to listen. A name may stand for several addresses, or for none yet.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an IP address and a port, such as 127.0.0.1:7400 or [::]:7400".to_owned())
}

/// The development token: made once, kept beside the data, so that a restart does not lock open pages out.
fn dev_token(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("token");
    match std::fs::read_to_string(&path) {
        Ok(token) if everthread_protocol::id::is_valid(token.trim()) => return Ok(token.trim().to_owned()),
        Ok(_) => bail!("{} holds no token: delete it", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    std::fs::create_dir_all(data_dir).with_context(|| format!("cannot create {}", data_dir.display()))?;
    let token = format!("dev-{}", ulid::Ulid::generate().to_string().to_lowercase());
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).with_context(|| format!("cannot create {}", path.display()))?;
    std::io::Write::write_all(&mut file, token.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(token)
}

/// The token for a node on this machine: as given, or that of a `dev` in this folder.
pub fn client_token(given: Option<String>) -> anyhow::Result<String> {
    if let Some(token) = given {
        return Ok(token);
    }
    let path = Path::new(DEV_DATA_DIR).join("token");
    std::fs::read_to_string(&path).map(|token| token.trim().to_owned()).with_context(|| {
        format!("--token (EVERTHREAD_TOKEN) is needed: there is no {} of a `dev` here", path.display())
    })
}

/// A model that the environment names for `dev`.
#[derive(Debug)]
pub struct DemoModel {
    base_url: String,
    model: String,
    api_key: Option<String>,
}

/// `OPENAI_BASE_URL`, with `OPENAI_MODEL` and `OPENAI_API_KEY`.
pub fn demo_model() -> Option<DemoModel> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let base_url = set("OPENAI_BASE_URL")?;
    let model = set("OPENAI_MODEL").unwrap_or_else(|| "gpt-4o-mini".to_owned());
    Some(DemoModel { base_url, model, api_key: set("OPENAI_API_KEY") })
}

impl DemoModel {
    /// The worker's configuration for it.
    pub fn args(self, url: &str, agent: &str) -> OpenAiArgs {
        OpenAiArgs {
            base_url: self.base_url,
            model: self.model,
            agent: agent.to_owned(),
            capacity: 16,
            url: url.to_owned(),
            token: None,
            api_key: self.api_key,
            system: None,
            max_tokens: 1024,
            first_token_ms: 120_000,
            idle_ms: 60_000,
            tools: None,
        }
    }
}

/// Starts the log of a node.
pub fn start_log(args: &NodeArgs) -> anyhow::Result<()> {
    start_log_with(&args.log, args.log_format)
}

/// Starts the log.
pub fn start_log_with(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter}"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            log.with_target(false).with_ansi(is_terminal).try_init()
        }
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("the log does not start: {error}"))
}

/// Variables that look like settings and are none: mistyped, or of another release. A process of containers may find more in
/// its environment than it was given, so they are told and no reason not to start.
pub fn unknown_variables<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    fn known(command: &clap::Command, all: &mut HashSet<String>) {
        let names = command.get_arguments().filter_map(clap::Arg::get_env);
        all.extend(names.map(|name| name.to_string_lossy().into_owned()));
        command.get_subcommands().for_each(|command| known(command, all));
    }
    let mut all = HashSet::new();
    known(&crate::Cli::command(), &mut all);
    let is_unknown = |name: &&str| name.starts_with("EVERTHREAD_") && !all.contains(*name);
    names.into_iter().filter(is_unknown).collect()
}

/// Those of this process.
pub fn unknown_variables_here() -> Vec<String> {
    let names: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    unknown_variables(names.iter().map(String::as_str)).into_iter().map(str::to_owned).collect()
}

/// `check-config`: everything `serve` would refuse, without starting; and whether the archive answers.
#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub async fn check(args: NodeArgs) -> anyhow::Result<()> {
    args.checked(Mode::Serve)?;
    let store = match &args.redis {
        Some(url) => format!("redis at {}", without_password(url)),
        None => format!("embedded in {}", args.data_dir.display()),
    };
    let archive = args.archive.check().await?;
    for name in unknown_variables_here() {
        println!("{name} is no setting of this release");
    }
    println!(
        "the configuration is good: listen {}, admin {}, store {store}{archive}",
        args.listen, args.admin
    );
    Ok(())
}

/// A URL as it may stand in a log: without user and password, however they are written, and with settings that are known to
/// hold no secret.
pub fn without_password(url: &str) -> String {
    let (scheme, rest) =
        url.split_once("://").map_or(("", url), |(_, rest)| (&url[..url.len() - rest.len()], rest));
    let (place, query) = match (rest.rfind('@'), rest.find('?')) {
        // Of a password that is not escaped, or of a setting: nobody can say where it ends.
        (Some(at), Some(mark)) if mark < at => return format!("{scheme}…"),
        (_, mark) => rest.split_at(mark.unwrap_or(rest.len())),
    };
    let mut told = match place.rfind('@') {
        Some(at) => format!("{scheme}…{}", &place[at..]),
        None => format!("{scheme}{place}"),
    };
    for (n, pair) in query.split(['?', '&']).skip(1).enumerate() {
        told.push(if n == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) if TOLD.contains(&name) => told.push_str(pair),
            Some((name, _)) if SECRET.contains(&name) => told.extend([name, "=…"]),
            _ => told.push('…'),
        }
    }
    told
}

/// Tells the person at the terminal why the command failed.
#[expect(clippy::print_stderr, reason = "the last word of a failed command")]
pub fn complain(message: &str) -> ExitCode {
    eprintln!("everthread: {message}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::{unknown_variables, without_password};

    #[test]
    fn a_mistyped_variable_is_told_and_one_of_a_worker_is_not() {
        let names = [
            "EVERTHREAD_LEASE_MS",
            concat!("EVERTHREAD_", "LEASEMS"),
            "EVERTHREAD_MODEL",
            "PATH",
            "EVERTHREAD_OTLP",
        ];
        assert_eq!(unknown_variables(names), [concat!("EVERTHREAD_", "LEASEMS")]);
    }

    #[test]
    fn no_password_reaches_a_log() {
        for (url, told) in [
            ("redis://h:1/2", "redis://h:1/2"),
            ("redis://u:secret@h", "redis://…@h"),
            ("rediss-cluster://:secret@a,b?ca=/x", "rediss-cluster://…@a,b?ca=/x"),
            (
                "redis-sentinel://u:secret@a/m?sentinel-pass=secret&sentinel-user=s",
                "redis-sentinel://…@a/m?sentinel-pass=…&sentinel-user=s",
            ),
            ("unix:///r.sock?user=u&pass=secret", "unix:///r.sock?user=u&pass=…"),
            // Not escaped.
            ("redis://u:sec/ret@h:1/2", "redis://…@h:1/2"),
            ("redis://u:sec@ret@h", "redis://…@h"),
            ("redis://u:sec?ret@h:1", "redis://…"),
            ("redis://h?pass=secr@t", "redis://…"),
            ("redis://h?pass=secr?t", "redis://h?pass=…&…"),
            ("redis://h?ca=/x&pass=sec&ret", "redis://h?ca=/x&pass=…&…"),
            ("redis://h?pass=sec&ret=2", "redis://h?pass=…&…"),
            ("u:secret@h:1", "…@h:1"),
        ] {
            assert_eq!(without_password(url), told);
        }
    }
}
