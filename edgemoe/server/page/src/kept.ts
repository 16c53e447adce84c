// Conversations and settings as they are kept in this browser.

export interface Sampling {
  temperature: number | null;
  top_p: number | null;
  top_k: number | null;
  min_p: number | null;
  repeat_penalty: number | null;
  max_tokens: number | null;
  seed: number | null;
}

export const NO_SAMPLING: Sampling = {
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  repeat_penalty: null,
  max_tokens: null,
  seed: null,
};

export interface Figures {
  prompt_n: number;
  cache_n: number;
  predicted_n: number;
  predicted_per_second: number | null;
  prompt_ms: number;
  expert_hit_rate: number | null;
}

/** A tool that an answer calls, with its arguments as JSON. */
export interface Call {
  id: string;
  name: string;
  arguments: string;
}

export interface Message {
  id: string;
  parent: string | null;
  role: "user" | "assistant" | "tool";
  text: string;
  thought?: string;
  calls?: Call[];
  /** The id of the call whose result this is. */
  call?: string;
  /** Whether it was to keep to a schema. */
  structured?: boolean;
  at: number;
  /** writing: an answer that is still to go on; cut: one that ended before its end. */
  state: "writing" | "done" | "stopped" | "cut";
  /** Why it was cut, in words. */
  error?: string;
  /** The name of its stream at the server, and how many events of that are in the text. */
  stream?: string;
  applied?: number;
  /** The id of the request, by which the live picture knows it. */
  request?: string;
  figures?: Figures;
  length?: boolean;
}

export interface Conversation {
  id: string;
  title: string;
  created: number;
  changed: number;
  system: string;
  sampling: Sampling;
  /** Tools that the model may call, and the schema of its answers, as JSON; empty for none. */
  tools?: string;
  schema?: string;
  messages: Record<string, Message>;
  /** The last message of the branch that is shown. */
  leaf: string | null;
}

export const newId = (): string => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");

/** The messages of a branch, from the first to `leaf`. */
export function branch(conversation: Conversation, leaf: string | null = conversation.leaf): Message[] {
  const found: Message[] = [];
  for (let id = leaf; id !== null; ) {
    const message: Message | undefined = conversation.messages[id];
    if (!message || found.length > 10_000) break;
    found.push(message);
    id = message.parent;
  }
  return found.reverse();
}

/** All messages in a message's place, the oldest first. */
export function siblings(conversation: Conversation, message: Message): Message[] {
  return Object.values(conversation.messages)
    .filter((one) => one.parent === message.parent && one.role === message.role)
    .sort((a, b) => a.at - b.at);
}

/** The newest message at the end of a branch that goes through a message. */
export function tipOf(conversation: Conversation, id: string): string {
  const next = Object.values(conversation.messages)
    .filter((one) => one.parent === id)
    .sort((a, b) => b.at - a.at)[0];
  return next ? tipOf(conversation, next.id) : id;
}

export function titleOf(text: string): string {
  const words = text.replace(/\s+/g, " ").trim();
  return words.length > 48 ? words.slice(0, 48).replace(/\s\S*$/, "") + "…" : words || "New chat";
}

