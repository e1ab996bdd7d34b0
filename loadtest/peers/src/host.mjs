// The processes of one run: a server, pinned to its cores, and the store it needs, pinned to the generator's. Everything that
// was started is stopped, and what it wrote is removed, however the run ends.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { join } from "node:path";

const READY_WITHIN_MS = 20_000;
const LOOK_EVERY_MS = 20;
const STOP_WITHIN_MS = 3_000;
const ERRORS_KEPT = 2_000;
/** Below what systems give to outgoing connections, which would take a port between our look at it and the server's. */
const PORTS_FROM = 20_000;
const PORTS_TO = 32_000;

const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Host {
  /** `tools`: paths by name. `cores`: `{server, generator}` as taskset takes them, or undefined for no pinning. */
  constructor({ tools, cores, top }) {
    Object.assign(this, { tools, cores, top });
    this.children = [];
    /** Process ids by name, for the figures. */
    this.pids = {};
  }

  async begin() {
    this.dir = await mkdtemp(join(this.top, "peers-"));
  }

  /** A command line with its cores. */
  pinned(side, command, args) {
    return this.cores ? ["taskset", ["-c", this.cores[side], command, ...args]] : [command, args];
  }

  /** Starts a process of the server under measurement; `name` is what its figures are called. */
  spawn(name, command, args, { side = "server", env = {} } = {}) {
    const [program, all] = this.pinned(side, command, args);
    const child = spawn(program, all, { cwd: this.dir, env: { ...process.env, ...env }, stdio: ["ignore", "ignore", "pipe"] });
    const process_ = { name, child, errors: "", ended: false };
    child.stderr.setEncoding("utf8").on("data", (text) => { process_.errors = (process_.errors + text).slice(-ERRORS_KEPT); });
    child.on("error", (error) => { process_.errors += error.message; process_.ended = true; });
    child.on("exit", () => { process_.ended = true; });
    this.children.push(process_);
    this.pids[name] = child.pid;
    return process_;
  }

  /** A Node server of ours around a peer's library. */
  node(name, script, settings) {
    return this.spawn(name, process.execPath, [script, JSON.stringify(settings)], { env: { NODE_ENV: "production" } });
  }

  /** A port that is free now, and that no outgoing connection is given meanwhile. */
  async port() {
    for (;;) {
      const port = PORTS_FROM + Math.floor(Math.random() * (PORTS_TO - PORTS_FROM));
      const isFree = await new Promise((resolve) => {
        const server = createServer().on("error", () => resolve(false));
        server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
      });
      if (isFree) return port;
    }
  }

  /** Redis as it is run for data that matters: append-only file, synced every second, nothing evicted. */
  async redis() {
    const port = await this.port();
    const settings = { port, bind: "127.0.0.1", dir: this.dir, appendonly: "yes", appendfsync: "everysec", save: "", "maxmemory-policy": "noeviction", maxclients: 10000 };
    const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
    const redis = this.spawn("redis", this.tools.redis, args, { side: "generator" });
    await this.listening(redis, port);
    return { url: `redis://127.0.0.1:${port}`, port };
  }

  /** Waits until a port takes connections. */
  async listening(process_, port) {
    await this.until(process_, () => new Promise((resolve) => {
      const socket = connect(port, "127.0.0.1", () => { socket.destroy(); resolve(true); });
      socket.on("error", () => resolve(false));
    }));
  }

  /** Waits until a URL answers 200. */
  async answering(process_, url) {
    await this.until(process_, () => fetch(url).then((answer) => answer.ok, () => false));
  }

  async until(process_, isReady) {
    const end = Date.now() + READY_WITHIN_MS;
    while (!await isReady()) {
      if (process_.ended) throw new Error(`${process_.name} ended: ${process_.errors.trim()}`);
      if (Date.now() > end) throw new Error(`${process_.name} is not ready after ${READY_WITHIN_MS} ms: ${process_.errors.trim()}`);
      await later(LOOK_EVERY_MS);
    }
  }

  /** What the processes said last, if anything, for a run that failed. */
  said() {
    return this.children.filter(({ errors }) => errors.trim()).map(({ name, errors }) => `${name}: ${errors.trim()}`).join("\n");
  }

  /** Stops everything, servers first, and removes what they wrote. */
  async end() {
    for (const { child, ended } of this.children.reverse()) {
      if (ended || child.pid === undefined) continue;
      const exit = once(child, "exit");
      child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), STOP_WITHIN_MS);
      await exit;
      clearTimeout(timer);
    }
    if (this.dir) await rm(this.dir, { recursive: true, force: true });
  }
}
