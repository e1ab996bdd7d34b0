// Sessions that tests make beside the page, over HTTP.

import assert from "node:assert/strict";

const AT_ONCE = 16;

/** The routes of a server, as one person. */
export class Api {
  constructor(server, subject) {
    this.server = server;
    this.subject = subject;
  }

  async call(method, path, body) {
    this.token ??= await developmentToken(this.server);
    const headers = { Authorization: `Bearer ${this.token}`, "Everthread-Subject": this.subject };
    const init = { method, headers, ...(body ? { body: JSON.stringify(body) } : {}) };
    const response = await fetch(`${this.server.url}/v1${path}`, init);
    assert.ok(response.ok, `${method} ${path}: ${response.status} ${response.ok ? "" : await response.text()}`);
    return response.json();
  }

  /** A session in which nobody works: what is put is only stored. */
  async makeSession(title) {
    return (await this.call("POST", "/sessions", { title })).session;
  }

  put(session, text) {
    return this.call("POST", `/sessions/${session}/input`, { text });
  }

  /** Puts `count` messages, in no particular order within a few. */
  async putMany(session, count, text = (i) => `Message number ${i}.`) {
    for (let i = 0; i < count; i += AT_ONCE) {
      const some = Array.from({ length: Math.min(AT_ONCE, count - i) }, (_, k) => this.put(session, text(i + k)));
      await Promise.all(some);
    }
  }

  /** All messages, oldest first. */
  async messages(session) {
    return (await this.call("GET", `/sessions/${session}/state`)).messages;
  }
}

/** As the console's page has it. */
async function developmentToken(server) {
  const page = await (await fetch(`${server.url}/console`)).text();
  return JSON.parse(/<script[^>]*id="everthread-config">(.*?)<\/script>/.exec(page)[1]).token;
}
