// What the server's decisions about runs do to a view: from the request to the end, over workers, pauses and people.

import type { Approval, ApprovalAsked, ApprovalSettled, Author, Entry, Message, Run, RunEnded } from "./protocol.js";
import type { Change, OpenMessage, View } from "./view.js";

export function applyRun(view: View, change: Change, seq: number, entry: Entry): void {
  switch (entry.type) {
    case "run.requested": {
      if (view.openRun(entry.run)) return;
      const { run: id, agent, input, parent_run, params } = entry;
      const parent = parent_run == null ? undefined : view.openRun(parent_run)?.run;
      view.grow(seq, parent ? view.placeOf(parent) : view.placeOfInput(input ?? []));
      const run: Run = { run: id, agent, status: "requested", input: input ?? [], requested_seq: seq };
      if (parent_run != null) run.parent_run = parent_run;
      if (params != null) run.params = params;
      view.addRun(run);
      change.runs.add(run);
      return;
    }
    case "run.started": {
      const open = view.openRun(entry.run);
      if (!open) return;
      open.run.status = "active";
      open.run.worker = entry.worker;
      open.run.attempt = entry.attempt;
      change.runs.add(open.run);
      return;
    }
    case "run.returned":
    case "run.resumed": {
      // What was written stays, and stays open: the next worker goes on with it.
      const open = view.openRun(entry.run);
      if (!open) return;
      open.run.status = "requested";
      change.runs.add(open.run);
      return;
    }
    case "run.suspended": {
      const open = view.openRun(entry.run);
      if (!open) return;
      open.run.status = "suspended";
      (open.run.approvals ??= []).push(...entry.approvals.map(asked));
      change.runs.add(open.run);
      return;
    }
    case "approval.settled":
      return settleApproval(view, change, entry);
    case "run.ended":
      return endRun(view, change, entry);
  }
}

/** Closes a message and what is open of it. */
export function closeMessage(
  change: Change,
  open: OpenMessage,
  status: Exclude<Message["status"], "streaming">,
): void {
  open.message.status = status;
  for (const { part } of open.parts.values()) part.status = status === "complete" ? "done" : "aborted";
  change.messages.add(open.message);
}

/** Without fields that this release does not know, or that are null. */
function asked(entry: ApprovalAsked): Approval {
  const { approval, reason, schema, digest, expires, who, data } = entry;
  const read: Approval = { approval, reason, expires };
  if (schema != null) read.schema = schema;
  if (digest != null) read.digest = digest;
  if (who != null) {
    const kinds = who.kinds?.length ? { kinds: who.kinds } : {};
    const subjects = who.subjects?.length ? { subjects: who.subjects } : {};
    read.who = { ...kinds, ...subjects };
  }
  if (data != null) read.data = data;
  return read;
}

function settleApproval(view: View, change: Change, entry: ApprovalSettled): void {
  const run = view.openRun(entry.run)?.run;
  const settled = run?.approvals?.find((approval) => approval.approval === entry.approval);
  if (!run || !settled) return;
  settled.verdict = entry.verdict;
  if (entry.answered_by != null) settled.answered_by = authorOf(entry.answered_by);
  if (entry.value != null) settled.value = entry.value;
  change.runs.add(run);
}

/** An author inside an entry, without what this release does not know. */
export function authorOf({ kind, id, device }: Author): Author {
  return device == null ? { kind, id } : { kind, id, device };
}

function endRun(view: View, change: Change, entry: RunEnded): void {
  const open = view.openRun(entry.run);
  if (!open) return;
  view.forgetRun(entry.run);
  const status = entry.outcome === "cancelled" ? "cancelled" : "partial";
  for (const message of open.messages.values()) closeMessage(change, message, status);
  const { run } = open;
  run.status = "ended";
  run.outcome = entry.outcome;
  if (entry.reason != null) run.reason = entry.reason;
  if (entry.forced) run.forced = true;
  if (entry.error) run.error = entry.error;
  if (entry.usage) run.usage = entry.usage;
  delete run.step;
  delete run.step_mark;
  delete run.paused;
  change.runs.add(run);
}
