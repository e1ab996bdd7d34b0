import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { WebSocket } from "ws";
import { Everthread, EverthreadError, type Feed, type SessionSummary, type ViewJson } from "../src/index.js";
import type { WebSocketConstructor } from "../src/index.js";
import { entries, FakeServer, live } from "./fake.js";

const options = { timeout: 10_000 };
const message = (id: string) => ({ type: "message.put", message: id, role: "user", parts: [] });
const summary = (session: string, active_at: number, more: object = {}): SessionSummary => ({
  session,
  active_at,
  meta: {},
  ...more,
});

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

const changed = (feed: Feed) =>
  new Promise<void>((resolve) => {
    const off = feed.on("change", () => (off(), resolve()));
  });
const names = (feed: Feed) => feed.sessions.map(({ session }) => session);

test("a feed is the latest of each session, most recent first, over reconnects", options, async () => {
  const feed = client.watch({ recent: 3 });
  assert.equal(client.watch(), feed);
  const first = await server.peer();
  await first.welcome();
  const watch = await first.next("watch");
  assert.equal(watch["recent"], 3);
  let change = changed(feed);
  first.send({ t: "ok", id: watch["id"] }, { t: "sessions", n: 1, sessions: [summary("a", 1), summary("b", 2)] });
  await change;
  assert.deepEqual([feed.status, names(feed)], ["live", ["b", "a"]]);
  change = changed(feed);
  first.send({ t: "sessions", n: 2, changed: [summary("a", 3, { held: true }), summary("c", 2)], gone: ["b"] });
  await change;
  assert.deepEqual(names(feed), ["a", "c"]);
  assert.equal(feed.get("a")?.held, true);

  first.send({ t: "sessions", n: 4, changed: [summary("x", 9)] }, { t: "sessions", n: 5, changed: [summary("y", 9)] });
  const again = await first.next("watch");
  assert.deepEqual(names(feed), ["a", "c"], "what does not follow is not applied");
  change = changed(feed);
  first.send({ t: "ok", id: again["id"] }, { t: "sessions", n: 1, sessions: [summary("y", 9)] });
  await change;
  assert.deepEqual(names(feed), ["y"]);
  first.drop();

  const second = await server.peer();
  await second.welcome();
  await second.next("watch");
  assert.deepEqual([feed.status, names(feed)], ["offline", ["y"]]);
  change = changed(feed);
  second.send({ t: "sessions", n: 1, sessions: [] });
  await change;
  assert.deepEqual(names(feed), []);
  feed.close();
  await second.next("unwatch");
  assert.notEqual(client.watch(), feed);
});

test("a server without a feed is told of", options, async () => {
  const feed = client.watch();
  const refused = new Promise<EverthreadError>((resolve) => feed.on("error", resolve));
  const peer = await server.peer();
  await peer.welcome();
  const { id } = await peer.next("watch");
  peer.send({ t: "error", id, code: "bad_request", message: "unknown frame", retryable: false, no_side_effects: true });
  assert.equal((await refused).code, "bad_request");
  assert.equal(feed.status, "failed");
});

const isGone = (error: unknown) => error instanceof EverthreadError && error.code === "no_session";

test("a session that is deleted is gone, and what was asked of it fails", options, async () => {
  const stored = new Map<string, ViewJson>();
  const storage = {
    load: (id: string) => stored.get(id),
    save: (id: string, view: ViewJson) => void stored.set(id, view),
    forget: (id: string) => void stored.delete(id),
  };
  const session = client.session("s1", { from: "start", storage, foldMs: 40 });
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  const attach = await peer.attach(1, true, entries(1, message("a")), live(1));
  assert.equal(attach["fold_ms"], 40);
  await open;
  const gone = new Promise((resolve) => session.on("gone", resolve));
  const sent = assert.rejects(session.send("lost"), isGone);
  await peer.next("put");
  peer.send({ t: "gone", attachment: 1, reason: "deleted" });
  assert.equal(await gone, "deleted");
  await sent;
  assert.equal(session.status, "gone");
  await assert.rejects(session.send("later"), isGone);
  await assert.rejects(session.cancel("r1").settled, isGone);

  const anew = session.open();
  assert.equal((await peer.attach(2, true, entries(1, message("b")), live(1)))["from"], "start");
  await anew;
  assert.deepEqual(session.view.messages.map((m) => m.message), ["b"]);
  session.close();
  assert.deepEqual(stored.get("s1")?.messages.map((m) => m.message), ["b"]);
});

test("a session that was deleted while this client was away is gone as well", options, async () => {
  const session = client.session("s1", { from: "start" });
  const open = session.open();
  const first = await server.peer();
  await first.welcome();
  await first.attach(1, true, entries(1, message("a")), live(1));
  await open;
  first.drop();
  const second = await server.peer();
  await second.welcome();
  const gone = new Promise((resolve) => session.on("gone", resolve));
  const { id } = await second.next("attach");
  second.send({ t: "error", id, code: "no_session", message: "no such session", retryable: false, no_side_effects: true });
  assert.equal(await gone, "deleted");
  assert.deepEqual(session.view.messages.map((m) => m.message), ["a"], "it can still be shown");
});

test("a device goes on after what it has read, and again from its own cursor", options, async () => {
  const session = client.session("s1", { from: "device" });
  const open = session.open();
  const first = await server.peer();
  await first.welcome();
  assert.equal((await first.attach(1, true, entries(8, message("h"), message("i")), live(9)))["from"], "device");
  await open;
  assert.deepEqual(session.view.messages.map((m) => m.message), ["h", "i"]);
  assert.deepEqual([session.view.cursor, session.view.more], ["1.9", true]);
  first.drop();
  const second = await server.peer();
  await second.welcome();
  assert.equal((await second.attach(1, true, live(9)))["from"], "1.9");
});

test("a device that has read everything stands at the end", options, async () => {
  const session = client.session("s1", { from: "device" });
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  await peer.attach(1, true, live(9));
  await open;
  assert.equal(session.view.cursor, "1.9");
  const change = new Promise((resolve) => session.on("change", resolve));
  peer.send({ ...entries(10, message("j")), attachment: 1 });
  await change;
  assert.deepEqual(session.view.messages.map((m) => m.message), ["j"]);
});

test("a cursor that was not taken is told of, with the floor", options, async () => {
  const session = client.session("s1", { from: "start" });
  const reasons: string[] = [];
  session.on("reset", (reason) => reasons.push(reason));
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  const state = { session: { meta: {}, closed: false }, runs: [], controls: [], values: {}, events: [] };
  const snapshot = { t: "snapshot", epoch: "1", seq: 90, since: 1, floor: 70, state, messages: [], more: false };
  await peer.attach(1, false, { t: "reset", reason: "retention" }, snapshot, live(90));
  await open;
  assert.deepEqual([reasons, session.view.floor, session.view.seq], [["retention"], 70, 90]);
});
