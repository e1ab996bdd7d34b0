// One message: its parts, each updated in place.

import type { Message, Part } from "../../sdk/typescript/src/index.js";
import { arrange, h, setText } from "./dom.js";
import { Markdown } from "./markdown.js";

interface PartBlock {
  element: HTMLElement;
  update(part: Part): void;
}

export class MessageBlock {
  readonly element = h("div", { class: "message" });
  readonly #parts = new Map<string, PartBlock>();

  update(message: Message): void {
    this.element.dataset["message"] = message.message;
    this.element.dataset["status"] = message.status;
    const blocks = message.parts.map((part) => {
      // An id may be used again after its part has closed; the place in the message may not.
      const key = `${part.seq ?? ""}/${part.part}`;
      const block = this.#parts.get(key) ?? partBlock(part);
      this.#parts.set(key, block);
      block.update(part);
      return block.element;
    });
    arrange(this.element, blocks);
  }
}

/** The text of a message, for a place where its form does not matter. */
export function plainText(message: Message): string {
  return message.parts
    .filter((part) => part.kind === "text")
    .map((part) => asText(part))
    .join("\n");
}

function partBlock(part: Part): PartBlock {
  switch (part.kind) {
    case "text":
      return textBlock();
    case "reasoning":
      return foldedBlock("Reasoning");
    case "tool_call":
      return foldedBlock(`Tool call${named(part)}`);
    case "tool_output":
      return foldedBlock(`Tool output${named(part)}`);
    case "file":
    case "source":
    case "data":
      return foldedBlock(part.kind[0]?.toUpperCase() + part.kind.slice(1) + named(part));
  }
}

function textBlock(): PartBlock {
  const markdown = new Markdown();
  const element = h("div", { class: "part text" }, markdown.element);
  return {
    element,
    update(part) {
      element.dataset["status"] = part.status;
      markdown.set(asText(part), part.status === "open");
    },
  };
}

function foldedBlock(title: string): PartBlock {
  const body = h("pre", { attrs: { tabindex: "0" } });
  const element = h("details", { class: "part folded" }, h("summary", { text: title }), body);
  return {
    element,
    update(part) {
      // Open while it is being written; then out of the way, unless somebody opens it.
      if (element.dataset["status"] !== part.status) element.open = part.status === "open";
      element.dataset["status"] = part.status;
      setText(body, asText(part));
    },
  };
}

function named(part: Part): string {
  const name = part.attrs?.["name"] ?? part.attrs?.["title"];
  return typeof name === "string" ? `: ${name}` : "";
}

function asText(part: Part): string {
  return typeof part.value === "string" ? part.value : JSON.stringify(part.value, null, 2);
}
