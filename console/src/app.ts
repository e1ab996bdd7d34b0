// What is on the page: which session is selected, and how its parts hear of it.

import { Everthread, EverthreadError, type Session, type SessionListItem, ulid } from "../../sdk/typescript/src/index.js";
import { Composer } from "./composer.js";
import { type Config, deviceId } from "./config.js";
import { ConnectionBar } from "./connection.js";
import { Desk } from "./desk.js";
import { byId, setText } from "./dom.js";
import { showEmpty, showMissing } from "./empty.js";
import { runOfControl } from "./lines.js";
import { People } from "./people.js";
import { StickyScroll } from "./scroll.js";
import { Sidebar, titleOf } from "./sidebar.js";
import { Takeover } from "./takeover.js";
import { Transcript } from "./transcript.js";

const RECENT_MESSAGES = 50;
const LIST_EVERY_MS = 10_000;
const TITLE_CHARS = 60;

export class App {
  readonly #config: Config;
  readonly #client: Everthread;
  readonly #sidebar: Sidebar;
  readonly #composer: Composer;
  readonly #connection: ConnectionBar;
  readonly #transcript: Transcript;
  readonly #scroll: StickyScroll;
  readonly #desk: Desk;
  readonly #takeover: Takeover;
  readonly #title = byId("title", HTMLElement);
  readonly #status = byId("status", HTMLElement);
  readonly #welcome = byId("welcome", HTMLElement);
  #session: Session | undefined;
  #listing = false;

