// The state of the connection in words, and the button that cuts it to show that nothing is lost.

import type { Everthread, EverthreadError, Session } from "../../sdk/typescript/src/index.js";
import { byId, setText } from "./dom.js";

const CUT_MS = 5_000;
const TICK_MS = 200;

type Mood = "good" | "busy" | "bad";

export class ConnectionBar {
  readonly #pill = byId("connection", HTMLElement);
  readonly #words = byId("connection-text", HTMLElement);
  readonly #spoken = byId("connection-spoken", HTMLElement);
  readonly #cursor = byId("cursor", HTMLElement);
  readonly #cut = byId("cut", HTMLButtonElement);
  readonly #client: Everthread;
  #session: Session | undefined;
  /** Why the session is not shown, in the server's words. */
  #refused: string | undefined;
  #cutUntil: number | undefined;

  constructor(client: Everthread) {
    this.#client = client;
    client.on("state", () => this.draw());
    this.#cut.addEventListener("click", () => this.#cutNow());
    // Only count-downs need the clock; everything else is drawn when it happens.
    setInterval(() => {
      if (this.#cutUntil !== undefined || client.state.phase === "waiting") this.draw();
    }, TICK_MS);
    const back = () => {
      // The network or the person came back: do not sit out the back-off.
      if (client.state.phase === "waiting" && document.visibilityState === "visible") client.connect();
    };
    addEventListener("online", back);
    document.addEventListener("visibilitychange", back);
  }

  watch(session: Session | undefined): void {
    if (session !== this.#session) {
      this.#session = session;
      this.#refused = undefined;
      session?.on("error", (error) => this.#onError(session, error));
    }
    this.draw();
  }

  draw(): void {
    const [state, words, mood] = this.#describe();
    this.#pill.dataset["mood"] = mood;
    this.#pill.dataset["state"] = state;
    setText(this.#words, words);
    // Without its numbers, or a screen reader would hear every second of the count-down.
    setText(this.#spoken, words.replace(/[\d.,]+ ?s?/g, "").trim());
    const view = this.#session?.view;
    const cursor = view?.begun ? view.cursor : "";
    setText(this.#cursor, cursor);
    this.#cursor.hidden = cursor === "";
    this.#cut.disabled = this.#cutUntil !== undefined;
  }

  #describe(): [state: string, words: string, mood: Mood] {
    const { state } = this.#client;
    if (this.#cutUntil !== undefined) return ["cut", `Cut, back in ${seconds(this.#cutUntil)} s`, "bad"];
    switch (state.phase) {
      case "idle":
      case "connecting":
        return ["connecting", "Connecting…", "busy"];
      case "waiting":
        return ["offline", `Offline, retry in ${seconds(state.retryAt)} s`, "bad"];
      case "stopped":
        return ["stopped", state.reason || `Refused (${state.code})`, "bad"];
      case "open":
        return this.#describeSession();
    }
  }

  #describeSession(): [state: string, words: string, mood: Mood] {
    switch (this.#session?.status) {
      case undefined:
      case "closed":
        return ["connected", "Connected", "good"];
      case "live":
        return ["live", "Live", "good"];
      case "lag":
        return ["lag", `Behind by ${this.#session?.behind ?? 0}`, "busy"];
      case "gone":
        return ["gone", "Deleted", "bad"];
      case "failed":
        return ["failed", this.#refused ?? "Not available", "bad"];
      case "offline":
      case "catching-up":
        return ["catching-up", "Catching up…", "busy"];
    }
  }

  #onError(session: Session, error: EverthreadError): void {
    if (session !== this.#session) return;
    // Its code is for programs.
    const words = error.message.replace(`${error.code}: `, "");
    this.#refused = words.charAt(0).toUpperCase() + words.slice(1);
    this.draw();
  }

  #cutNow(): void {
    this.#cutUntil = Date.now() + CUT_MS;
    this.#client.disconnect();
    this.draw();
    setTimeout(() => {
      this.#cutUntil = undefined;
      this.#client.connect();
    }, CUT_MS);
  }
}

function seconds(until: number): number {
  return Math.max(1, Math.ceil((until - Date.now()) / 1000));
}
