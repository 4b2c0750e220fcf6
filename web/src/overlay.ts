/** Marks drawn over the picture: outlines as paths, points as stamps of pixels, so that 50,000 take one blink. */

import { categoryColour, type ColourBy, layerColour, probabilityColour, REJECTED_COLOUR, statusColour } from "./colours";
import type { Shape, Shapes } from "./shapes";
import type { Rows } from "./state";

/** Where the picture lies on the screen: screen = scale × picture + offset, in CSS pixels. */
export interface Placement {
  scale: number;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Look {
  by: ColourBy;
  opacity: number;
  bordersOnly: boolean;
  rejected: boolean;
  dimmed: ReadonlySet<number> | null;
}

interface Pen {
  stroke: string;
  second: string | null;
  halo: string;
  rejected: boolean;
  level: number;
  outline: Path2D;
}

const DARK = "rgba(12,14,16,.72)", LIGHT = "rgba(255,255,255,.8)";
const MOST_WITH_HALO = 2500; // shapes; a halo doubles the time
const SIDE = 13; // pixels of a stamp

/** Colours of a row; a second one where two layer numbers fit. */
export function rowColours(rows: Rows, row: number, by: ColourBy): [string, string | null] {
  switch (by) {
    case "p_flake":
      return [probabilityColour(rows.get(row, rows.has("p_flake") ? "p_flake" : rows.has("species_p") ? "species_p" : "kind_p")), null];
    case "status":
      return [statusColour(rows.get(row, "status")), null];
    case "layers": {
      const parts = String(rows.get(row, "layers") ?? "").split("|");
      return [layerColour(parts[0]), parts.length > 1 ? layerColour(parts[1]) : null];
    }
    case "class":
      return [categoryColour(rows.classOf(row)), null];
  }
}

export class Overlay {
  /** Milliseconds that the last full drawing took. */
  took = 0;
  private drawn: Placement | null = null;
  private shapes: Shapes | null = null;
  private rows: Rows | null = null;
  private look: Look = { by: "layers", opacity: 1, bordersOnly: false, rejected: true, dimmed: null };
  private pens: Pen[] | null = null;
  private pensLevel = NaN;
  private readonly context: CanvasRenderingContext2D;
  private image: ImageData | null = null;
  private later = 0;
  /** Frames of a movie: rows of this frame are drawn as points, tracks up to it as lines. */
  frame: number | null = null;

  constructor(readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext("2d")!;
  }

  set(shapes: Shapes | null, rows: Rows, look: Look, frame: number | null = null): void {
    this.shapes = shapes;
    this.rows = rows;
    this.look = look;
    this.frame = frame;
    this.pens = null;
    this.drawn = null;
  }

  /** Follow the picture: draw anew where that is quick, else shift what is drawn and draw when the picture rests. */
  follow(to: Placement): void {
    if (!this.drawn || this.took < 7 || to.width !== this.drawn.width || to.height !== this.drawn.height) {
      this.draw(to);
      return;
    }
    const zoom = to.scale / this.drawn.scale;
    const x = to.x - this.drawn.x * zoom, y = to.y - this.drawn.y * zoom;
    this.canvas.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
    clearTimeout(this.later);
    this.later = window.setTimeout(() => this.draw(to), Math.min(160, 60 + this.took));
  }

  draw(to: Placement): void {
    clearTimeout(this.later);
    const begun = performance.now();
    const ratio = Math.min(2, devicePixelRatio || 1);
    const width = Math.round(to.width * ratio), height = Math.round(to.height * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.canvas.style.width = `${to.width}px`;
      this.canvas.style.height = `${to.height}px`;
    }
    this.canvas.style.transform = "";
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.clearRect(0, 0, width, height);
    this.drawn = to;
    if (this.shapes && this.look.opacity > 0) {
      this.context.globalAlpha = this.look.opacity;
      if (this.shapes.kind === "outlines") this.drawOutlines(to, ratio);
      else if (this.shapes.kind === "points") this.drawPoints(to, ratio);
      else this.drawTracks(to, ratio);
      this.context.globalAlpha = 1;
    }
    this.took = performance.now() - begun;
  }

  // --- outlines ---------------------------------------------------------------------------------------------------------

