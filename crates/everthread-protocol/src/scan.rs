//! One pass over untrusted JSON before it is kept: size, depth, unique keys, whole surrogate pairs, finite numbers.
//!
//! What passes here is stored and forwarded verbatim, to readers in languages that differ in what they do with a
//! doubled key or half a surrogate. Whatever two readers could read differently is refused.

use crate::limits::{BLOCK_BYTES_MAX, BLOCK_ENTRIES_MAX, JSON_DEPTH_MAX};
use std::{borrow::Cow, collections::HashSet, ops::Range};

/// Why bytes are refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {at}")]
pub struct ScanError {
    /// Byte position in what was scanned.
    pub at: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with the bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not JSON.
    #[error("not JSON: expected {0}")]
    Syntax(&'static str),
    /// Not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// Deeper than [`JSON_DEPTH_MAX`].
    #[error("nested deeper than {JSON_DEPTH_MAX}")]
    TooDeep,
    /// More bytes than [`BLOCK_BYTES_MAX`].
    #[error("more than {BLOCK_BYTES_MAX} bytes of entries")]
    TooLarge,
    /// More entries than [`BLOCK_ENTRIES_MAX`].
    #[error("more than {BLOCK_ENTRIES_MAX} entries")]
    TooMany,
    /// No entries at all.
    #[error("an empty list of entries")]
    Empty,
    /// A key stands twice in one object.
    #[error("a key stands twice in one object")]
    DoubledKey,
    /// Half of a surrogate pair.
    #[error("a lone surrogate")]
    LoneSurrogate,
    /// A number beyond what a double can hold.
    #[error("a number that is not finite")]
    NotFinite,
    /// An entry without a text `type`.
    #[error("an entry needs a \"type\" that is a text")]
    NoType,
}

/// One entry of a checked array.
#[derive(Debug, Clone)]
pub struct RawEntry<'a> {
    /// The entry's bytes as sent.
    pub text: &'a str,
    /// Its `type`.
    pub kind: Cow<'a, str>,
    keys: Range<usize>,
}

/// A checked entry array.
#[derive(Debug, Clone)]
pub struct RawEntries<'a> {
    /// The array's bytes as sent.
    pub text: &'a str,
    /// Its entries in order, at least one.
    pub items: Vec<RawEntry<'a>>,
    keys: Vec<Cow<'a, str>>,
}

impl<'a> RawEntries<'a> {
    /// The keys at the top of one entry, in order, `type` included.
    pub fn keys(&self, entry: &RawEntry<'a>) -> &[Cow<'a, str>] {
        &self.keys[entry.keys.clone()]
    }
}

/// Checks an array of entries.
pub fn entries(bytes: &[u8]) -> Result<RawEntries<'_>, ScanError> {
    if bytes.len() > BLOCK_BYTES_MAX {
        return Err(ScanError { at: BLOCK_BYTES_MAX, problem: Problem::TooLarge });
    }
    let text = utf8(bytes)?;
    let mut scan = Scanner { text, bytes, at: 0 };
    let (mut items, mut keys) = (Vec::new(), Vec::new());
    scan.space();
    scan.expect(b'[', "an array of entries")?;
    scan.space();
    if scan.peek() == Some(b']') {
        return Err(scan.error(Problem::Empty));
    }
    loop {
        if items.len() == BLOCK_ENTRIES_MAX {
            return Err(scan.error(Problem::TooMany));
        }
        items.push(scan.entry(&mut keys)?);
        if !scan.comma_or(b']')? {
            break;
        }
    }
    scan.end()?;
    Ok(RawEntries { text, items, keys })
}

/// Checks any JSON value that is to be kept, such as a session's `meta`.
pub fn value(bytes: &[u8]) -> Result<(), ScanError> {
    let mut scan = Scanner { text: utf8(bytes)?, bytes, at: 0 };
    scan.space();
    scan.value(0)?;
    scan.end()
}

