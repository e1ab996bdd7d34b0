// How long to wait before the next attempt.

const FIRST_MS = 250;
/** Between connections. */
const CAP_MS = 10_000;
/** Between tries of something that a server in good connection cannot do yet: somebody is waiting for it. */
export const REQUEST_CAP_MS = 3_000;
/**
 * A connection that was usable for so long counts as a success, and the next failure begins anew. So whoever is cut off now
 * and then is back at once, and a server that welcomes and hangs up is asked about once a second at most.
 */
const STABLE_MS = 1_000;
/** A server may say how long to stay away; no longer than this. */
const AFTER_MAX_MS = 60_000;

export class Backoff {
  readonly #capMs: number;
  #failures = 0;

  constructor(capMs = CAP_MS) {
    this.#capMs = capMs;
  }

  /**
   * Milliseconds to wait after a connection that was usable for `livedMs`, and no fewer than the server asked for. Half of it
   * is random, to spread a crowd.
   */
  next(livedMs: number, afterMs = 0, random: () => number = Math.random): number {
    if (livedMs >= STABLE_MS) this.#failures = 0;
    const full = Math.min(this.#capMs, FIRST_MS * 2 ** this.#failures);
    this.#failures += 1;
    const own = Math.round(full / 2 + (full / 2) * random());
    return Math.max(own, Math.min(afterMs, AFTER_MAX_MS));
  }

  reset(): void {
    this.#failures = 0;
  }
}
