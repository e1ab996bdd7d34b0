// NATS with JetStream over WebSocket. One stream on disk holds all sessions, a subject each; a follower has a connection and an
// ordered consumer of its own subject (pushed, with flow control), which the server forgets when it has gone.
//
// Followers speak the wire protocol themselves, as NATS' client does in its ordered push consumer: a plain WebSocket costs the
// generator what one of any other server costs. Streams are made, and tokens published, by NATS' own client.

import { writeFile } from "node:fs/promises";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { WebSocket } from "ws";
import { bytesOf, deferred, webSocket } from "../src/net.mjs";

const STREAM = "sessions";
const SECOND_NS = 1e9;
/** A follower is a consumer; by default a stream has 1 000 of them at most. */
const CONSUMERS_MAX = 1_000_000;

export default {
  name: "nats",
  against: "everthread-crash",
  tool: "nats",
  needs: ["nats"],
  title: "NATS JetStream, file storage, WebSocket",
  promises: {
    durable: "handed to the operating system before it is acknowledged, synced every two minutes (its default; a cluster of three is what NATS recommends instead)",
    order: "yes, by ordered consumers: a gap in the consumer's numbering makes a new consumer",
    resume: "from a sequence number, for as long as the stream keeps it",
    history: "the whole subject, token by token",
  },
  cannot: () => undefined,

  async start(host) {
    const [port, plain] = [await host.port(), await host.port()];
    const config = `${host.dir}/nats.conf`;
    await writeFile(config, `listen: "127.0.0.1:${plain}"\nwebsocket { listen: "127.0.0.1:${port}", no_tls: true }\njetstream { store_dir: "${host.dir}/jetstream" }\n`);
    const server = host.spawn("node", host.tools.nats, ["--config", config, "--log", `${host.dir}/nats.log`]);
    await host.listening(server, port);
    return { port };
  },

  open: (target, options) => new Peer(target, options),
};

/** A connection of NATS' own client. */
const client = (url) => wsconnect({
  servers: url,
  wsFactory: async (address) => ({ socket: new WebSocket(address, { perMessageDeflate: false }), encrypted: false }),
});

const subject = (script) => `s.${script.name}`;

class Peer {
  constructor({ port }, { writers }) {
    this.url = `ws://127.0.0.1:${port}`;
    this.count = writers;
    this.writers = [];
    this.followers = [];
  }

  async prepare(scripts, { writing }) {
    const connection = await client(this.url);
    const manager = await jetstreamManager(connection);
    await manager.streams.add({ name: STREAM, subjects: ["s.>"], storage: "file", retention: "limits", max_consumers: CONSUMERS_MAX });
    await connection.close();
    for (let number = 0; writing && number < this.count; number += 1) {
      const writer = await client(this.url);
      this.writers.push({ connection: writer, js: jetstream(writer) });
    }
    this.places = new Map(scripts.map(({ name }, index) => [name, index % this.count]));
  }

  write(script, index) {
    return this.writers[this.places.get(script.name)].js.publish(subject(script), script.tokens[index]);
  }

  async finish() {}

  follower(script, onText) {
    const follower = new Follower(this.url, subject(script), onText, this.followers.length);
    this.followers.push(follower);
    return follower;
  }

  async close() {
    for (const follower of this.followers) follower.cut();
    await Promise.all(this.writers.map(({ connection }) => connection.close()));
  }
}

/** A connection with one ordered consumer. */
class Follower {
  constructor(url, filter, onText, number) {
    Object.assign(this, { url, filter, onText, number, serial: 0, streamSeq: 0, before: 0, frames: 0, rest: undefined });
  }

  async open() {
    this.created = deferred();
    this.rest = undefined;
    this.socket = await webSocket(this.url, { isBinary: true, onMessage: (data, socket) => this.take(data, socket), onClose: () => this.created.reject(new Error("the server hung up")) });
    this.send("CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"protocol\":1,\"lang\":\"loadtest\",\"version\":\"1\"}\r\n");
    this.consume();
    await this.created.promise;
  }

