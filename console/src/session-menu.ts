// What can be done with a session as a whole: go to a message, download it, delete it.

import type { Everthread, Session } from "../../sdk/typescript/src/index.js";
import { byId, h, setText } from "./dom.js";
import { Popup } from "./popup.js";
import { titleOf } from "./sidebar.js";

export interface SessionMenuEvents {
  find: () => void;
  deleted: (session: string) => void;
  say: (words: string) => void;
}

export class SessionMenu {
  readonly #button = byId("more", HTMLButtonElement);
  readonly #dialog = byId("delete-dialog", HTMLDialogElement);
  readonly #client: Everthread;
  readonly #on: SessionMenuEvents;
  #session: Session | undefined;

  constructor(client: Everthread, on: SessionMenuEvents) {
    this.#client = client;
    this.#on = on;
    const item = (title: string, why: string, act: () => void, look = "") => {
      const attrs = { type: "button", role: "menuitem", tabindex: "-1" };
      const parts = [h("strong", { text: title }), h("span", { text: why })];
      const button = h("button", { class: look, attrs }, ...parts);
      button.addEventListener("click", () => {
        popup.open(false);
        act();
      });
      return button;
    };
    const items = [
      item("Go to a message", "By date, or by words in it.", () => on.find()),
      item("Download", "Everything in it, as JSON Lines.", () => void this.#download()),
      item("Delete", "For everybody, and for good.", () => void this.#delete(), "danger"),
    ];
    const popup: Popup = new Popup(this.#button, byId("more-choices", HTMLElement), items);
  }

  watch(session: Session | undefined): void {
    this.#session = session;
    if (this.#dialog.open) this.#dialog.close();
    this.draw();
  }

  draw(): void {
    this.#button.hidden = !this.#session?.view.begun || this.#session.status === "gone";
  }

  async #download(): Promise<void> {
    const session = this.#session;
    if (!session) return;
    const lines: string[] = [];
    try {
      for await (const line of this.#client.http.export(session.id)) lines.push(`${JSON.stringify(line)}\n`);
    } catch (error) {
      this.#on.say(`Download failed: ${error instanceof Error ? error.message : String(error)}`);
      return;
    }
    const url = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
    h("a", { attrs: { href: url, download: `${session.id}.jsonl` } }).click();
    // The browser has taken it by then.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  async #delete(): Promise<void> {
    const session = this.#session;
    if (!session) return;
    const title = titleOf({ session: session.id, meta: session.view.session.meta });
    const words = `“${title}” goes with all its messages, on every device and for everybody. It cannot be brought back.`;
    setText(byId("delete-words", HTMLElement), words);
    if (!(await this.#isSure()) || session !== this.#session) return;
    try {
      await this.#client.delete(session.id);
      this.#on.deleted(session.id);
    } catch (error) {
      this.#on.say(`Delete failed: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  #isSure(): Promise<boolean> {
    const dialog = this.#dialog;
    dialog.returnValue = "no";
    dialog.showModal();
    byId("delete-no", HTMLButtonElement).focus();
    return new Promise((resolve) => {
      dialog.onclose = () => resolve(dialog.returnValue === "yes");
    });
  }
}
