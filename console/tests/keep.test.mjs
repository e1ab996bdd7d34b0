// A session that is continued from some place of it, and one that is deleted.

import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { ConsolePage } from "./page.mjs";
import { until } from "./server.mjs";
import { Api } from "./session.mjs";
import { setStage, shots } from "./stage.mjs";

const options = { timeout: 90_000 };

const stage = setStage();

async function person(as, session) {
  const context = await stage.browser.newContext({ viewport: { width: 1280, height: 860 } });
  return ConsolePage.open(context, stage.server, session, as);
}

const rows = (view) => view.page.locator("#sessions .title").allTextContents();

test("a session is continued from a message of it, and the first one stays as it was", options, async () => {
  const ann = await person("ann");
  await ann.send("What is a cursor?");
  await ann.ended();
  await ann.send("And what is an epoch?");
  await ann.ended(2);
  const source = ann.session;
  const before = await ann.state();

  await ann.page.locator(".run").first().hover();
  await ann.page.locator(".run").first().getByRole("button", { name: "Continue from here in a new session" }).click();
  await until("another session is shown", () => ann.session !== source);
  await ann.connection("live");
  await ann.page.locator("#forked-from", { hasText: "Forked from What is a cursor?" }).waitFor();
  const forked = await ann.state();
  assert.deepEqual(forked.messages, before.messages.slice(0, forked.messages.length));
  assert.deepEqual(forked.runs.map((run) => run.outcome), ["completed"]);
  await ann.showsExactly(forked);
  await ann.send("What is a lease?");
  await ann.ended(2);
  await ann.showsExactly(await ann.state());
  await until("both are in the list", async () => {
    const titles = await rows(ann);
    return titles.includes("What is a cursor?") && titles.includes("What is a cursor? (fork)");
  });
  await ann.page.screenshot({ path: join(shots, "keep-forked.png") });

  await ann.page.locator("#forked-from").click();
  await until("the first one is shown", () => ann.session === source);
  await ann.connection("live");
  await ann.showsExactly(before);
});

test("a session is deleted, for everybody who looks at it", options, async () => {
  const api = new Api(stage.server, "ann");
  const session = await api.makeSession("Old trip");
  await api.putMany(session, 3);
  const ann = await person("ann", session);
  const bob = await person("bob", session);
  await Promise.all([ann.connection("live"), bob.connection("live")]);
  const choose = async () => {
    await ann.button("More").click();
    await ann.page.getByRole("menuitem", { name: /^Delete/ }).click();
  };
  await choose();
  await ann.page.screenshot({ path: join(shots, "keep-sure.png") });
  // The way out is what a hasty key chooses.
  await ann.page.keyboard.press("Enter");
  await ann.page.locator("#delete-dialog").waitFor({ state: "hidden" });
  assert.equal((await api.messages(session)).length, 3);
  await choose();
  await ann.button("Delete").click();
  await bob.page.getByRole("heading", { name: "This session was deleted" }).waitFor();
  await bob.connection("gone");
  await bob.page.screenshot({ path: join(shots, "keep-gone.png") });
  await until("ann's page is a new one", () => ann.session === undefined);
  for (const view of [ann, bob]) {
    await until("it is not in the list", async () => !(await rows(view)).includes("Old trip"));
    assert.deepEqual(view.errors, []);
  }
  await bob.page.reload();
  await bob.page.getByRole("heading", { name: "There is no such session" }).waitFor();
});

test("a session that the archive has lost says so in the server's words", options, async () => {
  const api = new Api(stage.server, "ann");
  const session = await api.makeSession("Lost trip");
  // Nobody works in it, so it must not be waited for either.
  await api.call("POST", `/sessions/${session}/hold`, {});
  await api.putMany(session, 3);
  assert.deepEqual(await api.call("POST", `/sessions/${session}/archive`, {}), { archived: true });
  await rm(join(stage.server.archive, "default", session), { recursive: true });
  const ann = await person("ann", session);
  await ann.connection("failed");
  await ann.page.locator("#connection-text", { hasText: "The archive does not have this session" }).waitFor();
  await ann.page.screenshot({ path: join(shots, "keep-lost.png") });
});
