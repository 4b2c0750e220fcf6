/** Plots by uPlot in the page's colours. */

import uPlot from "uplot";

const style = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function makeAxis(label: string, extra: Partial<uPlot.Axis> = {}): uPlot.Axis {
  return {
    label,
    stroke: () => style("--soft"),
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
    labelSize: 22,
    grid: { stroke: () => style("--line"), width: 1 },
    ticks: { stroke: () => style("--line"), width: 1, size: 4 },
    ...extra,
  };
}

export const ink = (name: string) => style(name);

/** Keep a plot as wide as its host; returns what ends it. */
export function keepSize(plot: uPlot, host: HTMLElement, height: (width: number) => number): () => void {
  const observer = new ResizeObserver(() => {
    const width = host.clientWidth;
    if (width > 0) plot.setSize({ width, height: Math.round(height(width)) });
  });
  observer.observe(host);
  return () => {
    observer.disconnect();
    plot.destroy();
  };
}

export { uPlot };
