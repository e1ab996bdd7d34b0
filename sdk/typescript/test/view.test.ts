// What stands in docs/PROTOCOL.md about live control, entry by entry. The golden vectors say the same in full.

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Author, type Change, type Entry, type Run, View } from "../src/index.js";

const ann: Author = { kind: "user", id: "ann" };
const bob: Author = { kind: "operator", id: "bob" };

class Log {
  readonly view = new View();

  add(by: Author, ...entries: object[]): Change {
    const from = this.view.seq + 1;
    const blocks = [{ by, at: from * 10, entries: entries as Entry[] }];
    const applied = this.view.apply({ epoch: "1", since: 1, from, to: from + entries.length - 1, blocks });
    assert.equal(applied.result, "applied");
    return (applied as { change: Change }).change;
  }

  get run(): Run {
    return this.view.run("r")!;
  }
}

function running(): Log {
  const log = new Log();
  log.add(ann, { type: "session.opened" }, { type: "run.requested", run: "r", agent: "guide", input: ["m1"] });
  log.add(ann, { type: "run.started", run: "r", worker: "w1", attempt: 1 });
  return log;
}

const ask = (kind: string, more: object = {}) => ({
  type: "control.requested",
  control: `c-${kind}`,
  kind,
  target: { run: "r" },
  expires: 9,
  ...more,
});
const settle = (kind: string, outcome: string, more: object = {}) => ({
  type: "control.settled",
  control: `c-${kind}`,
  outcome,
  run: "r",
  ...more,
});

test("a run that comes back waits for a worker, and keeps what it wrote", () => {
  const log = running();
  log.add(ann, { type: "run.returned", run: "r", reason: "worker_lost" });
  assert.deepEqual([log.run.status, log.run.worker, log.run.attempt], ["requested", "w1", 1]);
  log.add(ann, { type: "run.started", run: "r", worker: "w2", attempt: 2 });
  assert.deepEqual([log.run.status, log.run.worker, log.run.attempt], ["active", "w2", 2]);
});

test("a run waits for people until each approval has its verdict", () => {
  const log = running();
  const approval = (id: string) => ({ approval: id, reason: "?", expires: 5, schema: null, later: 1, who: { kinds: [] } });
  log.add(ann, { type: "run.suspended", run: "r", approvals: [approval("a"), approval("b")] });
  assert.equal(log.run.status, "suspended");
  const first = { approval: "a", reason: "?", expires: 5, who: {} };
  assert.deepEqual(log.run.approvals?.slice(0, 1), [first]);
  const yes = { type: "approval.settled", run: "r", approval: "a", verdict: "approved", answered_by: bob, value: 3 };
  const change = log.add(bob, yes);
  assert.ok(change.runs.has(log.run));
  const [a, b] = log.run.approvals ?? [];
  assert.deepEqual([a?.verdict, a?.answered_by, a?.value, b?.verdict], ["approved", bob, 3, undefined]);
  const expired = { type: "approval.settled", run: "r", approval: "b", verdict: "expired" };
  log.add(ann, expired, { type: "run.resumed", run: "r" });
  assert.deepEqual([log.run.status, log.run.approvals?.[1]?.verdict], ["requested", "expired"]);
  log.add(ann, { type: "run.suspended", run: "r", approvals: [approval("c")] });
  assert.equal(log.run.approvals?.length, 3, "a second wait adds to the first");
});

test("a steer that is applied adds its message to the run's input, and no other", () => {
  const log = running();
  const change = log.add(bob, ask("steer", { mode: "now", message: "m2" }));
  assert.ok(change.controls.has(log.view.controls[0]!) && change.runs.has(log.run));
  const asked = { control: "c-steer", kind: "steer", target: { run: "r" }, by: bob, mode: "now", message: "m2" };
  assert.deepEqual(log.view.controls[0], { ...asked, requested_seq: 4 });
  log.add(ann, settle("steer", "applied"));
  assert.deepEqual(log.run.input, ["m1", "m2"]);
  log.add(bob, ask("steer", { control: "c-late", message: "m3" }));
  log.add(ann, settle("steer", "refused", { control: "c-late", reason: "a_reason_of_tomorrow" }));
  assert.deepEqual(log.run.input, ["m1", "m2"]);
  assert.equal(log.view.controls[1]?.reason, "a_reason_of_tomorrow");
});

test("pause and resume show in the run once they are applied", () => {
  const log = running();
  log.add(ann, ask("pause"));
  assert.equal(log.run.paused, undefined);
  log.add(ann, settle("pause", "applied"));
  assert.equal(log.run.paused, true);
  log.add(ann, ask("resume"), settle("resume", "applied"));
  assert.equal("paused" in log.run, false);
  log.add(ann, ask("pause", { control: "c-2" }), settle("pause", "applied", { control: "c-2" }));
  log.add(ann, { type: "run.ended", run: "r", outcome: "cancelled" });
  assert.equal("paused" in log.view.runs[0]!, false, "what has ended does not stand still");
});

test("the loser of an answer learns who was first", () => {
  const log = running();
  log.add(ann, ask("answer", { approval: "a" }), settle("answer", "refused", { reason: "already_answered", answered_by: bob }));
  assert.deepEqual(log.view.controls[0]?.answered_by, bob);
  assert.equal(log.view.controls[0]?.approval, "a");
});

test("who holds a session is who wrote it", () => {
  const log = running();
  log.add(bob, { type: "session.held", reason: "mine" });
  assert.deepEqual(log.view.session.held, { by: bob, at: 40, reason: "mine" });
  log.add(ann, { type: "session.released" });
  assert.equal("held" in log.view.session, false);
});

test("a control for an agent or for all touches the runs it is about", () => {
  const log = running();
  assert.ok(log.add(ann, ask("cancel", { target: { agent: "guide" } })).runs.has(log.run));
  assert.ok(log.add(ann, ask("cancel", { control: "c2", target: { all: true } })).runs.has(log.run));
  assert.equal(log.view.controls.length, 2);
});
