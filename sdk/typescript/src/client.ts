// The client: one connection for any number of sessions, kept up as long as somebody wants it.

import { Backoff } from "./backoff.js";
import { Emitter } from "./emitter.js";
import { EverthreadError } from "./errors.js";
import { Feed, type WatchOptions } from "./feed.js";
import { Http } from "./http.js";
import { type Ending, type Hello, Link, type WebSocketConstructor } from "./link.js";
import type { SessionOptions } from "./options.js";
import type { Welcome } from "./protocol.js";
import { Session } from "./session.js";
import { ulid } from "./ulid.js";

const TOKEN_EXPIRED = 4401;
/** For the function that makes a token, before it is asked again. */
const TOKEN_WITHIN_MS = 30_000;

export interface EverthreadOptions {
  /** Where the server is: `https://…`, `http://…`; the page's own origin in a browser if absent. */
  url?: string;
  /** Asked again for every connection if it is a function, so that tokens may be short-lived. */
  token?: string | (() => string | Promise<string>);
  /** Who is speaking; only the development token lets the client say so. */
  subject?: string;
  /** In which role: `user` if absent; only the development token lets the client say so. */
  kind?: "user" | "operator";
  /** Stable identity of this device. */
  device?: string;
  /**
   * For how many milliseconds a write, a control or a page of history is tried again while the server answers that it cannot do
   * it yet (`unavailable`, `overloaded`, …), as in a failover of its store: 60 000 unless told otherwise, 0 for never. Time
   * without a connection does not count. Keep it far below the ten minutes for which the server knows what it was asked.
   */
  retryForMs?: number;
  /** For programs without a WebSocket of their own. */
  WebSocket?: WebSocketConstructor;
  fetch?: typeof fetch;
}

/** A failover of the store takes about ten seconds; a person who waits for longer than this has given up. */
const RETRY_FOR_MS = 60_000;

/** Coming back would not help. */
const NO_WEBSOCKET: Ending = {
  code: 1006,
  reason: "there is no WebSocket here: pass one as the option `WebSocket` (Node before 22: that of the package `ws`)",
  reconnect: false,
  word: "cannot_connect",
};

/**
 * - `idle`: nobody asked for a connection, or `disconnect` was called
 * - `waiting`: the last attempt failed, the next is at `retryAt` (by `Date.now()`)
 * - `stopped`: the server said not to come back; `connect` tries again
 */
export type ConnectionState =
  | { phase: "idle" | "connecting" }
  | { phase: "open"; connection: string; node: string }
  | { phase: "waiting"; retryAt: number; reason: string }
  | { phase: "stopped"; code: number; reason: string };

