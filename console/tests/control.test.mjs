// Live control, by one person and by several: what one asks, all see.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { ConsolePage } from "./page.mjs";
import { until } from "./server.mjs";
import { setStage, shots } from "./stage.mjs";

const DESKTOP = { viewport: { width: 1280, height: 860 } };
const PHONE = { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true };
const options = { timeout: 90_000 };
const QUESTION = "Explain sessions to me.";

const stage = setStage();

const shoot = (view, name) => view.page.screenshot({ path: join(shots, `${name}.png`) });

/** A person with a browser of her own. */
async function person(as, session, device = DESKTOP) {
  return ConsolePage.open(await stage.browser.newContext(device), stage.server, session, as);
}

test("stop stops, and tells its receipts", options, async () => {
  const ann = await person("ann");
  await ann.send(QUESTION);
  await ann.answerOf(40);
  await ann.chip("working");
  const said = [];
  await ann.page.exposeFunction("said", (words) => said.push(words));
  await ann.page.evaluate(() => {
    const status = document.getElementById("status");
    new MutationObserver(() => globalThis.said(status.textContent)).observe(status, { childList: true, subtree: true });
  });
  await ann.button("Stop").click();
  await ann.line("cancel", /^Stop: asked by you( → delivered to \S+)? → applied$/);
  await ann.chip("stopped");
  await until("the outcome was told", () => said.includes("Stop applied"));
  assert.ok(said.includes("Stop accepted"), `receipts as they came: ${said}`);
  const state = await ann.state();
  assert.deepEqual(state.runs.map((run) => run.outcome), ["cancelled"]);
  assert.deepEqual(state.controls.map((control) => [control.kind, control.outcome]), [["cancel", "applied"]]);
  await ann.button("Stop").waitFor({ state: "hidden" });
  await ann.showsExactly(state);
  await shoot(ann, "control-stopped");
});

test("a message to an agent at work steers it, and stands in its run for everybody", options, async () => {
  const ann = await person("ann");
  await ann.send(QUESTION);
  await ann.answerOf(40);
  const bob = await person("bob", ann.session);
  await bob.answerOf(40);
  assert.equal(await ann.page.locator("#send").textContent(), "Steer", "the default while the agent is at work");
  await ann.send("Tell me about cursors instead.");
  await ann.line("steer", /^Steer: asked by you.* → taken in$/);
  await bob.line("steer", /^Steer: asked by ann → taken in$/);
  await bob.page.locator(".run .said", { hasText: "cursors instead" }).waitFor();
  await shoot(ann, "control-steered");
  await Promise.all([ann.ended(), bob.ended()]);
  const state = await ann.state();
  assert.equal(state.runs.length, 1, "it was the run at work that took it in");
  assert.equal(state.runs[0].input.length, 2);
  assert.equal(await ann.page.locator("#send").textContent(), "Send");
  await ann.showsExactly(state);
  await bob.showsExactly(state);
});

test("a message that interrupts ends one run and begins another", options, async () => {
  const ann = await person("ann");
  await ann.chooseBusy(/^Interrupt/);
  await ann.send(QUESTION);
  await ann.answerOf(40);
  assert.equal(await ann.page.locator("#send").textContent(), "Interrupt");
  await ann.send("What happens after a crash?");
  await ann.line("interrupt", /^Interrupt: asked by you.* → applied$/);
  await ann.ended(2);
  const state = await ann.state();
  assert.deepEqual(state.runs.map((run) => run.outcome), ["cancelled", "completed"]);
  await ann.page.reload();
  await ann.connection("live");
  assert.equal(await ann.page.locator("#send-menu-label").textContent(), "While the agent is at work: Interrupt");
});

test("a run stands still until somebody else lets it go on", options, async () => {
  const ann = await person("ann");
  await ann.send(QUESTION);
  await ann.answerOf(40);
  const bob = await person("bob", ann.session);
  await ann.button("Pause").click();
  await ann.line("pause", /^Pause: asked by you.* → applied$/);
  await Promise.all([ann.chip("paused"), bob.chip("paused")]);
  await shoot(bob, "control-paused");
  const { seq } = await ann.state();
  await bob.button("Resume").click();
  await bob.line("resume", /^Resume: asked by you.* → applied$/);
  await ann.line("resume", /^Resume: asked by bob → applied$/);
  await ann.ended();
  const state = await ann.state();
  assert.ok(state.seq > seq, "it went on");
  assert.deepEqual(state.runs.map((run) => run.outcome), ["completed"]);
  await ann.showsExactly(state);
});

