// What Send does while the agent is at work: a button beside it that opens a small menu, and remembers the choice.

import type { WhenBusy } from "../../sdk/typescript/src/index.js";
import { byId, h, setText } from "./dom.js";

export type BusyChoice = Exclude<WhenBusy, "reject">;

interface Choice {
  choice: BusyChoice;
  title: string;
  why: string;
}

const CHOICES: Choice[] = [
  { choice: "steer", title: "Steer", why: "The agent takes it in before its next step." },
  { choice: "enqueue", title: "Queue", why: "It waits until the agent is done." },
  { choice: "interrupt", title: "Interrupt", why: "The agent stops and begins anew with it." },
];

const STORED = "everthread.when-busy";

export class BusyMenu {
  readonly #button = byId("send-menu", HTMLButtonElement);
  readonly #list = byId("send-choices", HTMLElement);
  readonly #items: HTMLButtonElement[];
  readonly #onPick: () => void;
  #picked: Choice;

  constructor(onPick: () => void) {
    this.#onPick = onPick;
    const stored = read();
    this.#picked = CHOICES.find(({ choice }) => choice === stored) ?? CHOICES[0]!;
    this.#items = CHOICES.map((one) => {
      const attrs = { type: "button", role: "menuitemradio", tabindex: "-1" };
      const title = h("strong", { text: one.title });
      return h("button", { attrs, on: { click: () => this.#pick(one) } }, title, h("span", { text: one.why }));
    });
    this.#list.append(...this.#items);
    this.#button.addEventListener("click", () => this.#open(this.#isClosed));
    this.#button.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
      event.preventDefault();
      this.#open(true);
    });
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    // Whatever takes the focus away closes it.
    this.#list.addEventListener("focusout", (event) => {
      const to = event.relatedTarget;
      if (to instanceof Node && (this.#list.contains(to) || this.#button.contains(to))) return;
      this.#open(false, false);
    });
    this.#draw();
  }

  get choice(): BusyChoice {
    return this.#picked.choice;
  }

  get title(): string {
    return this.#picked.title;
  }

  get #isClosed(): boolean {
    return this.#list.hidden !== false;
  }

  #pick(choice: Choice): void {
    this.#picked = choice;
    try {
      localStorage.setItem(STORED, choice.choice);
    } catch {
      // Then it is remembered for as long as the page.
    }
    this.#draw();
    this.#open(false);
    this.#onPick();
  }

  #open(open: boolean, refocus = true): void {
    if (this.#isClosed !== open) return;
    this.#list.hidden = !open;
    this.#button.setAttribute("aria-expanded", String(open));
    if (open) this.#items[CHOICES.indexOf(this.#picked)]?.focus();
    else if (refocus) this.#button.focus();
  }

  #key(event: KeyboardEvent): void {
    const at = this.#items.findIndex((item) => item === document.activeElement);
    const count = this.#items.length;
    const to: Record<string, number> = { ArrowDown: at + 1, ArrowUp: at - 1 + count, Home: 0, End: count - 1 };
    const next = to[event.key];
    if (event.key === "Escape") this.#open(false);
    else if (next !== undefined) this.#items[next % count]?.focus();
    else return;
    event.preventDefault();
  }

  #draw(): void {
    const label = `While the agent is at work: ${this.#picked.title}`;
    setText(byId("send-menu-label", HTMLElement), label);
    CHOICES.forEach((one, i) => this.#items[i]?.setAttribute("aria-checked", String(one === this.#picked)));
  }
}

function read(): string | undefined {
  try {
    return localStorage.getItem(STORED) ?? undefined;
  } catch {
    return undefined;
  }
}
