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

test("the back-off grows to its cap and begins anew after a connection that held", () => {
  const backoff = new Backoff();
  const most = () => 1;
  const waits = Array.from({ length: 8 }, () => backoff.next(0, most));
  assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
  assert.equal(backoff.next(60_000, () => 0), 125);
});

test("a ULID sorts by its time and is an id", () => {
  assert.match(ulid(1_763_700_000_000), /^01KAJ[0-9A-HJKMNP-TV-Z]{21}$/);
  assert.ok(ulid(1_763_700_000_000) < ulid(1_763_700_000_001));
});
