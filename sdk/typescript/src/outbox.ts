// Requests of one session that have no answer yet. A request keeps its id until it is answered, over any number of
// connections, so a write whose reply was lost is repeated, not doubled.

import { Backoff } from "./backoff.js";
import { EverthreadError } from "./errors.js";
import type { Link, Reply } from "./link.js";

const ATTEMPTS_MAX = 6;

interface Item {
  frame: { t: string } & Record<string, unknown>;
  /** Made when it is first sent: the server refuses ids that are too old. */
  id: string | undefined;
  /** Refusals that allow a retry, not lost connections. */
  attempts: number;
  inFlight: boolean;
  backoff: Backoff;
  resolve: (reply: Reply) => void;
  reject: (error: EverthreadError) => void;
}

export class Outbox {
  readonly #items = new Set<Item>();
  readonly #newId: () => string;
  #target: { link: Link; attachment: number } | undefined;

  constructor(newId: () => string) {
    this.#newId = newId;
  }

  /** The session is attached: send what waits, in order. */
  attached(link: Link, attachment: number): void {
    this.#target = { link, attachment };
    for (const item of this.#items) this.#send(item);
  }

  /** The attachment is gone; what was not answered waits for the next one. */
  detached(): void {
    this.#target = undefined;
    for (const item of this.#items) item.inFlight = false;
  }

  /** The reply to `frame`, which gets its `id` and `attachment` here. */
  request(frame: { t: string } & Record<string, unknown>): Promise<Reply> {
    return new Promise((resolve, reject) => {
      const item: Item = { frame, id: undefined, attempts: 0, inFlight: false, backoff: new Backoff(), resolve, reject };
      this.#items.add(item);
      this.#send(item);
    });
  }

  close(): void {
    this.#target = undefined;
    for (const item of this.#items) item.reject(EverthreadError.closed(item.id !== undefined));
    this.#items.clear();
  }

  #send(item: Item): void {
    if (!this.#target || item.inFlight) return;
    const { link, attachment } = this.#target;
    item.inFlight = true;
    item.id ??= this.#newId();
    const sentTo = this.#target;
    link.request({ ...item.frame, id: item.id, attachment }, (reply) => {
      // No reply, or one to an attachment that is history: `attached` sends it again.
      if (!reply || !this.#items.has(item)) return;
      if (reply.t === "error") return this.#refused(item, new EverthreadError(reply), sentTo);
      this.#items.delete(item);
      item.resolve(reply);
    });
  }

  #refused(item: Item, error: EverthreadError, sentTo: object): void {
    item.attempts += 1;
    if (!error.retryable || item.attempts >= ATTEMPTS_MAX) {
      this.#items.delete(item);
      item.reject(error);
      return;
    }
    setTimeout(
      () => {
        if (!this.#items.has(item) || this.#target !== sentTo) return;
        item.inFlight = false;
        this.#send(item);
      },
      Math.max(error.afterMs ?? 0, item.backoff.next(0)),
    );
  }
}
