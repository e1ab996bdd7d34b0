// Writes that were answered, for as long as a failover of the store might lose them with the end of the log. Whoever asked
// has the answer and has gone on, so nobody else would write them again.

import { type Cursor, parseCursor } from "./cursor.js";
import type { Done } from "./protocol.js";

/** A replica takes over within seconds, and whoever follows learns of it soon after. */
const KEPT_MS = 60_000;
/** The oldest are forgotten first. */
const KEPT_MAX = 256;

interface Written<Frame> {
  frame: Frame;
  id: string;
  at: Cursor;
  until: number;
}

export class Kept<Frame> {
  #writes: Written<Frame>[] = [];

  /** Keeps what has this answer, unless replicas or a disk have it. */
  keep(frame: Frame, id: string, { cursor, ack }: Done): void {
    const at = cursor === undefined ? undefined : parseCursor(cursor);
    if (!at || (ack !== undefined && ack !== "accepted")) return;
    this.#writes = [...this.#recent(), { frame, id, at, until: Date.now() + KEPT_MS }].slice(-KEPT_MAX);
  }

  /** Gives up and hands over what stood where `isLost`, in the order in which it was written. */
  take(isLost: (at: Cursor) => boolean): { frame: Frame; id: string }[] {
    const recent = this.#recent();
    this.#writes = recent.filter(({ at }) => !isLost(at));
    return recent.filter(({ at }) => isLost(at));
  }

  clear(): void {
    this.#writes = [];
  }

  #recent(): Written<Frame>[] {
    const now = Date.now();
    return this.#writes.filter(({ until }) => until > now);
  }
}
