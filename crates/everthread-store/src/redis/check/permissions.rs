//! Whether we may do what we do.
//!
//! Every command is put into a transaction that is spoiled from its beginning and so never executed: a server checks
//! permissions when a command is queued. Each is tried on a key and a channel of the deployment, and none has an effect.

use super::super::link::Failure;
use super::server::Place;
use super::{Findings, Level};
use ::redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

/// All that the engine sends and its scripts call, `KEY` and `CHANNEL` standing for those of the deployment.
const USED: &[&str] = &[
    "DEL KEY",
    "EXISTS KEY",
    "GET KEY",
    "SET KEY 1 PX 1",
    "UNLINK KEY",
    "RENAME KEY KEY",
    "PERSIST KEY",
    "PEXPIRE KEY 1",
    "HDEL KEY f",
    "HEXISTS KEY f",
    "HGET KEY f",
    "HGETALL KEY",
    "HINCRBY KEY f 1",
    "HKEYS KEY",
    "HLEN KEY",
    "HMGET KEY f",
    "HSET KEY f v",
    "XADD KEY * f v",
    "XRANGE KEY - +",
    "XREVRANGE KEY + -",
    "XLEN KEY",
    "XDEL KEY 1-0",
    "XTRIM KEY MINID 1-0",
    "XACK KEY g 1-0",
    "XAUTOCLAIM KEY g c 1 0",
    "XPENDING KEY g",
    "XREADGROUP GROUP g c STREAMS KEY >",
    "XGROUP CREATE KEY g 0",
    "XGROUP SETID KEY g 0",
    "XGROUP DESTROY KEY g",
    "XINFO STREAM KEY",
    "XINFO GROUPS KEY",
    "ZADD KEY 1 m",
    "ZRANGE KEY 0 1",
    "ZREM KEY m",
    "ZREVRANK KEY m",
    "ZSCORE KEY m",
    "SPUBLISH CHANNEL m",
    "EVAL return 1 KEY",
    "EVALSHA 0 1 KEY",
    "SCAN 0",
    "SCRIPT LOAD return",
    "TIME",
    "WAIT 0 1",
    "INFO replication",
];
/// No server knows it: it spoils a transaction.
const SPOILER: &str = "EVERTHREAD-CHECK";
/// … and in a cluster.
const USED_IN_CLUSTER: &[&str] = &["ASKING", "CLUSTER NODES"];
/// … and where there are sentinels.
const USED_WITH_SENTINELS: &[&str] = &["ROLE"];

/// What we may not do.
pub(super) struct Denied {
    command: String,
    /// What the rules do not give for it.
    want: &'static str,
}

/// Tries everything.
pub(super) async fn denied(place: &Place) -> Result<Vec<Denied>, Failure> {
    let mut used: Vec<&str> = vec!["MULTI", SPOILER];
    used.extend(USED);
    if place.is_cluster {
        used.extend(USED_IN_CLUSTER);
    } else if place.has_failover {
        used.extend(USED_WITH_SENTINELS);
    }
    used.push("EXEC");
    // These cannot be queued, and leave nothing behind.
    used.extend(["SSUBSCRIBE CHANNEL", "SUNSUBSCRIBE CHANNEL"]);
    // Nothing is ever there, even if a server should execute all of it.
    let key = format!("{}:check", place.key);
    let mut pipeline = ::redis::pipe();
    for line in &used {
        pipeline.add_command(command(line, &key));
    }
    pipeline.ignore_errors();
    let mut dialled = place.dialer.dial(|_| {}).await?;
    let answers: Vec<RedisResult<Value>> =
        dialled.request(async |connection| Ok(pipeline.query_async(connection).await?)).await?;
    Ok(used.iter().zip(answers).filter_map(|(line, answer)| refusal(line, &answer.err()?)).collect())
}

fn command(line: &str, key: &str) -> Cmd {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut command = ::redis::cmd(verb);
    let mut add = |word: &str| {
        match word {
            "KEY" => command.arg(key),
            "CHANNEL" => command.arg(format!("{key}:probe")),
            word => command.arg(word),
        };
    };
    match verb {
        // A script is one word.
        "EVAL" => ["return 1", "1", "KEY"].into_iter().for_each(&mut add),
        "EVALSHA" => ["0000000000000000000000000000000000000000", "1", "KEY"].into_iter().for_each(&mut add),
        "SCRIPT" => ["LOAD", "return 1"].into_iter().for_each(&mut add),
        _ => rest.split(' ').filter(|word| !word.is_empty()).for_each(&mut add),
    }
    command
}

/// What was refused and why, if that was for want of permission.
fn refusal(line: &str, error: &RedisError) -> Option<Denied> {
    if error.kind() != ErrorKind::Server(ServerErrorKind::NoPerm) {
        return None;
    }
    let is_name = |word: &&str| {
        !matches!(*word, "KEY" | "CHANNEL" | "GROUP" | "MINID")
            && word.chars().all(|c| c.is_ascii_uppercase())
    };
    let name: Vec<&str> = line.split(' ').take_while(is_name).collect();
    let told = error.detail().unwrap_or_default();
    let wants = ["command", "key", "channel"];
    let want = wants.into_iter().find(|want| told.contains(want)).unwrap_or("permission");
    Some(Denied { command: name.join(" "), want })
}

/// What is to be made of it.
pub(super) fn judge(server: &str, denied: &[Denied], findings: &mut Findings) {
    if denied.is_empty() {
        return findings.add(Level::Good, server, "permissions", "all that is needed");
    }
    // Without the right to a key there are forty commands for one and the same reason.
    let told = ["command", "key", "channel", "permission"].iter().filter_map(|want| {
        let commands: Vec<&str> =
            denied.iter().filter(|denied| denied.want == *want).map(|denied| &*denied.command).collect();
        (!commands.is_empty()).then(|| format!("{} (no right to the {want})", commands.join(", ")))
    });
    let told = told.collect::<Vec<_>>().join("; ");
    let told = format!("the user may not: {told}; give it the rules of deploy/redis/users.conf");
    findings.add(Level::Fault, server, "permissions", told);
}
