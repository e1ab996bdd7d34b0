// One run: who works, how it stands, what it wrote, and the runs it started, side by side.

import type { Message, Run, View } from "../../sdk/typescript/src/index.js";
import { arrange, h, hueClass, setText } from "./dom.js";
import { MessageBlock, plainText } from "./message.js";

/** What runs belong together, worked out once per change of the session. */
export interface RunIndex {
  view: View;
  messagesOf: Map<string, Message[]>;
  childrenOf: Map<string, Run[]>;
}

export class RunBlock {
  readonly element = h("article", { class: "run" });
  readonly #name = h("span", { class: "agent" });
  readonly #badge = h("span", { class: "badge" });
  readonly #note = h("p", { class: "note" });
  readonly #task = h("p", { class: "task" });
  readonly #body = h("div", { class: "run-body" });
  readonly #lanes = h("div", { class: "lanes" });
  readonly #stop: HTMLButtonElement;
  readonly #messages = new Map<string, MessageBlock>();
  readonly #children = new Map<string, RunBlock>();
  readonly #onStop: (run: string) => void;

  constructor(onStop: (run: string) => void) {
    this.#onStop = onStop;
    this.#stop = h("button", { class: "quiet stop-run", text: "Stop", attrs: { type: "button" } });
    const head = h("header", {}, h("span", { class: "knot" }), this.#name, this.#badge, this.#stop);
    this.element.append(head, this.#task, this.#body, this.#note);
  }

  update(run: Run, index: RunIndex): void {
    const { view } = index;
    this.element.dataset["run"] = run.run;
    this.element.dataset["status"] = run.outcome ?? run.status;
    this.element.className = `run ${hueClass(run.agent)}${run.parent_run === undefined ? "" : " child"}`;
    this.element.setAttribute("aria-label", `${run.agent}, ${stateOf(run)}`);
    setText(this.#name, run.agent);
    setText(this.#badge, stateOf(run));
    setText(this.#note, noteOf(run, view));
    this.#note.hidden = this.#note.textContent === "";
    this.#updateStop(run, view);
    this.#updateTask(run, view);

    const messages = index.messagesOf.get(run.run) ?? [];
    const placed = messages.map((message) => ({ seq: message.seq, element: this.updateMessage(message) }));
    const children = index.childrenOf.get(run.run) ?? [];
    const first = children[0];
    if (first) {
      arrange(this.#lanes, children.map((child) => this.#child(child, index)));
      this.#lanes.dataset["count"] = String(children.length);
      placed.push({ seq: first.requested_seq, element: this.#lanes });
    }
    placed.sort((a, b) => a.seq - b.seq);
    arrange(this.#body, placed.map(({ element }) => element));
  }

  /** Only this message changed: the rest of the run stays as it is. */
  updateMessage(message: Message): HTMLElement {
    const key = `${message.seq}/${message.message}`;
    const block = this.#messages.get(key) ?? new MessageBlock();
    this.#messages.set(key, block);
    block.update(message);
    return block.element;
  }

  /** The block of a run below this one. */
  find(run: string): RunBlock | undefined {
    const own = this.#children.get(run);
    if (own) return own;
    for (const child of this.#children.values()) {
      const found = child.find(run);
      if (found) return found;
    }
    return undefined;
  }

  #child(run: Run, index: RunIndex): HTMLElement {
    const block = this.#children.get(run.run) ?? new RunBlock(this.#onStop);
    this.#children.set(run.run, block);
    block.update(run, index);
    return block.element;
  }

  #updateStop(run: Run, view: View): void {
    this.#stop.hidden = run.status === "ended";
    this.#stop.disabled = pendingCancel(run, view);
    this.#stop.setAttribute("aria-label", `Stop ${run.agent}`);
    this.#stop.onclick = () => this.#onStop(run.run);
  }

  /** What a sub-agent was asked stands in its card; a person's own words stand above the run already. */
  #updateTask(run: Run, view: View): void {
    const parent = run.parent_run === undefined ? undefined : view.run(run.parent_run);
    const task = parent ? inputOf(run, view) : "";
    // A task that was handed on unchanged stands above already.
    setText(this.#task, parent && inputOf(parent, view) === task ? "" : task);
    this.#task.hidden = this.#task.textContent === "";
  }
}

function inputOf(run: Run, view: View): string {
  const asked = view.messages.filter((message) => message.run === undefined && run.input.includes(message.message));
  return asked.map(plainText).join("\n");
}

function pendingCancel(run: Run, view: View): boolean {
  return view.controls.some((control) => {
    const { target } = control;
    const its = "run" in target ? target.run === run.run : run.input.includes(target.input);
    return its && control.outcome === undefined;
  });
}

function stateOf(run: Run): string {
  switch (run.status) {
    case "requested":
      return "waiting for a worker";
    case "active":
      return run.step ?? "working";
    case "ended":
      return run.outcome === "cancelled" ? "stopped" : (run.outcome ?? "ended");
  }
}

const REASONS: Record<string, string> = {
  worker_lost: "Its worker died. What it had written stays.",
  parent_ended: "The run that started it ended.",
};

function noteOf(run: Run, view: View): string {
  if (pendingCancel(run, view)) return "Stop accepted: the run is asked to end.";
  if (run.status !== "ended") return (run.attempt ?? 1) > 1 ? `Taken over by another worker (attempt ${run.attempt}).` : "";
  const reason = run.error?.message ?? (run.reason === undefined ? "" : (REASONS[run.reason] ?? run.reason));
  switch (run.outcome) {
    case "cancelled":
      return run.forced ? "Stopped by force: the worker did not answer in time." : `Stop applied.${asked(run)}`;
    case "lost":
      return reason || "Its worker died. What it had written stays.";
    case "failed":
      return reason || "The agent reported an error.";
    default:
      return "";
  }
}

function asked(run: Run): string {
  return run.reason === "parent_ended" ? " The run that started it ended." : "";
}
