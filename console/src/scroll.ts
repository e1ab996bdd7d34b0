// Keeps the end in sight while the reader is at the end, and leaves the reader alone otherwise, or where the end on the page
// is not the end of the log.

const NEAR_PX = 64;

export class StickyScroll {
  readonly box: HTMLElement;
  readonly #jump: HTMLButtonElement;
  #atEnd = true;
  #isPast = false;
  /** Somebody wants to go to the end of the log. */
  onJump: () => void = () => this.toEnd();
  /** The reader, or the page, has moved. */
  onMove: () => void = () => undefined;

  constructor(box: HTMLElement, jump: HTMLButtonElement) {
    this.box = box;
    this.#jump = jump;
    box.addEventListener("scroll", () => this.#look(), { passive: true });
    jump.addEventListener("click", () => this.onJump());
    // A smaller window, an on-screen keyboard, or a bigger composer must not push the end out of sight.
    new ResizeObserver(() => this.keep(() => false)).observe(box);
  }

  /** Whether the end of the log is in sight. */
  get atEnd(): boolean {
    return this.#atEnd;
  }

  /** What is on the page is some stretch of the past: its end is nothing to keep in sight. */
  set isPast(isPast: boolean) {
    this.#isPast = isPast;
    this.#atEnd = false;
    this.#jump.dataset["past"] = String(isPast);
  }

  /** Makes a change to the content, which answers whether it put something above what was there. */
  keep(change: () => boolean): void {
    const before = this.box.scrollHeight;
    const above = change();
    if (this.#atEnd) this.box.scrollTop = this.box.scrollHeight;
    else if (above) this.box.scrollTop += this.box.scrollHeight - before;
    this.#look();
  }

  /** A page that is read from its top. */
  toTop(): void {
    this.box.scrollTop = 0;
    this.#atEnd = false;
  }

  toEnd(): void {
    this.#atEnd = true;
    this.box.scrollTop = this.box.scrollHeight;
    this.#look();
  }

  /** Brings an element to the upper part of what is seen. */
  toElement(element: HTMLElement): void {
    this.#atEnd = false;
    this.box.scrollTop += element.getBoundingClientRect().top - this.box.getBoundingClientRect().top - NEAR_PX;
    this.#look();
  }

  #look(): void {
    const left = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight;
    this.#atEnd = !this.#isPast && left < NEAR_PX;
    this.#jump.hidden = this.#atEnd;
    this.onMove();
  }
}
