/** The stage of a picture: deep zoom, marks over it, and the hand that selects and draws. */

import { effect, signal, untracked } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { markResidue, shapesOf } from "./corrections";
import { type Box, findInside } from "./geometry";
import { bordersOnly, colourBy, dimmed, mapShown, opacity, outlinesOn, rejectedOn } from "./look";
import { Overlay, type Look, type Placement } from "./overlay";
import type { Shape, Shapes } from "./shapes";
import { frame, isFlakes, isLight, item, itemIndex, marks, rows, select, selection } from "./state";
import { brush, crosshair, finish, path, tool, toolName } from "./tools";
import { Viewer } from "./viewer";
import { formatLength } from "./words";

export const placement = signal<Placement | null>(null);
/** Milliseconds that the last full drawing of marks took. */
export const drawTime = signal(0);
export const hovered = signal<string | null>(null);
const pointer = signal<{ x: number; y: number } | null>(null);

export let viewer: Viewer | null = null;
export let overlay: Overlay | null = null;

export function fitSelection(at_once = false): void {
  const shapes = shapesOf(itemIndex.peek());
  const id = selection.peek().at(-1)?.split(":").map(Number);
  const shape = id && id[0] === itemIndex.peek() ? shapes?.get(id[1]!) : undefined;
  if (shape) viewer?.fit(roomFor(shape, shapes!), at_once);
}

/** The box of a shape; around a point, of its crystal where the table knows its area. */
function roomFor({ box, row }: Shape, shapes: Shapes): Box {
  if (shapes.kind !== "points") return box;
  const area = rows.peek().get(row, "area_1l_px");
  const reach = typeof area === "number" ? Math.sqrt(area) : 20;
  return { x0: box.x0 - reach, y0: box.y0 - reach, x1: box.x1 + reach, y1: box.y1 + reach };
}

const lookNow = (): Look => ({
  by: colourBy.value,
  opacity: outlinesOn.value ? opacity.value : 0,
  bordersOnly: bordersOnly.value,
  rejected: rejectedOn.value,
  dimmed: dimmed.value,
});

export function Stage({ children, movie = false }: { children?: ComponentChildren; movie?: boolean }) {
  const host = useRef<HTMLDivElement>(null);
  const marksCanvas = useRef<HTMLCanvasElement>(null);
  const hand = useRef<HTMLCanvasElement>(null);

  useEffect(() => {
    const drawing = new Overlay(marksCanvas.current!);
    overlay = drawing;
    const own = new Viewer(host.current!, (to) => {
      placement.value = to;
      drawing.follow(to);
      if (drawing.took !== drawTime.peek()) drawTime.value = drawing.took;
    });
    viewer = own;
    if (location.search.includes("probe")) Object.assign(window, { flatscope: { viewer: own, overlay: drawing, findInside } });
    own.osd.addHandler("canvas-click", (event) => {
      if (!event.quick || toolName.peek() !== "select") return;
      click(event.position.x, event.position.y, event.originalEvent as MouseEvent);
    });
    own.osd.addHandler("canvas-double-click", (event) => own.zoomAt(event.position.x, event.position.y, 2));
    const stops = [
      effect(() => void own.show(itemIndex.value, frame.value).catch(() => undefined)),
      effect(() => {
        const index = itemIndex.value;
        const at = movie ? frame.value : null;
        const look = lookNow();
        void marks.value, rows.value;
        untracked(() => {
          drawing.set(shapesOf(index) ?? null, rows.peek(), look, at);
          const to = own.placement();
          if (to && own.item === index) drawing.draw(to);
          drawTime.value = drawing.took;
        });
      }),
      effect(() => own.colour(mapShown.value?.url ?? null, mapShown.value?.opacity ?? 1)),
      effect(() => drawHand(hand.current!)),
    ];
    // Coming from the gallery with a row selected: go there once its mark is known.
    let went = selection.peek().length === 0;
    stops.push(effect(() => {
      if (!went && selection.value.length && shapesOf(itemIndex.value)) {
        went = true;
        untracked(() => fitSelection(true));
      }
    }));
    return () => {
      stops.forEach((stop) => stop());
      own.destroy();
      viewer = overlay = null;
      placement.value = null;
    };
  }, [movie]);

  const active = toolName.value !== "select";
  return (
    <div class="stage" onPointerMove={hover} onPointerLeave={() => { hovered.value = null; pointer.value = null; }}>
      <div class="deep" ref={host} />
      <canvas class="marks" ref={marksCanvas} />
      <canvas class={`hand${active ? " active" : ""}`} ref={hand} data-tool={toolName.value} {...(active ? handlers : {})} />
      <ScaleBar />
      {children}
    </div>
  );
}

