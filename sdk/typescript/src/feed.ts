// The sessions of the tenant as they change, for a list that needs no reload. Like a session it outlives connections: each
// new one begins anew with the most recent sessions.
//
// Invariant: `sessions` is what the server said last, in order of activity; a frame that does not follow the one before it is
// answered by asking for everything.

import { Backoff, REQUEST_CAP_MS } from "./backoff.js";
import { Emitter } from "./emitter.js";
import { EverthreadError } from "./errors.js";
import type { Link } from "./link.js";
import type { SessionsFrame, SessionSummary } from "./protocol.js";

/**
 * - `offline`: there is no connection, or it has brought nothing yet
 * - `live`: `sessions` is what there is
 * - `failed`: the server has no feed, or not for this client, or the client may not connect
 * - `closed`: `close` was called
 */
export type FeedStatus = "offline" | "live" | "failed" | "closed";

export interface WatchOptions {
  /** How many of the most recent sessions to begin with: at most 200; the server's 50 unless told otherwise. */
  recent?: number;
}

interface FeedEvents {
  change: [feed: Feed];
  status: [status: FeedStatus];
  error: [error: EverthreadError];
}

/** What a feed needs of its client. */
export interface FeedHost {
  newId(): string;
  forget(feed: Feed): void;
}

export class Feed extends Emitter<FeedEvents> {
  readonly #host: FeedHost;
  readonly #options: WatchOptions;
  readonly #known = new Map<string, SessionSummary>();
  #link: Link | undefined;
  #n = 0;
  readonly #retry = new Backoff(REQUEST_CAP_MS);
  #timer: ReturnType<typeof setTimeout> | undefined;
  #status: FeedStatus = "offline";

  /** Made by the client. */
  constructor(host: FeedHost, options: WatchOptions) {
    super();
    this.#host = host;
    this.#options = options;
  }

  /** Most recently active first. */
  get sessions(): SessionSummary[] {
    return [...this.#known.values()].sort((a, b) => b.active_at - a.active_at || (a.session < b.session ? -1 : 1));
  }

  get status(): FeedStatus {
    return this.#status;
  }

  get(session: string): SessionSummary | undefined {
    return this.#known.get(session);
  }

  /** Stops watching. */
  close(): void {
    if (this.#status === "closed") return;
    this.#link?.request({ t: "unwatch", id: this.#host.newId() }, () => undefined);
    this.#link = undefined;
    clearTimeout(this.#timer);
    this.#host.forget(this);
    this.#setStatus("closed");
  }

  /** The client has a welcomed link. Called by the client. */
  linkUp(link: Link): void {
    if (this.#status === "closed") return;
    this.#link = link;
    this.#watch();
  }

  /** The client may not connect. Called by the client. */
  refused(error: EverthreadError): void {
    if (this.#status !== "closed") this.#fail(error);
  }

  /** The link is gone; what it brought stays until the next one brings everything. Called by the client. */
  linkDown(): void {
    this.#link = undefined;
    clearTimeout(this.#timer);
    if (this.#status === "live") this.#setStatus("offline");
  }

  /** Called by the client. */
  receive(frame: SessionsFrame): void {
    // Until the beginning comes, what is different is of no use: it may still be of the watch before.
    if (!this.#link || (!frame.sessions && this.#n === 0)) return;
    if (!frame.sessions && frame.n !== this.#n + 1) return this.#watch();
    this.#n = frame.n;
    if (frame.sessions) this.#known.clear();
    for (const summary of [...(frame.sessions ?? []), ...(frame.changed ?? [])]) this.#known.set(summary.session, summary);
    for (const session of frame.gone ?? []) this.#known.delete(session);
    this.#setStatus("live");
    this.emit("change", this);
  }

  #watch(): void {
    const link = this.#link;
    if (!link) return;
    this.#n = 0;
    const { recent } = this.#options;
    link.request({ t: "watch", id: this.#host.newId(), ...(recent === undefined ? {} : { recent }) }, (reply) => {
      if (reply?.t === "ok") this.#retry.reset();
      if (reply?.t !== "error" || link !== this.#link) return;
      const error = new EverthreadError(reply);
      if (!error.retryable) return this.#fail(error);
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#watch(), this.#retry.next(0, error.afterMs));
    });
  }

  #fail(error: EverthreadError): void {
    this.#setStatus("failed");
    this.emit("error", error);
  }

  #setStatus(status: FeedStatus): void {
    if (status === this.#status) return;
    this.#status = status;
    this.emit("status", status);
  }
}
