// A real server of the tests' own, with its demo agents: `EVERTHREAD_BIN` names the binary. It has the embedded store, or
// that Redis which it is given.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const READY_WITHIN_MS = 20_000;

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

export class Server {
  readonly #port: number;
  readonly #adminPort: number;
  readonly #dataDir: string;
  readonly #more: string[];
  #process: ChildProcess | undefined;

  private constructor(port: number, adminPort: number, dataDir: string, more: string[]) {
    this.#port = port;
    this.#adminPort = adminPort;
    this.#dataDir = dataDir;
    this.#more = more;
  }

  static async start(bin: string, more: string[] = []): Promise<Server> {
    const dataDir = await mkdtemp(join(tmpdir(), "everthread-sdk-"));
    const server = new Server(await freePort(), await freePort(), dataDir, more);
    await server.run(bin);
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** Starts it, again after `kill`, with the same data. */
  async run(bin: string): Promise<void> {
    const at = (port: number) => `127.0.0.1:${port}`;
    const args = ["dev", "--listen", at(this.#port), "--admin", at(this.#adminPort), "--data-dir", this.#dataDir];
    this.#process = spawn(bin, [...args, ...this.#more], { stdio: "ignore" });
    const deadline = Date.now() + READY_WITHIN_MS;
    for (;;) {
      const ready = await fetch(`http://${at(this.#adminPort)}/readyz`).catch(() => undefined);
      if (ready?.ok) return;
      if (Date.now() > deadline) throw new Error("the server is not ready in time");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** The development token, as the console's page has it. */
  async token(): Promise<string> {
    const page = await (await fetch(`${this.url}/console`)).text();
    const config = /<script[^>]*id="everthread-config">(.*?)<\/script>/.exec(page)?.[1] ?? "{}";
    return (JSON.parse(config) as { token: string }).token;
  }

  async kill(): Promise<void> {
    const exited = once(this.#process!, "exit");
    this.#process!.kill("SIGKILL");
    await exited;
  }

  /** Copies its data, after `kill`; where to. */
  async copy(): Promise<string> {
    const backup = `${this.#dataDir}-backup`;
    await cp(this.#dataDir, backup, { recursive: true });
    return backup;
  }

  /** Puts such a copy in the place of its data, after `kill`. */
  async restore(backup: string): Promise<void> {
    await rm(this.#dataDir, { recursive: true });
    await cp(backup, this.#dataDir, { recursive: true });
    await rm(backup, { recursive: true });
  }

  async stop(): Promise<void> {
    await this.kill();
    await rm(this.#dataDir, { recursive: true, force: true });
  }
}
