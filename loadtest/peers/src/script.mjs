// What is written into each session, and when: known in full before the run begins, so that every follower can compare what
// it gets with what was sent, and every token's latency counts from the time at which it was due.

/** Tokens of one message; then the next begins. */
export const MESSAGE_TOKENS = 400;
/** As language models cut them: mostly short, some punctuation, some line ends, some not ASCII. */
const TOKENS = ["The", " log", " is", " the", " only", " truth", ".", " A", " client", " holds", " cursor", ",", " not", " queue", " —",
  " naïve", " résumé", "\n\n", " reconnect", "ing", " \"now\"", " 日本", " 42", " {", "}"];
/** One token in so many is followed by a pause, as a model makes when it is preempted. */
const PAUSE_EVERY = 60;
const PAUSE_PERIODS = 6;

/** splitmix32: the same numbers for the same seed, everywhere. */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return ((z ^ (z >>> 16)) >>> 0) / 2 ** 32;
  };
}

/** FNV-1a over UTF-16 units: not against an adversary, and cheap enough to run over every piece of every follower. */
export function hash(text, from = 0x811c9dc5) {
  let value = from;
  for (let index = 0; index < text.length; index += 1) value = Math.imul(value ^ text.charCodeAt(index), 0x01000193);
  return value >>> 0;
}

/** One session's text and schedule. Times are milliseconds after the start of the run. */
export class Script {
  constructor(name, seed, tokens, { perSecond, seconds = Infinity }) {
    const next = random(seed);
    const pick = () => TOKENS[Math.floor(next() * TOKENS.length)];
    const period = 1000 / perSecond;
    this.name = name;
    this.tokens = [];
    this.ends = [];
    this.due = [];
    let [length, at] = [0, next() * period];
    while (this.tokens.length < tokens && at < seconds * 1000) {
      // Half of them are two words long, and a digit tells neighbours that look alike apart.
      const token = next() < 0.5 ? pick() : `${pick()}${pick()}${Math.floor(next() * 10)}`;
      length += token.length;
      this.tokens.push(token);
      this.ends.push(length);
      this.due.push(at);
      // On average one period, pauses included.
      const slack = PAUSE_EVERY / (PAUSE_EVERY + PAUSE_PERIODS);
      at += period * slack * (0.5 + next()) + (next() < 1 / PAUSE_EVERY ? PAUSE_PERIODS * period * slack : 0);
    }
    this.text = this.tokens.join("");
    this.hash = hash(this.text);
    /** When each token was handed to the socket; NaN until then. */
    this.handed = new Float64Array(this.tokens.length).fill(NaN);
    this.written = 0;
  }
}

/** A script for each session; `tokens` at most, and none that is due after `seconds`. */
export function scripts(count, options) {
  const tokens = options.tokens ?? Infinity;
  return Array.from({ length: count }, (_, index) => new Script(`s${options.round ?? 0}-${index}`, 7919 * (index + 1), tokens, options));
}
