// What the engine does, as the server tells it: the routing of each token, where each expert is, and counters.
import { ask, events, type AskError } from "./api";
import { Store } from "./store";

export const RESIDENT = 1;
export const READ = 2;
export const GUESSED = 4;
export const ON_DISK = 0;
export const BEING_READ = 1;
export const IN_RAM = 2;

export interface Layer {
  layer: number;
  experts: number;
  used: number;
  expert_bytes: number;
}

export interface ModelFacts {
  name: string;
  layers: Layer[];
  experts: number;
  slots: number;
  total_experts: number;
  policy: string;
  memory: { budget_bytes: number; planned_bytes: number; parts: Record<string, number> };
}

export interface Span {
  answer: number;
  request: string;
  phase: number;
  position: number;
  step: number;
  token_ids: number[];
  texts: string[];
}

export interface Run {
  spans: Span[];
  experts: Int16Array;
  weights: Float32Array;
  flags: Uint8Array;
  wrong: [number, number][];
  /** The number of its tokens. */
  tokens: number;
}

export interface Step {
  number: number;
  us: number;
  parts_us: Record<string, number>;
  waits_us: number[];
  read_bytes: number;
  runs: Run[];
  /** How many tokens it had of answers, and of prompts. */
  decoded: number;
  prompted: number;
}

/** A token that was computed. */
export interface Seen {
  answer: number;
  request: string;
  position: number;
  step: number;
  phase: number;
  id: number;
  text: string;
  run: Run;
  /** Its place among the run's tokens. */
  place: number;
  of: Step;
}

/** One expert of one token: a row of a trace. */
export interface Row {
  place: number;
  layer: number;
  slot: number;
  expert: number;
  weight: number;
  resident: boolean;
  bytes: number;
  guessed: boolean;
}

export interface Status {
  s: number;
  rss_bytes: number;
  peak_rss_bytes: number;
  running: number;
  waiting: number;
  sequences: number;
  hits: number;
  misses: number;
  read_bytes: number;
  prefetched_reads: number;
  useful_prefetches: number;
  guessable_uses: number;
  guessed_uses: number;
  generated_tokens: number;
  prompt_tokens: number;
  cached_tokens: number;
}

const MOST_STEPS = 4000;
const HEAT_SECONDS = 5;

/** The whole picture. It is one object that changes; `drawn` tells those who draw it. */
export class Picture {
  model: ModelFacts;
  cells: number;
  /** Places in the rows of layers, `layers x experts`. */
  places: Uint8Array;
  useCount: Float64Array;
  misses: Float64Array;
  /** A decaying number of uses, and the time to which it was reckoned. */
  heat: Float32Array;
  heatAt: Float64Array;
  /** When each expert was last used, and how: 1 found in RAM, 2 read; when a guess named it, and how: 3 right, 4 wrong. */
  flashAt: Float64Array;
  flash: Uint8Array;
  guessAt: Float64Array;
  guess: Uint8Array;
  steps: Step[] = [];
  answers = new Map<number, Seen[]>();
  status: Status | null = null;
  readRates: number[] = [];

  constructor(model: ModelFacts) {
    this.model = model;
    this.cells = model.layers.length * model.experts;
    this.places = new Uint8Array(this.cells);
    this.useCount = new Float64Array(this.cells);
    this.misses = new Float64Array(this.cells);
    this.heat = new Float32Array(this.cells);
    this.heatAt = new Float64Array(this.cells);
    this.flashAt = new Float64Array(this.cells).fill(-1e9);
    this.flash = new Uint8Array(this.cells);
    this.guessAt = new Float64Array(this.cells).fill(-1e9);
    this.guess = new Uint8Array(this.cells);
  }

  heatOf(cell: number, now: number): number {
    return this.heat[cell] * Math.exp((this.heatAt[cell] - now) / 1000 / HEAT_SECONDS);
  }

  add(step: Step, now: number): void {
    this.steps.push(step);
    const { layers, experts } = this.model;
    for (const run of step.runs) {
      let place = 0;
      for (const span of run.spans) {
        if (!this.answers.has(span.answer)) this.answers.set(span.answer, []);
        const seen = this.answers.get(span.answer)!;
        for (let n = 0; n < span.token_ids.length; n++) {
          seen.push({
            answer: span.answer,
            request: span.request,
            position: span.position + n,
            step: span.step + n,
            phase: span.phase,
            id: span.token_ids[n],
            text: span.texts[n],
            run,
            place: place++,
            of: step,
          });
        }
      }
      let row = 0;
      layers.forEach((layer, number) => {
        for (let n = run.tokens * layer.used; n > 0; n--, row++) {
          if (run.experts[row] < 0) continue;
          const cell = number * experts + run.experts[row];
          const resident = (run.flags[row] & RESIDENT) !== 0;
          this.useCount[cell]++;
          if (!resident) this.misses[cell]++;
          this.heat[cell] = this.heatOf(cell, now) + 1;
          this.heatAt[cell] = now;
          this.flash[cell] = resident ? 1 : 2;
          this.flashAt[cell] = now;
          if (run.flags[row] & GUESSED) {
            this.guess[cell] = 3;
            this.guessAt[cell] = now;
          }
        }
      });
      for (const [number, expert] of run.wrong) {
        this.guess[number * experts + expert] = 4;
        this.guessAt[number * experts + expert] = now;
      }
    }
    while (this.steps.length > MOST_STEPS) this.drop(this.steps.shift()!);
  }

