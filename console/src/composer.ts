// Where people write: the text, the agent it is for, what becomes of it if that one is at work, and the buttons that stop
// and pause.

import type { Run } from "../../sdk/typescript/src/index.js";
import { byId, h, setText } from "./dom.js";
import { type BusyChoice, BusyMenu } from "./menu.js";

/** What the run that people mean lets them do. */
export interface RunButtons {
  run: Run | undefined;
  /** Or resume. */
  canPause: boolean;
  /** Something is asked already. */
  stopping: boolean;
  pausing: boolean;
}

export interface ComposerEvents {
  send: (text: string) => void;
  stop: () => void;
  pause: () => void;
  /** The person began to write something, or has stopped. */
  typing: (isTyping: boolean) => void;
}

/** Without a key for so long nobody is writing. */
const TYPING_MS = 5_000;

const PLACEHOLDER = "Write a message…";

export class Composer {
  readonly #form = byId("composer", HTMLFormElement);
  readonly #input = byId("input", HTMLTextAreaElement);
  readonly #agent = byId("agent", HTMLSelectElement);
  readonly #send = byId("send", HTMLButtonElement);
  readonly #stop = byId("stop", HTMLButtonElement);
  readonly #pause = byId("pause", HTMLButtonElement);
  readonly #menu = new BusyMenu(() => this.#drawSend());
  readonly #onSend: (text: string) => void;
  readonly #onTyping: (isTyping: boolean) => void;
  #typing: ReturnType<typeof setTimeout> | undefined;
  /** Agents that are at work. */
  #busy = new Set<string>();
  #asOperator = false;

  constructor(on: ComposerEvents) {
    this.#onSend = on.send;
    this.#onTyping = on.typing;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#input.addEventListener("keydown", (event) => {
      // While an input method composes a character, Enter belongs to it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    this.#input.addEventListener("input", () => {
      this.#fit();
      this.#tellTyping(this.#input.value.trim() !== "");
    });
    this.#agent.addEventListener("change", () => this.#drawSend());
    this.#stop.addEventListener("click", () => on.stop());
    this.#pause.addEventListener("click", () => on.pause());
    // Not a link: the address names the session.
    byId("skip", HTMLButtonElement).addEventListener("click", () => this.#input.focus());
    this.#fit();
  }

  get agent(): string | undefined {
    return this.#agent.value || undefined;
  }

  get whenBusy(): BusyChoice {
    return this.#menu.choice;
  }

  /** Offers agents; keeps the one that is picked. */
  setAgents(agents: string[]): void {
    const picked = this.#agent.value;
    this.#agent.replaceChildren(...agents.map((agent) => h("option", { text: agent, attrs: { value: agent } })));
    if (agents.includes(picked)) this.#agent.value = picked;
    this.#agent.disabled = agents.length === 0;
    this.#drawSend();
  }

  pickAgent(agent: string): void {
    this.#agent.value = agent;
    this.#drawSend();
  }

  /** Which agents are at work: what Send does with a message for one of them is the menu's choice. */
  setBusy(agents: Set<string>): void {
    this.#busy = agents;
    this.#drawSend();
  }

  /** Whether the person at the page has taken the session over. */
  setOperator(asOperator: boolean): void {
    this.#asOperator = asOperator;
    this.#drawSend();
    if (!this.#input.disabled) this.#input.placeholder = asOperator ? "Write as the operator…" : PLACEHOLDER;
  }

  setButtons({ run, canPause, stopping, pausing }: RunButtons): void {
    const hadFocus = [this.#stop, this.#pause].some((button) => button === document.activeElement);
    this.#stop.hidden = run === undefined;
    this.#stop.disabled = stopping;
    this.#pause.hidden = !canPause;
    this.#pause.disabled = pausing;
    this.#pause.dataset["verb"] = run?.paused ? "resume" : "pause";
    setText(byId("pause-word", HTMLElement), run?.paused ? "Resume" : "Pause");
    if (hadFocus && document.activeElement === document.body) this.#input.focus();
  }

  setDisabled(reason: string | undefined): void {
    this.#input.disabled = reason !== undefined;
    this.#input.placeholder = reason ?? (this.#asOperator ? "Write as the operator…" : PLACEHOLDER);
    this.#fit();
  }

  focus(): void {
    // Where there is no keyboard, focus brings one up over half of the page.
    if (matchMedia("(hover: hover)").matches) this.#input.focus({ preventScroll: true });
  }

  #submit(): void {
    const text = this.#input.value.trim();
    if (!text || this.#input.disabled) return;
    this.#input.value = "";
    this.#fit();
    this.#tellTyping(false);
    this.#onSend(text);
  }

  #tellTyping(isTyping: boolean): void {
    clearTimeout(this.#typing);
    if (isTyping) this.#typing = setTimeout(() => this.#onTyping(false), TYPING_MS);
    this.#onTyping(isTyping);
  }

  #drawSend(): void {
    const busy = !this.#asOperator && this.#busy.has(this.#agent.value);
    setText(this.#send, busy ? this.#menu.title : "Send");
  }

  /** The field grows with its text; the style sheet bounds it. */
  #fit(): void {
    this.#input.style.height = "auto";
    this.#input.style.height = `${this.#input.scrollHeight}px`;
    this.#send.disabled = this.#input.disabled || this.#input.value.trim() === "";
  }
}
