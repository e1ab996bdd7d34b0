// Drives the same work against every server, side by side: in each round every server gets each work once, one after the other,
// and the order moves on from round to round. Prints ratios, and writes all figures.

import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, release, tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ADAPTERS } from "./adapters/index.mjs";
import { Host } from "./src/host.mjs";
import { SIZES, WORKS, params } from "./src/plan.mjs";
import { markdown, notes, ratios } from "./src/report.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
/** A run that takes longer than what it measures and waits for, by so much, hangs. */
const OVERTIME_S = 120;

const { values: flags } = parseArgs({
  options: {
    seconds: { type: "string" },
    rounds: { type: "string" },
    smoke: { type: "boolean", default: false },
    works: { type: "string", default: WORKS.join(",") },
    servers: { type: "string", default: ADAPTERS.map(({ name }) => name).join(",") },
    json: { type: "string", default: "report.json" },
    markdown: { type: "string", default: "report.md" },
    everthread: { type: "string", default: here("../../target/release/everthread") },
    redis: { type: "string", default: "redis-server" },
    nats: { type: "string", default: existsSync(here(".venv/bin/nats-server")) ? here(".venv/bin/nats-server") : "nats-server" },
    "server-cores": { type: "string", default: "0" },
    "generator-cores": { type: "string", default: "1" },
    dir: { type: "string", default: tmpdir() },
    help: { type: "boolean", default: false },
    ...Object.fromEntries(Object.keys(SIZES).map((name) => [name, { type: "string" }])),
  },
});

if (flags.help) {
  console.log("node run.mjs [--seconds N] [--rounds K] [--smoke] [--works a,b] [--servers a,b] [--json FILE] [--markdown FILE]");
  console.log("  [--everthread PATH] [--redis PATH] [--nats PATH] [--server-cores 0] [--generator-cores 1] [--dir DIR]");
  for (const [name, [size, smoke, what]] of Object.entries(SIZES)) console.log(`  --${name.padEnd(16)} ${what} (${size}; smoke ${smoke})`);
  process.exit(0);
}

function refuse(text) {
  console.error(text);
  process.exit(2);
}

function number(name, text) {
  const value = Number(text);
  if (!(value > 0)) refuse(`--${name} must be a positive number`);
  return value;
}

function pick(name, all, known) {
  const chosen = all.split(",");
  const odd = chosen.find((one) => !known.includes(one));
  if (odd !== undefined) refuse(`--${name}: there is no ${odd}; there are ${known.join(", ")}`);
  return chosen;
}

const seconds = number("seconds", flags.seconds ?? (flags.smoke ? 2 : 10));
const rounds = number("rounds", flags.rounds ?? (flags.smoke ? 1 : 3));
const size = Object.fromEntries(Object.entries(SIZES).map(([name, [usual, smoke]]) => [name, number(name, flags[name] ?? (flags.smoke ? smoke : usual))]));
const works = pick("works", flags.works, WORKS);
const servers = pick("servers", flags.servers, ADAPTERS.map(({ name }) => name)).map((name) => ADAPTERS.find((adapter) => adapter.name === name));
const tools = { everthread: flags.everthread, redis: flags.redis, nats: flags.nats };

/** The version that a program or a package says it has; nothing if it is not there. */
function version({ tool, package: name }) {
  if (name) return JSON.parse(readFileSync(here(`node_modules/${name}/package.json`), "utf8")).version;
  const { status, stdout } = spawnSync(tools[tool], ["--version"], { encoding: "utf8" });
  return status === 0 ? /\d+\.\d+\.\d+/.exec(stdout)?.[0] : undefined;
}

const versions = Object.fromEntries(servers.map((adapter) => [adapter.name, version(adapter)]));
const installed = Object.fromEntries(Object.keys(tools).map((tool) => [tool, version({ tool }) !== undefined]));
const isPinned = cpus().length > 1 && spawnSync("taskset", ["--version"]).status === 0;
const cores = isPinned ? { server: flags["server-cores"], generator: flags["generator-cores"] } : undefined;

