//! The way of a request: by what it is about to the primary that has it.
//!
//! With one server there is no way to find; in a cluster the request goes by its slot, and again where it is sent
//! elsewhere. What is about many things is cut by primary, asked of all of them at once, and put together in order.

use super::cluster::{Cluster, Request};
use super::keys::Tag;
use super::link::{Failure, Link};
use super::script::{By, Script};
use super::shard::{Shard, Way};
use super::slots::slot_of_tag;
use ::redis::{Cmd, FromRedisValue, Pipeline};
use futures_util::future::join_all;
use std::sync::Arc;

/// All primaries.
pub(super) enum Shards {
    /// One server, or the primary of sentinels.
    One(Arc<Shard>),
    /// A cluster.
    Many(Arc<Cluster>),
}

/// The way to what one tag names.
#[derive(Clone, Copy)]
pub(super) struct Route<'a> {
    shards: &'a Shards,
    slot: u16,
    way: Way,
}

impl Shards {
    /// The way to what `tag` names.
    pub(super) fn route(&self, tag: Tag<'_>, way: Way) -> Route<'_> {
        Route { shards: self, slot: slot_of_tag(tag), way }
    }

    /// All primaries of the moment.
    pub(super) fn all(&self) -> Vec<Arc<Shard>> {
        match self {
            Shards::One(shard) => vec![shard.clone()],
            Shards::Many(cluster) => cluster.shards(),
        }
    }

    /// The primary that has what `tag` names, as far as is known.
    pub(super) fn shard(&self, tag: Tag<'_>) -> Option<Arc<Shard>> {
        match self {
            Shards::One(shard) => Some(shard.clone()),
            Shards::Many(cluster) => cluster.shard_of(slot_of_tag(tag)),
        }
    }

    /// One command about each of many things: `make` is called with the place of each in `slots`. At most `batch` of them go
    /// at once to one primary, and fail together; a primary that does not answer is no matter of the others. Whatever it is
    /// must bear to be done twice.
    pub(super) async fn each<T: FromRedisValue + Send>(
        &self,
        way: Way,
        batch: usize,
        slots: &[u16],
        make: impl Fn(usize, By) -> Cmd + Sync,
    ) -> Vec<Result<T, Failure>> {
        let (places, make): (Vec<usize>, _) = ((0..slots.len()).collect(), &make);
        let cluster = match self {
            Shards::One(shard) => {
                let mut answers = Answers::new();
                for places in places.chunks(batch) {
                    if answers.may_ask(places.len()) {
                        let link = shard.link(slots[places[0]], way);
                        answers.add(places.len(), link.many(places, make, false).await);
                    }
                }
                return answers.all;
            }
            Shards::Many(cluster) => cluster,
        };
        let parts = cluster.split(slots);
        let parts = parts.iter().map(|(shard, places)| async move {
            let mut answers = Answers::new();
            for places in places.chunks(batch) {
                if let Some(shard) = shard {
                    if !answers.may_ask(places.len()) {
                        continue;
                    }
                    match shard.link(slots[places[0]], way).many(places, make, false).await {
                        Err(Failure::Moved { .. } | Failure::Ask { .. } | Failure::Again(_)) => {}
                        told => {
                            answers.add(places.len(), told);
                            continue;
                        }
                    }
                }
                // Some of them are elsewhere: each for itself.
                let each = places.iter().map(|place| async move {
                    let one = Single(|by| make(*place, by));
                    cluster.redirected(slots[*place], way, &one).await
                });
                answers.all.extend(join_all(each).await);
            }
            (places, answers.all)
        });
        let mut all: Vec<Result<T, Failure>> = Vec::new();
        all.resize_with(slots.len(), || Err(few()));
        for (places, answers) in join_all(parts).await {
            for (place, answer) in places.iter().zip(answers) {
                all[*place] = answer;
            }
        }
        all
    }
}

impl Route<'_> {
    async fn send<T: Send>(&self, request: &impl Request<T>) -> Result<T, Failure> {
        match self.shards {
            Shards::One(shard) => request.send(shard.link(self.slot, self.way), false).await,
            Shards::Many(cluster) => cluster.redirected(self.slot, self.way, request).await,
        }
    }

