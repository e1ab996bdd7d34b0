//! Inbound frames (RFC 6455, section 5), read into one buffer that is given back when it is empty.
//!
//! Written here and not taken from a library because the connection's loop races the reader against everything else:
//! `poll_next` must lose nothing when something else comes first, fragments must be bounded together, and unmasked frames must be refused.

use bytes::{Buf as _, Bytes, BytesMut};
use everthread_protocol::limits::FRAME_BYTES_MAX;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::OwnedReadHalf;

/// What one read may add to the buffer.
const READ_BYTES: usize = 4 * 1024;
/// RFC 6455, section 5.5.
const CONTROL_BYTES_MAX: usize = 125;

/// A whole message.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Text, not yet checked to be UTF-8.
    Text(Bytes),
    /// A ping of the peer's WebSocket layer, to be answered with the same bytes.
    Ping(Bytes),
    /// An answer to a ping.
    Pong,
    /// The peer closes.
    Close,
}

/// Why nothing more can be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The peer is gone.
    #[error("the peer is gone")]
    Gone,
    /// The bytes are not WebSocket frames of a client, or are binary.
    #[error("{0}")]
    Protocol(&'static str),
    /// A message larger than [`FRAME_BYTES_MAX`].
    #[error("a frame has at most {FRAME_BYTES_MAX} bytes")]
    TooLarge,
}

/// The reading half of a socket.
pub struct Inbound {
    read: OwnedReadHalf,
    decoder: Decoder,
}

impl Inbound {
    /// A reader that begins with bytes that were read before.
    pub fn new(read: OwnedReadHalf, before: BytesMut) -> Self {
        Self { read, decoder: Decoder { buffer: before, fragments: None } }
    }

    /// The next message.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, ReadError>> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Poll::Ready(Ok(message));
            }
            if self.decoder.buffer.is_empty() {
                // Wait without a buffer: most connections are silent most of the time.
                self.decoder.buffer = BytesMut::new();
                let ready = ready!(self.read.as_ref().poll_read_ready(cx));
                ready.map_err(|_| ReadError::Gone)?;
            }
            self.decoder.buffer.reserve(READ_BYTES);
            // Cancel safe: made anew for every poll.
            match ready!(pin!(self.read.read_buf(&mut self.decoder.buffer)).poll(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(ReadError::Gone)),
                Ok(_) => {}
            }
        }
    }

    /// Ready when the peer is gone; what it still sends is dropped. A socket that is closed while something unread is there
    /// takes back what was written last, and the peer never learns why it was closed.
    pub async fn gone(&mut self) {
        while poll_fn(|cx| self.poll_next(cx)).await.is_ok() {}
    }
}

struct Decoder {
    buffer: BytesMut,
    /// The beginning of a message that comes in fragments.
    fragments: Option<BytesMut>,
}

struct Header {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    header_len: usize,
    payload_len: usize,
}

