// The types of docs/PROTOCOL.md, as a client sees them. Readers are tolerant: fields and entry types that a later
// release adds are simply not here, and are ignored.

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type JsonObject = { [key: string]: Json };

export type Role = "user" | "assistant" | "system" | "tool" | "operator";
export type PartKind = "text" | "reasoning" | "tool_call" | "tool_output" | "file" | "source" | "data";
export type Outcome = "completed" | "cancelled" | "failed" | "lost";
export type MessageEnd = "complete" | "cancelled" | "failed" | "partial";
export type PartEnd = "done" | "error" | "aborted" | "denied";
export type ControlKind = "cancel" | "steer" | "interrupt" | "pause" | "resume" | "answer";
export type ControlOutcome = "applied" | "refused" | "expired";
/** Of whom something is asked. `all` is for `cancel` only. */
export type Target = { run: string } | { input: string } | { agent: string } | { all: true };
/** When a run takes in the message of a `steer`. */
export type Mode = "now" | "next_step" | "when_idle";
/** What becomes of input whose agent is at work. */
export type WhenBusy = "enqueue" | "steer" | "interrupt" | "reject";
export type Verdict = "approved" | "denied" | "expired";
/** Why a control was refused. A later release may say more; treat what is not here as text. */
export type RefusalReason =
  | "no_active_run"
  | "run_ended"
  | "not_supported"
  | "not_allowed"
  | "no_approval"
  | "already_answered"
  | "wrong_digest"
  | "superseded"
  | "held"
  | "timeout"
  | (string & {});

export type AuthorKind = "user" | "agent" | "operator" | "system";

export interface Author {
  kind: AuthorKind;
  id: string;
  device?: string;
}

export interface PutPart {
  kind: PartKind;
  value: Json;
  attrs?: JsonObject;
}

export type Entry =
  | { type: "session.opened"; meta?: JsonObject }
  | { type: "session.updated"; patch: JsonObject }
  | { type: "session.closed"; reason?: string }
  | { type: "message.put"; message: string; role: Role; parts: PutPart[]; reply_to?: string }
  | { type: "run.requested"; run: string; agent: string; input?: string[]; parent_run?: string; params?: JsonObject }
  | { type: "run.started"; run: string; worker: string; attempt: number }
  | { type: "run.returned"; run: string; reason: string }
  | { type: "run.suspended"; run: string; approvals: ApprovalAsked[] }
  | ApprovalSettled
  | { type: "run.resumed"; run: string }
  | { type: "run.step"; phase: "start" | "end" | "reset"; name?: string }
  | RunEnded
  | { type: "message.start"; message: string; role: Role }
  | { type: "message.end"; message: string; status: MessageEnd; usage?: JsonObject }
  | { type: "part.start"; message: string; part: string; kind: PartKind; attrs?: JsonObject }
  | { type: "part.append"; message: string; part: string; offset: number; text: string }
  | { type: "part.set"; message: string; part: string; value: Json }
  | { type: "part.end"; message: string; part: string; status: PartEnd; value?: Json }
  | ControlRequested
  | ControlSettled
  | { type: "session.held"; reason?: string }
  | { type: "session.released"; reason?: string }
  | { type: "branch.begun"; after: number }
  | { type: "branch.selected"; through: number }
  | { type: "state.set"; key: string; value: Json }
  | { type: "event"; name: string; data?: Json; keep?: "all" | "latest" };

export interface RunEnded {
  type: "run.ended";
  run: string;
  outcome: Outcome;
  reason?: string;
  forced?: boolean;
  error?: { code: string; message: string };
  usage?: JsonObject;
}

export interface ApprovalSettled {
  type: "approval.settled";
  run: string;
  approval: string;
  verdict: Verdict;
  answered_by?: Author;
  value?: Json;
}

export interface ControlRequested {
  type: "control.requested";
  control: string;
  kind: ControlKind;
  target: Target;
  expires: number;
  mode?: Mode;
  message?: string;
  approval?: string;
}

export interface ControlSettled {
  type: "control.settled";
  control: string;
  outcome: ControlOutcome;
  reason?: RefusalReason;
  run?: string;
  answered_by?: Author;
}

