// Vercel's `resumable-stream` behind a plain Node server of server-sent events, with Redis. The first follower of a session is
// the one who asked, and gets the stream from the process that produces it, without Redis; others resume it.

import { fileURLToPath } from "node:url";
import { webSocket } from "../src/net.mjs";
import { events } from "../src/sse.mjs";

const SERVER = fileURLToPath(new URL("../servers/resumable-stream.mjs", import.meta.url));

export default {
  name: "resumable-stream",
  against: "everthread-redis",
  package: "resumable-stream",
  needs: ["redis"],
  title: "resumable-stream, plain Node SSE, Redis pub/sub",
  promises: {
    durable: "none: what was written is in the memory of the process that produces the stream; Redis only carries messages",
    order: "yes, over Redis pub/sub: at most once",
    resume: "after so many characters, while the stream is being produced, and only while the process that produces it lives",
    history: "of the stream that is being produced; nothing of one that has ended",
  },
  cannot: () => undefined,

  async start(host) {
    const redis = await host.redis();
    const port = await host.port();
    const server = host.node("node", SERVER, { port, redis: redis.url });
    await host.listening(server, port);
    return { port };
  },

  open: (target, options) => new Peer(target, options),
};

class Peer {
  constructor({ port }, { writers }) {
    this.base = `127.0.0.1:${port}`;
    this.count = writers;
    this.models = [];
    this.asked = new Set();
    this.followers = [];
  }

  async prepare(scripts, { writing }) {
    for (let number = 0; writing && number < this.count; number += 1) {
      this.models.push(await webSocket(`ws://${this.base}/model`, { onMessage: () => {} }));
    }
    this.places = new Map(scripts.map(({ name }, index) => [name, index % this.count]));
  }

  /** There is no receipt. */
  write(script, index) {
    this.models[this.places.get(script.name)].send(JSON.stringify([script.name, script.tokens[index]]));
  }

  async finish(script) {
    this.models[this.places.get(script.name)].send(JSON.stringify([script.name]));
  }

  follower(script, onText) {
    const asks = !this.asked.has(script.name);
    this.asked.add(script.name);
    const follower = new Follower(`http://${this.base}/chat/${script.name}`, asks, onText);
    this.followers.push(follower);
    return follower;
  }

  async close() {
    for (const follower of this.followers) follower.cut();
    for (const model of this.models) model.terminate();
  }
}

class Follower {
  constructor(url, asks, onText) {
    Object.assign(this, { url, asks, onText, characters: 0, before: 0, frames: 0 });
  }

  async open() {
    const isNew = this.asks;
    this.asks = false;
    const url = isNew ? this.url : `${this.url}?resumeAt=${this.characters}`;
    this.stream = events(url, { method: isNew ? "POST" : "GET", onEvent: (_, data) => this.on(data) });
    await this.stream.opened;
  }

  /** A place in the stream is a number of characters of what the server wrote: `data: `, the text, and two line ends. */
  on(data) {
    this.frames += 1;
    this.characters += "data: ".length + data.length + 2;
    this.onText(JSON.parse(data));
  }

  cut() {
    this.before += this.stream?.bytes ?? 0;
    this.stream?.cut();
    this.stream = undefined;
  }

  get bytes() {
    return this.before + (this.stream?.bytes ?? 0);
  }
}
