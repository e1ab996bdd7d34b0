// ULIDs: 48 bits of time and 80 random bits in Crockford's base 32. The server refuses ids that look too old, so the
// time comes from the caller, who knows the server's clock.

const ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const TIME_CHARS = 10;
const RANDOM_CHARS = 16;

export function ulid(now: number): string {
  let time = Math.max(0, Math.floor(now));
  let text = "";
  for (let i = 0; i < TIME_CHARS; i++) {
    text = ALPHABET[time % 32] + text;
    time = Math.floor(time / 32);
  }
  for (const byte of crypto.getRandomValues(new Uint8Array(RANDOM_CHARS))) text += ALPHABET[byte % 32];
  return text;
}
