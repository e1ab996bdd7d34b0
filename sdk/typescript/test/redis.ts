// A real `redis-server` of the tests' own that keeps what it has answered over a kill.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const READY_WITHIN_MS = 20_000;

export class Redis {
  readonly #dir: string;
  #process: ChildProcess | undefined;

  private constructor(dir: string) {
    this.#dir = dir;
  }

  static async start(): Promise<Redis> {
    const redis = new Redis(await mkdtemp(join(tmpdir(), "everthread-redis-")));
    await redis.run();
    return redis;
  }

  /** Its address for `--redis`. */
  get url(): string {
    return `unix://${this.#socket}`;
  }

  /** Starts it, again after `kill`, with the same data. */
  async run(): Promise<void> {
    const keep = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", this.#dir];
    this.#process = spawn("redis-server", ["--port", "0", "--unixsocket", this.#socket, ...keep], { stdio: "ignore" });
    // Without this a program that cannot be started ends the tests without a word of why.
    const failed = once(this.#process, "error").then(([error]) => Promise.reject(error as Error));
    await Promise.race([failed, this.#ready()]);
    failed.catch(() => undefined);
  }

  async kill(): Promise<void> {
    const exited = once(this.#process!, "exit");
    this.#process!.kill("SIGKILL");
    await exited;
  }

  async stop(): Promise<void> {
    await this.kill();
    await rm(this.#dir, { recursive: true, force: true });
  }

  get #socket(): string {
    return join(this.#dir, "redis.sock");
  }

  async #ready(): Promise<void> {
    const deadline = Date.now() + READY_WITHIN_MS;
    while (!(await pong(this.#socket))) {
      if (Date.now() > deadline) throw new Error("redis-server is not ready in time");
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

/** Whether it answers PING; while it loads its data it does not. */
function pong(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path, () => socket.write("PING\r\n"));
    const end = (is: boolean) => {
      socket.destroy();
      resolve(is);
    };
    socket.once("data", (data) => end(data.toString("utf8").startsWith("+PONG")));
    socket.once("error", () => end(false));
    socket.once("close", () => resolve(false));
  });
}
