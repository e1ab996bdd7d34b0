// Cursors are opaque to the server's callers. This client reads them only to know whether its view has got as far as a
// write that was answered.

const EPOCH_MAX = 2n ** 64n - 1n;
const FORM = /^(0|[1-9][0-9]{0,19})\.(0|[1-9][0-9]{0,15})$/;

export interface Cursor {
  epoch: string;
  seq: number;
}

/** The parts of a cursor, or undefined if the text is none. */
export function parseCursor(text: string): Cursor | undefined {
  const [, epoch, seq] = FORM.exec(text) ?? [];
  if (epoch === undefined || seq === undefined || BigInt(epoch) > EPOCH_MAX) return undefined;
  return Number.isSafeInteger(Number(seq)) ? { epoch, seq: Number(seq) } : undefined;
}
