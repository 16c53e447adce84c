// The live picture: the map, and beside it what a person asks of it.
import { useEffect, useMemo, useState } from "preact/hooks";
import { ask } from "./api";
import { Disk, Ledger, Memory, Section, Swatch, WhatIfCurve, bytes, percent } from "./charts";
import { IN_RAM, BEING_READ, live, watch, type Picture, type Seen, type Step } from "./live";
import { ExpertMap, PALETTES, theme, type Sight } from "./map";
import { Store, useStore } from "./store";

/** The request whose tokens are shown; null: the latest. */
export const shownRequest = new Store<string | null>(null);

const css = (colour: [number, number, number]): string => `rgb(${colour.join(" ")})`;
const SHOWN_TOKENS = 400;

export function LivePicture({ onClose }: { onClose: () => void }) {
  const { picture, said } = useStore(live);
  useEffect(() => {
    let end: (() => void) | null = null;
    const look = () => {
      if (document.hidden) {
        end?.();
        end = null;
      } else end ??= watch();
    };
    look();
    document.addEventListener("visibilitychange", look);
    return () => {
      document.removeEventListener("visibilitychange", look);
      end?.();
    };
  }, []);
  return (
    <aside class="picture" aria-label="Live picture of the model">
      <header>
        <h2>The experts at work</h2>
        <button class="quiet" onClick={onClose} aria-label="Close the live picture">
          ✕
        </button>
      </header>
      <div class="scroll">{picture ? <Whole picture={picture} /> : <p class="faint pad">{said || "Waiting for the server …"}</p>}</div>
    </aside>
  );
}

function Whole({ picture }: { picture: Picture }) {
  const request = useStore(shownRequest);
  const [at, setAt] = useState<number | null>(null);
  const [chosen, setChosen] = useState<number | null>(null);
  const [pointed, setPointed] = useState<Seen | null>(null);
  const [token, setToken] = useState<Seen | null>(null);
  const [asTable, setAsTable] = useState(false);
  const { experts } = picture.model;
  const shownToken = pointed ?? token;
  const sight: Sight = { at, chosen, token: shownToken };
  const tokens = tokensOf(picture, request);
  const onStep = (step: Step | null, chose: boolean) => {
    const seen = step && tokenOf(picture, step);
    setPointed(seen);
    if (chose && seen) setToken(seen);
  };
  const cell = at ?? chosen;
  return (
    <>
      <Facts picture={picture} />
      <Section
        title={`${picture.model.layers.length} layers, ${experts} experts each`}
        note={shownToken ? <TokenName seen={shownToken} /> : `${bytes(picture.model.layers[0].expert_bytes)} an expert`}
      >
        <ExpertMap picture={picture} sight={sight} onAt={setAt} onChoose={setChosen} />
        <p class="readout" aria-live="polite">
          {cell !== null ? <CellFacts picture={picture} cell={cell} /> : shownToken ? <TokenFacts picture={picture} seen={shownToken} /> : <Legend />}
        </p>
        <div class="buttons">
          {token && (
            <>
              <button class="small" onClick={() => setAsTable(!asTable)} aria-expanded={asTable}>
                {asTable ? "Hide the table" : "Its experts as a table"}
              </button>
              <button class="small" onClick={() => setToken(null)}>
                All tokens
              </button>
            </>
          )}
          {chosen !== null && (
            <button class="small" onClick={() => setChosen(null)}>
              Forget expert {chosen % experts}
            </button>
          )}
          <button class="small" onClick={savePng}>
            Picture (PNG)
          </button>
          <button class="small" onClick={saveTrace} disabled={!picture.steps.length}>
            Trace
          </button>
        </div>
        {token && asTable && <RowsTable picture={picture} seen={token} />}
      </Section>
      <Section title="Tokens" note={tokens.length ? (chosen !== null ? "marked: those that used the expert" : "point at one to see its experts") : ""}>
        {tokens.length ? (
          <Tokens picture={picture} tokens={tokens} chosen={cell} shown={shownToken} onPoint={setPointed} onChoose={(seen) => setToken(seen === token ? null : seen)} />
        ) : (
          <p class="faint">Ask the model something: every token it reads and writes appears here.</p>
        )}
      </Section>
      <Ledger picture={picture} onStep={onStep} />
      <Memory model={picture.model} status={picture.status} />
      <Disk picture={picture} />
      <WhatIfCurve picture={picture} />
    </>
  );
}

