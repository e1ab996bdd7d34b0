// A button that opens a small menu: the keys, the focus, and that whatever takes the focus away closes it.

export class Popup {
  readonly #button: HTMLButtonElement;
  readonly #list: HTMLElement;
  readonly #items: HTMLButtonElement[];
  /** Which item gets the focus first. */
  first: () => number = () => 0;

  constructor(button: HTMLButtonElement, list: HTMLElement, items: HTMLButtonElement[]) {
    this.#button = button;
    this.#list = list;
    this.#items = items;
    list.append(...items);
    button.addEventListener("click", () => this.open(this.#isClosed));
    button.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
      event.preventDefault();
      this.open(true);
    });
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("focusout", (event) => {
      const to = event.relatedTarget;
      if (to instanceof Node && (list.contains(to) || button.contains(to))) return;
      this.open(false, false);
    });
  }

  get #isClosed(): boolean {
    return this.#list.hidden !== false;
  }

  open(open: boolean, refocus = true): void {
    if (this.#isClosed !== open) return;
    this.#list.hidden = !open;
    this.#button.setAttribute("aria-expanded", String(open));
    if (open) this.#items[this.first()]?.focus();
    else if (refocus) this.#button.focus();
  }

  #key(event: KeyboardEvent): void {
    const at = this.#items.findIndex((item) => item === document.activeElement);
    const count = this.#items.length;
    const to: Record<string, number> = { ArrowDown: at + 1, ArrowUp: at - 1 + count, Home: 0, End: count - 1 };
    const next = to[event.key];
    if (event.key === "Escape") this.open(false);
    else if (next !== undefined) this.#items[next % count]?.focus();
    else return;
    event.preventDefault();
  }
}
