// The page as a whole: the list of chats, the conversation, the live picture, and what is said above them.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { key, meet, server, setKey } from "./api";
import { Chat, writingNow } from "./chat";
import { NO_SAMPLING, exported, imported, type Conversation, type Preferences, type Sampling } from "./kept";
import { LivePicture, download } from "./picture";
import { useStore } from "./store";
import { fault, schemaOf, toolsOf } from "./tools";
import { add, begin, chats, choose, current, keepAll, notice, prefer, preferences, remove, rename, settle, stop } from "./talk";

const narrow = (): boolean => innerWidth < 800;

export function App() {
  const { read } = useStore(chats);
  const wishes = useStore(preferences);
  const [settings, setSettings] = useState(false);
  useEffect(() => {
    void meet();
    void begin();
    const leave = () => keepAll();
    addEventListener("pagehide", leave);
    const pressed = (event: KeyboardEvent) => {
      const command = event.ctrlKey || event.metaKey;
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
        const one = writingNow();
        if (one) stop(one);
      } else if (command && event.shiftKey && event.key.toLowerCase() === "o") choose(null);
      else if (command && event.key.toLowerCase() === "k") {
        prefer({ side: true });
        setTimeout(() => document.querySelector<HTMLInputElement>(".side input[type=search]")?.focus());
      } else if (command && event.key === ".") prefer({ picture: !preferences.value.picture });
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", pressed);
    return () => {
      removeEventListener("pagehide", leave);
      removeEventListener("keydown", pressed);
    };
  }, []);
  useLayoutEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const show = () => {
      const system = dark.matches ? "dark" : "light";
      document.documentElement.dataset.theme = wishes.theme === "system" ? system : wishes.theme;
    };
    show();
    dark.addEventListener("change", show);
    return () => dark.removeEventListener("change", show);
  }, [wishes.theme]);
  const conversation = current();
  useEffect(() => {
    document.title = conversation ? `${conversation.title} · edgemoe` : "edgemoe";
  });
  if (!read) return null;
  return (
    <div class={`page${wishes.side ? " with-side" : ""}${wishes.picture ? " with-picture" : ""}`}>
      {wishes.side && <Side onSettings={() => setSettings(true)} />}
      <div class="middle">
        <Top conversation={conversation} onSettings={() => setSettings(true)} />
        <Said />
        <Chat conversation={conversation} />
      </div>
      {wishes.picture && <LivePicture onClose={() => prefer({ picture: false })} />}
      {settings && <Settings conversation={conversation} onClose={() => setSettings(false)} />}
    </div>
  );
}

function Top({ conversation, onSettings }: { conversation: Conversation | null; onSettings: () => void }) {
  const wishes = useStore(preferences);
  const { about } = useStore(server);
  return (
    <header class="top">
      <button class="quiet icon" onClick={() => prefer({ side: !wishes.side })} aria-label="Chats" aria-expanded={wishes.side}>
        <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
          <path d="M3 5h14M3 10h14M3 15h9" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" />
        </svg>
      </button>
      {!wishes.side && (
        <button class="quiet icon" onClick={() => choose(null)} aria-label="New chat">
          <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
            <path d="M10 4v12M4 10h12" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" />
          </svg>
        </button>
      )}
      <div class="title">
        <h1 class="hidden">{conversation?.title ?? "New chat"}</h1>
        {conversation ? (
          <input value={conversation.title} aria-label="Title of the chat" onChange={(event) => rename(conversation, event.currentTarget.value)} />
        ) : (
          <strong aria-hidden="true">New chat</strong>
        )}
        <span class="faint">{about?.model?.id}</span>
      </div>
      <button class="quiet icon" onClick={onSettings} aria-label="Settings">
        <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
          <path d="M3 6h7M14 6h3M3 14h3M10 14h7" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" />
          <circle cx="12" cy="6" r="2" fill="none" stroke="currentColor" stroke-width="1.7" />
          <circle cx="8" cy="14" r="2" fill="none" stroke="currentColor" stroke-width="1.7" />
        </svg>
      </button>
      <button class={`quiet icon${wishes.picture ? " on" : ""}`} onClick={() => prefer({ picture: !wishes.picture })} aria-label="Live picture" aria-expanded={wishes.picture} title="Live picture (Ctrl .)">
        <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true" fill="currentColor">
          <rect x="3" y="3" width="4" height="4" rx="1" opacity=".4" />
          <rect x="8" y="3" width="4" height="4" rx="1" />
          <rect x="13" y="3" width="4" height="4" rx="1" opacity=".4" />
          <rect x="3" y="8" width="4" height="4" rx="1" />
          <rect x="8" y="8" width="4" height="4" rx="1" opacity=".4" />
          <rect x="13" y="8" width="4" height="4" rx="1" />
          <rect x="3" y="13" width="4" height="4" rx="1" opacity=".4" />
          <rect x="8" y="13" width="4" height="4" rx="1" />
          <rect x="13" y="13" width="4" height="4" rx="1" opacity=".4" />
        </svg>
      </button>
    </header>
  );
}

