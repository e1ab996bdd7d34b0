// Taking a session over from its agents, and handing it back: the button in the header, and the banner that everybody sees.

import type { Session } from "../../sdk/typescript/src/index.js";
import { byId, setText } from "./dom.js";
import type { People } from "./people.js";

export class Takeover {
  readonly #button = byId("takeover", HTMLButtonElement);
  readonly #banner = byId("banner", HTMLElement);
  readonly #people: People;
  readonly #onError: (error: unknown) => void;
  #session: Session | undefined;
  #asking = false;

  constructor(people: People, onError: (error: unknown) => void) {
    this.#people = people;
    this.#onError = onError;
    this.#button.addEventListener("click", () => void this.#toggle());
  }

  watch(session: Session | undefined): void {
    this.#session = session;
    this.#asking = false;
    this.draw();
  }

  /** Whether this person has the session: what is written here is then said by an operator. */
  get isMine(): boolean {
    const held = this.#session?.view.session.held;
    return held !== undefined && this.#people.isMe(held.by);
  }

  draw(): void {
    const view = this.#session?.view;
    const held = view?.session.held;
    this.#button.hidden = !view?.begun || view.session.closed;
    this.#button.disabled = this.#asking;
    setText(this.#button, held ? "Hand back" : "Take over");
    this.#button.title = held
      ? "Let the agents work again, with what was said meanwhile"
      : "Stop the agents and speak for yourself";
    this.#banner.hidden = !held;
    const reason = held?.reason === undefined ? "" : ` (${held.reason})`;
    const who = held ? this.#people.titleName(held.by) : "";
    const words = `${who} ${who === "You" ? "have" : "has"} taken over${reason}. Agents wait until the session is handed back.`;
    setText(this.#banner, held ? words : "");
  }

  async #toggle(): Promise<void> {
    const session = this.#session;
    if (!session) return;
    this.#asking = true;
    this.draw();
    try {
      if (session.view.session.held) await session.release();
      else await session.hold();
    } catch (error) {
      if (session === this.#session) this.#onError(error);
    } finally {
      if (session === this.#session) {
        this.#asking = false;
        this.draw();
      }
    }
  }
}
