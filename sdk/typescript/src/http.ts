// The HTTP routes: for programs that have no connection, and for what needs none. Everything that writes takes an `id`: the
// same one again gets the first answer.

import { referenceOf } from "./branches.js";
import { EverthreadError } from "./errors.js";
import type { MessageLike } from "./options.js";
import type {
  ControlKind,
  Entries,
  ErrorBody,
  JsonObject,
  Message,
  Level,
  Mode,
  PutPart,
  Receipt,
  Run,
  SessionsFrame,
  SessionSummary,
  Target,
  ViewJson,
  ViewState,
  WhenBusy,
} from "./protocol.js";
import { lines, serverEvents } from "./sse.js";

/** What `…/input` takes: the text or the parts of a message of the user. */
export type InputBody = ({ text: string } | { parts: PutPart[] }) & {
  id?: string;
  agent?: string;
  params?: JsonObject;
  reply_to?: string;
  message?: string;
  when_busy?: WhenBusy;
  replaces?: string;
  /** How sure the answer is to be; as the deployment has it if absent. */
  ack?: Level;
};

export interface ControlBody {
  id?: string;
  kind: ControlKind;
  target: Target;
  mode?: Mode;
  payload?: object;
  expires_ms?: number;
  /** How sure the answer is to be; as the deployment has it if absent. */
  ack?: Level;
}

/** Where to cut, and what the new session is: all of it, under an id that the server makes, unless told otherwise. */
export interface ForkOptions {
  /** Up to and including this seq. */
  at?: number;
  /** Id of the new session. */
  session?: string;
  /** Over the meta that it gets from its source; `null` removes a key. */
  meta?: JsonObject;
}

export interface Forked {
  session: string;
  cursor: string;
  meta: JsonObject;
  /** Where the cut is: inside a merged append it is before that. */
  at: number;
}

/** First line of an export. */
export interface ExportHead {
  session: string;
  meta: JsonObject;
  seq: number;
  epochs: { epoch: string; since: number }[];
  /** The first seq that is kept, if older entries were dropped. */
  floor?: number;
}

/** A line of an export: the head, what stands in place of what was dropped, or a record. */
export type ExportLine = ExportHead | { base: ViewState & JsonObject } | Entries;

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
  ): Promise<{ sessions: SessionSummary[]; next?: string }> {
    return this.#call("GET", `/v1/sessions${queryOf(query)}`);
  }

  getSession(
    session: string,
  ): Promise<{ session: string; cursor: string; meta: JsonObject; closed: boolean; runs: Run[] }> {
    return this.#call("GET", at(session));
  }

  /** Removes a session and all that is kept of it, for everybody; false if there was none. */
  async deleteSession(session: string): Promise<boolean> {
    const { deleted } = await this.#call<{ deleted: boolean }>("DELETE", at(session));
    return deleted;
  }

  /** Makes a new session of what a session was up to a place in its log. Both go on by themselves. */
  fork(session: string, options: ForkOptions = {}): Promise<Forked> {
    return this.#call("POST", at(session, "/fork"), options);
  }

  /** The session's view, without a connection; with `at` as it stood there, or a little before: its `seq` tells. */
  state(session: string, query: { at?: number } = {}): Promise<ViewJson> {
    return this.#call("GET", at(session, `/state${queryOf(query)}`));
  }

  /** A page of messages, the newest ones before `before`. */
  messages(
    session: string,
    query: { before?: number; limit?: number } = {},
  ): Promise<{ messages: Message[]; more: boolean }> {
    return this.#call("GET", at(session, `/messages${queryOf(query)}`));
  }

  /** Everything that is kept of a session, line by line. */
  async *export(session: string): AsyncGenerator<ExportLine, void, undefined> {
    const { body } = await this.#send("GET", at(session, "/export"));
    if (body) for await (const line of lines(body)) if (line !== "") yield JSON.parse(line) as ExportLine;
  }

  /** Changes keys of the session's meta; `null` removes one. */
  updateMeta(session: string, meta: JsonObject): Promise<{ cursor: string }> {
    return this.#call("PATCH", at(session), { meta });
  }

  /** Writes a message of the user, which asks an agent to work. */
  input(
    session: string,
    body: InputBody,
  ): Promise<{ cursor: string; message: string; run?: string; control?: string; duplicate?: boolean; ack?: Level }> {
    return this.#call("POST", at(session, "/input"), body);
  }

  /** Asks something of a run. With `waitMs` the answer is the outcome if that comes in time, else how far it got. */
  control(session: string, body: ControlBody, options: { waitMs?: number } = {}): Promise<Receipt> {
    return this.#call("POST", at(session, `/control${queryOf({ wait_ms: options.waitMs })}`), body);
  }

  /** How a control stands. */
  controlStatus(session: string, control: string, options: { waitMs?: number } = {}): Promise<Receipt> {
    const path = `/control/${encodeURIComponent(control)}${queryOf({ wait_ms: options.waitMs })}`;
    return this.#call("GET", at(session, path));
  }

  /** Takes the session over from its agents. */
  hold(session: string, body: { id?: string; reason?: string } = {}): Promise<{ cursor: string }> {
    return this.#call("POST", at(session, "/hold"), body);
  }

  /** Hands the session back. */
  release(
    session: string,
    body: { id?: string; reason?: string; agent?: string; run?: false } = {},
  ): Promise<{ cursor: string; run?: string }> {
    return this.#call("POST", at(session, "/release"), body);
  }

  /** Has a run that has ended done again, for an answer beside the first. */
  regenerate(
    session: string,
    body: { id?: string; run: string; params?: JsonObject },
  ): Promise<{ cursor: string; run: string }> {
    return this.#call("POST", at(session, "/regenerate"), body);
  }

  /** Makes the newest branch through a message the current one. */
  select(session: string, message: MessageLike, options: { id?: string } = {}): Promise<{ cursor: string }> {
    const reference = typeof message === "string" ? message : referenceOf(message);
    return this.#call("POST", at(session, "/select"), { ...options, message: reference });
  }

  /**
   * The sessions of the tenant as they change: first the most recent ones (`sessions`), then what is different. It ends when
   * the connection does; whoever wants more asks again, and gets the whole anew. `Everthread.watch` does that by itself.
   */
  async *feed(query: { recent?: number; device?: string } = {}): AsyncGenerator<SessionsFrame, void, undefined> {
    const { body } = await this.#send("GET", `/v1/feed${queryOf(query)}`);
    if (!body) return;
    for await (const { event, data } of serverEvents(body)) {
      if (event === "sessions") yield { t: "sessions", ...(JSON.parse(data) as Omit<SessionsFrame, "t">) };
    }
  }

  async #call<T>(method: string, path: string, body?: object): Promise<T> {
    return (await (await this.#send(method, path, body)).json()) as T;
  }

  async #send(method: string, path: string, body?: object): Promise<Response> {
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
    return response;
  }
}

function at(session: string, below = ""): string {
  return `/v1/sessions/${encodeURIComponent(session)}${below}`;
}

function queryOf(query: Record<string, string | number | undefined>): string {
  const given = Object.entries(query).flatMap(([key, value]) => (value === undefined ? [] : [[key, String(value)]]));
  return given.length === 0 ? "" : `?${new URLSearchParams(given)}`;
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
