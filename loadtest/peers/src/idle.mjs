// `idle`: connections that follow and hear nothing, one session each: what they cost in memory and CPU.

import { between, usages } from "./machine.mjs";
import { each } from "./net.mjs";
import { Check, verdict } from "./check.mjs";
import { scripts as makeScripts } from "./script.mjs";

const OPENED_AT_ONCE = 50;
/** Before memory is read: what opening costs is not what holding costs. */
const SETTLE_MS = 1_000;

const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export async function idle(peer, { params, pids, failures }) {
  const sessions = makeScripts(params.connections, { perSecond: 1, tokens: 0 });
  await peer.prepare(sessions, { writing: false });
  await later(SETTLE_MS);
  const before = usages(pids);
  const begun = performance.now();
  const followers = sessions.map((script) => peer.follower(script, (text) => checks.get(script).text(text)));
  const checks = new Map(sessions.map((script) => [script, new Check(script)]));
  await each(followers, OPENED_AT_ONCE, (follower) => follower.open());
  const opened_ms = performance.now() - begun;
  const opening = usages(pids);
  await later(SETTLE_MS);
  const settled = usages(pids);
  await later(params.seconds_s * 1000);
  const after = usages(pids);
  const processes = between(settled, after, params.seconds_s);
  const per = (name) => (after[name].resident_bytes - before[name].resident_bytes) / params.connections;
  const bytes = (name) => name in after ? Math.round(per(name)) : undefined;
  return {
    window_s: params.seconds_s,
    verified: verdict([...checks.values()], "every connection was opened, and nothing came", failures),
    counts: { connections: params.connections, bytes: followers.reduce((sum, { bytes }) => sum + bytes, 0) },
    processes,
    figures: {
      bytes_per_connection: bytes("node"),
      bytes_per_connection_store: bytes("redis"),
      opened_per_s: Math.round(params.connections / (opened_ms / 1000)),
      cpu_ms_per_opening: Math.round((opening.node.cpu_s - before.node.cpu_s) * 1e6 / params.connections) / 1000,
      cpu_us_per_connection_s: Math.round(processes.node.cpu_s * 1e6 / params.connections / params.seconds_s * 10) / 10,
    },
  };
}
