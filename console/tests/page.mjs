// The console as a person at the page sees it, and the session as the server has it.

import assert from "node:assert/strict";
import { until } from "./server.mjs";

export class ConsolePage {
  /** Opens the console; any error on the page fails the test that looks at `errors`. */
  static async open(context, server, session, as) {
    const self = new ConsolePage();
    self.page = await context.newPage();
    self.page.setDefaultTimeout(10_000);
    self.server = server;
    self.errors = [];
    self.page.on("pageerror", (error) => self.errors.push(String(error)));
    const who = as === undefined ? "" : `?as=${as}`;
    await self.page.goto(`${server.url}/console${who}${session === undefined ? "" : `#${session}`}`);
    return self;
  }

  async send(text, agent = "guide") {
    await this.page.locator("#agent").selectOption(agent);
    await this.page.getByLabel("Message", { exact: true }).fill(text);
    await this.page.getByLabel("Message", { exact: true }).press("Enter");
    await until("the address names the session", () => this.session);
  }

  get session() {
    return decodeURIComponent(new URL(this.page.url()).hash.slice(1)) || undefined;
  }

  /** What the agents wrote, as it stands on the page. */
  answer() {
    return this.page.evaluate(() =>
      [...document.querySelectorAll(".run .part.text")].map((part) => part.textContent).join("\n"),
    );
  }

  async answerOf(atLeast) {
    await until(`${atLeast} characters of answer`, async () => (await this.answer()).length >= atLeast);
    return this.answer();
  }

  button(name) {
    return this.page.getByRole("button", { name, exact: true });
  }

  /** Waits until the line of a control of that kind reads as `pattern` says. */
  line(kind, pattern) {
    const last = this.page.locator(`.controls [data-kind="${kind}"]`).last();
    return until(`the line of ${kind} reads ${pattern}`, async () => pattern.test(await last.textContent()));
  }

  /** Waits until the only, or the last, run says so on its chip. */
  chip(word) {
    const last = this.page.locator(".run > header .badge").last();
    return until(`the run is ${word}`, async () => (await last.textContent()) === word);
  }

  /** What Send does while its agent is at work. */
  async chooseBusy(title) {
    await this.page.locator("#send-menu").click();
    await this.page.getByRole("menuitemradio", { name: title }).click();
  }

  connection(state) {
    return until(`the connection is ${state}`, () =>
      this.page.evaluate((state) => document.getElementById("connection").dataset.state === state, state),
    );
  }

  /** Waits until every run on the page has ended. */
  ended(atLeast = 1) {
    return until("the runs on the page have ended", () =>
      this.page.evaluate((atLeast) => {
        const runs = [...document.querySelectorAll(".run")];
        const open = runs.filter((run) => ["requested", "active", "suspended"].includes(run.dataset.status));
        return runs.length >= atLeast && open.length === 0;
      }, atLeast),
    );
  }

  /** The session's view, from the server and not through the page. */
  async state() {
    const token = await this.page.evaluate(
      () => JSON.parse(document.getElementById("everthread-config").textContent).token,
    );
    const headers = { Authorization: `Bearer ${token}` };
    const response = await fetch(`${this.server.url}/v1/sessions/${this.session}/state`, { headers });
    assert.equal(response.status, 200);
    return response.json();
  }

  /** The page shows what the server has: each message once, with all of its words. */
  async showsExactly(view) {
    const shown = () =>
      this.page.evaluate(() =>
        [...document.querySelectorAll("[data-message]")].map((message) => words(message)).sort(),
      );
    await this.page.evaluate(() => {
      // Marks that Markdown makes invisible do not count, nor do white space and the titles of folded parts.
      const written = (node) => [...node.querySelectorAll(".markdown, .folded pre")].map((part) => part.textContent);
      globalThis.words = (node) => written(node).join("").replace(/[^\p{L}\p{N}]+/gu, "");
    });
    const written = view.messages.filter((message) => message.run !== undefined || isShownAsSaid(view, message));
    const expected = written.map((message) => plainWords(message)).sort();
    let last;
    await until(`the page shows ${expected.length} messages as the server has them`, async () => {
      last = await shown();
      return JSON.stringify(last) === JSON.stringify(expected);
    }, 10_000).catch(() => assert.deepEqual(last, expected));
    assert.deepEqual(this.errors, []);
  }
}

/** Input of sub-agents stands in their cards as their task. */
function isShownAsSaid(view, message) {
  return !view.runs.some((run) => run.parent_run !== undefined && run.input.includes(message.message));
}

function plainWords(message) {
  return message.parts
    .map((part) => unmarked(typeof part.value === "string" ? part.value : JSON.stringify(part.value, null, 2)))
    .join("")
    .replace(/[^\p{L}\p{N}]+/gu, "");
}

/** Markdown that is not words: numbers of list items and languages of code blocks. */
function unmarked(text) {
  return text.replace(/^\s*\d+[.)]\s/gm, "").replace(/^```\w*$/gm, "");
}
