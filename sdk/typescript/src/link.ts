// One WebSocket from hello to its end. It owns the socket, the correlation of replies, and the watch over silence; what
// outlives the socket (sessions, unanswered writes) is not here.
//
// Replies are handed over synchronously: the frame after `attached` may be in the same packet, and must find its
// attachment known.

import type { AuthorKind, ErrorBody, Receipt, ServerFrame, SessionFrame, SessionsFrame, Welcome } from "./protocol.js";

const HANDSHAKE_MS = 10_000;

/** As much of the browser's WebSocket as is used here; the `ws` package fits too. */
export interface WebSocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocketLike;

export interface Hello {
  id: string;
  token?: string;
  client?: string;
  device?: string;
  subject?: string;
  kind?: AuthorKind;
}

/** Why a link ended, and what the server said about coming back. */
export interface Ending {
  code: number;
  reason: string;
  reconnect: boolean;
  afterMs?: number;
  /** Code of the error that tells of it, if the close code does not. */
  word?: string;
}

export type Reply = Extract<ServerFrame, { id?: string }> | Receipt;
/** Gets the reply, or undefined if the link ended first. Receipts may be several: the last one is `settled`. */
type ReplyHandler = (reply: Reply | undefined) => void;

export interface LinkOptions {
  url: string;
  WebSocket: WebSocketConstructor;
  hello: Hello;
  onWelcome: (welcome: Welcome) => void;
  onSessions: (frame: SessionsFrame) => void;
  onEnd: (ending: Ending) => void;
}

export class Link {
  readonly #socket: WebSocketLike;
  readonly #options: LinkOptions;
  readonly #replies = new Map<string, ReplyHandler>();
  readonly #attachments = new Map<number, (frame: SessionFrame) => void>();
  #silence: ReturnType<typeof setTimeout> | undefined;
  #silenceMs = HANDSHAKE_MS;
  #bye: { reconnect: boolean; afterMs: number } | undefined;
  #refusal: ErrorBody | undefined;
  #ended = false;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#socket = new options.WebSocket(options.url, ["everthread.v1"]);
    this.#socket.onopen = () => this.#send({ t: "hello", ...options.hello });
    this.#socket.onmessage = (event: { data: unknown }) => {
      if (typeof event.data === "string") this.#receive(event.data);
    };
    this.#socket.onerror = () => undefined; // `close` follows and says more
    this.#socket.onclose = (event: { code: number; reason: string }) => this.#end(event.code, event.reason);
    this.#hear();
  }

  /** Sends a request and hands its reply to `onReply`. */
  request(frame: { t: string; id: string } & Record<string, unknown>, onReply: ReplyHandler): void {
    if (this.#ended) return onReply(undefined);
    this.#replies.set(frame.id, onReply);
    this.#send(frame);
  }

  /** Nobody waits any more for the reply to the request of this id. */
  forget(id: string): void {
    this.#replies.delete(id);
  }

  /** Sends a frame that has no reply. */
  send(frame: { t: string } & Record<string, unknown>): void {
    if (!this.#ended) this.#send(frame);
  }

  /** Hands the frames of an attachment to `onFrame`. */
  listen(attachment: number, onFrame: (frame: SessionFrame) => void): void {
    this.#attachments.set(attachment, onFrame);
  }

  /** Drops frames of an attachment that are still on their way. */
  unlisten(attachment: number): void {
    this.#attachments.delete(attachment);
  }

  /** Ends the link at once; nothing that arrives later is looked at. */
  close(reason = "closed by the client"): void {
    this.#end(1000, reason);
  }

  #receive(text: string): void {
    if (this.#ended) return;
    this.#hear();
    const frame = parse(text);
    if (!frame) return this.#end(1002, "a frame that is not of Everthread's protocol");
    switch (frame.t) {
      case "ping":
        return this.#send({ t: "pong" });
      case "welcome":
        this.#silenceMs = 2 * frame.heartbeat_ms;
        this.#hear();
        return this.#options.onWelcome(frame);
      case "bye":
        this.#bye = { reconnect: frame.reconnect, afterMs: frame.after_ms };
        return;
      case "reset":
      case "snapshot":
      case "entries":
      case "live":
      case "lag":
      case "presence":
      case "gone":
        this.#attachments.get(frame.attachment)?.(frame);
        return;
      case "sessions":
        return this.#options.onSessions(frame);
      case "receipt":
        return this.#reply(frame.control, frame, frame.stage === "settled");
      case "error":
        if (frame.id === this.#options.hello.id) {
          this.#refusal = frame;
          return this.#end(4400, frame.message);
        }
        if (frame.id !== undefined) this.#reply(frame.id, frame);
        return;
      case "ok":
      case "attached":
      case "history":
        return this.#reply(frame.id, frame);
    }
  }

  #reply(id: string, frame: Reply, isLast = true): void {
    const handler = this.#replies.get(id);
    if (isLast) this.#replies.delete(id);
    handler?.(frame);
  }

  #send(frame: object): void {
    this.#socket.send(JSON.stringify(frame));
  }

  /** A byte came: the watch over silence begins anew. */
  #hear(): void {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#end(4510, "the server is silent"), this.#silenceMs);
  }

  #end(code: number, reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#silence);
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    try {
      this.#socket.close(1000);
    } catch {
      // A socket that never opened may refuse to close.
    }
    const waiting = [...this.#replies.values()];
    this.#replies.clear();
    for (const handler of waiting) handler(undefined);
    this.#options.onEnd(this.#ending(code, reason));
  }

  #ending(code: number, reason: string): Ending {
    if (this.#refusal) {
      const { code: word, message, retryable, after_ms } = this.#refusal;
      const afterMs = after_ms === undefined ? {} : { afterMs: after_ms };
      const number = word === "unauthorized" ? 4401 : word === "forbidden" ? 4403 : 4400;
      return { code: number, reason: message, reconnect: retryable, ...afterMs };
    }
    const final = code >= 4400 && code < 4500;
    if (this.#bye) return { code, reason, ...this.#bye, reconnect: this.#bye.reconnect && !final };
    return { code, reason, reconnect: !final };
  }
}

function parse(text: string): ServerFrame | undefined {
  try {
    const frame = JSON.parse(text) as ServerFrame | null;
    return typeof frame === "object" && frame !== null ? frame : undefined;
  } catch {
    return undefined;
  }
}
