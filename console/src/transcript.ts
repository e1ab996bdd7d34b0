// The conversation: people's messages and runs of the current branch, in the order of the log. A frame of tokens touches the message it is
// about; only a change of structure walks the whole list.

import type { Change, Message, View } from "../../sdk/typescript/src/index.js";
import type { Desk } from "./desk.js";
import { arrange, h, setText } from "./dom.js";
import { RunBlock } from "./run.js";
import { hasParent, indexRuns } from "./run-index.js";
import { SaidBlock } from "./said.js";
import { StickyScroll } from "./scroll.js";

interface Placed {
  seq: number;
  element: HTMLElement;
  /** Makes a session of everything up to here, where that is known. */
  setFork: (fork: (() => void) | undefined) => void;
}

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
  /** What stands on the page, in the order of the log. */
  #placed: Placed[] = [];
  /** Stands before what was new when the person came. */
  readonly #line = h("p", { class: "new-line", text: "New" });
  #mark: number | undefined;
  /** The message to bring into sight with the next drawing. */
  #target: number | undefined;
  #isMarkWanted = false;
  /** What is on the page ends before the session does. */
  isPast = false;

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
    this.#view = this.#first = this.#mark = this.#target = undefined;
    this.#placed = [];
    this.#list.replaceChildren();
  }

  /** Notes a change; it is drawn with the next frame, together with all others until then. */
  changed(view: View, change: Change): void {
    this.#view = view;
    for (const message of change.messages) this.#messages.add(message);
    this.#later(change.all || change.runs.size > 0 || change.controls.size > 0);
  }

  /** Shows this view in place of what was shown. */
  show(view: View): void {
    this.#view = view;
    this.#later(true);
  }

  /** Brings the message at `seq`, or the last one before it, into sight. */
  goTo(seq: number): void {
    this.#target = seq;
    this.#later(true);
  }

  /** Draws a line before the first message after `seq` that is not the person's own, or none; if it is out of sight, goes there. */
  setMark(seq: number | undefined): void {
    if (seq === this.#mark) return;
    this.#mark = seq;
    this.#isMarkWanted = seq !== undefined;
    this.#later(true);
  }

  /** Whether something is still to be drawn. */
  get isDue(): boolean {
    return this.#frame !== undefined;
  }

  /** Seq of what stands at the top of what is seen. */
  get topSeq(): number | undefined {
    const top = this.#scroll.box.getBoundingClientRect().top;
    let low = 0;
    let high = this.#placed.length - 1;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      const { bottom } = this.#placed[middle]!.element.getBoundingClientRect();
      if (bottom <= top) low = middle + 1;
      else high = middle;
    }
    return this.#placed[low]?.seq;
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
    if (this.#target !== undefined) this.#bringTarget(this.#target);
    else if (this.#isMarkWanted) this.#bringMark();
  }

  #bringMark(): void {
    this.#isMarkWanted = false;
    const top = this.#scroll.box.getBoundingClientRect().top;
    if (this.#line.isConnected && this.#line.getBoundingClientRect().top < top) this.#scroll.toElement(this.#line);
  }

  #bringTarget(target: number): void {
    this.#target = undefined;
    const element = this.#elementOf(target);
    if (!element) return;
    this.#scroll.toElement(element);
    element.classList.remove("target");
    // Reading a measure ends the style that is there, so that the same message can light up again.
    void element.offsetWidth;
    element.classList.add("target");
    element.addEventListener("animationend", () => element.classList.remove("target"), { once: true });
  }

  /** The message that stands there, inside its run if it is one's. */
  #elementOf(target: number): HTMLElement | undefined {
    const message = this.#view?.branch().findLast(({ seq }) => seq <= target) ?? this.#view?.branch()[0];
    const run = message?.run === undefined ? undefined : this.#findRun(message.run);
    const within = message && run?.updateMessage(message);
    if (within?.isConnected) return within;
    return (this.#placed.findLast(({ seq }) => seq <= (message?.seq ?? target)) ?? this.#placed[0])?.element;
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
    const placed: Placed[] = [];
    for (const message of view.messages) this.#pending.delete(message.message);
    for (const message of index.branch) {
      if (message.run !== undefined) continue;
      if (inputOfChild.has(message.message) || steers.has(message)) continue;
      const element = this.#drawSaid(view, message);
      const said = this.#said.get(message.message);
      placed.push({ seq: message.seq, element, setFork: (fork) => said?.setFork(fork) });
    }
    for (const run of index.shown) {
      if (hasParent(view)(run)) continue;
      const block = this.#runs.get(run.run) ?? new RunBlock(this.#desk);
      this.#runs.set(run.run, block);
      block.update(run, index);
      placed.push({ seq: run.requested_seq, element: block.element, setFork: (fork) => block.setFork(fork) });
    }
    placed.sort((a, b) => a.seq - b.seq);
    placed.forEach(({ setFork }, i) => setFork(this.#forkBefore(placed[i + 1]?.seq)));
    this.#placed = placed;
    const elements = placed.map(({ element }) => element);
    const isNew = this.#mark === undefined ? -1 : this.#firstNew(view, placed, this.#mark);
    if (isNew >= 0) elements.splice(isNew, 0, this.#line);
    const pending = [...this.#pending.values()].map(({ element }) => element);
    arrange(this.#list, [...(view.more ? [this.#older] : []), ...elements, ...pending]);
  }

  /** Of what comes last on the page, everything there is comes along: what comes after a stretch of the past is not known. */
  #forkBefore(next: number | undefined): (() => void) | undefined {
    if (next !== undefined) return () => this.#desk.fork(next - 1);
    return this.isPast ? undefined : () => this.#desk.fork(undefined);
  }

  /** Which element on the page is the first that holds a message after `mark` of others. */
  #firstNew(view: View, placed: Placed[], mark: number): number {
    const isOther = (message: Message) => !this.#desk.people.isMe(message.by);
    const first = view.branch().find((message) => message.seq > mark && isOther(message));
    if (!first) return -1;
    const next = placed.findIndex(({ seq }) => seq > first.seq);
    return Math.max(0, (next < 0 ? placed.length : next) - 1);
  }

  #drawSaid(view: View, message: Message): HTMLElement {
    const said = this.#said.get(message.message) ?? new SaidBlock(message, this.#desk);
    this.#said.set(message.message, said);
    said.update(message, view.alternatives(message), view.session.closed);
    return said.element;
  }
}
