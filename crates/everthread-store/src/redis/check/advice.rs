//! What to do where a server cannot be talked to: the errors of the driver and of Redis say only what went wrong.

/// What the reasons have in them, what that is about, and what to look at. About a connection is what may mend itself.
const ADVICE: &[(&str, &str, &str)] = &[
    ("WRONGPASS", "login", "look at user and password in the address; special characters are written as %40"),
    ("NOAUTH", "login", "it wants a name and a password: redis://user:password@host"),
    ("no permission", "permissions", "give the user the rules of deploy/redis/users.conf"),
    ("support HELLO", "version", "it is too old: 7.0 or later is needed"),
    (
        "onnection refused",
        "connection",
        "does Redis run there, and does it listen on that address (`bind`, `port`)?",
    ),
    ("failed to lookup address", "connection", "look at the name of the host"),
    (
        "no connection within",
        "connection",
        "a firewall? And who wants TLS answers rediss:// only, who does not redis:// only",
    ),
    ("loading the dataset", "connection", "it reads its data from the disk, and answers when it has"),
    ("Parse error", "connection", "does Redis listen there, and not something else?"),
    ("cluster support disabled", "role", "it is no cluster: its address begins with redis://"),
    (
        "refused to switch database",
        "address",
        "name a database that it has, or none: clusters have only the first",
    ),
    (
        "protected mode",
        "connection",
        "it takes connections of its own machine only: give it users (deploy/redis/users.conf)",
    ),
];

/// A reason, and what to do about it if that is known.
pub(in crate::redis) fn advised(why: &str) -> String {
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    match ADVICE.iter().find(|(sign, ..)| why.contains(sign)) {
        Some((_, _, advice)) => format!("{why}: {advice}"),
        None => why,
    }
}

/// What a reason is about, as findings name it.
pub(super) fn kind_of(why: &str) -> &'static str {
    ADVICE.iter().find(|(sign, ..)| why.contains(sign)).map_or("connection", |(_, about, _)| about)
}
