// The map: a row for each layer, a cell for each expert. Its colour says where the expert is and how much it is used.
import { useEffect, useRef } from "preact/hooks";
import { BEING_READ, IN_RAM, live, type Picture, type Seen } from "./live";

type Colour = [number, number, number];
interface Palette {
  gap: Colour;
  none: Colour;
  disk: Colour;
  ram: Colour;
  hot: Colour;
  reading: Colour;
  hit: Colour;
  miss: Colour;
  right: Colour;
  wrong: Colour;
  text: string;
}

/** Blue-green against orange, with purple for wrong guesses: told apart with any kind of colour vision. */
export const PALETTES: Record<"light" | "dark", Palette> = {
  dark: {
    gap: [16, 21, 28],
    none: [16, 21, 28],
    disk: [33, 41, 52],
    ram: [24, 78, 88],
    hot: [64, 208, 190],
    reading: [255, 200, 87],
    hit: [190, 255, 244],
    miss: [255, 140, 58],
    right: [236, 240, 245],
    wrong: [203, 128, 230],
    text: "#8b98a9",
  },
  light: {
    gap: [255, 255, 255],
    none: [255, 255, 255],
    disk: [228, 232, 238],
    ram: [168, 216, 212],
    hot: [8, 127, 121],
    reading: [245, 170, 30],
    hit: [0, 84, 92],
    miss: [226, 88, 10],
    right: [30, 40, 55],
    wrong: [160, 60, 190],
    text: "#687486",
  },
};

const LEFT = 26;
const RIGHT = 58;
const FLASH_MS = 700;
const GUESS_MS = 1200;

export interface Sight {
  /** The cell under the pointer or the keyboard, and the one that was chosen. */
  at: number | null;
  chosen: number | null;
  token: Seen | null;
}