/** What stands in the way, in words. */
function Said() {
  const { reached, said, about } = useStore(server);
  const told = useStore(notice);
  if (reached === "locked") return <KeyForm />;
  const text =
    reached === "older"
      ? `This page is newer than the server${about?.version ? `, which is edgemoe ${about.version}` : ""}: load the page again, or start the server of the version that the page came with. Until then nothing can be asked.`
      : reached === "loading"
        ? "The model is being opened …"
        : reached === "gone"
          ? said
          : told;
  return text ? (
    <div class={`notice ${reached}`} role="status">
      {text} {reached === "older" && <button class="small" onClick={() => location.reload()}>Load again</button>}
    </div>
  ) : null;
}

function KeyForm() {
  const place = useRef<HTMLInputElement>(null);
  return (
    <form
      class="notice key"
      onSubmit={(event) => {
        event.preventDefault();
        setKey(place.current!.value.trim());
        server.change({ reached: "asking" });
        void meet();
      }}
    >
      <label>
        {key.value ? "The server does not know this key. " : "This server asks for a key. "}
        <input ref={place} type="password" autocomplete="off" aria-label="API key" />
      </label>
      <button class="primary">Use it</button>
    </form>
  );
}

function Side({ onSettings }: { onSettings: () => void }) {
  const { all, current: shown } = useStore(chats);
  const [wanted, setWanted] = useState("");
  const [said, setSaid] = useState("");
  const file = useRef<HTMLInputElement>(null);
  const found = wanted.trim() ? all.filter((one) => matches(one, wanted.trim().toLowerCase())) : all;
  const pick = (id: string | null) => {
    choose(id);
    if (narrow()) prefer({ side: false });
  };
  const save = (conversations: Conversation[], name: string) => download(name, new Blob([exported(conversations)], { type: "application/json" }));
  const bring = async (list: FileList | null) => {
    let count = 0;
    try {
      for (const one of list ?? []) {
        const conversations = imported(await one.text());
        await add(conversations);
        count += conversations.length;
      }
      setSaid(`${count} ${count === 1 ? "chat" : "chats"} imported.`);
    } catch (error) {
      setSaid(`That file cannot be imported: ${(error as Error).message}.`);
    }
    file.current!.value = "";
  };
  return (
    <nav class="side" aria-label="Chats">
      <div class="head">
        <button class="primary new" onClick={() => pick(null)}>
          New chat
        </button>
        <button class="quiet icon close" onClick={() => prefer({ side: false })} aria-label="Close the list">
          ✕
        </button>
      </div>
      <input type="search" placeholder="Search" aria-label="Search chats" value={wanted} onInput={(event) => setWanted(event.currentTarget.value)} />
      <ul>
        {found.map((one) => (
          <li key={one.id} class={one.id === shown ? "shown" : ""}>
            <button class="pick" onClick={() => pick(one.id)} aria-current={one.id === shown ? "page" : undefined}>
              {one.title}
              {wanted.trim() && <small>{excerpt(one, wanted.trim().toLowerCase())}</small>}
            </button>
            <button class="quiet" onClick={() => save([one], `${fileName(one.title)}.json`)} aria-label={`Export ${one.title}`} title="Export">
              ↓
            </button>
            <button
              class="quiet"
              onClick={() => confirm(`Delete "${one.title}"?`) && void remove(one.id)}
              aria-label={`Delete ${one.title}`}
              title="Delete"
            >
              ✕
            </button>
          </li>
        ))}
        {!found.length && <li class="faint pad">{all.length ? "Nothing found." : "Chats are kept in this browser."}</li>}
      </ul>
      <footer>
        <span class="faint" role="status">
          {said}
        </span>
        <input ref={file} type="file" accept=".json,application/json" multiple hidden onChange={(event) => void bring(event.currentTarget.files)} />
        <button class="quiet" onClick={() => file.current!.click()}>
          Import
        </button>
        <button class="quiet" onClick={() => save(all, "edgemoe-chats.json")} disabled={!all.length}>
          Export all
        </button>
        <button class="quiet" onClick={onSettings}>
          Settings
        </button>
      </footer>
    </nav>
  );
}

const fileName = (title: string): string => title.replace(/[^\p{L}\p{N} -]/gu, "").trim() || "chat";
const texts = (one: Conversation): string[] => [one.title, ...Object.values(one.messages).map((message) => message.text)];
const matches = (one: Conversation, wanted: string): boolean => texts(one).some((text) => text.toLowerCase().includes(wanted));

function excerpt(one: Conversation, wanted: string): string {
  const text = texts(one)
    .slice(1)
    .find((each) => each.toLowerCase().includes(wanted));
  if (!text) return "";
  const at = text.toLowerCase().indexOf(wanted);
  return `${at > 20 ? "…" : ""}${text.slice(Math.max(0, at - 20), at + 60).replace(/\s+/g, " ")}`;
}

