// Versions of a message, or of an answer: `‹ 2/3 ›`. Going to another one makes its branch the current one for everybody.

import type { Message } from "../../sdk/typescript/src/index.js";
import type { Desk } from "./desk.js";
import { h, setText } from "./dom.js";

/** Continues from here in a new session; hidden until it is known where "here" is. */
export function forkButton(): HTMLButtonElement {
  const title = "Continue from here in a new session";
  const button = h("button", { class: "quiet run-button", text: "Fork", attrs: { type: "button", title, "aria-label": title } });
  button.hidden = true;
  return button;
}

export class Versions {
  readonly element = h("span", { class: "versions", attrs: { role: "group", "aria-label": "Versions" } });
  readonly #earlier = h("button", { class: "quiet", text: "‹", attrs: { type: "button", "aria-label": "Earlier version" } });
  readonly #later = h("button", { class: "quiet", text: "›", attrs: { type: "button", "aria-label": "Later version" } });
  readonly #count = h("span", { class: "count" });

  constructor() {
    this.element.append(this.#earlier, this.#count, this.#later);
  }

  /** Shows which of `all` is `shown`; without one, the last is still to come. */
  update(all: Message[], shown: Message | undefined, desk: Desk): void {
    const at = shown ? all.indexOf(shown) : all.length;
    const count = shown ? all.length : all.length + 1;
    this.element.hidden = count < 2;
    setText(this.#count, `${at + 1}/${count}`);
    this.#point(this.#earlier, all[at - 1], desk);
    this.#point(this.#later, all[at + 1], desk);
  }

  #point(button: HTMLButtonElement, to: Message | undefined, desk: Desk): void {
    button.disabled = to === undefined;
    button.onclick = () => to && desk.select(to);
  }
}
