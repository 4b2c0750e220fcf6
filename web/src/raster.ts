/** Lines, areas and discs written pixel by pixel: 10,000 outlines take as long as 10 by the canvas's own paths. */

/** Colour as the canvas keeps it: alpha, blue, green, red from the highest byte down; without alpha. */
export function toInk(colour: string): number {
  const rgb = Number.parseInt(colour.slice(1), 16);
  return ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
}

const DARK = 0x100e0c, LIGHT = 0xffffff;
const HALO_ALPHA = 0.66;
const DASH = 7; // pixels of the screen: on, then as many off

export interface Line {
  ink: number;
  /** Colour that takes turns with the first, or -1. */
  second: number;
  dashed: boolean;
  light: boolean;
}

export class Raster {
  private image: ImageData | null = null;
  private pixels = new Uint32Array();
  private width = 0;
  private height = 0;
  private cuts = new Float32Array(64);
  private counts = new Int32Array(64);

  begin(context: CanvasRenderingContext2D, width: number, height: number): void {
    if (!this.image || this.width !== width || this.height !== height) {
      this.image = context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
      this.width = width;
      this.height = height;
    } else this.pixels.fill(0);
  }

  end(context: CanvasRenderingContext2D): void {
    context.putImageData(this.image!, 0, 0);
  }

  /** Blend a colour over a pixel. */
  private blend(place: number, ink: number, alpha: number): void {
    const had = this.pixels[place]!;
    if (had === 0) {
      this.pixels[place] = (ink | (Math.round(255 * alpha) << 24)) >>> 0;
      return;
    }
    const below = ((had >>> 24) / 255) * (1 - alpha), sum = alpha + below;
    const share = alpha / sum, rest = 1 - share;
    const red = share * (ink & 255) + rest * (had & 255);
    const green = share * ((ink >> 8) & 255) + rest * ((had >> 8) & 255);
    const blue = share * ((ink >> 16) & 255) + rest * ((had >> 16) & 255);
    this.pixels[place] = (Math.round(red) | (Math.round(green) << 8) | (Math.round(blue) << 16) | (Math.round(255 * sum) << 24)) >>> 0;
  }

  /** Fill rings, holes left out (even-odd rule). */
  fill(rings: readonly Float32Array[], scale: number, dx: number, dy: number, ink: number, alpha: number): void {
    const colour = (ink | (Math.round(255 * alpha) << 24)) >>> 0;
    let low = Infinity, high = -Infinity;
    for (const ring of rings) {
      for (let at = 1; at < ring.length; at += 2) {
        const y = ring[at]! * scale + dy;
        if (y < low) low = y;
        if (y > high) high = y;
      }
    }
    const first = Math.max(0, Math.ceil(low)), last = Math.min(this.height - 1, Math.floor(high));
    if (last < first) return;
    // Where edges cross each row of pixels: counted, then written, then sorted row by row.
    const ends = this.room(last - first + 2);
    this.cross(rings, scale, dx, dy, first, last, ends.subarray(1), null);
    for (let row = 1; row < ends.length; row++) ends[row]! += ends[row - 1]!;
    const total = ends[ends.length - 1]!;
    if (this.cuts.length < total) this.cuts = new Float32Array(2 * total);
    const { cuts, width, pixels } = this;
    this.cross(rings, scale, dx, dy, first, last, ends.slice(), cuts);
    for (let row = first; row <= last; row++) {
      const from = ends[row - first]!, to = ends[row - first + 1]!;
      if (to - from > 2) cuts.subarray(from, to).sort();
      else if (to - from === 2 && cuts[from]! > cuts[from + 1]!) [cuts[from], cuts[from + 1]] = [cuts[from + 1]!, cuts[from]!];
      for (let at = from; at + 1 < to; at += 2) {
        const left = Math.max(0, Math.ceil(cuts[at]!)), right = Math.min(width - 1, Math.floor(cuts[at + 1]!));
        if (right >= left) pixels.fill(colour, row * width + left, row * width + right + 1);
      }
    }
  }

