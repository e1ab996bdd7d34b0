// One run of one work against one server, in a process of its own: takes a job on stdin, prints a report on stdout.

import { byName } from "../adapters/index.mjs";
import { stream } from "./stream.mjs";

const WORKS = { tokens: stream, fanout: stream };

let text = "";
for await (const more of process.stdin.setEncoding("utf8")) text += more;
const job = JSON.parse(text);
job.pids = { ...job.pids, loadtest: process.pid };
const peer = await byName(job.server).open(job.target, { writers: job.params.writers });
const report = await WORKS[job.work](peer, job);
await peer.close();
process.stdout.write(JSON.stringify(report), () => process.exit(0));
