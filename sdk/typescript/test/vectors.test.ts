import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { type Entries, InconsistentView, type Message, parseCursor, referenceOf } from "../src/index.js";
import { type Snapshot, View, type ViewJson } from "../src/index.js";
import { Link, type WebSocketLike } from "../src/link.js";
import type { ServerFrame } from "../src/protocol.js";

// From build/test/, where the compiled tests run.
const vectors = new URL("../../../conformance/vectors/", import.meta.url);

function read<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(name, vectors), "utf8")) as T;
}

interface Case {
  name: string;
  start?: Snapshot;
  frames: Entries[];
  results: string[];
  view: ViewJson | { error: string };
  /** References to messages. */
  tree?: { branch: string[]; continuations: string[]; alternatives: string[][]; branch_of: Record<string, string[]> };
}

const references = (messages: Message[]) => messages.map(referenceOf);

function applied(view: View, frame: Entries): string {
  try {
    return view.apply(frame).result;
  } catch (error) {
    if (error instanceof InconsistentView) return "inconsistent";
    throw error;
  }
}

for (const { name, start, frames, results, view: expected, tree } of read<{ cases: Case[] }>("view.json").cases) {
  test(`view: ${name}`, () => {
    const view = new View();
    if (start) view.load(start);
    assert.deepEqual(frames.map((frame) => applied(view, frame)), results);
    if (!("error" in expected)) assert.deepEqual(JSON.parse(JSON.stringify(view)), expected);
    if (!tree) return;
    assert.deepEqual(references(view.branch()), tree.branch);
    assert.deepEqual(references(view.continuations()), tree.continuations);
    assert.deepEqual(view.messages.map((message) => references(view.alternatives(message))), tree.alternatives);
    const runs = view.runs.map((run) => [run.run, references(view.branchOf(run))]);
    assert.deepEqual(Object.fromEntries(runs), tree.branch_of);
    for (const message of view.messages) {
      assert.equal(view.isOnBranch(message), tree.branch.includes(referenceOf(message)));
      assert.ok(view.messages.includes(view.find(referenceOf(message))!));
    }
  });
}

interface Cursors {
  valid: { cursor: string; epoch: string; seq: number }[];
  invalid: string[];
}

test("cursors are read as the server writes them", () => {
  const { valid, invalid } = read<Cursors>("cursor.json");
  for (const { cursor, epoch, seq } of valid) assert.deepEqual(parseCursor(cursor), { epoch, seq }, cursor);
  for (const text of invalid) assert.equal(parseCursor(text), undefined, JSON.stringify(text));
});

/** A socket that the test speaks into. */
class Ear implements WebSocketLike {
  static last: Ear;
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  readonly sent: string[] = [];
  constructor() {
    Ear.last = this;
  }
  send(data: string): void {
    this.sent.push(data);
  }
  close(): void {}
}

/** What a link makes of one frame: who it was handed to, and what was sent for it. */
function heard(frame: ServerFrame): { told: unknown[]; sent: unknown[]; ending: unknown } {
  const told: unknown[] = [];
  const tell = (what: unknown): void => void told.push(what);
  let ending: unknown;
  const link = new Link({
    url: "ws://test",
    WebSocket: Ear,
    hello: { id: "hello" },
    onWelcome: tell,
    onSessions: tell,
    onEnd: (end) => (ending = end),
  });
  const ear = Ear.last;
  const own = "control" in frame && frame.t === "receipt" ? frame.control : "id" in frame ? frame.id : undefined;
  if (own !== undefined && frame.t !== "welcome") link.request({ t: "test", id: own }, tell);
  if ("attachment" in frame && frame.t !== "attached") link.listen(frame.attachment, tell);
  ear.sent.length = 0;
  ear.onmessage?.({ data: JSON.stringify(frame) } as never);
  const sent = ear.sent.map((text) => JSON.parse(text) as unknown);
  // The reply to what is still open when the socket ends is none.
  const before = told.length;
  ear.onclose?.({ code: 1006, reason: "" } as never);
  return { told: told.slice(0, before), sent, ending };
}

for (const [at, frame] of read<{ client: ServerFrame[] }>("server_frames.json").client.entries()) {
  test(`server frame ${at}: ${frame.t} reaches whoever it is for`, () => {
    const { told, sent, ending } = heard(frame);
    const forNobody = frame.t === "ping" || frame.t === "bye" || (frame.t === "error" && frame.id === undefined);
    assert.deepEqual(told, forNobody ? [] : [frame]);
    assert.deepEqual(sent, frame.t === "ping" ? [{ t: "pong" }] : []);
    const { reconnect, afterMs } = ending as { reconnect: boolean; afterMs?: number };
    assert.deepEqual([reconnect, afterMs], frame.t === "bye" ? [frame.reconnect, frame.after_ms] : [true, undefined]);
    if (frame.t !== "snapshot") return;
    const view = new View();
    view.load(frame);
    const { epoch, seq, messages } = frame;
    assert.deepEqual(JSON.parse(JSON.stringify(view)), { epoch, seq, messages, ...frame.state });
  });
}
