// Requests of one session that have no answer yet. A request keeps its id until it is answered, over any number of
// connections, so a write whose reply was lost is repeated, not doubled. A control is answered by its outcome: until then
// each new connection asks for it again, and gets its receipts from there. Where the log loses its end, both are asked for
// once more under the same ids: the server knows what it still has.
//
// What the server cannot do yet is tried again until it was tried for long enough. Only time on an attachment counts: who is
// offline has not been refused.
//
// Invariant: of two puts the later one is not sent while the earlier one was refused and has no answer.

import { Backoff, REQUEST_CAP_MS } from "./backoff.js";
import type { ControlHandle } from "./control.js";
import type { Cursor } from "./cursor.js";
import { EverthreadError } from "./errors.js";
import { Kept } from "./kept.js";
import type { Link, Reply } from "./link.js";
import type { Receipt } from "./protocol.js";
import { byteLength } from "./utf8.js";

/** Refusals that pass when people do something, and not by themselves: who asked decides whether to ask again. */
const UP_TO_PEOPLE = new Set(["busy", "held"]);

/** A larger frame would close the connection for good, and with it every session of the client. */
const FRAME_BYTES_MAX = 320 * 1024;
/** For the id and the attachment. */
const ENVELOPE_BYTES = 192;

type Frame = { t: string } & Record<string, unknown>;

interface Item {
  frame: Frame;
  /** Of a write made when it is first sent, since the server refuses ids that are too old. */
  id: string | undefined;
  inFlight: boolean;
  /** The answer is its outcome, which comes whenever it comes. */
  isControl: boolean;
  /** The server has said once that it stands in the log: from there on only its outcome ends it. */
  isTaken: boolean;
  /** The server was not able to do it yet. */
  wasRefused: boolean;
  /** It was sent, and what became of that is not known. */
  isUnsure: boolean;
  /** For how long it was tried on attachments that are over. */
  triedMs: number;
  /** Since when it is tried on this one, by `performance.now()`. */
  triedSince: number | undefined;
  /** Runs while it waits to be tried again. */
  timer: ReturnType<typeof setTimeout> | undefined;
  backoff: Backoff;
  /** Called for each receipt before the outcome. */
  onReceipt: (receipt: Receipt) => void;
  resolve: (reply: Reply) => void;
  reject: (error: EverthreadError) => void;
}

type Wanted = Pick<Item, "frame" | "id" | "isControl" | "onReceipt" | "resolve" | "reject">;

function newItem(wanted: Wanted): Item {
  const fresh = { inFlight: false, isTaken: false, wasRefused: false, isUnsure: false };
  const untried = { triedMs: 0, triedSince: undefined, timer: undefined };
  return { ...wanted, ...fresh, ...untried, backoff: new Backoff(REQUEST_CAP_MS) };
}

export interface OutboxOptions {
  newId: () => string;
  /** For how long a request is tried again that the server cannot do yet. */
  retryForMs: number;
  /** Is told of a write that was answered, was lost with the end of the log, and could not be written again. */
  onLost: (error: EverthreadError) => void;
}

export class Outbox {
  readonly #items = new Set<Item>();
  readonly #kept = new Kept<Frame>();
  readonly #options: OutboxOptions;
  #target: { link: Link; attachment: number } | undefined;

  constructor(options: OutboxOptions) {
    this.#options = options;
  }

  /** The session is attached: send what waits, in order. */
  attached(link: Link, attachment: number): void {
    this.#target = { link, attachment };
    this.#sendAll();
  }

  /** The attachment is gone; what was not answered waits for the next one. */
  detached(): void {
    this.#target = undefined;
    for (const item of this.#items) {
      item.isUnsure ||= item.inFlight;
      item.inFlight = false;
      clearTimeout(item.timer);
      item.timer = undefined;
      item.triedMs = triedMs(item);
      item.triedSince = undefined;
    }
  }

