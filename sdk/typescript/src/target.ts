// Which run somebody means who names none.

import { EverthreadError } from "./errors.js";
import type { Approval, Run, Target } from "./protocol.js";
import type { View } from "./view.js";

/** A run by its id, or whatever the protocol lets a control be for. */
export type TargetLike = string | Target;

const AT_WORK: Run["status"][] = ["active", "suspended", "requested"];

/**
 * The run people mean by "it": of the open runs that no open run started, the newest that a worker holds, else the
 * newest that waits for people, else the newest that waits for a worker.
 */
export function activeRun(view: View): Run | undefined {
  const open = view.openRuns();
  const ids = new Set(open.map((run) => run.run));
  const own = open.filter((run) => run.parent_run === undefined || !ids.has(run.parent_run));
  for (const status of AT_WORK) {
    const found = own.findLast((run) => run.status === status);
    if (found) return found;
  }
  return undefined;
}

/** What a control is for: what was named, or the active run. */
export function targetOf(view: View, named: TargetLike | undefined): Target {
  if (typeof named === "string") return { run: named };
  if (named !== undefined) return named;
  const run = activeRun(view);
  if (!run) throw refused("no_run", "no run is open, and no target was named");
  return { run: run.run };
}

/** The open approval of that id, and the run that waits for it. */
export function approvalOf(view: View, id: string, run: string | undefined): { run: string; digest?: string } {
  const runs = run === undefined ? view.openRuns() : [view.run(run)].filter((found) => found !== undefined);
  const having = runs.flatMap((run) => (run.approvals ?? []).map((approval) => ({ run: run.run, approval })));
  const mine = having.filter(({ approval }) => approval.approval === id);
  const isOpen = ({ approval }: { approval: Approval }) => approval.verdict === undefined;
  // One that has its verdict is asked all the same: the answer says who was first.
  const found = mine.findLast(isOpen) ?? mine.at(-1);
  if (!found) throw refused("no_approval", `no open run waits for the approval ${id}`);
  return { run: found.run, ...(found.approval.digest === undefined ? {} : { digest: found.approval.digest }) };
}

function refused(code: string, message: string): EverthreadError {
  return new EverthreadError({ code, message, retryable: false, no_side_effects: true });
}
