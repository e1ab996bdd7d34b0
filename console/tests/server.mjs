// A real server on ports of its own, and a browser to look at it with.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const READY_WITHIN_MS = 20_000;

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** Waits until `probe` answers something true, or says what was waited for. */
export async function until(what, probe, withinMs = 30_000) {
  const deadline = Date.now() + withinMs;
  let last;
  for (;;) {
    try {
      last = await probe();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    if (Date.now() > deadline) throw new Error(`not within ${withinMs} ms: ${what} (last: ${last})`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export class Server {
  static async start() {
    const server = new Server();
    server.port = await freePort();
    server.adminPort = await freePort();
    server.dataDir = await mkdtemp(join(tmpdir(), "everthread-console-"));
    await server.run();
    return server;
  }

  /** Where its archived sessions are. */
  get archive() {
    return join(this.dataDir, "archive");
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async run() {
    this.killing = false;
    const bin = process.env.EVERTHREAD_BIN;
    if (!bin) throw new Error("EVERTHREAD_BIN names no server");
    const at = (port) => `127.0.0.1:${port}`;
    const args = ["dev", "--listen", at(this.port), "--admin", at(this.adminPort), "--data-dir", this.dataDir];
    args.push("--archive", `file://${this.archive}`);
    // A pipe that nobody reads would keep the test waiting for the server.
    this.process = spawn(bin, args, { stdio: process.env.EVERTHREAD_LOG ? "inherit" : "ignore" });
    this.exited = once(this.process, "exit");
    this.process.once("exit", (code, signal) => {
      if (!this.killing) console.error(`the server ended by itself: code ${code}, signal ${signal}`);
    });
    const ready = async () => (await fetch(`http://127.0.0.1:${this.adminPort}/readyz`)).ok;
    await until("the server is ready", ready, READY_WITHIN_MS);
  }

  async kill() {
    this.killing = true;
    this.process.kill("SIGKILL");
    await this.exited;
  }

  async stop() {
    await this.kill();
    await rm(this.dataDir, { recursive: true, force: true });
  }
}

export function launchBrowser() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--headless=new",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
