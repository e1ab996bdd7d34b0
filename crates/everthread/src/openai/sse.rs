//! Server-sent events, cut anywhere: bytes in, `data` out.

use super::upstream::Delta;

/// Bytes of one event. An endpoint that sends more is broken.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// What an answer brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// More of it.
    Delta(Delta),
    /// Its end.
    Done,
}

/// An event has no end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {EVENT_BYTES_MAX} bytes")]
pub struct TooLong;

/// Finds events in a stream of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was CR: an LF that follows belongs to it.
    after_cr: bool,
}

impl Decoder {
    /// Takes bytes; the data of every event that ends in them goes to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<String>) -> Result<(), TooLong> {
        for &byte in bytes {
            let is_second_half = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            match byte {
                b'\n' if is_second_half => {}
                b'\n' | b'\r' => self.end_line(out),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    fn end_line(&mut self, out: &mut Vec<String>) {
        if self.line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                out.push(String::from_utf8_lossy(&self.data).into_owned());
                self.data.clear();
            }
            return;
        }
        if let Some(value) = self.line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        // Comments and other fields say nothing here.
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_wherever_the_stream_is_cut() {
        let stream = ": ping\r\n\r\ndata: {\"a\":\"é😀\"}\r\n\r\nevent: x\ndata: one\ndata:two\n\nid: 3\n\ndata: [DONE]\n\n";
        let expected = ["{\"a\":\"é😀\"}", "one\ntwo", "[DONE]"];
        for size in 1..stream.len() {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for chunk in stream.as_bytes().chunks(size) {
                decoder.push(chunk, &mut out).unwrap();
            }
            assert_eq!(out, expected, "chunks of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(&vec![b'a'; EVENT_BYTES_MAX + 1], &mut Vec::new()), Err(TooLong));
    }
}
