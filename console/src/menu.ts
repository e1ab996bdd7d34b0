// What Send does while the agent is at work: a button beside it that opens a small menu, and remembers the choice.

import type { WhenBusy } from "../../sdk/typescript/src/index.js";
import { byId, h, setText } from "./dom.js";
import { Popup } from "./popup.js";

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
  readonly #items: HTMLButtonElement[];
  readonly #popup: Popup;
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
    this.#popup = new Popup(byId("send-menu", HTMLButtonElement), byId("send-choices", HTMLElement), this.#items);
    this.#popup.first = () => CHOICES.indexOf(this.#picked);
    this.#draw();
  }

  get choice(): BusyChoice {
    return this.#picked.choice;
  }

  get title(): string {
    return this.#picked.title;
  }

  #pick(choice: Choice): void {
    this.#picked = choice;
    try {
      localStorage.setItem(STORED, choice.choice);
    } catch {
      // Then it is remembered for as long as the page.
    }
    this.#draw();
    this.#popup.open(false);
    this.#onPick();
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
