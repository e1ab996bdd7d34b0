//! What the address of Redis says: which kind of set-up, where its servers are, who we are there, and how to trust it.
//!
//! `redis://…`, `rediss://…` (TLS) and `unix://…` name one server; `redis-sentinel://host,host,host/NAME` the primary that
//! the sentinels know as NAME; `redis-cluster://host,host` a cluster by some of its servers. `rediss-sentinel` and
//! `rediss-cluster` are the same with TLS. No I/O here. **Invariant:** no error has a piece of the address in it: where it
//! is not written as it should be, any piece may be one of the password.

use crate::Error;
use std::fmt;
use std::path::PathBuf;

/// Where a server listens unless the address says otherwise.
const REDIS_PORT: u16 = 6379;
/// Where a sentinel does.
const SENTINEL_PORT: u16 = 26379;
/// What may stand behind the `?`.
const SETTINGS: &[&str] =
    &["user", "pass", "db", "ca", "cert", "key", "name", "sentinel-user", "sentinel-pass", "protocol"];
const UNKNOWN: &str = "what stands before its `://` is unknown: it is redis, redis-sentinel, redis-cluster, the same with \
                       rediss for TLS, or unix";
/// What is wrong with most addresses that cannot be read.
const UNESCAPED: &str = "there is a `/` or a `?` before an `@`: in user and password special characters must be \
                         percent-encoded (`/` as %2F, `?` as %3F, `@` as %40, `%` as %25)";

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Endpoint {
    /// A name or an address, and a port.
    Tcp(String, u16),
    /// A socket on this machine.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A name that stands for whoever has it.
            Endpoint::Tcp(name, 0) => f.write_str(name),
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Endpoint {
    /// `host:port`, `[host]:port`, or a host alone.
    pub(super) fn parse(text: &str, port: u16) -> Option<Self> {
        let (host, given) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map(|(host, port)| (host, port.strip_prefix(':')))?,
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = given.map_or(Some(port), |port| port.parse().ok())?;
        (!host.is_empty()).then(|| Endpoint::Tcp(host.to_owned(), port))
    }
}

/// Who we are at a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    /// An ACL user; the default one if there is none.
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// Number of the database; a cluster has only 0.
    pub(super) db: i64,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("db", &self.db).finish_non_exhaustive()
    }
}

/// How a server is trusted, and how it may trust us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    /// PEM: who may have signed the server's certificate. Without it those whom the system trusts.
    pub(super) ca: Option<PathBuf>,
    /// PEM: our certificate and what leads to its signer …
    pub(super) cert: Option<PathBuf>,
    /// … and its key.
    pub(super) key: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the host of the address.
    pub(super) name: Option<String>,
}

/// Which kind of set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// One server.
    One(Endpoint),
    /// A primary that sentinels watch.
    Sentinel {
        sentinels: Vec<Endpoint>,
        /// What they call it.
        name: String,
        /// Who we are at the sentinels.
        login: Login,
    },
    /// A cluster, by some of its servers.
    Cluster(Vec<Endpoint>),
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) kind: Kind,
    pub(super) login: Login,
    pub(super) tls: Option<TlsFiles>,
}

impl Address {
    /// Reads an address.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let why = |why: String| if is_unescaped(url) { UNESCAPED.to_owned() } else { why };
        read(url).map_err(|e| Error::Unavailable(format!("the address of Redis is not usable: {}", why(e))))
    }
}

/// Whether user and password seem to end where they do not. Only of an address that cannot be read otherwise: a value behind
/// the `?` may have an `@` in it.
fn is_unescaped(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    scheme.starts_with("redis") && rest[end..].contains('@')
}

