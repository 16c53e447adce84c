// What a person does with conversations: ask, edit, retry, continue, stop. Every change is kept at once.
import { AskError, ask, events, server } from "./api";
import {
  branch,
  emptyConversation,
  forget,
  newId,
  readAll,
  readPreferences,
  siblings,
  tipOf,
  titleOf,
  write,
  writePreferences,
  type Conversation,
  type Message,
  type Preferences,
} from "./kept";
import { Store } from "./store";
import { schemaOf, toolsOf } from "./tools";

export const preferences = new Store<Preferences>(readPreferences());
export function prefer(part: Partial<Preferences>): void {
  preferences.change(part);
  writePreferences(preferences.value);
}

export const chats = new Store<{ all: Conversation[]; current: string | null; read: boolean }>({
  all: [],
  current: null,
  read: false,
});

/** How far the prompt of an answer has come, by message. */
export interface Reading {
  total: number;
  cached: number;
  processed: number;
  leftSeconds: number | null;
}
export const reading = new Store<Record<string, Reading>>({});
export const notice = new Store<string>("");

const SAVE_MS = 250;
const asked = new Map<string, AbortController>();
const drawn = { waiting: false };

export const current = (): Conversation | null => chats.value.all.find((one) => one.id === chats.value.current) ?? null;
const find = (id: string): Conversation | undefined => chats.value.all.find((one) => one.id === id);

/** Shows the chats anew, at most once a frame. */
function draw(): void {
  if (drawn.waiting) return;
  drawn.waiting = true;
  const go = () => {
    drawn.waiting = false;
    chats.change({});
  };
  document.hidden ? setTimeout(go, 200) : requestAnimationFrame(go);
}

function save(conversation: Conversation): Promise<unknown> {
  return write(conversation).catch((error) => notice.set(`This browser could not keep the conversation: ${error?.message ?? error}.`));
}

export async function begin(): Promise<void> {
  try {
    const all = await readAll();
    all.sort((a, b) => b.changed - a.changed);
    const last = sessionStorage.getItem("edgemoe.current");
    chats.set({ all, current: all.some((one) => one.id === last) ? last : null, read: true });
  } catch {
    notice.set("This browser keeps no data for this page: conversations are lost when it is closed.");
    chats.change({ read: true });
  }
  for (const conversation of chats.value.all) {
    for (const message of Object.values(conversation.messages)) {
      if (message.state === "writing") void resume(conversation, message);
    }
  }
}

export function choose(id: string | null): void {
  if (id) sessionStorage.setItem("edgemoe.current", id);
  else sessionStorage.removeItem("edgemoe.current");
  chats.change({ current: id });
}

function changed(conversation: Conversation): void {
  conversation.changed = Date.now();
  const others = chats.value.all.filter((one) => one !== conversation);
  chats.change({ all: [conversation, ...others] });
}

export async function remove(id: string): Promise<void> {
  const conversation = find(id);
  for (const message of Object.values(conversation?.messages ?? {})) stop(message);
  chats.change({ all: chats.value.all.filter((one) => one.id !== id) });
  if (chats.value.current === id) choose(null);
  await forget(id);
}

export function rename(conversation: Conversation, title: string): void {
  conversation.title = title.trim() || conversation.title;
  chats.change({});
  void save(conversation);
}

export function settle(conversation: Conversation, part: Partial<Pick<Conversation, "system" | "sampling" | "tools" | "schema">>): void {
  Object.assign(conversation, part);
  chats.change({});
  void save(conversation);
}

export async function add(conversations: Conversation[]): Promise<void> {
  for (const one of conversations) await save(one);
  chats.change({ all: [...conversations, ...chats.value.all].sort((a, b) => b.changed - a.changed) });
}

function message(role: Message["role"], parent: string | null, text = ""): Message {
  return { id: newId(), parent, role, text, at: Date.now(), state: role === "assistant" ? "writing" : "done" };
}

/** Asks something: at the end of the current chat, or in a new one. */
export function say(text: string): void {
  let conversation = current();
  if (!conversation) {
    conversation = emptyConversation();
    conversation.system = preferences.value.system;
    conversation.sampling = { ...preferences.value.sampling };
    conversation.tools = preferences.value.tools;
    conversation.schema = preferences.value.schema;
    conversation.title = titleOf(text);
    chats.change({ all: [conversation, ...chats.value.all] });
    choose(conversation.id);
  }
  sayAfter(conversation, conversation.leaf, text);
}

