// The session as people see it, built by applying frames. Entries that refer to something unknown or closed are ignored,
// so that a view made from a snapshot that left old things out goes on the same way.
//
// Invariant: the view after a log is the same for every way of cutting and folding that log, and from every cursor.

import { applyEntry } from "./apply.js";
import { families, heldAt, messagesTo, placeBefore, placeOf, referenceOf, Stretches } from "./branches.js";
import type { Entries, LatestEvent, Message, Run, SessionInfo, Snapshot, ViewJson, ViewState } from "./protocol.js";
import type { Control, JsonObject, Part } from "./protocol.js";
import { byteLength } from "./utf8.js";

export interface OpenPart {
  part: Part;
  /** UTF-8 length of the value, while that is text: an append at this offset needs no search. */
  bytes: number;
}

export interface OpenMessage {
  message: Message;
  parts: Map<string, OpenPart>;
}

export interface OpenRun {
  run: Run;
  messages: Map<string, OpenMessage>;
}

/** What a frame changed, so that a page needs to draw no more than that. */
export interface Change {
  /** Everything: the view was replaced, older things came or went, or another branch is current. */
  all: boolean;
  messages: Set<Message>;
  runs: Set<Run>;
  controls: Set<Control>;
}

/** A change of nothing yet, or of everything. */
export function noChange(all = false): Change {
  return { all, messages: new Set(), runs: new Set(), controls: new Set() };
}

export type Applied = { result: "applied"; change: Change } | { result: "duplicate" } | { result: "gap" };

/** View and log differ: throw the view away and attach without a cursor. */
export class InconsistentView extends Error {}

export class View implements ViewJson {
  epoch = "0";
  seq = 0;
  session: SessionInfo = { meta: {}, closed: false };
  runs: Run[] = [];
  messages: Message[] = [];
  controls: Control[] = [];
  values: JsonObject = {};
  /** By seq: a fold keeps only the last event of each name and run, so no other order survives it. */
  events: LatestEvent[] = [];
  /** Whether there are older messages than these: see `Session.loadOlder`. */
  more = false;
  /** The first seq of the log that is kept, as far as is known: what came before was dropped. */
  floor = 1;

  /** What has not ended, by run and id, so that an append costs a few look-ups. */
  readonly #open = new Map<string, OpenRun>();
  /** Messages by the place that they follow. */
  #families: Map<number, Message[]> | undefined;

  static from(json: ViewJson & { more?: boolean }): View {
    const view = new View();
    view.#replace(json.epoch, json.seq, json, json.messages, json.more ?? false);
    return view;
  }

  get cursor(): string {
    return `${this.epoch}.${this.seq}`;
  }

  /** Whether anything was applied, so that `cursor` means something. */
  get begun(): boolean {
    return this.epoch !== "0";
  }

  /** The newest run of that id. */
  run(id: string): Run | undefined {
    return this.#open.get(id)?.run ?? this.runs.findLast((run) => run.run === id);
  }

  /** The newest message of a reference: `message` or `run/message`. */
  find(reference: string): Message | undefined {
    return this.messages.findLast((message) => referenceOf(message) === reference);
  }

