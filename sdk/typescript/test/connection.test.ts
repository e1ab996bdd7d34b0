import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { WebSocket } from "ws";
import { Everthread, EverthreadError, type ViewJson, type WebSocketConstructor } from "../src/index.js";
import { entries, FakeServer, live } from "./fake.js";

const options = { timeout: 10_000 };
const by = { kind: "user", id: "ann" };
const opened = { type: "session.opened", meta: { title: "Trip" } };

let server: FakeServer;
let client: Everthread;

beforeEach(async () => {
  server = await FakeServer.start();
  client = new Everthread({ url: server.url, token: "t", WebSocket: WebSocket as unknown as WebSocketConstructor });
});

afterEach(() => {
  client.close();
  server.stop();
});

test("a session goes on from its own cursor on the next connection", options, async () => {
  const session = client.session("s1", { from: "start" });
  const open = session.open();
  const first = await server.peer();
  const hello = await first.welcome();
  assert.equal(hello["token"], "t");
  const attach = await first.attach(1, true, entries(1, opened), live(1));
  assert.equal(attach["from"], "start");
  await open;
  assert.equal(session.status, "live");
  first.drop();

  const second = await server.peer();
  assert.equal(session.status, "offline");
  assert.equal(session.view.session.meta["title"], "Trip", "what was read stays");
  await second.welcome();
  const again = await second.attach(7, true, live(1));
  assert.equal(again["from"], "1.1");
});

test("where there is no WebSocket, opening a session says what to pass", options, async () => {
  const own = Object.getOwnPropertyDescriptor(globalThis, "WebSocket");
  if (own) Object.defineProperty(globalThis, "WebSocket", { value: undefined, configurable: true, writable: true });
  const lone = new Everthread({ url: server.url, token: "t" });
  try {
    await assert.rejects(lone.session("s1").open(), /no WebSocket here.*`ws`/);
  } finally {
    lone.close();
    if (own) Object.defineProperty(globalThis, "WebSocket", own);
  }
});

test("a write without an answer is repeated with the same id", options, async () => {
  const session = client.session("s1");
  void session.open();
  const first = await server.peer();
  await first.welcome();
  await first.attach(1, true, live(0));
  const sent = session.send("hello");
  const put = await first.next("put");
  first.drop();

  const second = await server.peer();
  await second.welcome();
  await second.attach(2, true, live(0));
  const again = await second.next("put");
  assert.deepEqual({ ...again, attachment: 1 }, put);
  assert.equal(again["attachment"], 2);
  second.send({ t: "ok", id: again["id"], cursor: "1.2", message: "m", run: "r", duplicate: true });
  assert.deepEqual(await sent, { message: "m", run: "r", cursor: "1.2", control: undefined });
});

test("a write that was never sent gets its id when it is sent, by the server's clock", options, async () => {
  const session = client.session("s1");
  void session.open();
  const sent = session.send("hello");
  const peer = await server.peer();
  // The server's clock is at the first ULID that can be told by its head.
  await peer.welcome(10_000, 32 ** 9);
  await peer.attach(1, true, live(0));
  const put = await peer.next("put");
  assert.match(String(put["id"]), /^1000000/);
  peer.send({ t: "ok", id: put["id"] });
  await sent;
});

test("a refusal that may pass is tried again, another one is told", options, async () => {
  const session = client.session("s1");
  void session.open();
  const peer = await server.peer();
  await peer.welcome();
  await peer.attach(1, true, live(0));
  const sent = session.send("hello");
  const put = await peer.next("put");
  const error = { t: "error", message: "…", no_side_effects: true };
  peer.send({ ...error, id: put["id"], code: "overloaded", retryable: true, after_ms: 1 });
  const again = await peer.next("put");
  assert.equal(again["id"], put["id"]);
  peer.send({ ...error, id: put["id"], code: "session_closed", retryable: false });
  await assert.rejects(sent, (e) => e instanceof EverthreadError && e.code === "session_closed" && e.noSideEffects);
});

test("a gap attaches again from the own cursor", options, async () => {
  const session = client.session("s1", { from: "start" });
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  await peer.attach(1, true, entries(1, opened), live(1));
  await open;
  const patch = (title: string) => ({ type: "session.updated", patch: { title } });
  peer.send({ ...entries(3, patch("late")), attachment: 1 });
  assert.equal((await peer.next("detach"))["attachment"], 1);
  // Frames of the old attachment that are still on their way must not count.
  peer.send({ ...entries(2, patch("stray")), attachment: 1 });
  const again = await peer.attach(2, true, entries(2, patch("two"), patch("late")), live(3));
  assert.equal(again["from"], "1.1");
  await reached(session, () => session.view.seq === 3 && session.status === "live");
  assert.equal(session.view.session.meta["title"], "late");
});