function tokensOf(picture: Picture, request: string | null): Seen[] {
  let latest: Seen[] = [];
  for (const seen of picture.answers.values()) {
    if (request !== null && seen[0]?.request === request) return seen;
    latest = seen;
  }
  return latest;
}

/** The last token of an answer in a step. */
function tokenOf(picture: Picture, step: Step): Seen | null {
  for (const span of step.runs.flatMap((run) => run.spans).reverse()) {
    const seen = picture.answers.get(span.answer)?.find((one) => one.of === step && one.step === span.step);
    if (seen) return seen;
  }
  return null;
}

function Facts({ picture }: { picture: Picture }) {
  const status = picture.status;
  const recent = picture.steps.slice(-60).filter((step) => step.decoded > 0 && step.prompted === 0);
  const seconds = recent.reduce((sum, step) => sum + step.us, 0) / 1e6;
  const decoded = recent.reduce((sum, step) => sum + step.decoded, 0);
  const waited = recent.reduce((sum, step) => sum + (step.parts_us.disk_wait ?? 0), 0);
  const hits = status && status.hits + status.misses ? status.hits / (status.hits + status.misses) : null;
  const all = picture.model.slots >= picture.model.total_experts;
  return (
    <dl class="facts">
      <div>
        <dt>speed</dt>
        <dd>{decoded ? (decoded / seconds).toFixed(decoded / seconds < 10 ? 1 : 0) : "–"}</dd>
        <dd class="unit">tokens/s</dd>
      </div>
      <div title={status ? `${status.hits} found, ${status.misses} read since the start` : ""}>
        <dt>found in RAM</dt>
        <dd>{percent(hits, hits !== null && hits > 0.99 && hits < 1 ? 1 : 0)}</dd>
        <dd class="unit">of experts</dd>
      </div>
      <div>
        <dt>waited</dt>
        <dd>{decoded ? (waited / decoded / 1000).toFixed(1) : "–"}</dd>
        <dd class="unit">ms a token</dd>
      </div>
      <div title={status && status.guessable_uses ? `Guesses at a next layer's experts named ${percent(status.guessed_uses / status.guessable_uses)} of those used; ${status.useful_prefetches} of ${status.prefetched_reads} reads ahead were of use` : "Nothing is guessed"}>
        <dt>guessed right</dt>
        <dd>{all || !status?.guessable_uses ? "–" : percent(status.guessed_uses / status.guessable_uses)}</dd>
        <dd class="unit">{status?.prefetched_reads ? `${percent(status.useful_prefetches / status.prefetched_reads)} of reads of use` : all ? "all are in RAM" : "no guesses"}</dd>
      </div>
    </dl>
  );
}

function Legend() {
  const colours = PALETTES[theme()];
  return (
    <span class="legend">
      <span>
        <Swatch colour={css(colours.ram)} />
        <Swatch colour={css(colours.hot)} /> in RAM, cold to hot
      </span>
      <span>
        <Swatch colour={css(colours.disk)} /> on disk
      </span>
      <span>
        <Swatch colour={css(colours.reading)} /> being read
      </span>
      <span>
        <Swatch colour={css(colours.miss)} /> missed
      </span>
      <span>
        <Swatch kind="hollow" colour={css(colours.right)} /> guessed
      </span>
      <span>
        <Swatch kind="hollow" colour={css(colours.wrong)} /> guessed wrong
      </span>
      <span>bars: found in RAM, time waited</span>
    </span>
  );
}

function TokenName({ seen }: { seen: Seen }) {
  return (
    <>
      token {seen.position} <code class="token-name">{shown(seen.text)}</code> {seen.phase === 0 ? "of the prompt" : "of the answer"}
    </>
  );
}

