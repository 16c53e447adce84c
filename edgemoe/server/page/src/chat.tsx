// A conversation: its messages, and the place to write the next one.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { mayAsk, server } from "./api";
import { Calls, Result, Results } from "./calls";
import { percent } from "./charts";
import { branch, siblings, type Conversation, type Message } from "./kept";
import { Markdown } from "./markdown";
import { shownRequest } from "./picture";
import { useStore } from "./store";
import { branchOff, calledBy, chats, edit, goOn, isWriting, prefer, reading, retry, say, showBranch, stop } from "./talk";
import { pretty } from "./tools";

const MOST_ATTACHED = 400_000;

export function Chat({ conversation }: { conversation: Conversation | null }) {
  const scroll = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const messages = conversation ? branch(conversation) : [];
  const last = messages[messages.length - 1];
  useLayoutEffect(() => {
    follows.current = true;
  }, [conversation?.id, messages.length]);
  useLayoutEffect(() => {
    const element = scroll.current!;
    if (follows.current) element.scrollTop = element.scrollHeight;
  });
  const scrolled = () => {
    const element = scroll.current!;
    follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < 60;
  };
  return (
    <main>
      <div class="messages" ref={scroll} onScroll={scrolled} onWheel={(event) => event.deltaY < 0 && (follows.current = false)}>
        {messages.length ? (
          <div class="column" role="log" aria-label="Conversation">
            {messages.map((one) => (
              <Said key={one.id} conversation={conversation!} one={one} isLast={one === last} />
            ))}
          </div>
        ) : (
          <Welcome />
        )}
      </div>
      <Composer writing={last && isWriting(last) ? last : null} id={conversation?.id ?? ""} />
    </main>
  );
}

const IDEAS = [
  "Explain how a Mixture-of-Experts layer chooses its experts.",
  "Write a Python function that merges two sorted lists.",
  "Tell me a short story about a lighthouse.",
  "What is the difference between TCP and UDP?",
];

function Welcome() {
  const { about, reached } = useStore(server);
  const meta = about?.model?.meta;
  return (
    <div class="welcome">
      <div class="mark" aria-hidden="true">
        {Array.from({ length: 48 }, (_, n) => (
          <i key={n} class={["", "ram", "ram hot", "miss"][(n * 7919 + 13) % 11 > 6 ? ((n * 31) % 5 > 3 ? 3 : 2) : (n * 17) % 3 ? 1 : 0]} />
        ))}
      </div>
      <h2>{about?.model?.id ?? "edgemoe"}</h2>
      <p class="faint">
        {meta
          ? `${meta.layers} layers, ${meta.experts} experts, ${meta.experts_in_ram} of them in RAM. It runs on this machine, and so does this page.`
          : reached === "loading"
            ? "The model is being opened …"
            : "A model on your own machine."}
      </p>
      <div class="ideas">
        {IDEAS.map((idea) => (
          <button key={idea} onClick={() => say(idea)} disabled={!mayAsk(reached)}>
            {idea}
          </button>
        ))}
      </div>
    </div>
  );
}

