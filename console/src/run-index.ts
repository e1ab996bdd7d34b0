// What belongs to which run, worked out from the view once per change of the session.

import type { Control, Message, Run, View } from "../../sdk/typescript/src/index.js";
import { runOfControl } from "./lines.js";
import type { RunIndex } from "./run.js";

export function hasParent(view: View): (run: Run) => boolean {
  const known = new Set(view.runs.map((run) => run.run));
  return (run) => run.parent_run !== undefined && known.has(run.parent_run);
}

/**
 * Groups messages, runs and controls of the current branch. A run that stands on it but has written on others only is not
 * shown: another run answers in its place. Runs of old messages may be unknown: what they wrote is shown all the same.
 */
export function indexRuns(view: View, said: RunIndex["said"]): RunIndex & { shown: Run[] } {
  const branch = view.branch();
  const messagesOf = Map.groupBy(
    branch.filter((message) => message.run !== undefined),
    (message) => message.run ?? "",
  );
  const writers = new Set(view.messages.map((message) => message.run));
  const runs = view.runs.filter(
    (run) => messagesOf.has(run.run) || (view.isRunOnBranch(run) && !writers.has(run.run)),
  );
  const childrenOf = Map.groupBy(runs.filter(hasParent(view)), (run) => run.parent_run ?? "");
  const known = new Set(view.runs.map((run) => run.run));
  const unknown: Run[] = [];
  for (const [run, [first]] of messagesOf) {
    if (known.has(run) || !first) continue;
    const { by, seq } = first;
    unknown.push({ run, agent: by.id, status: "ended", outcome: "completed", input: [], requested_seq: seq });
  }
  const controlsOf = Map.groupBy(view.controls, (control: Control) => runOfControl(control, view) ?? "");
  return { view, branch, messagesOf, childrenOf, controlsOf, steersOf: steersOf(view, branch), said, shown: [...runs, ...unknown] };
}

/**
 * Messages that went to a run at work, by that run: those in its input that are younger than the run, and those that
 * somebody asks it to take in. One that it does not take in stands by itself, above the run it has then.
 */
function steersOf(view: View, branch: Message[]): Map<string, Message[]> {
  const runOf = new Map<string, string>();
  for (const control of view.controls) {
    const pending = control.kind === "steer" && control.outcome === undefined;
    const run = pending && control.mode !== "when_idle" ? runOfControl(control, view) : undefined;
    if (run !== undefined && control.message !== undefined) runOf.set(control.message, run);
  }
  const put = new Map(branch.filter((m) => m.run === undefined).map((m) => [m.message, m]));
  for (const run of view.runs) {
    for (const id of run.input) {
      const message = put.get(id);
      if (message && message.seq > run.requested_seq) runOf.set(id, run.run);
    }
  }
  const steers = [...put.values()].filter((message) => runOf.has(message.message));
  return Map.groupBy(steers, (message) => runOf.get(message.message) ?? "");
}
