// What this device has read: it is acknowledged when the end of the session has been in sight, and a line stands before what
// was new when the person came.

import type { Session } from "../../sdk/typescript/src/index.js";
import type { StickyScroll } from "./scroll.js";
import type { Transcript } from "./transcript.js";

const ACK_EVERY_MS = 500;

export class ReadMark {
  readonly #scroll: StickyScroll;
  readonly #transcript: Transcript;
  readonly #onRead: (session: Session) => void;
  #session: Session | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isMarked = false;

  constructor(scroll: StickyScroll, transcript: Transcript, onRead: (session: Session) => void) {
    this.#scroll = scroll;
    this.#transcript = transcript;
    this.#onRead = onRead;
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.#back();
    });
  }

  watch(session: Session | undefined): void {
    // What was seen last is read, even if the person leaves at once.
    if (this.#timer !== undefined) this.#ack();
    this.#session = session;
    this.#isMarked = false;
  }

  /** Something has come, or was brought into sight. */
  look(): void {
    const session = this.#session;
    if (!session || session.status !== "live") return;
    // What the server counted when it was attached stands before anything is acknowledged.
    if (!this.#isMarked) this.#mark(session);
    this.#timer ??= setTimeout(() => this.#ack(), ACK_EVERY_MS);
  }

  /** The person has said something: what came before is not new any more. */
  clear(): void {
    this.#transcript.setMark(undefined);
  }

  #mark(session: Session): void {
    this.#isMarked = true;
    const { acked, unread = 0 } = session;
    this.#transcript.setMark(unread > 0 ? acked : undefined);
  }

  /** What came while nobody looked is new. */
  #back(): void {
    const session = this.#session;
    if (session?.unread) this.#transcript.setMark(session.acked);
    this.look();
  }

  #ack(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const session = this.#session;
    const isRead = document.visibilityState === "visible" && this.#scroll.atEnd && !this.#transcript.isDue;
    if (!session || !isRead || session.status !== "live" || session.view.seq === 0) return;
    if (session.acked === undefined || session.acked < session.view.seq) session.ack();
    this.#onRead(session);
  }
}
