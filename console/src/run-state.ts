// How a run stands, in a word for its chip and a sentence for its note. All of it comes from the view.

import type { Run } from "../../sdk/typescript/src/index.js";

/** What the style sheet knows: one per look, not one per word. */
export type Look = "quiet" | "busy" | "waits" | "bad";

export interface RunState {
  word: string;
  look: Look;
}

export function stateOf(run: Run): RunState {
  switch (run.status) {
    case "requested":
      if (run.paused) return { word: "paused", look: "waits" };
      return wasReturned(run) ? { word: "handed to another worker", look: "waits" } : { word: "queued", look: "quiet" };
    case "active":
      if (run.paused) return { word: "paused", look: "waits" };
      return { word: run.step === undefined ? "working" : `working: ${run.step}`, look: "quiet" };
    case "suspended":
      return { word: "waiting for approval", look: "waits" };
    case "ended":
      return ended(run);
  }
}

function ended(run: Run): RunState {
  switch (run.outcome) {
    case "cancelled":
      if (run.reason === "held") return { word: "stopped, taken over", look: "waits" };
      return { word: run.forced ? "stopped, forced" : "stopped", look: "waits" };
    case "lost":
    case "failed":
      return { word: run.forced ? `${run.outcome}, forced` : run.outcome, look: "bad" };
    default:
      return { word: run.outcome ?? "ended", look: "quiet" };
  }
}

/** A worker had it once, and it was not people that it waited for. */
function wasReturned(run: Run): boolean {
  return run.worker !== undefined && !run.approvals?.length;
}

const REASONS: Record<string, string> = {
  worker_lost: "Its worker died. What it had written stays.",
  parent_ended: "The run that started it ended.",
};

export function noteOf(run: Run): string {
  if (run.status !== "ended") return takeoverOf(run);
  const reason = run.error?.message ?? (run.reason === undefined ? "" : (REASONS[run.reason] ?? run.reason));
  switch (run.outcome) {
    case "cancelled":
      if (run.reason === "held") return "A person has taken the session over. What was written stays.";
      if (run.forced) return "Stopped by force: the worker did not answer in time.";
      return run.reason === "parent_ended" ? REASONS["parent_ended"]! : "";
    case "lost":
      return reason || REASONS["worker_lost"]!;
    case "failed":
      return reason || "The agent reported an error.";
    default:
      return "";
  }
}

/** Each wait for people makes an attempt, too; what is more than that was a worker that was lost. */
function takeoverOf(run: Run): string {
  const attempt = run.attempt ?? 1;
  const handedOver = run.status === "active" && attempt - 1 > (run.approvals?.length ?? 0);
  return handedOver ? `Handed to another worker (attempt ${attempt}). What was written stays.` : "";
}