  /** The log has lost what stood where `isLost`, or may have: it is written again, before whatever waits. */
  again(isLost: (at: Cursor) => boolean): void {
    const onReceipt = () => undefined;
    const whose = { isControl: false, onReceipt, resolve: onReceipt, reject: this.#options.onLost };
    const lost = this.#kept.take(isLost).map(({ frame, id }) => newItem({ ...whose, frame, id }));
    const waiting = [...this.#items];
    for (const item of waiting) item.inFlight &&= !item.isControl;
    this.#items.clear();
    for (const item of [...lost, ...waiting]) this.#items.add(item);
    this.#sendAll();
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
    const done = () => {
      this.#drop(item);
      this.#target?.link.forget(handle.id);
    };
    handle.settled.then(done, done);
  }

  /** Nothing is sent any more; what has no answer fails for this reason. */
  close(reason: EverthreadError): void {
    this.#target = undefined;
    const items = [...this.#items];
    for (const item of items) this.#drop(item);
    this.#kept.clear();
    for (const item of items) item.reject(item.inFlight || item.isUnsure ? reason.unsure() : reason);
  }

  /** Throws if there is something in the frame that is no JSON. */
  #add(wanted: Wanted): Item {
    // As it is now: it may be sent again, when who asked has long changed it.
    const text = JSON.stringify(wanted.frame);
    const item = newItem({ ...wanted, frame: JSON.parse(text) as Frame });
    const bytes = byteLength(text) + ENVELOPE_BYTES;
    if (bytes > FRAME_BYTES_MAX) {
      item.reject(EverthreadError.tooLarge(bytes, FRAME_BYTES_MAX));
      return item;
    }
    this.#items.add(item);
    this.#send(item);
    return item;
  }

  #drop(item: Item): void {
    clearTimeout(item.timer);
    this.#items.delete(item);
  }

  #sendAll(): void {
    for (const item of this.#items) this.#send(item);
  }

  #send(item: Item): void {
    if (!this.#target || item.inFlight || item.timer !== undefined) return;
    item.triedSince ??= performance.now();
    if (this.#isBehind(item)) return;
    const { link, attachment } = this.#target;
    item.inFlight = true;
    const id = (item.id ??= this.#options.newId());
    const sentTo = this.#target;
    link.request({ ...item.frame, id, attachment }, (reply) => {
      // No reply, or one to an attachment that is history: `attached` sends it again.
      if (!reply || !this.#items.has(item)) return;
      if (reply.t === "receipt" && reply.stage !== "settled") {
        item.isTaken = true;
        return item.onReceipt(reply);
      }
      if (reply.t === "error") return this.#refused(item, new EverthreadError(reply), sentTo);
      this.#drop(item);
      if (reply.t === "ok") this.#kept.keep(item.frame, id, reply);
      item.resolve(reply);
      if (item.wasRefused) this.#sendAll();
    });
  }

  /** Whether a put before it must be answered first, or what people say would change its order. */
  #isBehind(item: Item): boolean {
    if (item.frame.t !== "put") return false;
    for (const earlier of this.#items) {
      if (earlier === item) return false;
      if (earlier.frame.t === "put" && earlier.wasRefused) return true;
    }
    return false;
  }

  #refused(item: Item, error: EverthreadError, sentTo: object): void {
    const mayPass = error.retryable && !UP_TO_PEOPLE.has(error.code);
    if (!mayPass || (!item.isTaken && triedMs(item) >= this.#options.retryForMs)) {
      this.#drop(item);
      // An answer that does not tell whether the server knows the id says nothing of the times before.
      const knows = !mayPass && error.code !== "too_old";
      item.reject(item.isUnsure && !knows ? error.unsure() : error);
      return this.#sendAll();
    }
    item.wasRefused = true;
    item.isUnsure ||= !error.noSideEffects;
    // `attached` has sent it again by now, or will.
    if (this.#target !== sentTo) return;
    clearTimeout(item.timer);
    item.timer = setTimeout(() => {
      item.timer = undefined;
      item.inFlight = false;
      this.#sendAll();
    }, item.backoff.next(0, error.afterMs));
  }
}

/** For how long it was tried, over all attachments. */
function triedMs({ triedMs, triedSince }: Item): number {
  return triedSince === undefined ? triedMs : triedMs + performance.now() - triedSince;
}
