// The works that write: `tokens` (many sessions), `fanout` (one session, many followers). Open loop: a token is handed over when
// it is due, whatever became of the ones before.

import { Check, verdict } from "./check.mjs";
import { Histogram } from "./histogram.mjs";
import { between, cpuOf, usages } from "./machine.mjs";
import { each } from "./net.mjs";
import { scripts as makeScripts } from "./script.mjs";

const OPENED_AT_ONCE = 50;
/** Between the last follower's arrival and the first token. */
const LEAD_MS = 300;

const later = (ms) => new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));

/** Sends every token when it is due; resolves when the last one is handed over. `onSent(script, index, receipt)`. */
export function send(peer, scripts, start, onSent) {
  const plan = scripts.flatMap((script) => script.due.map((due, index) => ({ due: start + due, script, index })));
  plan.sort((one, other) => one.due - other.due || one.index - other.index);
  let next = 0;
  return new Promise((resolve, reject) => {
    const pump = () => {
      try {
        while (next < plan.length && plan[next].due <= performance.now()) {
          const { script, index, due } = plan[next++];
          script.handed[index] = performance.now();
          script.written = index + 1;
          onSent(due, script.handed[index], peer.write(script, index));
        }
      } catch (error) {
        return reject(error);
      }
      if (next === plan.length) return resolve();
      setTimeout(pump, plan[next].due - performance.now());
    };
    pump();
  });
}

/** The sessions, their followers live, nothing written yet. */
export async function assemble(peer, params, onToken) {
  const sessions = makeScripts(params.sessions, { perSecond: params.tokens_per_s_per_session, seconds: params.seconds_s, tokens: params.tokens, round: params.round });
  await peer.prepare(sessions, { writing: true });
  const follow = sessions.flatMap((script) => Array.from({ length: params.followers_per_session - 1 }, () => script));
  const followers = [];
  // One follower of each session comes before the others: some servers have a place of its own for it.
  for (const group of [sessions, follow]) {
    await each(group, OPENED_AT_ONCE, async (script) => {
      const check = new Check(script, (index, now) => onToken(script, index, now));
      const follower = peer.follower(script, (text) => check.text(text));
      followers.push({ script, check, follower });
      await follower.open();
    });
  }
  return { sessions, followers };
}

/** Waits until every check is whole or has found something, for so long at most. */
export async function settled(checks, patience_ms) {
  const all = Promise.all(checks.map((check) => check.until(check.script.tokens.length)));
  let timer;
  await Promise.race([all, new Promise((resolve) => { timer = setTimeout(resolve, patience_ms); })]);
  clearTimeout(timer);
}

export async function stream(peer, { params, pids, failures }) {
  const [delivery, fromSocket, ack, late] = [new Histogram(), new Histogram(), new Histogram(), new Histogram()];
  const counts = { tokens_sent: 0, deliveries: 0 };
  const inWindow = { deliveries: 0, confirmed: 0 };
  const isInWindow = (now) => now >= from && now < to;
  let [start, from, to] = [Infinity, Infinity, Infinity];
  const { sessions, followers } = await assemble(peer, params, (script, index, now) => {
    const due = start + script.due[index];
    counts.deliveries += 1;
    if (isInWindow(now)) inWindow.deliveries += 1;
    if (due < from) return;
    delivery.record(now - due);
    fromSocket.record(now - script.handed[index]);
  });
  start = performance.now() + LEAD_MS;
  from = start + params.warmup_s * 1000;
  to = start + params.seconds_s * 1000;
  const looks = {};
  const look = async (name, at) => { await later(at - performance.now()); looks[name] = { at: performance.now(), usage: usages(pids) }; };
  const watching = Promise.all([look("begin", from), look("end", to)]);
  await send(peer, sessions, start, (due, now, receipt) => {
    counts.tokens_sent += 1;
    if (due >= from) late.record(now - due);
    receipt?.then(() => {
      const then = performance.now();
      if (isInWindow(then)) inWindow.confirmed += 1;
      if (due >= from) ack.record(then - due);
    }, (error) => failures.push(error.message));
  });
  await watching;
  await settled(followers.map(({ check }) => check), params.patience_s * 1000);
  const window_s = (looks.end.at - looks.begin.at) / 1000;
  const processes = between(looks.begin.usage, looks.end.usage, window_s);
  const cpu = cpuOf(processes);
  const verified = verdict(followers.map(({ check }) => check), "every follower got every token once, in order, as it was sent", failures);
  const sum = (what) => followers.reduce((total, { follower }) => total + follower[what], 0);
  const per = (count, seconds) => seconds > 0 ? Math.round(count / seconds) : undefined;
  return {
    window_s: Math.round(window_s * 100) / 100,
    verified,
    counts: { ...counts, frames: sum("frames"), bytes: sum("bytes"), connections: followers.length },
    rates: {
      tokens_sent_per_s: per(counts.tokens_sent, params.seconds_s),
      tokens_per_s: inWindow.confirmed > 0 ? per(inWindow.confirmed, window_s) : undefined,
      deliveries_per_s: per(inWindow.deliveries, window_s),
      deliveries_per_cpu_s: per(inWindow.deliveries, cpu.server),
      deliveries_per_cpu_s_with_store: per(inWindow.deliveries, cpu.server + cpu.store),
      tokens_per_cpu_s_store: per(inWindow.deliveries / params.followers_per_session, cpu.store),
    },
    latency_ms: { delivery: delivery.summary(), delivery_from_socket: fromSocket.summary(), ack: ack.summary(), send_late: late.summary() },
    processes,
    figures: { bytes_per_delivery: Math.round(sum("bytes") / Math.max(1, verified.tokens_delivered)) },
  };
}
