import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { WebSocket } from "ws";
import { type ControlHandle, Everthread, EverthreadError, type Receipt, type Session } from "../src/index.js";
import type { WebSocketConstructor } from "../src/index.js";
import { entries, FakeServer, live, type Peer } from "./fake.js";

const options = { timeout: 10_000 };
const opened = { type: "session.opened", meta: {} };
const requested = (run: string, more: object = {}) => ({ type: "run.requested", run, agent: "guide", ...more });
const started = (run: string) => ({ type: "run.started", run, worker: "w1", attempt: 1 });
const approvals = [
  { approval: "a1", reason: "send it?", digest: "d1", expires: 9 },
  { approval: "a2", reason: "and that?", expires: 9 },
];

let server: FakeServer;
let client: Everthread;

beforeEach(async () => {
  server = await FakeServer.start();
  const socket = WebSocket as unknown as WebSocketConstructor;
  client = new Everthread({ url: server.url, token: "t", kind: "operator", WebSocket: socket });
});

afterEach(() => {
  client.close();
  server.stop();
});

async function begin(...log: object[]): Promise<{ session: Session; peer: Peer }> {
  const session = client.session("s1", { from: "start" });
  const open = session.open();
  const peer = await server.peer();
  assert.equal((await peer.welcome())["kind"], "operator");
  await peer.attach(1, true, entries(1, opened, ...log), live(1 + log.length));
  await open;
  return { session, peer };
}

async function stagesOf(handle: ControlHandle): Promise<string[]> {
  const stages: string[] = [];
  for await (const receipt of handle.receipts) stages.push(receipt.stage);
  return stages;
}

const has = (code: string) => (e: unknown) => e instanceof EverthreadError && e.code === code;

test("a control is told its receipts, one after the other, to its outcome", options, async () => {
  const { session, peer } = await begin(requested("r"), started("r"));
  const stop = session.cancel("r");
  const seen: Receipt["stage"][] = [];
  stop.on("receipt", (receipt) => seen.push(receipt.stage));
  const asked = await peer.next("control");
  assert.equal(asked["id"], stop.id);
  assert.deepEqual([asked["kind"], asked["target"]], ["cancel", { run: "r" }]);
  const stages = stagesOf(stop);
  peer.receipt(stop.id, "accepted");
  peer.receipt(stop.id, "delivered", { worker: "w1" });
  peer.receipt(stop.id, "settled", { outcome: "applied", run: "r" });
  const settled = await stop.settled;
  assert.deepEqual([settled.outcome, settled.run], ["applied", "r"]);
  assert.deepEqual(await stages, ["accepted", "delivered", "settled"]);
  assert.deepEqual(seen, ["accepted", "delivered", "settled"]);
  assert.deepEqual(await stagesOf(stop), seen, "who comes later reads the same");
});

test("the outcome comes from the log if the connection does not tell it", options, async () => {
  const { session, peer } = await begin(requested("r"));
  const stop = session.cancel();
  await peer.next("control");
  const request = { type: "control.requested", control: stop.id, kind: "cancel", target: { run: "r" }, expires: 9 };
  const ended = { type: "run.ended", run: "r", outcome: "cancelled" };
  const outcome = { type: "control.settled", control: stop.id, outcome: "applied", run: "r" };
  peer.send({ ...entries(3, request, ended, outcome), attachment: 1 });
  assert.equal((await stop.settled).outcome, "applied");
  assert.equal(session.view.run("r")?.outcome, "cancelled");
  assert.equal((await session.settled(stop.id)).by.id, "ann");
});

test("a control without outcome is asked for again on the next connection", options, async () => {
  const { session, peer } = await begin(requested("r"), started("r"));
  const steer = session.steer("shorter, please", { mode: "now", expiresMs: 5000 });
  const first = await peer.next("control");
  peer.receipt(steer.id, "accepted");
  peer.drop();

  const second = await server.peer();
  await second.welcome();
  await second.attach(4, true, live(3));
  const again = await second.next("control");
  assert.deepEqual({ ...again, attachment: 1 }, first);
  assert.deepEqual(again["payload"], { text: "shorter, please" });
  assert.deepEqual([again["mode"], again["expires_ms"]], ["now", 5000]);
  second.receipt(steer.id, "accepted");
  second.receipt(steer.id, "delivered", { worker: "w2" });
  second.receipt(steer.id, "settled", { outcome: "expired", run: "r9" });
  assert.equal((await steer.settled).run, "r9");
  assert.deepEqual(await stagesOf(steer), ["accepted", "delivered", "settled"]);
});

test("a control that the log has settled is not asked for again", options, async () => {
  const { session, peer } = await begin(requested("r"), started("r"));
  const pause = session.pause();
  await peer.next("control");
  peer.drop();

  const second = await server.peer();
  await second.welcome();
  const request = { type: "control.requested", control: pause.id, kind: "pause", target: { run: "r" }, expires: 9 };
  const outcome = { type: "control.settled", control: pause.id, outcome: "applied", run: "r" };
  await second.attach(1, true);
  // Asked as soon as it is attached, before what the log has can be known.
  await second.next("control");
  second.send({ ...entries(4, request, outcome), attachment: 1 });
  assert.equal((await pause.settled).outcome, "applied");
  second.drop();
  const third = await server.peer();
  await third.welcome();
  await third.attach(1, true, live(5));
  const resume = session.resume();
  assert.equal((await third.next("control"))["id"], resume.id, "nothing came before it");
});

