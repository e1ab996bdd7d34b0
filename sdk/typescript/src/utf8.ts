// Offsets on the wire count UTF-8 bytes; JavaScript strings count UTF-16 units. Nothing here allocates a copy of the text.

/** UTF-8 bytes of `text`. */
export function byteLength(text: string): number {
  let bytes = text.length;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit < 0x80) continue;
    // A surrogate pair is four bytes for two units; each half counts two.
    bytes += unit < 0x800 || (unit >= 0xd800 && unit <= 0xdfff) ? 1 : 2;
  }
  return bytes;
}

/** Index of the character that begins at byte `offset`, or undefined if there is no such boundary. */
export function indexAtByte(text: string, offset: number): number | undefined {
  let bytes = 0;
  let i = 0;
  while (i < text.length && bytes < offset) {
    const point = text.codePointAt(i) ?? 0;
    bytes += point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    i += point < 0x10000 ? 1 : 2;
  }
  return bytes === offset ? i : undefined;
}
