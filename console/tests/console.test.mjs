import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, test } from "node:test";
import { ConsolePage } from "./page.mjs";
import { launchBrowser, Server, until } from "./server.mjs";

const shots = process.env.EVERTHREAD_SCREENSHOTS ?? join(tmpdir(), "everthread-console-screenshots");
const DESKTOP = { viewport: { width: 1280, height: 860 } };
const PHONE = { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true };
const options = { timeout: 90_000 };

let server;
let browser;
let context;

before(async () => {
  await mkdir(shots, { recursive: true });
  server = await Server.start();
  browser = await launchBrowser();
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

beforeEach(async () => {
  await context?.close();
  context = await browser.newContext(DESKTOP);
});

const shoot = (view, name) => view.page.screenshot({ path: join(shots, `${name}.png`) });

test("an answer streams to its end", options, async () => {
  const view = await ConsolePage.open(context, server);
  await view.page.getByRole("button", { name: /Watch an answer survive/ }).waitFor();
  await shoot(view, "desktop-empty");
  await view.send("Explain sessions to me.");
  const early = await view.answerOf(20);
  await view.connection("live");
  await shoot(view, "desktop-streaming");
  await view.ended();
  const state = await view.state();
  assert.ok((await view.answer()).length > early.length, "it grew while it was looked at");
  assert.deepEqual(state.runs.map((run) => run.outcome), ["completed"]);
  await view.showsExactly(state);
  await shoot(view, "desktop-ended");
});

test("a page reloaded in mid-answer ends with the whole answer, once", options, async () => {
  const view = await ConsolePage.open(context, server);
  await view.send("Explain sessions to me.");
  await view.answerOf(60);
  await view.page.reload();
  await view.answerOf(60);
  await view.ended();
  await view.showsExactly(await view.state());
});

test("a second device shows the same, live and at the end", options, async () => {
  const first = await ConsolePage.open(context, server);
  await first.send("Explain sessions to me.");
  await first.answerOf(40);
  const other = await browser.newContext(DESKTOP);
  const second = await ConsolePage.open(other, server, first.session);
  const joined = await second.answerOf(40);
  const open = await second.page.locator('.run[data-status="active"]').count();
  assert.equal(open, 1, "it joined while the answer was being written");
  await second.answerOf(joined.length + 40);
  await Promise.all([first.ended(), second.ended()]);
  const state = await first.state();
  await first.showsExactly(state);
  await second.showsExactly(state);
  await other.close();
});

test("a cut connection costs nothing", options, async () => {
  const view = await ConsolePage.open(context, server);
  await view.send("Explain sessions to me.");
  await view.answerOf(60);
  await view.page.getByRole("button", { name: /Cut connection/ }).click();
  await view.connection("cut");
  const cut = await view.answer();
  await shoot(view, "desktop-cut");
  await view.connection("live");
  await view.answerOf(cut.length + 40);
  await view.ended();
  const state = await view.state();
  assert.deepEqual(state.runs.map((run) => run.outcome), ["completed"]);
  await view.showsExactly(state);
});

test("a killed server comes back, and the page with it", options, async () => {
  const view = await ConsolePage.open(context, server);
  await view.send("Explain sessions to me.");
  await view.answerOf(60);
  const id = view.session;
  await server.kill();
  await view.connection("offline");
  await shoot(view, "desktop-offline");
  await server.run();
  await view.connection("live");
  assert.equal(view.session, id);
  await view.ended();
  const state = await view.state();
  assert.equal(state.runs.length, 1);
  assert.equal(state.runs[0].status, "ended");
  await view.showsExactly(state);
  await shoot(view, "desktop-after-kill");
});

test("sub-agents write side by side", options, async () => {
  const view = await ConsolePage.open(context, server);
  await view.send("Plan a launch.", "orchestra");
  const writing = '.run.child[data-status="active"] .text';
  await until("three sub-agents write at once", async () => (await view.page.locator(writing).count()) === 3);
  const boxes = await view.page.locator(".run.child").evaluateAll((children) =>
    children.map((child) => {
      const { left, top } = child.getBoundingClientRect();
      return { left, top };
    }),
  );
  assert.equal(new Set(boxes.map(({ left }) => left)).size, 3, "each has a column");
  assert.equal(new Set(boxes.map(({ top }) => top)).size, 1, "in one row");
  await shoot(view, "desktop-orchestra");
  await view.ended(4);
  const state = await view.state();
  assert.equal(state.runs.filter((run) => run.parent_run !== undefined).length, 3);
  await view.showsExactly(state);
  await shoot(view, "desktop-orchestra-ended");
});

test("it fits a phone, by day and by night", options, async () => {
  for (const colorScheme of ["light", "dark"]) {
    const phone = await browser.newContext({ ...PHONE, colorScheme });
    const view = await ConsolePage.open(phone, server);
    const fits = async (name) => {
      await shoot(view, `phone-${colorScheme}-${name}`);
      const wide = await view.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      const inner = await view.page.evaluate(() => {
        const box = document.getElementById("scroll");
        return box.scrollWidth - box.clientWidth;
      });
      assert.deepEqual([wide, inner], [0, 0], `${name} does not scroll sideways`);
    };
    await view.connection("connected");
    await fits("empty");
    await view.send("Plan a launch.", "orchestra");
    await until("three sub-agents", async () => (await view.page.locator(".run.child .text").count()) === 3);
    await fits("orchestra");
    await view.page.getByRole("button", { name: "Sessions" }).click();
    await view.page.locator("#sidebar.open").waitFor();
    // The drawer slides; it is there when nothing moves any more.
    await until("the drawer is open", () =>
      view.page.evaluate(() => document.getElementById("sidebar").getAnimations().length === 0),
    );
    await fits("drawer");
    await view.page.keyboard.press("Escape");
    await view.ended(4);
    await view.showsExactly(await view.state());
    await phone.close();
  }
});

test("it is legible in the dark", options, async () => {
  const dark = await browser.newContext({ ...DESKTOP, colorScheme: "dark" });
  const view = await ConsolePage.open(dark, server);
  await view.send("Plan a launch.", "orchestra");
  await until("three sub-agents", async () => (await view.page.locator(".run.child .text").count()) === 3);
  await view.answerOf(300);
  await shoot(view, "desktop-dark-orchestra");
  await view.send("Explain sessions to me.", "guide");
  await view.ended(5);
  await shoot(view, "desktop-dark-ended");
  await view.showsExactly(await view.state());
  await dark.close();
});
