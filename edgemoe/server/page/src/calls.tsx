// Calls of tools in a conversation, and the place for their results.
import { useRef } from "preact/hooks";
import { mayAsk, server } from "./api";
import type { Call, Conversation, Message } from "./kept";
import { useStore } from "./store";
import { giveResults } from "./talk";
import { pretty } from "./tools";

export function Calls({ calls, writing }: { calls: Call[]; writing: boolean }) {
  return (
    <>
      {calls.map((one) => (
        <details class="call" open key={one.id}>
          <summary>
            Calls <code>{one.name}</code>
          </summary>
          <pre>{writing ? one.arguments : pretty(one.arguments)}</pre>
        </details>
      ))}
    </>
  );
}

export function Result({ name, text }: { name: string; text: string }) {
  return (
    <details class="call" open>
      <summary>
        Result of <code>{name}</code>
      </summary>
      <pre>{pretty(text)}</pre>
    </details>
  );
}

/** Asks a person for what the tools gave: text or JSON. */
export function Results({ conversation, one }: { conversation: Conversation; one: Message }) {
  const { reached } = useStore(server);
  const form = useRef<HTMLFormElement>(null);
  return (
    <form
      ref={form}
      class="results"
      onSubmit={(event) => {
        event.preventDefault();
        const places = [...form.current!.querySelectorAll("textarea")];
        giveResults(conversation, one, places.map((place) => place.value));
      }}
    >
      {one.calls!.map((call) => (
        <label key={call.id}>
          What <code>{call.name}</code> gives
          <textarea rows={2} placeholder="Text or JSON" aria-label={`Result of ${call.name}`} />
        </label>
      ))}
      <div class="buttons">
        <button type="submit" class="primary" disabled={!mayAsk(reached)}>
          {one.calls!.length > 1 ? "Send the results" : "Send the result"}
        </button>
      </div>
    </form>
  );
}
