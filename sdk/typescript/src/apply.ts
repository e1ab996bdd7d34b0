// What each entry does to a view. Only open things are looked up: an id that is used again after its first owner has
// closed names something new.

import { applyControl } from "./apply-control.js";
import { applyRun, closeMessage } from "./apply-run.js";
import type { Block, Entry, Message, Part } from "./protocol.js";
import { isReadable } from "./readable.js";
import { byteLength, indexAtByte } from "./utf8.js";
import { type Change, InconsistentView, type OpenPart, type View } from "./view.js";

/** Applies one entry of `block`; `seq` is its first. */
export function applyEntry(view: View, change: Change, block: Block, seq: number, entry: Entry): void {
  if (!isReadable(entry)) return;
  switch (entry.type) {
    case "part.append":
      return append(view, change, block, entry.message, entry.part, entry.offset, entry.text);
    case "part.start":
    case "part.set":
    case "part.end":
      return applyPart(view, change, block, seq, entry);
    case "message.start":
      return startMessage(view, change, block, seq, entry.message, entry.role);
    case "message.end": {
      const open = view.openRun(block.run);
      const message = open?.messages.get(entry.message);
      if (!open || !message) return;
      open.messages.delete(entry.message);
      closeMessage(change, message, entry.status);
      if (entry.usage) message.message.usage = entry.usage;
      return;
    }
    case "message.put": {
      const parts = entry.parts.map(({ kind, value, attrs }, i): Part => {
        const part: Part = { part: String(i + 1), kind, status: "done", value };
        if (attrs != null) part.attrs = attrs;
        return part;
      });
      const { message, role, reply_to } = entry;
      view.grow(seq, view.placeOf(view.openRun(block.run)?.run));
      // A put is the session's own, whoever writes it.
      const put: Message = { message, seq, at: block.at, by: block.by, role, status: "complete", parts };
      if (reply_to != null) put.reply_to = reply_to;
      view.messages.push(put);
      change.messages.add(put);
      return;
    }
    case "run.step":
      return step(view, change, block.run, seq, entry.phase, entry.name);
    case "event": {
      if (entry.keep !== "latest") return;
      view.events = view.events.filter((event) => event.name !== entry.name || event.run !== block.run);
      const run = block.run === undefined ? {} : { run: block.run };
      view.events.push({ name: entry.name, ...run, data: entry.data ?? null, seq });
      return;
    }
    default:
      return applyDecided(view, change, block, seq, entry);
  }
}

/** Entries that the server decided, where the block's run does not matter. */
function applyDecided(view: View, change: Change, block: Block, seq: number, entry: Entry): void {
  switch (entry.type) {
    case "session.opened":
      view.session.meta = entry.meta ?? {};
      return;
    case "session.updated":
      patch(view.session.meta, entry.patch);
      return;
    case "session.closed":
      view.session.closed = true;
      if (entry.reason != null) view.session.closed_reason = entry.reason;
      return;
    case "session.held": {
      const reason = entry.reason == null ? {} : { reason: entry.reason };
      view.session.held = { by: block.by, at: block.at, ...reason };
      return;
    }
    case "session.released":
      delete view.session.held;
      return;
    case "branch.begun":
      view.beginBranch(seq, entry.after);
      change.all = true;
      return;
    case "branch.selected":
      view.selectBranch(entry.through);
      change.all = true;
      return;
    case "state.set":
      patch(view.values, { [entry.key]: entry.value });
      return;
    case "control.requested":
    case "control.settled":
      return applyControl(view, change, block, seq, entry);
    default:
      return applyRun(view, change, seq, entry);
  }
}

function startMessage(
  view: View,
  change: Change,
  block: Block,
  seq: number,
  id: string,
  role: Message["role"],
): void {
  const open = view.openRun(block.run);
  if (!open || block.run === undefined || open.messages.has(id)) return;
  const { at, by, run } = block;
  view.grow(seq, view.placeOf(open.run));
  const message: Message = { message: id, run, seq, at, by, role, status: "streaming", parts: [] };
  open.messages.set(id, { message, parts: new Map() });
  view.messages.push(message);
  change.messages.add(message);
}

type PartEntry = Extract<Entry, { type: "part.start" | "part.set" | "part.end" }>;

function applyPart(view: View, change: Change, block: Block, seq: number, entry: PartEntry): void {
  const message = view.openRun(block.run)?.messages.get(entry.message);
  if (!message) return;
  const open = message.parts.get(entry.part);
  if (entry.type === "part.start") {
    if (open) return;
    const { part: id, kind, attrs } = entry;
    const part: Part = { part: id, kind, status: "open", value: "", seq };
    if (attrs != null) part.attrs = attrs;
    message.message.parts.push(part);
    message.parts.set(id, { part, bytes: 0 });
  } else if (open && entry.type === "part.set") {
    open.part.value = entry.value;
    open.bytes = typeof entry.value === "string" ? byteLength(entry.value) : 0;
  } else if (open && entry.type === "part.end") {
    open.part.status = entry.status;
    open.part.value = entry.value ?? open.part.value;
    message.parts.delete(entry.part);
  }
  change.messages.add(message.message);
}

function append(
  view: View,
  change: Change,
  block: Block,
  messageId: string,
  partId: string,
  offset: number,
  text: string,
): void {
  const message = view.openRun(block.run)?.messages.get(messageId);
  const open: OpenPart | undefined = message?.parts.get(partId);
  if (!message || !open || typeof open.part.value !== "string") return;
  if (offset === open.bytes) {
    open.part.value += text;
  } else {
    const index = indexAtByte(open.part.value, offset);
    if (index === undefined) {
      throw new InconsistentView(`byte ${offset} is no position in a part of ${open.bytes} bytes`);
    }
    open.part.value = open.part.value.slice(0, index) + text;
  }
  open.bytes = offset + byteLength(text);
  change.messages.add(message.message);
}

function step(
  view: View,
  change: Change,
  id: string | undefined,
  seq: number,
  phase: "start" | "end" | "reset",
  name: string | undefined,
): void {
  const run = view.openRun(id)?.run;
  if (!run) return;
  change.runs.add(run);
  if (phase === "start") {
    run.step_mark = seq;
    if (name != null) run.step = name;
    else delete run.step;
  } else if (phase === "end") {
    delete run.step;
  } else {
    const mark = run.step_mark ?? 0;
    view.messages = view.messages.filter((message) => message.run !== id || message.seq <= mark);
    for (const message of view.messages) {
      if (message.run === id) message.parts = message.parts.filter((part) => (part.seq ?? 0) <= mark);
    }
    view.index();
    change.all = true;
  }
}

function patch(target: { [key: string]: unknown }, changes: { [key: string]: unknown }): void {
  for (const [key, value] of Object.entries(changes)) {
    if (value === null) delete target[key];
    // Not an assignment: "__proto__" is a key like any other.
    else Object.defineProperty(target, key, { value, enumerable: true, configurable: true, writable: true });
  }
}
