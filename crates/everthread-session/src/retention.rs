//! Retention: how long a session, and how much of it, is kept.

use crate::state::{ControlStage, State};
use everthread_protocol::Millis;
use everthread_protocol::entry::Object;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::num::NonZeroU64;

/// Key of [`Retention`] in the meta of a session.
pub const RETENTION_KEY: &str = "retention";

/// Bounds on what is kept. Absent: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// The session is deleted so long after its last entry, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<NonZeroU64>,
    /// Entries that are older are dropped, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<NonZeroU64>,
    /// Older entries are dropped while the folded ones take more bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<NonZeroU64>,
}

impl Retention {
    /// What the meta of a session asks for; nothing if it says nothing, or what is wrong with what it says.
    pub fn of_meta(meta: &Object) -> Result<Self, &'static str> {
        let Some(asked) = meta.get(RETENTION_KEY) else { return Ok(Self::default()) };
        // A struct is read from an array, too.
        let Some(fields) = asked.as_object() else {
            return Err("meta.retention is an object: ttl_ms, max_age_ms, max_bytes");
        };
        let is_bad = |name: &str| {
            let number = fields.get(name).filter(|value| !value.is_null());
            number.is_some_and(|number| number.as_u64().is_none_or(|number| number == 0))
        };
        for (name, bad) in [
            ("ttl_ms", "meta.retention.ttl_ms is a whole number of milliseconds above 0"),
            ("max_age_ms", "meta.retention.max_age_ms is a whole number of milliseconds above 0"),
            ("max_bytes", "meta.retention.max_bytes is a whole number of bytes above 0"),
        ] {
            if is_bad(name) {
                return Err(bad);
            }
        }
        Self::deserialize(asked)
            .map_err(|_| "meta.retention has ttl_ms, max_age_ms, max_bytes and nothing else")
    }

    /// Of each two bounds the stricter one.
    pub fn and(self, other: Self) -> Self {
        let stricter = |a: Option<NonZeroU64>, b: Option<NonZeroU64>| a.into_iter().chain(b).min();
        Self {
            ttl_ms: stricter(self.ttl_ms, other.ttl_ms),
            max_age_ms: stricter(self.max_age_ms, other.max_age_ms),
            max_bytes: stricter(self.max_bytes, other.max_bytes),
        }
    }

    /// Whether everything is kept for ever.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// When a session whose last entry was written at `last` is deleted.
    pub fn ends_at(&self, last: Millis) -> Option<Millis> {
        self.ttl_ms.map(|ttl| last.plus(ttl.get()))
    }

    /// What was written up to then is too old at `now`.
    pub fn too_old_at(&self, now: Millis) -> Option<Millis> {
        self.max_age_ms.and_then(|age| now.0.checked_sub(age.get())).map(Millis)
    }
}

impl State {
    /// The messages that somebody will still ask for: the input of open runs, what pending controls carry, and what was said
    /// since a person took the session over. As references.
    pub fn needed_messages(&self) -> HashSet<String> {
        let inputs = self.open_runs().flat_map(|(_, run)| run.input.iter().cloned());
        let pending =
            self.controls.values().filter(|control| matches!(control.stage, ControlStage::Pending { .. }));
        let carried = pending.filter_map(|control| control.message.as_ref().map(ToString::to_string));
        let held = self.held.iter().flat_map(|hold| hold.input.iter().cloned());
        inputs.chain(carried).chain(held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(retention: Value) -> Result<Retention, &'static str> {
        let Value::Object(meta) = json!({ "title": "t", "retention": retention }) else {
            panic!("no object")
        };
        Retention::of_meta(&meta.into_iter().collect())
    }

    #[test]
    fn meta_says_what_is_kept_or_is_refused() {
        assert!(Retention::of_meta(&Object::new()).unwrap().is_none());
        assert!(of(json!({})).unwrap().is_none());
        let all = of(json!({ "ttl_ms": 3, "max_age_ms": 2, "max_bytes": 1 })).unwrap();
        assert_eq!(all.max_bytes.map(NonZeroU64::get), Some(1));
        for (bad, named) in [
            (json!("90d"), "meta.retention is"),
            (json!([1]), "meta.retention is"),
            (json!({ "ttl": 1 }), "nothing else"),
            (json!({ "ttl_ms": 0 }), "meta.retention.ttl_ms"),
            (json!({ "ttl_ms": 1, "max_age_ms": "1d" }), "meta.retention.max_age_ms"),
            (json!({ "max_bytes": -1 }), "meta.retention.max_bytes"),
        ] {
            let what = of(bad.clone()).unwrap_err();
            assert!(what.contains(named), "{bad}: {what}");
        }
        assert!(of(json!({ "ttl_ms": null })).unwrap().is_none());
    }

    #[test]
    fn of_two_bounds_the_stricter_one_holds() {
        let a = of(json!({ "ttl_ms": 30, "max_bytes": 100 })).unwrap();
        let b = of(json!({ "ttl_ms": 20, "max_age_ms": 5 })).unwrap();
        assert_eq!(a.and(b), of(json!({ "ttl_ms": 20, "max_age_ms": 5, "max_bytes": 100 })).unwrap());
        assert_eq!(a.and(b), b.and(a));
        assert_eq!(a.and(b).ends_at(Millis(1)), Some(Millis(21)));
        assert_eq!(b.too_old_at(Millis(7)), Some(Millis(2)));
        assert_eq!(
            (b.too_old_at(Millis(4)), a.too_old_at(Millis(4))),
            (None, None),
            "the clock has not run so long"
        );
    }
}