  private drawOutlines(to: Placement, ratio: number): void {
    const context = this.context;
    // Corners nearer than half a pixel of the screen cannot be told apart.
    const level = Math.round(Math.log2(0.6 / to.scale));
    if (!this.pens || this.pensLevel !== level) this.pens = this.makePens(level);
    context.setTransform(ratio * to.scale, 0, 0, ratio * to.scale, ratio * (to.x + to.scale / 2), ratio * (to.y + to.scale / 2));
    context.lineJoin = "round";
    const halo = (this.shapes?.list.length ?? 0) <= MOST_WITH_HALO;
    const thickness = 1.6 / to.scale;
    for (const pen of this.pens) {
      if (!this.look.bordersOnly && !pen.rejected) {
        context.fillStyle = pen.stroke;
        context.globalAlpha = this.look.opacity * 0.22;
        context.fill(pen.outline, "evenodd");
        context.globalAlpha = this.look.opacity;
      }
      context.setLineDash(pen.rejected && halo ? [3.5 / to.scale, 3 / to.scale] : []);
      if (halo) {
        context.strokeStyle = pen.halo;
        context.lineWidth = thickness + 1.6 / to.scale;
        context.stroke(pen.outline);
      }
      context.strokeStyle = pen.stroke;
      context.lineWidth = halo ? thickness : 1 / to.scale;
      context.stroke(pen.outline);
      if (pen.second) {
        context.setLineDash([6 / to.scale, 6 / to.scale]);
        context.strokeStyle = pen.second;
        context.stroke(pen.outline);
      }
    }
    context.setLineDash([]);
  }

  private makePens(level: number): Pen[] {
    this.pensLevel = level;
    const rows = this.rows!, shapes = this.shapes!, pens = new Map<string, Pen>();
    const thinned = shapes.rings(Math.max(-1, level));
    for (let at = 0; at < shapes.list.length; at++) {
      const { row } = shapes.list[at]!;
      if (row < 0) continue;
      const rejected = rows.get(row, "status") === "rejected";
      if ((rejected && !this.look.rejected) || this.look.dimmed?.has(row)) continue;
      const [stroke, second] = rejected && this.look.by !== "status" ? [REJECTED_COLOUR, null] : rowColours(rows, row, this.look.by);
      const key = `${stroke}${second}${rejected}`;
      let pen = pens.get(key);
      if (!pen) {
        pen = { stroke, second, rejected, level, halo: stroke === "#440154" || stroke === "#472d7b" ? LIGHT : DARK, outline: new Path2D() };
        pens.set(key, pen);
      }
      for (const ring of thinned[at]!) {
        pen.outline.moveTo(ring[0]!, ring[1]!);
        for (let corner = 2; corner < ring.length; corner += 2) pen.outline.lineTo(ring[corner]!, ring[corner + 1]!);
        pen.outline.closePath();
      }
    }
    return [...pens.values()].sort((a, b) => Number(b.rejected) - Number(a.rejected));
  }

  // --- points -----------------------------------------------------------------------------------------------------------

  private drawPoints(to: Placement, ratio: number): void {
    const { shapes, rows, look } = this;
    const list: { x: number; y: number; colour: string }[] = [];
    for (let at = 0; at < shapes!.list.length; at++) {
      const shape = shapes!.list[at]!;
      const colour = this.pointColour(shape, at, rows!, look);
      if (colour) list.push({ x: shape.rings[0]![0]!, y: shape.rings[0]![1]!, colour });
    }
    this.stamp(list, to, ratio, this.pickRadius(list.length, to));
  }

  private pickRadius(count: number, to: Placement): number {
    const usual = count > 15000 ? 1.5 : count > 3000 ? 2.2 : 3.2;
    return Math.min(5.5, Math.max(usual, to.scale * 1.6));
  }

  private pointColour(shape: Shape, at: number, rows: Rows, look: Look): string | null {
    const name = this.shapes!.classOf(at);
    if (name !== undefined) return categoryColour(name);
    if (shape.row < 0 || look.dimmed?.has(shape.row)) return null;
    if (this.frame !== null && rows.has("frame") && rows.get(shape.row, "frame") !== this.frame) return null;
    if (rows.get(shape.row, "status") === "rejected") return look.rejected ? REJECTED_COLOUR : null;
    return rowColours(rows, shape.row, look.by)[0];
  }

