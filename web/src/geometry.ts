/** Plane geometry in pixels of the picture: x = column, y = row. Paths and rings are flat lists [x0, y0, x1, y1, …]. */

export interface Point {
  x: number;
  y: number;
}

export interface Box {
  x0: number;
  y0: number;
  x1: number;
  y1: number;
}

export function boxOf(path: ArrayLike<number>): Box {
  const box = { x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity };
  for (let at = 0; at + 1 < path.length; at += 2) {
    box.x0 = Math.min(box.x0, path[at]!);
    box.x1 = Math.max(box.x1, path[at]!);
    box.y0 = Math.min(box.y0, path[at + 1]!);
    box.y1 = Math.max(box.y1, path[at + 1]!);
  }
  return box;
}

export const holds = (box: Box, x: number, y: number): boolean =>
  x >= box.x0 && x <= box.x1 && y >= box.y0 && y <= box.y1;

/** Whether rings hold a point, holes left out (even-odd rule). */
export function isInside(rings: readonly ArrayLike<number>[], x: number, y: number): boolean {
  let inside = false;
  for (const ring of rings) {
    const last = ring.length - 2;
    for (let at = 0, before = last; at <= last; before = at, at += 2) {
      const ay = ring[at + 1]!, by = ring[before + 1]!;
      if (ay > y !== by > y) {
        const ax = ring[at]!, bx = ring[before]!;
        if (x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
      }
    }
  }
  return inside;
}

/** A point well inside: the middle of the longest stretch on one of several lines across the rings. */
export function findInside(rings: readonly ArrayLike<number>[]): Point {
  const box = boxOf(rings[0] ?? [0, 0]);
  let best = { x: (box.x0 + box.x1) / 2, y: (box.y0 + box.y1) / 2, width: -1 };
  for (const share of [0.5, 0.35, 0.65, 0.2, 0.8, 0.08, 0.92]) {
    const y = Math.round(box.y0 + share * (box.y1 - box.y0)) + 1e-3;
    const cuts: number[] = [];
    for (const ring of rings) {
      const last = ring.length - 2;
      for (let at = 0, before = last; at <= last; before = at, at += 2) {
        const ay = ring[at + 1]!, by = ring[before + 1]!;
        if (ay > y !== by > y) cuts.push(((ring[before]! - ring[at]!) * (y - ay)) / (by - ay) + ring[at]!);
      }
    }
    cuts.sort((a, b) => a - b);
    for (let at = 0; at + 1 < cuts.length; at += 2) {
      const width = cuts[at + 1]! - cuts[at]!;
      if (width > best.width) best = { x: (cuts[at]! + cuts[at + 1]!) / 2, y: y - 1e-3, width };
    }
  }
  return { x: best.x, y: best.y };
}

let scratch = new Float32Array(4096);

/** Leave out corners nearer than a distance to the last one kept; what is smaller than that becomes its box. */
export function thin(ring: Float32Array, tolerance: number): Float32Array {
  if (scratch.length < ring.length) scratch = new Float32Array(2 * ring.length);
  const kept = scratch;
  let count = 0, x = Infinity, y = Infinity;
  const square = tolerance * tolerance;
  for (let at = 0; at + 1 < ring.length; at += 2) {
    const dx = ring[at]! - x, dy = ring[at + 1]! - y;
    if (!(dx * dx + dy * dy < square)) {
      kept[count++] = x = ring[at]!;
      kept[count++] = y = ring[at + 1]!;
    }
  }
  if (count >= 6) return kept.slice(0, count);
  const { x0, y0, x1, y1 } = boxOf(ring);
  return Float32Array.of(x0, y0, x1, y0, x1, y1, x0, y1);
}

export function areaOf(ring: ArrayLike<number>): number {
  let sum = 0;
  const last = ring.length - 2;
  for (let at = 0, before = last; at <= last; before = at, at += 2) {
    sum += ring[before]! * ring[at + 1]! - ring[at]! * ring[before + 1]!;
  }
  return Math.abs(sum) / 2;
}

export function lengthOf(path: ArrayLike<number>): number {
  let sum = 0;
  for (let at = 2; at + 1 < path.length; at += 2) {
    sum += Math.hypot(path[at]! - path[at - 2]!, path[at + 1]! - path[at - 1]!);
  }
  return sum;
}

/** The outline of a brush drawn along a path, as one ring: painted on a grid of pixels and traced around. */
export function outlineStroke(path: ArrayLike<number>, radius: number): number[] {
  const box = boxOf(path);
  const x0 = Math.floor(box.x0 - radius) - 2, y0 = Math.floor(box.y0 - radius) - 2;
  const cols = Math.ceil(box.x1 + radius) + 3 - x0, rows = Math.ceil(box.y1 + radius) + 3 - y0;
  const painted = new Uint8Array(cols * rows);
  const stamp = (x: number, y: number) => {
    for (let row = Math.ceil(y - radius); row <= y + radius; row++) {
      const reach = Math.sqrt(radius * radius - (row - y) ** 2);
      const left = Math.ceil(x - reach) - x0, right = Math.floor(x + reach) - x0;
      if (right >= left) painted.fill(1, (row - y0) * cols + left, (row - y0) * cols + right + 1);
    }
  };
  stamp(path[0]!, path[1]!);
  for (let at = 2; at + 1 < path.length; at += 2) {
    const dx = path[at]! - path[at - 2]!, dy = path[at + 1]! - path[at - 1]!;
    const steps = Math.max(1, Math.ceil(Math.hypot(dx, dy) / Math.max(1, radius / 3)));
    for (let step = 1; step <= steps; step++) {
      stamp(path[at - 2]! + (dx * step) / steps, path[at - 1]! + (dy * step) / steps);
    }
  }
  return traceOuter(painted, cols, x0, y0);
}

/** Walk along the edges of painted pixels, the painted ones on the right, from the first one found back to it. */
function traceOuter(painted: Uint8Array, cols: number, x0: number, y0: number): number[] {
  const first = painted.indexOf(1);
  if (first < 0) return [];
  const at = (col: number, row: number) => painted[row * cols + col] === 1;
  // Corners of pixels: corner (col, row) is the upper left one of pixel (col, row).
  const steps = [[1, 0], [0, 1], [-1, 0], [0, -1]] as const;
  const startCol = first % cols, startRow = Math.floor(first / cols);
  let col = startCol, row = startRow, way = 0;
  const ring: number[] = [];
  do {
    const ahead = [
      [at(col, row - 1), at(col, row)],
      [at(col, row), at(col - 1, row)],
      [at(col - 1, row), at(col - 1, row - 1)],
      [at(col - 1, row - 1), at(col, row - 1)],
    ][way]! as [boolean, boolean];
    const turn = ahead[0] ? 3 : ahead[1] ? 0 : 1;
    if (turn !== 0) ring.push(col + x0 - 0.5, row + y0 - 0.5);
    way = (way + turn) % 4;
    col += steps[way]![0];
    row += steps[way]![1];
  } while (col !== startCol || row !== startRow);
  if (ring[0] !== startCol + x0 - 0.5 || ring[1] !== startRow + y0 - 0.5) {
    ring.push(startCol + x0 - 0.5, startRow + y0 - 0.5);
  }
  return smooth(ring);
}

/** Midpoints of a staircase's edges: steps of one pixel become slopes. */
function smooth(ring: number[]): number[] {
  const out: number[] = [];
  for (let at = 0; at < ring.length; at += 2) {
    const next = (at + 2) % ring.length;
    out.push((ring[at]! + ring[next]!) / 2, (ring[at + 1]! + ring[next + 1]!) / 2);
  }
  return out;
}

/** Fewer corners: Douglas and Peucker's way, for hand-drawn lines. */
export function simplify(path: ArrayLike<number>, tolerance: number): number[] {
  const count = Math.floor(path.length / 2);
  if (count < 3) return Array.from(path);
  const keep = new Uint8Array(count);
  keep[0] = keep[count - 1] = 1;
  const waiting: [number, number][] = [[0, count - 1]];
  while (waiting.length) {
    const [from, to] = waiting.pop()!;
    const ax = path[2 * from]!, ay = path[2 * from + 1]!;
    const dx = path[2 * to]! - ax, dy = path[2 * to + 1]! - ay;
    const length = Math.hypot(dx, dy);
    let far = tolerance, place = -1;
    for (let at = from + 1; at < to; at++) {
      const px = path[2 * at]! - ax, py = path[2 * at + 1]! - ay;
      const off = length ? Math.abs(px * dy - py * dx) / length : Math.hypot(px, py);
      if (off > far) [far, place] = [off, at];
    }
    if (place >= 0) {
      keep[place] = 1;
      waiting.push([from, place], [place, to]);
    }
  }
  const out: number[] = [];
  for (let at = 0; at < count; at++) if (keep[at]) out.push(path[2 * at]!, path[2 * at + 1]!);
  return out;
}

/** Flat path to corners as edits.jsonl holds them: row and column, to a hundredth of a pixel. */
export function toCorners(path: ArrayLike<number>, width: number, height: number): [number, number][] {
  const corners: [number, number][] = [];
  const clip = (value: number, most: number) => Math.round(100 * Math.min(Math.max(0, value), most)) / 100;
  for (let at = 0; at + 1 < path.length; at += 2) {
    corners.push([clip(path[at + 1]!, height - 1), clip(path[at]!, width - 1)]);
  }
  return corners;
}
