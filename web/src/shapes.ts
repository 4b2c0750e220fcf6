/** The marks of one picture made ready for drawing and for finding what lies under the pointer. */

import type { MarksAnswer } from "./contract";
import { boxOf, findInside, holds, isInside, thin, type Box, type Point } from "./geometry";
import type { Rows } from "./state";

export interface Shape {
  id: number;
  /** Row of the table, or -1 where it has none. */
  row: number;
  rings: Float32Array[];
  box: Box;
}

const CELL = 64; // pixels of the picture; side of a cell of the grid in which places are looked up

export class Shapes {
  readonly list: Shape[] = [];
  private readonly grid = new Map<number, number[]>();
  private readonly thinned = new Map<number, Float32Array[][]>();
  private readonly byId = new Map<number, Shape>();

  constructor(readonly marks: MarksAnswer, rows: Rows, readonly item: number) {
    const { kind, ids } = marks;
    for (let at = 0; at < ids.length; at++) {
      const rings = kind === "points"
        ? [Float32Array.of(marks.x![at]!, marks.y![at]!)]
        : kind === "paths"
          ? [new Float32Array(marks.lines![at]!)]
          : marks.rings![at]!.map((ring) => new Float32Array(ring));
      const row = marks.classes ? -1 : (rows.find(item, ids[at]!) ?? -1);
      const box = rings.map(boxOf).reduce((a, b) => ({
        x0: Math.min(a.x0, b.x0), y0: Math.min(a.y0, b.y0), x1: Math.max(a.x1, b.x1), y1: Math.max(a.y1, b.y1),
      }));
      const shape = { id: ids[at]!, row, rings, box };
      this.byId.set(shape.id, shape);
      this.list.push(shape);
      this.enter(at, shape.box);
    }
  }

  get kind(): MarksAnswer["kind"] {
    return this.marks.kind;
  }

  get(id: number): Shape | undefined {
    return this.byId.get(id);
  }

  classOf(at: number): string | undefined {
    return this.marks.classes?.[at];
  }

  private enter(at: number, box: Box): void {
    for (let row = Math.floor(box.y0 / CELL); row <= box.y1 / CELL; row++) {
      for (let col = Math.floor(box.x0 / CELL); col <= box.x1 / CELL; col++) {
        const key = row * 65536 + col;
        const cell = this.grid.get(key);
        if (cell) cell.push(at);
        else this.grid.set(key, [at]);
      }
    }
  }

  private near(x: number, y: number, reach: number): number[] {
    const found: number[] = [];
    for (let row = Math.floor((y - reach) / CELL); row <= (y + reach) / CELL; row++) {
      for (let col = Math.floor((x - reach) / CELL); col <= (x + reach) / CELL; col++) {
        const cell = this.grid.get(row * 65536 + col);
        if (cell) found.push(...cell);
      }
    }
    return found;
  }

  /** The smallest shape under a place, or the point nearest to it within reach. */
  at(x: number, y: number, reach: number): Shape | undefined {
    let best: Shape | undefined, least = Infinity;
    for (const index of this.near(x, y, reach)) {
      const shape = this.list[index]!;
      let size: number;
      if (this.kind === "outlines") {
        if (!holds(shape.box, x, y) || !isInside(shape.rings, x, y)) continue;
        size = (shape.box.x1 - shape.box.x0) * (shape.box.y1 - shape.box.y0);
      } else {
        size = nearest(shape.rings[0]!, x, y);
        if (size > reach) continue;
      }
      if (size < least) [best, least] = [shape, size];
    }
    return best;
  }

  /** Shapes whose inside, or point, lies within a closed path. */
  within(path: ArrayLike<number>): Shape[] {
    const box = boxOf(path);
    return this.list.filter((shape) => {
      const { x, y } = this.inside(shape);
      return holds(box, x, y) && isInside([path], x, y);
    });
  }

  inside(shape: Shape): Point {
    const ring = shape.rings[0]!;
    return this.kind === "outlines" ? findInside(shape.rings) : { x: ring[0]!, y: ring[1]! };
  }

  /** Outlines at a coarseness: corners nearer than 2^level pixels are left out. */
  rings(level: number): Float32Array[][] {
    let all = this.thinned.get(level);
    if (!all) {
      const tolerance = 2 ** level;
      all = this.list.map((shape) =>
        this.kind === "outlines" ? shape.rings.map((ring) => thin(ring, tolerance)) : shape.rings,
      );
      this.thinned.set(level, all);
    }
    return all;
  }
}

function nearest(path: Float32Array, x: number, y: number): number {
  let least = Infinity;
  for (let at = 0; at + 1 < path.length; at += 2) {
    least = Math.min(least, Math.hypot(path[at]! - x, path[at + 1]! - y));
  }
  return least;
}