  private room(count: number): Int32Array {
    if (this.counts.length < count) this.counts = new Int32Array(2 * count);
    return this.counts.subarray(0, count).fill(0);
  }

  /** Go through the crossings of edges with rows: count them, or write each where its row's next one belongs. */
  private cross(
    rings: readonly Float32Array[], scale: number, dx: number, dy: number, first: number, last: number, next: Int32Array, cuts: Float32Array | null,
  ): void {
    for (const ring of rings) {
      let bx = ring[ring.length - 2]! * scale + dx, by = ring[ring.length - 1]! * scale + dy;
      for (let at = 0; at < ring.length; at += 2) {
        const ax = ring[at]! * scale + dx, ay = ring[at + 1]! * scale + dy;
        if (ay !== by) {
          const slope = (bx - ax) / (by - ay);
          const low = ay < by ? ay : by, high = ay < by ? by : ay;
          const stop = Math.min(last, Math.ceil(high) - 1);
          for (let row = Math.max(first, Math.ceil(low)); row <= stop; row++) {
            const place = next[row - first]!++;
            if (cuts) cuts[place] = ax + slope * (row - ay);
          }
        }
        bx = ax;
        by = ay;
      }
    }
  }

  /** The dark or light rim under a closed line. */
  halo(ring: Float32Array, scale: number, dx: number, dy: number, line: Line, thick: number, alpha: number): void {
    this.trace(ring, scale, dx, dy, { ...line, ink: line.light ? LIGHT : DARK, second: -1 }, thick, alpha * HALO_ALPHA, true);
  }

  /** A closed line of some thickness, its edges smooth. */
  trace(
    ring: Float32Array, scale: number, dx: number, dy: number, line: Line, thick: number, alpha: number, under = false,
  ): void {
    let bx = ring[ring.length - 2]! * scale + dx, by = ring[ring.length - 1]! * scale + dy;
    let travelled = 0;
    for (let at = 0; at < ring.length; at += 2) {
      const ax = ring[at]! * scale + dx, ay = ring[at + 1]! * scale + dy;
      this.segment(bx, by, ax, ay, line, thick, alpha, under, travelled);
      if (line.dashed || line.second >= 0) travelled += Math.hypot(ax - bx, ay - by);
      bx = ax;
      by = ay;
    }
  }

  /** A closed line one pixel thick, for crowds: each step colours two pixels, by how near they are. */
  hair(ring: Float32Array, scale: number, dx: number, dy: number, ink: number, alpha: number): void {
    const { width, height, pixels } = this;
    let bx = ring[ring.length - 2]! * scale + dx, by = ring[ring.length - 1]! * scale + dy;
    for (let at = 0; at < ring.length; at += 2) {
      const ax = ring[at]! * scale + dx, ay = ring[at + 1]! * scale + dy;
      const steep = Math.abs(by - ay) > Math.abs(bx - ax);
      const forth = steep ? by < ay : bx < ax;
      const u0 = forth ? (steep ? by : bx) : steep ? ay : ax, v0 = forth ? (steep ? bx : by) : steep ? ax : ay;
      const u1 = forth ? (steep ? ay : ax) : steep ? by : bx, v1 = forth ? (steep ? ax : ay) : steep ? bx : by;
      const slope = u1 > u0 ? (v1 - v0) / (u1 - u0) : 0;
      const along = steep ? width : 1, over = steep ? 1 : width;
      const last = Math.min(steep ? height - 1 : width - 1, Math.floor(u1)), most = (steep ? width : height) - 1;
      for (let u = Math.max(0, Math.ceil(u0)); u <= last; u++) {
        const v = v0 + (u - u0) * slope, low = Math.floor(v);
        if (low < 0 || low >= most) continue;
        const place = u * along + low * over, far = (255 * alpha * (v - low)) | 0, near = ((255 * alpha) | 0) - far;
        if (near > pixels[place]! >>> 24) pixels[place] = (ink | (near << 24)) >>> 0;
        if (far > pixels[place + over]! >>> 24) pixels[place + over] = (ink | (far << 24)) >>> 0;
      }
      bx = ax;
      by = ay;
    }
  }