fn read(url: &str) -> Result<Address, String> {
    let (scheme, rest) = url.split_once("://").ok_or("it has no `redis://`, `rediss://` … before it")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut query = Query::parse(query)?;
    let mut login = Login { user: query.take("user"), password: query.take("pass"), db: 0 };
    if let Some(db) = query.take("db") {
        login.db = number_of_db(&db)?;
    }
    if let "unix" | "redis+unix" = scheme {
        query.finish()?;
        return Ok(Address { kind: Kind::One(Endpoint::Unix(rest.into())), login, tls: None });
    }
    let (scheme, is_tls) = match scheme.strip_prefix("rediss") {
        Some(kind) => (kind, true),
        None => (scheme.strip_prefix("redis").ok_or(UNKNOWN)?, false),
    };
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (who, hosts) = match hosts.rsplit_once('@') {
        Some((who, hosts)) => (Some(who), hosts),
        None => (None, hosts),
    };
    if let Some(who) = who {
        let (user, password) = who.split_once(':').unwrap_or((who, ""));
        let some = |text: &str| if text.is_empty() { Ok(None) } else { decoded(text).map(Some) };
        (login.user, login.password) = (some(user)?, some(password)?);
    }
    let endpoints = |port| {
        let endpoint = |(n, host)| {
            let why = || format!("number {} of the servers that it names is no host and port", n + 1);
            Endpoint::parse(host, port).ok_or_else(why)
        };
        hosts.split(',').enumerate().map(endpoint).collect::<Result<Vec<_>, _>>()
    };
    let kind = match scheme {
        "" => {
            if !path.is_empty() {
                login.db = number_of_db(path)?;
            }
            match <[Endpoint; 1]>::try_from(endpoints(REDIS_PORT)?) {
                Ok([endpoint]) => Kind::One(endpoint),
                Err(_) => {
                    return Err(
                        "it names several servers: is it `redis-cluster://` or `redis-sentinel://`?".into()
                    );
                }
            }
        }
        "-sentinel" => {
            if path.is_empty() {
                return Err(
                    "it must end with the name of the primary, as in `redis-sentinel://host:26379/NAME`"
                        .into(),
                );
            }
            // No name of a primary has either.
            if path.contains(['/', '@']) {
                return Err("what stands behind the servers is no name of a primary".into());
            }
            let login =
                Login { user: query.take("sentinel-user"), password: query.take("sentinel-pass"), db: 0 };
            Kind::Sentinel { sentinels: endpoints(SENTINEL_PORT)?, name: decoded(path)?, login }
        }
        "-cluster" if !path.is_empty() && path != "0" => {
            return Err("a cluster has no numbered databases".into());
        }
        "-cluster" => Kind::Cluster(endpoints(REDIS_PORT)?),
        _ => return Err(UNKNOWN.into()),
    };
    let tls = is_tls.then(|| TlsFiles {
        ca: query.take("ca").map(PathBuf::from),
        cert: query.take("cert").map(PathBuf::from),
        key: query.take("key").map(PathBuf::from),
        name: query.take("name"),
    });
    if tls.as_ref().is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
        return Err("`cert` and `key` go together".into());
    }
    query.finish()?;
    Ok(Address { kind, login, tls })
}

fn number_of_db(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "what stands behind the server's `/` is no number of a database".to_owned())
}

/// What stands behind the `?`.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').ok_or("something behind its `?` has no value")?;
            Ok((name.to_owned(), decoded(value)?))
        };
        text.split('&').filter(|pair| !pair.is_empty()).map(pair).collect::<Result<_, String>>().map(Self)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// What nobody took is a mistake, and may be a lost certificate: it is not passed over.
    fn finish(mut self) -> Result<(), String> {
        // Older addresses may say it; it is always RESP3.
        self.take("protocol");
        match self.0.first() {
            Some((name, _)) if SETTINGS.contains(&name.as_str()) => Err(format!("`{name}=` is unknown here")),
            Some(_) => Err(format!("something behind its `?` is none of {}", SETTINGS.join(", "))),
            None => Ok(()),
        }
    }
}

