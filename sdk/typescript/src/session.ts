// One session as this client sees it: a view that follows the log, and requests. It outlives connections: each new one
// attaches it again from its own cursor.

import { Backoff, REQUEST_CAP_MS } from "./backoff.js";
import { referenceOf } from "./branches.js";
import { ControlHandle } from "./control.js";
import { Emitter } from "./emitter.js";
import { EverthreadError } from "./errors.js";
import type { Forked, ForkOptions, Http } from "./http.js";
import type { Link, Reply } from "./link.js";
import type {
  AnswerOptions,
  ControlOptions,
  InputOptions,
  MessageLike,
  SendOptions,
  SentMessage,
  SessionOptions,
  SessionStatus,
  SteerOptions,
} from "./options.js";
import { Mark, type Self } from "./mark.js";
import { Outbox } from "./outbox.js";
import { messageAt, Past, type Searched, searchBack } from "./past.js";
import { Presence } from "./presence.js";
import type {
  Attached,
  Control,
  ControlKind,
  Done,
  From,
  GoneReason,
  HistoryPage,
  JsonObject,
  Message,
  PutPart,
  ResetReason,
  SessionFrame,
  Target,
  WhenBusy,
  WritableEntry,
} from "./protocol.js";
import { approvalOf, targetOf, type TargetLike } from "./target.js";
import { ulid } from "./ulid.js";
import { type Change, noChange, View } from "./view.js";

const SAVE_AFTER_MS = 500;

/** What a session needs of its client. */
export interface Host {
  http: Http;
  /** The link that has been welcomed, if there is one. */
  link(): Link | undefined;
  serverNow(): number;
  self: Self;
  /** It is to hear of the connection from here on, also when it was closed before. */
  opened(session: Session): void;
  /** There is something to connect for. */
  wanted(): void;
  forget(session: Session): void;
  /** For how long a request is tried again that the server cannot do yet. */
  retryForMs: number;
}

interface SessionEvents {
  change: [view: View, change: Change];
  status: [status: SessionStatus];
  /** The cursor was not taken: a snapshot follows, and what the view held may be missing from it. */
  reset: [reason: ResetReason];
  /** The session is no more. */
  gone: [reason: GoneReason];
  error: [error: EverthreadError];
}

export class Session extends Emitter<SessionEvents> {
  readonly id: string;
  #view = new View();
  #status: SessionStatus = "closed";
  /** How many entries this client is behind, while it lags. */
  behind = 0;
  readonly #host: Host;
  readonly #options: SessionOptions;
  readonly #outbox: Outbox;
  readonly #retry = new Backoff(REQUEST_CAP_MS);
  readonly #mark: Mark;
  /** Who else is here now, if the session was made with the option `presence`. */
  readonly presence = new Presence();
  /** Own controls without outcome. */
  readonly #controls = new Map<string, ControlHandle>();
  #attachment: { link: Link; number: number } | undefined;
  /** The request to attach that has no answer. */
  #attaching: { link: Link } | undefined;
  /** The one that opened it last, while it waits for what is stored. */
  #beginning: object | undefined;
  /** Runs while a refused attach waits for its next try. */
  #retrying: ReturnType<typeof setTimeout> | undefined;
  /** Of the log, when it was attached. */
  #epoch = "0";
  /** Cursor of the last gap: a second one at the same place means that the view cannot be continued. */
  #gapAt: string | undefined;
  #opening: Promise<void> | undefined;
  #opened: { resolve: () => void; reject: (error: EverthreadError) => void } | undefined;
  #saving: ReturnType<typeof setTimeout> | undefined;

