/** The keys, as in cellpose and napari where these have one. */

import { namesByKey, toggleStar } from "./card";
import { shown, toggleCompared } from "./choice";
import { lesson, markResidue, merge, redo, restore, setKind, setLayers, setSpecies, shapesOf, takeLesson, teach, undo } from "./corrections";
import { comparing } from "./gallery";
import { playing, stepFrame } from "./movie";
import { step } from "./picture";
import { bordersOnly, colourBy, dimmed, outlinesOn, rejectedOn } from "./look";
import { addCorner, endPath, fitSelection, placement, viewer } from "./stage";
import { compared, current, go, helpOpen, isFlakes, itemIndex, rows, run, select, selection, view, type View } from "./state";
import { brush, crosshair, measured, path, pickTool, tool, toolName, TOOLS } from "./tools";

export const views = (): View[] => {
  const table = run.value?.table, movies = run.value?.items.some((item) => item.n_frames > 1);
  const list: (View | false)[] = ["gallery", "picture", table === "flakes" && "contrast", table === "twist" && "twist", movies === true && "movie", "export"];
  return list.filter((name): name is View => name !== false);
};

const isTyping = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement && (target.matches("textarea, select, input:not([type=range]):not([type=checkbox])") || target.isContentEditable);

export function onKey(event: KeyboardEvent): void {
  if (isTyping(event.target)) {
    if (event.key === "Escape") (event.target as HTMLElement).blur();
    return;
  }
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key.toLowerCase() === "z") void (event.shiftKey ? redo() : undo());
  else if (control && event.key.toLowerCase() === "y") void redo();
  else if (control) return;
  else if (event.altKey && /^[1-9]$/.test(event.key)) {
    const to = views()[Number(event.key) - 1];
    if (to) go(to);
  } else if (event.altKey || helpOpen.peek()) return;
  else if (!(everywhere(event) || inGallery(event) || inMovie(event) || inPicture(event) || correcting(event))) return;
  event.preventDefault();
}

const does = (act: () => unknown): true => (void act(), true);

function everywhere(event: KeyboardEvent): boolean {
  switch (event.key) {
    case "?":
      return does(() => (helpOpen.value = true));
    case "Escape":
      return does(leave);
    case "/":
      return does(() => {
        go("gallery");
        setTimeout(() => document.getElementById("filter-text")?.focus());
      });
    case "a":
      return view.peek() !== "gallery" && does(() => stepItem(-1));
    case "d":
      return view.peek() !== "gallery" && does(() => stepItem(1));
    case "Enter":
      return lesson.peek()?.preview ? does(takeLesson) : false;
    case "y": {
      const row = current.peek();
      return row !== undefined && does(() => toggleStar(row));
    }
    case "n":
      return does(() => document.getElementById("note")?.focus());
    default:
      return false;
  }
}

function stepItem(by: number): void {
  if (view.peek() === "picture") step(by);
  else go(view.peek(), itemIndex.peek() + by);
}

function leave(): void {
  if (path.peek().length) path.value = [];
  else if (lesson.peek()) lesson.value = null;
  else if (measured.peek()) measured.value = null;
  else if (toolName.peek() !== "select") pickTool("select");
  else if (comparing.peek()) comparing.value = false;
  else if (dimmed.peek()) dimmed.value = null;
  else selection.value = [];
}

function inGallery(event: KeyboardEvent): boolean {
  if (view.peek() !== "gallery" || event.key !== "c") return false;
  const key = selection.peek().at(-1);
  if (compared.peek().length === 2 && (!key || compared.peek().includes(key))) return does(() => (comparing.value = true));
  return key !== undefined && does(() => toggleCompared(key));
}

function inMovie(event: KeyboardEvent): boolean {
  if (view.peek() !== "movie") return false;
  switch (event.key) {
    case " ":
      return does(() => (playing.value = !playing.peek()));
    case "ArrowLeft":
      return does(() => stepFrame(-1));
    case "ArrowRight":
      return does(() => stepFrame(1));
    default:
      return false;
  }
}

