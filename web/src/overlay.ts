/** Marks drawn over the picture, anew where that is quick; else they move with it and are drawn when it rests. */

import { categoryColour, type ColourBy, layerColour, probabilityColour, REJECTED_COLOUR, statusColour } from "./colours";
import { type Line, Raster, toInk } from "./raster";
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

/** How a shape is drawn: its line, and whether it is rejected. */
interface Stroke extends Line {
  rejected: boolean;
}

const TRACK_RIM = "rgba(12,14,16,.72)";
const DARK_COLOURS = new Set(["#440154", "#472d7b"]); // these need a light rim
const MOST_WITH_RIM = 4000; // shapes; a rim doubles the time and fills small shapes
const QUICK = 8; // ms; what takes less is drawn anew on every frame

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
  private strokes: (Stroke | null)[] | null = null;
  private readonly raster = new Raster();
  private readonly context: CanvasRenderingContext2D;
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
    this.strokes = null;
    this.drawn = null;
  }

  /** Follow the picture: draw anew where that is quick, else shift what is drawn and draw when the picture rests. */
  follow(to: Placement): void {
    if (!this.drawn || this.took < QUICK || to.width !== this.drawn.width || to.height !== this.drawn.height) {
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
    const { shapes, look, raster } = this;
    const { width, height } = this.canvas;
    const scale = to.scale * ratio, dx = (to.x + to.scale / 2) * ratio - 0.5, dy = (to.y + to.scale / 2) * ratio - 0.5;
    // Corners nearer than half a pixel of the screen cannot be told apart.
    const crowd = shapes!.list.length > MOST_WITH_RIM;
    const thinned = shapes!.rings(Math.max(-1, Math.round(Math.log2((crowd ? 1.1 : 0.55) / scale))));
    this.strokes ??= shapes!.list.map((shape) => this.pickStroke(shape.row));
    const seen: number[] = [];
    shapes!.list.forEach(({ box }, at) => {
      if (!this.strokes![at]) return;
      if (box.x1 * scale + dx < 0 || box.y1 * scale + dy < 0 || box.x0 * scale + dx > width || box.y0 * scale + dy > height) return;
      seen.push(at);
    });
    const rim = seen.length <= MOST_WITH_RIM, thick = 1.6 * ratio;
    raster.begin(this.context, width, height);
    if (!look.bordersOnly) {
      for (const at of seen) {
        const stroke = this.strokes[at]!;
        if (!stroke.rejected) raster.fill(thinned[at]!, scale, dx, dy, stroke.ink, 0.22 * look.opacity);
      }
    }
    if (rim) {
      for (const at of seen) for (const ring of thinned[at]!) raster.halo(ring, scale, dx, dy, this.strokes[at]!, thick + 1.6 * ratio, look.opacity);
    }
    for (const at of seen) {
      const stroke = this.strokes[at]!;
      for (const ring of thinned[at]!) {
        if (rim) raster.trace(ring, scale, dx, dy, stroke, thick, look.opacity);
        else raster.hair(ring, scale, dx, dy, stroke.ink, look.opacity);
      }
    }
    raster.end(this.context);
  }

  private pickStroke(row: number): Stroke | null {
    const { look } = this, rows = this.rows!;
    if (row < 0 || look.dimmed?.has(row)) return null;
    const rejected = rows.get(row, "status") === "rejected";
    if (rejected && !look.rejected) return null;
    const [first, second] = rejected && look.by !== "status" ? [REJECTED_COLOUR, null] : rowColours(rows, row, look.by);
    return { ink: toInk(first), second: second ? toInk(second) : -1, dashed: rejected, light: DARK_COLOURS.has(first), rejected };
  }

  // --- points -----------------------------------------------------------------------------------------------------------

  private drawPoints(to: Placement, ratio: number): void {
    const { shapes, rows, look } = this;
    const inks = new Map<string, number>();
    const list: { x: number; y: number; ink: number }[] = [];
    const scale = to.scale * ratio, dx = (to.x + to.scale / 2) * ratio - 0.5, dy = (to.y + to.scale / 2) * ratio - 0.5;
    for (let at = 0; at < shapes!.list.length; at++) {
      const shape = shapes!.list[at]!;
      const colour = this.pointColour(shape, at, rows!, look);
      if (!colour) continue;
      let ink = inks.get(colour);
      if (ink === undefined) inks.set(colour, (ink = toInk(colour)));
      list.push({ x: shape.box.x0 * scale + dx, y: shape.box.y0 * scale + dy, ink });
    }
    this.raster.begin(this.context, this.canvas.width, this.canvas.height);
    this.raster.discs(list, this.pickRadius(list.length, to) * ratio, look.opacity);
    this.raster.end(this.context);
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
      for (const [style, wide] of [[TRACK_RIM, 3.2], [colour, 1.6]] as const) {
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
      context.strokeStyle = TRACK_RIM;
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