let host;
let generator;
let isStopping = false;
const stop = async () => {
  isStopping = true;
  generator?.kill("SIGKILL");
  await host?.end();
  process.exit(130);
};
process.on("SIGINT", stop).on("SIGTERM", stop);

/** One run of a work in a process of its own; resolves with what it printed. */
async function generate(job) {
  const [program, args] = host.pinned("generator", process.execPath, [here("src/generator.mjs")]);
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"], env: { ...process.env, NODE_ENV: "production" } });
  generator = child;
  let [out, errors] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text) => { out += text; });
  child.stderr.setEncoding("utf8").on("data", (text) => { errors += text; });
  const overtime = setTimeout(() => child.kill("SIGKILL"), (seconds + 3 * size.patience + OVERTIME_S) * 1000);
  child.stdin.end(JSON.stringify(job));
  const status = await new Promise((resolve) => child.on("close", resolve));
  clearTimeout(overtime);
  generator = undefined;
  if (status !== 0) throw new Error(errors.trim() || "the generator did not end in time");
  return JSON.parse(out);
}

async function run(adapter, work, round) {
  const { name, server = name, label } = adapter;
  const shape = params(work, size, seconds, round);
  const head = {
    format: "everthread-loadtest/1", scenario: work, server, label, name, server_version: versions[name], round,
    started_unix_ms: Date.now(), params: shape,
  };
  const missing = (adapter.needs ?? []).find((tool) => !installed[tool]);
  const why = missing ? `${tools[missing]} is not installed` : adapter.cannot(work);
  if (why) return { ...head, cannot: [why] };
  host = new Host({ tools, cores, top: flags.dir });
  await host.begin();
  try {
    const target = await adapter.start(host);
    const report = await generate({ server: name, work, params: shape, target, pids: host.pids });
    return { ...head, ...report, cannot: [], notes: notes({ ...head, ...report }) };
  } catch (error) {
    return { ...head, error: [error.message, host.said()].filter(Boolean).join("; ") };
  } finally {
    if (!isStopping) await host.end();
  }
}

const said = (report) => {
  if (report.error) return `failed: ${report.error.split("\n")[0]}`;
  if (report.cannot.length > 0) return `cannot: ${report.cannot[0]}`;
  if (!report.verified.ok) return `not whole: ${report.verified.problems[0]}`;
  return ["whole", ...report.notes].join("; ");
};

const runs = [];
for (const work of works) {
  for (let round = 0; round < rounds; round += 1) {
    const first = round % servers.length;
    for (const adapter of [...servers.slice(first), ...servers.slice(0, first)]) {
      const report = await run(adapter, work, round);
      // Nothing further is begun; `stop` ends the process.
      if (isStopping) await new Promise(() => {});
      runs.push(report);
      console.error(`${work} ${round + 1}/${rounds} ${adapter.name}: ${said(report)}`);
    }
  }
}

const settings = { seconds, rounds, size, cores, works, servers: servers.map(({ name }) => name) };
const machine = { cpu: cpus()[0]?.model, cores: cpus().length, kernel: release(), node: process.version, redis: version({ tool: "redis" }) };
const whole = { format: "everthread-peers/1", machine, settings, ratios: ratios(runs, servers), runs };
writeFileSync(flags.json, `${JSON.stringify(whole, null, 1)}\n`);
const table = markdown(whole, servers);
writeFileSync(flags.markdown, table);
console.log(table);

// A peer that loses something is a finding; Everthread that does, or a run that did not come about, is a failure. In a smoke run
// only what is known of a peer is a finding: anything else means that its adapter is broken.
const isKnown = ({ name, scenario }) => servers.find((adapter) => adapter.name === name).loses?.includes(scenario);
const isFinding = (report) => report.server !== "everthread" && (!flags.smoke || isKnown(report));
const isBad = (report) => report.error !== undefined || (report.verified?.ok === false && !isFinding(report));
process.exit(runs.some(isBad) ? 1 : 0);
