// One control from request to outcome, as the one who asked sees it. What it learns comes from two sides, receipts of the
// connection and the log itself; whichever is first counts, so the outcome comes also if the connection was lost.
//
// Invariant: receipts only go forward (accepted, delivered, settled), and after the outcome nothing follows.

import { Emitter } from "./emitter.js";
import type { EverthreadError } from "./errors.js";
import type { Control, Receipt, SettledReceipt } from "./protocol.js";

const RANK = { accepted: 0, delivered: 1, settled: 2 };

interface ControlEvents {
  receipt: [receipt: Receipt];
}

export class ControlHandle extends Emitter<ControlEvents> {
  /** Id of the control, as it stands in the log. */
  readonly id: string;
  /** The outcome. Rejects if the server did not take the request, or if the session was closed before the outcome came. */
  readonly settled: Promise<SettledReceipt>;
  readonly #past: Receipt[] = [];
  #end: { error?: EverthreadError } | undefined;
  #resolve!: (receipt: SettledReceipt) => void;
  #reject!: (error: EverthreadError) => void;
  /** Readers that have had everything so far. */
  readonly #waiting = new Set<() => void>();

  /** Made by the session. */
  constructor(id: string) {
    super();
    this.id = id;
    this.settled = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // Who only reads receipts need not wait for the outcome; the promise must not end the program.
    this.settled.catch(() => undefined);
  }

  /** Receipts, from the first to the outcome, for any number of readers at any time. Throws where `settled` rejects. */
  get receipts(): AsyncIterable<Receipt> {
    return { [Symbol.asyncIterator]: () => this.#read() };
  }

  /** The last receipt so far. */
  get last(): Receipt | undefined {
    return this.#past.at(-1);
  }

  get isOver(): boolean {
    return this.#end !== undefined;
  }

  /** A receipt came. Called by the session. */
  receive(receipt: Receipt): void {
    if (this.#end || !this.#isNews(receipt)) return;
    this.#past.push(receipt);
    if (receipt.stage === "settled") {
      this.#end = {};
      this.#resolve(receipt);
    }
    this.emit("receipt", receipt);
    this.#wake();
  }

  /** The log has the control at `seq`. Called by the session. */
  found(control: Control, seq: number): void {
    const { outcome, reason, run, answered_by } = control;
    if (outcome === undefined) return this.receive({ t: "receipt", control: this.id, stage: "accepted", seq });
    const settled: SettledReceipt = { t: "receipt", control: this.id, stage: "settled", outcome, seq };
    if (reason !== undefined) settled.reason = reason;
    if (run !== undefined) settled.run = run;
    if (answered_by !== undefined) settled.answered_by = answered_by;
    this.receive(settled);
  }

  /** There will be no outcome. Called by the session. */
  fail(error: EverthreadError): void {
    if (this.#end) return;
    this.#end = { error };
    this.#reject(error);
    this.#wake();
  }

  /** Asked again after a reconnect, the server begins anew; a run that changed hands is delivered again. */
  #isNews(receipt: Receipt): boolean {
    const { last } = this;
    if (!last || RANK[receipt.stage] > RANK[last.stage]) return true;
    return receipt.stage === "delivered" && last.stage === "delivered" && receipt.worker !== last.worker;
  }

  #wake(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }

  async *#read(): AsyncGenerator<Receipt, void, undefined> {
    for (let at = 0; ; ) {
      const receipt = this.#past[at];
      if (receipt) {
        at += 1;
        yield receipt;
      } else if (this.#end) {
        if (this.#end.error) throw this.#end.error;
        return;
      } else {
        await new Promise<void>((resolve) => this.#waiting.add(resolve));
      }
    }
  }
}
