/** Colours that stay apart for colour-blind eyes: Okabe and Ito (10.1038/nmeth.1618); layers as in the report. */

import type { Cell } from "./contract";
import { isNumber } from "./words";

export const LAYER_COLOURS: Record<string, string> = {
  "1": "#f0e442",
  "2": "#56b4e9",
  "3": "#d55e00",
  "4": "#009e73",
  "5": "#cc79a7",
  "6": "#0072b2",
  thin: "#ffffff",
  thick: "#bebebe",
};
export const REJECTED_COLOUR = "#e1e1e1";
export const STATUS_COLOURS: Record<string, string> = {
  accepted: "#009e73",
  uncertain: "#e69f00",
  rejected: "#d55e00",
  failed: "#cc79a7",
};
const CATEGORIES = ["#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#0072b2", "#bebebe"];
/** Viridis in nine steps (CC0, van der Walt and Smith): probability from low to high. */
const VIRIDIS = [
  "#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725",
];

export type ColourBy = "layers" | "p_flake" | "status" | "class";

export const layerColour = (layers: Cell | undefined): string =>
  LAYER_COLOURS[String(layers ?? "").split("|")[0] ?? ""] ?? LAYER_COLOURS["thick"]!;

export function probabilityColour(p: Cell | undefined): string {
  if (!isNumber(p)) return REJECTED_COLOUR;
  return VIRIDIS[Math.min(8, Math.max(0, Math.floor(p * 9)))]!;
}

const known = new Map<string, string>();

/** A colour for a species or a kind; the same name keeps its colour as long as the page is open. */
export function categoryColour(name: string): string {
  let colour = known.get(name);
  if (!colour) {
    colour = CATEGORIES[known.size % CATEGORIES.length]!;
    known.set(name, colour);
  }
  return colour;
}

export const statusColour = (status: Cell | undefined): string =>
  STATUS_COLOURS[String(status)] ?? REJECTED_COLOUR;