let opened: Promise<IDBDatabase> | null = null;
function database(): Promise<IDBDatabase> {
  opened ??= new Promise((done, failed) => {
    const request = indexedDB.open("edgemoe", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
  return opened;
}

async function inStore<T>(mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const transaction = (await database()).transaction("conversations", mode);
  const request = work(transaction.objectStore("conversations"));
  return new Promise((done, failed) => {
    transaction.oncomplete = () => done(request.result);
    transaction.onerror = transaction.onabort = () => failed(transaction.error);
  });
}

export const readAll = (): Promise<Conversation[]> => inStore("readonly", (store) => store.getAll());
export const write = (one: Conversation): Promise<unknown> => inStore("readwrite", (store) => store.put(one));
export const forget = (id: string): Promise<unknown> => inStore("readwrite", (store) => store.delete(id));

const FORM = "edgemoe conversations";

export function exported(conversations: Conversation[]): string {
  return JSON.stringify({ form: FORM, version: 1, conversations }, null, 1);
}

/** The conversations of a file: the page's own, or a list of messages with role and content. Throws for others. */
export function imported(text: string): Conversation[] {
  const data = JSON.parse(text);
  if (data?.form === FORM && Array.isArray(data.conversations)) return data.conversations.map(checked);
  const plain = Array.isArray(data) ? data : data?.messages;
  if (!Array.isArray(plain)) throw new Error("it holds no conversations");
  return [fromMessages(plain)];
}

function fromMessages(plain: any[]): Conversation {
  const made = emptyConversation();
  for (const one of plain) {
    const calls = checkedCalls(one?.tool_calls?.map((call: any) => ({ id: call?.id, ...call?.function })));
    if (typeof one?.content !== "string" && !calls) throw new Error("a message has no text");
    if (one.role === "system" || one.role === "developer") made.system = one.content;
    else {
      const id = newId();
      const role = one.role === "assistant" || one.role === "tool" ? one.role : "user";
      const call = typeof one.tool_call_id === "string" ? one.tool_call_id : undefined;
      const at = made.created + Object.keys(made.messages).length;
      made.messages[id] = { id, parent: made.leaf, role, text: one.content ?? "", calls, call, at, state: "done" };
      made.leaf = id;
    }
  }
  made.title = titleOf(branch(made)[0]?.text ?? "");
  return made;
}

/** The calls of a file; none where it has none. */
function checkedCalls(data: any): Call[] | undefined {
  if (!Array.isArray(data) || !data.length) return undefined;
  return data.map((one) => {
    if (typeof one?.name !== "string") throw new Error("a call has no name");
    const written = typeof one.arguments === "string" ? one.arguments : JSON.stringify(one.arguments ?? {});
    return { id: typeof one.id === "string" ? one.id : "", name: one.name, arguments: written };
  });
}

/** A conversation of a file with its fields checked, and with an id of its own. */
function checked(data: any): Conversation {
  const made = emptyConversation();
  const text = (value: unknown): string => (typeof value === "string" ? value : "");
  const number = (value: unknown, other: number): number => (Number.isFinite(value) ? Number(value) : other);
  made.title = text(data?.title) || "New chat";
  made.created = number(data?.created, made.created);
  made.changed = number(data?.changed, made.changed);
  made.system = text(data?.system);
  made.tools = text(data?.tools);
  made.schema = text(data?.schema);
  for (const name of Object.keys(NO_SAMPLING) as (keyof Sampling)[]) {
    if (Number.isFinite(data?.sampling?.[name])) made.sampling[name] = data.sampling[name];
  }
  for (const one of Object.values<any>(data?.messages ?? {})) {
    if (!text(one?.id) || !["user", "assistant", "tool"].includes(one.role)) throw new Error("a message is incomplete");
    made.messages[one.id] = {
      id: one.id,
      parent: typeof one.parent === "string" ? one.parent : null,
      role: one.role,
      text: text(one.text),
      thought: text(one.thought) || undefined,
      calls: checkedCalls(one.calls),
      call: text(one.call) || undefined,
      structured: one.structured === true || undefined,
      at: number(one.at, 0),
      state: one.state === "done" || one.state === "stopped" ? one.state : "cut",
      error: text(one.error) || undefined,
      figures: typeof one.figures === "object" ? one.figures : undefined,
    };
  }
  made.leaf = typeof data?.leaf === "string" && data.leaf in made.messages ? data.leaf : null;
  return made;
}

export function emptyConversation(): Conversation {
  const now = Date.now();
  return { id: newId(), title: "New chat", created: now, changed: now, system: "", sampling: { ...NO_SAMPLING }, messages: {}, leaf: null };
}

export interface Preferences {
  theme: "system" | "light" | "dark";
  picture: boolean;
  side: boolean;
  system: string;
  sampling: Sampling;
  tools: string;
  schema: string;
}

const PREFERENCES = "edgemoe.preferences";
export function readPreferences(): Preferences {
  const usual: Preferences = { theme: "system", picture: innerWidth > 1100, side: innerWidth > 800, system: "", sampling: { ...NO_SAMPLING }, tools: "", schema: "" };
  try {
    return { ...usual, ...JSON.parse(localStorage.getItem(PREFERENCES) ?? "{}") };
  } catch {
    return usual;
  }
}
export function writePreferences(value: Preferences): void {
  localStorage.setItem(PREFERENCES, JSON.stringify(value));
}