  private drop(step: Step): void {
    for (const span of step.runs.flatMap((run) => run.spans)) {
      const seen = this.answers.get(span.answer);
      if (!seen) continue;
      seen.splice(0, span.token_ids.length);
      if (!seen.length) this.answers.delete(span.answer);
    }
  }

  /** The experts of a token, as rows of a trace. */
  rowsOf(seen: Seen): Row[] {
    const rows: Row[] = [];
    let first = 0;
    this.model.layers.forEach((layer, place) => {
      for (let slot = 0; slot < layer.used; slot++) {
        const at = first + seen.place * layer.used + slot;
        const flags = seen.run.flags[at];
        if (seen.run.experts[at] >= 0) {
          rows.push({
            place,
            layer: layer.layer,
            slot,
            expert: seen.run.experts[at],
            weight: seen.run.weights[at],
            resident: (flags & RESIDENT) !== 0,
            bytes: flags & READ ? layer.expert_bytes : 0,
            guessed: (flags & GUESSED) !== 0,
          });
        }
      }
      first += seen.run.tokens * layer.used;
    });
    return rows;
  }

  /** How many of a token's experts had to be read. */
  missesOf(seen: Seen): number {
    let count = 0;
    let first = 0;
    for (const layer of this.model.layers) {
      const at = first + seen.place * layer.used;
      for (let slot = 0; slot < layer.used; slot++) {
        if (seen.run.experts[at + slot] >= 0 && !(seen.run.flags[at + slot] & RESIDENT)) count++;
      }
      first += seen.run.tokens * layer.used;
    }
    return count;
  }

  usesCell(seen: Seen, cell: number): boolean {
    const number = Math.floor(cell / this.model.experts);
    const expert = cell % this.model.experts;
    let first = 0;
    for (let place = 0; place < number; place++) first += seen.run.tokens * this.model.layers[place].used;
    const { used } = this.model.layers[number];
    const at = first + seen.place * used;
    for (let slot = 0; slot < used; slot++) if (seen.run.experts[at + slot] === expert) return true;
    return false;
  }
}

export const live = new Store<{ picture: Picture | null; said: string; version: number }>({
  picture: null,
  said: "",
  version: 0,
});

const bytesOf = (text: string): ArrayBuffer => Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer;

function stepOf(data: any): Step {
  let decoded = 0;
  let prompted = 0;
  const runs = data.runs.map((run: any): Run => {
    let tokens = 0;
    for (const span of run.spans) {
      tokens += span.token_ids.length;
      if (span.phase === 0) prompted += span.token_ids.length;
      else decoded += span.token_ids.length;
    }
    return {
      spans: run.spans,
      experts: new Int16Array(bytesOf(run.experts)),
      weights: new Float32Array(bytesOf(run.weights)),
      flags: new Uint8Array(bytesOf(run.flags)),
      wrong: run.wrong_guesses,
      tokens,
    };
  });
  return { ...data, runs, decoded, prompted };
}

function unpack(places: Uint8Array, text: string): void {
  const packed = new Uint8Array(bytesOf(text));
  for (let cell = 0; cell < places.length; cell++) places[cell] = (packed[cell >> 2] >> (2 * (cell & 3))) & 3;
}

function take(name: string, data: any): void {
  const now = performance.now();
  if (name === "model") {
    live.set({ picture: new Picture(data), said: "", version: 0 });
    return;
  }
  const { picture, version } = live.value;
  if (!picture) return;
  if (name === "steps") for (const one of data) picture.add(stepOf(one), now);
  else if (name === "places") unpack(picture.places, data.packed);
  else if (name === "status") {
    const before = picture.status;
    picture.status = data;
    if (before && data.s > before.s) {
      picture.readRates.push(Math.max(0, data.read_bytes - before.read_bytes) / (data.s - before.s));
      if (picture.readRates.length > 90) picture.readRates.shift();
    }
  }
  live.change({ version: version + 1 });
}

/** Watches until the result is called. */
export function watch(): () => void {
  const abort = new AbortController();
  void (async () => {
    while (!abort.signal.aborted) {
      let wait = 1500;
      try {
        const response = await ask("/edgemoe/live", { signal: abort.signal });
        for await (const { name, data } of events(response)) take(name, JSON.parse(data));
      } catch (error) {
        const { status, message } = error as AskError;
        if (abort.signal.aborted) return;
        if (status === 404) {
          live.change({ said: /experts/.test(message) ? message : "This server is older than the page: it has no live picture." });
          return;
        }
        if (status === 401) wait = 4000;
        live.change({ said: message });
      }
      await new Promise((go) => setTimeout(go, wait));
    }
  })();
  return () => abort.abort();
}

export interface WhatIfPoint {
  capacity_percent: number;
  slots: number;
  budget_bytes: number;
  hit_rate: number;
  decode_hit_rate: number | null;
  optimum_hit_rate: number;
  bytes_per_decode_token: number | null;
  tokens_per_s: number | null;
}
export interface WhatIf {
  policy: string;
  now_percent: number;
  points: WhatIfPoint[];
  routing: { prompt_tokens: number; decode_tokens: number; accesses: number };
}
export const askWhatIf = async (): Promise<WhatIf> => (await ask("/edgemoe/what-if")).json();
