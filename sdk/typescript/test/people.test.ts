import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { WebSocket } from "ws";
import { Everthread, type WebSocketConstructor } from "../src/index.js";
import { entries, FakeServer, live } from "./fake.js";

const options = { timeout: 10_000 };
const message = (id: string) => ({ type: "message.put", message: id, role: "user", parts: [] });
const member = (subject: string, more: object = {}) => ({
  member: `user/${subject}/d`,
  kind: "user",
  subject,
  since: 1,
  ...more,
});

let server: FakeServer;
let client: Everthread;

beforeEach(async () => {
  server = await FakeServer.start();
  const socket = { WebSocket: WebSocket as unknown as WebSocketConstructor };
  client = new Everthread({ url: server.url, token: "t", subject: "bob", device: "phone", ...socket });
});

afterEach(() => {
  client.close();
  server.stop();
});

test("what is acknowledged is told to the server, on each connection until it says so itself", options, async () => {
  const session = client.session("s1", { from: "start" });
  const open = session.open();
  const first = await server.peer();
  assert.equal((await first.welcome())["device"], "phone");
  await first.attach(1, true, entries(1, message("a"), message("b")), live(2));
  await open;
  assert.equal(session.acked, undefined);
  session.ack(1);
  session.ack();
  session.ack(1);
  assert.deepEqual(await first.next("ack"), { t: "ack", attachment: 1, seq: 1 });
  assert.deepEqual(await first.next("ack"), { t: "ack", attachment: 1, seq: 2 });
  first.drop();

  const second = await server.peer();
  await second.welcome();
  await second.attach(5, true, live(2));
  assert.deepEqual(await second.next("ack"), { t: "ack", attachment: 5, seq: 2 });
  assert.equal(session.acked, 2);
});

test("unread are the server's count and what others began since", options, async () => {
  const session = client.session("s1", { from: "start" });
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  const attach = await peer.next("attach");
  const attached = { t: "attached", id: attach["id"], attachment: 1, session: "s1", epoch: "1", resumed: true };
  peer.send({ ...attached, head: 2, acked: 1, unread: 1 });
  const own = { by: { kind: "user", id: "bob" }, at: 1, entries: [message("c")] };
  const frame = { ...entries(1, message("a"), message("b")), attachment: 1 };
  peer.send(frame, { t: "entries", attachment: 1, epoch: "1", since: 1, from: 3, to: 3, blocks: [own] });
  peer.send({ ...entries(4, message("d")), attachment: 1 }, { ...live(4), attachment: 1 });
  await open;
  assert.deepEqual([session.acked, session.unread], [1, 2]);
  session.ack(2);
  assert.deepEqual([session.acked, session.unread], [2, 1]);
  session.ack();
  assert.equal(session.unread, 0);
});

test("a client without a device cannot acknowledge", () => {
  const nameless = new Everthread({ url: server.url });
  assert.throws(() => nameless.session("s1").ack(1), TypeError);
});

test("presence is a list, then differences, and a gap is filled by asking", options, async () => {
  const session = client.session("s1", { from: "start", presence: true });
  const { presence } = session;
  const changed = () => new Promise<void>((resolve) => {
    const off = presence.on("change", () => (off(), resolve()));
  });
  presence.set({ typing: true });
  const open = session.open();
  const peer = await server.peer();
  await peer.welcome();
  const attach = await peer.attach(1, true, live(0));
  assert.equal(attach["presence"], true);
  await open;
  assert.deepEqual(await peer.next("presence"), { t: "presence", attachment: 1, data: { typing: true } });
  const tell = (n: number, more: object) => peer.send({ t: "presence", attachment: 1, n, ...more });
  const subjects = () => presence.members.map((m) => m.subject);

  let change = changed();
  tell(1, { members: [member("ann"), member("bob")] });
  await change;
  assert.deepEqual([subjects(), presence.count], [["ann", "bob"], 2]);
  change = changed();
  tell(2, { joined: [member("carl")], changed: [member("ann", { data: { a: 1 } })], left: ["user/bob/d"] });
  await change;
  assert.deepEqual(subjects(), ["ann", "carl"]);
  assert.deepEqual(presence.members[0]?.data, { a: 1 });

  tell(4, { left: ["user/carl/d"] });
  assert.deepEqual(await peer.next("presence"), { t: "presence", attachment: 1 });
  assert.deepEqual(subjects(), ["ann", "carl"], "what does not follow is not applied");
  change = changed();
  tell(5, { members: [member("ann")] });
  await change;
  assert.deepEqual(subjects(), ["ann"]);
  change = changed();
  tell(6, { count: 300 });
  await change;
  assert.deepEqual([presence.count, presence.isCounted, presence.members], [300, true, []]);
});
