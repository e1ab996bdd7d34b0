import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { type Entries, InconsistentView, parseCursor, type Snapshot, View, type ViewJson } from "../src/index.js";

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
}

function applied(view: View, frame: Entries): string {
  try {
    return view.apply(frame).result;
  } catch (error) {
    if (error instanceof InconsistentView) return "inconsistent";
    throw error;
  }
}

for (const { name, start, frames, results, view: expected } of read<{ cases: Case[] }>("view.json").cases) {
  test(`view: ${name}`, () => {
    const view = new View();
    if (start) view.load(start);
    assert.deepEqual(frames.map((frame) => applied(view, frame)), results);
    if (!("error" in expected)) assert.deepEqual(JSON.parse(JSON.stringify(view)), expected);
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