    /// Sends one command.
    pub(super) async fn command<T: FromRedisValue + Send>(&self, command: &Cmd) -> Result<T, Failure> {
        self.send(&Plain(command)).await
    }

    /// Sends several commands at once. In a cluster they may be sent again, all of them, when some were executed: they must
    /// bear that. While their slot is on the move they wait.
    pub(super) async fn pipeline<T: FromRedisValue + Send>(&self, pipeline: &Pipeline) -> Result<T, Failure> {
        self.send(&Several(pipeline)).await
    }

    /// Calls a script.
    pub(super) async fn script<T: FromRedisValue + Send>(
        &self,
        script: &Script,
        keys: &[&str],
        args: &[&[u8]],
    ) -> Result<T, Failure> {
        self.call(|by| script.call(by, keys, args)).await
    }

    /// Sends the call of a script that `call` makes.
    pub(super) async fn call<T: FromRedisValue + Send>(
        &self,
        call: impl Fn(By) -> Cmd + Sync,
    ) -> Result<T, Failure> {
        self.send(&Single(call)).await
    }
}

/// One command.
struct Plain<'a>(&'a Cmd);

impl<T: FromRedisValue + Send> Request<T> for Plain<'_> {
    async fn send(&self, link: &Link, is_asking: bool) -> Result<T, Failure> {
        if !is_asking {
            return link.command(self.0).await;
        }
        only(link.many(&[0], &|_, _| self.0.clone(), true).await?)
    }
}

/// One command that may be a script's call.
struct Single<F>(F);

impl<T: FromRedisValue + Send, F: Fn(By) -> Cmd + Sync> Request<T> for Single<F> {
    async fn send(&self, link: &Link, is_asking: bool) -> Result<T, Failure> {
        if !is_asking {
            return link.call(&self.0).await;
        }
        only(link.many(&[0], &|_, by| (self.0)(by), true).await?)
    }
}

/// Several commands.
struct Several<'a>(&'a Pipeline);

impl<T: FromRedisValue + Send> Request<T> for Several<'_> {
    async fn send(&self, link: &Link, is_asking: bool) -> Result<T, Failure> {
        if is_asking {
            return Err(Failure::Again("several commands wait until their slot has moved".into()));
        }
        link.pipeline(self.0).await
    }
}

/// What one primary answers to many questions, batch by batch.
struct Answers<T> {
    all: Vec<Result<T, Failure>>,
    /// Why there is no use in asking on.
    down: Option<Failure>,
}

impl<T> Answers<T> {
    fn new() -> Self {
        Self { all: Vec::new(), down: None }
    }

    /// Whether to ask `count` questions more; those that are not asked are answered as the last.
    fn may_ask(&mut self, count: usize) -> bool {
        if let Some(failure) = self.down.clone() {
            self.add(count, Err(failure));
            return false;
        }
        true
    }

    /// The answers to `count` questions that were asked together.
    fn add(&mut self, count: usize, told: Result<Vec<T>, Failure>) {
        match told {
            Ok(answers) if answers.len() == count => self.all.extend(answers.into_iter().map(Ok)),
            Ok(_) => self.all.extend((0..count).map(|_| Err(few()))),
            Err(failure) => {
                self.all.extend((0..count).map(|_| Err(failure.clone())));
                let is_down = matches!(failure, Failure::Down(_) | Failure::Lost(_));
                self.down = is_down.then_some(failure);
            }
        }
    }
}

fn few() -> Failure {
    Failure::Broken("fewer answers than questions".into())
}

fn only<T>(answers: Vec<T>) -> Result<T, Failure> {
    answers.into_iter().next().ok_or_else(|| Failure::Broken("no answer to a command".into()))
}
