import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { type Entries, InconsistentView, type Message, parseCursor, referenceOf } from "../src/index.js";
import { type Snapshot, View, type ViewJson } from "../src/index.js";

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