function TokenFacts({ picture, seen }: { picture: Picture; seen: Seen }) {
  const rows = picture.rowsOf(seen);
  const missed = rows.filter((row) => !row.resident).length;
  const colours = PALETTES[theme()];
  return (
    <span class="legend">
      <span>
        <Swatch colour={css(colours.hit)} /> {rows.length - missed} found in RAM
      </span>
      <span>
        <Swatch colour={css(colours.miss)} /> {missed} missed, {bytes(rows.reduce((sum, row) => sum + row.bytes, 0))} read
      </span>
      <span>
        its step took {(seen.of.us / 1000).toFixed(1)} ms, of which {((seen.of.parts_us.disk_wait ?? 0) / 1000).toFixed(1)} ms waiting
        {seen.run.tokens > 1 ? `, for ${seen.run.tokens} tokens at once` : ""}
      </span>
    </span>
  );
}

function CellFacts({ picture, cell }: { picture: Picture; cell: number }) {
  const { experts, layers } = picture.model;
  const layer = layers[Math.floor(cell / experts)];
  const where = { [IN_RAM]: "in RAM", [BEING_READ]: "being read" }[picture.places[cell]] ?? "on disk";
  const uses = picture.useCount[cell];
  const misses = picture.misses[cell];
  return (
    <>
      <b>
        Layer {layer.layer}, expert {cell % experts}
      </b>{" "}
      is {where}. Used {uses} times{uses ? `, of which ${uses - misses} found in RAM and ${misses} missed` : ""}.
    </>
  );
}

function RowsTable({ picture, seen }: { picture: Picture; seen: Seen }) {
  const rows = picture.rowsOf(seen);
  return (
    <div class="table" tabIndex={0}>
      <table>
        <caption>
          <TokenName seen={seen} />
        </caption>
        <thead>
          <tr>
            <th>layer</th>
            <th>slot</th>
            <th>expert</th>
            <th>weight</th>
            <th>in RAM</th>
            <th>bytes read</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={`${row.layer}.${row.slot}`} class={row.resident ? "" : "missed"}>
              <td>{row.layer}</td>
              <td>{row.slot}</td>
              <td>{row.expert}</td>
              <td title={String(row.weight)} data-weight={row.weight}>
                {row.weight.toFixed(4)}
              </td>
              <td>{row.resident ? "yes" : "no"}</td>
              <td>{row.bytes}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const shown = (text: string): string => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";

function Tokens({
  picture,
  tokens,
  chosen,
  shown: active,
  onPoint,
  onChoose,
}: {
  picture: Picture;
  tokens: Seen[];
  chosen: number | null;
  shown: Seen | null;
  onPoint: (seen: Seen | null) => void;
  onChoose: (seen: Seen) => void;
}) {
  const [all, setAll] = useState(false);
  const first = all ? 0 : Math.max(0, tokens.length - SHOWN_TOKENS);
  const listed = tokens.slice(first);
  const most = picture.model.layers.reduce((sum, layer) => sum + layer.used, 0);
  const users = useMemo(
    () => (chosen === null ? null : new Set(listed.filter((seen) => picture.usesCell(seen, chosen)))),
    [chosen, tokens, tokens.length, first],
  );
  const of = (target: EventTarget | null): Seen | null => {
    const place = (target as HTMLElement)?.dataset?.place;
    return place === undefined ? null : tokens[Number(place)] ?? null;
  };
  return (
    <div
      class="tokens"
      onPointerOver={(event) => onPoint(of(event.target))}
      onPointerLeave={() => onPoint(null)}
      onClick={(event) => {
        const seen = of(event.target);
        if (seen) onChoose(seen);
      }}
    >
      {first > 0 && (
        <button class="small" onClick={() => setAll(true)}>
          {first} before
        </button>
      )}
      {listed.map((seen, n) => {
        const share = picture.missesOf(seen) / most;
        const classes = `token ${seen.phase === 0 ? "read" : "written"}${seen === active ? " active" : ""}${users?.has(seen) ? " user" : ""}`;
        return (
          <button key={seen.step} class={classes} data-place={first + n} style={{ "--missed": share.toFixed(3) }} aria-label={`Token ${seen.position}: ${seen.text}`}>
            {shown(seen.text)}
          </button>
        );
      })}
    </div>
  );
}

function download(name: string, data: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(data);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function savePng(): void {
  document.querySelector<HTMLCanvasElement>(".map canvas")?.toBlob((data) => data && download("experts.png", data));
}

async function saveTrace(): Promise<void> {
  try {
    download("session.trace", await (await ask("/edgemoe/trace")).blob());
  } catch (error) {
    live.change({ said: String((error as Error).message) });
  }
}

export { download };
