// Everthread over its own WebSocket protocol: worker connections that hold the runs and append every token as it comes, and
// followers that apply frames by offset, exactly as the protocol document says.

import { MESSAGE_TOKENS } from "../src/script.mjs";
import { bytesOf, deferred, each, request, webSocket } from "../src/net.mjs";

const TOKEN = "lt-token-1";
const AGENT = "peer";
const PROTOCOL = "everthread.v1";
const PREPARED_AT_ONCE = 32;

const authorization = { authorization: `Bearer ${TOKEN}` };

/** What the three stores promise; the rest is the same. */
const STORES = {
  "everthread-redis": { durable: "in Redis before it is acknowledged (append-only file, synced every second)", args: async (host) => ["--redis", (await host.redis()).url] },
  "everthread-crash": { durable: "handed to the operating system before it is acknowledged, synced every second (embedded store)", args: async (host) => ["--data-dir", host.dir, "--durability", "crash"] },
  "everthread-power-cut": { durable: "on disk before it is acknowledged (embedded store)", args: async (host) => ["--data-dir", host.dir, "--durability", "power-cut"] },
};

function adapter(name) {
  const { durable, args } = STORES[name];
  return {
    name,
    server: "everthread",
    label: name.replace("everthread-", ""),
    tool: "everthread",
    needs: name === "everthread-redis" ? ["everthread", "redis"] : ["everthread"],
    title: name.replace("everthread-", "Everthread, "),
    promises: {
      durable,
      order: "one dense numbering per session; gaps and repeats are seen and repaired by the protocol",
      resume: "from a cursor, at any node, for as long as the session exists",
      history: "the whole session, folded",
    },
    cannot: () => undefined,

    async start(host) {
      const [port, admin] = [await host.port(), await host.port()];
      const store = await args(host);
      const flags = ["serve", "--listen", `127.0.0.1:${port}`, "--admin", `127.0.0.1:${admin}`, "--token", TOKEN, "--log", "warn", ...store];
      const node = host.spawn("node", host.tools.everthread, flags);
      await host.answering(node, `http://127.0.0.1:${admin}/readyz`);
      return { port };
    },

    open: (target, options) => new Peer(target, options),
  };
}

export default Object.keys(STORES).map(adapter);

class Peer {
  constructor({ port }, { writers }) {
    this.base = `127.0.0.1:${port}`;
    this.writers = writers;
    this.workers = [];
    this.runs = new Map();
    this.followers = [];
  }

  /** Makes the sessions; for those that are to be written, a run that one of our workers holds. */
  async prepare(scripts, { writing }) {
    const missing = new Set(writing ? scripts.map(({ name }) => name) : []);
    const taken = deferred();
    const capacity = Math.ceil(scripts.length / this.writers);
    for (let number = 0; writing && number < this.writers; number += 1) {
      const onRun = (session, run) => {
        this.runs.set(session, run);
        missing.delete(session);
        if (missing.size === 0) taken.resolve();
      };
      this.workers.push(await Worker.join(this.base, `w${number}`, capacity, onRun));
    }
    await each(scripts, PREPARED_AT_ONCE, async ({ name }) => {
      await this.post("/v1/sessions", { session: name, agent: AGENT });
      if (writing) await this.post(`/v1/sessions/${name}/input`, { text: "go" });
    });
    if (missing.size > 0) await taken.promise;
  }

  async post(path, body) {
    const { status, text } = await request("POST", `http://${this.base}${path}`, JSON.stringify(body), { ...authorization, "content-type": "application/json" });
    if (status >= 300) throw new Error(`POST ${path}: ${status} ${text}`);
  }

  /** Appends a token; resolves with the receipt. */
  write(script, index) {
    return this.runs.get(script.name).append(script, index);
  }

  finish(script) {
    return this.runs.get(script.name).end();
  }

  follower(script, onText) {
    const follower = new Follower(this.base, script.name, onText);
    this.followers.push(follower);
    return follower;
  }

  async close() {
    for (const follower of this.followers) follower.cut();
    for (const worker of this.workers) worker.socket.terminate();
  }
}

/** A worker's connection. */
class Worker {
  static async join(base, name, capacity, onRun) {
    const worker = new Worker();
    Object.assign(worker, { runs: new Map(), onRun, welcome: deferred() });
    worker.socket = await webSocket(`ws://${base}/v1/worker`, { protocols: [PROTOCOL], headers: authorization, onMessage: (text) => worker.on(JSON.parse(text)) });
    worker.send({ t: "hello", id: "1", worker: name, agents: [{ name: AGENT, capacity }] });
    await worker.welcome.promise;
    return worker;
  }

  send(frame) {
    this.socket.send(JSON.stringify(frame));
  }

