// The conversation: people's messages and runs in the order of the log. A frame of tokens touches the message it is
// about; only a change of structure walks the whole list.

import type { Change, Message, Run, View } from "../../sdk/typescript/src/index.js";
import { arrange, h, setText } from "./dom.js";
import { MessageBlock } from "./message.js";
import { RunBlock, type RunIndex } from "./run.js";
import { StickyScroll } from "./scroll.js";

interface Pending {
  element: HTMLElement;
  note: HTMLElement;
}

export class Transcript {
  readonly #list: HTMLElement;
  readonly #scroll: StickyScroll;
  readonly #older: HTMLButtonElement;
  readonly #onStop: (run: string) => void;
  readonly #said = new Map<string, { element: HTMLElement; block: MessageBlock }>();
  readonly #runs = new Map<string, RunBlock>();
  readonly #pending = new Map<string, Pending>();
  #dirty: Change = { all: false, messages: new Set(), runs: new Set() };
  #frame: number | undefined;
  #view: View | undefined;
  /** Seq of the oldest message on the page. */
  #first: number | undefined;

  constructor(list: HTMLElement, scroll: StickyScroll, on: { stop: (run: string) => void; older: () => void }) {
    this.#list = list;
    this.#scroll = scroll;
    this.#onStop = on.stop;
    const attrs = { type: "button" };
    this.#older = h("button", { class: "quiet older", text: "Show earlier messages", attrs, on: { click: on.older } });
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
    this.#dirty.all ||= change.all;
    for (const message of change.messages) this.#dirty.messages.add(message);
    for (const run of change.runs) this.#dirty.runs.add(run);
    // A page in the background gets no animation frames, and has nobody to draw for.
    this.#frame ??= requestAnimationFrame(() => this.#draw());
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

  #draw(): void {
    this.#frame = undefined;
    const view = this.#view;
    const dirty = this.#dirty;
    this.#dirty = { all: false, messages: new Set(), runs: new Set() };
    if (!view) return;
    this.#scroll.keep(() => {
      if (!dirty.all && dirty.runs.size === 0 && this.#drawMessages(dirty.messages)) return false;
      const first = this.#first;
      this.#drawAll(view);
      this.#first = view.messages[0]?.seq;
      return first !== undefined && this.#first !== undefined && this.#first < first;
    });
  }

  /** Draws messages that are on the page already; false if one of them is not. */
  #drawMessages(messages: Set<Message>): boolean {
    for (const message of messages) {
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
    const index = indexRuns(view);
    const inputOfChild = new Set(view.runs.filter(hasParent(view)).flatMap((run) => run.input));
    const placed: { seq: number; element: HTMLElement }[] = [];
    for (const message of view.messages) {
      if (message.run !== undefined || inputOfChild.has(message.message)) continue;
      placed.push({ seq: message.seq, element: this.#drawSaid(message) });
      this.#pending.delete(message.message);
    }
    for (const run of [...view.runs, ...index.unknown]) {
      if (hasParent(view)(run)) continue;
      const block = this.#runs.get(run.run) ?? new RunBlock(this.#onStop);
      this.#runs.set(run.run, block);
      block.update(run, index);
      placed.push({ seq: run.requested_seq, element: block.element });
    }
    placed.sort((a, b) => a.seq - b.seq);
    const elements = placed.map(({ element }) => element);
    const pending = [...this.#pending.values()].map(({ element }) => element);
    arrange(this.#list, [...(view.more ? [this.#older] : []), ...elements, ...pending]);
  }

  #drawSaid(message: Message): HTMLElement {
    let said = this.#said.get(message.message);
    if (!said) {
      const block = new MessageBlock();
      block.element.classList.add("bubble");
      const own = message.role === "user";
      const name = own ? "You" : message.by.id;
      const attrs = { "aria-label": name };
      const element = h("article", { class: `said${own ? " own" : ""}`, attrs }, block.element);
      if (!own) element.prepend(h("span", { class: "agent", text: name }));
      said = { element, block };
      this.#said.set(message.message, said);
    }
    said.block.update(message);
    return said.element;
  }
}

function hasParent(view: View): (run: Run) => boolean {
  const known = new Set(view.runs.map((run) => run.run));
  return (run) => run.parent_run !== undefined && known.has(run.parent_run);
}

/** Groups messages and runs. Runs of old messages may be unknown: what they wrote is shown all the same. */
function indexRuns(view: View): RunIndex & { unknown: Run[] } {
  const messagesOf = Map.groupBy(
    view.messages.filter((message) => message.run !== undefined),
    (message) => message.run ?? "",
  );
  const childrenOf = Map.groupBy(view.runs.filter(hasParent(view)), (run) => run.parent_run ?? "");
  const known = new Set(view.runs.map((run) => run.run));
  const unknown: Run[] = [];
  for (const [run, [first]] of messagesOf) {
    if (known.has(run) || !first) continue;
    const { by, seq } = first;
    unknown.push({ run, agent: by.id, status: "ended", outcome: "completed", input: [], requested_seq: seq });
  }
  return { view, messagesOf, childrenOf, unknown };
}
