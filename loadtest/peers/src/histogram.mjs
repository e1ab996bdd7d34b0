// Latencies in buckets that grow with the value: 128 per power of two, so that a quantile is off by less than one percent.

const STEPS = 128;
/** Microseconds: from 1 to 2^31, half an hour. */
const POWERS = 31;

export class Histogram {
  constructor() {
    this.buckets = new Uint32Array(STEPS * (POWERS + 1));
    this.count = 0;
    this.sum = 0;
    this.max = 0;
  }

  /** Adds a latency in milliseconds; a negative one is none at all. */
  record(ms) {
    const us = Math.max(1, ms * 1000);
    const power = Math.min(POWERS, 31 - Math.clz32(us));
    const step = Math.min(STEPS - 1, Math.floor((us / 2 ** power - 1) * STEPS));
    this.buckets[power * STEPS + step] += 1;
    this.count += 1;
    this.sum += ms;
    if (ms > this.max) this.max = ms;
  }

  quantile(part) {
    const rank = Math.ceil(part * this.count);
    let seen = 0;
    for (let index = 0; index < this.buckets.length; index += 1) {
      seen += this.buckets[index];
      if (seen >= rank) return Math.min(this.max, (2 ** Math.floor(index / STEPS) * (1 + (index % STEPS + 1) / STEPS)) / 1000);
    }
    return this.max;
  }

  /** As it stands in a report; nothing if nothing was recorded. */
  summary() {
    if (this.count === 0) return undefined;
    const round = (ms) => Math.round(ms * 1000) / 1000;
    return {
      count: this.count,
      mean_ms: round(this.sum / this.count),
      p50_ms: round(this.quantile(0.5)),
      p90_ms: round(this.quantile(0.9)),
      p99_ms: round(this.quantile(0.99)),
      p999_ms: round(this.quantile(0.999)),
      max_ms: round(this.max),
    };
  }
}