/** Something a run waits for, as its worker asks for it. */
export interface ApprovalAsked {
  approval: string;
  reason: string;
  /** JSON Schema of the answer's `value`. */
  schema?: Json;
  /** An answer that approves must name it. */
  digest?: string;
  expires: number;
  /** Who may answer; an empty or absent list allows all. */
  who?: { kinds?: AuthorKind[]; subjects?: string[] };
  data?: JsonObject;
}

/** What `put` may carry: one `message.put`, one `state.set`, or any number of events and `x-` entries. */
export type WritableEntry =
  | { type: "message.put"; message?: string; role: Role; parts: PutPart[]; reply_to?: string }
  | { type: "state.set"; key: string; value: Json }
  | { type: "event"; name: string; data?: Json; keep?: "all" | "latest" }
  | ({ type: `x-${string}` } & JsonObject);

export interface Block {
  by: Author;
  at: number;
  run?: string;
  /** After a fold: seq of the first entry. */
  from?: number;
  /** After a fold: `[first, last]` per entry. */
  spans?: [number, number][];
  entries: Entry[];
}

/** A stretch of the log: an `entries` frame, or a record of `GET …/entries`. */
export interface Entries {
  epoch: string;
  since: number;
  from: number;
  to: number;
  blocks: Block[];
}

export interface Run {
  run: string;
  agent: string;
  status: "requested" | "active" | "suspended" | "ended";
  input: string[];
  parent_run?: string;
  params?: JsonObject;
  worker?: string;
  attempt?: number;
  outcome?: Outcome;
  reason?: string;
  forced?: boolean;
  error?: { code: string; message: string };
  usage?: JsonObject;
  step?: string;
  step_mark?: number;
  /** It stands still until somebody resumes it. */
  paused?: true;
  approvals?: Approval[];
  requested_seq: number;
}

/** What a run waits for, or waited for: with `verdict` once that is known. */
export interface Approval extends ApprovalAsked {
  verdict?: Verdict;
  answered_by?: Author;
  value?: Json;
}

export interface Part {
  part: string;
  kind: PartKind;
  attrs?: JsonObject;
  status: "open" | PartEnd;
  value: Json;
  seq?: number;
}

export interface Message {
  message: string;
  run?: string;
  seq: number;
  at: number;
  by: Author;
  role: Role;
  status: "streaming" | MessageEnd;
  reply_to?: string;
  usage?: JsonObject;
  parts: Part[];
}

export interface Control {
  control: string;
  kind: ControlKind;
  target: Target;
  /** Who asked. */
  by: Author;
  mode?: Mode;
  message?: string;
  approval?: string;
  outcome?: ControlOutcome;
  reason?: RefusalReason;
  run?: string;
  answered_by?: Author;
  requested_seq: number;
}

/** From here on the log goes on from elsewhere than its end. */
export interface Stretch {
  from: number;
  after: number;
}

export interface LatestEvent {
  name: string;
  run?: string;
  data: Json;
  seq: number;
}

export interface SessionInfo {
  meta: JsonObject;
  closed: boolean;
  closed_reason?: string;
  /** A person has taken the session over from its agents. */
  held?: { by: Author; at: number; reason?: string };
  /** Where its messages branch. `View.branch()` and `View.alternatives()` know what that means. */
  branches?: Stretch[];
  /** Where the current branch ends, if not at the end of the log. */
  tip?: number;
}

/** A view without its position and its messages. */
export interface ViewState {
  session: SessionInfo;
  runs: Run[];
  controls: Control[];
  values: JsonObject;
  events: LatestEvent[];
}

/** The JSON form of a view: what `GET …/state` answers. */
export interface ViewJson extends ViewState {
  epoch: string;
  seq: number;
  messages: Message[];
}

export interface Snapshot {
  epoch: string;
  seq: number;
  since: number;
  /** The first seq that is kept: what came before was dropped. */
  floor: number;
  state: ViewState;
  messages: Message[];
  more: boolean;
}

/** A cursor, `start`, `device` (after what this device has read), or the last messages. */
export type From = "start" | "device" | (string & {}) | { recent: number };

