// What is asked for while the store is gone is done when it is back, once.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, mock, test } from "node:test";
import { WebSocket } from "ws";
import { Everthread, EverthreadError, type ServerFrame, type Session, type WebSocketConstructor } from "../src/index.js";
import { FakeServer, live, type Peer } from "./fake.js";
import { Redis } from "./redis.js";
import { Server } from "./server.js";

const options = { timeout: 20_000 };
const socket = WebSocket as unknown as WebSocketConstructor;
const has = (code: string, noSideEffects: boolean) => (e: unknown) =>
  e instanceof EverthreadError && e.code === code && e.noSideEffects === noSideEffects;

let server: FakeServer;
let client: Everthread;
/** By how much the clock that measures is ahead. */
let skewMs = 0;

beforeEach(async () => {
  skewMs = 0;
  const now = performance.now.bind(performance);
  mock.method(performance, "now", () => now() + skewMs);
  server = await FakeServer.start();
});

afterEach(() => {
  mock.restoreAll();
  client.close();
  server.stop();
});

/** A session on its first connection. */
async function begin(more: { retryForMs?: number } = {}): Promise<{ session: Session; peer: Peer }> {
  client = new Everthread({ url: server.url, token: "t", WebSocket: socket, ...more });
  const session = client.session("s1", { from: "start" });
  void session.open();
  return { session, peer: await next() };
}

/** The next connection, welcomed and attached. */
async function next(): Promise<Peer> {
  const peer = await server.peer();
  await peer.welcome();
  await peer.attach(1, true, live(0));
  return peer;
}

/** The client has read everything it was sent so far. */
async function taken(peer: Peer): Promise<void> {
  peer.send({ t: "ping" });
  await peer.next("pong");
}

const refusal = (id: unknown, more: object = {}) =>
  ({ t: "error", id, code: "unavailable", message: "…", retryable: true, no_side_effects: true, ...more }) as const;

test("a refusal is tried again for a minute, and then told", options, async () => {
  const { session, peer } = await begin();
  const gaveUp = assert.rejects(session.send("hello"), has("unavailable", true));
  for (const elapsedMs of [20_000, 20_000, 20_000, 0]) {
    peer.send(refusal((await peer.next("put"))["id"]));
    await taken(peer);
    skewMs += elapsedMs;
  }
  await gaveUp;
});

test("a client that is told not to tries nothing again", options, async () => {
  const { session, peer } = await begin({ retryForMs: 0 });
  const sent = session.send("hello");
  peer.send(refusal((await peer.next("put"))["id"]));
  await assert.rejects(sent, has("unavailable", true));
});

test("a message from a tunnel of three minutes is not given up at its end", options, async () => {
  const { session, peer } = await begin();
  const sent = session.send("hello");
  const { id } = await peer.next("put");
  peer.drop();
  const second = await server.peer();
  skewMs += 180_000;
  await second.welcome();
  await second.attach(1, true, live(0));
  second.send(refusal((await second.next("put"))["id"]));
  assert.equal((await second.next("put"))["id"], id);
  second.send({ t: "ok", id, cursor: "1.1" });
  assert.equal((await sent).cursor, "1.1");
});

test("who gives up on what may have been written says so", options, async () => {
  const { session, peer } = await begin({ retryForMs: 0 });
  const sent = session.send("hello");
  await peer.next("put");
  peer.drop();
  const second = await next();
  second.send(refusal((await second.next("put"))["id"]));
  await assert.rejects(sent, has("unavailable", false));

  const late = session.send("hello again");
  await second.next("put");
  second.drop();
  const third = await next();
  third.send(refusal((await third.next("put"))["id"], { code: "too_old", retryable: false }));
  await assert.rejects(late, has("too_old", false));
});

test("a later message does not overtake one that was refused", options, async () => {
  const { session, peer } = await begin();
  const one = session.send("one", { message: "m1" });
  const { id } = await peer.next("put");
  peer.send(refusal(id));
  await taken(peer);
  const two = session.send("two", { message: "m2" });
  const held = session.hold();
  // What is no put goes by.
  const hold = await peer.next("hold");
  peer.send({ t: "ok", id: hold["id"], cursor: "1.1" });
  await held;
  assert.equal((await peer.next("put"))["id"], id);
  peer.send({ t: "ok", id, message: "m1" });
  assert.equal((await one).message, "m1");
  const second = await peer.next("put");
  assert.equal((second["entries"] as { message: string }[])[0]?.message, "m2");
  peer.send({ t: "ok", id: second["id"], message: "m2" });
  assert.equal((await two).message, "m2");
});

