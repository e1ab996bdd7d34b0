// What decides whether a run counts, and what its figures mean: these must be right before any server is.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Check, verdict } from "../src/check.mjs";
import { Histogram } from "../src/histogram.mjs";
import { SIZES, WORKS, params } from "../src/plan.mjs";
import { LINES, markdown, notes, ratio, ratios } from "../src/report.mjs";
import { Script } from "../src/script.mjs";
import { Parser } from "../src/sse.mjs";
import { stream } from "../src/stream.mjs";

const script = (seed = 7) => new Script("s", seed, 50, { perSecond: 100 });

test("the same seed says the same, another one something else", () => {
  assert.equal(script(1).text, script(1).text);
  assert.deepEqual(script(1).due, script(1).due);
  assert.notEqual(script(1).text, script(2).text);
});

test("tokens are due at the rate that was asked for, pauses included", () => {
  const { due } = new Script("s", 3, 20_000, { perSecond: 50 });
  const rate = due.length / (due.at(-1) / 1000);
  assert.ok(Math.abs(rate - 50) < 2, `${rate} per second`);
});

test("a follower that gets every token once and in order is whole, however the pieces are cut", () => {
  const sent = script();
  const [tokenwise, merged] = [new Check(sent), new Check(sent)];
  for (const token of sent.tokens) tokenwise.text(token);
  merged.text(sent.text.slice(0, 11));
  merged.text(sent.text.slice(11));
  const verified = verdict([tokenwise, merged], "");
  assert.equal(verified.ok, true);
  assert.equal(verified.tokens_delivered, 2 * sent.tokens.length);
});

const damages = {
  "a token that is lost": (tokens) => tokens.splice(20, 1),
  "a token that comes twice": (tokens) => tokens.splice(20, 0, tokens[20]),
  "two tokens in the wrong order": (tokens) => tokens.splice(20, 2, tokens[21], tokens[20]),
  "a token that is changed": (tokens) => { tokens[20] = `${tokens[20].slice(0, -1)}~`; },
  "a space that is lost": (tokens) => { const at = tokens.findIndex((token) => token.startsWith(" ")); tokens[at] = tokens[at].slice(1); },
  "an end that never comes": (tokens) => tokens.pop(),
  "something behind the end": (tokens) => tokens.push("x"),
};

for (const [name, damage] of Object.entries(damages)) {
  test(`${name} fails the run`, () => {
    const check = new Check(script());
    const tokens = [...check.script.tokens];
    damage(tokens);
    for (const token of tokens) check.text(token);
    const verified = verdict([check], "");
    assert.equal(verified.ok, false);
    assert.equal(verified.problems.length, 1);
  });
}

test("a failure outside of the followers fails the run too", () => {
  const check = new Check(script());
  check.text(check.script.text);
  assert.equal(verdict([check], "", ["the server hung up"]).ok, false);
});

test("quantiles are off by less than one percent", () => {
  const histogram = new Histogram();
  for (let value = 1; value <= 100_000; value += 1) histogram.record(value / 100);
  const { p50_ms, p99_ms, max_ms, count } = histogram.summary();
  assert.equal(count, 100_000);
  assert.equal(max_ms, 1000);
  assert.ok(Math.abs(p50_ms / 500 - 1) < 0.01 && Math.abs(p99_ms / 990 - 1) < 0.01, `${p50_ms} ${p99_ms}`);
  assert.equal(new Histogram().summary(), undefined);
});

test("events are put together however their text is cut", () => {
  const text = "event: data\ndata:one\ndata: two\n\n: nothing\n\ndata: é\n\n";
  for (let size = 1; size < text.length; size += 1) {
    const found = [];
    const parser = new Parser((type, data) => found.push([type, data]));
    for (let from = 0; from < text.length; from += size) parser.take(text.slice(from, from + size));
    assert.deepEqual(found, [["data", "one\ntwo"], ["message", "é"]]);
  }
});

