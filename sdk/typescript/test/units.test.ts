import assert from "node:assert/strict";
import { test } from "node:test";
import { Backoff } from "../src/backoff.js";
import { ulid } from "../src/index.js";
import { byteLength, indexAtByte } from "../src/utf8.js";

test("byte lengths and boundaries are those of UTF-8", () => {
  for (const text of ["", "abc", "naïve", "日本語", "🧵a🧵", "e\u0301", "mixed ü 語 🧵"]) {
    assert.equal(byteLength(text), Buffer.byteLength(text), text);
    let bytes = 0;
    for (const char of text) {
      assert.equal(text.slice(0, indexAtByte(text, bytes)), Buffer.from(text).subarray(0, bytes).toString());
      for (let inside = 1; inside < Buffer.byteLength(char); inside++) {
        assert.equal(indexAtByte(text, bytes + inside), undefined);
      }
      bytes += Buffer.byteLength(char);
    }
    assert.equal(indexAtByte(text, bytes), text.length);
    assert.equal(indexAtByte(text, bytes + 1), undefined);
  }
});

test("the back-off grows to its cap, also for a server that welcomes and hangs up at once", () => {
  const most = () => 1;
  for (const livedMs of [0, 50, 900]) {
    const backoff = new Backoff();
    const waits = Array.from({ length: 8 }, () => backoff.next(livedMs, 0, most));
    assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    assert.equal(backoff.next(60_000, 0, () => 0), 125);
  }
});

test("connections that are cut every few seconds are made again at once, each time", () => {
  const backoff = new Backoff();
  for (let cut = 0; cut < 20; cut++) assert.equal(backoff.next(4000, 0, () => 1), 250);
  assert.equal(backoff.next(1000, 0, () => 1), 250);
});

test("a server is not asked before the time that it names, within reason, nor at once because it names none", () => {
  const backoff = new Backoff();
  assert.equal(backoff.next(0, 700, () => 1), 700);
  assert.equal(backoff.next(0, 0, () => 1), 500);
  assert.equal(backoff.next(0, 1e12, () => 1), 60_000);
});

test("a ULID sorts by its time and is an id", () => {
  assert.match(ulid(1_763_700_000_000), /^01KAJ[0-9A-HJKMNP-TV-Z]{21}$/);
  assert.ok(ulid(1_763_700_000_000) < ulid(1_763_700_000_001));
});