fn utf8(bytes: &[u8]) -> Result<&str, ScanError> {
    std::str::from_utf8(bytes).map_err(|e| ScanError { at: e.valid_up_to(), problem: Problem::NotUtf8 })
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn error(&self, problem: Problem) -> ScanError {
        ScanError { at: self.at, problem }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), ScanError> {
        if self.peek() != Some(byte) {
            return Err(self.error(Problem::Syntax(what)));
        }
        self.at += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), ScanError> {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.error(Problem::Syntax("the end"))) }
    }

    /// After an element: true at a comma, false at `close`, with the space around either consumed.
    fn comma_or(&mut self, close: u8) -> Result<bool, ScanError> {
        self.space();
        let comma = match self.peek() {
            Some(b',') => true,
            Some(b) if b == close => false,
            _ => return Err(self.error(Problem::Syntax("a comma or the closing bracket"))),
        };
        self.at += 1;
        self.space();
        Ok(comma)
    }

    fn entry(&mut self, keys: &mut Vec<Cow<'a, str>>) -> Result<RawEntry<'a>, ScanError> {
        let (start, first_key) = (self.at, keys.len());
        let mut kind = None;
        self.object(1, |scan, key| {
            let is_type = key == "type";
            keys.push(key);
            if is_type && scan.peek() == Some(b'"') {
                kind = Some(scan.string()?);
                return Ok(());
            }
            scan.value(2)
        })?;
        let kind = kind.ok_or(ScanError { at: start, problem: Problem::NoType })?;
        Ok(RawEntry { text: &self.text[start..self.at], kind, keys: first_key..keys.len() })
    }

    /// Recursion is bounded by [`JSON_DEPTH_MAX`].
    fn value(&mut self, depth: usize) -> Result<(), ScanError> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'{') => self.object(depth, |scan, _| scan.value(depth + 1)),
            Some(b'[') => self.array(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            _ => Err(self.error(Problem::Syntax("a value"))),
        }
    }

    fn word(&mut self, word: &'static str) -> Result<(), ScanError> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.error(Problem::Syntax(word)));
        }
        self.at += word.len();
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), ScanError> {
        if depth >= JSON_DEPTH_MAX {
            return Err(self.error(Problem::TooDeep));
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            if !self.comma_or(b']')? {
                self.unspace();
                return Ok(());
            }
        }
    }

    fn object(
        &mut self,
        depth: usize,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        if depth >= JSON_DEPTH_MAX {
            return Err(self.error(Problem::TooDeep));
        }
        self.expect(b'{', "an object")?;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        let mut seen = Seen::default();
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.error(Problem::Syntax("a key")));
            }
            let at = self.at;
            let key = self.string()?;
            if !seen.insert(key.clone()) {
                return Err(ScanError { at, problem: Problem::DoubledKey });
            }
            self.space();
            self.expect(b':', "a colon")?;
            self.space();
            member(self, key)?;
            if !self.comma_or(b'}')? {
                self.unspace();
                return Ok(());
            }
        }
    }

    /// `comma_or` eats the space after a closing bracket; an element ends at the bracket itself.
    fn unspace(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.bytes.get(self.at - 1) {
            self.at -= 1;
        }
    }

    fn number(&mut self) -> Result<(), ScanError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.error(Problem::Syntax("a digit"))),
        }
        let mut plain = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            plain = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        let surely_finite = plain && self.at - start < 300;
        if !surely_finite && !self.text[start..self.at].parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(ScanError { at: start, problem: Problem::NotFinite });
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), ScanError> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.error(Problem::Syntax("a digit"))) } else { Ok(()) }
    }

    /// A string at `"`; borrowed unless it has escapes.
    fn string(&mut self) -> Result<Cow<'a, str>, ScanError> {
        self.at += 1;
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let text = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(Cow::Borrowed(text));
                }
                Some(b'\\') => return self.escaped_string(start).map(Cow::Owned),
                Some(0..=0x1f) | None => return Err(self.error(Problem::Syntax("the rest of a string"))),
                Some(_) => self.at += 1,
            }
        }
    }

    fn escaped_string(&mut self, start: usize) -> Result<String, ScanError> {
        let mut out = String::from(&self.text[start..self.at]);
        loop {
            let plain = self.at;
            while !matches!(self.peek(), Some(b'"' | b'\\' | 0..=0x1f) | None) {
                self.at += 1;
            }
            out.push_str(&self.text[plain..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => out.push(self.escape()?),
                _ => return Err(self.error(Problem::Syntax("the rest of a string"))),
            }
        }
    }

    fn escape(&mut self) -> Result<char, ScanError> {
        self.at += 1;
        let plain = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.error(Problem::Syntax("an escape"))),
        };
        self.at += 1;
        Ok(plain)
    }

    fn unicode_escape(&mut self) -> Result<char, ScanError> {
        let at = self.at - 1;
        let lone = ScanError { at, problem: Problem::LoneSurrogate };
        let high = self.hex4()?;
        let scalar = match high {
            0xd800..=0xdbff => {
                if self.peek() != Some(b'\\') || self.bytes.get(self.at + 1) != Some(&b'u') {
                    return Err(lone);
                }
                self.at += 1;
                let low = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&low) {
                    return Err(lone);
                }
                0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)
            }
            _ => high,
        };
        char::from_u32(scalar).ok_or(lone)
    }

    /// Four hex digits after `u`.
    fn hex4(&mut self) -> Result<u32, ScanError> {
        self.at += 1;
        let digits = self.bytes.get(self.at..self.at + 4).unwrap_or_default();
        if digits.len() != 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(self.error(Problem::Syntax("four hex digits")));
        }
        let value = u32::from_str_radix(&self.text[self.at..self.at + 4], 16)
            .map_err(|_| self.error(Problem::Syntax("four hex digits")))?;
        self.at += 4;
        Ok(value)
    }
}

