//! What sessions say, and when: one cycle of tokens and gaps that all of them go round in, each from a place of its own.
//!
//! So every token of every session, its text and the time at which it is due are known to sender and follower without being
//! kept for anybody: a session of a million tokens costs what one of ten does. Invariant: two processes with the same
//! options have the same corpus.

use std::sync::Arc;
use std::time::Duration;

/// Tokens of one cycle.
const CYCLE: usize = 8192;
/// Tokens as language models cut them: mostly short, some punctuation, some not ASCII, some that JSON escapes.
const TOKENS: [&str; 40] = [
    "The",
    " log",
    " is",
    " the",
    " only",
    " truth",
    ".",
    " A",
    " client",
    " holds",
    " a",
    " cursor",
    ",",
    " not",
    " a",
    " queue",
    " —",
    " naïve",
    " résumé",
    "\n\n",
    " reconnect",
    "ing",
    " \"now\"",
    " 日本",
    " and",
    " to",
    " of",
    " it",
    "s",
    " every",
    " session",
    " work",
    "er",
    " with",
    " in",
    " that",
    ":",
    " for",
    "ed",
    " 3",
];

/// How tokens follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At equal distances.
    Even,
    /// As models do: unequal distances, some tokens together, now and then a pause.
    Natural,
}

/// One cycle, for a rate.
#[derive(Debug)]
pub struct Corpus {
    /// The text of two cycles, so that what is shorter than one lies in one piece from wherever.
    text: Vec<u8>,
    /// Where each token begins; then where the cycle ends.
    starts: Vec<u64>,
    /// The same as it stands in JSON.
    escaped: Vec<u8>,
    escaped_starts: Vec<u64>,
    /// When each is due, in µs after the first; then when the cycle is over.
    due: Vec<u64>,
}

impl Corpus {
    /// For so many tokens per second.
    pub fn new(rate: f64, pace: Pace) -> Corpus {
        let mut random = Random(7);
        let (mut text, mut escaped) = (Vec::new(), Vec::new());
        let (mut starts, mut escaped_starts, mut gaps) = (vec![0], vec![0], Vec::with_capacity(CYCLE));
        for _ in 0..CYCLE {
            let token = TOKENS[index(random.below(TOKENS.len() as u64))];
            text.extend_from_slice(token.as_bytes());
            let quoted = serde_json::Value::from(token).to_string();
            escaped.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
            starts.push(text.len() as u64);
            escaped_starts.push(escaped.len() as u64);
            gaps.push(gap(&mut random, pace));
        }
        text.extend_from_within(..);
        escaped.extend_from_within(..);
        let cycle_us = f64::from(u32::try_from(CYCLE).unwrap_or(u32::MAX)) / rate * 1e6;
        let scale = cycle_us / gaps.iter().sum::<f64>();
        let mut at = 0.0;
        let mut due = vec![0];
        for gap in gaps {
            at += gap * scale;
            due.push(u64::try_from(Duration::from_secs_f64(at / 1e6).as_micros()).unwrap_or(u64::MAX));
        }
        Corpus { text, starts, escaped, escaped_starts, due }
    }

    fn cycle(&self) -> (u64, u64) {
        let last = |of: &[u64]| of.last().copied().unwrap_or(1).max(1);
        (last(&self.starts), last(&self.due))
    }

    /// Bytes before a token, counted from the beginning of the first cycle.
    fn byte_of(&self, token: u64) -> u64 {
        token / CYCLE as u64 * self.cycle().0 + self.starts[index(token % CYCLE as u64)]
    }

    fn due_of(&self, token: u64) -> u64 {
        token / CYCLE as u64 * self.cycle().1 + self.due[index(token % CYCLE as u64)]
    }
}

/// In units of the mean, about.
fn gap(random: &mut Random, pace: Pace) -> f64 {
    let thousandths = |random: &mut Random, from: u32, to: u32| {
        let below = u32::try_from(random.below(u64::from(to - from))).unwrap_or(0);
        f64::from(from + below) / 1000.0
    };
    match (pace, random.below(100)) {
        (Pace::Even, _) => 1.0,
        (Pace::Natural, 0..2) => thousandths(random, 6_000, 14_000),
        (Pace::Natural, 2..12) => 0.1,
        (Pace::Natural, _) => thousandths(random, 500, 1_500),
    }
}

