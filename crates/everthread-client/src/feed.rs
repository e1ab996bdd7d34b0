//! The feed: the sessions of the tenant as a list that lives, kept up across sockets. No I/O.
//!
//! The connection holds the list and shows it as it is now. Whoever looks rarely misses what was in between, and costs one
//! list.

use everthread_protocol::frame::{ClientFrame, Sessions, Summary, Unwatch, Watch};
use everthread_protocol::{RequestId, SessionId};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Sessions that are held, the most recently active ones: as many as a node holds.
const LISTED_MAX: usize = 1024;
/// Correlates the answers to `watch`, whichever.
const WATCH_ID: &str = "watch";

/// The list; none before the server has told it.
pub(crate) type Shown = Option<Arc<[Summary]>>;

/// The sessions of the tenant as they change, until it is dropped or the client is closed.
#[derive(Debug)]
pub struct Feed {
    shown: watch::Receiver<Shown>,
}

impl Feed {
    pub(crate) fn new(shown: watch::Receiver<Shown>) -> Self {
        Self { shown }
    }

    /// Waits until the list is another than it was: the sessions as they are now, most recently active first. `None` when
    /// the client is closed or watches anew. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<[Summary]>> {
        loop {
            self.shown.changed().await.ok()?;
            if let Some(shown) = self.shown.borrow_and_update().clone() {
                return Some(shown);
            }
        }
    }
}

/// The connection's part of it.
pub(crate) struct Watching {
    recent: usize,
    shown: watch::Sender<Shown>,
    listed: HashMap<SessionId, Summary>,
    /// `watch` was sent on this socket.
    is_asked: bool,
    /// Number of the last frame, from the beginning that was told on this socket.
    n: Option<u64>,
}

impl Watching {
    pub fn new(recent: usize, shown: watch::Sender<Shown>) -> Self {
        Self { recent, shown, listed: HashMap::new(), is_asked: false, n: None }
    }

    /// The socket is gone: it is watched anew on the next one. What is shown stays until then.
    pub fn disconnected(&mut self) {
        (self.is_asked, self.n) = (false, None);
    }

    /// What is to be sent.
    pub fn due(&mut self) -> Option<String> {
        if std::mem::replace(&mut self.is_asked, true) {
            return None;
        }
        let id: RequestId = WATCH_ID.parse().ok()?;
        Some(ClientFrame::Watch(Watch { id, recent: self.recent }).encode())
    }

    /// Takes a frame.
    pub fn receive(&mut self, frame: Sessions) {
        let is_next = self.n.is_some_and(|n| n + 1 == frame.n);
        if frame.sessions.is_none() && !is_next {
            // Something was lost between two frames that were: it is watched anew. Before a beginning nothing counts.
            self.is_asked &= self.n.take().is_none();
            return;
        }
        self.n = Some(frame.n);
        if frame.sessions.is_some() {
            self.listed.clear();
        }
        for summary in frame.sessions.into_iter().flatten().chain(frame.changed) {
            self.listed.insert(summary.session.clone(), summary);
        }
        for session in &frame.gone {
            self.listed.remove(session);
        }
        self.show();
    }

    /// Nobody looks any more: what is to be sent.
    pub fn end(&self) -> Option<String> {
        let id: RequestId = WATCH_ID.parse().ok()?;
        self.shown.is_closed().then(|| ClientFrame::Unwatch(Unwatch { id }).encode())
    }

    fn show(&mut self) {
        let mut all: Vec<Summary> = self.listed.values().cloned().collect();
        all.sort_by(|a, b| (b.active_at, &b.session).cmp(&(a.active_at, &a.session)));
        for old in all.drain(LISTED_MAX.min(all.len())..) {
            self.listed.remove(&old.session);
        }
        self.shown.send_replace(Some(all.into()));
    }
}

/// Whether an answer is one to `watch`.
pub(crate) fn is_of_watch(id: &str) -> bool {
    id == WATCH_ID
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Harness(Watching, watch::Receiver<Shown>);

    impl Harness {
        fn take(&mut self, n: u64, more: &str) -> Vec<String> {
            let frame = format!(r#"{{"t":"sessions","n":{n},{more}}}"#);
            self.0.receive(Sessions::decode(frame.as_bytes()).unwrap());
            let shown = self.1.borrow_and_update().clone();
            shown.iter().flat_map(|all| all.iter()).map(|one| one.session.to_string()).collect()
        }
    }

    fn one(session: &str, at: u64) -> String {
        format!(r#"{{"session":"{session}","active_at":{at},"meta":{{}},"seq":1,"runs":[],"approvals":[]}}"#)
    }

    fn started() -> Harness {
        let (shown, looks) = watch::channel(None);
        let mut watching = Watching::new(9, shown);
        assert_eq!(watching.due().unwrap(), r#"{"t":"watch","id":"watch","recent":9}"#);
        assert_eq!(watching.due(), None);
        Harness(watching, looks)
    }

    #[test]
    fn the_list_is_what_the_frames_come_to() {
        let mut h = started();
        assert_eq!(h.take(1, &format!(r#""sessions":[{},{}]"#, one("a", 2), one("b", 1))), ["a", "b"]);
        assert_eq!(h.take(2, &format!(r#""changed":[{},{}]"#, one("b", 5), one("c", 4))), ["b", "c", "a"]);
        assert_eq!(h.take(3, r#""gone":["c","z"]"#), ["b", "a"]);
        assert_eq!(h.take(4, &format!(r#""sessions":[{}]"#, one("d", 9))), ["d"], "a beginning");
    }

    #[test]
    fn after_a_lost_socket_or_a_gap_it_is_watched_anew_and_the_old_list_stays_until_then() {
        let mut h = started();
        assert_eq!(h.take(1, &format!(r#""sessions":[{}]"#, one("a", 2))), ["a"]);
        h.0.disconnected();
        assert!(h.0.due().is_some());
        assert_eq!(h.take(2, r#""gone":["a"]"#), ["a"], "of the socket before");
        assert_eq!(h.0.due(), None);
        assert_eq!(h.take(1, &format!(r#""sessions":[{}]"#, one("b", 3))), ["b"]);
        assert_eq!(h.take(3, r#""gone":["b"]"#), ["b"]);
        assert!(h.0.due().is_some(), "a gap");
    }

    #[test]
    fn more_than_a_node_holds_is_not_held_here_either() {
        let mut h = started();
        let all: Vec<String> = (0..=LISTED_MAX).map(|n| one(&format!("s{n}"), n as u64)).collect();
        let listed = h.take(1, &format!(r#""sessions":[{}]"#, all.join(",")));
        assert_eq!((listed.len(), h.0.listed.len()), (LISTED_MAX, LISTED_MAX));
        assert_eq!((&*listed[0], h.0.listed.contains_key("s0")), ("s1024", false));
    }

    #[test]
    fn when_nobody_looks_any_more_the_server_is_told() {
        let Harness(watching, looks) = started();
        assert_eq!(watching.end(), None);
        drop(looks);
        assert_eq!(watching.end().unwrap(), r#"{"t":"unwatch","id":"watch"}"#);
    }
}
