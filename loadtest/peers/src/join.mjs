// `join`: late joiners into a session with a long history that is still being written to, one after another: how long until
// each has all of it, and what that costs.

import { Check, verdict } from "./check.mjs";
import { Histogram } from "./histogram.mjs";
import { between, cpuOf, usages } from "./machine.mjs";
import { assemble, settled } from "./stream.mjs";

/** Tokens that wait for a receipt, or for the first follower, while the history is written. */
const AHEAD_MAX = 64;
/** What is done after a run's end has passed: a server folds, compacts, collects. */
const SETTLE_MS = 1_500;

const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export async function join(peer, { params, pids, failures }) {
  const shape = { sessions: 1, followers_per_session: 1, tokens_per_s_per_session: 1000, seconds_s: params.history * 2 / 1000, tokens: params.history, round: params.round };
  const { sessions: [script], followers: [first] } = await assemble(peer, shape, () => {});
  for (let index = 0; index < script.tokens.length; index += 1) {
    script.handed[index] = performance.now();
    const receipt = peer.write(script, index);
    if (index % AHEAD_MAX === AHEAD_MAX - 1) await Promise.all([receipt, first.check.until(index + 1)]);
  }
  await settled([first.check], params.patience_s * 1000);
  await later(SETTLE_MS);
  const [whole, bytes, checks] = [new Histogram(), [], [first.check]];
  const before = usages(pids);
  const begun = performance.now();
  for (let number = 0; number < params.joiners; number += 1) {
    const check = new Check(script);
    checks.push(check);
    const follower = peer.follower(script, (text) => check.text(text));
    const start = performance.now();
    await follower.open();
    await settled([check], params.patience_s * 1000);
    whole.record(performance.now() - start);
    bytes.push(follower.bytes);
    follower.cut();
    if (!check.isWhole) break;
  }
  const window_s = (performance.now() - begun) / 1000;
  const processes = between(before, usages(pids), window_s);
  const cpu = cpuOf(processes);
  await peer.finish(script);
  const per = (sum) => Math.round(sum / bytes.length * 1000) / 1000;
  return {
    window_s: Math.round(window_s * 100) / 100,
    verified: verdict(checks, "the first follower and every joiner got the whole history once, in order, as it was sent", failures),
    counts: { tokens_sent: script.tokens.length, connections: bytes.length, bytes: bytes.reduce((sum, one) => sum + one, 0) },
    latency_ms: { join: whole.summary() },
    processes,
    figures: {
      text_bytes: Buffer.byteLength(script.text),
      bytes_per_join: Math.round(per(bytes.reduce((sum, one) => sum + one, 0))),
      cpu_ms_per_join: per(cpu.server * 1000),
      cpu_ms_per_join_with_store: per((cpu.server + cpu.store) * 1000),
    },
  };
}
