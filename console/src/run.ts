// One run: who works, how it stands, what it wrote and was asked, and the runs it started, side by side.

import type { Control, Message, Run, View } from "../../sdk/typescript/src/index.js";
import { ApprovalCard } from "./approval.js";
import { forkButton, Versions } from "./branch.js";
import type { Desk } from "./desk.js";
import { arrange, h, hueClass, setText } from "./dom.js";
import { ControlLines } from "./lines.js";
import { MessageBlock, plainText } from "./message.js";
import { noteOf, stateOf } from "./run-state.js";

/** What belongs together, worked out once per change of the session. */
export interface RunIndex {
  view: View;
  /** Messages of the current branch. */
  branch: Message[];
  messagesOf: Map<string, Message[]>;
  childrenOf: Map<string, Run[]>;
  controlsOf: Map<string, Control[]>;
  /** What people said to a run at work. */
  steersOf: Map<string, Message[]>;
  /** Draws what somebody said. */
  said: (message: Message) => HTMLElement;
}

export class RunBlock {
  readonly element = h("article", { class: "run" });
  readonly #name = h("span", { class: "agent" });
  readonly #badge = h("span", { class: "badge" });
  readonly #note = h("p", { class: "note" });
  readonly #task = h("p", { class: "task" });
  readonly #body = h("div", { class: "run-body" });
  readonly #lanes = h("div", { class: "lanes" });
  readonly #cards = h("div", { class: "approvals" });
  readonly #lines = new ControlLines();
  readonly #pause = h("button", { class: "quiet run-button", attrs: { type: "button" } });
  readonly #stop = h("button", { class: "quiet run-button", text: "Stop", attrs: { type: "button" } });
  readonly #again = h("button", { class: "quiet run-button", text: "Regenerate", attrs: { type: "button" } });
  readonly #versions = new Versions();
  readonly #fork = forkButton();
  readonly #foot = h("div", { class: "run-foot" }, this.#versions.element, this.#again, this.#fork);
  readonly #messages = new Map<string, MessageBlock>();
  readonly #children = new Map<string, RunBlock>();
  readonly #approvals = new Map<string, ApprovalCard>();
  readonly #desk: Desk;
  #isOpen = false;

  constructor(desk: Desk) {
    this.#desk = desk;
    const buttons = h("span", { class: "run-buttons" }, this.#pause, this.#stop);
    const head = h("header", {}, h("span", { class: "knot" }), this.#name, this.#badge, buttons);
    this.element.append(head, this.#task, this.#body, this.#cards, this.#note, this.#lines.element, this.#foot);
  }

  update(run: Run, index: RunIndex): void {
    const { word, look } = stateOf(run);
    this.#isOpen = run.status !== "ended";
    this.element.dataset["run"] = run.run;
    this.element.dataset["status"] = run.outcome ?? run.status;
    this.element.dataset["look"] = look;
    this.element.className = `run ${hueClass(run.agent)}${run.parent_run === undefined ? "" : " child"}`;
    this.element.setAttribute("aria-label", `${run.agent}, ${word}`);
    setText(this.#name, run.agent);
    setText(this.#badge, word);
    setText(this.#note, noteOf(run));
    this.#note.hidden = this.#note.textContent === "";
    const controls = index.controlsOf.get(run.run) ?? [];
    this.#updateButtons(run, controls);
    this.#updateTask(run, index.view);
    this.#updateApprovals(run, controls);
    this.#lines.update(controls, this.#desk.ownOf(run.run), this.#desk.people);
    this.#arrange(run, index);
    this.#updateVersions(run, index);
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

  /** What it wrote, what it was told meanwhile, and its sub-agents, in the order of the log. */
  #arrange(run: Run, index: RunIndex): void {
    const messages = index.messagesOf.get(run.run) ?? [];
    const placed = messages.map((message) => ({ seq: message.seq, element: this.updateMessage(message) }));
    const steers = index.steersOf.get(run.run) ?? [];
    placed.push(...steers.map((message) => ({ seq: message.seq, element: index.said(message) })));
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

  #child(run: Run, index: RunIndex): HTMLElement {
    const block = this.#children.get(run.run) ?? new RunBlock(this.#desk);
    this.#children.set(run.run, block);
    block.update(run, index);
    return block.element;
  }

  #updateButtons(run: Run, controls: Control[]): void {
    const asked = (...kinds: Control["kind"][]) =>
      controls.some((control) => kinds.includes(control.kind) && control.outcome === undefined);
    this.#stop.hidden = run.status === "ended";
    this.#stop.disabled = asked("cancel");
    this.#stop.setAttribute("aria-label", `Stop ${run.agent}`);
    this.#stop.onclick = () => this.#desk.stop(run.run);
    const verb = run.paused ? "Resume" : "Pause";
    this.#pause.hidden = run.status === "ended" || (run.status !== "active" && !run.paused);
    this.#pause.disabled = asked("pause", "resume");
    setText(this.#pause, verb);
    this.#pause.setAttribute("aria-label", `${verb} ${run.agent}`);
    this.#pause.onclick = () => this.#desk.pauseOrResume(run);
  }

  /** Other answers stand beside the first message that there are others of. */
  #updateVersions(run: Run, { view, branch, messagesOf }: RunIndex): void {
    const own = messagesOf.get(run.run) ?? [];
    const forks = own.find((message) => view.alternatives(message).length > 1);
    const isNext = own.length === 0 && run.requested_seq > (branch.at(-1)?.seq ?? 0);
    this.#versions.update(forks ? view.alternatives(forks) : isNext ? view.continuations() : [], forks, this.#desk);
    const isRoot = run.parent_run === undefined;
    this.#again.hidden = run.status !== "ended" || !isRoot || view.session.closed || view.session.held !== undefined;
    this.#again.setAttribute("aria-label", `Regenerate ${run.agent}`);
    this.#again.onclick = () => {
      this.#again.disabled = true;
      void this.#desk.regenerate(run.run).then(() => (this.#again.disabled = false));
    };
    this.#showFoot();
  }

  /** What continues from here in a new session, if anything does. */
  setFork(fork: (() => void) | undefined): void {
    // While it is at work there is no place after it.
    this.#fork.hidden = fork === undefined || this.#isOpen;
    this.#fork.onclick = fork ?? null;
    this.#showFoot();
  }

  #showFoot(): void {
    this.#foot.hidden = this.#again.hidden && this.#versions.element.hidden && this.#fork.hidden;
  }

  #updateApprovals(run: Run, controls: Control[]): void {
    const cards = (run.approvals ?? []).map((approval) => {
      const card = this.#approvals.get(approval.approval) ?? new ApprovalCard(approval, this.#desk);
      this.#approvals.set(approval.approval, card);
      card.update(run, approval, controls.filter((control) => control.approval === approval.approval));
      return card.element;
    });
    arrange(this.#cards, cards);
    this.#cards.hidden = cards.length === 0;
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

/** What a run was asked when it was requested; what it was told later stands where it was said. */
function inputOf(run: Run, view: View): string {
  const asked = view.messages.filter((message) => message.run === undefined && run.input.includes(message.message));
  return asked.filter((message) => message.seq < run.requested_seq).map(plainText).join("\n");
}