test("an append that fits nowhere throws the view away", options, async () => {
  const session = client.session("s1", { from: "start" });
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  const run = { type: "run.requested", run: "r", agent: "a" };
  await peer.attach(1, true, entries(1, opened, run), live(2));
  await open;
  const start = { type: "message.start", message: "m", role: "assistant" };
  const part = { type: "part.start", message: "m", part: "p", kind: "text" };
  const append = { type: "part.append", message: "m", part: "p", offset: 5, text: "x" };
  const frame = entries(3, start, part, append);
  peer.send({ ...frame, attachment: 1, blocks: [{ by, at: 1, run: "r", entries: [start, part, append] }] });
  await peer.next("detach");
  const again = await peer.attach(2, true, live(0));
  assert.equal(again["from"], "start");
});

test("a reset replaces the view by the snapshot", options, async () => {
  const stored: ViewJson = JSON.parse(
    '{"epoch":"9","seq":5,"session":{"meta":{"title":"old"},"closed":false},"runs":[],"messages":[],"controls":[],"values":{},"events":[]}',
  ) as ViewJson;
  const saved: ViewJson[] = [];
  const storage = { load: () => stored, save: (_: string, view: ViewJson) => void saved.push(view) };
  const session = client.session("s1", { storage });
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  const state = { session: { meta: { title: "new" }, closed: false }, runs: [], controls: [], values: {}, events: [] };
  const snapshot = { t: "snapshot", epoch: "1", seq: 3, since: 1, floor: 0, state, messages: [], more: false };
  const attach = await peer.attach(1, false, { t: "reset", reason: "epoch" }, snapshot, live(3));
  assert.equal(attach["from"], "9.5");
  await open;
  assert.equal(session.view.session.meta["title"], "new");
  assert.equal(session.view.cursor, "1.3");
  session.close();
  assert.equal(saved.at(-1)?.seq, 3);
});

test("a session that does not exist is told, and the connection lives on", options, async () => {
  const session = client.session("nope");
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  const attach = await peer.next("attach");
  peer.send({ t: "error", id: attach["id"], code: "no_session", message: "…", retryable: false, no_side_effects: true });
  await assert.rejects(open, (e) => e instanceof EverthreadError && e.code === "no_session");
  assert.equal(client.state.phase, "open");
  await assert.rejects(session.send("hello"), EverthreadError);
});

test("a close code of 44xx stops the client", options, async () => {
  const open = client.session("s1").open();
  const peer = await server.peer();
  await peer.next("hello");
  peer.close(4401);
  await assert.rejects(open, (e) => e instanceof EverthreadError && e.code === "unauthorized");
  assert.deepEqual({ ...client.state, reason: "" }, { phase: "stopped", code: 4401, reason: "" });
});

test("a bye says when to come back", options, async () => {
  void client.session("s1").open();
  const peer = await server.peer();
  await peer.welcome();
  await peer.attach(1, true, live(0));
  const before = Date.now();
  peer.send({ t: "bye", code: 4503, reconnect: true, after_ms: 700 });
  peer.close(4503);
  await (await server.peer()).welcome();
  assert.ok(Date.now() - before >= 690);
});

test("a silent server is left", options, async () => {
  void client.session("s1").open();
  const peer = await server.peer();
  await peer.welcome(100);
  const attach = await peer.next("attach");
  assert.ok(attach["id"]);
  peer.send({ t: "ping" });
  await peer.next("pong");
  const next = await server.peer();
  await next.welcome();
  assert.equal((await next.next("attach"))["session"], "s1");
});

function reached(session: { on: (name: "status", listener: () => void) => () => void }, is: () => boolean): Promise<void> {
  return new Promise((resolve) => {
    if (is()) return resolve();
    const off = session.on("status", () => {
      if (!is()) return;
      off();
      resolve();
    });
  });
}

test("an edit names what it replaces, and regenerate and select are repeated like any write", options, async () => {
  const session = client.session("s1");
  void session.open();
  const peer = await server.peer();
  await peer.welcome();
  await peer.attach(1, true, live(0));
  const edited = session.edit({ message: "m1", run: "r1" }, "Hi", { agent: "guide" });
  const put = await peer.next("put");
  assert.deepEqual([put["replaces"], put["agent"]], ["r1/m1", "guide"]);
  peer.send({ t: "ok", id: put["id"], message: "m2", run: "r2", cursor: "1.9" });
  assert.deepEqual(await edited, { message: "m2", run: "r2", cursor: "1.9", control: undefined });

  const again = session.regenerate("r1", { params: { temperature: 1 } });
  const regenerate = await peer.next("regenerate");
  assert.deepEqual([regenerate["run"], regenerate["params"]], ["r1", { temperature: 1 }]);
  const error = { t: "error", message: "later", retryable: true, no_side_effects: true, after_ms: 1 };
  peer.send({ ...error, id: regenerate["id"], code: "overloaded" });
  assert.deepEqual(await peer.next("regenerate"), regenerate);
  peer.send({ t: "ok", id: regenerate["id"], run: "r3", cursor: "1.11" });
  assert.deepEqual(await again, { run: "r3", cursor: "1.11" });

  const selected = session.select("m1");
  const select = await peer.next("select");
  assert.equal(select["message"], "m1");
  peer.send({ t: "ok", id: select["id"], cursor: "1.12" });
  assert.deepEqual(await selected, { cursor: "1.12" });
});
