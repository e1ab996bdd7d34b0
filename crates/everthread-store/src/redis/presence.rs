//! Who is present, and which nodes live.
//!
//! A member is a field of the session's hash, `<node>:<member>`, that counts for as long as the node's key lives: nothing
//! is renewed per member. Whoever reads finds out which nodes are dead and removes what they held; a node that was dead
//! only to others learns it from its own beat, and holds its members anew. Everything here may be repeated.

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::read::{broken, parse, text};
use super::shard::Way;
use super::slots::slot_of_tag;
use crate::{Error, PRESENCE_KEPT, PresenceChange, Present, Told};
use ::redis::{Value, cmd};
use everthread_protocol::{Millis, NodeId, SessionKey};
use std::collections::BTreeSet;

/// Members that one call of the script changes: others wait behind it.
const CHANGES_BATCH: usize = 256;
/// Nodes that one request asks for.
const LIVING_BATCH: usize = 512;

impl Redis {
    /// See [`crate::Store::beat_node`].
    pub(super) async fn beat_for_node(&self, node: &NodeId, ttl_ms: u64) -> Result<bool, Error> {
        let mut request = cmd("SET");
        // Redis refuses 0.
        request.arg(self.inner.keys.node(node)).arg("1").arg("PX").arg(ttl_ms.max(1)).arg("GET");
        let before: Value = self.at(Tag::Node(node)).command(&request).await.map_err(Failure::of_write)?;
        Ok(before != Value::Nil)
    }

    /// See [`crate::Store::living`].
    pub(super) async fn living_of(&self, nodes: &[NodeId]) -> Result<Vec<bool>, Error> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let slots: Vec<u16> = nodes.iter().map(|node| slot_of_tag(Tag::Node(node))).collect();
        let exists = |place: usize, _| {
            let mut request = cmd("EXISTS");
            request.arg(self.inner.keys.node(&nodes[place]));
            request
        };
        let living: Vec<Result<u8, _>> =
            self.inner.shards.each(Way::Ranges, LIVING_BATCH, &slots, exists).await;
        living.into_iter().map(|lives| Ok(lives.map_err(Failure::of_read)? == 1)).collect()
    }

    /// See [`crate::Store::hold_present`].
    pub(super) async fn change_present(
        &self,
        key: &SessionKey,
        node: &NodeId,
        changes: &[PresenceChange],
    ) -> Result<(), Error> {
        let triples = changes.iter().map(|PresenceChange { member, about }| {
            let (about, since) = about.as_ref().map_or(("", None), |(about, since)| (about, *since));
            let since = since.map(|since| since.0.to_string()).unwrap_or_default();
            [format!("{node}:{member}"), since, about.to_owned()]
        });
        self.change_fields(key, &triples.collect::<Vec<_>>()).await
    }

    async fn change_fields(&self, key: &SessionKey, triples: &[[String; 3]]) -> Result<(), Error> {
        let (presence, kept) = (self.inner.keys.presence(key), PRESENCE_KEPT.as_millis().to_string());
        for batch in triples.chunks(CHANGES_BATCH) {
            let mut args = vec![kept.as_bytes()];
            args.extend(batch.iter().flatten().map(String::as_bytes));
            let answer =
                self.at(Tag::Session(key)).script::<()>(&self.inner.scripts.hold, &[&presence], &args).await;
            answer.map_err(Failure::of_write)?;
        }
        Ok(())
    }

    /// See [`crate::Store::present`].
    pub(super) async fn present_in(&self, key: &SessionKey, told_max: usize) -> Result<Vec<Present>, Error> {
        let (presence, most) = (self.inner.keys.presence(key), told_max.to_string());
        let kept = PRESENCE_KEPT.as_millis().to_string();
        let args = [most.as_bytes(), kept.as_bytes()];
        let script = &self.inner.scripts.present;
        // The reply may be long: writes must not wait behind it.
        let answer = self.ranges(Tag::Session(key)).script(script, &[&presence], &args).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_read)?;
        let mut present = Vec::new();
        match answer.split_first() {
            Some((is_told, fields)) if text(is_told)? == "told" => {
                for pair in fields.chunks_exact(2) {
                    present.push(present_of(text(&pair[0])?, Some(text(&pair[1])?))?);
                }
            }
            Some((_, fields)) => {
                for field in fields {
                    present.push(present_of(text(field)?, None)?);
                }
            }
            None => return Err(broken("an empty answer to who is present")),
        }
        let nodes: Vec<NodeId> = {
            let nodes: BTreeSet<&NodeId> = present.iter().map(|one| &one.node).collect();
            nodes.into_iter().cloned().collect()
        };
        let living = self.living_of(&nodes).await?;
        let dead: BTreeSet<&NodeId> =
            nodes.iter().zip(living).filter(|(_, lives)| !lives).map(|(node, _)| node).collect();
        if dead.is_empty() {
            return Ok(present);
        }
        let (gone, present): (Vec<_>, Vec<_>) = present.into_iter().partition(|one| dead.contains(&one.node));
        let gone =
            gone.iter().map(|one| [format!("{}:{}", one.node, one.member), String::new(), String::new()]);
        self.change_fields(key, &gone.collect::<Vec<_>>()).await?;
        Ok(present)
    }
}

/// A member from its field, and from its value if that was read.
fn present_of(field: &str, value: Option<&str>) -> Result<Present, Error> {
    let (node, member) = field.split_once(':').ok_or_else(|| broken("a member that no node holds"))?;
    let told = value.map(told_of).transpose()?;
    Ok(Present { node: parse(node)?, member: member.to_owned(), told })
}

fn told_of(value: &str) -> Result<Told, Error> {
    let mut parts = value.splitn(3, ' ');
    let (Some(since), Some(at), Some(about)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(broken("a member of whom nothing is told"));
    };
    Ok(Told { since: Millis(parse(since)?), at: Millis(parse(at)?), about: about.to_owned() })
}
