// What a client must take without harm: addresses that are none, storage that fails, listeners that end what they hear of,
// things left half-way.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { WebSocket } from "ws";
import { Everthread, EverthreadError, type EverthreadOptions, type Session, type ViewJson } from "../src/index.js";
import type { WebSocketConstructor } from "../src/index.js";
import { FakeServer, live, type Peer } from "./fake.js";

const options = { timeout: 20_000 };
const socket = WebSocket as unknown as WebSocketConstructor;
const has = (code: string) => (e: unknown) => e instanceof EverthreadError && e.code === code;
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

let server: FakeServer;
let client: Everthread;

beforeEach(async () => {
  server = await FakeServer.start();
  make();
});

afterEach(() => {
  mock.timers.reset();
  client.close();
  server.stop();
});

function make(more: EverthreadOptions = {}): void {
  client = new Everthread({ url: server.url, token: "t", WebSocket: socket, ...more });
}

/** The next connection, with session s1 attached. */
async function attached(number = 1): Promise<Peer> {
  const peer = await server.peer();
  await peer.welcome();
  await peer.attach(number, true, live(0));
  return peer;
}

async function begin(): Promise<{ session: Session; peer: Peer }> {
  const session = client.session("s1", { from: "start" });
  const open = session.open();
  const peer = await attached();
  await open;
  return { session, peer };
}

const refusal = (id: unknown, more: object = {}) =>
  ({ t: "error", id, code: "unavailable", message: "…", retryable: true, no_side_effects: true, ...more }) as const;

test("where no WebSocket can be made the client stops and says why, and connects when it is told to", options, async () => {
  let isForbidden = true;
  class Picky extends WebSocket {
    constructor(url: string, protocols: string[]) {
      if (isForbidden) throw new DOMException("An insecure WebSocket connection may not be initiated", "SecurityError");
      super(url, protocols);
    }
  }
  make({ WebSocket: Picky as unknown as WebSocketConstructor });
  const session = client.session("s1");
  const feed = client.watch();
  await assert.rejects(session.open(), (e) => has("cannot_connect")(e) && /SecurityError.*`url`/.test(String(e)));
  assert.deepEqual([client.state.phase, session.status, feed.status], ["stopped", "failed", "failed"]);
  isForbidden = false;
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  await peer.attach(1, true, live(0));
  await open;
  assert.equal((await peer.next("watch"))["t"], "watch");
});

test("an address that is none is told", options, async () => {
  for (const url of ["foo://host", "localhost:7400"]) {
    const lost = new Everthread({ url, WebSocket: socket });
    await assert.rejects(lost.session("s1").open(), has("cannot_connect"));
    lost.close();
  }
  assert.throws(() => new Everthread({ url: "host" }), /option `url`/);
  assert.throws(() => new Everthread({ WebSocket: socket }), /option `url`/);
});

test("a token that never comes is asked for again", options, async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  let asked = 0;
  make({ token: () => new Promise(() => (asked += 1)) });
  client.connect();
  mock.timers.tick(30_000);
  await turn();
  assert.equal(client.state.phase, "waiting");
  mock.timers.tick(250);
  assert.deepEqual([client.state.phase, asked], ["connecting", 2]);
});

test("a listener that disconnects is not connected again", options, async () => {
  for (const phase of ["open", "waiting"] as const) {
    make();
    client.on("state", (state) => state.phase === phase && client.disconnect());
    const session = client.session("s1");
    void session.open();
    const peer = await server.peer();
    await peer.welcome();
    peer.drop();
    await until(client, () => client.state.phase === "idle");
    await turn();
    assert.deepEqual([client.state.phase, session.status], ["idle", "offline"]);
    client.close();
  }
  make();
  const { session, peer } = await begin();
  session.on("status", (status) => status === "offline" && client.close());
  peer.drop();
  await until(client, () => client.state.phase === "idle");
  await turn();
  assert.deepEqual([client.state.phase, session.status], ["idle", "closed"]);
});

test("a frame that is none costs the connection and nothing else", options, async () => {
  const { peer } = await begin();
  peer.raw("null");
  await attached(2);
});

test("a session that is closed while its view is read does not connect", options, async () => {
  let found: (view: undefined) => void = () => undefined;
  const load = () => new Promise<undefined>((resolve) => (found = resolve));
  const session = client.session("s1", { storage: { load, save: () => undefined } });
  const open = session.open();
  session.close();
  await assert.rejects(open, has("closed"));
  found(undefined);
  await turn();
  assert.equal(client.state.phase, "idle");
});

test("a session waits for its stored view, and attaches once", options, async () => {
  client.connect();
  const peer = await server.peer();
  let found: (view: ViewJson) => void = () => undefined;
  const load = () => new Promise<ViewJson>((resolve) => (found = resolve));
  const session = client.session("s1", { storage: { load, save: () => undefined } });
  void session.open();
  await peer.welcome();
  await until(client, () => client.state.phase === "open");
  const state = { session: { meta: {}, closed: false }, runs: [], messages: [], controls: [], values: {}, events: [] };
  found({ epoch: "1", seq: 5, ...state } as ViewJson);
  assert.equal((await peer.attach(1, true, live(5)))["from"], "1.5");
  const sent = session.send("hello");
  const put = await peer.next("put");
  peer.send({ t: "ok", id: put["id"] });
  await sent;
});