test("a request that is refused fails, and ends nothing else", options, async () => {
  const { session, peer } = await begin(requested("r"));
  const stop = session.cancel({ agent: "nobody" });
  const asked = await peer.next("control");
  assert.deepEqual(asked["target"], { agent: "nobody" });
  peer.send({ t: "error", id: stop.id, code: "no_run", message: "…", retryable: false, no_side_effects: true });
  await assert.rejects(stop.settled, has("no_run"));
  await assert.rejects(stagesOf(stop), has("no_run"));
  assert.equal(session.status, "live");
});

test("without a target it is the run at work, not one that waits, nor a sub-agent's", options, async () => {
  const child = requested("child", { parent_run: "r1" });
  const { session, peer } = await begin(requested("r1"), started("r1"), child, started("child"), requested("r2"));
  session.interrupt("no, this", { message: "m7" });
  const asked = await peer.next("control");
  assert.deepEqual(asked["target"], { run: "r1" });
  assert.deepEqual(asked["payload"], { text: "no, this", message: "m7" });
});

test("without a run there is nothing to steer", options, async () => {
  const { session } = await begin();
  await assert.rejects(session.steer("hello").settled, has("no_run"));
  await assert.rejects(session.approve("a1").settled, has("no_approval"));
  session.close();
  await assert.rejects(session.cancel("r").settled, has("closed"));
});

test("an answer names the run and the digest that the view has", options, async () => {
  const suspended = { type: "run.suspended", run: "r", approvals };
  const { session, peer } = await begin(requested("r"), started("r"), suspended);
  assert.equal(session.view.run("r")?.status, "suspended");
  const yes = session.approve("a1", { value: { amount: 3 } });
  const first = await peer.next("control");
  assert.deepEqual([first["kind"], first["target"]], ["answer", { run: "r" }]);
  const payload = { approval: "a1", decision: "approved", value: { amount: 3 }, digest: "d1" };
  assert.deepEqual(first["payload"], payload);
  const bob = { kind: "user", id: "bob" };
  peer.receipt(yes.id, "settled", { outcome: "refused", reason: "already_answered", answered_by: bob });
  const settled = await yes.settled;
  assert.deepEqual([settled.reason, settled.answered_by?.id], ["already_answered", "bob"]);
  session.deny("a2");
  assert.deepEqual((await peer.next("control"))["payload"], { approval: "a2", decision: "denied" });
});

test("a session is taken over and handed back", options, async () => {
  const { session, peer } = await begin();
  const held = session.hold("I know this one");
  const hold = await peer.next("hold");
  assert.equal(hold["reason"], "I know this one");
  peer.send({ ...entries(2, { type: "session.held", reason: "I know this one" }), attachment: 1 });
  peer.send({ t: "ok", id: hold["id"], cursor: "1.2" });
  assert.equal((await held).cursor, "1.2");
  assert.deepEqual(session.view.session.held?.by, { kind: "user", id: "ann" });

  const said = session.send("It is me now.", { role: "operator" });
  const put = await peer.next("put");
  assert.equal((put["entries"] as { role: string }[])[0]?.role, "operator");
  peer.send({ t: "ok", id: put["id"] });
  await said;

  const released = session.release({ run: false });
  const release = await peer.next("release");
  assert.equal(release["run"], false);
  peer.send({ ...entries(3, { type: "session.released" }), attachment: 1 });
  peer.send({ t: "ok", id: release["id"], cursor: "1.3" });
  await released;
  assert.equal(session.view.session.held, undefined);
});

test("a message says what becomes of it while its agent is at work", options, async () => {
  const { session, peer } = await begin(requested("r"), started("r"));
  const sent = session.send("and then?", { whenBusy: "steer" });
  const put = await peer.next("put");
  assert.equal(put["when_busy"], "steer");
  peer.send({ t: "ok", id: put["id"], cursor: "1.5", message: "m", control: "c1" });
  assert.deepEqual(await sent, { message: "m", run: undefined, cursor: "1.5", control: "c1" });
});

test("a refusal that people must lift is told at once", options, async () => {
  const { session, peer } = await begin(requested("r"), started("r"));
  const refusal = { t: "error", message: "…", retryable: true, no_side_effects: true, after_ms: 1 };
  const held = session.hold();
  peer.send({ ...refusal, id: (await peer.next("hold"))["id"], code: "held" });
  await assert.rejects(held, has("held"));
  const sent = session.send("now?", { whenBusy: "reject" });
  peer.send({ ...refusal, id: (await peer.next("put"))["id"], code: "busy" });
  await assert.rejects(sent, has("busy"));
});
