//! The feed on a connection: one watcher, and the frames that the socket has not taken yet.

use super::Connection;
use crate::auth::Identity;
use crate::feed::{News, Watch};
use everthread_protocol::frame::{self, ServerFrame};
use everthread_store::{Device, Error, Store};
use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::time::Duration;

/// What the feed's wake-ups are marked with: attachments count from 1.
pub(super) const FEED: u32 = 0;
/// Pause before what could not be read is read again.
const PAUSE: Duration = Duration::from_millis(500);

/// A connection's part in the feed.
pub(super) struct Watching {
    watch: Watch,
    /// There may be news.
    is_ready: bool,
    frames: VecDeque<String>,
}

/// How far a device has read the sessions of the news, and the news.
pub(super) type Read = (News, Result<Vec<Option<Device>>, Error>);

impl<S: Store> Connection<S> {
    pub(super) fn on_watch(&mut self, watch: &frame::Watch, identity: &Identity) {
        let (tenant, device) = (&identity.tenant, identity.author.device.clone());
        let watch = self.edge.feeds.watch(tenant, device, watch.recent, self.wake.clone(), FEED);
        self.reading = None;
        self.watching = Some(Watching { watch, is_ready: true, frames: VecDeque::new() });
    }

    pub(super) fn on_unwatch(&mut self) {
        (self.watching, self.reading) = (None, None);
    }

    /// There may be news.
    pub(super) fn on_news(&mut self) {
        if let Some(watching) = &mut self.watching {
            watching.is_ready = true;
        }
    }

    /// Whether there is something to tell at once.
    pub(super) fn has_news(&self) -> bool {
        let is_ready = |watching: &Watching| watching.is_ready && self.reading.is_none();
        self.watching.as_ref().is_some_and(|watching| !watching.frames.is_empty() || is_ready(watching))
    }

    /// Sends one frame of the feed, if there is one.
    pub(super) fn serve_feed(&mut self) {
        let Some(watching) = &mut self.watching else { return };
        if watching.frames.is_empty() && watching.is_ready && self.reading.is_none() {
            match watching.watch.news() {
                None => watching.is_ready = false,
                Some(news) => match watching.watch.asks(&news) {
                    None => watching.take(news, &[]),
                    Some(asks) => self.reading = Some(read(news, self.edge.feeds.read(asks))),
                },
            }
        }
        if let Some(frame) = self.watching.as_mut().and_then(|watching| watching.frames.pop_front()) {
            self.edge.metrics.feed_frames.inc();
            self.outbox.text(frame);
        }
    }

    pub(super) fn on_read(&mut self, (news, devices): Read) {
        let Some(watching) = &mut self.watching else { return };
        match devices {
            Ok(devices) => watching.take(news, &devices),
            Err(error) => {
                tracing::debug!(%error, "a watcher waits for the store");
                watching.watch.restart();
            }
        }
    }
}

impl Watching {
    fn take(&mut self, news: News, devices: &[Option<Device>]) {
        let frames = self.watch.frames(news, devices).into_iter();
        self.frames.extend(frames.map(|frame| ServerFrame::Sessions(frame).encode()));
    }
}

fn read(
    news: News,
    reading: impl Future<Output = Result<Vec<Option<Device>>, Error>> + Send + 'static,
) -> BoxFuture<'static, Read> {
    Box::pin(async move {
        let devices = reading.await;
        if devices.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        (news, devices)
    })
}
