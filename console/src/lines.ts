// What was asked of a run, one line each: who asked, which worker has it, what became of it. The log knows all of it but
// the delivery, which only the page that asked is told.

import type { Control, ControlKind, View } from "../../sdk/typescript/src/index.js";
import { arrange, h, setText } from "./dom.js";
import type { People } from "./people.js";

export const TITLES: Record<ControlKind, string> = {
  cancel: "Stop",
  steer: "Steer",
  interrupt: "Interrupt",
  pause: "Pause",
  resume: "Resume",
  answer: "Answer",
};

/** A control that this page asked for. */
export interface OwnControl {
  id: string;
  kind: ControlKind;
  run: string;
  approval?: string;
  /** The log has it. */
  accepted: boolean;
  worker?: string;
}

/** The run under which a control is shown: the one it was meant for, as far as that is known. */
export function runOfControl(control: Control, view: View): string | undefined {
  const { target } = control;
  if ("run" in target) return target.run;
  if ("input" in target) return view.runs.find((run) => run.input.includes(target.input))?.run ?? control.run;
  if (control.run !== undefined) return control.run;
  const open = view.openRuns().filter((run) => "all" in target || run.agent === target.agent);
  return (open.find((run) => run.status !== "requested") ?? open[0])?.run;
}

/** What became of it, in a few words. */
export function outcomeOf(control: Control, people: People): string {
  switch (control.outcome) {
    case "applied":
      return control.kind === "steer" ? anew(control) || "taken in" : "applied";
    case "expired":
      return anew(control) || "not in time";
    case "refused":
      return anew(control) || reasonOf(control, people);
    default:
      return "";
  }
}

/** A steer whose run could not take it in has a run of its own; the text is never lost. */
function anew({ kind, run, target, outcome }: Control): string {
  if (kind !== "steer" || run === undefined) return "";
  const isOther = "run" in target ? target.run !== run : outcome !== "applied";
  return isOther ? "has a run of its own" : "";
}

export function reasonOf(control: Pick<Control, "reason" | "answered_by">, people: People): string {
  const { reason, answered_by } = control;
  if (reason === "already_answered" && answered_by) return `already answered by ${people.name(answered_by)}`;
  return reason === undefined ? "refused" : `refused: ${reason.replaceAll("_", " ")}`;
}

/** The steps of a control that the log has. */
export function stepsOf(control: Control, own: OwnControl | undefined, people: People): string[] {
  const delivered = own?.worker === undefined ? [] : [`delivered to ${own.worker}`];
  const outcome = outcomeOf(control, people);
  return [`asked by ${people.name(control.by)}`, ...delivered, ...(outcome === "" ? [] : [outcome])];
}

/** The lines under one run. */
export class ControlLines {
  readonly element = h("ul", { class: "controls", attrs: { "aria-label": "What was asked of this run" } });
  readonly #items = new Map<string, HTMLElement>();

  update(controls: Control[], own: OwnControl[], people: People): void {
    const known = new Set(controls.map((control) => control.control));
    // Answers stand in the card of their approval.
    const logged = controls.filter((control) => control.kind !== "answer");
    const asking = own.filter((control) => !known.has(control.id) && control.kind !== "answer");
    const mine = new Map(own.map((control) => [control.id, control]));
    const lines = [
      ...logged.map((control) =>
        this.#line(control.control, control.kind, control.outcome, stepsOf(control, mine.get(control.control), people)),
      ),
      ...asking.map(({ id, kind }) => this.#line(id, kind, undefined, ["asking…"])),
    ];
    arrange(this.element, lines);
    this.element.hidden = lines.length === 0;
  }

  #line(id: string, kind: ControlKind, outcome: string | undefined, steps: string[]): HTMLElement {
    const line = this.#items.get(id) ?? h("li");
    this.#items.set(id, line);
    line.dataset["control"] = id;
    line.dataset["kind"] = kind;
    line.dataset["outcome"] = outcome ?? "pending";
    setText(line, `${TITLES[kind]}: ${steps.join(" → ")}`);
    return line;
  }
}
