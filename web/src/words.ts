/** Numbers and names as people write them. */

import type { Cell } from "./contract";

export const isNumber = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value);

/** Three significant digits, no exponent where a person would write none. */
export function formatNumber(value: Cell | undefined, digits = 3): string {
  if (!isNumber(value)) return "";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return formatCount(value);
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size >= 6 || size < -4) return value.toExponential(digits - 1).replace("e+", "e");
  const places = Math.min(Math.max(0, digits - 1 - size), 6);
  return value.toFixed(places).replace(/\B(?=(\d{3})+(?!\d))(?<!\.\d*)/g, " ");
}

export function formatPercent(value: Cell | undefined): string {
  if (!isNumber(value)) return "";
  if (value > 0.995) return "> 99 %";
  return `${(100 * value).toFixed(value < 0.01 && value > 0 ? 1 : 0)} %`;
}

export function formatSigned(value: Cell | undefined, places = 3): string {
  if (!isNumber(value)) return "";
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(places)}`;
}

/** "1|2" as "1L or 2L". */
export function nameLayers(layers: Cell | undefined): string {
  const text = String(layers ?? "");
  if (!text) return "unknown";
  return text.split("|").map((part) => (/^\d+$/.test(part) ? `${part}L` : part)).join(" or ");
}

export function formatArea(um2: Cell | undefined, px: Cell | undefined): string {
  if (isNumber(um2)) return `${formatNumber(um2)} µm²`;
  return isNumber(px) ? `${formatNumber(px)} px` : "";
}

/** A length in the unit that suits it. */
export function formatLength(nm: number): string {
  const plain = (value: number) => String(Number(value.toPrecision(3)));
  if (nm >= 1e6) return `${plain(nm / 1e6)} mm`;
  return nm >= 1000 ? `${plain(nm / 1000)} µm` : `${plain(nm)} nm`;
}

export function formatTime(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export const plural = (count: number, word: string): string =>
  `${formatCount(count)} ${word}${count === 1 ? "" : word.endsWith("s") || word.endsWith("x") ? "es" : "s"}`;

export const formatCount = (count: number): string => String(count).replace(/\B(?=(\d{3})+(?!\d))/g, " ");

const WORDS: Record<string, string> = {
  p_flake: "crystal",
  layers_p: "sure",
  area_um2: "area",
  area_px: "area",
  row_px: "row",
  col_px: "column",
  kind_p: "probability",
  species_p: "probability",
};

export const columnWord = (name: string): string =>
  WORDS[name] ?? name.replace(/_(px|nm|um2|deg|percent|s)$/, "").replaceAll("_", " ");
