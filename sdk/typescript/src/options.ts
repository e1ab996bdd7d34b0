// What the methods of a session take and give.

import type { Json, Message, Mode, Role, ViewJson, WhenBusy } from "./protocol.js";
import type { TargetLike } from "./target.js";

/**
 * - `closed`: `open` was not called, or `close` was
 * - `offline`: there is no connection; it follows again by itself
 * - `catching-up`: it reads what it has not seen
 * - `lag`: this client is slower than the session, and gets it folded
 * - `live`: it has everything there is
 * - `failed`: the server refused it; `open` tries again
 * - `gone`: there is no such session any more; `open` looks whether there is a new one of its name
 */
export type SessionStatus = "closed" | "offline" | "catching-up" | "lag" | "live" | "failed" | "gone";

/** Keeps views over restarts of the program. The cursor is in the view, so both are always of one moment. */
export interface ViewStorage {
  load(session: string): Promise<ViewJson | undefined> | ViewJson | undefined;
  save(session: string, view: ViewJson): Promise<void> | void;
  /** The session is gone: what was kept of it is of no use. */
  forget?(session: string): Promise<void> | void;
}

export interface SessionOptions {
  /**
   * Where to begin without a stored view: `{ recent: 50 }` messages unless told otherwise. `device` begins after what this
   * device has read: the view then knows nothing from before that but what `loadOlder` brings.
   */
  from?: "start" | "device" | { recent: number };
  storage?: ViewStorage;
  /** Be present, and learn who else is: see `Session.presence`. */
  presence?: boolean;
  /** Get what is written within so many milliseconds (at most 500) as one frame. Every frame at once unless told otherwise. */
  foldMs?: number;
}

export interface SentMessage {
  message: string;
  run: string | undefined;
  cursor: string | undefined;
  /** The control that `whenBusy` made of it: `Session.settled` waits for its outcome. */
  control: string | undefined;
}

export interface SendOptions {
  agent?: string;
  message?: string;
  reply_to?: string;
  /** `operator` speaks to people and asks for no run. `user` unless told otherwise. */
  role?: Role;
  /** What becomes of it if its agent is at work; what the session's `meta.when_busy` says unless told otherwise. */
  whenBusy?: WhenBusy;
  /** It takes the place of this message, on a branch of its own: see `Session.edit`. */
  replaces?: MessageLike;
}

/** A message, or a reference to one: `message` or `run/message`. */
export type MessageLike = Pick<Message, "message" | "run"> | string;

/** Of every control. */
export interface ControlOptions {
  /** The run, or whatever else the kind allows; the active run unless told otherwise (see `activeRun`). */
  target?: TargetLike;
  /** How long to wait for the outcome; each kind has a default. */
  expiresMs?: number;
}

export interface InputOptions extends ControlOptions {
  /** Id of the message that carries the text; the server makes one unless told otherwise. */
  message?: string;
}

export interface SteerOptions extends InputOptions {
  mode?: Mode;
}

export interface AnswerOptions {
  /** More than yes or no. */
  value?: Json;
  /** The run that asks; found in the view unless told otherwise. */
  run?: string;
  /** Digest of what the person saw; the view's unless told otherwise. */
  digest?: string;
}