/// The keys of one object: a list while it is short, a set when somebody sends thousands.
#[derive(Default)]
struct Seen<'a> {
    few: Vec<Cow<'a, str>>,
    many: HashSet<Cow<'a, str>>,
}

impl<'a> Seen<'a> {
    const FEW: usize = 16;

    fn insert(&mut self, key: Cow<'a, str>) -> bool {
        if self.few.contains(&key) {
            return false;
        }
        if self.few.len() < Self::FEW {
            self.few.push(key);
            return true;
        }
        self.many.insert(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn problem(text: &str) -> Problem {
        entries(text.as_bytes()).unwrap_err().problem
    }

    #[test]
    fn entries_keep_their_bytes_and_name_their_type() {
        let text = r#" [ {"a" : [1, 2 ] , "type":"x-a"} ,{"type":"x\u002db","é":"\ud83d\ude00"}] "#;
        let raw = entries(text.as_bytes()).unwrap();
        assert_eq!(raw.items.len(), 2);
        assert_eq!(raw.items[0].text, r#"{"a" : [1, 2 ] , "type":"x-a"}"#);
        assert_eq!(raw.items[1].kind, "x-b");
        assert_eq!(raw.keys(&raw.items[1]), ["type", "é"]);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        assert_eq!(problem(r#"[{"type":"a","b":1,"\u0062":2}]"#), Problem::DoubledKey);
        assert_eq!(problem(r#"[{"type":"a","b":{"c":1,"c":1}}]"#), Problem::DoubledKey);
        assert_eq!(problem(r#"[{"type":"\ud800"}]"#), Problem::LoneSurrogate);
        assert_eq!(problem(r#"[{"type":"\udc00\ud800"}]"#), Problem::LoneSurrogate);
        assert_eq!(problem(r#"[{"type":"a","n":1e999}]"#), Problem::NotFinite);
        assert_eq!(problem(r#"[{"type":1}]"#), Problem::NoType);
        assert_eq!(problem("[]"), Problem::Empty);
        assert_eq!(entries(b"[{\"type\":\"\xff\"}]").unwrap_err().problem, Problem::NotUtf8);
    }

    #[test]
    fn depth_and_size_are_bounded_without_recursion_into_them() {
        let deep = format!(r#"[{{"type":"a","v":{}}}]"#, "[".repeat(200_000));
        assert_eq!(problem(&deep), Problem::TooDeep);
        let nest = |n: usize| format!(r#"[{{"type":"a","v":{}{}}}]"#, "[".repeat(n), "]".repeat(n));
        assert!(entries(nest(JSON_DEPTH_MAX - 2).as_bytes()).is_ok());
        assert_eq!(problem(&nest(JSON_DEPTH_MAX - 1)), Problem::TooDeep);
        assert_eq!(problem(&" ".repeat(BLOCK_BYTES_MAX + 1)), Problem::TooLarge);
        let many = vec![r#"{"type":"a"}"#; BLOCK_ENTRIES_MAX + 1].join(",");
        assert_eq!(problem(&format!("[{many}]")), Problem::TooMany);
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..24)
                    .prop_map(|m| m.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn all_json_of_a_serializer_passes(v in json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&v) } else { serde_json::to_string(&v) }.unwrap();
            prop_assert_eq!(value(text.as_bytes()), Ok(()));
        }

        #[test]
        fn any_bytes_are_answered_and_what_passes_is_json(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if value(&bytes).is_ok() {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
            }
        }

        #[test]
        fn mutated_json_passes_only_if_it_is_json(v in json(), at: prop::sample::Index, byte: u8) {
            let mut bytes = serde_json::to_vec(&v).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if value(&bytes).is_ok() {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
            }
        }
    }
}
