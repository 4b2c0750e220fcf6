/** Tools of the picture: each takes a path drawn on it, by mouse, pen or keyboard. */

import { signal } from "@preact/signals";

import { draw, erase, flood, paint, shapesOf, split } from "./corrections";
import { outlineStroke } from "./geometry";
import { rejectedOn } from "./look";
import { can, itemIndex, rows, say, select } from "./state";
import { plural } from "./words";

export type ToolName = "select" | "split" | "paint" | "erase" | "draw" | "flood" | "lasso" | "ruler" | "scale" | "corners";

export interface Tool {
  name: ToolName;
  key: string;
  word: string;
  hint: string;
  /** How its path is drawn: one point, an open line, a closed line, or a stroke of the brush. */
  shape: "none" | "point" | "line" | "closed" | "stroke" | "segment";
  /** Kind of correction that the run must take, or "" for none. */
  needs: string;
}

export const TOOLS: Tool[] = [
  { name: "select", key: "v", word: "Select", hint: "Click a region; Shift adds; Ctrl-click rejects it; drag moves the picture", shape: "none", needs: "" },
  { name: "lasso", key: "l", word: "Lasso", hint: "Draw around regions; Delete, 1–9 … then apply to all of them", shape: "closed", needs: "" },
  { name: "split", key: "s", word: "Split", hint: "Draw a line across a region", shape: "line", needs: "split" },
  { name: "paint", key: "p", word: "Paint", hint: "Paint onto the selected region, or a new one", shape: "stroke", needs: "outline" },
  { name: "erase", key: "e", word: "Erase", hint: "Take pixels away from what lies there", shape: "stroke", needs: "outline" },
  { name: "draw", key: "w", word: "Draw", hint: "Draw the outline of a new region: drag, or click corners", shape: "closed", needs: "outline" },
  { name: "flood", key: "f", word: "Fill", hint: "Click a crystal that was missed: the step in contrast gives its outline", shape: "point", needs: "outline" },
  { name: "ruler", key: "u", word: "Ruler", hint: "Drag from one place to another", shape: "segment", needs: "" },
  { name: "scale", key: "g", word: "Set scale", hint: "Drag along a scale bar in the picture, then type its length", shape: "segment", needs: "pixel_size" },
];

export const toolName = signal<ToolName>("select");
/** Layer number of regions that are drawn. */
export const newLayers = signal("1");
/** Radius of the brush, in pixels of the picture. */
export const brush = signal(8);
/** The path under way, flat; the last point follows the pointer. */
export const path = signal<readonly number[]>([]);
/** What the ruler or the scale tool measured last. */
export const measured = signal<readonly number[] | null>(null);
/** Cross hair moved by the arrow keys while a tool is active. */
export const crosshair = signal<{ x: number; y: number } | null>(null);

export const tool = (): Tool => TOOLS.find((known) => known.name === toolName.value) ?? TOOLS[0]!;

export const usable = (which: Tool): boolean => !which.needs || can(which.needs);

export function pickTool(name: ToolName): void {
  const which = TOOLS.find((known) => known.name === name);
  if (which && !usable(which)) return say(`This run takes no correction of that kind (${which.needs})`, true);
  toolName.value = name === toolName.peek() ? "select" : name;
  path.value = [];
  measured.value = null;
  crosshair.value = null;
}

/** A path is finished: do what the tool does with it. */
export async function finish(drawn: readonly number[]): Promise<void> {
  path.value = [];
  const line = [...drawn];
  const points = line.length / 2;
  switch (toolName.peek()) {
    case "lasso": {
      if (points < 3) return;
      const found = shapesOf(itemIndex.peek())?.within(line).filter(({ row }) => row >= 0 && (rejectedOn.peek() || rows.peek().get(row, "status") !== "rejected")) ?? [];
      select(found.map((shape) => rows.peek().key(shape.row)));
      say(`${plural(found.length, rows.peek().word)} selected`);
      if (found.length) toolName.value = "select";
      return;
    }
    case "split":
      if (points > 1) await split(line);
      return;
    case "paint":
      if (points) await paint(outlineStroke(line, brush.peek()), newLayers.peek());
      return;
    case "erase":
      if (points) await erase(outlineStroke(line, brush.peek()));
      return;
    case "draw":
      if (points > 2) await draw(line, newLayers.peek());
      return;
    case "flood":
      await flood(line[0]!, line[1]!, newLayers.peek());
      return;
    case "ruler":
    case "scale":
      if (points > 1) measured.value = line.slice(0, 2).concat(line.slice(-2));
      return;
    default:
  }
}
