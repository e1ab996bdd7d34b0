// What each entry does to a view. Only open things are looked up: an id that is used again after its first owner has
// closed names something new.

import type { Block, Entry, Message, Part, Run, RunEnded } from "./protocol.js";
import { isReadable } from "./readable.js";
import { byteLength, indexAtByte } from "./utf8.js";
import { type Change, InconsistentView, type OpenMessage, type OpenPart, type View } from "./view.js";

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
      return applyDecided(view, change, seq, entry);
  }
}

/** Entries that the server decided, where the block's run does not matter. */
function applyDecided(view: View, change: Change, seq: number, entry: Entry): void {
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
    case "state.set":
      patch(view.values, { [entry.key]: entry.value });
      return;
    case "control.requested": {
      const { control, kind, target } = entry;
      const pending = view.controls.some((c) => c.control === control && c.outcome === undefined);
      if (!pending) view.controls.push({ control, kind, target });
      touchTarget(view, change, "run" in target ? target.run : undefined);
      return;
    }
    case "control.settled": {
      const open = view.controls.findLast((c) => c.control === entry.control && c.outcome === undefined);
      if (!open) return;
      open.outcome = entry.outcome;
      if (entry.reason != null) open.reason = entry.reason;
      if (entry.run != null) open.run = entry.run;
      touchTarget(view, change, entry.run ?? ("run" in open.target ? open.target.run : undefined));
      return;
    }
    case "run.requested": {
      if (view.openRun(entry.run)) return;
      const { run: id, agent, input, parent_run, params } = entry;
      const run: Run = { run: id, agent, status: "requested", input: input ?? [], requested_seq: seq };
      if (parent_run != null) run.parent_run = parent_run;
      if (params != null) run.params = params;
      view.addRun(run);
      change.runs.add(run);
      return;
    }
    case "run.started": {
      const open = view.openRun(entry.run);
      if (!open) return;
      open.run.status = "active";
      open.run.worker = entry.worker;
      open.run.attempt = entry.attempt;
      change.runs.add(open.run);
      return;
    }
    case "run.ended":
      return endRun(view, change, entry);
  }
}

function endRun(view: View, change: Change, entry: RunEnded): void {
  const open = view.openRun(entry.run);
  if (!open) return;
  view.forgetRun(entry.run);
  const status = entry.outcome === "cancelled" ? "cancelled" : "partial";
  for (const message of open.messages.values()) closeMessage(change, message, status);
  const { run } = open;
  run.status = "ended";
  run.outcome = entry.outcome;
  if (entry.reason != null) run.reason = entry.reason;
  if (entry.forced) run.forced = true;
  if (entry.error) run.error = entry.error;
  if (entry.usage) run.usage = entry.usage;
  delete run.step;
  delete run.step_mark;
  change.runs.add(run);
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
  const message: Message = { message: id, run, seq, at, by, role, status: "streaming", parts: [] };
  open.messages.set(id, { message, parts: new Map() });
  view.messages.push(message);
  change.messages.add(message);
}

function closeMessage(change: Change, open: OpenMessage, status: Exclude<Message["status"], "streaming">): void {
  open.message.status = status;
  for (const { part } of open.parts.values()) part.status = status === "complete" ? "done" : "aborted";
  change.messages.add(open.message);
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

/** A control is drawn with the run it is about. */
function touchTarget(view: View, change: Change, id: string | undefined): void {
  const run = id === undefined ? undefined : view.run(id);
  if (run) change.runs.add(run);
}

function patch(target: { [key: string]: unknown }, changes: { [key: string]: unknown }): void {
  for (const [key, value] of Object.entries(changes)) {
    if (value === null) delete target[key];
    // Not an assignment: "__proto__" is a key like any other.
    else Object.defineProperty(target, key, { value, enumerable: true, configurable: true, writable: true });
  }
}
