// Who is here and what they have read.

import assert from "node:assert/strict";
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
  const view = await ConsolePage.open(context, stage.server, session, as);
  if (session !== undefined) await view.connection("live");
  return view;
}

const here = (view) => view.page.locator("#people .person .unseen").allTextContents();
const isHere = (view, expected) =>
  until(`${expected} are here`, async () => JSON.stringify(await here(view)) === JSON.stringify(expected));
const says = (view, words) =>
  until(`it says “${words}”`, async () => (await view.page.locator("#typing").textContent()) === words);
/** How far a device has read, by the server. */
const devices = async (api, session) => (await api.call("GET", `/sessions/${session}/devices`)).devices;

test("people see who is here, and who is typing", options, async () => {
  const api = new Api(stage.server, "ann");
  const session = await api.makeSession("Trip");
  const ann = await person("ann", session);
  await ann.page.locator("#people").waitFor({ state: "hidden" });
  const bob = await person("bob", session);
  await isHere(ann, ["You", "bob"]);
  await isHere(bob, ["You", "ann"]);
  await bob.page.getByLabel("Message", { exact: true }).pressSequentially("Hi");
  await says(ann, "bob is typing…");
  await says(bob, "");
  await ann.page.screenshot({ path: join(shots, "people-typing.png") });
  await bob.page.keyboard.press("Enter");
  await says(ann, "");
  const again = await person("bob", session);
  await isHere(ann, ["You", "bob, on 2 devices"]);
  await again.page.getByLabel("Message", { exact: true }).pressSequentially("Hi");
  await says(bob, "You are typing on another device…");
  await again.page.context().close();
  await bob.page.context().close();
  await ann.page.locator("#people").waitFor({ state: "hidden" });
  assert.deepEqual(ann.errors, []);
});

test("what was seen is read, and what came meanwhile is new", options, async () => {
  const api = new Api(stage.server, "bob");
  const session = await api.makeSession("News");
  await api.putMany(session, 5);
  const ann = await person("ann", session);
  const head = (await api.call("GET", `/sessions/${session}/state`)).seq;
  const [device] = await until("it is read", async () => {
    const all = await devices(api, session);
    return all.length === 1 && all[0].acked === head && all;
  });
  assert.equal(await ann.page.locator(".new-line").count(), 0);

  await ann.button("New session").click();
  await api.putMany(session, 30, (i) => `News ${i}. ${"Much of it. ".repeat(20)}`);
  const row = ann.page.locator("#sessions a", { hasText: "News" });
  await until("the list counts what is not read", async () => (await row.locator(".unread").textContent()) === "30");
  await ann.page.screenshot({ path: join(shots, "people-unread.png") });
  await row.click();
  const line = ann.page.locator(".new-line");
  await line.waitFor();
  const isSeen = () => line.evaluate((e) => e.getBoundingClientRect().top >= document.getElementById("scroll").getBoundingClientRect().top - 1);
  await until("the line is in sight", isSeen);
  await ann.page.screenshot({ path: join(shots, "people-new.png") });
  const next = await line.evaluate((e) => e.nextElementSibling.textContent);
  assert.match(next, /News \d+/);
  assert.equal((await devices(api, session))[0].acked, device.acked, "what is below has not been seen");

  await ann.page.locator("#jump").click();
  await until("all is read", async () => (await devices(api, session))[0].unread_entries === 0);
  await ann.button("New session").click();
  assert.ok(await row.locator(".unread").isHidden());
  assert.deepEqual(ann.errors, []);
});

test("the list tells what goes on elsewhere", options, async () => {
  const ann = await person("ann");
  await ann.send("Please delete my old drafts.");
  await ann.chip("waiting for approval");
  const { session } = ann;
  const bob = await person("bob");
  const row = bob.page.locator(`#sessions a[href="#${session}"] .state`);
  await until("it waits for approval", async () => (await row.textContent()) === "Waits for approval");
  await bob.page.screenshot({ path: join(shots, "people-list.png") });
  await ann.button("Approve").click();
  await ann.ended();
  await until("nothing goes on", async () => (await row.textContent()) === "just now");
});
