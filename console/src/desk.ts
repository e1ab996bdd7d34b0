// What this page asks of runs, and what it is told of that. One list for the page: own controls that have no outcome yet,
// or had one lately, so that a line can say which worker has got it.

import {
  activeRun,
  type ControlHandle,
  type ControlKind,
  type Everthread,
  type Json,
  type Message,
  type Receipt,
  type Run,
  type Session,
} from "../../sdk/typescript/src/index.js";
import { type OwnControl, reasonOf, TITLES } from "./lines.js";
import type { People } from "./people.js";
import { titleOf } from "./sidebar.js";

export interface DeskEvents {
  say: (words: string) => void;
  redraw: () => void;
  /** Another session is to be shown. */
  open: (session: string) => void;
}

export class Desk {
  readonly people: People;
  readonly #client: Everthread;
  readonly #say: (words: string) => void;
  readonly #redraw: () => void;
  readonly #open: (session: string) => void;
  #own: OwnControl[] = [];
  #session: Session | undefined;

  constructor(client: Everthread, people: People, on: DeskEvents) {
    this.#client = client;
    this.people = people;
    this.#say = on.say;
    this.#redraw = on.redraw;
    this.#open = on.open;
  }

  /** Another session: what was asked of the last one is no longer this page's business. */
  watch(session: Session | undefined): void {
    this.#session = session;
    this.#own = [];
  }

  /** The time on the server's clock. */
  now(): number {
    return this.#client.serverNow();
  }

  /** What this page asked of a run. */
  ownOf(run: string): OwnControl[] {
    return this.#own.filter((own) => own.run === run);
  }

  stop(run: string): void {
    this.#ask("cancel", run, (session) => session.cancel(run));
  }

  /** Asks every run to end that no open run started: what they started ends with them. */
  stopAll(): void {
    const open = this.#session?.view.openRuns() ?? [];
    const ids = new Set(open.map((run) => run.run));
    for (const run of open) {
      if (run.parent_run === undefined || !ids.has(run.parent_run)) this.stop(run.run);
    }
  }

  pauseOrResume(run: Run | undefined): void {
    if (!run) return;
    if (run.paused) this.#ask("resume", run.run, (session) => session.resume({ target: run.run }));
    else this.#ask("pause", run.run, (session) => session.pause({ target: run.run }));
  }

  /** Puts other words in the place of a message; whether that was done. */
  edit(message: Message, text: string): Promise<boolean> {
    return this.#do("Edit", (session) => session.edit(message, text));
  }

  /** Has a run done again, for another answer beside the first. */
  regenerate(run: string): Promise<boolean> {
    return this.#do("Regenerate", (session) => session.regenerate(run));
  }

  /** Makes the newest branch through a message the current one. */
  select(message: Message): void {
    void this.#do("Select", (session) => session.select(message));
  }

  /** Continues in a new session from everything up to `at`, or from all there is. */
  fork(at: number | undefined): void {
    void this.#do("Fork", async (session) => {
      const meta = { title: `${titleOf({ session: session.id, meta: session.view.session.meta })} (fork)` };
      const forked = await session.fork({ meta, ...(at === undefined ? {} : { at }) });
      if (session === this.#session) this.#open(forked.session);
    });
  }

  async #do(title: string, work: (session: Session) => Promise<unknown>): Promise<boolean> {
    const session = this.#session;
    if (!session) return false;
    try {
      await work(session);
      return true;
    } catch (error) {
      if (session === this.#session) this.#say(`${title} failed: ${error instanceof Error ? error.message : String(error)}`);
      return false;
    }
  }

  /** The run that the buttons of the composer are about. */
  get current(): Run | undefined {
    const view = this.#session?.view;
    return view && (view.openRuns().findLast((run) => run.paused) ?? activeRun(view));
  }

  answer(run: string, approval: string, isYes: boolean, value: Json | undefined): void {
    const options = { run, ...(value === undefined ? {} : { value }) };
    const ask = (session: Session) => (isYes ? session.approve(approval, options) : session.deny(approval, options));
    this.#ask("answer", run, ask, approval);
  }

  #ask(kind: ControlKind, run: string, ask: (session: Session) => ControlHandle, approval?: string): void {
    const session = this.#session;
    if (!session) return;
    const handle = ask(session);
    const own: OwnControl = { id: handle.id, kind, run, accepted: false, ...(approval === undefined ? {} : { approval }) };
    this.#own.push(own);
    const tell = (words: string) => {
      if (session !== this.#session) return;
      this.#say(words);
      this.#redraw();
    };
    tell(`${TITLES[kind]} requested…`);
    handle.on("receipt", (receipt) => {
      own.accepted = true;
      if (receipt.stage === "delivered") own.worker = receipt.worker;
      tell(this.#words(kind, receipt));
    });
    handle.settled.catch((error: unknown) => {
      this.#own = this.#own.filter((other) => other !== own);
      tell(`${TITLES[kind]} failed: ${error instanceof Error ? error.message : String(error)}`);
    });
  }

  #words(kind: ControlKind, receipt: Receipt): string {
    const title = TITLES[kind];
    switch (receipt.stage) {
      case "accepted":
        return `${title} accepted`;
      case "delivered":
        return `${title} delivered to ${receipt.worker}`;
      case "settled":
        if (receipt.outcome === "applied") return `${title} applied`;
        if (receipt.answered_by) return `It was ${reasonOf(receipt, this.people)}`;
        return `${title} ${receipt.outcome === "expired" ? "expired" : reasonOf(receipt, this.people)}`;
    }
  }
}
