// What a failover of the store has lost, and was answered, is written again.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { WebSocket } from "ws";
import { Everthread, type EverthreadError, type Session, type WebSocketConstructor } from "../src/index.js";
import { entries, FakeServer, live, type Peer } from "./fake.js";
import { Server } from "./server.js";

const options = { timeout: 10_000 };
const socket = WebSocket as unknown as WebSocketConstructor;
const mark = (n: number) => ({ type: "x-mark", n }) as const;

let server: FakeServer;
let client: Everthread;
let session: Session;
let peer: Peer;

beforeEach(async () => {
  server = await FakeServer.start();
  client = new Everthread({ url: server.url, token: "t", WebSocket: socket });
  session = client.session("s1", { from: "start" });
  const open = session.open();
  peer = await server.peer();
  await peer.welcome();
  await peer.attach(1, true, live(0));
  await open;
});

afterEach(() => {
  client.close();
  server.stop();
});

/** Asks for a mark, which is answered as being there, as sure as `more` says; its id. */
async function put(n: number, cursor: string, more: object = {}): Promise<unknown> {
  const done = session.put([mark(n)]);
  const { id } = await peer.next("put");
  peer.send({ t: "ok", id, cursor, ...more });
  await done;
  return id;
}

/** The next request is the mark with this id, again. */
async function again(id: unknown, n: number): Promise<void> {
  const frame = await peer.next("put");
  assert.deepEqual([frame["id"], frame["entries"]], [id, [mark(n)]]);
  peer.send({ t: "ok", id, cursor: "9.9", ack: "replicated" });
}

const reset = { t: "reset", attachment: 1, reason: "epoch" };

test("after a reset what was answered is asked for again, in its order and once", options, async () => {
  const first = await put(1, "1.1");
  await put(2, "1.2", { ack: "replicated" });
  const third = await put(3, "1.3", { ack: "accepted" });
  peer.send(reset);
  await again(first, 1);
  await again(third, 3);
  // By now it is sure.
  peer.send(reset);
  await put(4, "1.4");
});

test("a log that was dropped from its beginning has lost nothing that was just written", options, async () => {
  await put(1, "1.1");
  peer.send({ ...reset, reason: "retention" });
  await put(2, "1.2");
});

test("an incarnation that begins after a write has kept it, and one that begins before has not", options, async () => {
  await put(1, "1.1");
  const second = await put(2, "1.2");
  peer.send({ ...entries(1, mark(1)), attachment: 1 });
  peer.send({ ...entries(2, mark(7)), attachment: 1, epoch: "5", since: 2 });
  await again(second, 2);
});

test("who attaches to a log that ends before a write, or to another one, writes it again", options, async () => {
  const first = await put(1, "1.1");
  peer.drop();
  peer = await server.peer();
  await peer.welcome();
  await peer.attach(2, true, live(0));
  await again(first, 1);
});

test("a control without outcome is asked for again", options, async () => {
  const asked = session.cancel("r1");
  const { id } = await peer.next("control");
  peer.receipt(id, "accepted");
  peer.send(reset);
  assert.equal((await peer.next("control"))["id"], id);
  peer.receipt(id, "settled", { outcome: "applied" });
  assert.equal((await asked.settled).outcome, "applied");
});

test("that something could not be written again is told", options, async () => {
  const first = await put(1, "1.1");
  const told = new Promise<EverthreadError>((resolve) => session.on("error", resolve));
  peer.send(reset);
  assert.equal((await peer.next("put"))["id"], first);
  peer.send({ t: "error", id: first, code: "session_closed", message: "it is over", retryable: false, no_side_effects: true });
  assert.equal((await told).code, "session_closed");
});

const bin = process.env["EVERTHREAD_BIN"];
if (bin !== undefined) describeRestore(bin);

function describeRestore(bin: string): void {
  let node: Server;

  before(async () => {
    node = await Server.start(bin);
  });

  after(async () => node?.stop());

  test("what a store lost that came back as it was before is there again", { timeout: 60_000 }, async () => {
    const mine = new Everthread({ url: node.url, token: await node.token(), subject: "ann", WebSocket: socket });
    const { session: id } = await mine.http.createSession({});
    const ann = mine.session(id, { from: "start" });
    await ann.open();
    await ann.send("one");
    await node.kill();
    const backup = await node.copy();
    await node.run(bin);
    await ann.send("two");
    await ann.send("three");
    await node.kill();
    await node.restore(backup);
    const wasReset = new Promise((resolve) => ann.on("reset", resolve));
    await node.run(bin);
    await wasReset;
    const texts = () => ann.view.messages.map(({ parts }) => parts[0]?.value);
    while (texts().length < 3) await new Promise((resolve) => ann.on("change", resolve));
    assert.deepEqual(texts(), ["one", "two", "three"]);
    mine.close();
  });
}
