// The list of sessions; on a phone it is a drawer.

import type { SessionListItem } from "../../sdk/typescript/src/index.js";
import { arrange, byId, h, setText } from "./dom.js";

interface Row {
  element: HTMLElement;
  link: HTMLAnchorElement;
  title: HTMLElement;
  when: HTMLElement;
}

export class Sidebar {
  readonly #panel = byId("sidebar", HTMLElement);
  readonly #list = byId("sessions", HTMLUListElement);
  readonly #toggle = byId("menu", HTMLButtonElement);
  readonly #shade = byId("shade", HTMLElement);
  readonly #empty = byId("no-sessions", HTMLElement);
  readonly #rows = new Map<string, Row>();
  readonly #narrow = matchMedia("(max-width: 760px)");
  #selected: string | undefined;

  constructor(onNew: () => void) {
    byId("new-session", HTMLButtonElement).addEventListener("click", () => {
      this.#open(false);
      onNew();
    });
    this.#toggle.addEventListener("click", () => this.#open(!this.#panel.classList.contains("open")));
    this.#shade.addEventListener("click", () => this.#open(false));
    this.#panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#open(false);
    });
    this.#narrow.addEventListener("change", () => this.#open(false));
    this.#open(false);
  }

  /** Draws the list; rows that stay keep their elements, so that focus stays too. */
  show(sessions: SessionListItem[]): void {
    const elements = sessions.map((session) => {
      const row = this.#rows.get(session.session) ?? this.#row(session.session);
      this.#rows.set(session.session, row);
      setText(row.title, titleOf(session));
      setText(row.when, ago(session.active_at));
      return row.element;
    });
    arrange(this.#list, elements);
    this.#empty.hidden = elements.length > 0;
    this.select(this.#selected);
  }

  select(session: string | undefined): void {
    this.#selected = session;
    for (const [id, { link }] of this.#rows) {
      if (id === session) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  #row(id: string): Row {
    const title = h("span", { class: "title" });
    const when = h("span", { class: "when" });
    const on = { click: () => this.#open(false) };
    const link = h("a", { attrs: { href: `#${encodeURIComponent(id)}` }, on }, title, when);
    return { element: h("li", {}, link), link, title, when };
  }

  #open(open: boolean): void {
    const focusInside = this.#panel.contains(document.activeElement);
    this.#panel.classList.toggle("open", open);
    this.#shade.hidden = !open;
    this.#toggle.setAttribute("aria-expanded", String(open));
    // What is out of sight must be out of reach of the Tab key as well.
    this.#panel.inert = this.#narrow.matches && !open;
    if (!open && focusInside && this.#narrow.matches) this.#toggle.focus();
  }
}

export function titleOf(session: Pick<SessionListItem, "session" | "meta">): string {
  const title = session.meta["title"];
  return typeof title === "string" && title !== "" ? title : session.session;
}

const UNITS: [limit: number, size: number, unit: Intl.RelativeTimeFormatUnit][] = [
  [3600, 60, "minute"],
  [86_400, 3600, "hour"],
  [Infinity, 86_400, "day"],
];

function ago(time: number): string {
  const passed = Math.max(0, (Date.now() - time) / 1000);
  if (passed < 60) return "just now";
  const [, size, unit] = UNITS.find(([limit]) => passed < limit) ?? [0, 86_400, "day" as const];
  return new Intl.RelativeTimeFormat("en", { numeric: "auto" }).format(-Math.floor(passed / size), unit);
}
