// Live control against a real server and its demo agent. Without `EVERTHREAD_BIN` there is none to talk to.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { WebSocket } from "ws";
import { activeRun, Everthread, EverthreadError, type Receipt, referenceOf, type Session } from "../src/index.js";
import type { View, WebSocketConstructor } from "../src/index.js";
import { Server } from "./server.js";

const bin = process.env["EVERTHREAD_BIN"];
if (bin !== undefined) describeControl(bin);

function describeControl(bin: string): void {
  const options = { timeout: 60_000 };
  let server: Server;
  let token: string;
  const clients: Everthread[] = [];

  before(async () => {
    server = await Server.start(bin);
    token = await server.token();
  });

  after(async () => {
    for (const client of clients) client.close();
    await server?.stop();
  });

  function client(subject: string, kind: "user" | "operator" = "user"): Everthread {
    const socket = WebSocket as unknown as WebSocketConstructor;
    const made = new Everthread({ url: server.url, token, subject, kind, WebSocket: socket });
    clients.push(made);
    return made;
  }

  /** Ann's session, with the guide at work on `text`, and bob's look at it. */
  async function begin(text = "Explain sessions to me."): Promise<{ ann: Session; bob: Session }> {
    const mine = client("ann");
    const { session } = await mine.http.createSession({ agent: "guide" });
    const ann = mine.session(session, { from: "start" });
    const bob = client("bob", "operator").session(session);
    await Promise.all([ann.open(), bob.open()]);
    await ann.send(text);
    const began = ({ runs: [run], messages }: View) =>
      run?.status === "suspended" || (run?.status === "active" && messages.length > 1);
    await Promise.all([reached(ann, began), reached(bob, began)]);
    return { ann, bob };
  }

  test("a cancel ends the run, with receipts", options, async () => {
    const { ann, bob } = await begin();
    const stop = bob.cancel();
    const receipts: Receipt[] = [];
    for await (const receipt of stop.receipts) receipts.push(receipt);
    assert.equal(receipts.at(0)?.stage, "accepted");
    assert.equal((await stop.settled).outcome, "applied");
    const seen = await ann.settled(stop.id);
    assert.deepEqual([seen.by.id, seen.by.kind, seen.outcome], ["bob", "operator", "applied"]);
    assert.equal(ann.view.runs[0]?.outcome, "cancelled");
    const late = await bob.cancel(ann.view.runs[0]!.run).settled;
    assert.deepEqual([late.outcome, late.reason], ["refused", "run_ended"]);
  });

  test("a steer is taken in by the run at work", options, async () => {
    const { ann } = await begin();
    const settled = await ann.steer("Tell me about cursors instead.", { mode: "now" }).settled;
    assert.deepEqual([settled.outcome, settled.run], ["applied", ann.view.runs[0]!.run]);
    await reached(ann, (view) => view.runs[0]?.input.length === 2);
    await reached(ann, (view) => view.runs[0]?.status === "ended");
    assert.equal(ann.view.runs.length, 1);
  });

  test("an interrupt ends one run and begins another", options, async () => {
    const { ann } = await begin();
    const interrupt = ann.interrupt("What happens after a crash?");
    assert.equal((await interrupt.settled).outcome, "applied");
    await reached(ann, (view) => view.runs.length === 2 && view.runs[1]?.status === "active");
    assert.equal(ann.view.runs[0]?.outcome, "cancelled");
    await ann.cancel().settled;
  });

  test("a pause holds the run until somebody resumes it", options, async () => {
    const { ann, bob } = await begin();
    assert.equal((await ann.pause().settled).outcome, "applied");
    await reached(bob, (view) => view.runs[0]?.paused === true);
    assert.equal((await bob.resume().settled).outcome, "applied");
    await reached(ann, (view) => view.runs[0]?.status === "ended");
    assert.equal(ann.view.runs[0]?.outcome, "completed");
  });

  test("the first answer wins, and the second is told who was first", options, async () => {
    const { ann, bob } = await begin("Please delete my old drafts.");
    await Promise.all([ann, bob].map((one) => reached(one, (view) => view.runs[0]?.status === "suspended")));
    const { approval } = ann.view.runs[0]!.approvals![0]!;
    const yes = ann.approve(approval);
    const [first, second] = await Promise.all([yes.settled, yes.settled.then(() => bob.deny(approval).settled)]);
    assert.equal(first.outcome, "applied");
    assert.equal(second.outcome, "refused");
    // The run may have gone on and ended by then.
    if (second.reason === "already_answered") assert.equal(second.answered_by?.id, "ann");
    else assert.equal(second.reason, "run_ended");
    await reached(ann, (view) => view.runs[0]?.status === "ended");
    assert.equal(ann.view.runs[0]?.outcome, "completed");
  });

  test("a person takes over and hands back", options, async () => {
    const { ann, bob } = await begin();
    await bob.hold("I know her");
    await reached(ann, (view) => view.session.held?.by.id === "bob");
    await bob.send("Bob here.", { role: "operator" });
    await ann.send("Thank you. How do I resume?");
    assert.equal(activeRun(ann.view), undefined);
    const { run } = await bob.release();
    await reached(ann, (view) => view.session.held === undefined && view.run(run ?? "")?.status === "active");
    assert.equal(ann.view.run(run ?? "")?.input.length, 2);
    await ann.cancel().settled;
  });

  test("a message is edited, a run done again, a branch selected", options, async () => {
    const { ann, bob } = await begin();
    const [first] = ann.view.messages;
    const edited = await ann.edit(first!, "What is a cursor?");
    await reached(ann, (view) => view.run(edited.run ?? "")?.outcome === "completed");
    assert.equal(ann.view.runs[0]?.outcome, "cancelled");
    assert.deepEqual(ann.view.branch().map(referenceOf)[0], edited.message);
    const answer = ann.view.branch()[1]!;
    const { run } = await ann.regenerate(edited.run!);
    await reached(bob, (view) => view.run(run ?? "")?.outcome === "completed");
    const again = bob.view.branch()[1]!;
    assert.deepEqual([again.run, bob.view.alternatives(again).length], [run, 2]);
    await bob.select(answer);
    await reached(ann, (view) => view.branch()[1]?.run === edited.run);
    await bob.select(first!.message);
    await reached(ann, (view) => view.branch()[0]?.message === first!.message);
    assert.deepEqual(ann.view.alternatives(first!).map(referenceOf), [first!.message, edited.message]);
    await assert.rejects(ann.select("nowhere"), (e) => e instanceof EverthreadError && e.code === "not_found");
  });

  test("a control survives the server", options, async () => {
    const { ann } = await begin();
    const connection = clients.at(-2)!;
    connection.disconnect();
    const stop = ann.cancel(ann.view.runs[0]!.run);
    await server.kill();
    await server.run(bin);
    connection.connect();
    const settled = await stop.settled;
    // Its worker died with the server; which of the two ended it is a matter of moments.
    assert.ok(settled.outcome === "applied" || settled.reason === "run_ended", JSON.stringify(settled));
  });
}

function reached(session: Session, is: (view: View) => boolean): Promise<void> {
  return new Promise((resolve) => {
    if (is(session.view)) return resolve();
    const off = session.on("change", (view) => {
      if (!is(view)) return;
      off();
      resolve();
    });
  });
}
