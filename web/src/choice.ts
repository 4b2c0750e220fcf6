/** Which rows the gallery and the plots show, and in which order. */

import { computed, signal } from "@preact/signals";

import { compared, rows } from "./state";
import { isNumber } from "./words";

export type SortBy = "interest" | "area" | "probability" | "layers" | "item" | "p_flake";

export interface Filters {
  classes: readonly string[];
  statuses: readonly string[];
  leastProbability: number;
  leastArea: number;
  text: string;
  starred: boolean;
  item: number | null;
}

const NONE: Filters = {
  classes: [],
  statuses: ["accepted", "uncertain"],
  leastProbability: 0,
  leastArea: 0,
  text: "",
  starred: false,
  item: null,
};

export const filters = signal<Filters>(NONE);
export const sortBy = signal<SortBy>("interest");
export const clearFilters = () => (filters.value = NONE);

export function setFilter<K extends keyof Filters>(name: K, value: Filters[K]): void {
  filters.value = { ...filters.peek(), [name]: value };
}

export const toggle = (list: readonly string[], name: string): string[] =>
  list.includes(name) ? list.filter((other) => other !== name) : [...list, name];

export const probabilityName = computed(() => {
  const all = rows.value;
  return ["layers_p", "species_p", "kind_p", "p_flake"].find((name) => all.has(name)) ?? "";
});

export const areaName = computed(() => {
  const all = rows.value;
  return ["area_um2", "area_px", "area_2l_px"].find((name) => all.column(name).some(isNumber)) ?? "";
});

/** Whether a row passes, its status left out. */
function passes(row: number, wanted: Filters): boolean {
  const all = rows.value;
  const { classes, leastProbability, leastArea, text } = wanted;
  if (wanted.item !== null && all.itemOf(row) !== wanted.item) return false;
  if (classes.length) {
    const parts = all.classOf(row).split("|");
    if (!parts.some((part) => classes.includes(part))) return false;
  }
  if (leastProbability > 0 && probabilityName.value) {
    const p = all.get(row, probabilityName.value);
    if (!isNumber(p) || p < leastProbability) return false;
  }
  if (leastArea > 0 && areaName.value) {
    const area = all.get(row, areaName.value);
    if (!isNumber(area) || area < leastArea) return false;
  }
  if (wanted.starred && all.get(row, "star") !== true) return false;
  if (text) {
    const said = ["image", "reason", "note", all.className, all.idName].map((name) => String(all.get(row, name) ?? "")).join(" ").toLowerCase();
    if (!text.toLowerCase().split(/\s+/).every((word) => said.includes(word))) return false;
  }
  return true;
}

/** Rows that pass, best first. */
export const shown = computed<number[]>(() => {
  const all = rows.value, wanted = filters.value, by = sortBy.value;
  const list: number[] = [];
  for (let row = 0; row < all.count; row++) {
    if (wanted.statuses.length && all.has("status") && !wanted.statuses.includes(String(all.get(row, "status")))) continue;
    if (passes(row, wanted)) list.push(row);
  }
  const descending = (name: string) => {
    const column = all.column(name);
    const value = (row: number) => (isNumber(column[row]) ? (column[row] as number) : -Infinity);
    return list.sort((a, b) => value(b) - value(a) || a - b);
  };
  switch (by) {
    case "area":
      return descending(areaName.value);
    case "probability":
      return descending(probabilityName.value);
    case "p_flake":
      return descending("p_flake");
    case "layers":
      return list.sort((a, b) => all.classOf(a).localeCompare(all.classOf(b), "en", { numeric: true }) || a - b);
    case "item":
      return list.sort((a, b) => all.itemOf(a) - all.itemOf(b) || a - b);
    default:
      return list;
  }
});

/** Classes that occur, with the number of rows of each. */
export const classCounts = computed<[string, number][]>(() => {
  const all = rows.value, counts = new Map<string, number>();
  for (let row = 0; row < all.count; row++) {
    if (all.get(row, "status") === "rejected") continue;
    for (const part of all.classOf(row).split("|")) if (part) counts.set(part, (counts.get(part) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => a[0].localeCompare(b[0], "en", { numeric: true }));
});

export const statusCounts = computed<[string, number][]>(() => {
  const counts = new Map<string, number>([["accepted", 0], ["uncertain", 0], ["rejected", 0]]);
  for (const status of rows.value.column("status")) counts.set(String(status), (counts.get(String(status)) ?? 0) + 1);
  return [...counts].filter(([name]) => name !== "null");
});

export function toggleCompared(key: string): void {
  const list = compared.peek();
  compared.value = list.includes(key) ? list.filter((other) => other !== key) : [...list.slice(-1), key];
}
