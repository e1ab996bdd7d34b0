//! How sure an acknowledgement is.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What an acknowledged write survives. Each level holds what those before it hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The store has taken it.
    #[default]
    Accepted,
    /// Every replica that follows its primary has it, too, and there is at least one.
    Replicated,
    /// It is on the disk of the primary, besides.
    Fsynced,
}

impl Level {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Accepted => "accepted",
            Level::Replicated => "replicated",
            Level::Fsynced => "fsynced",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// There is no level of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a level is accepted, replicated or fsynced")]
pub struct NoLevel;

impl FromStr for Level {
    type Err = NoLevel;

    fn from_str(text: &str) -> Result<Self, NoLevel> {
        [Level::Accepted, Level::Replicated, Level::Fsynced]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or(NoLevel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ordered_and_read_as_they_are_written() {
        let all = [Level::Accepted, Level::Replicated, Level::Fsynced];
        assert!(all.is_sorted());
        for level in all {
            assert_eq!(level.as_str().parse(), Ok(level));
            assert_eq!(serde_json::to_value(level).unwrap(), level.as_str());
        }
        assert_eq!("sure".parse::<Level>(), Err(NoLevel));
    }
}