test("what one person approves, the other sees approved, and cannot deny", options, async () => {
  const ann = await person("ann");
  await ann.send("Please delete my old drafts.");
  await ann.chip("waiting for approval");
  const bob = await person("bob", ann.session);
  await bob.chip("waiting for approval");
  const card = (view) => view.page.locator(".approval");
  await card(bob).locator(".expires").waitFor();
  assert.match(await card(bob).locator(".expires").textContent(), /^Expires in \d+ (s|min|h|d)$/);
  await shoot(ann, "control-approval");
  await ann.button("Approve").click();
  await until("ann's answer counts", async () => (await card(ann).getAttribute("data-verdict")) === "approved");
  await bob.page.locator('.approval[data-verdict="approved"]').waitFor();
  assert.match(await card(ann).locator(".verdict").textContent(), /^Approved by you/);
  assert.match(await card(bob).locator(".verdict").textContent(), /^Approved by ann/);
  await bob.button("Deny").waitFor({ state: "hidden" });
  await Promise.all([ann.ended(), bob.ended()]);
  const state = await ann.state();
  assert.deepEqual(state.runs.map((run) => run.outcome), ["completed"]);
  assert.deepEqual(state.runs[0].approvals.map((approval) => approval.verdict), ["approved"]);
  await shoot(bob, "control-approved");
});

test("who answers second is told who was first", options, async () => {
  const ann = await person("ann");
  await ann.send("Please delete my old drafts.");
  await ann.chip("waiting for approval");
  const bob = await person("bob", ann.session);
  await bob.chip("waiting for approval");
  // Bob's page does not hear of it in time: nothing is drawn while it holds its breath.
  await bob.page.evaluate(() => (globalThis.requestAnimationFrame = (draw) => ((globalThis.draw = draw), 1)));
  await ann.button("Approve").click();
  await ann.page.locator('.approval[data-verdict="approved"]').waitFor();
  await bob.button("Deny").click();
  await until("bob is told", async () => /already answered by ann/.test(await bob.page.locator("#status").textContent()));
  await bob.page.evaluate(() => globalThis.draw());
  await bob.page.locator(".approval .note", { hasText: "already answered by ann" }).waitFor();
  await ann.ended();
  await shoot(bob, "control-second");
});

test("a session is taken over and handed back, and everybody sees by whom", options, async () => {
  const ann = await person("ann");
  await ann.send(QUESTION);
  await ann.answerOf(40);
  const bob = await person("bob", ann.session);
  await bob.answerOf(40);
  await bob.button("Take over").click();
  const banner = (view) => view.page.locator("#banner");
  await banner(bob).filter({ hasText: "You have taken over" }).waitFor();
  await banner(ann).filter({ hasText: "bob has taken over" }).waitFor();
  await ann.chip("stopped, taken over");
  await bob.page.getByLabel("Message", { exact: true }).fill("Bob here, I will help you myself.");
  await bob.page.getByLabel("Message", { exact: true }).press("Enter");
  await ann.page.locator(".said.operator", { hasText: "Bob here" }).waitFor();
  await ann.send("Thank you. How do I resume?");
  await bob.page.locator(".said", { hasText: "How do I resume" }).waitFor();
  await shoot(ann, "control-held");
  const held = await ann.state();
  assert.deepEqual(held.runs.map((run) => [run.outcome, run.reason]), [["cancelled", "held"]]);
  assert.deepEqual(held.messages.slice(-2).map((message) => [message.role, message.by.id]), [
    ["operator", "bob"],
    ["user", "ann"],
  ]);
  await bob.button("Hand back").click();
  await Promise.all([ann, bob].map((view) => banner(view).waitFor({ state: "hidden" })));
  await Promise.all([ann.ended(2), bob.ended(2)]);
  const state = await ann.state();
  assert.deepEqual(state.runs.map((run) => run.outcome), ["cancelled", "completed"]);
  assert.equal(state.runs[1].input.length, 2, "the agent has what was said meanwhile");
  await ann.showsExactly(state);
  await bob.showsExactly(state);
});

test("it can all be reached on a phone, and by keyboard", options, async () => {
  const ann = await person("ann", undefined, PHONE);
  await ann.send(QUESTION);
  await ann.answerOf(20);
  for (const name of ["Pause", "Stop", "Take over"]) await ann.button(name).waitFor();
  await ann.page.locator("#send-menu").focus();
  await ann.page.keyboard.press("ArrowUp");
  await ann.page.keyboard.press("ArrowDown");
  await shoot(ann, "control-phone-menu");
  await ann.page.keyboard.press("Enter");
  assert.equal(await ann.page.locator("#send").textContent(), "Queue");
  assert.equal(await ann.page.evaluate(() => document.activeElement.id), "send-menu");
  const wide = await ann.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.equal(wide, 0, "nothing sticks out");
  await ann.send("Please delete my old drafts.");
  await ann.page.locator(".approval").waitFor({ timeout: 40_000 });
  await shoot(ann, "control-phone-approval");
  await ann.button("Deny").focus();
  await ann.page.keyboard.press("Enter");
  await ann.page.locator('.approval[data-verdict="denied"]').waitFor();
  await ann.ended(2);
});
