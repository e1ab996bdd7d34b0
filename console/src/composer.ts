// Where people write: the text, the agent it is for, send and stop.

import { byId, h } from "./dom.js";

export class Composer {
  readonly #form = byId("composer", HTMLFormElement);
  readonly #input = byId("input", HTMLTextAreaElement);
  readonly #agent = byId("agent", HTMLSelectElement);
  readonly #send = byId("send", HTMLButtonElement);
  readonly #stop = byId("stop", HTMLButtonElement);
  readonly #onSend: (text: string) => void;

  constructor(on: { send: (text: string) => void; stop: () => void }) {
    this.#onSend = on.send;
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
    this.#input.addEventListener("input", () => this.#fit());
    this.#stop.addEventListener("click", () => on.stop());
    // Not a link: the address names the session.
    byId("skip", HTMLButtonElement).addEventListener("click", () => this.#input.focus());
    this.#fit();
  }

  get agent(): string | undefined {
    return this.#agent.value || undefined;
  }

  /** Offers agents; keeps the one that is picked. */
  setAgents(agents: string[]): void {
    const picked = this.#agent.value;
    this.#agent.replaceChildren(...agents.map((agent) => h("option", { text: agent, attrs: { value: agent } })));
    if (agents.includes(picked)) this.#agent.value = picked;
    this.#agent.disabled = agents.length === 0;
  }

  pickAgent(agent: string): void {
    this.#agent.value = agent;
  }

  /** Whether something can be stopped, and whether it is being stopped already. */
  setStop(state: "none" | "active" | "asked"): void {
    const focused = document.activeElement === this.#stop;
    this.#stop.hidden = state === "none";
    this.#stop.disabled = state === "asked";
    if (state === "none" && focused) this.#input.focus();
  }

  setDisabled(reason: string | undefined): void {
    this.#input.disabled = reason !== undefined;
    this.#input.placeholder = reason ?? "Write a message…";
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
    this.#onSend(text);
  }

  /** The field grows with its text; the style sheet bounds it. */
  #fit(): void {
    this.#input.style.height = "auto";
    this.#input.style.height = `${this.#input.scrollHeight}px`;
    this.#send.disabled = this.#input.disabled || this.#input.value.trim() === "";
  }
}
