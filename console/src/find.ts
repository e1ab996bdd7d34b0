// The dialog that finds a message: by its date, or by words in it. The log is searched from its end back, page by page.

import type { Message, Searched, Session } from "../../sdk/typescript/src/index.js";
import { byId, h, setText } from "./dom.js";
import { plainText } from "./message.js";
import type { People } from "./people.js";
import { dateOf } from "./timeline.js";

/** After so many the person decides whether to go on. */
const FOUND_MAX = 20;
/** Characters around a hit. */
const BEFORE = 40;
const AFTER = 90;

export class Find {
  readonly #dialog = byId("find-dialog", HTMLDialogElement);
  readonly #date = byId("find-date", HTMLInputElement);
  readonly #words = byId("find-words", HTMLInputElement);
  readonly #status = byId("find-status", HTMLElement);
  readonly #results = byId("find-results", HTMLUListElement);
  readonly #more = byId("find-more", HTMLButtonElement);
  readonly #people: People;
  readonly #goTo: (seq: number) => void;
  #session: Session | undefined;
  #search: AsyncGenerator<Searched, void, undefined> | undefined;

  constructor(people: People, goTo: (seq: number) => void) {
    this.#people = people;
    this.#goTo = goTo;
    byId("find-close", HTMLButtonElement).addEventListener("click", () => this.#dialog.close());
    byId("find-date-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#byDate();
    });
    byId("find-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#byWords();
    });
    this.#more.addEventListener("click", () => void this.#readOn());
    this.#dialog.addEventListener("close", () => (this.#search = undefined));
  }

  watch(session: Session | undefined): void {
    this.#session = session;
    this.#search = undefined;
    this.#results.replaceChildren();
    setText(this.#status, "");
    this.#more.hidden = true;
    if (this.#dialog.open) this.#dialog.close();
  }

  open(): void {
    if (!this.#session || this.#dialog.open) return;
    this.#dialog.showModal();
    this.#words.focus();
    this.#words.select();
  }

  async #byDate(): Promise<void> {
    const session = this.#session;
    // The field speaks of the person's own time zone.
    const time = new Date(this.#date.value).getTime();
    if (!session || Number.isNaN(time)) return;
    setText(this.#status, "Looking…");
    try {
      const message = await session.messageAt(time);
      if (session !== this.#session) return;
      if (message) this.#choose(message.seq);
      else setText(this.#status, "The session began after that.");
    } catch (error) {
      this.#failed(error);
    }
  }

  #byWords(): void {
    const session = this.#session;
    const words = this.#words.value.trim().toLowerCase();
    if (!session || words === "") return;
    this.#results.replaceChildren();
    // Only what is on the current branch can be gone to.
    const isHit = (m: Message) => plainText(m).toLowerCase().includes(words) && session.view.isOnBranch(m);
    this.#search = session.search(isHit);
    void this.#readOn();
  }

  async #readOn(): Promise<void> {
    const search = this.#search;
    const words = this.#words.value.trim().toLowerCase();
    this.#more.hidden = true;
    let count = 0;
    let at: number | undefined;
    try {
      while (search && count < FOUND_MAX) {
        const { value, done } = await search.next();
        if (search !== this.#search) return;
        if (done) return this.#end();
        at = value.at ?? at;
        count += value.found.length;
        this.#results.append(...value.found.map((message) => this.#hit(message, words)));
        setText(this.#status, at === undefined ? "" : `Searched back to ${dateOf(at)}`);
      }
      this.#more.hidden = false;
    } catch (error) {
      if (search === this.#search) this.#failed(error);
    }
  }

  #end(): void {
    const count = this.#results.childElementCount;
    setText(this.#status, count === 0 ? "Nothing found in the whole session" : `${count} found, in the whole session`);
  }

  #hit(message: Message, words: string): HTMLElement {
    const text = plainText(message).replace(/\s+/g, " ");
    const at = Math.max(0, text.toLowerCase().indexOf(words));
    const start = Math.max(0, at - BEFORE);
    const end = at + words.length;
    const line = h("span", { class: "hit" });
    line.append(start > 0 ? "…" : "", text.slice(start, at), h("mark", { text: text.slice(at, end) }), text.slice(end, end + AFTER));
    const who = h("span", { class: "who", text: `${this.#people.titleName(message.by)} · ${dateOf(message.at)}` });
    const on = { click: () => this.#choose(message.seq) };
    return h("li", {}, h("button", { attrs: { type: "button" }, on }, who, line));
  }

  #choose(seq: number): void {
    setText(this.#status, "");
    this.#dialog.close();
    this.#goTo(seq);
  }

  #failed(error: unknown): void {
    setText(this.#status, `That did not work: ${error instanceof Error ? error.message : String(error)}`);
  }
}
