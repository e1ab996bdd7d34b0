//! Positions and numbers that only the store hands out: seq, epoch, cursor, version, fence, time.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::time::Duration;
use std::{fmt, str::FromStr};

/// Position of an entry in its session: dense, from 1, below 2^53. 0 stands for "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first entry.
    pub const ZERO: Seq = Seq(0);

    /// The position after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds since the Unix epoch on the store's clock, the only clock that decisions use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// This time plus `ms` milliseconds.
    pub fn plus(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }
}

/// A duration as the store counts: whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

macro_rules! decimal_text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        /// A string on the wire: microseconds do not fit every JSON reader's numbers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidPosition;
            fn from_str(text: &str) -> Result<Self, InvalidPosition> {
                decimal(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                from_text(d)
            }
        }
    };
}

decimal_text!(
    /// Incarnation of a session's log; a later one is greater.
    Epoch
);
decimal_text!(
    /// A lease's number; the store refuses writes of a run under any other. Compared for equality only.
    Fence
);

/// "I have applied everything up to and including `seq` of `epoch`". Opaque to clients: `"<epoch>.<seq>"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Incarnation of the log that `seq` belongs to.
    pub epoch: Epoch,
    /// Last applied position.
    pub seq: Seq,
}

/// Counts changes of a session's core state within an epoch: `"<epoch>.<n>"`. Compared for equality only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Version {
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// Number of changes.
    pub n: u64,
}

/// Why a text is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a position: a cursor or version is <epoch>.<number>, both decimal")]
pub struct InvalidPosition;

fn decimal(text: &str) -> Result<u64, InvalidPosition> {
    let canonical = text == "0" || (!text.is_empty() && !text.starts_with('0'));
    if !canonical || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidPosition);
    }
    text.parse().map_err(|_| InvalidPosition)
}

fn pair(text: &str) -> Result<(Epoch, u64), InvalidPosition> {
    let (epoch, number) = text.split_once('.').ok_or(InvalidPosition)?;
    Ok((Epoch(decimal(epoch)?), decimal(number)?))
}

fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(d: D) -> Result<T, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(d)?;
    text.parse().map_err(|e| de::Error::custom(format_args!("{text:?}: {e}")))
}

macro_rules! dotted_text {
    ($name:ident, $number:ident, $wrap:expr, $unwrap:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let number: u64 = $unwrap(self.$number);
                write!(f, "{}.{}", self.epoch, number)
            }
        }

        impl FromStr for $name {
            type Err = InvalidPosition;
            fn from_str(text: &str) -> Result<Self, InvalidPosition> {
                let (epoch, number) = pair(text)?;
                Ok(Self { epoch, $number: $wrap(number) })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                from_text(d)
            }
        }
    };
}

dotted_text!(Cursor, seq, Seq, |seq: Seq| seq.0);
dotted_text!(Version, n, |n| n, |n: u64| n);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cursors_and_versions_survive_text(epoch: u64, number: u64) {
            let cursor = Cursor { epoch: Epoch(epoch), seq: Seq(number) };
            prop_assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
            let version = Version { epoch: Epoch(epoch), n: number };
            prop_assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
        }

        #[test]
        fn any_text_is_a_cursor_or_an_error(text: String) {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }

    #[test]
    fn there_is_one_way_to_write_a_cursor() {
        for bad in
            ["", ".", "1", "1.", ".1", "01.1", "1.+1", "1.1.1", "1.-1", "18446744073709551616.0", " 1.1"]
        {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }
}
