// Requests of one session that have no answer yet. A request keeps its id until it is answered, over any number of
// connections, so a write whose reply was lost is repeated, not doubled. A control is answered by its outcome: until then
// each new connection asks for it again, and gets its receipts from there.

import { Backoff } from "./backoff.js";
import type { ControlHandle } from "./control.js";
import { EverthreadError } from "./errors.js";
import type { Link, Reply } from "./link.js";
import type { Receipt } from "./protocol.js";

const ATTEMPTS_MAX = 6;
/** Refusals that pass when people do something, and not by themselves: who asked decides whether to ask again. */
const UP_TO_PEOPLE = new Set(["busy", "held"]);

type Frame = { t: string } & Record<string, unknown>;

interface Item {
  frame: Frame;
  /** Of a write made when it is first sent, since the server refuses ids that are too old. */
  id: string | undefined;
  /** Refusals that allow a retry, not lost connections. */
  attempts: number;
  inFlight: boolean;
  backoff: Backoff;
  /** Called for each receipt before the outcome. */
  onReceipt: (receipt: Receipt) => void;
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
  request(frame: Frame): Promise<Reply> {
    return new Promise((resolve, reject) => this.#add({ frame, id: undefined, onReceipt: () => undefined, resolve, reject }));
  }

  /** Asks for `handle` until it has its outcome. */
  control(frame: Frame, handle: ControlHandle): void {
    const onReceipt = (receipt: Receipt) => handle.receive(receipt);
    const resolve = (reply: Reply) => {
      if (reply.t === "receipt") handle.receive(reply);
    };
    const item = this.#add({ frame, id: handle.id, onReceipt, resolve, reject: (error) => handle.fail(error) });
    // The log may have the outcome first; then nothing is left to ask for.
    const done = () => void this.#items.delete(item);
    handle.settled.then(done, done);
  }

  /** Nothing is sent any more. */
  close(reason?: EverthreadError): void {
    this.#target = undefined;
    for (const item of this.#items) item.reject(reason ?? EverthreadError.closed(item.id !== undefined));
    this.#items.clear();
  }

  #add(wanted: Pick<Item, "frame" | "id" | "onReceipt" | "resolve" | "reject">): Item {
    const item: Item = { ...wanted, attempts: 0, inFlight: false, backoff: new Backoff() };
    this.#items.add(item);
    this.#send(item);
    return item;
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
      if (reply.t === "receipt" && reply.stage !== "settled") return item.onReceipt(reply);
      if (reply.t === "error") return this.#refused(item, new EverthreadError(reply), sentTo);
      this.#items.delete(item);
      item.resolve(reply);
    });
  }

  #refused(item: Item, error: EverthreadError, sentTo: object): void {
    item.attempts += 1;
    const mayPass = error.retryable && !UP_TO_PEOPLE.has(error.code);
    if (!mayPass || item.attempts >= ATTEMPTS_MAX) {
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
