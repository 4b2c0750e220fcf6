/** Intensities of atomic columns by class. */

import { useEffect, useRef } from "preact/hooks";

import { api } from "./api";
import { categoryColour } from "./colours";
import type { HistogramAnswer } from "./contract";
import { keepSize, makeAxis, uPlot } from "./plot";
import { rows, theme } from "./state";

function countsOf(answer: HistogramAnswer, values: number[] | undefined, counts: number[] | undefined): number[] {
  if (counts) return counts;
  const bins = new Array<number>(Math.max(0, answer.edges.length - 1)).fill(0);
  const low = answer.edges[0] ?? 0, high = answer.edges.at(-1) ?? 1;
  for (const value of values ?? []) {
    const bin = Math.min(bins.length - 1, Math.floor(((value - low) / (high - low)) * bins.length));
    if (bin >= 0) bins[bin]!++;
  }
  return bins;
}

export function Histogram({ index }: { index: number }) {
  const host = useRef<HTMLDivElement>(null);
  const revision = rows.value.revision;
  useEffect(() => {
    let end = () => {};
    let here = true;
    void api.histogram(index).then((answer) => {
      if (!here || !host.current || answer.edges.length < 2) return;
      const middles = answer.edges.slice(1).map((edge, at) => (edge + answer.edges[at]!) / 2);
      const plot = new uPlot(
        {
          width: host.current.clientWidth || 280,
          height: 190,
          cursor: { points: { show: false } },
          legend: { live: false },
          scales: { x: { time: false } },
          axes: [makeAxis("Intensity"), makeAxis("Columns", { size: 52 })],
          series: [{}, ...answer.classes.map((one) => {
            const colour = categoryColour(one.name);
            return { label: one.sublattice ? `${one.name} (${one.sublattice})` : one.name, stroke: colour, fill: `${colour}55`, width: 1.5, paths: uPlot.paths.stepped!({ align: 0 as 1 }), points: { show: false } };
          })],
        },
        [middles, ...answer.classes.map((one) => countsOf(answer, one.values, one.counts))] as uPlot.AlignedData,
        host.current,
      );
      end = keepSize(plot, host.current, () => 190);
    }).catch(() => undefined);
    return () => {
      here = false;
      end();
    };
  }, [index, revision, theme.value]);
  return <section class="look" aria-label="Histogram of intensities"><h3>Intensities</h3><div class="plot histogram" ref={host} /></section>;
}
