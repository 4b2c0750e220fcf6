/** What a user corrects: each action becomes lines of edits.jsonl, and Ctrl-Z takes a whole action back. */

import { signal } from "@preact/signals";

import { api, Refused } from "./api";
import type { EditLine, Preview } from "./contract";
import { findInside, isInside, type Point, simplify, toCorners } from "./geometry";
import { type Shape, Shapes } from "./shapes";
import { can, findKey, item, itemIndex, loadMarks, marks, refresh, rows, run, say, sayError, selection } from "./state";
import { nameLayers, plural } from "./words";

interface Action {
  said: string;
  ids: string[];
}

const done = signal<readonly Action[]>([]);
const undone = signal<readonly Action[]>([]);
/** Number of actions whose answer has not come yet. */
export const pending = signal(0);

// One action after another: each is acknowledged, and its rows are here, before the next is sent.
let queue: Promise<unknown> = Promise.resolve();

function enqueue<T>(act: () => Promise<T>): Promise<T | undefined> {
  pending.value++;
  const next = queue.then(act).catch((error: unknown) => {
    sayError(error);
    return undefined;
  }).finally(() => pending.value--);
  queue = next;
  return next;
}

async function post(lines: EditLine[]): Promise<string[]> {
  const answer = await api.edit(lines);
  await refresh(answer.revision);
  return answer.ids;
}

/** Send the lines of one action. */
export function correct(said: string, lines: EditLine[]): Promise<boolean> {
  if (!lines.length) return Promise.resolve(false);
  return enqueue(async () => {
    const ids = await post(lines);
    done.value = [...done.peek(), { said, ids }];
    undone.value = [];
    say(said);
    return true;
  }).then((went) => went ?? false);
}

export function undo(): Promise<unknown> {
  return enqueue(async () => {
    const last = done.peek().at(-1);
    if (!last) {
      const answer = await api.undo();
      if (answer.id === null) return say("Nothing to undo");
      await refresh(answer.revision);
      return say("Undone");
    }
    const ids = await post(last.ids.toReversed().map((of) => ({ edit: "undo", of })));
    done.value = done.peek().slice(0, -1);
    undone.value = [...undone.peek(), { said: last.said, ids }];
    say(`Undone: ${last.said}`);
  });
}

export function redo(): Promise<unknown> {
  return enqueue(async () => {
    const last = undone.peek().at(-1);
    if (!last) {
      const answer = await api.redo();
      if (answer.id === null) return say("Nothing to redo");
      await refresh(answer.revision);
      return say("Redone");
    }
    const ids = await post(last.ids.toReversed().map((of) => ({ edit: "undo", of })));
    undone.value = undone.peek().slice(0, -1);
    done.value = [...done.peek(), { said: last.said, ids }];
    say(`Redone: ${last.said}`);
  });
}

// --- places -----------------------------------------------------------------------------------------------------------

let ready: Shapes | undefined;

/** Shapes of a picture whose marks are loaded. */
export function shapesOf(index: number): Shapes | undefined {
  const answer = marks.value.get(index);
  if (!answer) return undefined;
  if (ready?.marks !== answer || ready.item !== index) ready = new Shapes(answer, rows.value, index);
  return ready;
}

interface Placed {
  image: string;
  sha256?: string;
  row_px: number;
  col_px: number;
}

function placeAt(index: number, x: number, y: number): Placed {
  const { name, sha256 } = run.peek()!.items[index]!;
  return { image: name, ...(sha256 ? { sha256 } : {}), row_px: Math.max(0, Math.round(y)), col_px: Math.max(0, Math.round(x)) };
}

/** A place inside the mark of a row; the row's centre where it has no mark. */
async function placeOf(row: number): Promise<Placed> {
  const all = rows.peek();
  const index = all.itemOf(row);
  if (!marks.peek().has(index)) await loadMarks(index);
  const shapes = shapesOf(index);
  const shape = shapes?.get(all.idOf(row));
  const at = shape ? shapes!.inside(shape) : { x: Number(all.get(row, "col_px")), y: Number(all.get(row, "row_px")) };
  return placeAt(index, at.x, at.y);
}

function beforeOf(row: number): Record<string, unknown> {
  const all = rows.peek();
  const names = ["layers", "species", "kind", "status", "reason"].filter((name) => all.has(name));
  return Object.fromEntries(names.map((name) => [name, String(all.get(row, name) ?? "")]));
}