  /** Discs with a dark rim, written pixel by pixel. */
  private stamp(list: { x: number; y: number; colour: string }[], to: Placement, ratio: number, radius: number): void {
    const { width, height } = this.canvas;
    if (!this.image || this.image.width !== width || this.image.height !== height) {
      this.image = this.context.createImageData(width, height);
    }
    const pixels = new Uint32Array(this.image.data.buffer);
    pixels.fill(0);
    const discs = makeDiscs(radius * ratio);
    const alpha = Math.round(255 * this.look.opacity);
    const inks = new Map<string, number>();
    const scale = to.scale * ratio, left = (to.x + to.scale / 2) * ratio, above = (to.y + to.scale / 2) * ratio;
    for (const { x, y, colour } of list) {
      const col = Math.round(x * scale + left), row = Math.round(y * scale + above);
      if (col < -SIDE || row < -SIDE || col > width + SIDE || row > height + SIDE) continue;
      let ink = inks.get(colour);
      if (ink === undefined) {
        const rgb = Number.parseInt(colour.slice(1), 16);
        ink = ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
        inks.set(colour, ink);
      }
      for (const { dx, dy, rim } of discs) {
        const px = col + dx, py = row + dy;
        if (px < 0 || py < 0 || px >= width || py >= height) continue;
        const place = py * width + px;
        if (rim === 0) pixels[place] = (ink | (alpha << 24)) >>> 0;
        else if (pixels[place] === 0) pixels[place] = (0x14100c | (Math.round(alpha * rim) << 24)) >>> 0;
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }

  // --- tracks -----------------------------------------------------------------------------------------------------------

  private drawTracks(to: Placement, ratio: number): void {
    const { context, rows } = this;
    const at = this.frame ?? Infinity;
    context.setTransform(ratio * to.scale, 0, 0, ratio * to.scale, ratio * (to.x + to.scale / 2), ratio * (to.y + to.scale / 2));
    context.lineJoin = context.lineCap = "round";
    const points: { x: number; y: number; colour: string }[] = [];
    for (const list of tracksOf(rows!, this.shapes!.item).values()) {
      const colour = categoryColour(rows!.classOf(list[0]!));
      const until = list.filter((row) => Number(rows!.get(row, "frame")) <= at);
      const last = until.at(-1);
      if (last === undefined) continue;
      const path = new Path2D();
      until.forEach((row, place) => {
        const x = Number(rows!.get(row, "col_px")), y = Number(rows!.get(row, "row_px"));
        if (place) path.lineTo(x, y);
        else path.moveTo(x, y);
      });
      const now = Number(rows!.get(last, "frame")) === at || at === Infinity;
      for (const [style, wide] of [[DARK, 3.2], [colour, 1.6]] as const) {
        context.strokeStyle = style;
        context.globalAlpha = this.look.opacity * (now ? 1 : 0.4);
        context.lineWidth = wide / to.scale;
        context.stroke(path);
      }
      if (now) points.push({ x: Number(rows!.get(last, "col_px")), y: Number(rows!.get(last, "row_px")), colour });
    }
    context.globalAlpha = this.look.opacity;
    for (const { x, y, colour } of points) {
      context.beginPath();
      context.arc(x, y, 5.5 / to.scale, 0, 2 * Math.PI);
      context.lineWidth = 3.6 / to.scale;
      context.strokeStyle = DARK;
      context.stroke();
      context.lineWidth = 2 / to.scale;
      context.strokeStyle = colour;
      context.stroke();
    }
  }
}

const tracksCache = new WeakMap<Rows, Map<number, Map<number, number[]>>>();

/** Rows of each track of a movie, in the order of frames. */
export function tracksOf(rows: Rows, item: number): Map<number, number[]> {
  let items = tracksCache.get(rows);
  if (!items) tracksCache.set(rows, (items = new Map()));
  let tracks = items.get(item);
  if (!tracks) {
    tracks = new Map<number, number[]>();
    for (const row of rows.of(item)) {
      const id = rows.idOf(row);
      const list = tracks.get(id);
      if (list) list.push(row);
      else tracks.set(id, [row]);
    }
    for (const list of tracks.values()) list.sort((a, b) => Number(rows.get(a, "frame")) - Number(rows.get(b, "frame")));
    items.set(item, tracks);
  }
  return tracks;
}

/** Offsets of a disc's pixels; `rim` is the darkness of those around it. */
function makeDiscs(radius: number): { dx: number; dy: number; rim: number }[] {
  const out: { dx: number; dy: number; rim: number }[] = [];
  const reach = Math.ceil(radius + 1.5);
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const away = Math.hypot(dx, dy);
      if (away <= radius) out.push({ dx, dy, rim: 0 });
      else if (away <= radius + 1.2) out.push({ dx, dy, rim: Math.min(0.8, radius + 1.3 - away) });
    }
  }
  return out;
}
