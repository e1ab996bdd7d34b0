// The list of sessions, and how each of them stands; on a phone it is a drawer.

import type { SessionSummary } from "../../sdk/typescript/src/index.js";
import { arrange, byId, h, setText } from "./dom.js";

interface Row {
  element: HTMLElement;
  link: HTMLAnchorElement;
  title: HTMLElement;
  state: HTMLElement;
  unread: HTMLElement;
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
  show(sessions: SessionSummary[]): void {
    const elements = sessions.map((session) => {
      const row = this.#rows.get(session.session) ?? this.#row(session.session);
      this.#rows.set(session.session, row);
      drawRow(row, session, session.session === this.#selected);
      return row.element;
    });
    arrange(this.#list, elements);
    this.#empty.hidden = elements.length > 0;
    this.select(this.#selected);
  }

  select(session: string | undefined): void {
    this.#selected = session;
    for (const [id, { link, unread }] of this.#rows) {
      // What is on the page is being read.
      if (id === session) unread.hidden = true;
      if (id === session) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  #row(id: string): Row {
    const title = h("span", { class: "title" });
    const state = h("span", { class: "state" });
    const unread = h("span", { class: "unread" });
    unread.hidden = true;
    const on = { click: () => this.#open(false) };
    const link = h("a", { attrs: { href: `#${encodeURIComponent(id)}` }, on }, title, state, unread);
    return { element: h("li", {}, link), link, title, state, unread };
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

const UNREAD_SHOWN_MAX = 99;

function drawRow(row: Row, session: SessionSummary, isSelected: boolean): void {
  setText(row.title, titleOf(session));
  const [words, look] = stateOf(session);
  setText(row.state, words);
  row.state.dataset["look"] = look;
  const unread = isSelected ? 0 : (session.unread_entries ?? 0);
  row.unread.hidden = unread === 0;
  setText(row.unread, unread > UNREAD_SHOWN_MAX ? `${UNREAD_SHOWN_MAX}+` : String(unread));
  row.unread.title = `${unread} new in the log since this device has read it`;
  row.unread.setAttribute("aria-label", `${unread} unread`);
}

/** How a session stands, the most urgent first: somebody is waited for, somebody works, or nothing goes on. */
function stateOf({ runs = [], approvals = [], held, closed, ended, active_at }: SessionSummary): [words: string, look: string] {
  const working = runs.filter(({ status }) => status === "active");
  if (approvals.length > 0) return ["Waits for approval", "waits"];
  if (held) return ["Taken over", "waits"];
  if (working.length > 0) return [`${[...new Set(working.map(({ agent }) => agent))].join(", ")} at work`, "works"];
  if (runs.some(({ status }) => status === "requested")) return ["Queued", "works"];
  if (closed) return ["Closed", "quiet"];
  if (ended?.outcome === "failed" || ended?.outcome === "lost") return [`Failed ${ago(ended.at)}`, "bad"];
  return [ago(active_at), "quiet"];
}

export function titleOf(session: Pick<SessionSummary, "session" | "meta">): string {
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
