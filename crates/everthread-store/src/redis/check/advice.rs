//! What to do where a server cannot be talked to: the errors of the driver and of Redis say only what went wrong.

/// What the reasons have in them, and what to look at.
const ADVICE: &[(&str, &str)] = &[
    ("WRONGPASS", "look at user and password in the address; special characters are written as %40"),
    ("NOAUTH", "it wants a name and a password: redis://user:password@host"),
    ("no permission", "give the user the rules of deploy/redis/users.conf"),
    ("onnection refused", "does Redis run there, and does it listen on that address (`bind`, `port`)?"),
    ("failed to lookup address", "look at the name of the host"),
    (
        "no connection within",
        "a firewall? And who wants TLS answers rediss:// only, who does not redis:// only",
    ),
    ("Parse error", "does Redis listen there, and not something else?"),
    ("cluster support disabled", "it is no cluster: its address begins with redis://"),
    ("refused to switch database", "name a database that it has, or none: clusters have only the first"),
    (
        "protected mode",
        "it takes connections of its own machine only: give it users (deploy/redis/users.conf)",
    ),
];

/// A reason, and what to do about it if that is known.
pub(super) fn advised(why: &str) -> String {
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    match ADVICE.iter().find(|(sign, _)| why.contains(sign)) {
        Some((_, advice)) => format!("{why}: {advice}"),
        None => why,
    }
}