function sayAfter(conversation: Conversation, parent: string | null, text: string): void {
  const said = message("user", parent, text);
  conversation.messages[said.id] = said;
  answer(conversation, said.id);
}

/** Gives the results of an answer's calls, in their order, and asks what follows. */
export function giveResults(conversation: Conversation, called: Message, texts: string[]): void {
  let parent = called.id;
  called.calls!.forEach((call, place) => {
    const result: Message = { ...message("tool", parent, texts[place]), at: Date.now() + place, call: call.id };
    conversation.messages[result.id] = result;
    parent = result.id;
  });
  answer(conversation, parent);
}

/** The answer whose call a result is of, with the results that it has on the branch that is shown. */
export function calledBy(conversation: Conversation, result: Message): { called: Message | undefined; results: Message[] } {
  const shown = branch(conversation);
  let first = shown.indexOf(result);
  while (first > 0 && shown[first - 1].role === "tool") first -= 1;
  const called = shown[first - 1];
  return { called, results: shown.slice(first, first + (called?.calls?.length ?? 0)) };
}

/** Says something else in the place of a message; the first stays on a branch of its own. */
export function edit(conversation: Conversation, old: Message, text: string): void {
  if (old.role === "tool") {
    const { called, results } = calledBy(conversation, old);
    if (called?.calls) giveResults(conversation, called, results.map((one) => (one === old ? text : one.text)));
    return;
  }
  if (old.role === "user") {
    sayAfter(conversation, old.parent, text);
    return;
  }
  const other: Message = { ...message("assistant", old.parent, text), state: "done" };
  conversation.messages[other.id] = other;
  conversation.leaf = other.id;
  changed(conversation);
  void save(conversation);
}

export function retry(conversation: Conversation, old: Message): void {
  answer(conversation, old.parent);
}

function answer(conversation: Conversation, parent: string | null): void {
  const made = message("assistant", parent);
  conversation.messages[made.id] = made;
  conversation.leaf = made.id;
  changed(conversation);
  void request(conversation, made);
}

/** Lets an answer that was stopped go on from where it is. */
export function goOn(conversation: Conversation, old: Message): void {
  conversation.leaf = old.id;
  void request(conversation, old);
}

export function showBranch(conversation: Conversation, one: Message, step: number): void {
  const all = siblings(conversation, one);
  const other = all[(all.indexOf(one) + step + all.length) % all.length];
  conversation.leaf = tipOf(conversation, other.id);
  chats.change({});
  void save(conversation);
}

/** A new chat with the messages up to one. */
export function branchOff(conversation: Conversation, last: Message): void {
  const made = emptyConversation();
  made.system = conversation.system;
  made.sampling = { ...conversation.sampling };
  made.tools = conversation.tools;
  made.schema = conversation.schema;
  made.title = conversation.title;
  for (const one of branch(conversation, last.id)) {
    const id = newId();
    made.messages[id] = { ...one, id, parent: made.leaf, stream: undefined, state: one.state === "writing" ? "cut" : one.state };
    made.leaf = id;
  }
  chats.change({ all: [made, ...chats.value.all] });
  choose(made.id);
  void save(made);
}

export const isWriting = (one: Message): boolean => one.state === "writing";

export function stop(one: Message): void {
  if (one.state !== "writing") return;
  one.state = "stopped";
  asked.get(one.id)?.abort();
  if (one.stream) void ask(`/edgemoe/streams/${one.stream}`, { method: "DELETE" }).catch(() => {});
  const conversation = chats.value.all.find((each) => each.messages[one.id] === one);
  if (conversation) void save(conversation);
  chats.change({});
}

/** A message as the server takes it. */
function sent({ role, text, thought, calls, call }: Message): object {
  if (role === "tool") return { role, content: text, tool_call_id: call };
  if (!calls) return { role, content: text };
  const told = calls.map((one) => ({ id: one.id, type: "function", function: { name: one.name, arguments: one.arguments } }));
  return { role, content: text, reasoning_content: thought, tool_calls: told };
}

