//! Where an attachment begins, as it stands in an `attach`: a cursor, a word, or an object.

use crate::limits::RECENT_MESSAGES_MAX;
use crate::position::Cursor;
use serde::{Deserialize, Serialize};

/// Where an attachment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// After this cursor.
    Cursor(Cursor),
    /// At the first entry.
    Start,
    /// With a snapshot of the last n messages.
    Recent(usize),
    /// After the durable cursor of the connection's device.
    Device,
}

impl Serialize for From {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            From::Cursor(cursor) => cursor.serialize(s),
            From::Start => s.serialize_str("start"),
            From::Device => s.serialize_str("device"),
            From::Recent(recent) => {
                use serde::ser::SerializeMap as _;
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("recent", recent)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for From {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Recent {
            recent: usize,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Any {
            Text(String),
            Recent(Recent),
        }
        match Any::deserialize(d) {
            Ok(Any::Text(text)) if text == "start" => Ok(From::Start),
            Ok(Any::Text(text)) if text == "device" => Ok(From::Device),
            Ok(Any::Text(text)) => text.parse().map(From::Cursor).map_err(serde::de::Error::custom),
            Ok(Any::Recent(r)) if r.recent <= RECENT_MESSAGES_MAX => Ok(From::Recent(r.recent)),
            Ok(Any::Recent(_)) => {
                Err(serde::de::Error::custom(format_args!("recent is at most {RECENT_MESSAGES_MAX}")))
            }
            Err(_) => {
                Err(serde::de::Error::custom("from is a cursor, \"start\", \"device\" or {\"recent\": n}"))
            }
        }
    }
}