  /** The messages of the current branch, oldest first, as far as they are held: what a page shows. */
  branch(): Message[] {
    return messagesTo(this.#stretches, this.messages, this.#stretches.end);
  }

  /** Whether a run stands on the current branch. What it has written may stand on others. */
  isRunOnBranch(run: Run): boolean {
    return this.#stretches.goesThrough(this.#stretches.end, placeOf(run, (id) => this.openRun(id)?.run));
  }

  /** Whether a message is on the current branch. */
  isOnBranch(message: Message): boolean {
    return this.#stretches.goesThrough(this.#stretches.end, message.seq);
  }

  /** The messages that a run works on: the current branch if it stands there, else its own. */
  branchOf(run: Run): Message[] {
    const stretches = this.#stretches;
    const place = placeOf(run, (id) => this.openRun(id)?.run);
    if (stretches.goesThrough(stretches.end, place)) return this.branch();
    return messagesTo(stretches, this.messages, stretches.endOf(stretches.newestThrough(place)));
  }

  /** The messages that follow the same one as `message` does, itself among them, oldest first, as far as they are held. */
  alternatives(message: Message): Message[] {
    // Without branches nothing has any.
    if (!this.session.branches) return [message];
    const place = placeBefore(this.#stretches, this.messages, message);
    return this.#following(heldAt(this.#stretches, this.messages, place));
  }

  /** The messages of other branches that follow the last one of the current branch, whose successor has not begun. */
  continuations(): Message[] {
    const last = this.session.branches ? this.branch().at(-1) : undefined;
    return last ? this.#following(last.seq) : [];
  }

  openRun(id: string | undefined): OpenRun | undefined {
    return id === undefined ? undefined : this.#open.get(id);
  }

  openRuns(): Run[] {
    return [...this.#open.values()].map((open) => open.run);
  }

  addRun(run: Run): void {
    this.runs.push(run);
    this.#open.set(run.run, { run, messages: new Map() });
  }

  forgetRun(id: string): void {
    this.#open.delete(id);
  }

  /** Applies an `entries` frame. After an exception the view is of no use any more. */
  apply(frame: Entries): Applied {
    const sameLog = frame.epoch === this.epoch || frame.since > this.seq;
    const next = this.seq + 1;
    if (!sameLog || frame.from > next || next > frame.to) {
      // A later epoch that ends before the view's seq means that the view holds a tail which the log lost.
      const duplicate = frame.to <= this.seq && BigInt(frame.epoch) <= BigInt(this.epoch);
      return { result: duplicate ? "duplicate" : "gap" };
    }
    const change = noChange();
    this.#families = undefined;
    for (const block of frame.blocks) {
      const from = block.from ?? frame.from;
      block.entries.forEach((entry, i) => {
        const [first, last] = block.spans?.[i] ?? [from + i, from + i];
        // What ends after the cursor is applied even if it began before it: appends say where they belong.
        if (last > this.seq) applyEntry(this, change, block, first, entry);
      });
    }
    this.epoch = frame.epoch;
    this.seq = frame.to;
    return { result: "applied", change };
  }

  /** Becomes what a `snapshot` frame describes. */
  load(snapshot: Snapshot): void {
    this.#replace(snapshot.epoch, snapshot.seq, snapshot.state, snapshot.messages, snapshot.more);
    this.floor = snapshot.floor;
  }

  /** Begins at a place in the log without what came before it. */
  standAt(epoch: string, seq: number): void {
    this.epoch = epoch;
    this.seq = seq;
    this.more = seq > 0;
  }

  /** This session at the same place with other messages: what a page of its past shows. */
  withMessages(messages: Message[], more: boolean): View {
    const { session, epoch, seq } = this;
    const state: ViewState = { session, runs: [], controls: [], values: {}, events: [] };
    const view = new View();
    view.#replace(epoch, seq, state, messages, more);
    view.floor = this.floor;
    return view;
  }

  /** Puts a page of history before what is here. */
  prepend(messages: Message[], more: boolean): void {
    const first = this.messages[0]?.seq ?? Infinity;
    this.#families = undefined;
    this.messages.unshift(...messages.filter((message) => message.seq < first));
    this.more = more;
  }

  /** Something begins at `seq`, made by somebody who stands at `place`, or nowhere. */
  grow(seq: number, place: number | undefined): void {
    this.#stretches.grow(seq, place);
  }

  beginBranch(seq: number, after: number): void {
    this.#stretches.begin(seq, after);
  }

  selectBranch(through: number): void {
    this.#stretches.select(through);
  }

  placeOf(run: Run | undefined): number | undefined {
    return run && placeOf(run, (id) => this.openRun(id)?.run);
  }

  /** Where the message of a control without outcome stands that is among `input`. */
  placeOfInput(input: string[]): number | undefined {
    const carries = (c: Control) => c.outcome === undefined && c.message !== undefined && input.includes(c.message);
    return this.controls.findLast(carries)?.requested_seq;
  }

  get #stretches(): Stretches {
    return new Stretches(this.session);
  }

  #following(place: number): Message[] {
    // One walk for all, until something changes: a page asks for each message it shows.
    this.#families ??= families(this.#stretches, this.messages);
    return this.#families.get(place) ?? [];
  }

  toJSON(): ViewJson {
    const { epoch, seq, session, runs, messages, controls, values, events } = this;
    return { epoch, seq, session, runs, messages, controls, values, events };
  }

  #replace(epoch: string, seq: number, state: ViewState, messages: Message[], more: boolean): void {
    this.epoch = epoch;
    this.seq = seq;
    this.session = state.session;
    this.runs = state.runs;
    this.controls = state.controls;
    this.values = state.values;
    this.events = state.events;
    this.messages = messages;
    this.more = more;
    this.#families = undefined;
    this.index();
  }

  /** Rebuilds the index of open things from the lists. */
  index(): void {
    this.#open.clear();
    for (const run of this.runs) {
      if (run.status !== "ended") this.#open.set(run.run, { run, messages: new Map() });
    }
    for (const message of this.messages) {
      const open = this.openRun(message.run);
      if (!open || message.status !== "streaming") continue;
      const parts = message.parts.filter((part) => part.status === "open");
      const opened = parts.map((part): [string, OpenPart] => [
        part.part,
        { part, bytes: typeof part.value === "string" ? byteLength(part.value) : 0 },
      ]);
      open.messages.set(message.message, { message, parts: new Map(opened) });
    }
  }
}