  private segment(
    ax: number, ay: number, bx: number, by: number, line: Line, thick: number, alpha: number, under: boolean, travelled: number,
  ): void {
    const steep = Math.abs(by - ay) > Math.abs(bx - ax);
    // u runs along the longer side of the line, v across it.
    const u0 = steep ? ay : ax, v0 = steep ? ax : ay, u1 = steep ? by : bx, v1 = steep ? bx : by;
    const du = u1 - u0, step = du < 0 ? -1 : 1;
    const slope = du ? (v1 - v0) / du : 0;
    const half = (thick / 2) * Math.sqrt(1 + slope * slope);
    const most = steep ? this.height : this.width, across = steep ? this.width : this.height;
    const strideU = steep ? this.width : 1, strideV = steep ? 1 : this.width;
    const colour = (line.ink | (Math.round(255 * alpha) << 24)) >>> 0;
    let u = Math.round(u0);
    const end = Math.round(u1);
    if (step > 0 ? u < 0 : u >= most) u = step > 0 ? 0 : most - 1;
    const patterned = line.dashed || line.second >= 0;
    const length = patterned ? Math.hypot(du, v1 - v0) : 0;
    for (; step > 0 ? u <= end && u < most : u >= end && u >= 0; u += step) {
      let ink = line.ink;
      if (patterned) {
        const on = Math.floor((travelled + (du ? ((u - u0) / du) * length : 0)) / DASH) % 2 === 0;
        if (!on && line.dashed) continue;
        if (!on) ink = line.second;
      }
      const v = v0 + (u - u0) * slope;
      const low = v - half + 0.5, high = v + half + 0.5;
      let at = Math.floor(low);
      const stop = Math.min(across - 1, Math.ceil(high) - 1);
      for (at = Math.max(0, at); at <= stop; at++) {
        const cover = Math.min(high, at + 1) - Math.max(low, at);
        const place = u * strideU + at * strideV;
        if (under) {
          // Rims lie under all lines: what is there already is at least as dark.
          if (cover > 0.4) this.pixels[place] = colour;
        } else if (cover > 0.98 && alpha > 0.98) this.pixels[place] = (ink | 0xff000000) >>> 0;
        else if (cover > 0.02) this.blend(place, ink, cover * alpha);
      }
    }
  }

  /** Discs with a dark rim, centred on whole pixels. */
  discs(list: readonly { x: number; y: number; ink: number }[], radius: number, alpha: number): void {
    const { width, height, pixels } = this;
    const reach = Math.ceil(radius + 1.5);
    const offsets: { dx: number; dy: number; rim: number }[] = [];
    for (let dy = -reach; dy <= reach; dy++) {
      for (let dx = -reach; dx <= reach; dx++) {
        const away = Math.hypot(dx, dy);
        if (away <= radius) offsets.push({ dx, dy, rim: 0 });
        else if (away <= radius + 1.2) offsets.push({ dx, dy, rim: Math.min(0.8, radius + 1.3 - away) });
      }
    }
    const opaque = Math.round(255 * alpha) << 24;
    for (const { x, y, ink } of list) {
      const col = Math.round(x), row = Math.round(y);
      if (col < -reach || row < -reach || col >= width + reach || row >= height + reach) continue;
      for (const { dx, dy, rim } of offsets) {
        const px = col + dx, py = row + dy;
        if (px < 0 || py < 0 || px >= width || py >= height) continue;
        const place = py * width + px;
        if (rim === 0) pixels[place] = (ink | opaque) >>> 0;
        else if (pixels[place] === 0) pixels[place] = (DARK | (Math.round(255 * alpha * rim) << 24)) >>> 0;
      }
    }
  }
}
