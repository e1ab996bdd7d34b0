//! What comes before the start: sessions, and requests for their runs.

use crate::http::Http;
use crate::socket::Target;
use everthread_protocol::{AgentName, SessionId};
use std::time::SystemTime;
use tokio::task::JoinSet;

/// Requests at once.
const POSTS: usize = 8;

/// Milliseconds since 1970: what names of this run begin with.
pub fn stamp() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}

/// Makes sessions.
pub async fn create(target: &Target, names: &[SessionId], agent: &AgentName) -> anyhow::Result<()> {
    post_all(target, names, move |name| {
        let body = serde_json::json!({"session": name.as_str(), "agent": agent.as_str()});
        ("/v1/sessions".to_owned(), body.to_string())
    })
    .await
}

/// Asks for a run in each.
pub async fn request_runs(target: &Target, names: &[SessionId], agent: &AgentName) -> anyhow::Result<()> {
    post_all(target, names, move |name| {
        let body = serde_json::json!({"text": "go", "agent": agent.as_str()}).to_string();
        (format!("/v1/sessions/{name}/input"), body)
    })
    .await
}

/// One request per session, over a few connections side by side.
async fn post_all(
    target: &Target,
    names: &[SessionId],
    request: impl Fn(&SessionId) -> (String, String),
) -> anyhow::Result<()> {
    let mut posts = JoinSet::new();
    for part in names.chunks(names.len().div_ceil(POSTS).max(1)) {
        let requests: Vec<(String, String)> = part.iter().map(&request).collect();
        let target = target.clone();
        posts.spawn(async move {
            let mut http = Http::connect(&target).await?;
            for (path, body) in requests {
                http.post(&path, &body).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(posted) = posts.join_next().await {
        posted??;
    }
    Ok(())
}