test("a control that stands in the log is asked for until it has its outcome", options, async () => {
  const { session, peer } = await begin({ retryForMs: 0 });
  const stop = session.cancel("r");
  await peer.next("control");
  peer.receipt(stop.id, "accepted");
  peer.drop();
  const second = await next();
  await second.next("control");
  second.send(refusal(stop.id));
  await second.next("control");
  second.receipt(stop.id, "settled", { outcome: "applied" });
  assert.equal((await stop.settled).outcome, "applied");
});

const bin = process.env["EVERTHREAD_BIN"];
if (bin !== undefined) describeOutage(bin);

/** So often the client of before this test asked at most. */
const REFUSALS = 7;

function describeOutage(bin: string): void {
  let redis: Redis;
  let node: Server;

  before(async () => {
    redis = await Redis.start();
    node = await Server.start(bin, ["--redis", redis.url]);
  });

  after(async () => {
    await node?.stop();
    await redis?.stop();
  });

  test("a message, a cancel and a hold outlast a store that is gone for as long as a failover takes", { timeout: 120_000 }, async () => {
    const refused = new Map<string, number>();
    let told: () => void = () => undefined;
    const watched = watch((frame) => {
      if (frame.t !== "error" || frame.id === undefined) return;
      refused.set(frame.id, (refused.get(frame.id) ?? 0) + 1);
      told();
    });
    client = new Everthread({ url: node.url, token: await node.token(), subject: "ann", WebSocket: watched });
    const { session: id } = await client.http.createSession({});
    const ann = client.session(id, { from: "start" });
    await ann.open();
    // Nobody serves this agent: the run waits.
    const { run } = await ann.send("one", { agent: "nobody" });

    await redis.kill();
    const message = ann.send("two");
    const stop = ann.cancel(run);
    const held = ann.hold();
    const answers = Promise.all([message, stop.settled, held]);
    const early = answers.then(() => assert.fail("it was answered without a store"));
    const often = () => [...refused.values()].filter((times) => times >= REFUSALS).length === 3;
    await Promise.race([early, until(often, (wake) => (told = wake))]);
    await redis.run();

    const [two, settled] = await answers;
    assert.equal(settled.outcome, "applied");
    await until(
      () => ann.view.session.held !== undefined && ann.view.messages.length === 2,
      (wake) => ann.on("change", wake),
    );
    const log: { type: string; message?: string; control?: string }[] = [];
    for await (const line of client.http.export(id)) {
      if ("blocks" in line) for (const { entries } of line.blocks) log.push(...(entries as typeof log));
    }
    const times = (is: (entry: (typeof log)[number]) => boolean) => log.filter(is).length;
    assert.equal(times(({ type, message }) => type === "message.put" && message === two.message), 1);
    assert.equal(times(({ type }) => type === "message.put"), 2);
    assert.equal(times(({ type, control }) => type === "control.requested" && control === stop.id), 1);
    assert.equal(times(({ type, control }) => type === "control.settled" && control === stop.id), 1);
    assert.equal(times(({ type }) => type === "session.held"), 1);
  });
}

/** A WebSocket whose frames are looked at before the client has them. */
function watch(look: (frame: ServerFrame) => void): WebSocketConstructor {
  class Watched extends WebSocket {
    constructor(url: string, protocols: string[]) {
      super(url, protocols);
      this.on("message", (data: Buffer) => look(JSON.parse(data.toString("utf8")) as ServerFrame));
    }
  }
  return Watched as unknown as WebSocketConstructor;
}

/** Waits until it is so, asking whenever it is woken. */
function until(is: () => boolean, onWake: (wake: () => void) => unknown): Promise<void> {
  return new Promise((resolve) => {
    const wake = () => void (is() && resolve());
    onWake(wake);
    wake();
  });
}
