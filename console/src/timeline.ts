// A slim rail beside a long session: where in its log the page is, and a way to any other place.

import type { Message, Session } from "../../sdk/typescript/src/index.js";
import { byId, h, setText } from "./dom.js";
import { plainText } from "./message.js";

const STEPS = 200;
const SNIPPET_CHARS = 90;

export class Timeline {
  readonly #rail = byId("timeline", HTMLElement);
  readonly #place = byId("place", HTMLInputElement);
  readonly #about = byId("place-about", HTMLElement);
  readonly #date = h("strong");
  readonly #words = h("span");
  readonly #goTo: (seq: number) => void;
  #session: Session | undefined;
  /** The person holds the thumb: the page does not move it. */
  #isHeld = false;
  /** The place that the words beside the thumb are about, and the one that they are being read for. */
  #asked: number | undefined;
  #isAsking = false;

  constructor(goTo: (seq: number) => void) {
    this.#goTo = goTo;
    this.#about.append(this.#date, this.#words);
    this.#place.addEventListener("input", () => this.#moved());
    this.#place.addEventListener("change", () => this.#chosen());
    this.#place.addEventListener("blur", () => this.#release());
    this.#place.addEventListener("pointerup", () => this.#release());
  }

  watch(session: Session | undefined): void {
    this.#session = session;
    this.#rail.hidden = true;
    this.#release();
  }

  /** Shows where the page is: at `seq`, of a session that is long, or not. */
  draw(seq: number, isLong: boolean): void {
    const head = this.#session?.view.seq ?? 0;
    // Once it is there it stays: what was read on the way does not make a session shorter.
    if (isLong) this.#rail.hidden = false;
    if (this.#rail.hidden || this.#isHeld) return;
    this.#place.max = String(Math.max(1, head));
    this.#place.step = String(Math.max(1, Math.floor(head / STEPS)));
    this.#place.value = String(seq);
    this.#setStyle();
    this.#place.setAttribute("aria-valuetext", `${Math.round((100 * seq) / Math.max(1, head))} % of the session`);
  }

  #moved(): void {
    this.#isHeld = true;
    this.#setStyle();
    this.#about.hidden = false;
    this.#asked = Number(this.#place.value);
    if (!this.#isAsking) void this.#ask();
  }

  #chosen(): void {
    const head = this.#session?.view.seq ?? 0;
    const seq = Number(this.#place.value);
    // The last step is not a whole one.
    this.#goTo(head - seq < Number(this.#place.step) ? head : seq);
    this.#release();
  }

  #release(): void {
    this.#isHeld = false;
    this.#asked = undefined;
    this.#about.hidden = true;
  }

  /** One question at a time: by the answer the thumb may be elsewhere, and then that is asked about. */
  async #ask(): Promise<void> {
    this.#isAsking = true;
    try {
      for (let seq = this.#asked; seq !== undefined; seq = this.#asked === seq ? undefined : this.#asked) {
        const page = await this.#session?.history({ before: seq + 1, limit: 1 });
        const message = page?.messages.at(-1);
        if (message && this.#asked !== undefined) this.#tell(message);
      }
    } catch {
      // Then the thumb says nothing; going there says why.
    } finally {
      this.#isAsking = false;
    }
  }

  #tell(message: Message): void {
    const date = dateOf(message.at);
    setText(this.#date, date);
    const words = plainText(message).replace(/\s+/g, " ").trim();
    setText(this.#words, words.length > SNIPPET_CHARS ? `${words.slice(0, SNIPPET_CHARS)}…` : words);
    this.#place.setAttribute("aria-valuetext", date);
  }

  #setStyle(): void {
    const share = Number(this.#place.value) / Number(this.#place.max);
    this.#rail.style.setProperty("--share", String(share));
  }
}

const FORMAT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export function dateOf(time: number): string {
  return FORMAT.format(time);
}