  send(text, socket = this.socket) {
    socket.send(Buffer.from(text));
  }

  publish(to, reply, payload) {
    this.send(`PUB ${to}${reply ? ` ${reply}` : ""} ${Buffer.byteLength(payload)}\r\n${payload}\r\n`);
  }

  /** Makes a consumer that begins behind what is here, in place of an earlier one, of which nothing is taken any more. */
  consume() {
    if (this.serial > 0) this.publish(`$JS.API.CONSUMER.DELETE.${STREAM}.f${this.number}_${this.serial}`, undefined, "");
    this.serial += 1;
    const name = `f${this.number}_${this.serial}`;
    this.deliver = `_INBOX.${name}`;
    this.consumerSeq = 0;
    const place = this.streamSeq === 0 ? { deliver_policy: "all" } : { deliver_policy: "by_start_sequence", opt_start_seq: this.streamSeq + 1 };
    const config = {
      name, deliver_subject: this.deliver, filter_subject: this.filter, ack_policy: "none", max_deliver: 1, mem_storage: true, num_replicas: 1,
      flow_control: true, idle_heartbeat: 30 * SECOND_NS, inactive_threshold: 300 * SECOND_NS, ...place,
    };
    this.send(`SUB ${this.deliver} ${this.serial}\r\nSUB _INBOX.made.${name} 0\r\n`);
    this.publish(`$JS.API.CONSUMER.CREATE.${STREAM}.${name}.${this.filter}`, `_INBOX.made.${name}`, JSON.stringify({ stream_name: STREAM, config }));
  }

  /** Messages of the protocol do not keep to those of the WebSocket. */
  take(data, socket) {
    let all = this.rest ? Buffer.concat([this.rest, data]) : data;
    let from = 0;
    while (from < all.length) {
      const end = all.indexOf("\r\n", from);
      if (end < 0) break;
      const words = all.latin1Slice(from, end).split(" ");
      const isMessage = words[0] === "MSG" || words[0] === "HMSG";
      if (!isMessage) {
        this.on(words, socket);
        from = end + 2;
        continue;
      }
      const size = Number(words.at(-1));
      if (all.length < end + 2 + size + 2) break;
      this.message(words, all, end + 2, size);
      from = end + 2 + size + 2;
    }
    this.rest = from < all.length ? all.subarray(from) : undefined;
  }

  on([word, ...more], socket) {
    if (word === "PING") this.send("PONG\r\n", socket);
    else if (word === "-ERR") this.created.reject(new Error(more.join(" ")));
  }

  /** `MSG subject sid [reply] size`, `HMSG subject sid [reply] headers size`. */
  message(words, all, from, size) {
    if (words[0] === "HMSG") return this.status(words.length === 6 ? words[3] : undefined, all.toString("utf8", from, from + size));
    if (words[2] === "0") return this.made(JSON.parse(all.toString("utf8", from, from + size)));
    if (Number(words[2]) !== this.serial) return;
    const place = words[3].split(".");
    const [streamSeq, consumerSeq] = place.length === 9 ? [place[5], place[6]] : [place[7], place[8]];
    if (Number(consumerSeq) !== this.consumerSeq + 1) return this.consume();
    this.consumerSeq += 1;
    this.streamSeq = Number(streamSeq);
    this.frames += 1;
    this.onText(all.utf8Slice(from, from + size));
  }

  made(answer) {
    if (answer.error) this.created.reject(new Error(answer.error.description));
    else this.created.resolve();
  }

  /** Flow control asks to be answered; so does a heartbeat that says the consumer is stalled. */
  status(reply, headers) {
    const stalled = /Nats-Consumer-Stalled: (\S+)/.exec(headers)?.[1];
    if (reply) this.publish(reply, undefined, "");
    else if (stalled) this.publish(stalled, undefined, "");
  }

  cut() {
    this.before += bytesOf(this.socket);
    this.socket?.terminate();
    this.socket = undefined;
  }

  get bytes() {
    return this.before + bytesOf(this.socket);
  }
}