  constructor(id: string, host: Host, options: SessionOptions) {
    super();
    this.id = id;
    this.#host = host;
    this.#options = options;
    this.#outbox = new Outbox({
      newId: () => this.#newId(),
      retryForMs: host.retryForMs,
      onLost: (error) => this.#isOver || this.emit("error", error),
    });
    this.#mark = new Mark(host.self);
  }

  get view(): View {
    return this.#view;
  }

  get status(): SessionStatus {
    return this.#status;
  }

  /** Up to where this device has read; undefined if it has none, or has acknowledged nothing. */
  get acked(): number | undefined {
    return this.#mark.acked;
  }

  /** Messages of others that began after that: what is new here. Undefined like `acked`. */
  get unread(): number | undefined {
    return this.#mark.unread(this.#view);
  }

  /** This device has read everything up to `seq`, or all there is. Call it for what is shown, as often as you like. */
  ack(seq = this.#view.seq): void {
    if (this.#host.self.device === undefined) throw new TypeError("ack needs the option `device` of the client");
    this.#mark.ack(seq);
    this.#changed(noChange());
  }

  /** Follows the session; resolves when everything there is has arrived for the first time. */
  open(): Promise<void> {
    if (!this.#isOver) return this.#opening ?? Promise.resolve();
    // Of a session that is gone, a new one of its name is another.
    if (this.#status === "gone") this.#view = new View();
    const opening = (this.#opening = new Promise((resolve, reject) => (this.#opened = { resolve, reject })));
    // Who does not wait for it hears of a failure by the `error` event; the promise must not end the program.
    opening.catch(() => undefined);
    this.#host.opened(this);
    this.#setStatus("offline");
    // Who was told may have closed it.
    if (!this.#isOver) void this.#begin();
    return opening;
  }

  /** Stops following. Requests without an answer fail; their fate is in the log. */
  close(): void {
    if (this.#status === "closed") return this.#host.forget(this);
    this.#leave();
    clearTimeout(this.#saving);
    this.#save();
    this.#host.forget(this);
    this.#end("closed", EverthreadError.closed());
  }

  /** Writes a message of the user, which asks `agent`, or the session's own, to work. Safe over reconnects. */
  async send(content: string | PutPart[], options: SendOptions = {}): Promise<SentMessage> {
    const { agent, reply_to, whenBusy, replaces, role = "user" } = options;
    const message = options.message ?? this.#newId();
    const reply = reply_to === undefined ? {} : { reply_to };
    const entry: WritableEntry = { type: "message.put", message, role, parts: partsOf(content), ...reply };
    const done = await this.put([entry], {
      ...(agent === undefined ? {} : { agent }),
      ...(whenBusy === undefined ? {} : { whenBusy }),
      ...(replaces === undefined ? {} : { replaces }),
    });
    return { message: done.message ?? message, run: done.run, cursor: done.cursor, control: done.control };
  }

  /**
   * Puts a message of the user in place of another, on a branch of its own. It asks the agent that the replaced one was for,
   * unless `agent` names one; what works on the replaced message or on what follows it is cancelled.
   */
  edit(
    message: MessageLike,
    content: string | PutPart[],
    options: Omit<SendOptions, "replaces"> = {},
  ): Promise<SentMessage> {
    return this.send(content, { ...options, replaces: message });
  }

  /** Has a run that has ended done again, for an answer beside the first. */
  async regenerate(
    run: string,
    options: { params?: JsonObject } = {},
  ): Promise<{ cursor: string | undefined; run: string | undefined }> {
    const done = expect(await this.#request({ t: "regenerate", run, ...options }), "ok");
    return { cursor: done.cursor, run: done.run };
  }

  /** Makes the newest branch through a message the current one, for everybody. */
  async select(message: MessageLike): Promise<{ cursor: string | undefined }> {
    const done = expect(await this.#request({ t: "select", message: asReference(message) }), "ok");
    return { cursor: done.cursor };
  }

  /** Writes entries. */
  async put(
    entries: WritableEntry[],
    options: { agent?: string; whenBusy?: WhenBusy; replaces?: MessageLike } = {},
  ): Promise<Done> {
    const { agent, whenBusy, replaces } = options;
    const more = {
      ...(replaces === undefined ? {} : { replaces: asReference(replaces) }),
      ...(agent === undefined ? {} : { agent }),
      ...(whenBusy === undefined ? {} : { when_busy: whenBusy }),
    };
    return expect(await this.#request({ t: "put", ...more, entries }), "ok");
  }

  /** Ends runs: what was written stays. Without a target it is the active run. No worker can refuse it. */
  cancel(target?: TargetLike, options: Omit<ControlOptions, "target"> = {}): ControlHandle {
    return this.#ask("cancel", () => this.#whom(target === undefined ? options : { ...options, target }));
  }

  /** Gives a run at work a further message. It is never lost: what cannot be taken in becomes the input of a new run. */
  steer(content: string | PutPart[], options: SteerOptions = {}): ControlHandle {
    const mode = options.mode === undefined ? {} : { mode: options.mode };
    return this.#ask("steer", () => ({ ...this.#whom(options), ...mode, payload: inputOf(content, options) }));
  }

  /** Ends a run and asks for a new one with this message, in one step. */
  interrupt(content: string | PutPart[], options: InputOptions = {}): ControlHandle {
    return this.#ask("interrupt", () => ({ ...this.#whom(options), payload: inputOf(content, options) }));
  }

  /** The run stands still where it is. */
  pause(options: ControlOptions = {}): ControlHandle {
    return this.#ask("pause", () => this.#whom(options));
  }

  /** Undoes `pause`. Without a target it is the run that is paused. */
  resume(options: ControlOptions = {}): ControlHandle {
    return this.#ask("resume", () => {
      const paused = this.#view.openRuns().findLast((run) => run.paused);
      return this.#whom(paused ? { target: paused.run, ...options } : options);
    });
  }

  /** Says yes to what a run waits for. The first answer wins; the loser is told who was first. */
  approve(approval: string, options: AnswerOptions = {}): ControlHandle {
    return this.#answer(approval, "approved", options);
  }

  /** Says no to what a run waits for. */
  deny(approval: string, options: AnswerOptions = {}): ControlHandle {
    return this.#answer(approval, "denied", options);
  }

  /** Takes the session over: active runs end, and no agent works until `release`. */
  async hold(reason?: string): Promise<{ cursor: string | undefined }> {
    const done = expect(await this.#request({ t: "hold", ...(reason === undefined ? {} : { reason }) }), "ok");
    return { cursor: done.cursor };
  }

  /** Hands the session back; a run is asked for what was said meanwhile, unless `run` is false. */
  async release(
    options: { reason?: string; agent?: string; run?: false } = {},
  ): Promise<{ cursor: string | undefined; run: string | undefined }> {
    const done = expect(await this.#request({ t: "release", ...options }), "ok");
    return { cursor: done.cursor, run: done.run };
  }

  /** A control of anybody with its outcome, as soon as the log holds that. Rejects if the session is closed before. */
  settled(control: string): Promise<Control> {
    return new Promise((resolve, reject) => {
      const look = () => {
        const found = this.#view.controls.find((c) => c.control === control && c.outcome !== undefined);
        if (!found && !this.#isOver) return;
        for (const off of offs) off();
        if (found) resolve(found);
        else reject(this.#overError);
      };
      const offs = [this.on("change", look), this.on("status", look)];
      look();
    });
  }

  /** A page of older messages. */
  async history(options: { before?: number; limit?: number } = {}): Promise<{ messages: Message[]; more: boolean }> {
    const reply: HistoryPage = expect(await this.#request({ t: "history", ...options }), "history");
    return { messages: reply.messages, more: reply.more };
  }

  /** Reads a page of older messages into the view. */
  async loadOlder(limit = 50): Promise<void> {
    const view = this.#view;
    const first = view.messages[0]?.seq;
    const page = await this.history({ limit, ...(first === undefined ? {} : { before: first }) });
    if (view !== this.#view) return;
    view.prepend(page.messages, page.more);
    this.#changed(noChange(true));
  }

  /** Messages around a place in the log, which may be far from those of the view. */
  async past(seq: number): Promise<Past> {
    const past = new Past((page) => this.history(page), () => this.#view);
    await past.goTo(seq);
    return past;
  }

  /** Takes messages of the past that go on to those of the view into the view; false if there are others between them. */
  join(past: Past): boolean {
    if (!past.meetsView) return false;
    this.#view.prepend(past.messages, past.more);
    this.#changed(noChange(true));
    return true;
  }

  /** The newest message that began by `time` (milliseconds on the server's clock), wherever it is. */
  messageAt(time: number): Promise<Message | undefined> {
    return messageAt((page) => this.history(page), this.#view.seq, time);
  }

  /** Looks for messages from the newest back, page by page, for as long as somebody reads on. */
  search(matches: (message: Message) => boolean): AsyncGenerator<Searched, void, undefined> {
    return searchBack((page) => this.history(page), matches);
  }

  /** Makes a new session of this one, up to `at` or as it is. Both go on by themselves. */
  fork(options: ForkOptions = {}): Promise<Forked> {
    return this.#host.http.fork(this.id, options);
  }

  /** The client has a welcomed link. Called by the client. */
  linkUp(link: Link): void {
    // What is stored comes first: it says from where.
    if (this.#isOver || this.#beginning) return;
    if ((this.#attaching ?? this.#attachment)?.link === link) return;
    this.#attach(link);
  }

  /** The link is gone. Called by the client. */
  linkDown(): void {
    this.#detached();
    if (!this.#isOver) this.#setStatus("offline");
  }

  /** The client may not connect. Called by the client. */
  refused(error: EverthreadError): void {
    if (!this.#isOver) this.#fail(error);
  }

  #answer(approval: string, decision: "approved" | "denied", options: AnswerOptions): ControlHandle {
    return this.#ask("answer", () => {
      const found = approvalOf(this.#view, approval, options.run);
      const digest = options.digest ?? found.digest;
      const value = options.value === undefined ? {} : { value: options.value };
      const payload = { approval, decision, ...value, ...(digest === undefined ? {} : { digest }) };
      return { target: { run: found.run }, payload };
    });
  }

  #whom({ target, expiresMs }: ControlOptions): { target: Target; expires_ms?: number } {
    const whom = targetOf(this.#view, target);
    return expiresMs === undefined ? { target: whom } : { target: whom, expires_ms: expiresMs };
  }

  /** Asks something of a run, until it has an outcome. What cannot even be asked fails like what is refused. */
  #ask(kind: ControlKind, request: () => { target: Target } & Record<string, unknown>): ControlHandle {
    const handle = new ControlHandle(this.#newId());
    try {
      if (this.#isOver) throw this.#overError;
      this.#outbox.control({ t: "control", kind, ...request() }, handle);
      this.#controls.set(handle.id, handle);
      const forget = () => void this.#controls.delete(handle.id);
      handle.settled.then(forget, forget);
    } catch (error) {
      if (!(error instanceof EverthreadError)) throw error;
      handle.fail(error);
    }
    return handle;
  }

  /** Nothing comes any more, until `open` is called. */
  get #isOver(): boolean {
    return this.#status === "closed" || this.#status === "failed" || this.#status === "gone";
  }

  get #overError(): EverthreadError {
    return this.#status === "gone" ? EverthreadError.noSession(this.id) : EverthreadError.closed();
  }

  #request(frame: { t: string } & Record<string, unknown>): Promise<Reply> {
    return this.#isOver ? Promise.reject(this.#overError) : this.#outbox.request(frame);
  }

  async #begin(): Promise<void> {
    const beginning = (this.#beginning = {});
    let stored: View | undefined;
    try {
      const view = this.#view.begun ? undefined : await this.#options.storage?.load(this.id);
      stored = view && View.from(view);
    } catch {
      // A view that cannot be read is as good as none.
    }
    // Closed meanwhile, and perhaps opened again: this one has nothing to say any more, nor to connect for.
    if (this.#beginning !== beginning) return;
    this.#beginning = undefined;
    if (stored && !this.#view.begun) {
      this.#view = stored;
      this.#changed(noChange(true));
    }
    if (this.#isOver) return;
    this.#host.wanted();
    const link = this.#host.link();
    if (link) this.linkUp(link);
  }

  #attach(link: Link): void {
    const attaching = (this.#attaching = { link });
    clearTimeout(this.#retrying);
    this.#setStatus("catching-up");
    const from: From = this.#view.begun ? this.#view.cursor : (this.#options.from ?? { recent: 50 });
    const { presence, foldMs } = this.#options;
    const options = { ...(presence ? { presence } : {}), ...(foldMs === undefined ? {} : { fold_ms: foldMs }) };
    link.request({ t: "attach", id: this.#newId(), session: this.id, from, ...options }, (reply) => {
      if (this.#attaching !== attaching) {
        // Left before the answer came: nobody listens to it.
        if (reply?.t === "attached") this.#detach(link, reply.attachment);
        return;
      }
      if (!reply) return;
      this.#attaching = undefined;
      if (reply.t === "error") return this.#attachRefused(link, new EverthreadError(reply));
      this.#attached(link, reply as Attached);
    });
  }

  #attached(link: Link, attached: Attached): void {
    const { attachment } = attached;
    this.#attachment = { link, number: attachment };
    this.#epoch = attached.epoch;
    this.#outbox.again(({ epoch, seq }) => epoch !== attached.epoch || seq > attached.head);
    link.listen(attachment, (frame) => this.#receive(frame));
    this.#outbox.attached(link, attachment);
    this.#mark.attached(link, attached);
    if (this.#options.presence) this.presence.attached(link, attachment);
  }

  #attachRefused(link: Link, error: EverthreadError): void {
    // It was there before.
    if (error.code === "no_session" && this.#view.begun) return this.#gone("deleted");
    if (!error.retryable) return this.#fail(error);
    this.#retrying = setTimeout(() => this.#attach(link), this.#retry.next(0, error.afterMs));
  }

  #receive(frame: SessionFrame): void {
    switch (frame.t) {
      case "reset":
        if (frame.reason === "epoch") this.#outbox.again(() => true);
        // A snapshot follows; until then the old view is better than none.
        return this.emit("reset", frame.reason);
      case "snapshot":
        this.#view = new View();
        this.#view.load(frame);
        return this.#changed(noChange(true));
      case "entries":
        // Begun after what the device had read, the view stands before the first frame it is sent.
        if (!this.#view.begun && frame.from > 1) this.#view.standAt(frame.epoch, frame.from - 1);
        return this.#apply(frame);
      case "live":
        if (!this.#view.begun && frame.seq > 0) this.#view.standAt(this.#epoch, frame.seq);
        this.#gapAt = undefined;
        this.#retry.reset();
        this.#setStatus("live");
        this.#opened?.resolve();
        this.#opened = undefined;
        return;
      case "presence":
        return this.presence.receive(frame);
      case "lag":
        this.behind = frame.behind;
        return this.#setStatus("lag");
      case "gone":
        return this.#gone(frame.reason);
    }
  }

  #apply(frame: Extract<SessionFrame, { t: "entries" }>): void {
    try {
      const known = this.#view.epoch;
      const applied = this.#view.apply(frame);
      if (frame.epoch !== known) {
        this.#outbox.again(({ epoch, seq }) => epoch !== frame.epoch && seq >= frame.since);
      }
      if (applied.result === "applied") return this.#changed(applied.change);
      if (applied.result === "duplicate") return;
      const stuck = this.#gapAt === this.#view.cursor;
      this.#gapAt = this.#view.cursor;
      this.#attachAgain(stuck);
    } catch {
      // View and log differ, or the frame is not what the protocol says.
      this.#attachAgain(true);
    }
  }

  #attachAgain(anew: boolean): void {
    const link = this.#attachment?.link;
    this.#leave();
    if (anew) this.#view = new View();
    if (link) this.#attach(link);
  }

  #detached(): void {
    this.#attachment = undefined;
    this.#attaching = undefined;
    clearTimeout(this.#retrying);
    this.#outbox.detached();
    this.#mark.detached();
    this.presence.detached();
  }

  #leave(): void {
    this.#beginning = undefined;
    const attachment = this.#attachment;
    this.#detached();
    if (!attachment) return;
    attachment.link.unlisten(attachment.number);
    this.#detach(attachment.link, attachment.number);
  }

  #detach(link: Link, attachment: number): void {
    link.request({ t: "detach", id: this.#newId(), attachment }, () => undefined);
  }

  #fail(error: EverthreadError): void {
    this.#end("failed", error);
    this.emit("error", error);
  }

  /** The attachment is over by itself; what was asked for and not answered never will be. */
  #gone(reason: GoneReason): void {
    const attachment = this.#attachment;
    attachment?.link.unlisten(attachment.number);
    this.#detached();
    clearTimeout(this.#saving);
    this.#saving = undefined;
    void quietly(() => this.#options.storage?.forget?.(this.id));
    this.#end("gone", EverthreadError.noSession(this.id));
    this.emit("gone", reason);
  }

  /** Nothing comes any more. Listeners are told last: they may open it again, which must not fail with this. */
  #end(status: "closed" | "failed" | "gone", error: EverthreadError): void {
    this.#status = status;
    this.#outbox.close(error);
    this.#opened?.reject(error);
    this.#opened = undefined;
    this.emit("status", status);
  }

  #changed(change: Change): void {
    // The log may know more of own controls than the connection said.
    for (const control of this.#controls.size === 0 ? [] : change.all ? this.#view.controls : change.controls) {
      this.#controls.get(control.control)?.found(control, this.#view.seq);
    }
    this.emit("change", this.#view, change);
    if (this.#options.storage && this.#saving === undefined) {
      this.#saving = setTimeout(() => this.#save(), SAVE_AFTER_MS);
    }
  }

  #save(): void {
    this.#saving = undefined;
    if (!this.#view.begun || this.#status === "gone") return;
    void quietly(() => this.#options.storage?.save(this.id, this.#view.toJSON()));
  }

  #setStatus(status: SessionStatus): void {
    if (status === this.#status && status !== "lag") return;
    this.#status = status;
    this.emit("status", status);
  }

  #newId(): string {
    return ulid(this.#host.serverNow());
  }
}

/** A storage that is full, or was turned off, keeps nobody from going on. */
async function quietly(what: () => Promise<void> | void): Promise<void> {
  try {
    await what();
  } catch {
    // What it keeps is of use when it can be read, and is not missed otherwise.
  }
}

function asReference(message: MessageLike): string {
  return typeof message === "string" ? message : referenceOf(message);
}

function partsOf(content: string | PutPart[]): PutPart[] {
  return typeof content === "string" ? [{ kind: "text", value: content }] : content;
}

function inputOf(content: string | PutPart[], { message }: InputOptions): object {
  const input = typeof content === "string" ? { text: content } : { parts: content };
  return message === undefined ? input : { ...input, message };
}

function expect<T extends Reply["t"]>(reply: Reply, type: T): Extract<Reply, { t: T }> {
  if (reply.t !== type) {
    const message = `the server answered ${reply.t} where ${type} was due`;
    throw new EverthreadError({ code: "protocol", message, retryable: false, no_side_effects: false });
  }
  return reply as Extract<Reply, { t: T }>;
}
