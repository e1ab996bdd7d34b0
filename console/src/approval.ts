// What a run asks people: the question, what it is about, and two buttons. With its verdict it shrinks to a line.

import type { Approval, Control, Json, Run } from "../../sdk/typescript/src/index.js";
import type { Desk } from "./desk.js";
import { h, setText } from "./dom.js";
import { reasonOf } from "./lines.js";
import { type SchemaForm, schemaForm } from "./schema-form.js";

const DIGEST_CHARS = 16;
const TICK_MS = 1000;

export class ApprovalCard {
  readonly element: HTMLFormElement;
  readonly #desk: Desk;
  readonly #verdict = h("p", { class: "verdict" });
  readonly #note = h("p", { class: "note", attrs: { role: "status" } });
  readonly #expires = h("span", { class: "expires" });
  readonly #yes = h("button", { class: "primary", text: "Approve", attrs: { type: "submit" } });
  readonly #no = h("button", { class: "deny", text: "Deny", attrs: { type: "button" } });
  readonly #open: HTMLElement;
  readonly #form: SchemaForm | undefined;
  readonly #approval: string;
  readonly #deadline: number;
  #run = "";
  #clock: ReturnType<typeof setTimeout> | undefined;
  #problem = "";
  /** The focus was in here, so it is for this card to say where it goes. */
  #answeredHere = false;

  constructor(approval: Approval, desk: Desk) {
    this.#desk = desk;
    this.#approval = approval.approval;
    this.#deadline = approval.expires;
    this.#form = approval.schema === undefined ? undefined : schemaForm(approval.schema);
    const facts = h("p", { class: "facts" }, this.#expires, ...digestOf(approval), ...whoOf(approval));
    const buttons = h("div", { class: "buttons" }, this.#no, this.#yes);
    const form = this.#form ? [this.#form.element] : [];
    this.#open = h("div", { class: "open" }, ...dataOf(approval), ...form, facts, buttons);
    const title = h("p", { class: "question", text: approval.reason });
    this.element = h("form", { class: "approval" }, title, this.#open, this.#verdict, this.#note);
    this.element.setAttribute("aria-label", `Approval: ${approval.reason}`);
    this.element.onsubmit = (event) => {
      event.preventDefault();
      this.#answer(true);
    };
    this.#no.onclick = () => this.#answer(false);
  }

  update(run: Run, approval: Approval, answers: Control[]): void {
    this.#run = run.run;
    const { verdict } = approval;
    const isOpen = verdict === undefined && run.status !== "ended";
    this.element.dataset["approval"] = approval.approval;
    this.element.dataset["verdict"] = verdict ?? (isOpen ? "open" : "dropped");
    this.#answeredHere ||= this.#open.contains(document.activeElement);
    this.#open.hidden = !isOpen;
    if (isOpen && this.#clock === undefined) this.#tick();
    if (!isOpen) {
      this.#problem = "";
      this.#passFocusOn();
    }
    const asked = answers.find((control) => control.outcome === undefined);
    const asking = this.#desk.ownOf(run.run).find((own) => own.approval === approval.approval && !own.accepted);
    this.#yes.disabled = this.#no.disabled = asked !== undefined || asking !== undefined;
    setText(this.#verdict, isOpen ? "" : this.#verdictOf(approval));
    this.#verdict.hidden = isOpen;
    const who = asked && this.#desk.people.titleName(asked.by);
    setText(this.#note, this.#problem || (asking ? "Answering…" : who ? `${who} answered…` : this.#refusal(answers)));
    this.#note.hidden = this.#note.textContent === "";
  }

  /** Buttons that go must not leave the keyboard nowhere. */
  #passFocusOn(): void {
    const isLost = document.activeElement === document.body || this.#open.contains(document.activeElement);
    const goesOn = this.#answeredHere && isLost && matchMedia("(hover: hover)").matches;
    this.#answeredHere = false;
    if (goesOn) document.getElementById("input")?.focus({ preventScroll: true });
  }

  #verdictOf({ verdict, answered_by, value }: Approval): string {
    const said = value === undefined ? "" : ` · ${typeof value === "string" ? value : JSON.stringify(value)}`;
    const by = answered_by ? ` by ${this.#desk.people.name(answered_by)}` : "";
    switch (verdict) {
      case "approved":
        return `Approved${by}${said}`;
      case "denied":
        return `Denied${by}${said}`;
      case "expired":
        return "Nobody answered in time";
      default:
        return "The run ended before anybody answered";
    }
  }

  /** Of the answers of this person that did not count, the last. */
  #refusal(answers: Control[]): string {
    const { people } = this.#desk;
    const mine = answers.findLast((control) => people.isMe(control.by) && control.outcome !== undefined);
    if (!mine || mine.outcome === "applied") return "";
    return mine.outcome === "expired" ? "Your answer was not in time." : `Your answer: ${reasonOf(mine, people)}.`;
  }

  #answer(isYes: boolean): void {
    let value: Json | undefined;
    this.#problem = "";
    try {
      // What is denied needs no answer.
      value = isYes ? this.#form?.value() : undefined;
    } catch (error) {
      this.#problem = error instanceof Error ? error.message : String(error);
      setText(this.#note, this.#problem);
      this.#note.hidden = false;
      return;
    }
    this.#desk.answer(this.#run, this.#approval, isYes, value);
  }

  /** Counts down for as long as the card is open and on the page. */
  #tick(): void {
    setText(this.#expires, `Expires ${inWords(this.#deadline - this.#desk.now())}`);
    this.#clock = setTimeout(() => {
      this.#clock = undefined;
      if (this.element.isConnected && !this.#open.hidden) this.#tick();
    }, TICK_MS);
  }
}

function inWords(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  if (seconds <= 0) return "now";
  if (seconds < 60) return `in ${seconds} s`;
  if (seconds < 3600) return `in ${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `in ${Math.floor(seconds / 3600)} h`;
  return `in ${Math.floor(seconds / 86_400)} d`;
}

function digestOf({ digest }: Approval): HTMLElement[] {
  if (digest === undefined) return [];
  const title = `You approve what has this digest, and nothing else: ${digest}`;
  return [h("code", { class: "digest", text: digest.slice(0, DIGEST_CHARS), attrs: { title } })];
}

function whoOf({ who }: Approval): HTMLElement[] {
  const may = [...(who?.kinds ?? []).map((kind) => `any ${kind}`), ...(who?.subjects ?? [])];
  return may.length === 0 ? [] : [h("span", { text: `May be answered by ${may.join(", ")}` })];
}

/** What the question is about, as the worker tells it: names and values. */
function dataOf({ data }: Approval): HTMLElement[] {
  const isPlain = (value: Json) => typeof value !== "object" || value === null;
  // Words first, structures after them: the server does not keep the order of keys.
  const entries = Object.entries(data ?? {}).sort(([, a], [, b]) => Number(isPlain(b)) - Number(isPlain(a)));
  const rows = entries.flatMap(([name, value]) => {
    const shown = isPlain(value)
      ? h("span", { text: String(value) })
      : h("pre", { text: JSON.stringify(value, null, 2), attrs: { tabindex: "0" } });
    return [h("dt", { text: name.replaceAll("_", " ") }), h("dd", {}, shown)];
  });
  return rows.length === 0 ? [] : [h("dl", { class: "data" }, ...rows)];
}
