// The HTTP routes against a real server and its demo agent. Without `EVERTHREAD_BIN` there is none to talk to.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { WebSocket } from "ws";
import { Everthread, EverthreadError, type ExportLine, type Http, type Receipt, type Session } from "../src/index.js";
import type { ViewJson, WebSocketConstructor } from "../src/index.js";
import { Server } from "./server.js";

const bin = process.env["EVERTHREAD_BIN"];
if (bin !== undefined) describeHttp(bin);

function describeHttp(bin: string): void {
  const options = { timeout: 60_000 };
  let server: Server;
  let ann: Http;
  let bob: Http;

  before(async () => {
    server = await Server.start(bin);
    const token = await server.token();
    ann = new Everthread({ url: server.url, token, subject: "ann" }).http;
    bob = new Everthread({ url: server.url, token, subject: "bob", kind: "operator" }).http;
  });

  after(() => server?.stop());

  /** The session's view as soon as it is as wanted. */
  async function reached(session: string, isThere: (view: ViewJson) => boolean): Promise<ViewJson> {
    for (;;) {
      const view = await ann.state(session);
      if (isThere(view)) return view;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  const settled = (receipt: Receipt) => (receipt.stage === "settled" ? receipt.outcome : receipt.stage);
  const ended = (view: ViewJson) => view.runs.length > 0 && view.runs.every((run) => run.status === "ended");

  test("a run is cancelled, done again, and the first answer selected", options, async () => {
    const { session } = await ann.createSession({ agent: "guide" });
    const { run, message } = await ann.input(session, { text: "Explain sessions to me.", id: "i1" });
    assert.equal((await ann.input(session, { text: "Explain sessions to me.", id: "i1" })).duplicate, true);
    await reached(session, (view) => view.messages.length > 1);
    const cancel = { id: "c1", kind: "cancel", target: { run: run! } } as const;
    assert.equal(settled(await ann.control(session, cancel, { waitMs: 20_000 })), "applied");
    assert.equal(settled(await ann.controlStatus(session, "c1")), "applied");

    const again = await ann.regenerate(session, { run: run! });
    const view = await reached(session, (view) => ended(view) && view.runs.length === 2);
    assert.deepEqual(view.runs.map(({ run, outcome }) => [run, outcome]), [[run, "cancelled"], [again.run, "completed"]]);
    const first = view.messages.find((message) => message.run === run)!;
    await ann.select(session, first);
    assert.equal((await ann.state(session)).session.tip! >= first.seq, true);

    const page = await ann.messages(session, { limit: 1 });
    assert.deepEqual([page.messages.length, page.more], [1, true]);
    const older = await ann.messages(session, { before: first.seq, limit: 10 });
    assert.deepEqual([older.messages.map((m) => m.message), older.more], [[message], false]);
    const then = await ann.state(session, { at: first.seq - 1 });
    assert.deepEqual([then.seq, then.messages.length], [first.seq - 1, 1]);

    const lines: ExportLine[] = [];
    for await (const line of ann.export(session)) lines.push(line);
    const head = lines[0]!;
    assert.ok("session" in head && head.session === session && head.epochs.length === 1);
    const records = lines.filter((line) => "blocks" in line);
    assert.deepEqual([records[0]?.from, records.at(-1)?.to], [1, head.seq]);
  });

  test("a session is taken over and handed back", options, async () => {
    const { session } = await ann.createSession({ agent: "guide" });
    await bob.hold(session, { reason: "mine" });
    assert.equal((await ann.state(session)).session.held?.by.id, "bob");
    await ann.input(session, { text: "Is somebody there?" });
    const { run } = await bob.release(session);
    assert.equal((await reached(session, ended)).runs[0]?.run, run);
  });

  test("a session is forked at a place, and both go on by themselves", options, async () => {
    const { session } = await ann.createSession({ agent: "guide", title: "Source" });
    const { message } = await ann.input(session, { text: "What is a cursor?" });
    const source = await reached(session, ended);
    const at = source.messages[0]!.seq;
    const early = await ann.fork(session, { at, session: `${session}-early`, meta: { title: "Fork" } });
    assert.deepEqual([early.at, early.meta["title"], early.meta["forked_from"]], [at, "Fork", { session, seq: at }]);
    assert.deepEqual(await ann.fork(session, { at, session: early.session }), early, "asked again, it is the same");
    assert.deepEqual((await ann.state(early.session)).messages.map((m) => m.message), [message]);
    const whole = await ann.fork(session);
    assert.deepEqual((await ann.state(whole.session)).messages, source.messages);
    await ann.input(whole.session, { text: "Thank you.", agent: "guide" });
    await reached(whole.session, (view) => ended(view) && view.runs.length === 2);
    assert.deepEqual(await ann.state(session), source);
  });

  test("a session that is deleted is gone for everybody", options, async () => {
    const { session } = await ann.createSession({ title: "Short" });
    await ann.input(session, { text: "Remember me." });
    const follower = new Everthread({
      url: server.url,
      token: await server.token(),
      WebSocket: WebSocket as unknown as WebSocketConstructor,
    });
    const followed = follower.session(session);
    await followed.open();
    const gone = new Promise((resolve) => followed.on("gone", resolve));
    assert.equal(await follower.delete(session), true);
    assert.equal(await gone, "deleted");
    assert.equal(await follower.delete(session), false);
    await assert.rejects(ann.state(session), (error) => error instanceof EverthreadError && error.code === "no_session");
    await ann.createSession({ session });
    await followed.open();
    assert.deepEqual(followed.view.messages, []);
    follower.close();
  });

  test("who gets what is written folded has the same in the end", options, async () => {
    const { session } = await ann.createSession({ agent: "guide" });
    const token = await server.token();
    const [plain, folded] = [undefined, 300].map((foldMs) => {
      const socket = { WebSocket: WebSocket as unknown as WebSocketConstructor };
      const client = new Everthread({ url: server.url, token, ...socket });
      return { client, session: client.session(session, foldMs === undefined ? {} : { foldMs }), frames: 0 };
    }) as [Follower, Follower];
    for (const one of [plain, folded]) {
      one.session.on("change", () => (one.frames += 1));
      await one.session.open();
    }
    await ann.input(session, { text: "Explain sessions to me." });
    const view = await reached(session, ended);
    for (const one of [plain, folded]) {
      while (one.session.view.seq < view.seq) await new Promise((resolve) => one.session.on("change", resolve));
      assert.deepEqual(JSON.parse(JSON.stringify(one.session.view)), view);
      one.client.close();
    }
    assert.ok(folded.frames < plain.frames, `${folded.frames} frames, not ${plain.frames}`);
  });
}

interface Follower {
  client: Everthread;
  session: Session;
  frames: number;
}
