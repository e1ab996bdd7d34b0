// The little that adapters share: requests over kept connections, WebSockets that send no compressed frames, bounded
// concurrency, and source addresses that do not run out of ports.

import http from "node:http";
import { WebSocket } from "ws";

/** Connections per source address: far below what one address has ports for. */
const PER_ADDRESS = 10_000;
const HANDSHAKE_MS = 30_000;

let opened = 0;
/** The source address of the next connection: 127.0.0.1, and the next one after every ten thousand. */
export const localAddress = () => `127.0.0.${1 + Math.floor(opened++ / PER_ADDRESS) % 200}`;

const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });

/** One request with a whole answer. */
export function request(method, url, body, headers = {}) {
  return new Promise((resolve, reject) => {
    const call = http.request(url, { method, agent, headers: { ...headers, "content-length": Buffer.byteLength(body ?? "") } }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (more) => { text += more; }).on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, text }));
      answer.on("error", reject);
    });
    call.on("error", reject);
    call.end(body);
  });
}

/** An open WebSocket. `onMessage` gets every message as a string, from the first one on, which may be before this resolves, and the socket. */
export function webSocket(url, { protocols = [], headers, onMessage, onClose, isBinary = false }) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, protocols, { perMessageDeflate: false, headers, localAddress: localAddress(), handshakeTimeout: HANDSHAKE_MS, skipUTF8Validation: true });
    socket.on("message", isBinary ? (data) => onMessage(data, socket) : (data) => onMessage(data.toString(), socket));
    socket.on("open", () => resolve(socket));
    socket.on("error", reject);
    if (onClose) socket.on("close", onClose);
  });
}

/** What a WebSocket has brought, in bytes on the wire. */
export const bytesOf = (socket) => socket?._socket?.bytesRead ?? 0;

/** Runs `work` for every item, at most `limit` at once. */
export async function each(items, limit, work) {
  const queue = items.entries();
  const lane = async () => { for (const [index, item] of queue) await work(item, index); };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, lane));
}

/** A promise with its handles outside. */
export function deferred() {
  const handles = {};
  handles.promise = new Promise((resolve, reject) => Object.assign(handles, { resolve, reject }));
  // Whoever waits sees the failure; nobody else needs to.
  handles.promise.catch(() => {});
  return handles;
}
