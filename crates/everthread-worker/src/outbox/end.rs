//! What the end of a run may say. It is cut here rather than refused by the server: a run whose end is not taken has no
//! outcome for as long as its worker lives.

use super::batch::Request;
use everthread_protocol::entry::{Object, RunError};
use serde_json::Value;

/// Bytes of the word that says why a run failed.
const ERROR_CODE_BYTES_MAX: usize = 128;
/// Bytes of the sentence that does. Whoever wants to read more than that looks into the logs of the worker.
const ERROR_MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a usage as JSON: a few dozen numbers.
const USAGE_BYTES_MAX: usize = 4 * 1024;
/// Nesting depth of a usage, itself included. Far below what the server takes, as it stands within an entry there.
const USAGE_DEPTH_MAX: usize = 16;
/// Stands for what was cut off.
const ELLIPSIS: char = '…';

impl Request {
    /// An end within its bounds; other requests as they are.
    pub(super) fn bounded(self) -> Request {
        let Request::End { outcome, error, usage } = self else { return self };
        let error = error.map(|RunError { code, message }| RunError {
            code: cut(code, ERROR_CODE_BYTES_MAX),
            message: cut(message, ERROR_MESSAGE_BYTES_MAX),
        });
        let is_given = usage.is_some();
        let usage = usage.filter(is_small);
        if is_given && usage.is_none() {
            tracing::warn!(USAGE_BYTES_MAX, USAGE_DEPTH_MAX, "the usage of a run is too large and left out");
        }
        Request::End { outcome, error, usage }
    }
}

/// The text with at most that many bytes.
fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max - ELLIPSIS.len_utf8()));
        text.push(ELLIPSIS);
    }
    text
}

fn is_small(usage: &Object) -> bool {
    // Depth first: writing JSON goes as deep as the value does.
    usage.values().all(|value| is_flat(value, USAGE_DEPTH_MAX - 1))
        && serde_json::to_string(usage).is_ok_and(|json| json.len() <= USAGE_BYTES_MAX)
}

/// Whether a value has at most that many levels. Looks no deeper than that.
fn is_flat(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_flat(item, levels - 1)),
        Value::Object(fields) => levels > 0 && fields.values().all(|field| is_flat(field, levels - 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_is_cut_at_a_character_and_only_if_it_must_be() {
        assert_eq!(cut("äöü".to_owned(), 6), "äöü");
        for bytes_max in 3..20 {
            let text = cut("ä😀ö".repeat(9), bytes_max);
            assert!(text.len() <= bytes_max && text.ends_with('…'), "{text}");
        }
    }

    #[test]
    fn a_usage_may_be_as_deep_and_as_large_as_its_bounds() {
        let nested = |levels: usize| {
            let inner = (1..levels).fold(json!(1), |inner, _| json!([inner]));
            json!({ "a": inner }).as_object().cloned().unwrap()
        };
        assert!(is_small(&nested(USAGE_DEPTH_MAX)) && !is_small(&nested(USAGE_DEPTH_MAX + 1)));
        let long = |bytes: usize| json!({ "a": "x".repeat(bytes - 8) }).as_object().cloned().unwrap();
        assert!(is_small(&long(USAGE_BYTES_MAX)) && !is_small(&long(USAGE_BYTES_MAX + 1)));
    }
}
