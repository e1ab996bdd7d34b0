// A stretch of a session's messages somewhere in its past, read in pages and growing both ways, until it meets the view.
//
// Invariant: `messages` are in the order of the log, without holes.

import type { Message } from "./protocol.js";
import type { View } from "./view.js";

/** As many messages as a page of history has at most. */
const PAGE = 200;
/** Messages that are read around a place. */
const AROUND = 50;
/** How far on in the log the next page is looked for at first. */
const STEP = 1_000;

/** Reads a page of history. */
export type Read = (page: { before?: number; limit?: number }) => Promise<{ messages: Message[]; more: boolean }>;

export class Past {
  messages: Message[] = [];
  /** Whether there are older messages than these. */
  more = false;
  readonly #read: Read;
  readonly #view: () => View;
  /** Up to here everything is known. */
  #reached = 0;
  #step = STEP;

  /** Made by the session. */
  constructor(read: Read, view: () => View) {
    this.#read = read;
    this.#view = view;
  }

  /** Whether the view goes on where these messages end, so that there is nothing between them. */
  get meetsView(): boolean {
    const { seq, messages } = this.#view();
    return this.#reached >= (messages[0]?.seq ?? seq + 1) - 1;
  }

  /** Reads the message at `seq`, or the last one before it, and what is around it. */
  async goTo(seq: number): Promise<void> {
    const page = await this.#read({ before: seq + 1, limit: AROUND });
    this.messages = page.messages;
    this.more = page.more;
    this.#reached = seq;
    this.#step = STEP;
    await this.newer();
  }

  /** Reads a page of older messages; how many came. */
  async older(limit = AROUND): Promise<number> {
    const before = this.messages[0]?.seq;
    if (before === undefined || !this.more) return 0;
    const page = await this.#read({ before, limit });
    // Somebody else was quicker.
    if (this.messages[0]?.seq !== before) return 0;
    this.messages = [...page.messages, ...this.messages];
    this.more = page.more;
    return page.messages.length;
  }

  /**
   * Reads on; how many came, none only if there are none before the end of the log. History is read backwards, so the place to
   * read back from has to be guessed: near enough that the page reaches back to what is here.
   */
  async newer(): Promise<number> {
    for (;;) {
      const from = this.#reached;
      const { seq: head, messages } = this.#view();
      // What is in the view need not be read.
      const end = (messages[0]?.seq ?? head + 1) - 1;
      if (from >= end) return 0;
      const to = Math.min(end, from + this.#step);
      const page = await this.#read({ before: to + 1, limit: PAGE });
      if (this.#reached !== from) return 0;
      const isWhole = !page.more || (page.messages[0]?.seq ?? 0) <= from + 1 || to - from <= PAGE;
      if (!isWhole) {
        // There may be others between these and those that are here. Of so few seqs none is left out.
        this.#step = Math.max(PAGE, Math.floor((to - from) / 8));
        continue;
      }
      const more = page.messages.filter((message) => message.seq > from);
      this.#reached = to;
      if (more.length < PAGE / 4) this.#step *= 4;
      if (more.length === 0) continue;
      this.messages = [...this.messages, ...more];
      return more.length;
    }
  }
}

/** The newest message that began by `time`, found with a few small pages. */
export async function messageAt(read: Read, head: number, time: number): Promise<Message | undefined> {
  let found: Message | undefined;
  let low = 1;
  let high = head;
  while (low <= high) {
    const middle = Math.floor((low + high) / 2);
    const message = (await read({ before: middle + 1, limit: 1 })).messages.at(-1);
    if (message && message.at > time) {
      high = message.seq - 1;
    } else {
      if (message) found = message;
      low = middle + 1;
    }
  }
  return found;
}

/** What a search has found so far on its way back. */
export interface Searched {
  /** Of this page, newest first. */
  found: Message[];
  /** When the oldest message was written that was looked at. */
  at: number | undefined;
}

/** Looks for messages from the newest back, page by page, for as long as somebody reads on. */
export async function* searchBack(
  read: Read,
  matches: (message: Message) => boolean,
): AsyncGenerator<Searched, void, undefined> {
  let before: number | undefined;
  for (;;) {
    const page = await read({ limit: PAGE, ...(before === undefined ? {} : { before }) });
    const first = page.messages[0];
    yield { found: page.messages.filter(matches).reverse(), at: first?.at };
    if (!page.more || !first) return;
    before = first.seq;
  }
}
