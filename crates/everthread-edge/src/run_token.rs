//! Tokens of runs: each can write one attempt of one run, and nothing else. They hold no secret of their own: any node that
//! knows the deployment's can check them, and the store's fence ends them with the attempt.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use everthread_protocol::{Code, Fault, Fence, RunId, SessionId, TenantId};
use ring::hmac;
use serde::{Deserialize, Serialize};

/// What tokens of runs begin with.
const PREFIX: &str = "run.";
/// Keeps these apart from whatever else is signed with the same secret.
const PURPOSE: &[u8] = b"everthread run token v1";

/// What a run's token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRight {
    /// Owner of the session.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// The run.
    pub run: RunId,
    /// The attempt: the fence that it was given.
    pub fence: Fence,
}

/// A token for `right`.
pub(crate) fn make(secret: &[u8], right: &RunRight) -> String {
    let claims = URL_SAFE_NO_PAD.encode(serde_json::to_vec(right).unwrap_or_default());
    let mac = hmac::sign(&key(secret), claims.as_bytes());
    format!("{PREFIX}{claims}.{}", URL_SAFE_NO_PAD.encode(mac))
}

/// What `token` allows; none if it is no token of a run.
pub(crate) fn check(secret: &[u8], token: &str) -> Option<Result<RunRight, Fault>> {
    let (claims, mac) = token.strip_prefix(PREFIX)?.split_once('.')?;
    let read = || {
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        hmac::verify(&key(secret), claims.as_bytes(), &mac).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    };
    Some(read().ok_or_else(|| Fault::new(Code::Unauthorized, "the token of the run is not valid")))
}

fn key(secret: &[u8]) -> hmac::Key {
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), PURPOSE);
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right() -> RunRight {
        RunRight {
            tenant: "t".parse().unwrap(),
            session: "s".parse().unwrap(),
            run: "r".parse().unwrap(),
            fence: "9".parse().unwrap(),
        }
    }

    #[test]
    fn a_token_says_what_it_allows_and_cannot_be_changed() {
        let token = make(b"secret", &right());
        assert_eq!(check(b"secret", &token), Some(Ok(right())));
        assert!(check(b"other", &token).unwrap().is_err());
        let mut other = right();
        other.run = "r2".parse().unwrap();
        let (_, mac) = token.rsplit_once('.').unwrap();
        let (claims, _) =
            make(b"secret", &other).rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert!(check(b"secret", &format!("{claims}.{mac}")).unwrap().is_err());
        assert_eq!(check(b"secret", "dev"), None);
    }
}
