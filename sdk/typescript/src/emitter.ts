// Typed events. A listener that throws must not keep the others, or the connection, from going on.

type Listeners<Events extends Record<keyof Events, unknown[]>> = {
  [K in keyof Events]?: Set<(...args: Events[K]) => void>;
};

export class Emitter<Events extends Record<keyof Events, unknown[]>> {
  readonly #listeners: Listeners<Events> = {};

  /** Adds a listener; the answer removes it. */
  on<K extends keyof Events>(name: K, listener: (...args: Events[K]) => void): () => void {
    const set = (this.#listeners[name] ??= new Set<(...args: Events[K]) => void>());
    set.add(listener);
    return () => set.delete(listener);
  }

  protected emit<K extends keyof Events>(name: K, ...args: Events[K]): void {
    for (const listener of [...(this.#listeners[name] ?? [])]) {
      try {
        listener(...args);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
