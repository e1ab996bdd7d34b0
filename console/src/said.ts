// What somebody said: the bubble, its versions, and the field in which people put other words in its place.

import type { Message } from "../../sdk/typescript/src/index.js";
import { forkButton, Versions } from "./branch.js";
import type { Desk } from "./desk.js";
import { h } from "./dom.js";
import { MessageBlock, plainText } from "./message.js";

export class SaidBlock {
  readonly element: HTMLElement;
  readonly #block = new MessageBlock();
  readonly #versions = new Versions();
  readonly #edit = h("button", { class: "quiet run-button", text: "Edit", attrs: { type: "button" } });
  readonly #fork = forkButton();
  readonly #foot = h("div", { class: "said-foot" }, this.#fork, this.#edit, this.#versions.element);
  readonly #desk: Desk;
  readonly #isOwn: boolean;
  #editor: HTMLFormElement | undefined;

  constructor(message: Message, desk: Desk) {
    this.#desk = desk;
    this.#block.element.classList.add("bubble");
    const { people } = desk;
    const isOperator = message.role === "operator";
    const name = people.titleName(message.by);
    const attrs = { "aria-label": isOperator ? `${name}, operator` : name };
    const side = message.role === "user" ? " own" : isOperator ? " operator" : "";
    this.element = h("article", { class: `said${side}`, attrs }, this.#block.element, this.#foot);
    // Of what people ask, one's own needs no name.
    this.#isOwn = message.role === "user" && people.isMe(message.by);
    if (!this.#isOwn) this.element.prepend(h("span", { class: "agent", text: attrs["aria-label"] }));
  }

  update(message: Message, alternatives: Message[], isClosed: boolean): void {
    this.#block.update(message);
    this.#versions.update(alternatives, message, this.#desk);
    this.#edit.hidden = isClosed || !this.#isOwn || !message.parts.every((part) => part.kind === "text");
    this.#edit.onclick = () => this.#open(message);
    this.#showFoot();
  }

  /** What continues from here in a new session, if anything does. */
  setFork(fork: (() => void) | undefined): void {
    this.#fork.hidden = fork === undefined;
    this.#fork.onclick = fork ?? null;
    this.#showFoot();
  }

  #showFoot(): void {
    const isEmpty = this.#fork.hidden && this.#edit.hidden && this.#versions.element.hidden;
    this.#foot.hidden = this.#editor !== undefined || isEmpty;
  }

  #open(message: Message): void {
    const field = h("textarea", { attrs: { "aria-label": "Edit the message", rows: "3" } });
    field.value = plainText(message);
    const cancel = h("button", { class: "quiet", text: "Cancel", attrs: { type: "button" } });
    const send = h("button", { class: "quiet", text: "Send", attrs: { type: "submit" } });
    const editor = h("form", { class: "editor" }, field, h("div", { class: "said-foot" }, cancel, send));
    const close = () => {
      editor.remove();
      this.#editor = undefined;
      this.#block.element.hidden = this.#foot.hidden = false;
    };
    cancel.addEventListener("click", close);
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") close();
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      editor.requestSubmit();
    });
    editor.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (text === "" || send.disabled) return;
      send.disabled = true;
      void this.#desk.edit(message, text).then((done) => (done ? close() : (send.disabled = false)));
    });
    this.#editor = editor;
    this.#block.element.hidden = this.#foot.hidden = true;
    this.element.append(editor);
    field.focus();
    field.select();
  }
}
