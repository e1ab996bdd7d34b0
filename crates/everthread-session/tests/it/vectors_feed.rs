//! The data of the vectors about the feed and the pace of an attachment.

use crate::vectors_frames::{accepted, refused};
use serde_json::{Value, json};

fn attach_folded(fold_ms: Value) -> Value {
    json!({"t": "attach", "id": "a1", "session": "s1", "from": "start", "fold_ms": fold_ms})
}

pub fn client_feed() -> Vec<Value> {
    vec![
        accepted("watch", json!({"t": "watch", "id": "1"})),
        accepted("watch: as many as there may be", json!({"t": "watch", "id": "1", "recent": 200})),
        refused(
            "watch: more than there may be",
            "bad_request",
            json!({"t": "watch", "id": "1", "recent": 201}),
        ),
        refused("watch: one session", "bad_request", json!({"t": "watch", "id": "1", "session": "s"})),
        accepted("unwatch", json!({"t": "unwatch", "id": "1"})),
        accepted("attach: folded", attach_folded(json!(40))),
        accepted("attach: folded as much as may be", attach_folded(json!(500))),
        accepted("attach: not folded", attach_folded(json!(0))),
        refused("attach: folded too much", "bad_request", attach_folded(json!(501))),
        refused("attach: folded less than not", "bad_request", attach_folded(json!(-1))),
        refused("attach: folded by a text", "bad_request", attach_folded(json!("40"))),
    ]
}

/// A session of which there is little to tell.
pub fn brief() -> Value {
    json!({"session": "s2", "active_at": 1_763_700_000_000_u64, "meta": {}, "seq": 1, "runs": [], "approvals": []})
}

/// A session of which there is everything to tell.
pub fn summary() -> Value {
    json!({"session": "s1", "active_at": 1_763_700_000_001_u64, "meta": {"title": "Trip"}, "seq": 42,
        "runs": [{"run": "r2", "agent": "guide", "status": "suspended"}],
        "approvals": [{"run": "r2", "approval": "pay", "expires": 1_763_700_900_000_u64}],
        "ended": {"run": "r1", "outcome": "completed", "at": 1_763_700_000_000_u64}, "held": true, "closed": true,
        "acked": 40, "unread_entries": 2})
}