  constructor(config: Config, onRefused: (reason: string) => void) {
    this.#config = config;
    const subject = config.subject === undefined ? {} : { subject: config.subject };
    const device = deviceId();
    this.#client = new Everthread({ token: config.token, device, ...subject });
    const people = new People(device, config.subject);
    this.#desk = new Desk(this.#client, people, {
      say: (words) => this.#say(words),
      redraw: () => this.#transcript.redraw(),
    });
    this.#takeover = new Takeover(people, (error) => this.#say(reasonOf(error)));
    this.#sidebar = new Sidebar(() => this.#select(undefined));
    this.#composer = new Composer({
      send: (text) => void this.#send(text),
      stop: () => this.#desk.stopAll(),
      pause: () => this.#desk.pauseOrResume(this.#desk.current),
    });
    this.#composer.setAgents(config.agents);
    this.#connection = new ConnectionBar(this.#client);
    this.#scroll = new StickyScroll(byId("scroll", HTMLElement), byId("jump", HTMLButtonElement));
    this.#transcript = new Transcript(byId("transcript", HTMLElement), this.#scroll, this.#desk, () => {
      void this.#session?.loadOlder().catch((error: unknown) => this.#say(reasonOf(error)));
    });
    this.#client.on("state", (state) => {
      if (state.phase === "stopped" && state.code === 4401) onRefused(state.reason);
    });
  }

  start(): void {
    this.#client.connect();
    addEventListener("hashchange", () => this.#select(fromHash()));
    this.#select(fromHash());
    void this.#list();
    setInterval(() => {
      if (document.visibilityState === "visible") void this.#list();
    }, LIST_EVERY_MS);
  }

  /** Shows a session, or the page for a new one. */
  #select(id: string | undefined): void {
    if (id !== undefined && id === this.#session?.id) return;
    if (id !== fromHash()) {
      const path = location.pathname + location.search;
      history.pushState(null, "", id === undefined ? path : `#${encodeURIComponent(id)}`);
    }
    this.#session?.close();
    this.#session = undefined;
    this.#transcript.clear();
    this.#say("");
    this.#composer.setButtons({ run: undefined, canPause: false, stopping: false, pausing: false });
    this.#composer.setBusy(new Set());
    this.#composer.setOperator(false);
    this.#composer.setDisabled(undefined);
    this.#desk.watch(undefined);
    this.#sidebar.select(id);
    if (id === undefined) this.#showNew();
    else this.#open(id);
    this.#connection.watch(this.#session);
    this.#takeover.watch(this.#session);
  }

  #showNew(): void {
    setText(this.#title, "New session");
    document.title = "Everthread";
    showEmpty(this.#welcome, this.#config.agents, (agent, text) => {
      if (agent !== undefined) this.#composer.pickAgent(agent);
      void this.#send(text);
    });
    this.#scroll.toTop();
    this.#composer.focus();
  }

  #open(id: string): Session {
    this.#welcome.hidden = true;
    this.#scroll.toEnd();
    setText(this.#title, id);
    const session = this.#client.session(id, { from: { recent: RECENT_MESSAGES } });
    this.#session = session;
    this.#desk.watch(session);
    session.on("change", (view, change) => {
      this.#transcript.changed(view, change);
      this.#drawState(session);
    });
    session.on("status", () => this.#connection.draw());
    session.open().catch((error: unknown) => {
      if (session !== this.#session || !(error instanceof EverthreadError)) return;
      if (error.code === "no_session") this.#showMissing(id);
      else if (error.code !== "closed") this.#say(error.message);
    });
    return session;
  }

  #showMissing(id: string): void {
    this.#composer.setDisabled("This session does not exist");
    showMissing(this.#welcome, id, () => this.#select(undefined));
    this.#scroll.toTop();
  }

  #drawState(session: Session): void {
    const { view } = session;
    const title = titleOf({ session: session.id, meta: view.session.meta });
    setText(this.#title, title);
    document.title = `${title} · Everthread`;
    this.#takeover.draw();
    this.#drawButtons(session);
    this.#composer.setDisabled(view.session.closed ? "This session is closed" : undefined);
    const met = view.runs.filter((run) => run.parent_run === undefined).map((run) => run.agent);
    this.#composer.setAgents([...new Set([...this.#config.agents, ...met])]);
    this.#connection.draw();
  }

  #drawButtons({ view }: Session): void {
    const open = view.openRuns();
    const ids = new Set(open.map((run) => run.run));
    const own = open.filter((run) => run.parent_run === undefined || !ids.has(run.parent_run));
    // While a person has the session, no agent takes anything in.
    const isHeld = view.session.held !== undefined;
    this.#composer.setBusy(new Set(isHeld ? [] : own.map((run) => run.agent)));
    this.#composer.setOperator(this.#takeover.isMine);
    const run = this.#desk.current;
    const pending = view.controls.filter((control) => control.outcome === undefined);
    const its = pending.filter((control) => runOfControl(control, view) === run?.run);
    this.#composer.setButtons({
      run,
      canPause: !isHeld && run !== undefined && (run.status === "active" || run.paused === true),
      stopping: own.every(({ run }) =>
        pending.some((control) => control.kind === "cancel" && runOfControl(control, view) === run),
      ),
      pausing: its.some(({ kind }) => kind === "pause" || kind === "resume"),
    });
  }

  async #send(text: string): Promise<void> {
    const agent = this.#composer.agent;
    let session = this.#session;
    try {
      session ??= await this.#create(text, agent);
    } catch (error) {
      this.#say(`The session was not made: ${reasonOf(error)}`);
      return;
    }
    const message = ulid(this.#client.serverNow());
    this.#transcript.addPending(message, text);
    this.#composer.focus();
    try {
      const role = this.#takeover.isMine ? "operator" : "user";
      const whom = role === "operator" || agent === undefined ? {} : { agent, whenBusy: this.#composer.whenBusy };
      await session.send(text, { message, role, ...whom });
      void this.#list();
    } catch (error) {
      if (session === this.#session) this.#transcript.failPending(message, reasonOf(error));
    }
  }

  async #create(text: string, agent: string | undefined): Promise<Session> {
    const title = text.length > TITLE_CHARS ? `${text.slice(0, TITLE_CHARS - 1).trimEnd()}…` : text;
    const made = await this.#client.http.createSession({ title, ...(agent === undefined ? {} : { agent }) });
    this.#select(made.session);
    return this.#session ?? this.#open(made.session);
  }

  async #list(): Promise<void> {
    // A slow server must not collect a queue of these.
    if (this.#listing) return;
    this.#listing = true;
    try {
      const { sessions } = await this.#client.http.listSessions({ limit: 100 });
      this.#sidebar.show(sessions satisfies SessionListItem[]);
    } catch {
      // The connection's state says what is wrong; the list stays as it was.
    } finally {
      this.#listing = false;
    }
  }

  #say(words: string): void {
    setText(this.#status, words);
  }
}

function fromHash(): string | undefined {
  const hash = location.hash.slice(1);
  if (hash === "") return undefined;
  try {
    return decodeURIComponent(hash);
  } catch {
    return hash;
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