// --- selecting --------------------------------------------------------------------------------------------------------

const reach = (): number => 8 / (placement.peek()?.scale ?? 1);

export function shapeAt(x: number, y: number): Shape | undefined {
  const at = viewer?.toPicture(x, y);
  const found = at && shapesOf(itemIndex.peek())?.at(at.x, at.y, reach());
  return found && found.row >= 0 ? found : undefined;
}

function click(x: number, y: number, event: MouseEvent): void {
  const shape = shapeAt(x, y);
  if (!shape) {
    if (!event.shiftKey) selection.value = [];
    return;
  }
  const key = rows.peek().key(shape.row);
  if (event.ctrlKey || event.metaKey) {
    select([key]);
    if (isFlakes.peek()) void markResidue([shape.row]);
  } else if (event.shiftKey && selection.peek().includes(key)) {
    selection.value = selection.peek().filter((other) => other !== key);
  } else select([key], event.shiftKey);
}

function hover(event: PointerEvent): void {
  const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  pointer.value = { x, y };
  const shape = event.buttons === 0 ? shapeAt(x, y) : undefined;
  hovered.value = shape ? rows.peek().key(shape.row) : null;
}

// --- drawing by hand --------------------------------------------------------------------------------------------------

let dragging = false;

function place(event: PointerEvent | MouseEvent): { x: number; y: number } {
  const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
  return viewer!.toPicture(event.clientX - box.left, event.clientY - box.top);
}

/** Add a corner to the path under way; what needs one or two corners is then done. */
export function addCorner(x: number, y: number): void {
  const { shape } = tool();
  const next = [...path.peek(), x, y];
  if (shape === "point" || (shape === "segment" && next.length >= 4)) void finish(next);
  else path.value = next;
}

export function endPath(): void {
  if (path.peek().length) void finish(path.peek());
}

