//! Trace context, as W3C Trace Context writes it in a `traceparent`: which trace something belongs to, and what led to it.

use crate::plain::Plain;
use std::fmt;
use std::str::FromStr;

/// Bytes of a `traceparent` of version 00.
const LEN: usize = 55;
/// What stands before it in a block, or in the author of a stored one, …
pub(crate) const NAME: &[u8] = b",\"trace\":\"";

/// Which trace something belongs to, and the span that led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace. Not 0.
    pub trace: u128,
    /// The span. Not 0.
    pub span: u64,
    /// Whether somebody keeps the trace.
    pub is_sampled: bool,
}

/// A text is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct InvalidTrace;

impl FromStr for TraceContext {
    type Err = InvalidTrace;

    /// Of a later version, what version 00 knows of it.
    fn from_str(text: &str) -> Result<Self, InvalidTrace> {
        let bytes = text.as_bytes();
        let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_whole = match bytes.get(..2) {
            Some(b"00") => bytes.len() == LEN,
            Some(b"ff") | None => false,
            Some(_) => bytes.len() == LEN || bytes.get(LEN) == Some(&b'-'),
        };
        let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        if !is_whole || !dashes || ![0..2, 3..35, 36..52, 53..55].into_iter().all(|part| is_hex(&bytes[part]))
        {
            return Err(InvalidTrace);
        }
        let trace = u128::from_str_radix(&text[3..35], 16).map_err(|_| InvalidTrace)?;
        let span = u64::from_str_radix(&text[36..52], 16).map_err(|_| InvalidTrace)?;
        let flags = u8::from_str_radix(&text[53..55], 16).map_err(|_| InvalidTrace)?;
        if trace == 0 || span == 0 {
            return Err(InvalidTrace);
        }
        Ok(Self { trace, span, is_sampled: flags & 1 == 1 })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

/// An author, as it is stored with a block that is traced: the store knows nothing of traces. See [`split`].
pub fn stamped(by: &str, context: &TraceContext) -> String {
    let open = by.strip_suffix('}').unwrap_or(by);
    format!("{open},\"trace\":\"{context}\"}}")
}

/// What [`stamped`] has put together; no trace if it has not. The first piece lacks its closing brace if there is one.
pub(crate) fn split(by: &[u8]) -> (&[u8], Option<&[u8]>) {
    // Nearly all blocks are not traced, and tell so by their end.
    if !by.ends_with(b"-01\"}") {
        return (by, None);
    }
    let Some(at) = by.len().checked_sub(NAME.len() + LEN + 2) else { return (by, None) };
    let (author, rest) = by.split_at(at);
    match rest.strip_prefix(NAME) {
        Some(rest) => (author, Some(&rest[..LEN])),
        None => (by, None),
    }
}

/// The trace of the first block of a frame whose suffix this is, if it is traced. Whatever its writer has said comes behind
/// the place where that stands.
pub fn of_frame(suffix: &[u8]) -> Option<TraceContext> {
    let mut plain = Plain::new(suffix);
    plain.eat(b",\"epoch\":\"")?;
    plain.number()?;
    for name in [b"\",\"since\":".as_slice(), b",\"from\":", b",\"to\":"] {
        plain.eat(name)?;
        plain.number()?;
    }
    plain.eat(b",\"blocks\":[{\"by\":")?;
    plain.nested()?;
    plain.eat(NAME)?;
    plain.string()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_read_and_written_as_the_standard_says() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!(context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((context.span, context.is_sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(context.to_string(), TEXT);
        assert!(!TEXT.replace("-01", "-02").parse::<TraceContext>().unwrap().is_sampled);
        assert_eq!(TEXT.replacen("00-", "cc-", 1).parse(), Ok(context), "a later version");
        assert_eq!(format!("{}-more", TEXT.replacen("00-", "cc-", 1)).parse(), Ok(context));
    }

    #[test]
    fn what_the_standard_forbids_is_no_context() {
        let zeroes = "0".repeat(32);
        for bad in [
            "".to_owned(),
            TEXT[..54].to_owned(),
            format!("{TEXT}-x"),
            TEXT.replacen("00-", "ff-", 1),
            TEXT.to_uppercase(),
            TEXT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zeroes),
            TEXT.replace("00f067aa0ba902b7", &zeroes[..16]),
            TEXT.replacen('-', "_", 1),
            TEXT.replace("4bf", "+bf"),
            "é".repeat(30),
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(InvalidTrace), "{bad}");
        }
    }

    #[test]
    fn an_author_that_was_stamped_is_split_again_and_no_other() {
        let by = r#"{"kind":"agent","id":"guide"}"#;
        let stamped = stamped(by, &TEXT.parse().unwrap());
        let (author, trace) = split(stamped.as_bytes());
        assert_eq!([author, b"}"].concat(), by.as_bytes());
        assert_eq!(trace, Some(TEXT.as_bytes()));
        for other in [
            by,
            "{}",
            r#"{"id":"-01"}"#,
            r#"{"kind":"agent","id":"a-very-long-name-of-an-agent-which-somebody-has-chosen-for-it-01"}"#,
        ] {
            assert_eq!(split(other.as_bytes()), (other.as_bytes(), None));
        }
    }

    proptest! {
        #[test]
        fn a_context_is_what_it_is_written_as(trace in 1u128.., span in 1u64.., is_sampled: bool) {
            let context = TraceContext { trace, span, is_sampled };
            prop_assert_eq!(context.to_string().parse(), Ok(context));
        }

        #[test]
        fn any_text_is_a_context_or_not(text: String, bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(text.len() >= LEN || text.parse::<TraceContext>().is_err());
            split(&bytes);
            of_frame(&bytes);
        }
    }
}
