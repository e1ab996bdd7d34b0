// The list of sessions, kept up to date: by the server's feed, or by asking now and then where there is none.

import type { Everthread, Feed, Session, SessionSummary } from "../../sdk/typescript/src/index.js";
import { type Sidebar, titleOf } from "./sidebar.js";

const RECENT = 100;
const LIST_EVERY_MS = 10_000;
const DRAW_EVERY_MS = 30_000;

export class SessionList {
  readonly #client: Everthread;
  readonly #device: string;
  readonly #sidebar: Sidebar;
  readonly #feed: Feed;
  #listed: SessionSummary[] = [];
  #listing = false;
  /** Up to where this page knows that this device has read: the server hears of it later. */
  readonly #readTo = new Map<string, number>();

  constructor(client: Everthread, device: string, sidebar: Sidebar) {
    this.#client = client;
    this.#device = device;
    this.#sidebar = sidebar;
    this.#feed = client.watch({ recent: RECENT });
    this.#feed.on("change", () => this.#draw());
    this.#feed.on("status", () => this.refresh());
    setInterval(() => {
      if (document.visibilityState === "visible" && this.#feed.status === "failed") void this.#list();
    }, LIST_EVERY_MS);
    // Times are told by how long ago they are.
    setInterval(() => this.#draw(), DRAW_EVERY_MS);
  }

  /** Something has happened that the list may show. The feed tells by itself. */
  refresh(): void {
    if (this.#feed.status === "failed") void this.#list();
    else this.#draw();
  }

  /** This device has read a session up to its cursor. */
  read({ id, acked }: Session): void {
    if (acked === undefined || acked <= (this.#readTo.get(id) ?? 0)) return;
    this.#readTo.set(id, acked);
    this.#draw();
  }

  /** What a session is called, if it is in the list. */
  titleOf(id: string): string | undefined {
    const known = this.#feed.get(id) ?? this.#listed.find(({ session }) => session === id);
    return known && titleOf(known);
  }

  async #list(): Promise<void> {
    // A slow server must not collect a queue of these.
    if (this.#listing) return;
    this.#listing = true;
    try {
      this.#listed = (await this.#client.http.listSessions({ limit: RECENT, device: this.#device })).sessions;
      this.#draw();
    } catch {
      // The connection's state says what is wrong; the list stays as it was.
    } finally {
      this.#listing = false;
    }
  }

  #draw(): void {
    const sessions = this.#feed.status === "failed" ? this.#listed : this.#feed.sessions;
    // Before the first answer there is nothing to show, and nothing to say about that either.
    if (sessions.length === 0 && this.#feed.status === "offline") return;
    this.#sidebar.show(sessions.map((session) => ({ ...session, unread_entries: this.#unread(session) })));
  }

  #unread({ session, seq, unread_entries = 0 }: SessionSummary): number {
    const readTo = this.#readTo.get(session);
    return seq === undefined || readTo === undefined ? unread_entries : Math.min(unread_entries, Math.max(0, seq - readTo));
  }
}
