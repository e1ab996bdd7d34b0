//! Ids: newtypes that are validated once, at the rim, so that they can stand in keys, logs and labels as they are.

use crate::limits::ID_BYTES_MAX;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to {ID_BYTES_MAX} characters of A-Z a-z 0-9 _ . -, and neither \".\" nor \"..\"")]
pub struct InvalidId;

/// Whether `text` may be an id. Ids stand in paths, where `.` and `..` are taken for something else on the way.
pub fn is_valid(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && !matches!(text, "." | "..")
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// A text equals, and is hashed and ordered as, the id that it is.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidId) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(d)?;
                text.parse().map_err(|e| serde::de::Error::custom(format_args!("{text:?}: {e}")))
            }
        }
    };
}

id!(/// The isolation boundary: keys, tokens, metrics and limits are per tenant.
    TenantId);
id!(/// A session, unique within its tenant.
    SessionId);
id!(/// A run, unique within its session.
    RunId);
id!(/// A message, unique within its run, or within the session when it was put without one.
    MessageId);
id!(/// A part, unique within its message.
    PartId);
id!(/// The role that a pool of workers serves.
    AgentName);
id!(/// A worker process.
    WorkerId);
id!(/// A control request, chosen by its requester.
    ControlId);
id!(/// Something that a run waits for, unique within the run.
    ApprovalId);
id!(/// An edge node.
    NodeId);
id!(/// A subject: user, operator, backend; for workers the agent's name.
    SubjectId);
id!(/// A client's stable identity.
    DeviceId);
id!(/// What a requester numbers its `put` with, so that a repeat gets the first answer.
    RequestId);

/// A session's full name. All keys of one session share the hash tag `{tenant/session}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    /// Owner of the session.
    pub tenant: TenantId,
    /// The session within the tenant.
    pub session: SessionId,
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.session)
    }
}

impl FromStr for SessionKey {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (tenant, session) = text.split_once('/').ok_or(InvalidId)?;
        Ok(Self { tenant: tenant.parse()?, session: session.parse()? })
    }
}

/// The pool of runs of one tenant that wait for a worker of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// Owner of the runs.
    pub tenant: TenantId,
    /// The agent whose workers serve the pool.
    pub agent: AgentName,
}

impl fmt::Display for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.agent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_key_are_refused() {
        for bad in ["", "a b", "a{b}", "a:b", "a/b", "ä", "a\n", ".", "..", &"x".repeat(129)] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?}");
        }
        for good in ["a", "A-b_c.9", "...", ".a", &"x".repeat(128)] {
            assert_eq!(good.parse::<RunId>().unwrap().as_str(), good);
        }
        assert!(serde_json::from_str::<RunId>("\"a b\"").is_err());
    }
}
