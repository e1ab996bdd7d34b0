// Who else is in a session now. The server sends everybody first, then what is different; a frame that does not follow the
// one before it is answered by asking for everybody.

import { Emitter } from "./emitter.js";
import type { Link } from "./link.js";
import type { JsonObject, Member, PresenceFrame } from "./protocol.js";

export class Presence extends Emitter<{ change: [presence: Presence] }> {
  readonly #members = new Map<string, Member>();
  #count: number | undefined;
  #n = 0;
  #data: JsonObject | undefined;
  #target: { link: Link; attachment: number } | undefined;

  /** Everybody who is there, oneself too; nobody is listed while there are more than 200. */
  get members(): Member[] {
    return [...this.#members.values()];
  }

  /** How many are there. */
  get count(): number {
    return this.#count ?? this.#members.size;
  }

  /** Whether there are too many to be listed. */
  get isCounted(): boolean {
    return this.#count !== undefined;
  }

  /** What the others are told from here on, such as `{ typing: true }`: an object of at most 1 KiB, replaced as a whole. */
  set(data: JsonObject): void {
    // As it is now: it is told again on every connection, when who said it may have changed it.
    this.#data = JSON.parse(JSON.stringify(data)) as JsonObject;
    this.#send({ data: this.#data });
  }

  /** Called by the session. */
  attached(link: Link, attachment: number): void {
    this.#target = { link, attachment };
    this.#n = 0;
    if (this.#data) this.#send({ data: this.#data });
  }

  /** Called by the session. Those who were there stay until everybody is told again. */
  detached(): void {
    this.#target = undefined;
  }

  /** Called by the session. */
  receive(frame: PresenceFrame): void {
    const isWhole = frame.members !== undefined || frame.count !== undefined;
    const isNext = frame.n === this.#n + 1;
    this.#n = frame.n;
    if (!isWhole && !isNext) return this.#send({});
    if (isWhole) this.#members.clear();
    this.#count = frame.count;
    for (const member of [...(frame.members ?? []), ...(frame.joined ?? []), ...(frame.changed ?? [])]) {
      this.#members.set(member.member, member);
    }
    for (const member of frame.left ?? []) this.#members.delete(member);
    this.emit("change", this);
  }

  #send(more: { data?: JsonObject }): void {
    if (this.#target) this.#target.link.send({ t: "presence", attachment: this.#target.attachment, ...more });
  }
}