function Said({ conversation, one, isLast }: { conversation: Conversation; one: Message; isLast: boolean }) {
  const [editing, setEditing] = useState(false);
  const all = siblings(conversation, one);
  const writing = isWriting(one);
  return (
    <article class={`message ${one.role}`} aria-busy={writing}>
      <h2 class="hidden">{SPEAKERS[one.role]}</h2>
      {editing ? (
        <Editor
          text={one.text}
          saying={{ user: "Ask this instead", assistant: "Keep this instead", tool: "Give this instead" }[one.role]}
          onDone={(text) => {
            setEditing(false);
            if (text !== null && text !== one.text) edit(conversation, one, text);
          }}
        />
      ) : (
        <>
          {one.thought && (
            <details class="thought" open={writing && !one.text}>
              <summary>Thoughts</summary>
              <Markdown text={one.thought} writing={writing} />
            </details>
          )}
          <Body conversation={conversation} one={one} writing={writing} />
          {one.calls && <Calls calls={one.calls} writing={writing} />}
          {one.calls && isLast && one.state === "done" && !one.length && <Results conversation={conversation} one={one} />}
          {writing && !one.text && !one.thought && !one.calls && <Progress id={one.id} />}
          {writing && <span class="caret" aria-hidden="true" />}
          {one.state === "cut" && <p class="error" role="alert">{one.error ?? "The answer was cut off."}</p>}
          {one.state === "stopped" && <p class="faint">Stopped.</p>}
          {one.length && !writing && <p class="faint">It ended at the length that was allowed.</p>}
        </>
      )}
      {!editing && !writing && (
        <footer>
          {all.length > 1 && (
            <span class="branches">
              <button class="quiet" onClick={() => showBranch(conversation, one, -1)} aria-label="The version before">
                ‹
              </button>
              {all.indexOf(one) + 1} / {all.length}
              <button class="quiet" onClick={() => showBranch(conversation, one, 1)} aria-label="The next version">
                ›
              </button>
            </span>
          )}
          <CopyButton text={one.text} />
          <button class="quiet" onClick={() => setEditing(true)}>
            Edit
          </button>
          {one.role === "assistant" && (
            <button class="quiet" onClick={() => retry(conversation, one)}>
              Retry
            </button>
          )}
          {one.role === "assistant" && isLast && one.text && !one.calls && !one.structured && (one.state !== "done" || one.length) && (
            <button class="quiet strong" onClick={() => goOn(conversation, one)}>
              Continue
            </button>
          )}
          <button class="quiet" onClick={() => branchOff(conversation, one)}>
            Branch
          </button>
          {one.request && (
            <button
              class="quiet"
              onClick={() => {
                shownRequest.set(one.request!);
                prefer({ picture: true });
              }}
            >
              Experts
            </button>
          )}
          {one.figures && <Figures one={one} />}
        </footer>
      )}
    </article>
  );
}

const SPEAKERS = { user: "You", assistant: "The model", tool: "A tool" };

function Body({ conversation, one, writing }: { conversation: Conversation; one: Message; writing: boolean }) {
  if (one.role === "user") return <UserText text={one.text} />;
  if (one.role === "tool") {
    const call = calledBy(conversation, one).called?.calls?.find(({ id }) => id === one.call);
    return <Result name={call?.name ?? "a tool"} text={one.text} />;
  }
  if (one.structured) return one.text ? <pre class="structured">{writing ? one.text : pretty(one.text)}</pre> : null;
  return <Markdown text={one.text} writing={writing} />;
}

/** A person's text as it was written, with attached files folded. */
function UserText({ text }: { text: string }) {
  return <div class="plain">{text}</div>;
}

function Figures({ one }: { one: Message }) {
  const { figures } = one;
  if (!figures) return null;
  const parts = [
    `${figures.predicted_n} tokens`,
    figures.predicted_per_second ? `${figures.predicted_per_second.toFixed(figures.predicted_per_second < 10 ? 1 : 0)} /s` : null,
    figures.expert_hit_rate !== null && figures.expert_hit_rate !== undefined ? `${percent(figures.expert_hit_rate)} of experts in RAM` : null,
  ];
  const read = `Prompt: ${figures.prompt_n + figures.cache_n} tokens, ${figures.cache_n} of them kept from before, read in ${(figures.prompt_ms / 1000).toFixed(1)} s`;
  return (
    <span class="figures" title={read}>
      {parts.filter(Boolean).join(" · ")}
    </span>
  );
}

function CopyButton({ text }: { text: string }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text).catch(() => {});
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return (
    <button class="quiet" onClick={copy}>
      {copied ? "Copied" : "Copy"}
    </button>
  );
}

function Progress({ id }: { id: string }) {
  const progress = useStore(reading)[id];
  if (!progress || progress.processed >= progress.total) return <p class="faint reading">{progress ? "Writing …" : "Waiting for its turn …"}</p>;
  const share = progress.processed / progress.total;
  return (
    <p class="faint reading" role="status">
      Reading the prompt: {percent(share)} of {progress.total} tokens
      {progress.cached > 0 && ` (${progress.cached} kept from before)`}
      {progress.leftSeconds !== null && progress.leftSeconds > 1 && `, about ${Math.ceil(progress.leftSeconds)} s left`}
      <progress value={share} max={1} aria-label="Prompt read" />
    </p>
  );
}

