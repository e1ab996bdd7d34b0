// One run of one work against one server, in a process of its own: takes a job on stdin, prints what it measured on stdout.

import { byName } from "../adapters/index.mjs";
import { idle } from "./idle.mjs";
import { join } from "./join.mjs";
import { storm } from "./storm.mjs";
import { stream } from "./stream.mjs";

const WORKS = { tokens: stream, fanout: stream, idle, join, storm };

/** What broke outside of any call of ours, a message that could not be understood above all: the run has failed, and goes on. */
const failures = [];
process.on("uncaughtException", (error) => failures.push(error.message));
process.on("unhandledRejection", (error) => failures.push(error?.message ?? String(error)));

let text = "";
for await (const more of process.stdin.setEncoding("utf8")) text += more;
const job = JSON.parse(text);
try {
  const peer = await byName(job.server).open(job.target, { writers: job.params.writers });
  const pids = { ...job.pids, loadtest: process.pid };
  const report = await WORKS[job.work](peer, { params: job.params, pids, failures });
  await peer.close();
  process.stdout.write(JSON.stringify(report), () => process.exit(0));
} catch (error) {
  console.error([error.stack, ...failures].join("\n"));
  process.exit(1);
}
