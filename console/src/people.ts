// Who is who on this page. The server stamps authors; a person is this one if the device is this browser.

import type { Author } from "../../sdk/typescript/src/index.js";

export class People {
  readonly #device: string;
  readonly #subject: string | undefined;

  constructor(device: string, subject: string | undefined) {
    this.#device = device;
    this.#subject = subject;
  }

  /** Two people may share a browser: then the name tells them apart, where the page has one. */
  isMe(author: Author): boolean {
    return author.device === this.#device && (this.#subject === undefined || author.id === this.#subject);
  }

  name(author: Author): string {
    return this.isMe(author) ? "you" : author.id;
  }

  /** The same at the beginning of a sentence. */
  titleName(author: Author): string {
    return this.isMe(author) ? "You" : author.id;
  }
}
