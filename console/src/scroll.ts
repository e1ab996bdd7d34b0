// Keeps the end in sight while the reader is at the end, and leaves the reader alone otherwise.

const NEAR_PX = 64;

export class StickyScroll {
  readonly #box: HTMLElement;
  readonly #jump: HTMLButtonElement;
  #atEnd = true;

  constructor(box: HTMLElement, jump: HTMLButtonElement) {
    this.#box = box;
    this.#jump = jump;
    box.addEventListener("scroll", () => this.#look(), { passive: true });
    jump.addEventListener("click", () => this.toEnd());
    // A smaller window, an on-screen keyboard, or a bigger composer must not push the end out of sight.
    new ResizeObserver(() => this.keep(() => false)).observe(box);
  }

  /** Makes a change to the content, which answers whether it put something above what was there. */
  keep(change: () => boolean): void {
    const before = this.#box.scrollHeight;
    const above = change();
    if (this.#atEnd) this.#box.scrollTop = this.#box.scrollHeight;
    else if (above) this.#box.scrollTop += this.#box.scrollHeight - before;
    this.#look();
  }

  /** A page that is read from its top. */
  toTop(): void {
    this.#box.scrollTop = 0;
    this.#atEnd = false;
  }

  toEnd(): void {
    this.#atEnd = true;
    this.#box.scrollTop = this.#box.scrollHeight;
    this.#look();
  }

  #look(): void {
    const left = this.#box.scrollHeight - this.#box.scrollTop - this.#box.clientHeight;
    this.#atEnd = left < NEAR_PX;
    this.#jump.hidden = this.#atEnd;
  }
}
