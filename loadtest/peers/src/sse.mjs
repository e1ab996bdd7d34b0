// Server-sent events over a plain HTTP connection of its own, and only as much of the format as data needs.

import http from "node:http";
import { deferred, localAddress } from "./net.mjs";

/** Opens a stream. `onEvent(type, data)` gets every event; `onEnd` is called once when the server ends it. */
export function events(url, { method = "GET", headers, onEvent, onEnd }) {
  const opened = deferred();
  const call = http.request(url, { method, agent: false, headers: { accept: "text/event-stream", ...headers }, localAddress: localAddress() });
  const stream = { opened: opened.promise, cut: () => call.destroy(), get bytes() { return call.socket?.bytesRead ?? 0; } };
  call.setNoDelay(true);
  call.on("error", (error) => opened.reject(error));
  call.on("response", (answer) => {
    if (answer.statusCode !== 200) {
      answer.resume();
      return opened.reject(new Error(`${method} ${url}: ${answer.statusCode}`));
    }
    const parser = new Parser(onEvent);
    answer.setEncoding("utf8").on("data", (text) => parser.take(text)).on("end", () => onEnd?.()).on("error", () => {});
    opened.resolve(answer);
  });
  call.end();
  return stream;
}

/** Cuts text into events; keeps what is not whole yet. */
export class Parser {
  constructor(onEvent) {
    Object.assign(this, { onEvent, rest: "" });
  }

  take(text) {
    const all = this.rest + text;
    let from = 0;
    for (let end = all.indexOf("\n\n"); end >= 0; end = all.indexOf("\n\n", from)) {
      this.event(all.slice(from, end));
      from = end + 2;
    }
    this.rest = all.slice(from);
  }

  event(block) {
    let [type, data] = ["message", undefined];
    for (const line of block.split("\n")) {
      const colon = line.indexOf(":");
      const value = line.slice(colon + 1).replace(/^ /, "");
      if (line.startsWith("data:")) data = data === undefined ? value : `${data}\n${value}`;
      else if (line.startsWith("event:")) type = value;
    }
    if (data !== undefined) this.onEvent(type, data);
  }
}