const ARROWS: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function inPicture(event: KeyboardEvent): boolean {
  if (!["picture", "movie", "twist"].includes(view.peek())) return false;
  const way = ARROWS[event.key];
  if (way) return does(() => (toolName.peek() === "select" ? viewer?.panBy(60 * way[0], 60 * way[1]) : moveCross(way, event.shiftKey)));
  if (toolName.peek() !== "select" && (event.key === " " || event.key === "Enter")) return does(() => drawByKey(event.key));
  const which = view.peek() === "picture" ? TOOLS.find((known) => known.key === event.key) : undefined;
  if (which) return does(() => pickTool(which.name));
  switch (event.key) {
    case "+":
    case "=":
      return does(() => viewer?.zoomBy(1.4));
    case "-":
      return does(() => viewer?.zoomBy(1 / 1.4));
    case "z":
      return does(() => viewer?.home());
    case "q":
      return does(() => fitSelection());
    case "o":
      return does(() => (outlinesOn.value = !outlinesOn.peek()));
    case "b":
      return does(() => (bordersOnly.value = !bordersOnly.peek()));
    case "j":
      return does(() => (rejectedOn.value = !rejectedOn.peek()));
    case "h":
      return does(nextColouring);
    case ",":
      return does(() => stepRow(-1));
    case ".":
      return does(() => stepRow(1));
    case "[":
      return does(() => (brush.value = Math.max(1, brush.peek() - Math.max(1, Math.round(brush.peek() / 8)))));
    case "]":
      return does(() => (brush.value = Math.min(200, brush.peek() + Math.max(1, Math.round(brush.peek() / 8)))));
    default:
      return false;
  }
}

function nextColouring(): void {
  const ways = ([rows.peek().has("layers") ? "layers" : "class", "p_flake", "status"] as const);
  colourBy.value = ways[(ways.findIndex((way) => way === colourBy.peek()) + 1) % ways.length]!;
}

function correcting(event: KeyboardEvent): boolean {
  if (/^[0-9]$/.test(event.key)) {
    if (isFlakes.peek()) return does(() => setLayers(event.key === "0" ? "10" : event.key));
    const name = namesByKey()[Number(event.key) - 1];
    const act = rows.peek().table === "columns" ? setSpecies : setKind;
    return name !== undefined && does(() => act(name));
  }
  if (!isFlakes.peek()) return false;
  switch (event.key) {
    case "i":
      return does(() => setLayers("thin"));
    case "k":
      return does(() => setLayers("thick"));
    case "Delete":
    case "Backspace":
    case "x":
      return does(() => markResidue());
    case "r":
      return does(() => restore());
    case "m":
      return does(() => merge());
    case "t":
      return does(teachSelected);
    default:
      return false;
  }
}

/** Teach the number that the card's field holds. */
function teachSelected(): Promise<void> {
  const field = document.querySelector<HTMLInputElement>(".teach input");
  return teach(Math.max(1, Number(field?.value ?? 1)));
}

/** Go to the next row of the picture, best first. */
function stepRow(by: number): void {
  const all = rows.peek();
  const filtered = shown.peek().filter((row) => all.itemOf(row) === itemIndex.peek());
  const list = filtered.length ? filtered : all.of(itemIndex.peek());
  if (!list.length) return;
  const row = current.peek();
  const at = row === undefined ? -1 : list.indexOf(row);
  const next = list[(at + by + list.length) % list.length] ?? list[0]!;
  select([all.key(next)]);
  const shapes = shapesOf(itemIndex.peek());
  const shape = shapes?.get(all.idOf(next));
  if (shape && !viewer?.sees(shape.box)) fitSelection();
}

// --- drawing by keyboard ----------------------------------------------------------------------------------------------

function moveCross(way: [number, number], fast: boolean): void {
  const to = placement.peek();
  if (!to) return;
  const at = crosshair.peek() ?? viewer!.toPicture(to.width / 2, to.height / 2);
  const stride = (fast ? 24 : 4) / Math.max(to.scale, 0.05);
  crosshair.value = { x: Math.round(at.x + way[0] * stride), y: Math.round(at.y + way[1] * stride) };
}

function drawByKey(key: string): void {
  const at = crosshair.peek();
  const { shape } = tool();
  if (key === "Enter" && path.peek().length > 2) return endPath();
  if (!at) return moveCross([0, 0], false);
  if (shape === "stroke" && key === "Enter") {
    path.value = [...path.peek(), at.x, at.y];
    return endPath();
  }
  addCorner(at.x, at.y);
}
