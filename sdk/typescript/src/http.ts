// The HTTP routes a client needs beside the connection: making, listing and naming sessions.

import { EverthreadError } from "./errors.js";
import type { ErrorBody, JsonObject, Run, ViewJson } from "./protocol.js";

export interface SessionListItem {
  session: string;
  active_at: number;
  meta: JsonObject;
  /** Asked for a device: up to where it has read, and how many entries come after that. */
  acked?: number;
  unread_entries?: number;
}

export interface HttpOptions {
  url: string;
  token: () => Promise<string | undefined>;
  subject: string | undefined;
  kind: "user" | "operator" | undefined;
  fetch: typeof fetch;
}

export class Http {
  readonly #options: HttpOptions;

  constructor(options: HttpOptions) {
    this.#options = options;
  }

  /** Makes a session; one that exists already is answered as it is. */
  createSession(
    body: { session?: string; agent?: string; title?: string; meta?: JsonObject } = {},
  ): Promise<{ session: string; cursor: string; meta: JsonObject }> {
    return this.#call("POST", "/v1/sessions", body);
  }

  /** Most recently active first; `next` is the `after` of the next page. */
  listSessions(
    query: { limit?: number; after?: string; device?: string } = {},
  ): Promise<{ sessions: SessionListItem[]; next?: string }> {
    const params = new URLSearchParams();
    if (query.limit !== undefined) params.set("limit", String(query.limit));
    if (query.after !== undefined) params.set("after", query.after);
    if (query.device !== undefined) params.set("device", query.device);
    return this.#call("GET", `/v1/sessions?${params}`);
  }

  getSession(
    session: string,
  ): Promise<{ session: string; cursor: string; meta: JsonObject; closed: boolean; runs: Run[] }> {
    return this.#call("GET", `/v1/sessions/${encodeURIComponent(session)}`);
  }

  /** The session's view, without a connection. */
  state(session: string): Promise<ViewJson> {
    return this.#call("GET", `/v1/sessions/${encodeURIComponent(session)}/state`);
  }

  /** Changes keys of the session's meta; `null` removes one. */
  updateMeta(session: string, meta: JsonObject): Promise<{ cursor: string }> {
    return this.#call("PATCH", `/v1/sessions/${encodeURIComponent(session)}`, { meta });
  }

  async #call<T>(method: string, path: string, body?: object): Promise<T> {
    const { url, token, subject, kind, fetch } = this.#options;
    const headers: Record<string, string> = {};
    const bearer = await token();
    if (bearer !== undefined) headers["Authorization"] = `Bearer ${bearer}`;
    if (subject !== undefined) headers["Everthread-Subject"] = subject;
    if (kind !== undefined) headers["Everthread-Kind"] = kind;
    if (body) headers["Content-Type"] = "application/json";
    const init = { method, headers, ...(body ? { body: JSON.stringify(body) } : {}) };
    const response = await fetch(new URL(path, url), init);
    if (!response.ok) throw await refusal(response);
    return (await response.json()) as T;
  }
}

async function refusal(response: Response): Promise<EverthreadError> {
  try {
    const { error } = (await response.json()) as { error: ErrorBody };
    return new EverthreadError(error);
  } catch {
    // Not Everthread's own answer: something in between spoke.
    const retryable = response.status >= 500;
    const message = `the server answered ${response.status}`;
    return new EverthreadError({ code: "http", message, retryable, no_side_effects: false });
  }
}
