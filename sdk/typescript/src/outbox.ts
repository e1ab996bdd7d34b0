// Requests of one session that have no answer yet. A request keeps its id until it is answered, over any number of
// connections, so a write whose reply was lost is repeated, not doubled. A control is answered by its outcome: until then
// each new connection asks for it again, and gets its receipts from there. Where the log loses its end, both are asked for
// once more under the same ids: the server knows what it still has.

import { Backoff } from "./backoff.js";
import type { ControlHandle } from "./control.js";
import type { Cursor } from "./cursor.js";
import { EverthreadError } from "./errors.js";
import { Kept } from "./kept.js";
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
  /** The answer is its outcome, which comes whenever it comes. */
  isControl: boolean;
  backoff: Backoff;
  /** Called for each receipt before the outcome. */
  onReceipt: (receipt: Receipt) => void;
  resolve: (reply: Reply) => void;
  reject: (error: EverthreadError) => void;
}

type Wanted = Pick<Item, "frame" | "id" | "isControl" | "onReceipt" | "resolve" | "reject">;

function newItem(wanted: Wanted): Item {
  return { ...wanted, attempts: 0, inFlight: false, backoff: new Backoff() };
}

export class Outbox {
  readonly #items = new Set<Item>();
  readonly #kept = new Kept<Frame>();
  readonly #newId: () => string;
  readonly #onLost: (error: EverthreadError) => void;
  #target: { link: Link; attachment: number } | undefined;

  /** `onLost` is told of a write that was answered, was lost with the end of the log, and could not be written again. */
  constructor(newId: () => string, onLost: (error: EverthreadError) => void) {
    this.#newId = newId;
    this.#onLost = onLost;
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

  /** The log has lost what stood where `isLost`, or may have: it is written again, before whatever waits. */
  again(isLost: (at: Cursor) => boolean): void {
    const onReceipt = () => undefined;
    const whose = { isControl: false, onReceipt, resolve: onReceipt, reject: this.#onLost };
    const lost = this.#kept.take(isLost).map(({ frame, id }) => newItem({ ...whose, frame, id }));
    const waiting = [...this.#items];
    for (const item of waiting) item.inFlight &&= !item.isControl;
    this.#items.clear();
    for (const item of [...lost, ...waiting]) this.#items.add(item);
    for (const item of this.#items) this.#send(item);
  }

  /** The reply to `frame`, which gets its `id` and `attachment` here. */
  request(frame: Frame): Promise<Reply> {
    return new Promise((resolve, reject) =>
      this.#add({ frame, id: undefined, isControl: false, onReceipt: () => undefined, resolve, reject }),
    );
  }

  /** Asks for `handle` until it has its outcome. */
  control(frame: Frame, handle: ControlHandle): void {
    const onReceipt = (receipt: Receipt) => handle.receive(receipt);
    const resolve = (reply: Reply) => {
      if (reply.t === "receipt") handle.receive(reply);
    };
    const item = this.#add({ frame, id: handle.id, isControl: true, onReceipt, resolve, reject: (error) => handle.fail(error) });
    // The log may have the outcome first; then nothing is left to ask for.
    const done = () => void this.#items.delete(item);
    handle.settled.then(done, done);
  }

  /** Nothing is sent any more. */
  close(reason?: EverthreadError): void {
    this.#target = undefined;
    for (const item of this.#items) item.reject(reason ?? EverthreadError.closed(item.id !== undefined));
    this.#items.clear();
    this.#kept.clear();
  }

  #add(wanted: Wanted): Item {
    const item = newItem(wanted);
    this.#items.add(item);
    this.#send(item);
    return item;
  }

  #send(item: Item): void {
    if (!this.#target || item.inFlight) return;
    const { link, attachment } = this.#target;
    item.inFlight = true;
    const id = (item.id ??= this.#newId());
    const sentTo = this.#target;
    link.request({ ...item.frame, id, attachment }, (reply) => {
      // No reply, or one to an attachment that is history: `attached` sends it again.
      if (!reply || !this.#items.has(item)) return;
      if (reply.t === "receipt" && reply.stage !== "settled") return item.onReceipt(reply);
      if (reply.t === "error") return this.#refused(item, new EverthreadError(reply), sentTo);
      this.#items.delete(item);
      if (reply.t === "ok") this.#kept.keep(item.frame, id, reply);
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
