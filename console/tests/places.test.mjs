// A long session: any place of it, and back to where it goes on.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import { ConsolePage } from "./page.mjs";
import { launchBrowser, Server, until } from "./server.mjs";
import { Api } from "./session.mjs";

const shots = process.env.EVERTHREAD_SCREENSHOTS ?? join(tmpdir(), "everthread-console-screenshots");
const options = { timeout: 90_000 };
const COUNT = 600;

let server;
let browser;
let ann;
let session;
/** What is in the session: texts, in the order of the log. */
let texts;
let messages;

before(async () => {
  await mkdir(shots, { recursive: true });
  server = await Server.start();
  browser = await launchBrowser();
  ann = new Api(server, "ann");
  session = await ann.makeSession("A long story");
  const tell = (i) => (i === 7 ? "The needle is in here." : `Message number ${i}. ${"It goes on for a while. ".repeat(i % 5)}`);
  await ann.putMany(session, COUNT, tell);
  messages = await ann.messages(session);
  texts = messages.map((message) => message.parts[0].value.trim());
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

afterEach(async () => {
  await Promise.all((browser?.contexts() ?? []).map((context) => context.close()));
});

async function open(settings = { viewport: { width: 1280, height: 860 } }) {
  const context = await browser.newContext(settings);
  const view = await ConsolePage.open(context, server, session, "ann");
  await view.connection("live");
  await view.page.locator(".said").first().waitFor();
  return view;
}

const shown = async (view) => (await view.page.locator(".said .bubble").allTextContents()).map((text) => text.trim());

/** What is in sight, from top to bottom. */
const inSight = (view) =>
  view.page.evaluate(() => {
    const box = document.getElementById("scroll").getBoundingClientRect();
    const isSeen = (r) => r.bottom > box.top && r.top < box.bottom;
    const all = [...document.querySelectorAll(".said .bubble")];
    return all.filter((bubble) => isSeen(bubble.getBoundingClientRect())).map((bubble) => bubble.textContent.trim());
  });

const sees = (view, text) => until(`${text} is in sight`, async () => (await inSight(view)).includes(text));

/** Everything on the page is one stretch of the session, without holes and without doubles. */
async function hasNoHoles(view) {
  const there = await shown(view);
  const from = texts.indexOf(there[0]);
  assert.deepEqual(there, texts.slice(from, from + there.length));
  return there;
}

test("words lead to a message far back, and the button back to now", options, async () => {
  const view = await open();
  assert.ok((await shown(view)).length < 200, "a page begins with the end");
  await view.button("More").click();
  await view.page.getByRole("menuitem", { name: /Go to a message/ }).click();
  await view.page.getByLabel("By words").fill("NEEDLE");
  await view.button("Search").click();
  const hit = view.page.locator("#find-results button");
  await hit.first().waitFor();
  await until("the whole session was searched", async () =>
    /1 found/.test(await view.page.locator("#find-status").textContent()),
  );
  await view.page.screenshot({ path: join(shots, "places-find.png") });
  await hit.click();
  await sees(view, "The needle is in here.");
  await hasNoHoles(view);
  await view.page.screenshot({ path: join(shots, "places-past.png") });

  // What is said meanwhile is at the other end.
  const bob = new Api(server, "bob");
  await bob.put(session, "News from bob.");
  texts.push("News from bob.");
  assert.ok(!(await shown(view)).includes("News from bob."));
  await view.page.locator("#jump").click();
  await sees(view, "News from bob.");
  await view.page.locator("#jump").waitFor({ state: "hidden" });
  await hasNoHoles(view);
  assert.deepEqual(view.errors, []);
});

test("reading on from the past leads to now, without a hole", options, async () => {
  const view = await open();
  await view.page.keyboard.press("Control+k");
  await view.page.getByLabel("By words").fill("needle");
  await view.page.keyboard.press("Enter");
  await view.page.locator("#find-results button").click();
  await sees(view, "The needle is in here.");
  await view.page.locator("#scroll").hover();
  await until("the end is reached", async () => {
    await view.page.mouse.wheel(0, 3_000);
    return (await inSight(view)).includes(texts.at(-1));
  });
  const there = await hasNoHoles(view);
  assert.ok(there.length > COUNT - 60, `${there.length} messages from the needle to now`);
  await view.page.locator("#jump").waitFor({ state: "hidden" });
  await ann.put(session, "And it is live again.");
  texts.push("And it is live again.");
  await sees(view, "And it is live again.");
  assert.deepEqual(view.errors, []);
});

test("a date leads to the last message of that time", options, async () => {
  const view = await open();
  const wanted = Math.floor(messages[200].at / 1000) * 1000 + 1000;
  const target = messages.findLast((message) => message.at <= wanted);
  const local = await view.page.evaluate((time) => {
    const date = new Date(time - new Date(time).getTimezoneOffset() * 60_000);
    return date.toISOString().slice(0, 19);
  }, wanted);
  await view.page.keyboard.press("Control+k");
  await view.page.getByLabel("By date").fill(local);
  await view.button("Go").click();
  await sees(view, target.parts[0].value.trim());
  await view.page.locator("#find-dialog").waitFor({ state: "hidden" });
  await hasNoHoles(view);
  assert.deepEqual(view.errors, []);
});

test("the rail leads anywhere, and reading back goes on from there", options, async () => {
  const view = await open();
  const rail = view.page.getByLabel("Place in the session");
  const box = await rail.boundingBox();
  const x = box.x + box.width / 2;
  await view.page.mouse.move(x, box.y + box.height - 14);
  await view.page.mouse.down();
  await view.page.mouse.move(x, box.y + box.height / 2, { steps: 5 });
  await until("the rail says what is there", async () => /Message number/.test(await view.page.locator("#place-about").textContent()));
  await view.page.screenshot({ path: join(shots, "places-rail.png") });
  await view.page.mouse.up();
  await until("the middle is in sight", async () => {
    const [first] = await inSight(view);
    const at = texts.indexOf(first);
    return at > COUNT * 0.4 && at < COUNT * 0.6;
  });
  await hasNoHoles(view);
  const before = (await shown(view)).length;
  await view.page.locator("#scroll").hover();
  await until("older messages came", async () => {
    await view.page.mouse.wheel(0, -2_000);
    return (await shown(view)).length > before;
  });
  await hasNoHoles(view);

  await rail.focus();
  await view.page.keyboard.press("Home");
  await sees(view, texts[0]);
  await view.page.keyboard.press("End");
  await sees(view, texts.at(-1));
  await view.page.locator("#jump").waitFor({ state: "hidden" });
  assert.deepEqual(view.errors, []);
});

test("it fits a phone", options, async () => {
  const view = await open({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, colorScheme: "dark" });
  await view.page.locator("#timeline").waitFor();
  await view.button("More").click();
  await view.page.screenshot({ path: join(shots, "places-phone-menu.png") });
  await view.page.getByRole("menuitem", { name: /Go to a message/ }).click();
  await view.page.getByLabel("By words").fill("number 3");
  await view.button("Search").click();
  await view.page.locator("#find-results button").first().waitFor();
  await view.page.screenshot({ path: join(shots, "places-phone-find.png") });
  const wide = await view.page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 360, `${wide} pixels wide`);
});
