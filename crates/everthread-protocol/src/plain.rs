//! What nearly all bytes on the hot path are, read and written without the general machinery: frames, entries and records
//! exactly as we write them ourselves, to the last comma.
//!
//! A short way besides the general one, never in its place: whatever looks otherwise in the least is `None` here, and is
//! read, or refused with its reason, by the general way.

/// Reads a text from its beginning; every step is `None` if it finds something else.
pub(crate) struct Plain<'a>(&'a [u8]);

impl<'a> Plain<'a> {
    /// At the beginning of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Plain(bytes)
    }

    /// What was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Exactly this.
    pub(crate) fn eat(&mut self, text: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    /// A number as we write it, short enough to be one for sure.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        let mut digits = 0;
        while let Some(digit @ b'0'..=b'9') = self.0.get(digits).copied() {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            digits += 1;
        }
        let is_plain = (1..=19).contains(&digits) && (digits == 1 || self.0[0] != b'0');
        self.0 = &self.0[digits..];
        is_plain.then_some(value)
    }

    /// What comes before the quote that ends a string without escapes. The quote is read, too.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\"")?;
        std::str::from_utf8(text).ok()
    }

    /// Bytes of the value of a string in which nothing is escaped but by a single character. Its closing quote is read, too.
    pub(crate) fn string_len(&mut self) -> Option<usize> {
        let (mut at, mut escapes) = (0, 0);
        loop {
            match self.0.get(at)? {
                b'"' => break,
                b'\\' => {
                    if !matches!(self.0.get(at + 1)?, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't')
                    {
                        return None;
                    }
                    (at, escapes) = (at + 2, escapes + 1);
                }
                0..=0x1f => return None,
                _ => at += 1,
            }
        }
        std::str::from_utf8(&self.0[..at]).ok()?;
        self.0 = &self.0[at + 1..];
        Some(at - escapes)
    }

    /// An object or a list, as far as its brackets tell.
    pub(crate) fn nested(&mut self) -> Option<&'a [u8]> {
        let (mut at, mut depth) = (0, 0usize);
        loop {
            match self.0.get(at)? {
                b'"' => at = end_of_string(self.0, at + 1)?,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        break;
                    }
                }
                _ if depth == 0 => return None,
                _ => {}
            }
            at += 1;
        }
        let (value, rest) = self.0.split_at(at + 1);
        self.0 = rest;
        Some(value)
    }
}

/// Where the quote stands that ends the string whose text begins at `at`.
fn end_of_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Writes a number.
pub(crate) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A digit fits.
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_read_only_as_we_write_them() {
        for (text, value) in
            [("0", Some(0)), ("17,", Some(17)), ("9999999999999999999", Some(9_999_999_999_999_999_999))]
        {
            assert_eq!(Plain::new(text.as_bytes()).number(), value, "{text}");
        }
        for text in ["", "-1", "01", "00", "x", "10000000000000000000", "99999999999999999999999"] {
            assert_eq!(Plain::new(text.as_bytes()).number(), None, "{text}");
        }
    }

    #[test]
    fn strings_with_anything_odd_in_them_are_left_to_the_general_way() {
        let mut plain = Plain::new(b"ab\",");
        assert_eq!((plain.string(), plain.rest()), (Some("ab"), &b","[..]));
        for odd in [&b"a\\n\""[..], b"a\nb\"", b"ab", b"\xff\""] {
            assert_eq!(Plain::new(odd).string(), None, "{odd:?}");
        }
        for (text, len) in [
            ("a\\n\\\"b\"", Some(4)),
            ("\u{e9}\"", Some(2)),
            ("\\u0041\"", None),
            ("a\nb\"", None),
            ("\\", None),
        ] {
            assert_eq!(Plain::new(text.as_bytes()).string_len(), len, "{text}");
        }
    }

    #[test]
    fn brackets_in_strings_are_no_brackets() {
        let mut plain = Plain::new(br#"[{"a":"]}\"]"}],1"#);
        assert_eq!((plain.nested(), plain.rest()), (Some(&br#"[{"a":"]}\"]"}]"#[..]), &b",1"[..]));
        for broken in [&b"[1"[..], b"1", b"]", b"[\"", b"[\"\\", b""] {
            assert_eq!(Plain::new(broken).nested(), None, "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn a_number_is_what_the_formatter_writes(number: u64) {
            let mut out = Vec::new();
            push_number(&mut out, number);
            prop_assert_eq!(out, number.to_string().into_bytes());
        }

        #[test]
        fn a_string_has_the_length_that_json_gives_it(text in ".{0,40}") {
            let json = serde_json::to_string(&text).unwrap();
            if let Some(len) = Plain::new(&json.as_bytes()[1..]).string_len() {
                prop_assert_eq!(len, text.len());
            }
        }

        #[test]
        fn any_bytes_are_read_or_left(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut plain = Plain::new(&bytes);
            if let Some(value) = plain.nested() {
                prop_assert_eq!([value, plain.rest()].concat(), bytes.clone());
            }
            prop_assert!(Plain::new(&bytes).string_len().is_none_or(|len| len < bytes.len()));
            prop_assert!(Plain::new(&bytes).number().is_none() || bytes[0].is_ascii_digit());
        }
    }
}
