// A value that parts of the page read and are drawn anew for.
import { useEffect, useState } from "preact/hooks";

export class Store<T> {
  private heard = new Set<() => void>();
  constructor(private held: T) {}

  get value(): T {
    return this.held;
  }

  set(value: T): void {
    if (value === this.held) return;
    this.held = value;
    for (const one of [...this.heard]) one();
  }

  change(part: Partial<T>): void {
    this.set({ ...this.held, ...part });
  }

  listen(one: () => void): () => void {
    this.heard.add(one);
    return () => this.heard.delete(one);
  }
}

export function useStore<T>(store: Store<T>): T {
  const drawn = store.value;
  const [, draw] = useState(0);
  useEffect(() => {
    const again = () => draw((n) => n + 1);
    if (store.value !== drawn) again(); // The value changed after it was drawn and before this effect ran.
    return store.listen(again);
  }, [store]);
  return drawn;
}
