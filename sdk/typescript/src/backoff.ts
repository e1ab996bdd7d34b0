// How long to wait before the next attempt to connect.

const FIRST_MS = 250;
const CAP_MS = 10_000;
/** A connection that lived this long counts as a success: the next failure begins anew. */
const STABLE_MS = 5_000;

export class Backoff {
  #failures = 0;

  /** Milliseconds to wait after a connection that was usable for `livedMs`. Half of it is random, to spread a crowd. */
  next(livedMs: number, random: () => number = Math.random): number {
    if (livedMs >= STABLE_MS) this.#failures = 0;
    const full = Math.min(CAP_MS, FIRST_MS * 2 ** this.#failures);
    this.#failures += 1;
    return Math.round(full / 2 + (full / 2) * random());
  }

  reset(): void {
    this.#failures = 0;
  }
}
