// Whether an entry is one this release can read. Others, of a later release, are passed over whole.

import type { Entry } from "./protocol.js";

type Check = (value: unknown) => boolean;
type Shape = Record<string, Check>;

const text: Check = (value) => typeof value === "string";
const count: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 0;
const flag: Check = (value) => typeof value === "boolean";
const any: Check = (value) => value !== undefined;
const object: Check = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const maybe = (check: Check): Check => (value) => value === undefined || value === null || check(value);
const word = (...words: string[]): Check => (value) => typeof value === "string" && words.includes(value);
const list = (check: Check): Check => (value) => Array.isArray(value) && value.every(check);
/** May be left out, but not be null. */
const or = (check: Check): Check => (value) => value === undefined || check(value);
const shape = (fields: Shape): Check => (value) => {
  if (!object(value)) return false;
  const read = value as Record<string, unknown>;
  return Object.entries(fields).every(([name, check]) => check(read[name]));
};

const role = word("user", "assistant", "system", "tool", "operator");
const kind = word("text", "reasoning", "tool_call", "tool_output", "file", "source", "data");
const target: Check = (value) => {
  if (!object(value)) return false;
  const [[name, id] = [], ...more] = Object.entries(value as object);
  if (more.length > 0 || name === undefined) return false;
  return name === "all" ? flag(id) : ["run", "input", "agent"].includes(name) && text(id);
};
/** No other fields than these: a reader that passed over one could let in somebody who may not answer. */
const only = (fields: Shape): Check => {
  const known = shape(fields);
  return (value) => known(value) && Object.keys(value as object).every((name) => Object.hasOwn(fields, name));
};
const authorKind = word("user", "agent", "operator", "system");
const author = shape({ kind: authorKind, id: text, device: maybe(text) });
const approval = shape({
  approval: text,
  reason: text,
  digest: maybe(text),
  expires: count,
  who: maybe(only({ kinds: or(list(authorKind)), subjects: or(list(text)) })),
  data: maybe(object),
});

const SHAPES: Record<Entry["type"], Check> = {
  "session.opened": shape({ meta: or(object) }),
  "session.updated": shape({ patch: object }),
  "session.closed": shape({ reason: maybe(text) }),
  "message.put": shape({
    message: text,
    role,
    parts: list(shape({ kind, value: any, attrs: maybe(object) })),
    reply_to: maybe(text),
  }),
  "run.requested": shape({
    run: text,
    agent: text,
    input: or(list(text)),
    parent_run: maybe(text),
    params: maybe(object),
  }),
  "run.started": shape({ run: text, worker: text, attempt: count }),
  "run.returned": shape({ run: text, reason: text }),
  "run.suspended": shape({ run: text, approvals: list(approval) }),
  "approval.settled": shape({
    run: text,
    approval: text,
    verdict: word("approved", "denied", "expired"),
    answered_by: maybe(author),
  }),
  "run.resumed": shape({ run: text }),
  "run.step": shape({ phase: word("start", "end", "reset"), name: maybe(text) }),
  "run.ended": shape({
    run: text,
    outcome: word("completed", "cancelled", "failed", "lost"),
    reason: maybe(text),
    forced: or(flag),
    error: maybe(shape({ code: text, message: text })),
    usage: maybe(object),
  }),
  "message.start": shape({ message: text, role }),
  "message.end": shape({
    message: text,
    status: word("complete", "cancelled", "failed", "partial"),
    usage: maybe(object),
  }),
  "part.start": shape({ message: text, part: text, kind, attrs: maybe(object) }),
  "part.append": shape({ message: text, part: text, offset: count, text }),
  "part.set": shape({ message: text, part: text, value: any }),
  "part.end": shape({ message: text, part: text, status: word("done", "error", "aborted", "denied") }),
  "control.requested": shape({
    control: text,
    kind: word("cancel", "steer", "interrupt", "pause", "resume", "answer"),
    target,
    expires: count,
    mode: maybe(word("now", "next_step", "when_idle")),
    message: maybe(text),
    approval: maybe(text),
  }),
  "control.settled": shape({
    control: text,
    outcome: word("applied", "refused", "expired"),
    reason: maybe(text),
    run: maybe(text),
    answered_by: maybe(author),
  }),
  "session.held": shape({ reason: maybe(text) }),
  "session.released": shape({ reason: maybe(text) }),
  "branch.begun": shape({ after: count }),
  "branch.selected": shape({ through: count }),
  "state.set": shape({ key: text, value: any }),
  event: shape({ name: text, keep: or(word("all", "latest")) }),
};

export function isReadable(entry: Entry): boolean {
  return Object.hasOwn(SHAPES, entry.type) && SHAPES[entry.type](entry);
}
