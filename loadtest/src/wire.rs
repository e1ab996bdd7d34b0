//! The two frames that come a hundred thousand times a second, read without a parser of JSON.
//!
//! Only the exact form in which a node writes them is recognised; for anything else the answer is none, and the caller reads
//! it properly. So this can be slow for a frame, never wrong about one.

/// One appended text, in a plain block of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct PlainAppend<'a> {
    /// Incarnation of the log, as it stands there.
    pub epoch: &'a [u8],
    /// First seq of it.
    pub since: u64,
    /// Its seq.
    pub seq: u64,
    /// Number of the message.
    pub message: u64,
    /// Where it goes.
    pub offset: u64,
    /// What it says; without escapes.
    pub text: &'a [u8],
}

const APPEND: &[u8] = br#","entries":[{"type":"part.append","message":"m"#;

/// The beginning of an `entries` frame: number of the attachment, and the rest.
pub fn entries(frame: &[u8]) -> Option<(u32, &[u8])> {
    let mut rest = frame.strip_prefix(br#"{"t":"entries","attachment":"#)?;
    let attachment = number(&mut rest)?;
    Some((u32::try_from(attachment).ok()?, rest))
}

/// The rest of an `entries` frame, if it is one append. `hint` is how far from `blocks` to `entries` it was last time.
pub fn plain_append<'a>(rest: &'a [u8], hint: &mut usize) -> Option<PlainAppend<'a>> {
    let mut rest = rest.strip_prefix(br#","epoch":""#)?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    let (epoch, after) = rest.split_at(digits);
    rest = after.strip_prefix(br#"","since":"#)?;
    let since = number(&mut rest)?;
    rest = rest.strip_prefix(br#","from":"#)?;
    let seq = number(&mut rest)?;
    rest = rest.strip_prefix(br#","to":"#)?;
    if number(&mut rest)? != seq {
        return None;
    }
    rest = rest.strip_prefix(br#","blocks":[{"by":"#)?;
    let at = match rest.get(*hint..)?.starts_with(APPEND) {
        true => *hint,
        false => rest.windows(APPEND.len()).position(|window| window == APPEND)?,
    };
    // A folded block carries more than author, time and run, and is not for here.
    let run = rest[..at].windows(7).rposition(|window| window == br#""run":""#)?;
    if rest[run + 7..at].len() > 130 || rest[run + 7..at - 1].contains(&b'"') {
        return None;
    }
    *hint = at;
    rest = &rest[at + APPEND.len()..];
    let message = number(&mut rest)?;
    rest = rest.strip_prefix(br#"","part":"p","offset":"#)?;
    let offset = number(&mut rest)?;
    rest = rest.strip_prefix(br#","text":""#)?;
    let text = rest.strip_suffix(br#""}]}]}"#)?;
    if text.iter().any(|byte| matches!(byte, b'"' | b'\\')) {
        return None;
    }
    Some(PlainAppend { epoch, since, seq, message, offset, text })
}

/// An `ok` to a worker: its `id` in two numbers, and the batch that it confirms.
pub fn ack(frame: &[u8]) -> Option<(u64, u64, u64)> {
    let mut rest = frame.strip_prefix(br#"{"t":"ok","id":""#)?;
    let run = number(&mut rest)?;
    rest = rest.strip_prefix(b".")?;
    let sent = number(&mut rest)?;
    rest = rest.strip_prefix(br#"","run":""#)?;
    let quote = rest.iter().position(|byte| *byte == b'"')?;
    rest = rest[quote..].strip_prefix(br#"","batch":"#)?;
    Some((run, sent, number(&mut rest)?))
}

/// Takes a number off.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value: u64 = 0;
    let mut digits = 0;
    while let Some(byte @ b'0'..=b'9') = rest.get(digits) {
        value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
        digits += 1;
    }
    *rest = &rest[digits..];
    (digits > 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(block: &str, to: u64) -> String {
        format!(
            r#"{{"t":"entries","attachment":12,"epoch":"1763700000000000","since":1,"from":7,"to":{to},"blocks":[{block}]}}"#
        )
    }

    const BY: &str = r#""by":{"kind":"agent","id":"lt"},"at":1763700000123,"run":"01JR""#;

    fn read(frame: &str) -> Option<(u64, u64, String)> {
        let (attachment, rest) = entries(frame.as_bytes())?;
        assert_eq!(attachment, 12);
        let mut hint = 0;
        let first = plain_append(rest, &mut hint)?;
        assert_eq!(plain_append(rest, &mut hint).as_ref(), Some(&first), "with the hint");
        assert_eq!((first.epoch, first.since, first.seq), (&b"1763700000000000"[..], 1, 7));
        Some((first.message, first.offset, String::from_utf8(first.text.to_vec()).unwrap()))
    }

    #[test]
    fn one_append_is_read() {
        let entry = r#"{"type":"part.append","message":"m3","part":"p","offset":40,"text":" 日本"}"#;
        let text = frame(&format!(r#"{{{BY},"entries":[{entry}]}}"#), 7);
        assert_eq!(read(&text), Some((3, 40, " 日本".to_owned())));
    }

    #[test]
    fn everything_else_is_left_to_the_real_parser() {
        let entry = r#"{"type":"part.append","message":"m3","part":"p","offset":40,"text":"x"}"#;
        let escaped = r#"{"type":"part.append","message":"m3","part":"p","offset":40,"text":"\n"}"#;
        for (block, to) in [
            (format!(r#"{{{BY},"entries":[{entry},{entry}]}}"#), 8),
            (format!(r#"{{{BY},"entries":[{entry},{entry}]}}"#), 7),
            (format!(r#"{{{BY},"entries":[{escaped}]}}"#), 7),
            (format!(r#"{{{BY},"spans":[[7,9]],"entries":[{entry}]}}"#), 7),
            (format!(r#"{{"from":7,{BY},"spans":[[7,7]],"entries":[{entry}]}}"#), 7),
            (format!(r#"{{{BY},"entries":[{entry}]}},{{{BY},"entries":[{entry}]}}"#), 7),
            (format!(r#"{{{BY},"entries":[{{"type":"run.ended","run":"r"}}]}}"#), 7),
        ] {
            assert_eq!(read(&frame(&block, to)), None, "{block}");
        }
    }

    #[test]
    fn an_ack_says_which_run_and_which_batch() {
        let text = br#"{"t":"ok","id":"4.19","run":"01JR","batch":19,"to":40,"version":"1.2","safe":19}"#;
        assert_eq!(ack(text), Some((4, 19, 19)));
        assert_eq!(ack(br#"{"t":"error","id":"4.19"}"#), None);
    }
}