const chosen = (): number[] =>
  selection.peek().map(findKey).filter((row): row is number => row !== undefined);

async function linesFor(list: number[], edit: EditLine): Promise<EditLine[]> {
  const lines: EditLine[] = [];
  for (const row of list) lines.push({ ...edit, ...(await placeOf(row)), before: beforeOf(row) });
  return lines;
}

function what(list: number[]): string {
  const { word } = rows.peek();
  return list.length === 1 ? `${word[0]!.toUpperCase()}${word.slice(1)} ${rows.peek().idOf(list[0]!)}` : plural(list.length, word);
}

async function apply(kind: string, list: number[], said: string, fields: object = {}): Promise<boolean> {
  if (!list.length) return say("Select a region first: click it, or press the full stop key"), false;
  if (!can(kind)) return say(run.peek()?.trouble || `This run takes no correction of that kind (${kind})`, true), false;
  return correct(said, await linesFor(list, { edit: kind, ...fields }));
}

// --- actions ----------------------------------------------------------------------------------------------------------

export const setLayers = (layers: string, list = chosen()) =>
  apply("layers", list, `${what(list)} set to ${nameLayers(layers)}`, { layers });

export const markResidue = (list = chosen()) => apply("residue", list, `${what(list)} is no crystal`);

export const restore = (list = chosen()) => apply("restore", list, `${what(list)} restored`);

export const setSpecies = (species: string, list = chosen()) =>
  apply("species", list, `${what(list)} is ${species}`, { species });

export async function setKind(kind: string, list = chosen()): Promise<boolean> {
  if (!list.length || !can("kind")) return apply("kind", list, "");
  const lines = await linesFor(list, { edit: "kind", kind });
  const framed = lines.map((line, at) => {
    const frame = rows.peek().get(list[at]!, "frame");
    return frame === null || frame === undefined ? line : { ...line, frame };
  });
  return correct(`${what(list)} is ${kind}`, framed);
}

export async function remark(row: number, star: boolean, note: string): Promise<boolean> {
  return correct(star ? "Starred" : note ? "Noted" : "Star and note removed", [
    { edit: "remark", ...(await placeOf(row)), star, note },
  ]);
}

export async function merge(list = chosen()): Promise<boolean> {
  if (list.length < 2) return say("Select two regions or more first: Shift-click adds one"), false;
  const all = rows.peek();
  if (new Set(list.map((row) => all.itemOf(row))).size > 1) return say("These regions lie in different pictures", true), false;
  const places: Placed[] = [];
  for (const row of list) places.push(await placeOf(row));
  const [main, ...rest] = places as [Placed, ...Placed[]];
  return correct(`${plural(list.length, "region")} merged`, [
    { edit: "merge", ...main, others: rest.map((place) => [place.row_px, place.col_px]), before: beforeOf(list[0]!) },
  ]);
}

/** Split the region that most of a line crosses. */
export function split(path: number[]): Promise<boolean> {
  const { width, height } = item.peek()!;
  const line = simplify(path, 0.75);
  const shapes = shapesOf(itemIndex.peek());
  const votes = new Map<Shape, number>();
  for (let at = 0; at + 3 < path.length; at += 2) {
    for (const share of [0.25, 0.5, 0.75]) {
      const x = path[at]! + share * (path[at + 2]! - path[at]!), y = path[at + 1]! + share * (path[at + 3]! - path[at + 1]!);
      const shape = shapes?.at(x, y, 0);
      if (shape) votes.set(shape, (votes.get(shape) ?? 0) + Math.hypot(path[at + 2]! - path[at]!, path[at + 3]! - path[at + 1]!));
    }
  }
  const best = [...votes].sort((a, b) => b[1] - a[1])[0]?.[0];
  if (!best) return say("The line crosses no region"), Promise.resolve(false);
  const inside = shapes!.inside(best);
  return correct(`Region ${best.id} split`, [{
    edit: "split",
    ...placeAt(itemIndex.peek(), inside.x, inside.y),
    line: toCorners(line, width, height),
    ...(best.row >= 0 ? { before: beforeOf(best.row) } : {}),
  }]);
}

function outlineLine(ring: ArrayLike<number>, layers: string): EditLine {
  const { name, sha256, width, height } = item.peek()!;
  return {
    edit: "outline",
    image: name,
    ...(sha256 ? { sha256 } : {}),
    corners: toCorners(ring, width, height),
    layers,
  };
}