impl Decoder {
    /// The next message, if the buffer holds it whole.
    fn next(&mut self) -> Result<Option<Message>, ReadError> {
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            if self.buffer.len() < header.header_len + header.payload_len {
                return Ok(None);
            }
            self.buffer.advance(header.header_len);
            let mut payload = self.buffer.split_to(header.payload_len);
            unmask(&mut payload, header.mask);
            if let Some(message) = self.message(&header, payload)? {
                return Ok(Some(message));
            }
        }
    }

    fn header(&self) -> Result<Option<Header>, ReadError> {
        let [first, second, rest @ ..] = &self.buffer[..] else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(ReadError::Protocol("reserved bits are set"));
        }
        if second & 0x80 == 0 {
            return Err(ReadError::Protocol("frames of clients are masked"));
        }
        let (opcode, fin) = (first & 0x0f, first & 0x80 != 0);
        let (len_bytes, payload_len) = match second & 0x7f {
            126 => {
                let Some(bytes) = rest.first_chunk::<2>() else { return Ok(None) };
                (2, u64::from(u16::from_be_bytes(*bytes)))
            }
            127 => {
                let Some(bytes) = rest.first_chunk::<8>() else { return Ok(None) };
                (8, u64::from_be_bytes(*bytes))
            }
            short => (0, u64::from(short)),
        };
        let payload_len = usize::try_from(payload_len).map_err(|_| ReadError::TooLarge)?;
        if opcode >= 8 && (payload_len > CONTROL_BYTES_MAX || !fin) {
            return Err(ReadError::Protocol("a control frame is short and whole"));
        }
        let before = self.fragments.as_ref().map_or(0, BytesMut::len);
        if payload_len > FRAME_BYTES_MAX || before + payload_len > FRAME_BYTES_MAX {
            return Err(ReadError::TooLarge);
        }
        let Some(mask) = rest.get(len_bytes..).and_then(|rest| rest.first_chunk::<4>()) else {
            return Ok(None);
        };
        Ok(Some(Header { fin, opcode, mask: *mask, header_len: 2 + len_bytes + 4, payload_len }))
    }

    fn message(&mut self, header: &Header, payload: BytesMut) -> Result<Option<Message>, ReadError> {
        match (header.opcode, self.fragments.take()) {
            (0x1, None) if header.fin => Ok(Some(Message::Text(payload.freeze()))),
            (0x1, None) => {
                self.fragments = Some(payload);
                Ok(None)
            }
            (0x0, Some(mut begun)) => {
                begun.extend_from_slice(&payload);
                if header.fin {
                    return Ok(Some(Message::Text(begun.freeze())));
                }
                self.fragments = Some(begun);
                Ok(None)
            }
            (0x0, None) => Err(ReadError::Protocol("a continuation of nothing")),
            (0x1, Some(_)) => Err(ReadError::Protocol("a new message inside another")),
            (0x2, _) => Err(ReadError::Protocol("frames are text, not binary")),
            (0x8, _) => Ok(Some(Message::Close)),
            (0x9, begun) => {
                self.fragments = begun;
                Ok(Some(Message::Ping(payload.freeze())))
            }
            (0xa, begun) => {
                self.fragments = begun;
                Ok(Some(Message::Pong))
            }
            _ => Err(ReadError::Protocol("an unknown opcode")),
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let (wide, rest) = payload.as_chunks_mut::<16>();
    let mask16: [u8; 16] = std::array::from_fn(|index| mask[index % 4]);
    let word = u128::from_ne_bytes(mask16);
    for chunk in wide {
        *chunk = (u128::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask16) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            short @ 0..=125 => out.push(0x80 | u8::try_from(short).unwrap()),
            long @ 126..=0xffff => {
                out.push(0x80 | 126);
                out.extend(u16::try_from(long).unwrap().to_be_bytes());
            }
            huge => {
                out.push(0x80 | 127);
                out.extend(u64::try_from(huge).unwrap().to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        out.extend(mask);
        out.extend(payload.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
        out
    }

    fn decode_all(chunks: &[&[u8]]) -> Result<Vec<Message>, ReadError> {
        let mut decoder = Decoder { buffer: BytesMut::new(), fragments: None };
        let mut out = Vec::new();
        for chunk in chunks {
            decoder.buffer.extend_from_slice(chunk);
            while let Some(message) = decoder.next()? {
                out.push(message);
            }
        }
        Ok(out)
    }

    fn text(text: &str) -> Message {
        Message::Text(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn fragments_with_a_ping_between_them_become_one_message() {
        let bytes = [frame(0x01, b"Hel"), frame(0x89, b"p"), frame(0x80, b"lo")].concat();
        let messages = decode_all(&[&bytes]).unwrap();
        assert_eq!(messages, [Message::Ping(Bytes::from_static(b"p")), text("Hello")]);
    }

    #[test]
    fn what_a_client_may_not_send_is_refused() {
        let mut unmasked = frame(0x81, b"a");
        unmasked[1] &= 0x7f;
        for bad in [
            unmasked,
            frame(0x82, b"binary"),
            frame(0xc1, b"reserved"),
            frame(0x80, b"nothing begun"),
            [frame(0x01, b"a"), frame(0x81, b"b")].concat(),
            frame(0x09, b"fragmented ping"),
            frame(0x89, &[0; 126]),
            frame(0x83, b"unknown"),
        ] {
            assert!(matches!(decode_all(&[&bad]), Err(ReadError::Protocol(_))), "{bad:x?}");
        }
    }

    #[test]
    fn size_is_refused_from_the_header_and_over_all_fragments() {
        let mut huge = vec![0x81, 0x80 | 127];
        huge.extend(u64::MAX.to_be_bytes());
        assert_eq!(decode_all(&[&huge]), Err(ReadError::TooLarge));
        let half = vec![b'a'; FRAME_BYTES_MAX / 2 + 1];
        let bytes = [frame(0x01, &half), frame(0x80, &half)].concat();
        assert_eq!(decode_all(&[&bytes]), Err(ReadError::TooLarge));
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut(texts in prop::collection::vec(".{0,300}", 1..6), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
            let bytes: Vec<u8> = texts.iter().flat_map(|t| frame(0x81, t.as_bytes())).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let expected: Vec<Message> = texts.iter().map(|t| text(t)).collect();
            prop_assert_eq!(decode_all(&chunks).unwrap(), expected);
        }

        #[test]
        fn any_bytes_are_messages_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(decode_all(&[&bytes]));
        }
    }
}
