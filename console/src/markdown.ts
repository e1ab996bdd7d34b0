// A safe subset of Markdown, built as DOM nodes: paragraphs, headings, lists, quotes, code, bold, italics. No links and no
// images: an agent's text must not make this page fetch or navigate anywhere.
//
// The text grows at its end. It is cut into blocks, and only blocks whose source changed are built again, so a streamed
// answer costs its last paragraph per frame, and a selection in an earlier one survives.

import { h } from "./dom.js";

interface BlockSource {
  kind: "paragraph" | "heading" | "list" | "quote" | "code" | "rule";
  lines: string[];
}

const FENCE = /^\s{0,3}(```+|~~~+)\s*([\w+-]*)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^\s{0,3}>\s?(.*)$/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;

export class Markdown {
  readonly element = h("div", { class: "markdown" });
  #text = "";
  #open = true;
  #sources: string[] = [];

  /** Shows `text`; `open` if more is to come. */
  set(text: string, open: boolean): void {
    if (text === this.#text && open === this.#open) return;
    this.#text = text;
    this.#open = open;
    const blocks = cut(text);
    if (open) closeMarks(blocks.at(-1));
    const sources = blocks.map((block) => block.lines.join("\n"));
    blocks.forEach((block, i) => {
      const source = sources[i] ?? "";
      if (this.#sources[i] === source) return;
      const old = this.element.childNodes[i];
      const node = build(block);
      if (old) old.replaceWith(node);
      else this.element.append(node);
    });
    while (this.element.childNodes.length > blocks.length) this.element.lastChild?.remove();
    this.#sources = sources;
  }
}

/** Half of a bold or code mark at the end of a text that grows would stand there as asterisks until its other half comes. */
function closeMarks(block: BlockSource | undefined): void {
  const last = block?.lines.at(-1);
  if (!block || last === undefined || block.kind === "code") return;
  const bare = last.replace(/`[^`]*`/g, "");
  if (bare.includes("`")) block.lines[block.lines.length - 1] = `${last}\``;
  else if (/\*\*$/.test(bare) && bare.split("**").length % 2 === 0) block.lines[block.lines.length - 1] = last.slice(0, -2);
  else if (bare.split("**").length % 2 === 0) block.lines[block.lines.length - 1] = `${last.trimEnd()}**`;
}

function cut(text: string): BlockSource[] {
  const blocks: BlockSource[] = [];
  let open: BlockSource | undefined;
  let fence: string | undefined;
  const add = (kind: BlockSource["kind"], line: string, joins: boolean) => {
    const follows = open?.kind === kind && (kind !== "list" || !changesList(open.lines[0] ?? "", line));
    if (joins && follows && open) return void open.lines.push(line);
    open = { kind, lines: [line] };
    blocks.push(open);
  };
  for (const line of text.split("\n")) {
    if (fence !== undefined) {
      open?.lines.push(line);
      if (line.trim().startsWith(fence) && line.trim().replaceAll(fence[0] ?? "", "") === "") {
        fence = undefined;
        open = undefined;
      }
      continue;
    }
    const fenced = FENCE.exec(line);
    if (fenced) {
      fence = fenced[1];
      add("code", line, false);
    } else if (line.trim() === "") {
      // A list goes on over an empty line if another item follows.
      if (open?.kind !== "list") open = undefined;
    } else if (RULE.test(line)) add("rule", line, false);
    else if (HEADING.test(line)) add("heading", line, false);
    else if (ITEM.test(line)) add("list", line, true);
    else if (QUOTE.test(line)) add("quote", line, true);
    else if (open?.kind === "list" && /^\s/.test(line)) add("list", line, true);
    else add("paragraph", line, true);
  }
  return blocks;
}

/** A numbered item after bullets of the same depth begins a list of its own, and the other way round. */
function changesList(first: string, line: string): boolean {
  const [, indent = "", mark = ""] = ITEM.exec(first) ?? [];
  const [, itsIndent, itsMark] = ITEM.exec(line) ?? [];
  if (itsIndent === undefined || itsMark === undefined || itsIndent.length > indent.length) return false;
  return /\d/.test(mark) !== /\d/.test(itsMark);
}

function build(block: BlockSource): HTMLElement {
  const first = block.lines[0] ?? "";
  switch (block.kind) {
    case "paragraph":
      return h("p", {}, ...lines(block.lines));
    case "heading": {
      const match = HEADING.exec(first);
      // Headings of an answer stand below those of the page.
      const level = Math.min(6, (match?.[1]?.length ?? 1) + 2);
      return h(`h${level}` as "h3", {}, ...inline(match?.[2] ?? ""));
    }
    case "quote":
      return h("blockquote", {}, ...lines(block.lines.map((line) => QUOTE.exec(line)?.[1] ?? "")));
    case "rule":
      return h("hr");
    case "code":
      return code(block.lines);
    case "list":
      return list(block.lines);
  }
}

function code(source: string[]): HTMLElement {
  const fence = FENCE.exec(source[0] ?? "");
  const closed = source.length > 1 && (source.at(-1) ?? "").trim() === fence?.[1];
  const body = source.slice(1, closed ? -1 : undefined).join("\n");
  const attrs: Record<string, string> = { tabindex: "0" };
  if (fence?.[2]) attrs["data-language"] = fence[2];
  // Focusable, so that long lines can be scrolled with the keyboard.
  return h("pre", { attrs }, h("code", { text: body }));
}

interface Level {
  indent: number;
  list: HTMLElement;
  last: HTMLElement;
}

function list(source: string[]): HTMLElement {
  const stack: Level[] = [];
  for (const line of source) {
    const match = ITEM.exec(line);
    if (!match) {
      stack.at(-1)?.last.append(document.createTextNode(" "), ...inline(line.trim()));
      continue;
    }
    const indent = match[1]?.length ?? 0;
    const item = h("li", {}, ...inline(match[3] ?? ""));
    while (stack.length > 1 && indent < (stack.at(-1)?.indent ?? 0)) stack.pop();
    const top = stack.at(-1);
    if (top && indent < top.indent + 2) {
      top.list.append(item);
      top.last = item;
      continue;
    }
    const ordered = /\d/.test(match[2] ?? "");
    const made = ordered ? h("ol", { attrs: { start: String(parseInt(match[2] ?? "1", 10)) } }) : h("ul");
    made.append(item);
    top?.last.append(made);
    stack.push({ indent, list: made, last: item });
  }
  return stack[0]?.list ?? h("ul");
}

function lines(source: string[]): Node[] {
  return source.flatMap((line, i) => (i === 0 ? inline(line) : [h("br"), ...inline(line)]));
}

const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|__(.+?)__|\*(?=\S)([^*]+?)\*/g;

function inline(text: string): Node[] {
  const nodes: Node[] = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(document.createTextNode(text.slice(at, match.index)));
    const [whole, , codeText, bold, boldToo, italic] = match;
    const strong = bold ?? boldToo;
    if (codeText !== undefined) nodes.push(h("code", { text: codeText }));
    else if (strong !== undefined) nodes.push(h("strong", {}, ...inline(strong)));
    else nodes.push(h("em", { text: italic ?? "" }));
    at = match.index + whole.length;
  }
  if (at < text.length) nodes.push(document.createTextNode(text.slice(at)));
  return nodes;
}
