// What is on the page: which session is selected, and how its parts hear of it.

import { Everthread, EverthreadError, type JsonObject, type Session, ulid } from "../../sdk/typescript/src/index.js";
import { Composer } from "./composer.js";
import { type Config, deviceId } from "./config.js";
import { ConnectionBar } from "./connection.js";
import { Desk } from "./desk.js";
import { byId, setText } from "./dom.js";
import { showEmpty, showGone, showMissing } from "./empty.js";
import { Find } from "./find.js";
import { Here } from "./here.js";
import { runOfControl } from "./lines.js";
import { People } from "./people.js";
import { Places } from "./places.js";
import { ReadMark } from "./read-mark.js";
import { StickyScroll } from "./scroll.js";
import { SessionList } from "./session-list.js";
import { SessionMenu } from "./session-menu.js";
import { Sidebar, titleOf } from "./sidebar.js";
import { Takeover } from "./takeover.js";
import { Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";

const RECENT_MESSAGES = 50;
/** A page of so many screens is long: so is a session that has messages before those on the page. */
const LONG_SCREENS = 6;
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
  readonly #list: SessionList;
  readonly #here: Here;
  readonly #places: Places;
  readonly #timeline: Timeline;
  readonly #mark: ReadMark;
  readonly #find: Find;
  readonly #menu: SessionMenu;
  readonly #forkedFrom = byId("forked-from", HTMLAnchorElement);
  readonly #title = byId("title", HTMLElement);
  readonly #status = byId("status", HTMLElement);
  readonly #welcome = byId("welcome", HTMLElement);
  #session: Session | undefined;

  constructor(config: Config, onRefused: (reason: string) => void) {
    this.#config = config;
    const subject = config.subject === undefined ? {} : { subject: config.subject };
    const device = deviceId();
    this.#client = new Everthread({ token: config.token, device, ...subject });
    const people = new People(device, config.subject);
    this.#desk = new Desk(this.#client, people, {
      say: (words) => this.#say(words),
      redraw: () => this.#transcript.redraw(),
      open: (session) => this.#select(session),
    });
    this.#takeover = new Takeover(people, (error) => this.#say(reasonOf(error)));
    this.#sidebar = new Sidebar(() => this.#select(undefined));
    this.#list = new SessionList(this.#client, device, this.#sidebar);
    this.#here = new Here(device);
    this.#composer = new Composer({
      send: (text) => void this.#send(text),
      stop: () => this.#desk.stopAll(),
      pause: () => this.#desk.pauseOrResume(this.#desk.current),
      typing: (isTyping) => this.#here.setTyping(isTyping),
    });
    this.#composer.setAgents(config.agents);
    this.#connection = new ConnectionBar(this.#client);
    this.#scroll = new StickyScroll(byId("scroll", HTMLElement), byId("jump", HTMLButtonElement));
    const older = () => this.#places.older();
    this.#transcript = new Transcript(byId("transcript", HTMLElement), this.#scroll, this.#desk, older);
    this.#places = new Places(this.#transcript, this.#scroll, (error) => this.#say(reasonOf(error)));
    const goTo = (seq: number) => void this.#places.goTo(seq);
    this.#timeline = new Timeline(goTo);
    this.#find = new Find(people, goTo);
    this.#mark = new ReadMark(this.#scroll, this.#transcript, (session) => this.#list.read(session));
    this.#menu = new SessionMenu(this.#client, {
      find: () => this.#find.open(),
      deleted: (session) => this.#deleted(session),
      say: (words) => this.#say(words),
    });
    this.#scroll.onMove = () => this.#moved();
    this.#client.on("state", (state) => {
      if (state.phase === "stopped" && state.code === 4401) onRefused(state.reason);
    });
  }

  start(): void {
    this.#client.connect();
    addEventListener("hashchange", () => this.#select(fromHash()));
    this.#select(fromHash());
    // As in every reader of long things; where a session is open, the browser's own search sees but a part of it.
    addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "k" && this.#session) {
        event.preventDefault();
        this.#find.open();
      }
    });
  }

  /** Shows a session, or the page for a new one. */
  #select(id: string | undefined): void {
    if (id !== undefined && id === this.#session?.id) return;
    if (id !== fromHash()) {
      const path = location.pathname + location.search;
      history.pushState(null, "", id === undefined ? path : `#${encodeURIComponent(id)}`);
    }
    this.#watch(undefined);
    this.#session?.close();
    this.#session = undefined;
    this.#transcript.clear();
    this.#say("");
    this.#composer.setButtons({ run: undefined, canPause: false, stopping: false, pausing: false });
    this.#composer.setBusy(new Set());
    this.#composer.setOperator(false);
    this.#composer.setDisabled(undefined);
    this.#desk.watch(undefined);
    this.#forkedFrom.hidden = true;
    this.#sidebar.select(id);
    if (id === undefined) this.#showNew();
    else this.#open(id);
    this.#connection.watch(this.#session);
    this.#takeover.watch(this.#session);
  }

  /** The parts that follow the session on the page. */
  #watch(session: Session | undefined): void {
    for (const part of [this.#here, this.#places, this.#timeline, this.#mark, this.#find, this.#menu]) part.watch(session);
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
    const session = this.#client.session(id, { from: { recent: RECENT_MESSAGES }, presence: true });
    this.#session = session;
    this.#desk.watch(session);
    this.#watch(session);
    session.on("change", (view, change) => {
      this.#places.changed(view, change);
      this.#mark.look();
      this.#drawState(session);
    });
    session.on("status", () => {
      this.#connection.draw();
      this.#mark.look();
    });
    session.on("gone", () => this.#showGone(session));
    session.open().catch((error: unknown) => {
      if (session !== this.#session || !(error instanceof EverthreadError)) return;
      if (session.status === "gone") return;
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

  #showGone(session: Session): void {
    if (session !== this.#session) return;
    this.#transcript.clear();
    this.#watch(undefined);
    this.#takeover.watch(undefined);
    this.#composer.setButtons({ run: undefined, canPause: false, stopping: false, pausing: false });
    this.#composer.setDisabled("This session was deleted");
    const title = titleOf({ session: session.id, meta: session.view.session.meta });
    showGone(this.#welcome, title, () => this.#select(undefined));
    this.#scroll.toTop();
    this.#connection.draw();
    this.#list.refresh();
  }

  /** Who has deleted it need not be told that it is gone. */
  #deleted(session: string): void {
    if (session === this.#session?.id) this.#select(undefined);
    this.#list.refresh();
    this.#say("Deleted");
  }

  /** The reader has moved, or what is on the page has. */
  #moved(): void {
    this.#mark.look();
    this.#places.moved();
    const view = this.#session?.view;
    if (!view?.begun) return;
    const { scrollHeight, clientHeight } = this.#scroll.box;
    const isLong = view.more || this.#places.isPast || scrollHeight > LONG_SCREENS * clientHeight;
    this.#timeline.draw(this.#scroll.atEnd ? view.seq : (this.#transcript.topSeq ?? view.seq), isLong);
  }

  #drawState(session: Session): void {
    const { view } = session;
    const title = titleOf({ session: session.id, meta: view.session.meta });
    setText(this.#title, title);
    document.title = `${title} · Everthread`;
    this.#drawSource(view.session.meta);
    this.#takeover.draw();
    this.#menu.draw();
    this.#drawButtons(session);
    this.#composer.setDisabled(view.session.closed ? "This session is closed" : undefined);
    const met = view.runs.filter((run) => run.parent_run === undefined).map((run) => run.agent);
    this.#composer.setAgents([...new Set([...this.#config.agents, ...met])]);
    this.#connection.draw();
  }

  /** Where the session was continued from. */
  #drawSource(meta: JsonObject): void {
    const from = meta["forked_from"];
    const source = typeof from === "object" && from !== null && !Array.isArray(from) ? from["session"] : undefined;
    this.#forkedFrom.hidden = typeof source !== "string";
    if (typeof source !== "string") return;
    this.#forkedFrom.href = `#${encodeURIComponent(source)}`;
    setText(this.#forkedFrom, `Forked from ${this.#list.titleOf(source) ?? "another session"}`);
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
    this.#places.toNow();
    this.#mark.clear();
    this.#transcript.addPending(message, text);
    this.#composer.focus();
    try {
      const role = this.#takeover.isMine ? "operator" : "user";
      const whom = role === "operator" || agent === undefined ? {} : { agent, whenBusy: this.#composer.whenBusy };
      await session.send(text, { message, role, ...whom });
      this.#list.refresh();
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