  on(frame) {
    if (frame.t === "ok" || frame.t === "duplicate") this.runs.get(frame.run)?.confirmed(frame.batch);
    else if (frame.t === "ping") this.send({ t: "pong" });
    else if (frame.t === "welcome") this.welcome.resolve();
    else if (frame.t === "work") {
      const run = new Run(this, frame);
      this.runs.set(frame.run, run);
      this.onRun(frame.session, run);
    } else if (frame.t === "error") this.runs.forEach((run) => run.failed(new Error(`${frame.code}: ${frame.message}`)));
    else if (frame.t === "fenced") this.runs.get(frame.run)?.failed(new Error("fenced"));
  }
}

/** A run that a worker holds: numbers its batches and knows which are not confirmed. */
class Run {
  constructor(worker, { run, fence, attempt }) {
    Object.assign(this, { worker, run, fence, incarnation: attempt, batch: 0, offset: 0, pending: [] });
  }

  append(script, index) {
    const message = `m${Math.floor(index / MESSAGE_TOKENS)}`;
    const text = script.tokens[index];
    const entries = [];
    if (index % MESSAGE_TOKENS === 0) {
      if (index > 0) entries.push({ type: "message.end", message: `m${index / MESSAGE_TOKENS - 1}`, status: "complete" });
      entries.push({ type: "message.start", message, role: "assistant" }, { type: "part.start", message, part: "p", kind: "text" });
      this.offset = 0;
    }
    entries.push({ type: "part.append", message, part: "p", offset: this.offset, text });
    this.offset += Buffer.byteLength(text);
    return this.numbered({ t: "append", entries });
  }

  end() {
    return this.numbered({ t: "end", outcome: "completed" });
  }

  numbered(frame) {
    this.batch += 1;
    const producer = { incarnation: this.incarnation, batch: this.batch };
    this.worker.send({ ...frame, id: String(this.batch), run: this.run, fence: this.fence, producer });
    const receipt = deferred();
    this.pending.push({ batch: this.batch, receipt });
    return receipt.promise;
  }

  /** Receipts are cumulative. */
  confirmed(batch) {
    while (this.pending[0]?.batch <= batch) this.pending.shift().receipt.resolve();
  }

  failed(error) {
    for (const { receipt } of this.pending.splice(0)) receipt.reject(error);
  }
}

/** A client that stands at a cursor; `open` after `cut` resumes there. */
class Follower {
  constructor(base, session, onText) {
    Object.assign(this, { base, session, onText, epoch: undefined, seq: 0, message: undefined, length: 0, before: 0, frames: 0 });
  }

  async open() {
    this.live = deferred();
    const onMessage = (text, socket) => this.on(JSON.parse(text), socket);
    this.socket = await webSocket(`ws://${this.base}/v1/connect`, { protocols: [PROTOCOL], headers: authorization, onMessage, onClose: () => this.live.reject(new Error("the node hung up")) });
    const from = this.epoch === undefined ? "start" : `${this.epoch}.${this.seq}`;
    this.socket.send(JSON.stringify({ t: "hello", id: "1" }));
    this.socket.send(JSON.stringify({ t: "attach", id: "2", session: this.session, from }));
    await this.live.promise;
  }

  cut() {
    this.before += bytesOf(this.socket);
    this.socket?.terminate();
    this.socket = undefined;
  }

  get bytes() {
    return this.before + bytesOf(this.socket);
  }

  on(frame, socket) {
    if (frame.t === "entries") this.entries(frame);
    else if (frame.t === "ping") socket.send("{\"t\":\"pong\"}");
    else if (frame.t === "live") this.live.resolve();
    else if (frame.t === "attached") this.epoch ??= frame.epoch;
    else if (frame.t === "error" || frame.t === "reset" || frame.t === "bye") this.live.reject(new Error(JSON.stringify(frame)));
  }

  entries({ epoch, from, to, blocks }) {
    this.frames += 1;
    if (to <= this.seq) return;
    if (from > this.seq + 1) throw new Error(`${this.session}: a gap: stands at ${this.seq}, got ${from} to ${to}`);
    for (const block of blocks) {
      let next = block.from ?? from;
      for (let index = 0; index < block.entries.length; index += 1) {
        const last = block.spans ? block.spans[index][1] : next++;
        const entry = block.entries[index];
        if (last > this.seq && entry.type === "part.append") this.append(entry);
      }
    }
    [this.epoch, this.seq] = [epoch, to];
  }

  /** `value = value[..offset] + text`: what overlaps is here already. */
  append({ message, offset, text }) {
    if (message !== this.message) [this.message, this.length] = [message, 0];
    if (offset > this.length) throw new Error(`${this.session}: a gap in ${message}: has ${this.length} bytes, got ${offset}`);
    const known = this.length - offset;
    const fresh = known === 0 ? text : Buffer.from(text).subarray(known).toString();
    this.length += Buffer.byteLength(fresh);
    this.onText(fresh);
  }
}
