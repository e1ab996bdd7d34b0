// How far this device has read a session: its durable cursor, which the server keeps, and what came after it.

import type { Link } from "./link.js";
import type { Attached, Author, AuthorKind } from "./protocol.js";
import type { View } from "./view.js";

/** Who this client is, as far as it knows. */
export interface Self {
  subject: string | undefined;
  kind: AuthorKind;
  device: string | undefined;
}

export class Mark {
  readonly #self: Self;
  #acked: number | undefined;
  /** What the server counted when the session was attached: messages up to `head`. */
  #counted: { head: number; unread: number } | undefined;
  #target: { link: Link; attachment: number } | undefined;
  /** Acknowledged here, and not sent on this connection. */
  #unsent: number | undefined;

  constructor(self: Self) {
    this.#self = self;
  }

  /** Up to where this device has read, as far as is known. */
  get acked(): number | undefined {
    return this.#acked;
  }

  /** Messages of others that began after that. */
  unread(view: View): number | undefined {
    if (this.#acked === undefined) return undefined;
    const { head, unread } = this.#counted ?? { head: this.#acked, unread: 0 };
    return unread + view.messages.filter((message) => message.seq > head && !this.#isOwn(message.by)).length;
  }

  /** Everything up to `seq` is read. It never goes back. */
  ack(seq: number): void {
    if (this.#acked !== undefined && seq <= this.#acked) return;
    this.#acked = this.#unsent = seq;
    this.#counted = undefined;
    this.#send();
  }

  attached(link: Link, { attachment, acked, unread, head }: Attached): void {
    this.#target = { link, attachment };
    if (acked !== undefined && acked >= (this.#acked ?? 0)) {
      this.#acked = acked;
      this.#unsent = undefined;
      this.#counted = unread === undefined ? undefined : { head, unread };
    }
    this.#send();
  }

  detached(): void {
    this.#target = undefined;
    // What was sent may be lost; the server takes it twice.
    this.#unsent = this.#acked;
  }

  #isOwn(by: Author): boolean {
    const { subject, kind, device } = this.#self;
    // The token names the subject, and the client may not know it: then it knows its own device at least.
    return by.kind === kind && (subject === undefined ? by.device === device : by.id === subject);
  }

  #send(): void {
    if (!this.#target || this.#unsent === undefined) return;
    const { link, attachment } = this.#target;
    link.send({ t: "ack", attachment, seq: this.#unsent });
    this.#unsent = undefined;
  }
}