export interface ErrorBody {
  code: string;
  message: string;
  retryable: boolean;
  no_side_effects: boolean;
  expected?: number;
  after_ms?: number;
}

export interface Welcome {
  t: "welcome";
  id: string;
  connection: string;
  node: string;
  now: number;
  heartbeat_ms: number;
  frame_bytes_max: number;
  block_bytes_max: number;
}

export interface Attached {
  t: "attached";
  id: string;
  attachment: number;
  session: string;
  epoch: string;
  head: number;
  resumed: boolean;
  /** Up to where this device has read. */
  acked?: number;
  /** Messages of others that began after that. */
  unread?: number;
}

/** Somebody who is present. `member` is opaque, and the same wherever the same device is attached. */
export interface Member {
  member: string;
  kind: AuthorKind;
  subject: string;
  device?: string;
  data?: JsonObject;
  since: number;
}

/** Everybody (`members`, or `count` of many), or what is different from the frame before. */
export interface PresenceFrame {
  t: "presence";
  attachment: number;
  n: number;
  members?: Member[];
  count?: number;
  joined?: Member[];
  changed?: Member[];
  left?: string[];
}

export interface Done {
  t: "ok";
  id: string;
  cursor?: string;
  message?: string;
  run?: string;
  control?: string;
  duplicate?: boolean;
  /** How sure it is, if it was asked or is more than `accepted`. */
  ack?: Level;
}

/** How sure an acknowledgement is. */
export type Level = "accepted" | "replicated" | "fsynced";

/** What a list shows of a session: of one that a node cannot say more about, only the first lines. */
export interface SessionSummary {
  session: string;
  active_at: number;
  meta: JsonObject;
  /** Head of its log. */
  seq?: number;
  /** Open ones. */
  runs?: { run: string; agent: string; status: Run["status"] }[];
  /** What they wait for. */
  approvals?: { run: string; approval: string; reason?: string; expires: number }[];
  /** The run that ended last. */
  ended?: { run: string; outcome: Outcome; at: number };
  held?: true;
  closed?: true;
  /** Of the device that asks: up to where it has read, and how many entries come after that. */
  acked?: number;
  unread_entries?: number;
}

/** What `watch` brings: the most recent sessions (`sessions`, a fresh beginning), or what is different. */
export interface SessionsFrame {
  t: "sessions";
  n: number;
  sessions?: SessionSummary[];
  changed?: SessionSummary[];
  gone?: string[];
}

/** Why a session is no more. Treat what is not here as text. */
export type GoneReason = "deleted" | (string & {});

/** What became of a control. `seq` is the one after which that holds. */
export type Receipt =
  | { t: "receipt"; control: string; stage: "accepted"; seq: number; ack?: Level }
  | { t: "receipt"; control: string; stage: "delivered"; worker: string; seq: number }
  | SettledReceipt;

export interface SettledReceipt {
  t: "receipt";
  control: string;
  stage: "settled";
  outcome: ControlOutcome;
  reason?: RefusalReason;
  /** The run it applied to; of a `steer` that was not consumed, the run that has its message as input. */
  run?: string;
  answered_by?: Author;
  seq: number;
  ack?: Level;
}

export interface HistoryPage {
  t: "history";
  id: string;
  messages: Message[];
  more: boolean;
}

/** Why a cursor was not taken: the log lost its tail, or has dropped what came after it. */
export type ResetReason = "epoch" | "retention";

/** Frames that belong to one attachment. */
export type SessionFrame =
  | { t: "reset"; attachment: number; reason: ResetReason }
  | ({ t: "snapshot"; attachment: number } & Snapshot)
  | ({ t: "entries"; attachment: number } & Entries)
  | { t: "live"; attachment: number; seq: number }
  | PresenceFrame
  | { t: "lag"; attachment: number; behind: number }
  | { t: "gone"; attachment: number; reason: GoneReason };

export type ServerFrame =
  | SessionFrame
  | Welcome
  | Attached
  | Done
  | Receipt
  | HistoryPage
  | SessionsFrame
  | ({ t: "error"; id?: string } & ErrorBody)
  | { t: "ping" }
  | { t: "bye"; code: number; reconnect: boolean; after_ms: number };
