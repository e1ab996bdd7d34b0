//! What a session's worker writes, and when: known in full before the run begins, so that every follower can compare what it
//! gets with what was sent, byte by byte, and every block's latency counts from the time at which it was due.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Blocks of one message; then the next begins.
const MESSAGE_BLOCKS: usize = 400;
/// Tokens as language models cut them: mostly short, some punctuation, some not ASCII.
const TOKENS: [&str; 24] = [
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
];

/// One session's text and schedule.
#[derive(Debug)]
pub struct Script {
    /// Everything that is said.
    pub text: String,
    /// Where each block ends in it.
    pub ends: Vec<usize>,
    period: Duration,
    phase: Duration,
    /// When each block was handed to the socket, in µs after the start, plus one.
    handed: Vec<AtomicU64>,
}

impl Script {
    /// `blocks` blocks, one per `period`, the first one `phase` after the start. The text follows from `seed`.
    pub fn new(seed: u64, blocks: usize, period: Duration, phase: Duration) -> Script {
        let mut random = Random(seed);
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(blocks));
        for _ in 0..blocks {
            for _ in 0..=random.below(3) {
                text.push_str(TOKENS[random.below(TOKENS.len())]);
            }
            ends.push(text.len());
        }
        let handed = (0..blocks).map(|_| AtomicU64::new(0)).collect();
        Script { text, ends, period, phase, handed }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.ends.len()
    }

    /// When a block is due, after the start.
    pub fn due(&self, block: usize) -> Duration {
        self.phase + self.period.mul_f64(f64::from(u32::try_from(block).unwrap_or(u32::MAX)))
    }

    /// Notes that a block is handed to the socket now.
    pub fn hand(&self, block: usize, start: Instant) {
        let after = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        self.handed[block].store(after + 1, Ordering::Release);
    }

    /// When that was, in µs after the start; none if it has not happened.
    pub fn handed_us(&self, block: usize) -> Option<u64> {
        self.handed[block].load(Ordering::Acquire).checked_sub(1)
    }

    /// The entries of a block.
    pub fn entries(&self, block: usize) -> String {
        let begin_of = |block: usize| if block == 0 { 0 } else { self.ends[block - 1] };
        let (from, to) = (begin_of(block), self.ends[block]);
        let number = block / MESSAGE_BLOCKS;
        let first = number * MESSAGE_BLOCKS;
        let mut out = String::from("[");
        if block == first {
            if block > 0 {
                out.push_str(&closing(number - 1));
                out.push(',');
            }
            out.push_str(&format!(
                r#"{{"type":"message.start","message":"m{number}","role":"assistant"}},{{"type":"part.start","message":"m{number}","part":"p","kind":"text"}},"#
            ));
        }
        let text = serde_json::Value::from(&self.text[from..to]);
        let offset = from - begin_of(first);
        out.push_str(&format!(
            r#"{{"type":"part.append","message":"m{number}","part":"p","offset":{offset},"text":{text}}}"#
        ));
        if block + 1 == self.blocks() {
            out.push(',');
            out.push_str(&closing(number));
        }
        out.push(']');
        out
    }
}

fn closing(number: usize) -> String {
    format!(
        r#"{{"type":"part.end","message":"m{number}","part":"p","status":"done"}},{{"type":"message.end","message":"m{number}","status":"complete"}}"#
    )
}

/// The instant from which all schedules count; set once.
pub type Start = OnceLock<Instant>;

/// splitmix64: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (bound as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_append_the_whole_text_at_the_right_offsets() {
        let script = Script::new(7, MESSAGE_BLOCKS + 10, Duration::from_millis(20), Duration::ZERO);
        let (mut text, mut part) = (String::new(), 0);
        for block in 0..script.blocks() {
            let entries: Vec<serde_json::Value> = serde_json::from_str(&script.entries(block)).unwrap();
            for entry in entries {
                match entry["type"].as_str().unwrap() {
                    "part.start" => part = text.len(),
                    "part.append" => {
                        assert_eq!(entry["offset"], text.len() - part);
                        text.push_str(entry["text"].as_str().unwrap());
                    }
                    _ => {}
                }
            }
            assert_eq!(text.len(), script.ends[block]);
        }
        assert_eq!(text, script.text);
    }

    #[test]
    fn sessions_with_different_seeds_say_different_things() {
        let script = |seed| Script::new(seed, 20, Duration::from_millis(20), Duration::ZERO).text;
        assert_eq!(script(1), script(1));
        assert_ne!(script(1), script(2));
    }
}
