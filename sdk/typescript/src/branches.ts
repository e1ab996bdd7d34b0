// The messages of a session are a tree, and one way through it is the current branch: see Branches in docs/PROTOCOL.md.
// A place in the tree is a seq, and which stretches of the log follow which stands in the session alone, so nothing here
// needs a message that the view does not hold.

import type { Message, Run, SessionInfo, Stretch } from "./protocol.js";

/** How a message is referred to: `message`, or `run/message`. */
export function referenceOf(message: Pick<Message, "message" | "run">): string {
  return message.run === undefined ? message.message : `${message.run}/${message.message}`;
}

/** The stretches of a log. Number 0 is from its beginning, `n` is `session.branches[n - 1]`. */
export class Stretches {
  readonly #session: SessionInfo;

  constructor(session: SessionInfo) {
    this.#session = session;
  }

  get #branches(): Stretch[] {
    return this.#session.branches ?? [];
  }

  of(place: number): number {
    return firstFrom(this.#branches, (stretch) => stretch.from > place);
  }

  beginOf(number: number): number {
    return this.#branches[number - 1]?.from ?? 0;
  }

  endOf(number: number): number {
    const next = this.#branches[number];
    return next ? next.from - 1 : Infinity;
  }

  afterOf(number: number): number | undefined {
    return this.#branches[number - 1]?.after;
  }

  /** Where the current branch ends. */
  get end(): number {
    return this.#session.tip ?? Infinity;
  }

  /** The pieces of stretches from the beginning to `place`, the last one first. */
  *wayTo(place: number): Generator<[first: number, last: number]> {
    for (let number: number | undefined = this.of(place); number !== undefined; ) {
      yield [this.beginOf(number), place];
      const after = this.afterOf(number);
      const before: number | undefined = after === undefined ? undefined : this.of(after);
      // Always so in what a server wrote.
      if (after === undefined || before === undefined || before >= number) return;
      place = after;
      number = before;
    }
  }

  /** Whether the branch that ends at `end` goes through `place`. */
  goesThrough(end: number, place: number): boolean {
    for (const [first, last] of this.wayTo(end)) if (first <= place && place <= last) return true;
    return false;
  }

  /** The newest stretch whose branch goes through `place`. */
  newestThrough(place: number): number {
    const own = this.of(place);
    const through = new Set([own]);
    let newest = own;
    for (let number = own + 1; number <= this.#branches.length; number++) {
      const after = this.afterOf(number) ?? 0;
      const before = this.of(after);
      if (!through.has(before) || (before === own && place > after)) continue;
      through.add(number);
      newest = number;
    }
    return newest;
  }

  /** `branch.begun` at `seq`. */
  begin(seq: number, after: number): void {
    if (after >= seq) return;
    this.#push(seq, after);
    delete this.#session.tip;
  }

  /** `branch.selected`. */
  select(through: number): void {
    const newest = this.newestThrough(through);
    if (newest < this.#branches.length) this.#session.tip = this.endOf(newest);
    else delete this.#session.tip;
  }

  /** Something begins at `seq`, made by somebody who stands at `place`, or nowhere. */
  grow(seq: number, place: number | undefined): void {
    if (this.#branches.length === 0) return;
    if (place === undefined || this.goesThrough(this.end, place)) {
      const { tip } = this.#session;
      if (tip === undefined) return;
      this.#push(seq, tip);
      delete this.#session.tip;
      return;
    }
    const newest = this.newestThrough(place);
    if (newest === this.#branches.length) return;
    this.#session.tip ??= seq - 1;
    this.#push(seq, this.endOf(newest));
  }

  #push(from: number, after: number): void {
    (this.#session.branches ??= []).push({ from, after });
  }
}

/** The messages of the branch that ends at `end`, oldest first. */
export function messagesTo(stretches: Stretches, messages: Message[], end: number): Message[] {
  const pieces = [...stretches.wayTo(end)].reverse();
  return pieces.flatMap(([first, last]) =>
    messages.slice(
      firstFrom(messages, (message) => message.seq >= first),
      firstFrom(messages, (message) => message.seq > last),
    ),
  );
}

/** The place that `message` goes on from. */
export function placeBefore(stretches: Stretches, messages: Message[], message: Message): number {
  const number = stretches.of(message.seq);
  const first = messages[firstFrom(messages, (other) => other.seq >= stretches.beginOf(number))];
  const isFirst = first === undefined || first.seq >= message.seq;
  return (isFirst ? stretches.afterOf(number) : undefined) ?? message.seq - 1;
}

/** Seq of the message at a place, or the place itself if that message is not held. */
export function heldAt(stretches: Stretches, messages: Message[], place: number): number {
  for (;;) {
    const found = messages[firstFrom(messages, (message) => message.seq > place) - 1];
    if (!found) return place;
    const number = stretches.of(place);
    if (found.seq >= stretches.beginOf(number)) return found.seq;
    const after = stretches.afterOf(number);
    if (after === undefined || after >= place) return place;
    place = after;
  }
}

/** Messages by the seq of the one that they follow, or by the place of that if it is not held. */
export function families(stretches: Stretches, messages: Message[]): Map<number, Message[]> {
  const found = new Map<number, Message[]>();
  for (const message of messages) {
    const place = heldAt(stretches, messages, placeBefore(stretches, messages, message));
    const family = found.get(place);
    if (family) family.push(message);
    else found.set(place, [message]);
  }
  return found;
}

/** Where a run stands in the tree: where it was requested, or where the open run stands that started it. */
export function placeOf(run: Run, open: (id: string) => Run | undefined): number {
  let root = run;
  for (;;) {
    const parent = root.parent_run === undefined ? undefined : open(root.parent_run);
    if (!parent || parent.requested_seq >= root.requested_seq) return root.requested_seq;
    root = parent;
  }
}

/** Index of the first that `is`, in a list where all after it are, too. */
function firstFrom<T>(list: T[], is: (item: T) => boolean): number {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (is(list[middle]!)) high = middle;
    else low = middle + 1;
  }
  return low;
}