test("who leaves before the answer to attach has come is detached", options, async () => {
  client.connect();
  const peer = await server.peer();
  await peer.welcome();
  const session = client.session("s1");
  void session.open();
  const first = await peer.next("attach");
  session.close();
  void session.open();
  const second = await peer.next("attach");
  const answer = { t: "attached", session: "s1", epoch: "1", head: 0, resumed: true };
  peer.send({ ...answer, id: first["id"], attachment: 1 });
  assert.equal((await peer.next("detach"))["attachment"], 1);
  peer.send({ ...answer, id: second["id"], attachment: 2 });
  void session.send("hello").catch(() => undefined);
  assert.equal((await peer.next("put"))["attachment"], 2);
});

test("a session that was closed and opened again goes on over connections", options, async () => {
  const { session, peer } = await begin();
  session.close();
  assert.equal((await peer.next("detach"))["attachment"], 1);
  const open = session.open();
  assert.equal(client.session("s1"), session);
  await peer.attach(2, true, live(0));
  await open;
  peer.drop();
  await attached(3);
});

test("a session that was never opened is forgotten when it is closed", options, () => {
  const session = client.session("s1");
  session.close();
  assert.notEqual(client.session("s1"), session);
});

test("a listener may open a session again that has just failed", options, async () => {
  const session = client.session("s1");
  let again: Promise<void> | undefined;
  session.on("status", (status) => {
    if (status === "failed") again ??= session.open();
  });
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  const attach = await peer.next("attach");
  peer.send({ ...refusal(attach["id"]), code: "forbidden", retryable: false });
  await assert.rejects(open, has("forbidden"));
  await peer.attach(1, true, live(0));
  await again;
  assert.equal(session.status, "live");
});

test("who waits for the outcome of a control is told when the session closes", options, async () => {
  const { session } = await begin();
  const settled = session.settled("c1");
  session.close();
  await assert.rejects(settled, has("closed"));
  await assert.rejects(session.settled("c1"), has("closed"));
});

test("what was asked fails with the reason for which the client was stopped", options, async () => {
  const { session, peer } = await begin();
  const sent = session.send("hello");
  await peer.next("put");
  peer.close(4403);
  await assert.rejects(sent, (e) => e instanceof EverthreadError && e.code === "forbidden" && !e.noSideEffects);
});

test("a storage that throws keeps a session from nothing", options, async () => {
  const fail = () => {
    throw new Error("quota exceeded");
  };
  const session = client.session("s1", { from: "start", storage: { load: fail, save: fail, forget: fail } });
  const open = session.open();
  const peer = await attached();
  await open;
  peer.send({ t: "gone", attachment: 1, reason: "deleted" });
  await new Promise<void>((resolve) => session.on("gone", () => resolve()));
  const second = client.session("s2", { from: "start", storage: { load: fail, save: fail } });
  const opened = second.open();
  const state = { session: { meta: {}, closed: false }, runs: [], controls: [], values: {}, events: [] };
  const snapshot = { t: "snapshot", epoch: "1", seq: 3, since: 1, floor: 0, state, messages: [], more: false };
  await peer.attach(2, true, snapshot, live(3));
  await opened;
  second.close();
  assert.equal(second.status, "closed");
});

test("what is no JSON is refused at once, and what is sent is as it was", options, async () => {
  const session = client.session("s1", { from: "start", presence: true });
  const circle: Record<string, unknown> = {};
  circle["self"] = circle;
  const none = { type: "x-none", circle } as never;
  void session.open();
  await assert.rejects(session.put([none]), TypeError);
  assert.throws(() => session.presence.set(circle as never), TypeError);
  const entry = { type: "x-mark", n: 1 } as const;
  const changing = { ...entry } as { type: "x-mark"; n: number };
  const done = session.put([changing]);
  changing.n = 2;
  const peer = await attached();
  const put = await peer.next("put");
  assert.deepEqual(put["entries"], [entry]);
  peer.send({ t: "ok", id: put["id"] });
  await done;
});

test("what no frame holds is refused here and costs nothing else", options, async () => {
  const { session, peer } = await begin();
  const text = "ü".repeat(163_840);
  await assert.rejects(session.send(text), has("too_large"));
  await assert.rejects(session.steer(text, { target: "r1" }).settled, has("too_large"));
  const sent = session.send("short");
  peer.send({ t: "ok", id: (await peer.next("put"))["id"] });
  await sent;
});

test("a feed that is refused for now is asked for again", options, async () => {
  const feed = client.watch();
  const peer = await server.peer();
  await peer.welcome();
  const { id } = await peer.next("watch");
  peer.send(refusal(id));
  const again = await peer.next("watch");
  const change = new Promise<void>((resolve) => feed.on("change", () => resolve()));
  peer.send({ t: "ok", id: again["id"] }, { t: "sessions", n: 1, sessions: [] });
  await change;
  assert.equal(feed.status, "live");
});

test("a client that is closed leaves no timer behind", options, async () => {
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  const before = timers();
  const { session, peer } = await begin();
  const put = session.send("hello").catch(() => undefined);
  peer.send(refusal((await peer.next("put"))["id"], { after_ms: 30_000 }));
  void client.session("s2").open();
  peer.send(refusal((await peer.next("attach"))["id"], { after_ms: 30_000 }));
  client.watch();
  peer.send(refusal((await peer.next("watch"))["id"], { after_ms: 30_000 }));
  peer.send({ t: "ping" });
  await peer.next("pong");
  assert.ok(timers() > before, "they wait");
  client.close();
  await put;
  assert.equal(session.status, "closed");
  // The sockets' own end.
  await new Promise<void>((resolve) => {
    const look = () => (timers() <= before ? resolve() : void setImmediate(look));
    look();
  });
});

function until(client: Everthread, is: () => boolean): Promise<void> {
  return new Promise((resolve) => {
    const look = () => void (is() && resolve());
    client.on("state", look);
    look();
  });
}
