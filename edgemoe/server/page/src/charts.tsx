// Charts beside the map: where the time went, memory, the disk, and what more memory would change.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { askWhatIf, live, type ModelFacts, type Picture, type Status, type Step, type WhatIf, type WhatIfPoint } from "./live";
import { theme } from "./map";

export const bytes = (count: number): string => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit++;
  }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(count >= 10 ? 1 : 2)} ${units[unit]}`;
};
export const percent = (share: number | null | undefined, digits = 0): string => (share == null ? "–" : `${(100 * share).toFixed(digits)} %`);
const ms = (us: number): string => `${us >= 100_000 ? Math.round(us / 1000) : (us / 1000).toFixed(us >= 10_000 ? 1 : 2)} ms`;

/** The parts of a token's time, in groups that a person tells apart. */
const GROUPS: { name: string; parts: string[]; light: string; dark: string }[] = [
  { name: "attention", parts: ["attention", "mixer"], light: "#3b6fb6", dark: "#6ea3e8" },
  { name: "experts", parts: ["experts", "shared_expert", "dense_ffn", "combine", "router"], light: "#0d8a80", dark: "#3fd0be" },
  { name: "waiting for the disk", parts: ["disk_wait"], light: "#e2580a", dark: "#ff8c3a" },
  { name: "head", parts: ["head", "embedding"], light: "#7a5bb0", dark: "#b596ec" },
  { name: "all else", parts: [], light: "#9aa4b2", dark: "#65717f" },
];
const colourOf = (group: (typeof GROUPS)[number]): string => group[theme()];

function shares(step: Step): number[] {
  const known = GROUPS.map((group) => group.parts.reduce((sum, part) => sum + (step.parts_us[part] ?? 0), 0));
  const rest = Math.max(0, step.us - known.reduce((sum, one) => sum + one, 0));
  known[known.length - 1] = rest;
  return known;
}

/** A canvas that is drawn anew whenever the picture changes, at most ten times a second. */
function Canvas({ height, label, paint, onPoint }: { height: number; label: string; paint: (context: CanvasRenderingContext2D, width: number, height: number) => void; onPoint?: (x: number | null, chosen: boolean) => void }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const latest = useRef(paint);
  latest.current = paint;
  useEffect(() => {
    const element = canvas.current!;
    let timer = 0;
    const go = () => {
      timer = 0;
      const scale = devicePixelRatio || 1;
      const width = element.clientWidth;
      if (!width) return;
      element.width = Math.round(width * scale);
      element.height = Math.round(height * scale);
      const context = element.getContext("2d")!;
      context.scale(scale, scale);
      latest.current(context, width, height);
    };
    const wake = () => {
      timer ||= window.setTimeout(go, 100);
    };
    go();
    const end = live.listen(wake);
    const resized = new ResizeObserver(wake);
    resized.observe(element);
    const themed = new MutationObserver(wake);
    themed.observe(document.documentElement, { attributes: true });
    return () => {
      clearTimeout(timer);
      end();
      resized.disconnect();
      themed.disconnect();
    };
  }, [height]);
  useEffect(() => {
    const element = canvas.current!;
    const context = element.getContext("2d")!;
    context.setTransform(1, 0, 0, 1, 0, 0);
    const scale = devicePixelRatio || 1;
    element.width = Math.round(element.clientWidth * scale);
    element.height = Math.round(height * scale);
    context.scale(scale, scale);
    paint(context, element.clientWidth, height);
  });
  const across = (event: PointerEvent) => event.clientX - canvas.current!.getBoundingClientRect().left;
  const size = useRef<(element: HTMLCanvasElement | null) => void>((element) => {
    if (element) element.style.height = `${height}px`;
  });
  return (
    <canvas
      class="chart"
      ref={(element) => {
        canvas.current = element;
        size.current(element);
      }}
      role="img"
      aria-label={label}
      onPointerMove={onPoint && ((event) => onPoint(across(event), event.buttons > 0))}
      onPointerDown={onPoint && ((event) => onPoint(across(event), true))}
      onPointerLeave={onPoint && (() => onPoint(null, false))}
    />
  );
}

const BAR = 5;

/** Where each millisecond went: a bar for each of the latest steps that wrote a token. */
export function Ledger({ picture, onStep }: { picture: Picture; onStep: (step: Step | null, chosen: boolean) => void }) {
  const steps = picture.steps.filter((step) => step.decoded > 0 && step.prompted === 0);
  const [at, setAt] = useState<Step | null>(null);
  const shown = at;
  const last = steps.slice(-120);
  const sums = GROUPS.map(() => 0);
  const counted = shown ? [shown] : last.slice(-40);
  for (const step of counted) shares(step).forEach((us, place) => (sums[place] += us / counted.length));
  const total = sums.reduce((sum, one) => sum + one, 0);
  const first = useRef(0);
  const paint = (context: CanvasRenderingContext2D, width: number, height: number) => {
    const room = Math.floor(width / BAR);
    const bars = last.slice(-room);
    first.current = last.length - bars.length;
    const sorted = bars.map((step) => step.us).sort((a, b) => a - b);
    const top = 1.15 * (sorted[Math.floor(0.96 * (sorted.length - 1))] ?? 1);
    bars.forEach((step, place) => {
      let y = height;
      shares(step).forEach((us, group) => {
        const tall = (us / top) * height;
        context.fillStyle = colourOf(GROUPS[group]);
        context.globalAlpha = shown && step !== shown ? 0.45 : 1;
        context.fillRect(place * BAR, Math.max(0, y - tall), BAR - 1, Math.min(tall, y));
        y -= tall;
      });
    });
    context.globalAlpha = 1;
  };
  const point = (x: number | null, chosen: boolean) => {
    const found = x === null ? null : last[first.current + Math.floor(x / BAR)];
    setAt(found ?? null);
    onStep(found ?? null, chosen);
  };
  return (
    <Section title="Where the time went" note={counted.length ? `${ms(total)} ${shown ? "in this step" : "a step"}` : ""}>
      {last.length ? (
        <div class="ledger">
          <Canvas height={72} label="Time of each step by part of the work" paint={paint} onPoint={point} />
          <ul class="legend">
            {GROUPS.map((group, place) => (
              <li key={group.name}>
                <Swatch colour={colourOf(group)} /> {group.name} <b>{ms(sums[place])}</b>
              </li>
            ))}
          </ul>
        </div>
      ) : (
        <p class="faint">A bar for each token that is written.</p>
      )}
    </Section>
  );
}

export function Swatch({ colour, kind = "" }: { colour: string; kind?: string }) {
  return <i class={`swatch ${kind}`} style={{ background: colour, borderColor: colour }} />;
}

export function Section({ title, note, children }: { title: string; note?: ComponentChildren; children: ComponentChildren }) {
  return (
    <section>
      <h3>
        {title} {note && <span class="faint">{note}</span>}
      </h3>
      {children}
    </section>
  );
}

const MEMORY_COLOURS: Record<string, [string, string]> = {
  experts: ["#0d8a80", "#3fd0be"],
  "weights of every token": ["#3b6fb6", "#6ea3e8"],
  "keys and values": ["#7a5bb0", "#b596ec"],
  "draft model": ["#b0477a", "#ef8fbb"],
  workspace: ["#c08a1e", "#e0b44e"],
  interpreter: ["#9aa4b2", "#65717f"],
};

export function Memory({ model, status }: { model: ModelFacts; status: Status | null }) {
  const { budget_bytes, parts, planned_bytes } = model.memory;
  const whole = Math.max(budget_bytes, planned_bytes, status?.rss_bytes ?? 0);
  const dark = theme() === "dark" ? 1 : 0;
  // A budget that is far larger than what is needed would leave the bar empty.
  const shown = whole > 3 * planned_bytes ? 1.5 * planned_bytes : whole;
  return (
    <Section
      title="Memory"
      note={status && `${bytes(status.rss_bytes)} in use of a budget of ${bytes(budget_bytes)}`}
    >
      <div class="bar" role="img" aria-label={Object.entries(parts).map(([name, size]) => `${name} ${bytes(size)}`).join(", ")}>
        {Object.entries(parts).map(([name, size]) => (
          <i key={name} title={`${name}: ${bytes(size)}`} style={{ width: `${(100 * size) / shown}%`, background: MEMORY_COLOURS[name]?.[dark] }} />
        ))}
        {status && <b title={`in use: ${bytes(status.rss_bytes)}`} style={{ left: `${Math.min(99.5, (100 * status.rss_bytes) / shown)}%` }} />}
      </div>
      <ul class="legend">
        {Object.entries(parts).map(([name, size]) => (
          <li key={name}>
            <Swatch colour={MEMORY_COLOURS[name]?.[dark] ?? ""} /> {name} <b>{bytes(size)}</b>
          </li>
        ))}
      </ul>
    </Section>
  );
}

export function Disk({ picture }: { picture: Picture }) {
  const rates = picture.readRates;
  const most = Math.max(1e6, ...rates);
  const colour = theme() === "dark" ? "#ff8c3a" : "#e2580a";
  return (
    <Section title="Read from the disk" note={`${(((rates[rates.length - 1] ?? 0) as number) / 1e6).toFixed(0)} MB/s now, ${bytes(picture.status?.read_bytes ?? 0)} since the start`}>
      <Canvas
        height={34}
        label="Bytes of experts read in each of the latest seconds"
        paint={(context, width, height) => {
          const step = width / 90;
          context.fillStyle = colour;
          rates.forEach((rate, place) => {
            const tall = Math.max(rate ? 1 : 0, (rate / most) * (height - 2));
            context.fillRect(width - (rates.length - place) * step, height - tall, step - 1, tall);
          });
        }}
      />
    </Section>
  );
}

/** What hit rate, and what speed, another budget would have had on what was routed so far. */
export function WhatIfCurve({ picture }: { picture: Picture }) {
  const [curve, setCurve] = useState<WhatIf | null>(null);
  const [said, setSaid] = useState("");
  const [place, setPlace] = useState(0);
  const nowPlace = curve ? curve.points.reduce((best, point, n) => (Math.abs(point.capacity_percent - curve.now_percent) < Math.abs(curve.points[best].capacity_percent - curve.now_percent) ? n : best), 0) : 0;
  const replay = async () => {
    setSaid("Replaying …");
    try {
      const found = await askWhatIf();
      setCurve(found);
      setPlace(found.points.findIndex((point) => point.capacity_percent >= found.now_percent - 1e-9));
      setSaid("");
    } catch (error) {
      setSaid(String((error as Error).message));
    }
  };
  const point = curve?.points[place];
  const here = curve?.points[nowPlace];
  const colours = theme() === "dark" ? { line: "#3fd0be", best: "#8b98a9", now: "#ff8c3a", grid: "#29323d" } : { line: "#0d8a80", best: "#98a2b0", now: "#e2580a", grid: "#e4e8ee" };
  return (
    <Section title="What if there were more memory?" note={curve ? `${curve.routing.prompt_tokens + curve.routing.decode_tokens} tokens replayed, ${curve.policy}` : ""}>
      {curve && point && here && (
        <>
          <Canvas
            height={110}
            label="Share of experts found in RAM by memory budget"
            paint={(context, width, height) => {
              const x = (percent_: number) => (percent_ / 100) * (width - 8) + 4;
              const y = (rate: number) => height - 6 - rate * (height - 14);
              context.strokeStyle = colours.grid;
              context.lineWidth = 1;
              for (const rate of [0, 0.5, 1]) {
                context.beginPath();
                context.moveTo(0, y(rate));
                context.lineTo(width, y(rate));
                context.stroke();
              }
              const line = (value: (one: WhatIfPoint) => number, colour: string, dashes: number[]) => {
                context.strokeStyle = colour;
                context.lineWidth = 2;
                context.setLineDash(dashes);
                context.beginPath();
                curve.points.forEach((one, n) => (n ? context.lineTo(x(one.capacity_percent), y(value(one))) : context.moveTo(x(one.capacity_percent), y(value(one)))));
                context.stroke();
                context.setLineDash([]);
              };
              line((one) => one.optimum_hit_rate, colours.best, [4, 4]);
              line((one) => one.hit_rate, colours.line, []);
              context.strokeStyle = colours.now;
              context.lineWidth = 1.5;
              context.beginPath();
              context.moveTo(x(curve.now_percent), 2);
              context.lineTo(x(curve.now_percent), height - 4);
              context.stroke();
              context.fillStyle = colours.line;
              context.beginPath();
              context.arc(x(point.capacity_percent), y(point.hit_rate), 5, 0, 7);
              context.fill();
            }}
          />
          <input
            type="range"
            min={0}
            max={curve.points.length - 1}
            value={place}
            aria-label="Memory budget"
            aria-valuetext={bytes(point.budget_bytes)}
            onInput={(event) => setPlace(Number(event.currentTarget.value))}
          />
          <p class="answer">
            With <b>{bytes(point.budget_bytes)}</b>, <b>{percent(point.hit_rate)}</b> of the experts would have been in RAM (at best{" "}
            {percent(point.optimum_hit_rate)})
            {point.tokens_per_s !== null && (
              <>
                : about <b>{point.tokens_per_s.toFixed(point.tokens_per_s < 10 ? 1 : 0)} tokens/s</b>, an estimate
              </>
            )}
            . {place !== nowPlace && `With the ${bytes(here.budget_bytes)} of now: ${percent(here.hit_rate)}${here.tokens_per_s !== null ? `, ${here.tokens_per_s.toFixed(here.tokens_per_s < 10 ? 1 : 0)} tokens/s` : ""}.`}
          </p>
        </>
      )}
      <p>
        <button class="small" onClick={replay} disabled={!picture.steps.length || said === "Replaying …"}>
          {curve ? "Replay again" : "Replay this session"}
        </button>{" "}
        <span class="faint" role="status">
          {said || (!curve && "Runs what was routed so far through caches of other sizes.")}
        </span>
      </p>
    </Section>
  );
}
