// What one follower has got, compared with what was sent, piece by piece: every token once, in order, as it was written.
//
// Pieces need not be tokens: a server may merge them. Latency is counted for every token that a piece completes.

import { hash } from "./script.mjs";

/** More than this is not worth keeping: the first few tell the story. */
const PROBLEMS_MAX = 5;

export class Check {
  /** `onToken(index, now)` is called for every token that arrived. */
  constructor(script, onToken) {
    this.script = script;
    this.onToken = onToken;
    /** How many characters of the text are here. */
    this.at = 0;
    /** How many tokens are here in full. */
    this.tokens = 0;
    this.pieces = 0;
    this.hash = undefined;
    this.problems = [];
    /** What arrived that did not fit: text that is not next in the script. */
    this.odd = 0;
    this.waiters = [];
  }

  /** A further piece of text. */
  text(piece) {
    if (piece.length === 0) return;
    this.pieces += 1;
    if (this.odd > 0) return;
    if (!this.script.text.startsWith(piece, this.at)) {
      this.odd += 1;
      return this.problem(this.whatIsOdd(piece));
    }
    this.at += piece.length;
    this.hash = hash(piece, this.hash);
    const now = performance.now();
    const { ends } = this.script;
    while (this.tokens < ends.length && ends[this.tokens] <= this.at) {
      this.onToken?.(this.tokens, now);
      this.tokens += 1;
    }
    if (this.waiters.length > 0) this.wake();
  }

  /** Says why a piece is not what comes next: lost, doubled, or changed. */
  whatIsOdd(piece) {
    const { text, name } = this.script;
    const next = text.slice(this.at, this.at + 24);
    const before = this.at >= piece.length && text.startsWith(piece, this.at - piece.length);
    const later = text.indexOf(piece, this.at);
    let kind = "changed";
    if (before) kind = "doubled";
    else if (later > this.at && piece.length > 1) kind = "lost";
    return `${name}: ${kind} after token ${this.tokens}: got ${JSON.stringify(piece.slice(0, 24))} instead of ${JSON.stringify(next)}`;
  }

  problem(what) {
    if (this.problems.length < PROBLEMS_MAX) this.problems.push(what);
    this.wake();
  }

  /** Resolves when so many tokens are here, or something is wrong. */
  until(tokens) {
    return new Promise((resolve) => {
      this.waiters.push({ tokens, resolve });
      this.wake();
    });
  }

  wake() {
    this.waiters = this.waiters.filter(({ tokens, resolve }) => {
      const isDone = this.tokens >= tokens || this.problems.length > 0;
      if (isDone) resolve();
      return !isDone;
    });
  }

  /** Whether everything is here, as it was sent. */
  get isWhole() {
    return this.problems.length === 0 && this.at === this.script.text.length && (this.at === 0 || this.hash === this.script.hash);
  }
}

/** The `verified` object of a report. `failures` are what went wrong besides. */
export function verdict(checks, what, failures = []) {
  const sum = (of) => checks.reduce((total, check) => total + of(check), 0);
  const unfinished = checks.filter((check) => check.problems.length === 0 && !check.isWhole).length;
  const problems = [...new Set(failures)].concat(checks.flatMap((check) => check.problems));
  if (unfinished > 0) problems.push(`${unfinished} of ${checks.length} followers did not get everything in time`);
  return {
    ok: failures.length === 0 && checks.every((check) => check.isWhole),
    what,
    followers: checks.length,
    tokens_expected: sum((check) => check.script.tokens.length),
    tokens_delivered: sum((check) => check.tokens),
    failed_followers: checks.filter((check) => check.problems.length > 0).length,
    unfinished,
    hash: checks.reduce((all, check) => hash(String(check.hash), all), undefined)?.toString(16),
    problems: problems.slice(0, PROBLEMS_MAX),
  };
}