/// What one session's run says: `tokens` tokens from a place in the corpus, in messages of `message_tokens`.
#[derive(Debug)]
pub struct Script {
    corpus: Arc<Corpus>,
    first: u64,
    phase_us: u64,
    /// How many there are.
    pub tokens: u64,
    message_tokens: u64,
}

/// A number as an index. What does not fit is out of bounds, whatever of.
pub fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Script {
    /// Session `number`; its first token is due `phase` after the start.
    pub fn new(
        corpus: &Arc<Corpus>,
        number: u64,
        phase: Duration,
        tokens: u64,
        message_tokens: u64,
    ) -> Script {
        let first = Random(number.wrapping_add(1)).below(CYCLE as u64);
        let phase_us = u64::try_from(phase.as_micros()).unwrap_or(u64::MAX);
        Script { corpus: corpus.clone(), first, phase_us, tokens, message_tokens: message_tokens.max(1) }
    }

    /// As many tokens as are due within `time`.
    pub fn lasting(mut self, time: Duration) -> Script {
        let until = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (mut low, mut high) = (1, 1);
        while self.due_us(high) < until {
            high *= 2;
        }
        while low < high {
            let middle = u64::midpoint(low, high);
            if self.due_us(middle) < until { low = middle + 1 } else { high = middle }
        }
        self.tokens = low;
        self
    }

    /// When a token is due, in µs after the start.
    pub fn due_us(&self, token: u64) -> u64 {
        self.phase_us + self.corpus.due_of(self.first + token) - self.corpus.due_of(self.first)
    }

    /// Where a token begins in the text of all messages.
    pub fn byte_of(&self, token: u64) -> u64 {
        self.corpus.byte_of(self.first + token) - self.corpus.byte_of(self.first)
    }

    /// Where a message begins in it.
    pub fn message_at(&self, message: u64) -> u64 {
        self.byte_of((message * self.message_tokens).min(self.tokens))
    }

    /// Bytes of all messages.
    pub fn bytes(&self) -> u64 {
        self.byte_of(self.tokens)
    }

    /// The first token of the message after that of `token`: no block goes across.
    pub fn block_end(&self, token: u64) -> u64 {
        ((token / self.message_tokens + 1) * self.message_tokens).min(self.tokens)
    }

    /// Whether the text says `said` at `position`; else where it differs.
    pub fn check(&self, position: u64, said: &[u8]) -> Result<(), u64> {
        let (cycle, _) = self.corpus.cycle();
        let begin = self.corpus.byte_of(self.first);
        let mut at = position;
        for piece in said.chunks(index(cycle)) {
            let from = index((begin + at) % cycle);
            let expected = &self.corpus.text[from..from + piece.len()];
            if at + piece.len() as u64 > self.bytes() || expected != piece {
                let same = piece.iter().zip(expected).take_while(|(a, b)| a == b).count();
                return Err((at + same as u64).min(self.bytes()));
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Adds a hash of the text of some tokens to a hash of what stands before them.
    pub fn hash(&self, mut hash: u64, from: u64, to: u64) -> u64 {
        for token in from..to {
            let at = index((self.first + token) % CYCLE as u64);
            let (begin, end) = (self.corpus.starts[at], self.corpus.starts[at + 1]);
            hash = hash_on(hash, &self.corpus.text[index(begin)..index(end)]);
        }
        hash
    }

    /// Writes the entries of a block of tokens of one message: an array.
    pub fn write_block(&self, out: &mut Vec<u8>, from: u64, to: u64) {
        use std::io::Write as _;
        let message = from / self.message_tokens;
        // Writing to a Vec cannot fail, here and below.
        if from.is_multiple_of(self.message_tokens) {
            out.push(b'[');
            if message > 0 {
                closing(out, message - 1);
                out.push(b',');
            }
            drop(write!(
                out,
                r#"{{"type":"message.start","message":"m{message}","role":"assistant"}},{{"type":"part.start","message":"m{message}","part":"p","kind":"text"}},"#
            ));
        } else {
            out.push(b'[');
        }
        let offset = self.byte_of(from) - self.message_at(message);
        drop(write!(
            out,
            r#"{{"type":"part.append","message":"m{message}","part":"p","offset":{offset},"text":""#
        ));
        let mut at = (self.first + from) % CYCLE as u64;
        for _ in from..to {
            let (begin, end) =
                (self.corpus.escaped_starts[index(at)], self.corpus.escaped_starts[index(at) + 1]);
            out.extend_from_slice(&self.corpus.escaped[index(begin)..index(end)]);
            at = (at + 1) % CYCLE as u64;
        }
        out.extend_from_slice(br#""}"#);
        if to == self.tokens {
            out.push(b',');
            closing(out, message);
        }
        out.push(b']');
    }
}

fn closing(out: &mut Vec<u8>, message: u64) {
    use std::io::Write as _;
    drop(write!(
        out,
        r#"{{"type":"part.end","message":"m{message}","part":"p","status":"done"}},{{"type":"message.end","message":"m{message}","status":"complete"}}"#
    ));
}

/// The hash of nothing (FNV-1a).
pub const HASH_OF_NOTHING: u64 = 0xcbf2_9ce4_8422_2325;

/// Goes on with a hash: of two pieces it is that of both together, however they are cut.
pub fn hash_on(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// splitmix64: the same numbers for the same seed, everywhere.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn script(tokens: u64) -> Arc<Script> {
        let corpus = Arc::new(Corpus::new(50.0, Pace::Natural));
        Arc::new(Script::new(&corpus, 3, Duration::ZERO, tokens, 100))
    }

    #[test]
    fn blocks_append_the_whole_text_at_the_right_offsets_and_nothing_else() {
        let script = script(20_000);
        let (mut said, mut token, mut message, mut out) = (Vec::new(), 0, 0, Vec::new());
        while token < script.tokens {
            let to = (token + 1 + token % 7).min(script.block_end(token));
            out.clear();
            script.write_block(&mut out, token, to);
            let entries: Vec<serde_json::Value> = serde_json::from_slice(&out).unwrap();
            for entry in entries {
                match entry["type"].as_str().unwrap() {
                    "message.start" => message = said.len(),
                    "part.append" => {
                        assert_eq!(entry["offset"], said.len() - message);
                        said.extend_from_slice(entry["text"].as_str().unwrap().as_bytes());
                    }
                    _ => {}
                }
            }
            token = to;
            assert_eq!(said.len() as u64, script.byte_of(token));
        }
        assert_eq!(said.len() as u64, script.bytes());
        assert_eq!(script.check(0, &said), Ok(()));
        assert_eq!(script.hash(HASH_OF_NOTHING, 0, script.tokens), hash_on(HASH_OF_NOTHING, &said));
        said[5_000] ^= 1;
        assert_eq!(script.check(0, &said), Err(5_000));
        said[5_000] ^= 1;
        said.push(b'.');
        assert_eq!(script.check(0, &said), Err(script.bytes()));
    }

    #[test]
    fn tokens_come_at_the_rate_that_was_asked_for() {
        for pace in [Pace::Even, Pace::Natural] {
            let corpus = Arc::new(Corpus::new(60.0, pace));
            let script = Script::new(&corpus, 9, Duration::from_millis(3), 0, 400);
            assert_eq!(script.due_us(0), 3_000);
            let cycle = script.due_us(CYCLE as u64) - 3_000;
            assert!(cycle.abs_diff(CYCLE as u64 * 1_000_000 / 60) < 10, "{cycle}");
            let script = script.lasting(Duration::from_secs(600));
            assert!(script.tokens.abs_diff(36_000) < 1_000, "{}", script.tokens);
            assert!(script.due_us(script.tokens - 1) < 600_000_000);
            assert!(script.due_us(script.tokens) >= 600_000_000);
        }
    }
}
