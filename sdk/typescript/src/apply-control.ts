// What is asked of runs, and what became of it.

import { authorOf } from "./apply-run.js";
import type { Block, Control, ControlRequested, ControlSettled, Run } from "./protocol.js";
import type { Change, View } from "./view.js";

export function applyControl(
  view: View,
  change: Change,
  block: Block,
  seq: number,
  entry: ControlRequested | ControlSettled,
): void {
  if (entry.type === "control.settled") return settle(view, change, entry);
  const { control, kind, target, mode, message, approval } = entry;
  const pending = view.controls.some((c) => c.control === control && c.outcome === undefined);
  if (pending) return;
  const asked: Control = { control, kind, target, by: block.by, requested_seq: seq };
  if (mode != null) asked.mode = mode;
  if (message != null) asked.message = message;
  if (approval != null) asked.approval = approval;
  view.controls.push(asked);
  touch(view, change, asked);
}

function settle(view: View, change: Change, entry: ControlSettled): void {
  const open = view.controls.findLast((c) => c.control === entry.control && c.outcome === undefined);
  if (!open) return;
  open.outcome = entry.outcome;
  if (entry.reason != null) open.reason = entry.reason;
  if (entry.run != null) open.run = entry.run;
  if (entry.answered_by != null) open.answered_by = authorOf(entry.answered_by);
  const run = view.openRun(entry.run ?? undefined)?.run;
  if (run && entry.outcome === "applied") takeEffect(run, open);
  touch(view, change, open);
}

function takeEffect(run: Run, { kind, message }: Control): void {
  if (kind === "pause") run.paused = true;
  else if (kind === "resume") delete run.paused;
  else if (kind === "steer" && message !== undefined && !run.input.includes(message)) run.input.push(message);
}

/** The runs a control is about, as far as the view knows them: they are drawn with it. */
export function runsOf(view: View, control: Pick<Control, "target" | "run">): Run[] {
  const { target } = control;
  const outcome = control.run === undefined ? undefined : view.run(control.run);
  const found = outcome ? [outcome] : [];
  if ("run" in target) found.push(...[view.run(target.run)].filter((run) => run !== undefined));
  else if ("input" in target) found.push(...view.runs.filter((run) => run.input.includes(target.input)));
  else if ("agent" in target) found.push(...view.openRuns().filter((run) => run.agent === target.agent));
  else found.push(...view.openRuns());
  return [...new Set(found)];
}

function touch(view: View, change: Change, control: Control): void {
  change.controls.add(control);
  for (const run of runsOf(view, control)) change.runs.add(run);
}
