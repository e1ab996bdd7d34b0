// Which stretch of a session is on the page: its end, which goes on live, or some place in its past. The past is read in pages
// around the place, and grows where the reader goes; where it meets the end, both become one.

import type { Change, Past, Session, View } from "../../sdk/typescript/src/index.js";
import { byId, setText } from "./dom.js";
import type { StickyScroll } from "./scroll.js";
import type { Transcript } from "./transcript.js";

/** How near to an end of what is on the page the next page is read. */
const NEAR_PX = 500;

export class Places {
  readonly #transcript: Transcript;
  readonly #scroll: StickyScroll;
  readonly #onError: (error: unknown) => void;
  readonly #jumpWord = byId("jump-word", HTMLElement);
  #session: Session | undefined;
  #past: Past | undefined;
  #reading = false;
  /** Counts goings: a place that was asked for before another one is not gone to any more. */
  #going = 0;

  constructor(transcript: Transcript, scroll: StickyScroll, onError: (error: unknown) => void) {
    this.#transcript = transcript;
    this.#scroll = scroll;
    this.#onError = onError;
    scroll.onJump = () => this.toNow();
  }

  watch(session: Session | undefined): void {
    this.#session = session;
    this.#setPast(undefined);
  }

  /** Whether the page shows something else than the end of the session. */
  get isPast(): boolean {
    return this.#past !== undefined;
  }

  /** The session has changed. */
  changed(view: View, change: Change): void {
    if (!this.#past) this.#transcript.changed(view, change);
    // Another branch may be current, or messages may be gone.
    else if (change.all) this.#show();
  }

  /** Goes to the message at `seq`, or the last one before it. */
  async goTo(seq: number): Promise<void> {
    const session = this.#session;
    if (!session) return;
    const going = ++this.#going;
    try {
      const past = this.#isHeld(seq) ? undefined : await session.past(seq);
      if (session !== this.#session || going !== this.#going) return;
      this.#setPast(past);
      if (past) this.#show();
      else this.#transcript.show(session.view);
      this.#meet();
      this.#transcript.goTo(seq);
    } catch (error) {
      if (session === this.#session) this.#onError(error);
    }
  }

  /** Back to where the session goes on. */
  toNow(): void {
    const session = this.#session;
    this.#going += 1;
    if (this.#past && session) {
      this.#setPast(undefined);
      this.#transcript.show(session.view);
    }
    this.#scroll.toEnd();
  }

  /** Reads older messages, whatever is on the page. */
  older(): void {
    void this.#read(async (session) => {
      if (this.#past) await this.#past.older();
      else await session.loadOlder();
    });
  }

  /** The reader has moved: reads what is about to come into sight. */
  moved(): void {
    const { box } = this.#scroll;
    const view = this.#past ?? this.#session?.view;
    if (!view || this.#reading || this.#transcript.isDue || box.clientHeight === 0) return;
    const left = box.scrollHeight - box.scrollTop - box.clientHeight;
    if (this.#past && left < NEAR_PX) void this.#read(() => this.#past?.newer() ?? Promise.resolve());
    else if (view.more && box.scrollTop < NEAR_PX && !this.#scroll.atEnd) this.older();
  }

  async #read(read: (session: Session) => Promise<unknown>): Promise<void> {
    const session = this.#session;
    const past = this.#past;
    if (!session || this.#reading) return;
    this.#reading = true;
    try {
      await read(session);
      if (session !== this.#session || past !== this.#past) return;
      if (past) this.#show();
      this.#meet();
    } catch (error) {
      if (session === this.#session) this.#onError(error);
    } finally {
      this.#reading = false;
    }
  }

  /** Whether the messages of the view go back to that place. */
  #isHeld(seq: number): boolean {
    const view = this.#session?.view;
    return view !== undefined && (!view.more || seq >= (view.messages[0]?.seq ?? Infinity));
  }

  /** Where nothing lies between the past and the end, the page shows both as one, and goes on live. */
  #meet(): void {
    const past = this.#past;
    if (!past?.meetsView) return;
    this.#setPast(undefined);
    this.#session?.join(past);
  }

  #show(): void {
    if (this.#past && this.#session) this.#transcript.show(this.#session.view.withMessages(this.#past.messages, this.#past.more));
  }

  #setPast(past: Past | undefined): void {
    if (this.#past !== undefined || past !== undefined) this.#scroll.isPast = past !== undefined;
    this.#past = past;
    this.#transcript.isPast = past !== undefined;
    setText(this.#jumpWord, past ? "Back to now" : "Latest");
  }
}