const handlers = {
  onPointerDown(event: PointerEvent) {
    if (event.button !== 0) return;
    (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
    const { x, y } = place(event);
    if (tool().shape === "stroke") path.value = [x, y];
    else addCorner(x, y);
    dragging = true;
  },
  onPointerMove(event: PointerEvent) {
    if (!dragging || !path.peek().length) return;
    const { x, y } = place(event);
    const { shape } = tool();
    if (shape === "segment") path.value = [...path.peek().slice(0, 2), x, y];
    else if (Math.hypot(x - path.peek().at(-2)!, y - path.peek().at(-1)!) > 2 / (placement.peek()?.scale ?? 1)) {
      path.value = [...path.peek(), x, y];
    }
  },
  onPointerUp(event: PointerEvent) {
    if (!dragging) return;
    dragging = false;
    const { shape } = tool();
    const drawn = path.peek();
    const box = drawn.length > 3 ? Math.hypot(drawn[0]! - drawn.at(-2)!, drawn[1]! - drawn.at(-1)!) : 0;
    // Dragged freely, the path ends with the drag; clicked, it goes on from corner to corner.
    const free = drawn.length > 12 || (shape === "segment" && drawn.length === 4 && box > reach() / 2);
    if (shape === "stroke" || free) endPath();
    else if (shape === "segment" && drawn.length === 4) path.value = drawn.slice(0, 2);
    event.preventDefault();
  },
  onDblClick: () => endPath(),
  onWheel(event: WheelEvent) {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    viewer?.zoomAt(event.clientX - box.left, event.clientY - box.top, event.deltaY < 0 ? 1.25 : 0.8);
    event.preventDefault();
  },
};

/** Selection, pointer and the path under way, on a canvas of their own. */
function drawHand(canvas: HTMLCanvasElement): void {
  const to = placement.value;
  const chosen = selection.value, under = hovered.value, drawn = path.value, at = crosshair.value;
  const mouse = toolName.value === "select" ? null : pointer.value;
  void marks.value;
  if (!to) return;
  const ratio = Math.min(2, devicePixelRatio || 1);
  const width = Math.round(to.width * ratio), height = Math.round(to.height * ratio);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d")!;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  context.setTransform(ratio * to.scale, 0, 0, ratio * to.scale, ratio * (to.x + to.scale / 2), ratio * (to.y + to.scale / 2));
  const shapes = shapesOf(itemIndex.peek());
  const prefix = `${itemIndex.peek()}:`;
  if (shapes && outlinesOn.value) {
    if (under && !chosen.includes(under)) highlight(context, shapes, under, prefix, to.scale, "rgba(255,255,255,.75)", 1.5);
    for (const key of chosen) highlight(context, shapes, key, prefix, to.scale, "#ffffff", 2.4);
  }
  if (drawn.length || mouse || at) drawPath(context, drawn, mouse, at, to);
}

function highlight(
  context: CanvasRenderingContext2D, shapes: Shapes, key: string, prefix: string, scale: number, colour: string, wide: number,
): void {
  const shape = key.startsWith(prefix) ? shapes.get(Number(key.slice(prefix.length))) : undefined;
  if (!shape) return;
  const line = new Path2D();
  if (shapes.kind === "points") line.arc(shape.rings[0]![0]!, shape.rings[0]![1]!, 9 / scale, 0, 2 * Math.PI);
  else {
    for (const ring of shape.rings) {
      ring.forEach((_, place) => {
        if (place % 2) return;
        if (place) line.lineTo(ring[place]!, ring[place + 1]!);
        else line.moveTo(ring[place]!, ring[place + 1]!);
      });
      if (shapes.kind === "outlines") line.closePath();
    }
  }
  context.lineJoin = "round";
  context.strokeStyle = "rgba(0,0,0,.8)";
  context.lineWidth = (wide + 2.6) / scale;
  context.stroke(line);
  context.strokeStyle = colour;
  context.lineWidth = wide / scale;
  context.stroke(line);
}

function drawPath(
  context: CanvasRenderingContext2D,
  drawn: readonly number[],
  mouse: { x: number; y: number } | null,
  at: { x: number; y: number } | null,
  to: Placement,
): void {
  const { shape } = tool();
  const over = at ?? (mouse ? { x: (mouse.x - to.x) / to.scale - 0.5, y: (mouse.y - to.y) / to.scale - 0.5 } : null);
  const line = new Path2D();
  const ends = over && !(dragging && shape !== "segment") && shape !== "stroke" ? [...drawn, over.x, over.y] : [...drawn];
  if (drawn.length) {
    for (let place = 0; place < ends.length; place += 2) {
      if (place) line.lineTo(ends[place]!, ends[place + 1]!);
      else line.moveTo(ends[place]!, ends[place + 1]!);
    }
    if (shape === "closed" && ends.length > 4) line.closePath();
  }
  if (shape === "stroke") {
    const ring = new Path2D();
    if (over) ring.arc(over.x, over.y, brush.peek(), 0, 2 * Math.PI);
    context.lineCap = context.lineJoin = "round";
    if (drawn.length === 2) line.lineTo(drawn[0]! + 0.01, drawn[1]!);
    context.strokeStyle = toolName.peek() === "erase" ? "rgba(213,94,0,.5)" : "rgba(86,180,233,.55)";
    context.lineWidth = 2 * brush.peek();
    context.stroke(line);
    outlineTwice(context, ring, to.scale, 1.2);
  } else {
    outlineTwice(context, line, to.scale, 1.8);
    for (let place = 0; place < drawn.length && drawn.length < 60; place += 2) {
      const dot = new Path2D();
      dot.arc(drawn[place]!, drawn[place + 1]!, 3 / to.scale, 0, 2 * Math.PI);
      outlineTwice(context, dot, to.scale, 1.6);
    }
  }
  if (at) {
    const cross = new Path2D();
    const arm = 12 / to.scale;
    cross.moveTo(at.x - arm, at.y);
    cross.lineTo(at.x + arm, at.y);
    cross.moveTo(at.x, at.y - arm);
    cross.lineTo(at.x, at.y + arm);
    outlineTwice(context, cross, to.scale, 1.4);
  }
}

function outlineTwice(context: CanvasRenderingContext2D, line: Path2D, scale: number, wide: number): void {
  context.strokeStyle = "rgba(0,0,0,.75)";
  context.lineWidth = (wide + 2) / scale;
  context.stroke(line);
  context.strokeStyle = "#ffffff";
  context.lineWidth = wide / scale;
  context.stroke(line);
}

// --- scale bar --------------------------------------------------------------------------------------------------------

/** nm of one pixel, or null. */
export function pixelNm(): number | null {
  const of = item.value;
  if (!of) return null;
  return of.nm_per_px ?? (of.um_per_px ? 1000 * of.um_per_px : null);
}

function ScaleBar() {
  const to = placement.value;
  if (!to) return null;
  const nm = pixelNm();
  const unit = nm ?? 1;
  const most = (150 / to.scale) * unit;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].find((step) => step * power <= most)! * power;
  return (
    <div class="scalebar" title={nm ? "Scale bar" : `Pixel size unknown${isLight.value ? ": set it with G" : ""}`}>
      <span style={{ width: `${(length / unit) * to.scale}px` }} />
      {nm ? formatLength(length) : `${length} px`}
    </div>
  );
}
