// Other words in the place of one's own, other answers, and the way between them: for everybody who looks.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { ConsolePage } from "./page.mjs";
import { until } from "./server.mjs";
import { setStage, shots } from "./stage.mjs";

const options = { timeout: 90_000 };

const stage = setStage();

async function person(as, session) {
  const context = await stage.browser.newContext({ viewport: { width: 1280, height: 860 } });
  return ConsolePage.open(context, stage.server, session, as);
}

/** What people said, as it stands on the page. */
const saidOn = ({ page }) => page.locator(".said .bubble").allTextContents();

/** Waits until the page counts versions like this, one after the other. */
const versions = (view, expected) =>
  until(`the versions are ${expected}`, async () => {
    const shown = await view.page.locator(".versions:not([hidden]) .count").allTextContents();
    return JSON.stringify(shown) === JSON.stringify(expected);
  });

test("a message is edited, and everybody can go back to what it said before", options, async () => {
  const ann = await person("ann");
  await ann.send("Explain sessions to me.");
  await ann.answerOf(40);
  const bob = await person("bob", ann.session);
  await bob.answerOf(40);
  assert.equal(await bob.button("Edit").count(), 0, "only one's own words are edited");
  await ann.page.locator(".said").hover();
  await ann.button("Edit").click();
  const field = ann.page.getByLabel("Edit the message");
  assert.equal(await field.inputValue(), "Explain sessions to me.");
  await field.press("Escape");
  await ann.button("Edit").click();
  await field.fill("What is a cursor?");
  await field.press("Enter");
  await Promise.all([versions(ann, ["2/2"]), versions(bob, ["2/2"])]);
  await until("the page shows the new words alone", async () => String(await saidOn(ann)) === "What is a cursor?");
  await ann.ended();
  const state = await ann.state();
  assert.deepEqual(state.runs.map((run) => run.outcome), ["cancelled", "completed"]);
  await ann.page.screenshot({ path: join(shots, "branch-edited.png") });

  await bob.button("Earlier version").click();
  await Promise.all([versions(ann, ["1/2"]), versions(bob, ["1/2"])]);
  assert.deepEqual(await saidOn(ann), ["Explain sessions to me."]);
  await ann.chip("stopped");
  assert.ok(await ann.button("Earlier version").isDisabled());
  await ann.send("Go on from here.");
  await ann.ended(2);
  assert.deepEqual(await saidOn(bob), ["Explain sessions to me.", "Go on from here."]);
  await ann.page.reload();
  await ann.connection("live");
  await versions(ann, ["1/2"]);
  assert.deepEqual(await saidOn(ann), ["Explain sessions to me.", "Go on from here."]);
  assert.deepEqual([...ann.errors, ...bob.errors], []);
});

test("an answer is regenerated, and both are kept", options, async () => {
  const ann = await person("ann");
  await ann.send("What is a cursor?");
  await ann.ended();
  const first = await ann.answer();
  await ann.page.locator(".run").hover();
  await ann.button("Regenerate guide").click();
  await versions(ann, ["2/2"]);
  await ann.answerOf(10);
  await ann.page.screenshot({ path: join(shots, "branch-regenerated.png") });
  await ann.button("Earlier version").click();
  await versions(ann, ["1/2"]);
  assert.equal(await ann.answer(), first, "the first answer, while the second is still being written");
  await until("both runs have ended", async () => (await ann.state()).runs.every((run) => run.status === "ended"));
  await ann.button("Later version").click();
  await versions(ann, ["2/2"]);
  const { runs, messages } = await ann.state();
  assert.deepEqual(runs.map((run) => run.outcome), ["completed", "completed"]);
  assert.deepEqual(runs[1].input, runs[0].input);
  assert.equal(messages.filter((message) => message.run === runs[1].run).length > 0, true);
  assert.equal(await ann.page.locator(".run").count(), 1, "one answer at a time");
  assert.deepEqual(ann.errors, []);
});