function Editor({ text, saying, onDone }: { text: string; saying: string; onDone: (text: string | null) => void }) {
  const place = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    place.current!.focus();
    grow(place.current!);
  }, []);
  return (
    <form
      class="editor"
      onSubmit={(event) => {
        event.preventDefault();
        onDone(place.current!.value);
      }}
    >
      <textarea
        ref={place}
        aria-label="Edit the message"
        onInput={(event) => grow(event.currentTarget)}
        onKeyDown={(event) => {
          if (event.key === "Escape") onDone(null);
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onDone(place.current!.value);
        }}
      >
        {text}
      </textarea>
      <div class="buttons">
        <button type="submit" class="primary">
          {saying}
        </button>
        <button type="button" onClick={() => onDone(null)}>
          Cancel
        </button>
      </div>
    </form>
  );
}

function grow(area: HTMLTextAreaElement): void {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
}

function Composer({ writing, id }: { writing: Message | null; id: string }) {
  const { reached } = useStore(server);
  const place = useRef<HTMLTextAreaElement>(null);
  const files = useRef<HTMLInputElement>(null);
  const [said, setSaid] = useState("");
  const draft = `edgemoe.draft.${id}`;
  useEffect(() => {
    place.current!.value = sessionStorage.getItem(draft) ?? "";
    grow(place.current!);
    if (matchMedia("(pointer: fine)").matches) place.current!.focus();
  }, [id]);
  const written = () => {
    grow(place.current!);
    sessionStorage.setItem(draft, place.current!.value);
  };
  const send = () => {
    const text = place.current!.value.trim();
    if (!text || writing || !mayAsk(reached)) return;
    place.current!.value = "";
    sessionStorage.removeItem(draft);
    grow(place.current!);
    say(text);
  };
  const attach = async (list: FileList | null) => {
    setSaid("");
    for (const file of list ?? []) {
      const text = file.size > MOST_ATTACHED ? null : await file.text();
      if (text === null || text.includes("\0")) setSaid(`${file.name} ${text === null ? "is too long" : "is no text"}: it was left out.`);
      else {
        const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map((one) => one[0].length + 1)));
        place.current!.value += `${place.current!.value && "\n\n"}${file.name}:\n${fence}\n${text.trimEnd()}\n${fence}\n`;
      }
    }
    written();
    files.current!.value = "";
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault();
        void attach(event.dataTransfer?.files ?? null);
      }}
    >
      <div class="box">
        <textarea
          ref={place}
          rows={1}
          placeholder="Ask something"
          aria-label="Message"
          enterkeyhint="send"
          onInput={written}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
              event.preventDefault();
              send();
            }
          }}
        />
        <div class="row">
          <input ref={files} type="file" multiple hidden onChange={(event) => void attach(event.currentTarget.files)} />
          <button type="button" class="quiet" onClick={() => files.current!.click()} aria-label="Attach text files" title="Attach text files">
            <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
              <path d="M14.5 9.2 9.4 14.3a3 3 0 0 1-4.3-4.3l6-6a2 2 0 0 1 2.9 2.9l-5.8 5.8a1 1 0 0 1-1.4-1.4l4.9-4.9" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" />
            </svg>
          </button>
          <span class="faint" role="status">
            {said}
          </span>
          {writing ? (
            <button type="button" class="send stop" onClick={() => stop(writing)} aria-label="Stop" title="Stop (Esc)">
              <svg viewBox="0 0 20 20" width="16" height="16" aria-hidden="true">
                <rect x="5" y="5" width="10" height="10" rx="2" fill="currentColor" />
              </svg>
            </button>
          ) : (
            <button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled={!mayAsk(reached)}>
              <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
                <path d="M10 16V4.5M5 9.2 10 4l5 5.2" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" />
              </svg>
            </button>
          )}
        </div>
      </div>
    </form>
  );
}

export function writingNow(): Message | null {
  const conversation = chats.value.all.find((one) => one.id === chats.value.current);
  return conversation ? branch(conversation).find(isWriting) ?? null : null;
}