test("a ratio above one means ahead, whether more or less is better", () => {
  const run = (per_cpu, p50) => ({ rates: { deliveries_per_cpu_s: per_cpu }, latency_ms: { delivery: { p50_ms: p50 } } });
  const [rate, , p50] = LINES.tokens;
  assert.equal(ratio(rate, run(300, 2), run(100, 4)), 3);
  assert.equal(ratio(p50, run(300, 2), run(100, 4)), 2);
  assert.equal(ratio(p50, run(300, 2), {}), undefined);
});

const adapters = [
  { name: "ours", server: "everthread", title: "", promises: {} },
  { name: "one", against: "ours", title: "", promises: {} },
  { name: "other", against: "ours", title: "", promises: {} },
];
const joined = (name, round, p50_ms, ok = true) => ({ name, server: name === "ours" ? "everthread" : name, scenario: "join", round, cannot: [], notes: [], verified: { ok, problems: ok ? [] : ["lost it"] }, latency_ms: { join: { p50_ms } } });

test("ratios are taken round by round, and only of runs that were whole", () => {
  const runs = [joined("ours", 0, 1), joined("one", 0, 2), joined("ours", 1, 1), joined("one", 1, 4), joined("ours", 2, 1), joined("one", 2, 100, false)];
  const [found] = ratios(runs, adapters);
  assert.deepEqual([found.rounds, found.median, found.least, found.most], [2, 3, 2, 4]);
});

test("what a peer cannot do, and what it lost, stands in the table", () => {
  const runs = [joined("ours", 0, 1), { ...joined("one", 0), verified: undefined, cannot: ["has no history"] }, joined("other", 0, 2, false)];
  const table = markdown({ runs, ratios: ratios(runs, adapters), settings: { rounds: 1 } }, adapters);
  assert.match(table, /one: has no history/);
  assert.match(table, /other: not whole: lost it/);
  assert.doesNotMatch(table, /\*\*\d/);
});

test("a server that falls behind, and a core that is full, are noted", () => {
  const run = (deliveries_per_s, cpu_cores, window_s = 5) => notes({ window_s, params: { followers_per_session: 2 }, rates: { tokens_sent_per_s: 100, deliveries_per_s }, processes: { node: { cpu_cores }, loadtest: { cpu_cores: 0.1 } } });
  assert.deepEqual(run(199, 0.5), []);
  assert.match(run(20, 0.5)[0], /did not keep up: 20 of 200/);
  assert.match(run(199, 0.99)[0], /server's core was full/);
  assert.deepEqual(run(199, 0.99, 0.2), []);
});

test("every work has a plan, and lines to be compared by", () => {
  const size = Object.fromEntries(Object.entries(SIZES).map(([name, [usual]]) => [name, usual]));
  for (const work of WORKS) {
    assert.ok(LINES[work].length > 0);
    assert.equal(params(work, size, 10, 2).round, 2);
  }
});

/** A server in memory; `damage` may change what a follower gets for a token. */
const inMemory = (damage = (text) => [text]) => {
  const followers = [];
  return {
    prepare: async () => {},
    write: async (sent, index) => { for (const { name, onText } of followers) if (name === sent.name) for (const text of damage(sent.tokens[index], index)) onText(text); },
    finish: async () => {},
    follower: ({ name }, onText) => {
      followers.push({ name, onText });
      return { open: async () => {}, cut: () => {}, bytes: 0, frames: 0 };
    },
  };
};
const small = { sessions: 2, followers_per_session: 2, tokens_per_s_per_session: 100, seconds_s: 0.5, warmup_s: 0.1, patience_s: 0.2, round: 0 };
const drive = (peer) => stream(peer, { params: small, pids: { node: process.pid, loadtest: process.pid }, failures: [] });

test("a whole run is driven at its rate and verified", async () => {
  const report = await drive(inMemory());
  assert.equal(report.verified.ok, true, report.verified.problems[0]);
  assert.equal(report.verified.followers, 4);
  assert.equal(report.verified.tokens_delivered, 2 * report.counts.tokens_sent);
  assert.ok(report.latency_ms.delivery.count > 0 && report.rates.deliveries_per_cpu_s > 0);
});

test("a server that loses one token of one session fails it", async () => {
  const report = await drive(inMemory((text, index) => index === 10 ? [] : [text]));
  assert.equal(report.verified.ok, false);
});
