// `storm`: everybody loses the connection at one instant while tokens go on, stays away for a moment, and comes back at one
// instant: how long until all are live again, and that nothing is lost or doubled.

import { verdict } from "./check.mjs";
import { Histogram } from "./histogram.mjs";
import { between, cpuOf, usages } from "./machine.mjs";
import { assemble, send, settled } from "./stream.mjs";

const LEAD_MS = 300;

const later = (ms) => new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));

export async function storm(peer, { params, pids, failures }) {
  const { sessions, followers } = await assemble(peer, params, () => {});
  const start = performance.now() + LEAD_MS;
  const sending = send(peer, sessions, start, (_, __, receipt) => { receipt?.catch((error) => failures.push(error.message)); });
  await later(start + params.before_s * 1000 - performance.now());
  for (const { follower } of followers) follower.cut();
  await later(params.away_s * 1000);

  const live = new Histogram();
  const before = usages(pids);
  const back = performance.now();
  const returns = followers.map(async ({ script, check, follower }) => {
    // Live again: here is what was written up to the moment of coming back.
    const target = script.written;
    await follower.open();
    await check.until(target);
    live.record(performance.now() - back);
  });
  const outcome = Promise.allSettled(returns).then((all) => all.filter(({ status }) => status === "rejected"));
  const refused = await Promise.race([outcome, later(params.patience_s * 1000).then(() => undefined)]);
  const all_live_ms = performance.now() - back;
  const processes = between(before, usages(pids), all_live_ms / 1000);
  if (refused?.length > 0) failures.push(`${refused.length} of ${followers.length} could not come back: ${refused[0].reason.message}`);
  await sending;
  await settled(followers.map(({ check }) => check), params.patience_s * 1000);
  const verified = verdict(followers.map(({ check }) => check), "every follower came back and got every token once, in order, as it was sent", failures);
  const cpu = cpuOf(processes);
  const each = (seconds) => Math.round(seconds * 1e6 / followers.length) / 1000;
  return {
    window_s: Math.round(all_live_ms) / 1000,
    verified,
    counts: { connections: followers.length, reconnects: live.count },
    latency_ms: { live: live.summary() },
    processes,
    figures: { all_live_ms: Math.round(all_live_ms), cpu_ms_per_return: each(cpu.server), cpu_ms_per_return_with_store: each(cpu.server + cpu.store) },
  };
}
