// Durable Streams, its reference server for Node. A session is a stream of JSON strings; followers read it by server-sent
// events from an offset, writers append with producer headers, so that what they repeat is not written twice.
//
// JSON and not text: over SSE the server writes `data:` and the text, and readers drop a space after the colon, as the format
// demands, so that a token that begins with a space would lose it.

import { fileURLToPath } from "node:url";
import http from "node:http";
import { deferred, each, request } from "../src/net.mjs";
import { events } from "../src/sse.mjs";

const SERVER = fileURLToPath(new URL("../servers/durable-streams.mjs", import.meta.url));
const JSON_TYPE = { "content-type": "application/json" };
const PREPARED_AT_ONCE = 32;
/** Files that it may keep open: more than streams that are written at once. */
const FILES_MAX = 10_000;

/** Appends go over kept connections; more than this many at once wait for one. */
const agent = new http.Agent({ keepAlive: true, maxSockets: 256 });

/** With files every append is on disk before it is answered, and every read notes in the index when it was; in memory it is faster. */
const STORES = {
  "durable-streams": { title: "with files", durable: "on disk before it is acknowledged", against: "everthread-power-cut" },
  "durable-streams-memory": { title: "in memory", durable: "none: in the memory of the process", against: "everthread-crash" },
};

function adapter(name) {
  const { title, durable, against } = STORES[name];
  return {
    name,
    server: "durable-streams",
    label: title,
    against,
    package: "@durable-streams/server",
    title: `Durable Streams, @durable-streams/server ${title}, SSE`,
    promises: {
      durable: `${durable}. Its authors recommend this server for development; the one for production is on no package registry`,
      order: "yes, with producer headers: gaps and repeats are refused",
      resume: "from an offset, for as long as the stream exists",
      history: "the whole stream, append by append",
    },
    cannot: () => undefined,

    async start(host) {
      const port = await host.port();
      const server = host.node("node", SERVER, { port, maxFileHandles: FILES_MAX, dataDir: name === "durable-streams" ? `${host.dir}/streams` : undefined });
      await host.listening(server, port);
      return { port };
    },

    open: (target) => new Peer(target),
  };
}

export default Object.keys(STORES).map(adapter);

class Peer {
  constructor({ port }) {
    this.base = `http://127.0.0.1:${port}`;
    this.writers = new Map();
    this.followers = [];
  }

  url(script) {
    return `${this.base}/v1/stream/${script.name}`;
  }

  async prepare(scripts) {
    await each(scripts, PREPARED_AT_ONCE, async (script) => {
      const { status, text } = await request("PUT", this.url(script), undefined, { ...JSON_TYPE, "stream-ttl": "86400" });
      if (status !== 201) throw new Error(`PUT ${script.name}: ${status} ${text}`);
      this.writers.set(script.name, new Writer(this.url(script)));
    });
  }

  write(script, index) {
    return this.writers.get(script.name).write(script.tokens[index]);
  }

  async finish() {}

  follower(script, onText) {
    const follower = new Follower(this.url(script), onText);
    this.followers.push(follower);
    return follower;
  }

  async close() {
    for (const follower of this.followers) follower.cut();
  }
}

/**
 * One request at a time per stream, with everything that has come meanwhile: no delay when idle, batches under load, and no
 * request can overtake another. (The client library's producer waits 5 ms first, and has up to five requests under way.)
 */
class Writer {
  constructor(url) {
    Object.assign(this, { url, seq: 0, waiting: [], receipts: [], isBusy: false });
  }

  write(token) {
    const receipt = deferred();
    this.waiting.push(token);
    this.receipts.push(receipt);
    if (!this.isBusy) this.next();
    return receipt.promise;
  }

  next() {
    this.isBusy = true;
    const [tokens, receipts] = [this.waiting, this.receipts];
    [this.waiting, this.receipts] = [[], []];
    const body = JSON.stringify(tokens);
    const headers = { ...JSON_TYPE, "content-length": Buffer.byteLength(body), "producer-id": "worker", "producer-epoch": "0", "producer-seq": String(this.seq++) };
    const failed = (error) => receipts.forEach((receipt) => receipt.reject(error));
    const call = http.request(this.url, { method: "POST", agent, headers }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (more) => { text += more; });
      answer.on("end", () => {
        if (answer.statusCode >= 300) failed(new Error(`append: ${answer.statusCode} ${text}`));
        else receipts.forEach((receipt) => receipt.resolve());
        if (this.waiting.length > 0) this.next();
        else this.isBusy = false;
      });
    });
    call.on("error", failed);
    call.end(body);
  }
}

/** A reader at an offset. What came is only passed on with the offset behind it, so that a resume repeats nothing. */
class Follower {
  constructor(url, onText) {
    Object.assign(this, { url, onText, offset: "-1", texts: [], before: 0, frames: 0 });
  }

  async open() {
    const live = deferred();
    this.stream = events(`${this.url}?offset=${this.offset}&live=sse`, { onEvent: (type, data) => this.on(type, JSON.parse(data), live), onEnd: () => this.again() });
    await this.stream.opened;
    await live.promise;
  }

  on(type, data, live) {
    if (type === "data") {
      this.frames += 1;
      this.texts.push(...data);
    } else if (type === "control") {
      this.offset = data.streamNextOffset;
      for (const text of this.texts.splice(0)) this.onText(text);
      if (data.upToDate) live.resolve();
    }
  }

  /** The server ends a stream now and then, so that caches may share it; readers go on at their offset. */
  again() {
    if (this.stream) this.open().catch(() => {});
  }

  cut() {
    const { stream } = this;
    this.stream = undefined;
    this.texts = [];
    this.before += stream?.bytes ?? 0;
    stream?.cut();
  }

  get bytes() {
    return this.before + (this.stream?.bytes ?? 0);
  }
}