export class Everthread extends Emitter<{ state: [state: ConnectionState] }> {
  readonly http: Http;
  readonly #options: EverthreadOptions;
  readonly #url: URL;
  /** What `session` hands out. */
  readonly #sessions = new Map<string, Session>();
  /** What was opened and not closed: hears of the connection. */
  readonly #following = new Set<Session>();
  readonly #backoff = new Backoff();
  #feed: Feed | undefined;
  #state: ConnectionState = { phase: "idle" };
  #link: Link | undefined;
  #welcomedAt: number | undefined;
  /** The server's clock minus this one, in milliseconds. */
  #clockOffset = 0;
  /** Counts attempts, so that one that was given up while it waited for its token does not go on. */
  #attempt = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(options: EverthreadOptions = {}) {
    super();
    this.#options = options;
    this.#url = baseOf(options.url);
    this.http = new Http({
      url: this.#url.href,
      token: () => this.#token(),
      subject: options.subject,
      kind: options.kind,
      fetch: options.fetch ?? globalThis.fetch.bind(globalThis),
    });
  }

  get state(): ConnectionState {
    return this.#state;
  }

  /** The session of that id; the same object for the same id until it is closed. */
  session(id: string, options: SessionOptions = {}): Session {
    const known = this.#sessions.get(id);
    if (known) return known;
    const host = {
      http: this.http,
      link: () => this.#openLink,
      serverNow: () => this.serverNow(),
      self: { subject: this.#options.subject, kind: this.#options.kind ?? "user", device: this.#options.device },
      opened: (session: Session) => {
        this.#following.add(session);
        if (!this.#sessions.has(id)) this.#sessions.set(id, session);
      },
      wanted: () => this.#wanted(),
      retryForMs: this.#options.retryForMs ?? RETRY_FOR_MS,
      forget: (session: Session) => {
        this.#following.delete(session);
        if (this.#sessions.get(id) === session) this.#sessions.delete(id);
      },
    };
    const session = new Session(id, host, options);
    this.#sessions.set(id, session);
    return session;
  }

  /**
   * The sessions of the tenant as they change; the same feed until it is closed. With the option `device` of the client each
   * session tells what this device has not read.
   */
  watch(options: WatchOptions = {}): Feed {
    if (this.#feed) return this.#feed;
    const feed = new Feed(
      {
        newId: () => ulid(this.serverNow()),
        forget: () => (this.#feed = undefined),
      },
      options,
    );
    this.#feed = feed;
    this.#wanted();
    const link = this.#openLink;
    if (link) feed.linkUp(link);
    return feed;
  }

  /** Removes a session and all that is kept of it, for everybody; false if there was none. */
  delete(session: string): Promise<boolean> {
    return this.http.deleteSession(session);
  }

  /** The time on the server's clock. */
  serverNow(): number {
    return Date.now() + this.#clockOffset;
  }

  /** Connects now, whatever the back-off says. Sessions connect by themselves when they are opened. */
  connect(): void {
    if (this.#state.phase === "connecting" || this.#state.phase === "open") return;
    clearTimeout(this.#timer);
    void this.#connect();
  }

  /** Cuts the connection and stays away until `connect`. Sessions keep what they have and go on from there. */
  disconnect(): void {
    clearTimeout(this.#timer);
    this.#attempt += 1;
    this.#dropLink();
    this.#setState({ phase: "idle" });
  }

  /** Ends everything. */
  close(): void {
    for (const session of new Set([...this.#following, ...this.#sessions.values()])) session.close();
    this.#feed?.close();
    this.disconnect();
  }

  get #openLink(): Link | undefined {
    return this.#state.phase === "open" ? this.#link : undefined;
  }

  #wanted(): void {
    if (this.#state.phase === "idle" || this.#state.phase === "stopped") this.connect();
  }

  async #connect(): Promise<void> {
    const attempt = ++this.#attempt;
    this.#setState({ phase: "connecting" });
    let token: string | undefined;
    try {
      token = await within(TOKEN_WITHIN_MS, this.#token());
    } catch (error) {
      if (attempt === this.#attempt) this.#wait(`no token: ${String(error)}`, undefined);
      return;
    }
    if (attempt !== this.#attempt) return;
    const WebSocket = this.#options.WebSocket ?? (globalThis.WebSocket as WebSocketConstructor | undefined);
    if (!WebSocket) return this.#stop(NO_WEBSOCKET);
    try {
      const link: Link = new Link({
        url: this.#socketUrl(),
        WebSocket,
        hello: this.#hello(token),
        onWelcome: (welcome) => this.#welcomed(link, welcome),
        onSessions: (frame) => this.#feed?.receive(frame),
        onEnd: (ending) => this.#ended(link, ending),
      });
      this.#link = link;
    } catch (error) {
      // Nothing was sent: the address is none, or the page may not connect there. The next try would end the same way.
      this.#stop(notMade(this.#url, error));
    }
  }

  #welcomed(link: Link, welcome: Welcome): void {
    if (link !== this.#link) return;
    this.#clockOffset = welcome.now - Date.now();
    this.#welcomedAt = performance.now();
    this.#setState({ phase: "open", connection: welcome.connection, node: welcome.node });
    // Who was told may have disconnected.
    if (link !== this.#link) return;
    for (const session of [...this.#following]) session.linkUp(link);
    this.#feed?.linkUp(link);
  }

  #ended(link: Link, ending: Ending): void {
    if (link !== this.#link) return;
    const livedMs = this.#welcomedAt === undefined ? 0 : performance.now() - this.#welcomedAt;
    // A token that worked before has run out: the next one may be good.
    const renew = ending.code === TOKEN_EXPIRED && livedMs > 0 && typeof this.#options.token === "function";
    const attempt = this.#attempt;
    this.#dropLink();
    // Who was told may have disconnected, and must not be connected again.
    if (attempt !== this.#attempt) return;
    if (ending.reconnect || renew) this.#wait(ending.reason, ending.afterMs, livedMs);
    else this.#stop(ending);
  }

  #wait(reason: string, afterMs: number | undefined, livedMs = 0): void {
    const wait = this.#backoff.next(livedMs, afterMs);
    // The timer first: who is told may disconnect.
    this.#timer = setTimeout(() => void this.#connect(), wait);
    this.#setState({ phase: "waiting", retryAt: Date.now() + wait, reason });
  }

  #stop({ code, reason, word }: Ending): void {
    const attempt = this.#attempt;
    this.#setState({ phase: "stopped", code, reason });
    // Who was told may have connected again, with another token for instance.
    if (attempt !== this.#attempt) return;
    const known = code === TOKEN_EXPIRED ? "unauthorized" : code === 4403 ? "forbidden" : "stopped";
    const message = reason || `the server closed the connection with ${code}`;
    const error = new EverthreadError({ code: word ?? known, message, retryable: false, no_side_effects: true });
    for (const session of [...this.#following]) session.refused(error);
    this.#feed?.refused(error);
  }

  #dropLink(): void {
    const link = this.#link;
    this.#link = undefined;
    this.#welcomedAt = undefined;
    link?.close();
    for (const session of [...this.#following]) session.linkDown();
    this.#feed?.linkDown();
  }

  async #token(): Promise<string | undefined> {
    const { token } = this.#options;
    return typeof token === "function" ? await token() : token;
  }

  #hello(token: string | undefined): Hello {
    const { device, subject, kind } = this.#options;
    return {
      id: ulid(this.serverNow()),
      client: "everthread-ts/0.1",
      ...(token === undefined ? {} : { token }),
      ...(device === undefined ? {} : { device }),
      ...(subject === undefined ? {} : { subject }),
      ...(kind === undefined ? {} : { kind }),
    };
  }

  #socketUrl(): string {
    const url = new URL("/v1/connect", this.#url);
    url.protocol = url.protocol === "https:" || url.protocol === "wss:" ? "wss:" : "ws:";
    return url.href;
  }

  #setState(state: ConnectionState): void {
    this.#state = state;
    this.emit("state", state);
  }
}

function baseOf(url: string | undefined): URL {
  const base = url ?? globalThis.location?.origin;
  try {
    return new URL(base);
  } catch {
    throw new TypeError(`the option \`url\` says where the server is, such as "https://host"; this is no address: ${base}`);
  }
}

/** Why no socket could be made at all, and what to do about it. */
function notMade(url: URL, error: unknown): Ending {
  const isMixed = globalThis.location?.protocol === "https:" && !["https:", "wss:"].includes(url.protocol);
  const todo = isMixed
    ? "a page that came by https: may only connect to a server whose `url` begins with https:"
    : "see to the option `url`, which begins with https: or http:, and to the content security policy of the page";
  const reason = `no WebSocket can be made to ${url.origin === "null" ? url.href : url.origin} (${String(error)}): ${todo}`;
  return { code: 1006, reason, reconnect: false, word: "cannot_connect" };
}

/** The same, but it fails if it takes longer. */
async function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing came within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