const FIELDS: { name: keyof Sampling; label: string; step: string; min: number; max?: number; note: string }[] = [
  { name: "temperature", label: "Temperature", step: "0.05", min: 0, max: 10, note: "0 takes the likeliest token" },
  { name: "top_p", label: "Top-p", step: "0.01", min: 0, max: 1, note: "the likeliest tokens up to this share" },
  { name: "top_k", label: "Top-k", step: "1", min: 0, note: "the so many likeliest tokens" },
  { name: "min_p", label: "Min-p", step: "0.01", min: 0, max: 1, note: "none below this share of the likeliest" },
  { name: "repeat_penalty", label: "Repetition penalty", step: "0.01", min: 0.01, note: "1: none" },
  { name: "max_tokens", label: "Longest answer", step: "1", min: 1, note: "in tokens" },
  { name: "seed", label: "Seed", step: "1", min: 0, note: "the same seed gives the same answer" },
];
const DEFAULT_NAMES: Partial<Record<keyof Sampling, string>> = { repeat_penalty: "repetition_penalty" };

function Settings({ conversation, onClose }: { conversation: Conversation | null; onClose: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const wishes = useStore(preferences);
  const { about } = useStore(server);
  useStore(chats);
  useEffect(() => dialog.current!.showModal(), []);
  const system = conversation ? conversation.system : wishes.system;
  const sampling = conversation ? conversation.sampling : wishes.sampling;
  const { tools = "", schema = "" } = conversation ?? wishes;
  const change = (part: { system?: string; sampling?: Sampling; tools?: string; schema?: string }) => (conversation ? settle(conversation, part) : prefer(part));
  return (
    <dialog ref={dialog} onClose={onClose} onClick={(event) => event.target === dialog.current && dialog.current!.close()} aria-labelledby="settings-title">
      <form method="dialog">
        <h2 id="settings-title">{conversation ? "This chat" : "New chats"}</h2>
        <label class="wide">
          System prompt
          <textarea rows={4} value={system} onInput={(event) => change({ system: event.currentTarget.value })} placeholder="How the model is to behave" />
        </label>
        <div class="grid">
          {FIELDS.map((field) => {
            const usual = about?.defaults?.[DEFAULT_NAMES[field.name] ?? field.name];
            return (
              <label key={field.name}>
                {field.label}
                <input
                  type="number"
                  inputMode="decimal"
                  step={field.step}
                  min={field.min}
                  max={field.max}
                  value={sampling[field.name] ?? ""}
                  placeholder={usual !== undefined && field.name !== "seed" ? `${Number(usual.toPrecision(4))}` : "the model's"}
                  onInput={(event) => {
                    const { value, valueAsNumber } = event.currentTarget;
                    if (value === "" || event.currentTarget.validity.valid)
                      change({ sampling: { ...sampling, [field.name]: value === "" ? null : valueAsNumber } });
                  }}
                />
                <small>{field.note}</small>
              </label>
            );
          })}
        </div>
        <JsonField
          label="Tools"
          note="Functions that the model may call; you give their results."
          placeholder='[{"name": "weather", "description": "…", "parameters": {"type": "object", …}}]'
          text={tools}
          problem={fault(toolsOf, tools)}
          onText={(text) => change({ tools: text })}
        />
        <JsonField
          label="Answers in JSON"
          note="A schema that every answer keeps to."
          placeholder='{"type": "object", "properties": {…}}'
          text={schema}
          problem={fault(schemaOf, schema)}
          onText={(text) => change({ schema: text })}
        />
        <div class="buttons">
          <button type="button" onClick={() => change({ system: "", sampling: { ...NO_SAMPLING }, tools: "", schema: "" })}>
            The model's own
          </button>
          {conversation && (
            <button type="button" onClick={() => prefer({ system, sampling, tools, schema })}>
              Use for new chats
            </button>
          )}
        </div>
        <h2>The page</h2>
        <div class="grid">
          <label>
            Colours
            <select value={wishes.theme} onChange={(event) => prefer({ theme: event.currentTarget.value as Preferences["theme"] })}>
              <option value="system">as the system</option>
              <option value="light">light</option>
              <option value="dark">dark</option>
            </select>
          </label>
          <label>
            API key
            <input
              type="password"
              autocomplete="off"
              value={key.value}
              placeholder="none"
              onChange={(event) => {
                setKey(event.currentTarget.value.trim());
                void meet();
              }}
            />
          </label>
        </div>
        <p class="faint">
          Chats are kept in this browser alone. Keys: Enter sends, Esc stops, Ctrl K searches, Ctrl Shift O begins a chat, Ctrl . shows
          the picture. {about && `edgemoe ${about.version}.`} <a href="/static/licences.txt">Licences</a>
        </p>
        <div class="buttons end">
          <button class="primary">Done</button>
        </div>
      </form>
    </dialog>
  );
}

interface JsonFieldProperties {
  label: string;
  note: string;
  placeholder: string;
  text: string;
  problem: string;
  onText: (text: string) => void;
}

function JsonField({ label, note, placeholder, text, problem, onText }: JsonFieldProperties) {
  return (
    <label class="wide">
      {label}
      <textarea class="code" rows={2} spellcheck={false} value={text} placeholder={placeholder} aria-invalid={Boolean(problem)} onInput={(event) => onText(event.currentTarget.value)} />
      {problem ? <small class="error" role="alert">It cannot be used: {problem}.</small> : <small>{note}</small>}
    </label>
  );
}
