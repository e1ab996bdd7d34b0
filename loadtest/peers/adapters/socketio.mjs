// Socket.IO with its Redis Streams adapter. Followers and writers speak its wire format (Engine.IO 4, Socket.IO 5) over a
// plain WebSocket, so that a follower costs the generator what one of any other server costs.

import { fileURLToPath } from "node:url";
import { bytesOf, deferred, webSocket } from "../src/net.mjs";

const SERVER = fileURLToPath(new URL("../servers/socketio.mjs", import.meta.url));
/** The adapter's stream is one for all sessions. Its default of 10 000 is what a busy server writes in seconds; recovery needs what was written in the two minutes for which it is offered. */
const STREAM_ENTRIES_MAX = 1_000_000;

export default {
  name: "socketio",
  against: "everthread-redis",
  package: "socket.io",
  needs: ["redis"],
  title: "Socket.IO, Redis Streams adapter, WebSocket",
  promises: {
    durable: "none: the server's receipt is sent before the event is in Redis, and the stream is a buffer between servers, trimmed by length",
    order: "yes, at most once; a client that was away may have missed events",
    resume: "for two minutes, from the last event that it got, if the server has seen it go and the stream still holds that event; what is sent in the moment of coming back can be lost",
    history: "none",
  },
  /** Between its last look at the stream and the moment at which a recovered socket is in its rooms again, events pass it by; its own client loses them too. */
  loses: ["storm"],
  cannot: (work) => work === "join" ? "has no history: who joins a room gets what is sent from then on. An application keeps it in a database of its own" : undefined,

  async start(host) {
    const redis = await host.redis();
    const port = await host.port();
    const server = host.node("node", SERVER, { port, redis: redis.url, maxLen: STREAM_ENTRIES_MAX });
    await host.listening(server, port);
    return { port };
  },

  open: (target, options) => new Peer(target, options),
};

class Peer {
  constructor({ port }, { writers }) {
    this.url = `ws://127.0.0.1:${port}/socket.io/?EIO=4&transport=websocket`;
    this.count = writers;
    this.sockets = [];
    this.writers = [];
  }

  async prepare(scripts, { writing }) {
    for (let number = 0; writing && number < this.count; number += 1) {
      const writer = this.socket(() => {});
      await writer.open();
      this.writers.push(writer);
    }
    this.places = new Map(scripts.map(({ name }, index) => [name, index % this.count]));
  }

  socket(onText, room) {
    const socket = new Socket(this.url, onText, room);
    this.sockets.push(socket);
    return socket;
  }

  write(script, index) {
    return this.writers[this.places.get(script.name)].emit("write", script.name, script.tokens[index]);
  }

  async finish() {}

  follower(script, onText) {
    return this.socket(onText, script.name);
  }

  async close() {
    for (const socket of this.sockets) socket.cut();
  }
}

/** A Socket.IO connection. Packets: 0 open, 2 ping, 3 pong, 40 connect, 42 event, 43 acknowledgement, 44 refused. */
class Socket {
  constructor(url, onText, room) {
    Object.assign(this, { url, onText, room, acks: new Map(), next: 0, before: 0, frames: 0 });
  }

  async open() {
    this.connected = deferred();
    this.socket = await webSocket(this.url, { onMessage: (text, socket) => this.on(text, socket), onClose: () => this.connected.reject(new Error("the server hung up")) });
    const hasRecovered = await this.connected.promise;
    if (this.room !== undefined && !hasRecovered) await this.emit("follow", this.room);
  }

  cut() {
    this.before += bytesOf(this.socket);
    this.socket?.terminate();
    this.socket = undefined;
  }

  get bytes() {
    return this.before + bytesOf(this.socket);
  }

  /** Sends an event; resolves with its acknowledgement. */
  emit(...event) {
    const id = this.next++;
    this.socket.send(`42${id}${JSON.stringify(event)}`);
    const receipt = deferred();
    this.acks.set(String(id), receipt);
    return receipt.promise;
  }

  on(packet, socket) {
    if (packet.startsWith("42")) return this.event(JSON.parse(packet.slice(2)));
    if (packet.startsWith("43")) return this.acknowledged(packet.slice(2, packet.indexOf("[")));
    if (packet === "2") return socket.send("3");
    // With a session to recover, its name and the last event that arrived.
    if (packet.startsWith("0")) return socket.send(this.offset === undefined ? "40" : `40${JSON.stringify({ pid: this.pid, offset: this.offset })}`);
    if (packet.startsWith("40")) return this.connect(JSON.parse(packet.slice(2)));
    if (packet.startsWith("44")) this.connected.reject(new Error(packet));
  }

  connect({ pid }) {
    const hasRecovered = this.pid !== undefined && pid === this.pid;
    this.pid = pid;
    this.connected.resolve(hasRecovered);
  }

  /** What is behind the arguments of an event is its place in the stream. */
  event([, text, offset]) {
    this.frames += 1;
    this.offset = offset;
    this.onText(text);
  }

  acknowledged(id) {
    this.acks.get(id)?.resolve();
    this.acks.delete(id);
  }
}
