// A server that says what the test tells it to, frame by frame.

import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { type WebSocket as Socket, WebSocketServer } from "ws";

type Frame = { t: string } & Record<string, unknown>;

/** One connection of the client under test. */
export class Peer {
  readonly #frames: Frame[] = [];
  readonly #socket: Socket;
  #wake: () => void = () => undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("message", (data: Buffer) => {
      this.#frames.push(JSON.parse(data.toString("utf8")) as Frame);
      this.#wake();
    });
  }

  /** The next frame of the client. */
  async next(t: string): Promise<Frame> {
    const frame = this.#frames.shift();
    if (!frame) {
      await new Promise<void>((resolve) => (this.#wake = resolve));
      return this.next(t);
    }
    if (frame.t !== t) throw new Error(`the client sent ${JSON.stringify(frame)} where ${t} was due`);
    return frame;
  }

  send(...frames: Frame[]): void {
    for (const frame of frames) this.#socket.send(JSON.stringify(frame));
  }

  /** Whatever it is. */
  raw(text: string): void {
    this.#socket.send(text);
  }

  async welcome(heartbeat_ms = 10_000, now = Date.now()): Promise<Frame> {
    const hello = await this.next("hello");
    const limits = { frame_bytes_max: 327_680, block_bytes_max: 262_144 };
    this.send({ t: "welcome", id: hello["id"], connection: "c", node: "n", now, heartbeat_ms, ...limits });
    return hello;
  }

  /** Answers the attach and sends `frames` right behind it, in one go. */
  async attach(attachment: number, resumed: boolean, ...frames: Frame[]): Promise<Frame> {
    const attach = await this.next("attach");
    const { id, session } = attach;
    const attached = { t: "attached", id, attachment, session, epoch: "1", head: 0, resumed };
    this.send(attached, ...frames.map((frame) => ({ ...frame, attachment })));
    return attach;
  }

  /** What the server tells of a control. */
  receipt(control: unknown, stage: string, more: object = {}): void {
    this.send({ t: "receipt", control, stage, seq: 9, ...more });
  }

  close(code: number): void {
    this.#socket.close(code);
  }

  /** The connection breaks without a word. */
  drop(): void {
    this.#socket.terminate();
  }

  get open(): boolean {
    return this.#socket.readyState === this.#socket.OPEN;
  }
}

export class FakeServer {
  readonly #server: WebSocketServer;
  readonly #peers: Peer[] = [];
  #wake: () => void = () => undefined;

  private constructor(server: WebSocketServer) {
    this.#server = server;
    server.on("connection", (socket) => {
      this.#peers.push(new Peer(socket));
      this.#wake();
    });
  }

  static async start(): Promise<FakeServer> {
    const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "everthread.v1" });
    await once(server, "listening");
    return new FakeServer(server);
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** The next connection of the client. */
  async peer(): Promise<Peer> {
    const peer = this.#peers.shift();
    if (peer) return peer;
    await new Promise<void>((resolve) => (this.#wake = resolve));
    return this.peer();
  }

  stop(): void {
    for (const socket of this.#server.clients) socket.terminate();
    this.#server.close();
  }
}

/** An `entries` frame of one block of ann's, for `Peer.attach`. */
export function entries(from: number, ...all: object[]): Frame {
  const blocks = [{ by: { kind: "user", id: "ann" }, at: 1, entries: all }];
  return { t: "entries", epoch: "1", since: 1, from, to: from + all.length - 1, blocks };
}

export const live = (seq: number): Frame => ({ t: "live", seq });
