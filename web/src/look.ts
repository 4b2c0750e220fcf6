/** How marks and maps are shown; kept while the page is open. */

import { signal } from "@preact/signals";

import type { ColourBy } from "./colours";

export const colourBy = signal<ColourBy>("layers");
export const opacity = signal(0.9);
export const bordersOnly = signal(false);
export const outlinesOn = signal(true);
export const rejectedOn = signal(false);
/** Rows that the plot's brush leaves out. */
export const dimmed = signal<ReadonlySet<number> | null>(null);
/** Name and opacity of the map over the picture. */
export const mapShown = signal<{ url: string; opacity: number } | null>(null);