/// Text with `%40` and the like in it.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.ok_or("a `%` stands for itself only as `%25`")?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| "it holds bytes that are no text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp(host.to_owned(), port)
    }

    #[test]
    fn one_server_is_named_as_everywhere() {
        let read = |url| Address::parse(url).unwrap();
        assert_eq!(read("redis://h").kind, Kind::One(tcp("h", 6379)));
        assert_eq!(read("redis://[::1]:7000/").kind, Kind::One(tcp("::1", 7000)));
        assert_eq!(read("unix:///run/r.sock").kind, Kind::One(Endpoint::Unix("/run/r.sock".into())));
        let address = read("rediss://ann:p%40ss@h:1/3?ca=/etc/ca.pem");
        let login = Login { user: Some("ann".into()), password: Some("p@ss".into()), db: 3 };
        assert_eq!((address.kind, address.login), (Kind::One(tcp("h", 1)), login));
        assert_eq!(address.tls.unwrap().ca, Some("/etc/ca.pem".into()));
        let only_password = read("redis://:secret@h").login;
        assert_eq!((only_password.user, only_password.password), (None, Some("secret".into())));
    }

    #[test]
    fn sentinels_and_clusters_are_lists_of_servers() {
        let address = Address::parse("redis-sentinel://ann:x@a,b:1,c/main?sentinel-pass=y").unwrap();
        let login = Login { password: Some("y".into()), ..Login::default() };
        let sentinels = vec![tcp("a", 26379), tcp("b", 1), tcp("c", 26379)];
        assert_eq!(address.kind, Kind::Sentinel { sentinels, name: "main".into(), login });
        assert_eq!(address.login.user.as_deref(), Some("ann"));
        let address = Address::parse("rediss-cluster://a:1,b:2").unwrap();
        assert_eq!(address.kind, Kind::Cluster(vec![tcp("a", 1), tcp("b", 2)]));
        assert_eq!(address.tls, Some(TlsFiles::default()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_reason() {
        for (url, why) in [
            ("localhost:6379", "before it"),
            ("http://h", "unknown"),
            ("redis-magic://h", "unknown"),
            ("redis://a,b", "several servers"),
            ("redis://h:port", "no host and port"),
            ("redis://h/x", "number of a database"),
            ("redis-sentinel://a,b", "name of the primary"),
            ("redis-cluster://a/2", "no numbered databases"),
            ("redis://h?ca=/x", "`ca=` is unknown"),
            ("rediss://h?cert=/x", "go together"),
            ("redis://u:%zz@h", "%25"),
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn an_error_has_nothing_of_a_password_in_it_and_says_how_to_write_it() {
        for unescaped in [
            "redis://u:sec?ret@h",
            "redis://u:sec/ret@h",
            "redis://u:12/34@h:1",
            "redis://:sec?a=ret@h",
            "rediss-cluster://u:sec/ret,more@a,b?ca=/x",
            "redis-sentinel://u:12/ret@a,b/main",
            "redis-sentinel://u:12/ret@a,b/main?sentinel-pass=p%40",
        ] {
            let error = Address::parse(unescaped).unwrap_err().to_string();
            assert!(error.contains("%2F") && error.contains("%3F"), "{unescaped}: {error}");
            assert!(!["sec", "ret", "12", "34", "more"].iter().any(|piece| error.contains(piece)), "{error}");
        }
        // Other mistakes that leave a piece of it where something else should be.
        for url in ["redis://u:secret", "redis://h?pass=a&secret", "redis://h?pass=a&secret=b", "secret://h"]
        {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        // What can be read as it stands still is.
        let login = Address::parse("redis://h?pass=p@/?ss").unwrap().login;
        assert_eq!(login.password.as_deref(), Some("p@/?ss"));
    }

    #[test]
    fn a_password_is_not_printed() {
        let address = Address::parse("redis-sentinel://u:secret@h/m?sentinel-pass=secret").unwrap();
        assert!(!format!("{address:?}").contains("secret"));
    }
}
