// The server, as the page asks it.
import { Store } from "./store";

/** The number of the interface that this page needs: `INTERFACE` of edgemoe/server/live.py. */
export const INTERFACE = 1;

export interface About {
  interface: number;
  version: string;
  loading: boolean;
  model: null | { id: string; context_length: number; meta: Record<string, number> };
  defaults: Record<string, number>;
}

export type Reached = "asking" | "ready" | "loading" | "gone" | "older" | "locked";

export const server = new Store<{ reached: Reached; about: About | null; said: string }>({
  reached: "asking",
  about: null,
  said: "",
});

/** An error of the server, in its own words, or of the way to it. */
export class AskError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

const KEY = "edgemoe.key";
export const key = new Store<string>(localStorage.getItem(KEY) ?? "");
export function setKey(value: string): void {
  localStorage.setItem(KEY, value);
  key.set(value);
}

export async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  if (key.value) headers.set("authorization", `Bearer ${key.value}`);
  let response: Response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new AskError("The server does not answer. Is edgemoe serve still running?", 0);
  }
  if (response.ok) return response;
  let message = `The server answered with status ${response.status}.`;
  let code: string | null = null;
  try {
    const body = await response.json();
    if (typeof body?.error?.message === "string") message = body.error.message;
    code = body?.error?.code ?? null;
  } catch {
    // not in the server's own form: a proxy's page, perhaps
  }
  if (response.status === 401) server.change({ reached: "locked" });
  throw new AskError(message, response.status, code);
}

/** The events of a stream, by their names. Comments are left out. */
export async function* events(response: Response): AsyncGenerator<{ name: string; data: string }> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop()!;
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { name, data: data.join("\n") };
          name = "";
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line.startsWith("event:")) name = line.slice(6).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Whether a question may be asked: before the server has said anything it answers for itself. */
export const mayAsk = (reached: Reached): boolean => reached === "ready" || reached === "asking";

/** Finds out what the server is, until it is ready. */
export async function meet(): Promise<void> {
  for (;;) {
    let wait = 2000;
    try {
      const about: About = await (await ask("/edgemoe/about")).json();
      if (!(about.interface >= INTERFACE)) {
        server.set({ reached: "older", about, said: about.version ?? "" });
        return;
      }
      server.set({ reached: about.loading ? "loading" : "ready", about, said: "" });
      if (!about.loading) return;
      wait = 700;
    } catch (error) {
      const { status, message } = error as AskError;
      if (status === 401) {
        server.change({ reached: "locked" });
        return;
      }
      if (status === 404 || status === 405) {
        server.change({ reached: "older", about: null });
        return;
      }
      server.change({ reached: status === 503 ? "loading" : "gone", said: message });
    }
    await new Promise((go) => setTimeout(go, wait));
  }
}
