//! Who is speaking. One static token so far: it opens the tenant `default` and lets the bearer name its subject.

use crate::run_token::{self, RunRight};
use everthread_protocol::{Author, AuthorKind, Code, DeviceId, Fault, SubjectId, TenantId};
use http::{HeaderMap, header};

/// Header that names the subject under the development token.
pub const SUBJECT_HEADER: &str = "everthread-subject";
/// Header that names the subject's role under the development token.
pub const KIND_HEADER: &str = "everthread-kind";

/// Checks tokens.
#[derive(Clone)]
pub struct Auth {
    token: String,
    tenant: TenantId,
    /// Browsers may only come from pages of these hosts; empty: from any.
    hosts: Vec<String>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// Somebody whose token is good.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Whose sessions they are.
    pub tenant: TenantId,
    /// Who it is.
    pub author: Author,
}

impl Auth {
    /// One token for one tenant. On a loopback address, `hosts` are the names a browser may have used for it: a page of any
    /// other origin is refused, so that no web site can reach a developer's machine through the browser.
    pub fn new(token: String, tenant: TenantId, hosts: Vec<String>) -> Auth {
        Auth { token, tenant, hosts }
    }

    /// Checks a token.
    pub fn check(
        &self,
        token: Option<&str>,
        subject: Option<SubjectId>,
        device: Option<DeviceId>,
        kind: Option<AuthorKind>,
    ) -> Result<Identity, Fault> {
        let Some(token) = token else {
            return Err(Fault::new(Code::Unauthorized, "a token is needed: Authorization: Bearer …"));
        };
        if !equal_in_constant_time(token.as_bytes(), self.token.as_bytes()) {
            return Err(Fault::new(Code::Unauthorized, "the token is not valid"));
        }
        let id = match subject {
            Some(subject) => subject,
            None => "dev".parse().map_err(|_| Fault::new(Code::Internal, "no default subject"))?,
        };
        let kind = kind.unwrap_or(AuthorKind::User);
        if kind == AuthorKind::Agent {
            return Err(Fault::new(Code::Forbidden, "agents are workers: they connect to /v1/worker"));
        }
        Ok(Identity { tenant: self.tenant.clone(), author: Author { kind, id, device } })
    }

    /// Checks the headers of an HTTP request.
    pub fn check_headers(&self, headers: &HeaderMap) -> Result<Identity, Fault> {
        let subject = match headers.get(SUBJECT_HEADER) {
            None => None,
            Some(value) => {
                let text = value.to_str().unwrap_or_default();
                Some(text.parse().map_err(|e| Fault::bad_request(format!("{SUBJECT_HEADER}: {e}")))?)
            }
        };
        let kind = match headers.get(KIND_HEADER).map(|value| value.to_str().unwrap_or_default()) {
            None => None,
            Some("user") => Some(AuthorKind::User),
            Some("operator") => Some(AuthorKind::Operator),
            Some("system") => Some(AuthorKind::System),
            Some(_) => {
                return Err(Fault::bad_request(format!("{KIND_HEADER} is user, operator or system")));
            }
        };
        self.check(bearer(headers), subject, None, kind)
    }

    /// A token that can write one attempt of one run, for as long as it holds `fence`.
    pub fn run_token(&self, right: &RunRight) -> String {
        run_token::make(self.token.as_bytes(), right)
    }

    /// What a run's token allows; none if it is a token of another kind.
    pub fn check_run_token(&self, token: &str) -> Option<Result<RunRight, Fault>> {
        run_token::check(self.token.as_bytes(), token)
    }

    /// Whether a request may come in at all: its `Host` is one of ours, and so is the page it comes from.
    pub fn check_origin(&self, headers: &HeaderMap) -> Result<(), Fault> {
        if self.hosts.is_empty() {
            return Ok(());
        }
        let text = |name| headers.get(name).and_then(|v: &http::HeaderValue| v.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        if !self.knows(host) {
            return Err(Fault::new(
                Code::Forbidden,
                "this Host is not served here: use localhost or 127.0.0.1",
            ));
        }
        match text(header::ORIGIN) {
            None => Ok(()),
            Some(origin) if origin.split_once("://").is_some_and(|(_, host)| self.knows(host)) => Ok(()),
            Some(_) => Err(Fault::new(Code::Forbidden, "pages of this origin may not connect")),
        }
    }

    fn knows(&self, host_and_port: &str) -> bool {
        let host = match host_and_port.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => host_and_port,
        };
        self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> Auth {
        let hosts = vec!["localhost".into(), "127.0.0.1".into(), "[::1]".into()];
        Auth::new("secret".into(), "default".parse().unwrap(), hosts)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_token_opens() {
        assert!(auth().check(Some("secret"), None, None, None).is_ok());
        for bad in [None, Some(""), Some("secre"), Some("secretx")] {
            assert_eq!(auth().check(bad, None, None, None).unwrap_err().code, Code::Unauthorized);
        }
    }

    #[test]
    fn a_web_site_cannot_reach_a_developers_machine() {
        let ours = headers(&[("host", "127.0.0.1:7400"), ("origin", "http://localhost:7400")]);
        assert!(auth().check_origin(&ours).is_ok());
        assert!(auth().check_origin(&headers(&[("host", "[::1]:7400")])).is_ok());
        for bad in [
            headers(&[("host", "127.0.0.1:7400"), ("origin", "https://evil.example")]),
            headers(&[("host", "127.0.0.1:7400"), ("origin", "null")]),
            headers(&[("host", "rebound.example:7400")]),
            headers(&[]),
        ] {
            assert_eq!(auth().check_origin(&bad).unwrap_err().code, Code::Forbidden);
        }
    }
}