/** The fields about tools and structure. Throws for texts that are none. */
function wishes({ tools, schema }: Conversation): object {
  const offered = toolsOf(tools);
  const wanted = schemaOf(schema);
  return {
    ...(offered.length ? { tools: offered } : {}),
    ...(wanted ? { response_format: { type: "json_schema", json_schema: { name: "answer", schema: wanted } } } : {}),
  };
}

async function request(conversation: Conversation, one: Message): Promise<void> {
  const before = branch(conversation, one.parent)
    .filter(({ text, calls, role }) => text || calls || role === "tool") // an answer that failed at once has none
    .map(sent);
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const partial = one.text ? [{ role: "assistant", content: one.text }] : [];
  const sampling = Object.fromEntries(Object.entries(conversation.sampling).filter(([, value]) => value !== null));
  Object.assign(one, { state: "writing", error: undefined, stream: newId(), applied: 0, figures: undefined, length: undefined });
  one.structured = Boolean(conversation.schema?.trim()) || undefined;
  chats.change({});
  await save(conversation); // a page that is loaded anew must know the name of the stream
  await follow(conversation, one, async (signal) =>
    ask("/v1/chat/completions", {
      method: "POST",
      signal,
      headers: { "content-type": "application/json", "x-edgemoe-stream": one.stream! },
      body: JSON.stringify({
        model: server.value.about?.model?.id ?? "-",
        messages: [...system, ...before, ...partial],
        stream: true,
        stream_options: { include_usage: true },
        return_progress: true,
        ...sampling,
        ...wishes(conversation),
      }),
    }),
  );
}

async function resume(conversation: Conversation, one: Message): Promise<void> {
  await follow(conversation, one, (signal) => ask(`/edgemoe/streams/${one.stream}?from=${one.applied ?? 0}`, { signal }));
}

/** Takes the events of an answer until it ends, or until it cannot be had. */
async function follow(conversation: Conversation, one: Message, open: (signal: AbortSignal) => Promise<Response>): Promise<void> {
  const abort = new AbortController();
  asked.set(one.id, abort);
  let savedAt = performance.now();
  let read: { at: number; processed: number } | null = null;
  let ended = false;
  try {
    for await (const { data } of events(await open(abort.signal))) {
      one.applied = (one.applied ?? 0) + 1;
      if (data === "[DONE]") {
        ended = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new AskError(chunk.error.message, 200, chunk.error.code);
      if (typeof chunk.id === "string") one.request = chunk.id.replace(/^chatcmpl-/, "");
      if (chunk.prompt_progress) {
        const { total, cache, processed } = chunk.prompt_progress;
        const now = performance.now();
        const rate = read && processed > read.processed ? (now - read.at) / (processed - read.processed) : null;
        read ??= { at: now, processed };
        const leftSeconds = rate === null ? null : ((total - processed) * rate) / 1000;
        reading.change({ [one.id]: { total, cached: cache, processed, leftSeconds } });
      }
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) one.text += choice.delta.content;
      if (choice?.delta?.reasoning_content) one.thought = (one.thought ?? "") + choice.delta.reasoning_content;
      for (const { index, id, function: part } of choice?.delta?.tool_calls ?? []) {
        one.calls ??= [];
        const call = (one.calls[index] ??= { id: id ?? "", name: "", arguments: "" });
        call.name += part?.name ?? "";
        call.arguments += part?.arguments ?? "";
      }
      if (choice?.finish_reason === "length") one.length = true;
      if (chunk.timings) one.figures = chunk.timings;
      draw();
      if (performance.now() - savedAt > SAVE_MS) {
        savedAt = performance.now();
        void save(conversation);
      }
    }
    if (!ended) throw new AskError("The connection ended before the answer did.", 0);
    one.state = "done";
  } catch (error) {
    if (one.state === "writing") {
      one.state = "cut";
      const lost = error instanceof AskError && (error.status === 404 || error.status === 410);
      one.error = lost ? "The answer was cut off when the page was closed." : String((error as Error).message ?? error);
    }
  }
  asked.delete(one.id);
  if (one.state !== "stopped") one.stream = undefined;
  if (!find(conversation.id)) return; // it was deleted meanwhile
  changed(conversation);
  await save(conversation);
}

/** Keeps what is being written: the page is being left. */
export function keepAll(): void {
  for (const conversation of chats.value.all) {
    if (Object.values(conversation.messages).some(isWriting)) void save(conversation);
  }
}