const mix = (a: Colour, b: Colour, share: number): Colour => [
  a[0] + (b[0] - a[0]) * share,
  a[1] + (b[1] - a[1]) * share,
  a[2] + (b[2] - a[2]) * share,
];
const packed = ([r, g, b]: Colour): number => ((255 << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0;
const css = ([r, g, b]: Colour): string => `rgb(${r} ${g} ${b})`;

export interface Geometry {
  cellWidth: number;
  cellHeight: number;
  left: number;
  width: number;
  height: number;
}

function geometryOf(picture: Picture, cssWidth: number, mostHeight: number, scale: number): Geometry {
  const { experts, layers } = picture.model;
  const left = Math.round(LEFT * scale);
  const cellWidth = Math.max(2, Math.floor((cssWidth * scale - left - RIGHT * scale) / experts));
  const most = Math.max(Math.round(3 * scale), Math.floor((mostHeight * scale) / layers.length));
  const cellHeight = Math.min(Math.max(cellWidth, Math.round(5 * scale)), most, Math.round(18 * scale));
  return {
    cellWidth,
    cellHeight,
    left,
    width: left + cellWidth * experts + Math.round(RIGHT * scale),
    height: cellHeight * layers.length,
  };
}

/** Draws the whole map; returns whether anything of it still moves. */
function draw(
  context: CanvasRenderingContext2D,
  picture: Picture,
  geometry: Geometry,
  sight: Sight,
  palette: Palette,
  scale: number,
  still: boolean,
): boolean {
  const { experts, layers } = picture.model;
  const { cellWidth: w, cellHeight: h, left, width, height } = geometry;
  const now = performance.now();
  const image = context.createImageData(experts * w, height);
  const pixels = new Uint32Array(image.data.buffer);
  pixels.fill(packed(palette.gap));
  const gap = Math.min(w, h) >= 4 ? 1 : 0;
  let moves = false;

  const marked = new Map<number, boolean>();
  if (sight.token) for (const row of picture.rowsOf(sight.token)) marked.set(row.place * experts + row.expert, row.resident);

  const fill = (column: number, row: number, inset: number, colour: number) => {
    const right = (column + 1) * w - gap - inset;
    const bottom = (row + 1) * h - gap - inset;
    for (let y = row * h + inset; y < bottom; y++) pixels.fill(colour, y * experts * w + column * w + inset, y * experts * w + right);
  };

  let warmth = 0;
  for (let cell = 0; cell < picture.cells; cell++) warmth += picture.heatOf(cell, now);
  const usual = Math.max(0.3, (1.5 * warmth) / picture.cells);

  for (let row = 0; row < layers.length; row++) {
    for (let column = 0; column < experts; column++) {
      const cell = row * experts + column;
      if (column >= layers[row].experts) continue;
      const place = picture.places[cell];
      const uses = picture.heatOf(cell, now);
      const heat = uses / (uses + usual);
      let colour = place === IN_RAM ? mix(palette.ram, palette.hot, heat) : mix(palette.disk, palette.ram, 0.25 * heat);
      if (place === BEING_READ) colour = palette.reading;
      if (heat > 0.01) moves = true;
      if (sight.token) {
        const resident = marked.get(cell);
        fill(column, row, 0, packed(resident === undefined ? mix(colour, palette.gap, 0.72) : resident ? palette.hit : palette.miss));
      } else {
        const age = now - picture.flashAt[cell];
        if (!still && age < FLASH_MS) {
          moves = true;
          const share = (1 - age / FLASH_MS) ** 1.5;
          colour = mix(colour, picture.flash[cell] === 2 ? palette.miss : palette.hit, share);
        }
        fill(column, row, 0, packed(colour));
        if (!still && w >= 5 && h >= 5 && now - picture.guessAt[cell] < GUESS_MS) {
          moves = true;
          const ring = picture.guess[cell] === 3 ? palette.right : palette.wrong;
          fill(column, row, 0, packed(ring));
          fill(column, row, Math.max(1, Math.round(scale)), packed(colour));
        }
      }
      if (cell === sight.at || cell === sight.chosen) {
        const inner = pixels[(row * h + (h >> 1)) * experts * w + column * w + (w >> 1)];
        fill(column, row, 0, packed(palette.right));
        fill(column, row, Math.max(1, Math.round(1.5 * scale)), inner);
      }
    }
  }
  context.fillStyle = css(palette.gap);
  context.fillRect(0, 0, width, height);
  context.putImageData(image, left, 0);

  // Beside it: numbers of layers, and for each how many experts were found in RAM of late, and the time waited.
  const recent = picture.steps.slice(-24);
  const every = Math.ceil((11 * scale) / h);
  context.font = `${Math.round(9 * scale)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "right";
  const start = left + experts * w + Math.round(6 * scale);
  const length = width - start - Math.round(2 * scale);
  const rates = hitRates(picture, recent);
  const waits = layers.map((_, row) => recent.reduce((sum, step) => sum + step.waits_us[row], 0) / Math.max(1, recent.length));
  const most = Math.max(1000, ...waits);
  for (let row = 0; row < layers.length; row++) {
    if (row % every === 0) {
      context.fillStyle = palette.text;
      context.fillText(String(layers[row].layer), left - 5 * scale, row * h + h / 2);
    }
    const bar = Math.max(1, Math.floor((h - gap) / 2) - (h > 8 ? 1 : 0));
    context.fillStyle = css(palette.disk);
    context.fillRect(start, row * h, length, bar);
    if (rates[row] !== null) {
      context.fillStyle = css(palette.hot);
      context.fillRect(start, row * h, length * rates[row]!, bar);
    }
    context.fillStyle = css(palette.miss);
    context.fillRect(start, row * h + bar, (length * waits[row]) / most, bar);
  }
  return moves;
}

/** The share of experts found in RAM by each layer in these steps; null where none were asked for. */
export function hitRates(picture: Picture, steps: Picture["steps"]): (number | null)[] {
  const { layers } = picture.model;
  const found = layers.map(() => 0);
  const asked = layers.map(() => 0);
  for (const step of steps) {
    for (const run of step.runs) {
      let row = 0;
      layers.forEach((layer, place) => {
        const end = row + run.tokens * layer.used;
        for (; row < end; row++) {
          if (run.experts[row] < 0) continue;
          asked[place]++;
          found[place] += run.flags[row] & 1;
        }
      });
    }
  }
  return layers.map((_, place) => (asked[place] ? found[place] / asked[place] : null));
}

export function theme(): "light" | "dark" {
  return document.documentElement.dataset.theme === "dark" ? "dark" : "light";
}

export function ExpertMap({ picture, sight, onAt, onChoose }: { picture: Picture; sight: Sight; onAt: (cell: number | null) => void; onChoose: (cell: number | null) => void }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const shape = useRef<Geometry | null>(null);
  const latest = useRef(sight);
  latest.current = sight;
  const wake = useRef(() => {});

  useEffect(() => {
    const element = canvas.current!;
    const context = element.getContext("2d", { alpha: false })!;
    let frame = 0;
    let drawnAt = 0;
    const paint = (time: number) => {
      frame = 0;
      if (time - drawnAt < 33) {
        frame = requestAnimationFrame(paint);
        return;
      }
      drawnAt = time;
      const scale = Math.min(3, devicePixelRatio || 1);
      const width = element.parentElement!.clientWidth;
      const geometry = geometryOf(picture, width, Math.max(260, innerHeight * 0.5), scale);
      if (element.width !== geometry.width || element.height !== geometry.height) {
        element.width = geometry.width;
        element.height = geometry.height;
        element.style.width = `${geometry.width / scale}px`;
        element.style.height = `${geometry.height / scale}px`;
      }
      shape.current = geometry;
      const colours = PALETTES[theme()];
      element.dataset.geometry = JSON.stringify(geometry);
      element.dataset.colours = JSON.stringify({ hit: colours.hit, miss: colours.miss });
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      if (draw(context, picture, geometry, latest.current, colours, scale, still)) wake.current();
    };
    wake.current = () => {
      if (!frame) frame = requestAnimationFrame(paint);
    };
    wake.current();
    const ends = [live.listen(() => wake.current())];
    const resized = new ResizeObserver(() => wake.current());
    resized.observe(element.parentElement!);
    const themed = new MutationObserver(() => wake.current());
    themed.observe(document.documentElement, { attributes: true });
    return () => {
      cancelAnimationFrame(frame);
      for (const end of ends) end();
      resized.disconnect();
      themed.disconnect();
    };
  }, [picture]);
  useEffect(() => wake.current());

  const cellAt = (event: PointerEvent | MouseEvent): number | null => {
    const geometry = shape.current;
    if (!geometry) return null;
    const box = canvas.current!.getBoundingClientRect();
    const scale = canvas.current!.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale - geometry.left) / geometry.cellWidth);
    const row = Math.floor(((event.clientY - box.top) * scale) / geometry.cellHeight);
    const layer = picture.model.layers[row];
    return layer && column >= 0 && column < layer.experts ? row * picture.model.experts + column : null;
  };
  const moved = (event: KeyboardEvent) => {
    const { experts, layers } = picture.model;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -experts, ArrowDown: experts }[event.key];
    const at = sight.at ?? sight.chosen ?? 0;
    if (step !== undefined) {
      const next = at + step;
      if (next >= 0 && next < experts * layers.length) onAt(next);
    } else if (event.key === "Enter" || event.key === " ") onChoose(sight.chosen === at ? null : at);
    else if (event.key === "Escape") onChoose(null);
    else return;
    event.preventDefault();
  };
  return (
    <div class="map">
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-label={`Map of ${picture.model.layers.length} layers of ${picture.model.experts} experts. Arrow keys move, Enter chooses an expert.`}
        onPointerMove={(event) => onAt(cellAt(event))}
        onPointerLeave={() => onAt(null)}
        onClick={(event) => {
          const cell = cellAt(event);
          onChoose(cell === sight.chosen ? null : cell);
        }}
        onKeyDown={moved}
        onBlur={() => onAt(null)}
      />
    </div>
  );
}
