//! The state of a session of which only a stub is left: what lists show, and when it was last written.

use crate::State;
use everthread_protocol::Millis;
use serde::{Deserialize, Serialize};

/// A brief state. Its text is that of a [`State`] with one more field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Brief {
    /// What lists show.
    #[serde(flatten)]
    pub state: State,
    /// When the last entry was written.
    pub written: Millis,
}

impl Brief {
    /// As it is stored.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// When the last entry was written, if the text says so.
    pub fn written(text: &str) -> Option<Millis> {
        #[derive(Deserialize)]
        struct Written {
            written: Millis,
        }
        serde_json::from_str(text).ok().map(|Written { written }| written)
    }
}
