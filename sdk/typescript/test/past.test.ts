// Reading far back: pages of history from a log that the test makes up.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Past, type Message, View } from "../src/index.js";
import { messageAt, type Read, searchBack } from "../src/past.js";

const FIRST_AT = 1_000_000;

function message(seq: number): Message {
  const by = { kind: "user", id: "ann" } as const;
  const parts = [{ part: "1", kind: "text", status: "done", value: `words ${seq}` } as const];
  return { message: `m${seq}`, seq, at: FIRST_AT + seq, by, role: "user", status: "complete", parts };
}

/** A server with messages at these seqs, and a view of the last `recent` of them. */
function log(seqs: number[], recent: number, head = seqs.at(-1)!): { read: Read; view: View; reads: number[] } {
  const all = seqs.map(message);
  const reads: number[] = [];
  const view = new View();
  view.standAt("1", head);
  view.prepend(all.slice(-recent), recent < all.length);
  const read: Read = ({ before = Infinity, limit = 50 }) => {
    reads.push(limit);
    const older = all.filter((m) => m.seq < before);
    return Promise.resolve({ messages: older.slice(-limit), more: older.length > limit });
  };
  return { read, view, reads };
}

/** Seqs with gaps of every size: 1, where only people talk, to thousands, where an answer is long. */
function uneven(count: number): number[] {
  const seqs: number[] = [];
  let seq = 2;
  for (let i = 0; i < count; i++) {
    seqs.push(seq);
    seq += i % 400 < 250 ? 1 : i % 7 === 0 ? 9_000 : 1 + (i % 97);
  }
  return seqs;
}

const seqsOf = (past: Past) => past.messages.map((m) => m.seq);

test("a place far back is read with what is around it, and on to the view without a hole", async () => {
  const seqs = uneven(3_000);
  for (const place of [0, 1, 2, 3, seqs[250]! + 1, seqs[1_500]!, seqs[1_501]! - 1, seqs.at(-60)!, seqs.at(-1)!]) {
    const { read, view, reads } = log(seqs, 50);
    const past = new Past(read, () => view);
    await past.goTo(place);
    const target = seqs.findLast((seq) => seq <= place) ?? seqs[0]!;
    assert.ok(seqsOf(past).includes(target), `around ${place}`);
    while ((await past.newer()) > 0);
    assert.ok(past.meetsView);
    const upTo = (seq: number) => seqs.filter((s) => s >= past.messages[0]!.seq && s < seq);
    assert.deepEqual(seqsOf(past).filter((seq) => seq < view.messages[0]!.seq), upTo(view.messages[0]!.seq));
    while (await past.older());
    assert.equal(past.more, false);
    assert.equal(seqsOf(past)[0], seqs[0]);
    assert.ok(reads.length < 250, `${reads.length} pages`);
  }
});

test("messages at every seq of the log are as good as any", async () => {
  const { read, view } = log(Array.from({ length: 1_000 }, (_, i) => i + 1), 50);
  const past = new Past(read, () => view);
  await past.goTo(100);
  assert.ok(!past.meetsView);
  while ((await past.newer()) > 0);
  view.prepend(past.messages, past.more);
  assert.deepEqual(view.messages.map((m) => m.seq), Array.from({ length: 950 }, (_, i) => i + 51));
});

test("a message is found by its date with few reads", async () => {
  const seqs = uneven(3_000);
  for (const place of [0, 1, 777, 2_998, 2_999]) {
    const { read, view, reads } = log(seqs, 50);
    const found = await messageAt(read, view.seq, FIRST_AT + seqs[place]!);
    assert.equal(found?.seq, seqs[place]);
    assert.ok(reads.length < 25, `${reads.length} reads`);
  }
  const { read, view } = log(seqs, 50);
  assert.equal(await messageAt(read, view.seq, FIRST_AT), undefined);
});

test("a search goes back as far as somebody reads on", async () => {
  const { read, reads } = log(uneven(1_000), 50);
  const found: number[] = [];
  for await (const page of searchBack(read, (m) => m.seq === 2 || m.seq === 251)) {
    found.push(...page.found.map((m) => m.seq));
    if (found.length === 2) break;
  }
  assert.deepEqual(found, [251, 2]);
  assert.equal(reads.length, 5);
});
