// The conversation: people's messages and runs of the current branch, in the order of the log. A frame of tokens touches the message it is
// about; only a change of structure walks the whole list.

import type { Change, Message, View } from "../../sdk/typescript/src/index.js";
import type { Desk } from "./desk.js";
import { arrange, h, setText } from "./dom.js";
import { RunBlock } from "./run.js";
import { hasParent, indexRuns } from "./run-index.js";
import { SaidBlock } from "./said.js";
import { StickyScroll } from "./scroll.js";

interface Pending {
  element: HTMLElement;
  note: HTMLElement;
}

export class Transcript {
  readonly #list: HTMLElement;
  readonly #scroll: StickyScroll;
  readonly #older: HTMLButtonElement;
  readonly #desk: Desk;
  readonly #said = new Map<string, SaidBlock>();
  readonly #runs = new Map<string, RunBlock>();
  readonly #pending = new Map<string, Pending>();
  readonly #messages = new Set<Message>();
  /** More than messages has changed. */
  #dirty = false;
  #frame: number | undefined;
  #view: View | undefined;
  /** Seq of the oldest message on the page. */
  #first: number | undefined;

  constructor(list: HTMLElement, scroll: StickyScroll, desk: Desk, onOlder: () => void) {
    this.#list = list;
    this.#scroll = scroll;
    this.#desk = desk;
    const attrs = { type: "button" };
    this.#older = h("button", { class: "quiet older", text: "Show earlier messages", attrs, on: { click: onOlder } });
  }

  /** Another session: forget everything. */
  clear(): void {
    this.#said.clear();
    this.#runs.clear();
    this.#pending.clear();
    this.#view = this.#first = undefined;
    this.#list.replaceChildren();
  }

  /** Notes a change; it is drawn with the next frame, together with all others until then. */
  changed(view: View, change: Change): void {
    this.#view = view;
    for (const message of change.messages) this.#messages.add(message);
    this.#later(change.all || change.runs.size > 0 || change.controls.size > 0);
  }

  /** Draws everything anew: something beside the view has changed. */
  redraw(): void {
    if (this.#view) this.#later(true);
  }

  /** Shows what the user just said, before the log has it. */
  addPending(id: string, text: string): void {
    const bubble = h("div", { class: "bubble" }, h("p", { text }));
    const note = h("span", { class: "sending", text: "Sending…" });
    const element = h("article", { class: "said own pending", attrs: { "aria-label": "You" } }, bubble, note);
    this.#pending.set(id, { element, note });
    this.#list.append(element);
    this.#scroll.toEnd();
  }

  failPending(id: string, reason: string): void {
    const pending = this.#pending.get(id);
    if (!pending) return;
    setText(pending.note, `Not sent: ${reason}`);
    pending.element.classList.add("failed");
  }

  #later(everything: boolean): void {
    this.#dirty ||= everything;
    // A page in the background gets no animation frames, and has nobody to draw for.
    this.#frame ??= requestAnimationFrame(() => this.#draw());
  }

  #draw(): void {
    this.#frame = undefined;
    const view = this.#view;
    const messages = [...this.#messages];
    const everything = this.#dirty;
    this.#messages.clear();
    this.#dirty = false;
    if (!view) return;
    this.#scroll.keep(() => {
      if (!everything && this.#drawMessages(messages)) return false;
      const first = this.#first;
      this.#drawAll(view);
      this.#first = view.messages[0]?.seq;
      return first !== undefined && this.#first !== undefined && this.#first < first;
    });
  }

  /** Draws messages that are on the page already; false if one of them is not. */
  #drawMessages(messages: Message[]): boolean {
    for (const message of messages) {
      // A run may be at work on another branch: there is nothing of it to draw.
      if (this.#view && !this.#view.isOnBranch(message)) continue;
      const block = message.run === undefined ? undefined : this.#findRun(message.run);
      if (!block) return false;
      if (!block.updateMessage(message).isConnected) return false;
    }
    return true;
  }

  #findRun(run: string): RunBlock | undefined {
    const own = this.#runs.get(run);
    if (own) return own;
    for (const block of this.#runs.values()) {
      const found = block.find(run);
      if (found) return found;
    }
    return undefined;
  }

  #drawAll(view: View): void {
    const index = indexRuns(view, (message) => this.#drawSaid(view, message));
    const steers = new Set([...index.steersOf.values()].flat());
    const inputOfChild = new Set(view.runs.filter(hasParent(view)).flatMap((run) => run.input));
    const placed: { seq: number; element: HTMLElement }[] = [];
    for (const message of view.messages) this.#pending.delete(message.message);
    for (const message of index.branch) {
      if (message.run !== undefined) continue;
      if (inputOfChild.has(message.message) || steers.has(message)) continue;
      placed.push({ seq: message.seq, element: this.#drawSaid(view, message) });
    }
    for (const run of index.shown) {
      if (hasParent(view)(run)) continue;
      const block = this.#runs.get(run.run) ?? new RunBlock(this.#desk);
      this.#runs.set(run.run, block);
      block.update(run, index);
      placed.push({ seq: run.requested_seq, element: block.element });
    }
    placed.sort((a, b) => a.seq - b.seq);
    const elements = placed.map(({ element }) => element);
    const pending = [...this.#pending.values()].map(({ element }) => element);
    arrange(this.#list, [...(view.more ? [this.#older] : []), ...elements, ...pending]);
  }

  #drawSaid(view: View, message: Message): HTMLElement {
    const said = this.#said.get(message.message) ?? new SaidBlock(message, this.#desk);
    this.#said.set(message.message, said);
    said.update(message, view.alternatives(message), view.session.closed);
    return said.element;
  }
}
