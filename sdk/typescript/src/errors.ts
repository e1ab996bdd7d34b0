import type { ErrorBody } from "./protocol.js";

/** A request was refused, or its fate is unknown. `code` is one of the codes of docs/PROTOCOL.md, or a code of this SDK. */
export class EverthreadError extends Error {
  readonly code: string;
  readonly retryable: boolean;
  /** Whether it is certain that nothing was written. */
  readonly noSideEffects: boolean;
  readonly afterMs: number | undefined;

  constructor(body: ErrorBody) {
    super(`${body.code}: ${body.message}`);
    this.name = "EverthreadError";
    this.code = body.code;
    this.retryable = body.retryable;
    this.noSideEffects = body.no_side_effects;
    this.afterMs = body.after_ms;
  }

  /** The same, but something may have been written: an earlier try is without an answer. */
  unsure(): EverthreadError {
    const { code, retryable, afterMs } = this;
    const message = this.message.slice(code.length + 2);
    const after = afterMs === undefined ? {} : { after_ms: afterMs };
    return new EverthreadError({ code, message, retryable, no_side_effects: false, ...after });
  }

  /** The session or the client was closed before the answer came. */
  static closed(): EverthreadError {
    const message = "closed before the answer came";
    return new EverthreadError({ code: "closed", message, retryable: false, no_side_effects: true });
  }

  /** It cannot be sent. */
  static tooLarge(bytes: number, bytesMax: number): EverthreadError {
    const message = `a request of ${bytes} bytes; one has at most ${bytesMax}`;
    return new EverthreadError({ code: "too_large", message, retryable: false, no_side_effects: true });
  }

  /** The session is gone. */
  static noSession(session: string): EverthreadError {
    const message = `session ${session} is no more`;
    return new EverthreadError({ code: "no_session", message, retryable: false, no_side_effects: false });
  }
}
