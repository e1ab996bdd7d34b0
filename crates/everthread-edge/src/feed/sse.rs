//! `GET /v1/feed`: the feed as server-sent events.

use super::Watch;
use crate::departure::{Guest, Role};
use crate::http::{Answer, query, stream_response};
use crate::sse::{Counted, HEARTBEAT, bye_event, event};
use crate::tail::Wake;
use crate::{Edge, feed::board::News};
use axum::body::Body;
use axum::extract::{Request, State};
use bytes::Bytes;
use everthread_protocol::DeviceId;
use everthread_protocol::frame::{check_recent, recent};
use everthread_store::{Error, Store};
use futures_util::stream;
use serde::Deserialize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Pause before what could not be read is read again.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeedQuery {
    #[serde(default = "recent")]
    recent: usize,
    device: Option<DeviceId>,
}

/// The route.
pub(crate) async fn follow<S: Store>(State(edge): State<Edge<S>>, request: Request) -> Answer {
    let identity = edge.config.auth.check_headers(request.headers())?;
    let asked: FeedQuery = query(&request)?;
    check_recent(asked.recent)?;
    let wake = Arc::new(Wake::default());
    let watch = edge.feeds.watch(&identity.tenant, asked.device, asked.recent, wake.clone(), 0);
    let counted = Counted::new(edge.metrics.connections.with_label_values(&["sse"]));
    let (queue, guest) = (VecDeque::new(), edge.departures.enter());
    let events = Events { edge, watch, wake, queue, is_over: false, guest, _counted: counted };
    let events = stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), events))
    });
    Ok(stream_response(Body::from_stream(events)))
}

struct Events<S> {
    edge: Edge<S>,
    watch: Watch,
    wake: Arc<Wake>,
    queue: VecDeque<Bytes>,
    is_over: bool,
    guest: Guest,
    _counted: Counted,
}

impl<S: Store> Events<S> {
    /// The next event; none when the node drains.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(event) = self.queue.pop_front() {
                self.edge.metrics.feed_frames.inc();
                return Some(event);
            }
            match self.watch.news() {
                Some(news) => {
                    if let Err(error) = self.tell(news).await {
                        tracing::debug!(%error, "a watcher waits for the store");
                        self.watch.restart();
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                None => tokio::select! {
                    () = self.wake.woken() => self.wake.take(&mut Vec::new()),
                    () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(b":\n\n")),
                    () = self.edge.departures.goes(&self.guest, Role::Client) => {
                        self.is_over = true;
                        return Some(bye_event(&self.edge.departures, &self.guest));
                    }
                },
            }
        }
    }

    async fn tell(&mut self, news: News) -> Result<(), Error> {
        let devices = match self.watch.asks(&news) {
            Some(asks) => self.edge.feeds.read(asks).await?,
            None => Vec::new(),
        };
        for frame in self.watch.frames(news, &devices) {
            let data = serde_json::to_string(&frame).map_err(|e| Error::Corrupt(e.to_string()))?;
            self.queue.push_back(event("sessions", None, &data));
        }
        Ok(())
    }
}