export const draw = (ring: number[], layers: string) =>
  correct(`New region of ${nameLayers(layers)}`, [outlineLine(simplify(ring, 0.5), layers)]);

export const erase = (ring: number[]) => correct("Erased", [outlineLine(simplify(ring, 0.3), "")]);

/** Paint onto the selected region: what was painted becomes a region, and the two are merged. */
export async function paint(ring: number[], layers: string): Promise<boolean> {
  const row = chosen().at(-1);
  const outline = simplify(ring, 0.3);
  const shapes = shapesOf(itemIndex.peek());
  const all = rows.peek();
  const target = row !== undefined && all.itemOf(row) === itemIndex.peek() ? shapes?.get(all.idOf(row)) : undefined;
  const left = target && findOutside(target, outline);
  if (row === undefined || !left) return draw(outline, layers);
  const painted = findInside([outline]);
  return correct(`Painted onto region ${all.idOf(row)}`, [
    outlineLine(outline, String(all.get(row, "layers") || layers)),
    {
      edit: "merge",
      ...placeAt(itemIndex.peek(), left.x, left.y),
      others: toCorners([painted.x, painted.y], item.peek()!.width, item.peek()!.height),
      before: beforeOf(row),
    },
  ]);
}

/** A place in a region that a ring does not cover. */
function findOutside(shape: Shape, ring: number[]): Point | undefined {
  const { x0, y0, x1, y1 } = shape.box;
  for (const count of [8, 40]) {
    for (let step = 0; step < count * count; step++) {
      const x = Math.round(x0 + ((x1 - x0) * ((step % count) + 0.5)) / count);
      const y = Math.round(y0 + ((y1 - y0) * (Math.floor(step / count) + 0.5)) / count);
      if (isInside(shape.rings, x, y) && !isInside([ring], x, y)) return { x, y };
    }
  }
  return undefined;
}

export async function flood(x: number, y: number, layers: string): Promise<boolean> {
  const answer = await enqueue(() => api.flood(itemIndex.peek(), Math.round(y), Math.round(x)));
  if (!answer) return false;
  if (answer.corners.length < 3) return say("Nothing there differs from its surroundings"), false;
  return draw(answer.corners.flatMap(([row, col]) => [col, row]), layers);
}

export const setPixelSize = (um_per_px: number, everywhere: boolean) =>
  correct(`Pixel size ${um_per_px.toPrecision(4)} µm`, [
    { edit: "pixel_size", image: everywhere ? "" : item.peek()!.name, um_per_px },
  ]);

// --- teaching ---------------------------------------------------------------------------------------------------------

export interface Lesson {
  said: string;
  lines: EditLine[];
  preview: Preview | null;
  /** Why the optics disagree, where they do; the user may insist. */
  doubt: string;
}
/** What the user is about to teach, with what it would change. */
export const lesson = signal<Lesson | null>(null);

const DISAGREES = 409; // status of the answer where the optics contradict a known crystal

/** Ask what would change if the selected regions were known to have that many layers. */
export async function teach(layers: number, list = chosen()): Promise<void> {
  if (!list.length) return say("Select a region first");
  if (!can("known")) return say(run.peek()?.trouble || "This run takes no known crystals", true);
  const { material } = run.peek()!;
  const said = `${list.length === 1 ? "This is" : "These are"} ${nameLayers(String(layers))}`;
  await consider(said, await linesFor(list, { edit: "known", ...(material ? { material } : {}), layers }));
}

async function consider(said: string, lines: EditLine[]): Promise<void> {
  const asked: Lesson = { said, lines, preview: null, doubt: "" };
  lesson.value = asked;
  const answer = (found: Partial<Lesson> | null) => {
    if (lesson.peek() === asked) lesson.value = found && { ...asked, ...found };
  };
  await enqueue(async () => {
    try {
      answer({ preview: await api.preview(lines) });
    } catch (error) {
      if (!(error instanceof Refused && error.status === DISAGREES)) {
        answer(null);
        throw error;
      }
      answer({ doubt: error.message });
    }
  });
}

/** The optics disagree, the user knows better: ask again with that said. */
export async function insist(): Promise<void> {
  const asked = lesson.peek();
  if (asked) await consider(asked.said, asked.lines.map((line) => ({ ...line, trust: true })));
}

export async function takeLesson(): Promise<void> {
  const taken = lesson.peek();
  lesson.value = null;
  if (taken) await correct(`Taught: ${taken.said}`, taken.lines);
}
