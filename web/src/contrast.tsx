/** The contrast plot: all regions in two colours of light, beside the ladder that the fitted set-up computes. */

import { effect, signal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { api } from "./api";
import { layerColour } from "./colours";
import type { LadderStep } from "./contract";
import { filters, shown } from "./choice";
import { setLayers, teach } from "./corrections";
import { Adaptation } from "./adapt";
import { Card } from "./card";
import { isInside } from "./geometry";
import { LessonPanel } from "./lesson";
import { Button, Legend, Sprite } from "./pieces";
import { ink, keepSize, makeAxis, uPlot } from "./plot";
import { can, findKey, openRow, rows, select, selection, theme } from "./state";
import { dimmed } from "./look";
import { isNumber, nameLayers, plural } from "./words";

const CHANNELS = ["red", "green", "blue"] as const;
type Channel = (typeof CHANNELS)[number];
const horizontal = signal<Channel>("green"), vertical = signal<Channel>("red");
const ladders = signal<LadderStep[][]>([]);
const showUnsure = signal(true);

export function Contrast() {
  useEffect(() => {
    const load = () => void api.contrast().then((answer) => (ladders.value = answer.groups.map((group) => group.ladder))).catch(() => undefined);
    let last = -1;
    return effect(() => {
      if (rows.value.revision !== last) {
        last = rows.value.revision;
        load();
      }
    });
  }, []);
  return (
    <div class="workspace plot-view">
      <section class="middle" aria-label="Contrast plot">
        <header class="bar-top">
          <Axes />
          <label class="check"><input type="checkbox" checked={showUnsure.value} onChange={() => (showUnsure.value = !showUnsure.value)} />uncertain and rejected too</label>
        </header>
        <Scatter />
        <Chosen />
      </section>
      <div class="side">
        <LessonPanel />
        <Card />
        <section class="look"><h3>Layers</h3><Legend by="layers" />
          <p class="soft small">Lines and rings: contrast that the fitted set-up computes for 1, 2, 3 … layers, with its 1-sigma band. Drag a lasso around points, click one for its card; scrolling zooms, a double click shows all.</p>
        </section>
        <Adaptation />
      </div>
    </div>
  );
}

function Axes() {
  const choose = (which: typeof horizontal, label: string) => (
    <label>{label} <select aria-label={`${label} axis`} value={which.value} onChange={(event) => (which.value = event.currentTarget.value as Channel)}>
      {CHANNELS.map((channel) => <option key={channel} value={channel}>{channel}</option>)}
    </select></label>
  );
  return <>{choose(horizontal, "Across")}{choose(vertical, "Up")}</>;
}

interface Cloud {
  row: number[];
  x: number[];
  y: number[];
}

function collect(): Cloud {
  const all = rows.value;
  const cloud: Cloud = { row: [], x: [], y: [] };
  const across = all.column(`contrast_${horizontal.value[0]}`), up = all.column(`contrast_${vertical.value[0]}`);
  const list = showUnsure.value ? [...Array(all.count).keys()] : shown.value;
  const item = filters.value.item;
  for (const row of list) {
    const x = across[row], y = up[row];
    if (!isNumber(x) || !isNumber(y) || (item !== null && all.itemOf(row) !== item)) continue;
    cloud.row.push(row);
    cloud.x.push(x);
    cloud.y.push(y);
  }
  return cloud;
}

function Scatter() {
  const host = useRef<HTMLDivElement>(null), lasso = useRef<HTMLCanvasElement>(null);
  const plotted = useRef<{ plot: uPlot; cloud: Cloud } | null>(null);
  useEffect(() => {
    let end = () => {};
    const stop = effect(() => {
      const cloud = collect(), steps = ladders.value, h = horizontal.value, v = vertical.value;
      void theme.value;
      end();
      const plot = makeScatter(host.current!, cloud, steps, CHANNELS.indexOf(h), CHANNELS.indexOf(v), h, v);
      plotted.current = { plot, cloud };
      end = keepSize(plot, host.current!, () => host.current!.clientHeight);
    });
    const stopSelection = effect(() => {
      void selection.value;
      plotted.current?.plot.redraw(false);
    });
    return () => {
      stop();
      stopSelection();
      end();
    };
  }, []);
  useLasso(lasso, plotted);
  return <div class="scatter"><div class="plot" ref={host} /><canvas class="lasso" ref={lasso} aria-label="Contrast of all regions; the table in the gallery holds the same numbers" /></div>;
}

function makeScatter(host: HTMLElement, cloud: Cloud, steps: LadderStep[][], across: number, up: number, h: string, v: string): uPlot {
  const plot = new uPlot(
    {
      width: host.clientWidth || 600,
      height: host.clientHeight || 400,
      mode: 2,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: (_, low, high) => [low, high] }, y: { range: (_, low, high) => [low, high] } },
      axes: [makeAxis(`Contrast in ${h}`), makeAxis(`Contrast in ${v}`, { size: 62 })],
      series: [{}, { paths: (self: uPlot) => (drawCloud(self, cloud), null), facets: [{ scale: "x", auto: true }, { scale: "y", auto: true }] } as unknown as uPlot.Series],
      hooks: { drawAxes: [(self) => steps.forEach((ladder) => drawLadder(self, ladder, across, up))] },
    },
    [null, [cloud.x, cloud.y]] as unknown as uPlot.AlignedData,
    host,
  );
  showAll(plot, cloud);
  return plot;
}

function showAll(plot: uPlot, cloud: Cloud): void {
  // What was rejected may lie far off: it is drawn, but takes no room.
  const counted = cloud.row.map((row) => rows.peek().get(row, "status") !== "rejected");
  const span = (all: number[]) => {
    const values = counted.includes(true) ? all.filter((_, at) => counted[at]) : all;
    const [min, max] = pad(Math.min(...values), Math.max(...values));
    return { min, max };
  };
  plot.batch(() => {
    plot.setScale("x", span(cloud.x));
    plot.setScale("y", span(cloud.y));
  });
}

/** Zoom about a place on the plot, in CSS pixels of its canvas. */
function zoomPlot(plot: uPlot, x: number, y: number, factor: number): void {
  const ratio = devicePixelRatio || 1;
  plot.batch(() => {
    for (const [scale, at] of [["x", plot.posToVal(x - plot.bbox.left / ratio, "x")], ["y", plot.posToVal(y - plot.bbox.top / ratio, "y")]] as const) {
      const { min, max } = plot.scales[scale]!;
      plot.setScale(scale, { min: at + (min! - at) * factor, max: at + (max! - at) * factor });
    }
  });
}

function pad(low: number, high: number): [number, number] {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [-1, 1];
  const room = 0.06 * (high - low) || 0.05;
  return [Math.min(low - room, 0 - room / 4), Math.max(high + room, room / 4)];
}

function drawCloud(plot: uPlot, cloud: Cloud): void {
  const { ctx } = plot, all = rows.peek(), ratio = devicePixelRatio || 1;
  const chosen = new Set(selection.peek().map(findKey));
  const radius = (cloud.row.length > 5000 ? 2 : 3.2) * ratio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(plot.bbox.left, plot.bbox.top, plot.bbox.width, plot.bbox.height);
  ctx.clip();
  const groups = new Map<string, Path2D>();
  for (let at = 0; at < cloud.row.length; at++) {
    const row = cloud.row[at]!;
    const rejected = all.get(row, "status") === "rejected";
    const colour = rejected ? "x" : layerColour(all.get(row, "layers"));
    let path = groups.get(colour);
    if (!path) groups.set(colour, (path = new Path2D()));
    const x = plot.valToPos(cloud.x[at]!, "x", true), y = plot.valToPos(cloud.y[at]!, "y", true);
    if (rejected) {
      path.moveTo(x - radius, y - radius);
      path.lineTo(x + radius, y + radius);
      path.moveTo(x + radius, y - radius);
      path.lineTo(x - radius, y + radius);
    } else {
      path.moveTo(x + radius, y);
      path.arc(x, y, radius, 0, 2 * Math.PI);
    }
  }
  for (const [colour, path] of groups) {
    ctx.lineWidth = ratio;
    ctx.strokeStyle = colour === "x" ? ink("--soft") : ink("--rim");
    if (colour === "x") ctx.globalAlpha = 0.6;
    ctx.stroke(path);
    ctx.globalAlpha = 1;
    if (colour === "x") continue;
    ctx.fillStyle = colour;
    ctx.fill(path);
  }
  ctx.strokeStyle = ink("--text");
  ctx.lineWidth = 2 * ratio;
  for (let at = 0; at < cloud.row.length; at++) {
    if (!chosen.has(cloud.row[at]!)) continue;
    ctx.beginPath();
    ctx.arc(plot.valToPos(cloud.x[at]!, "x", true), plot.valToPos(cloud.y[at]!, "y", true), radius + 3 * ratio, 0, 2 * Math.PI);
    ctx.stroke();
  }
  ctx.restore();
}

function drawLadder(plot: uPlot, ladder: LadderStep[], across: number, up: number): void {
  const { ctx } = plot, ratio = devicePixelRatio || 1;
  const at = (step: LadderStep) => [plot.valToPos(step.contrast[across]!, "x", true), plot.valToPos(step.contrast[up]!, "y", true)] as const;
  ctx.save();
  ctx.beginPath();
  ctx.rect(plot.bbox.left, plot.bbox.top, plot.bbox.width, plot.bbox.height);
  ctx.clip();
  ctx.strokeStyle = ink("--text");
  ctx.globalAlpha = 0.55;
  ctx.lineWidth = 1.3 * ratio;
  ctx.beginPath();
  ctx.moveTo(plot.valToPos(0, "x", true), plot.valToPos(0, "y", true));
  for (const step of ladder) ctx.lineTo(...at(step));
  ctx.stroke();
  for (const step of ladder) {
    const [x, y] = at(step);
    const rx = Math.abs(plot.valToPos(step.sigma[across]!, "x", true) - plot.valToPos(0, "x", true));
    const ry = Math.abs(plot.valToPos(step.sigma[up]!, "y", true) - plot.valToPos(0, "y", true));
    ctx.beginPath();
    ctx.ellipse(x, y, Math.max(2, rx), Math.max(2, ry), 0, 0, 2 * Math.PI);
    ctx.globalAlpha = 0.14;
    ctx.fillStyle = ink("--text");
    ctx.fill();
    ctx.globalAlpha = 0.7;
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.font = `600 ${12 * ratio}px system-ui, sans-serif`;
    ctx.fillStyle = ink("--text");
    ctx.strokeStyle = ink("--surface");
    ctx.lineWidth = 3 * ratio;
    ctx.strokeText(`${step.layers}`, x + 6 * ratio, y - 6 * ratio);
    ctx.fillText(`${step.layers}`, x + 6 * ratio, y - 6 * ratio);
    ctx.strokeStyle = ink("--text");
    ctx.lineWidth = 1.3 * ratio;
  }
  ctx.restore();
}

function useLasso(canvas: { current: HTMLCanvasElement | null }, plotted: { current: { plot: uPlot; cloud: Cloud } | null }) {
  useEffect(() => {
    const element = canvas.current!;
    let path: number[] = [];
    const spot = (event: PointerEvent) => {
      const box = element.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top] as const;
    };
    const places = () => {
      const { plot, cloud } = plotted.current!;
      const ratio = devicePixelRatio || 1;
      return cloud.row.map((row, at) => ({ row, x: plot.valToPos(cloud.x[at]!, "x", true) / ratio, y: plot.valToPos(cloud.y[at]!, "y", true) / ratio }));
    };
    const show = () => {
      const ratio = devicePixelRatio || 1;
      element.width = element.clientWidth * ratio;
      element.height = element.clientHeight * ratio;
      const ctx = element.getContext("2d")!;
      if (path.length < 4) return;
      ctx.scale(ratio, ratio);
      ctx.beginPath();
      for (let at = 0; at < path.length; at += 2) ctx.lineTo(path[at]!, path[at + 1]!);
      ctx.closePath();
      ctx.fillStyle = ink("--accent-soft");
      ctx.globalAlpha = 0.5;
      ctx.fill();
      ctx.globalAlpha = 1;
      ctx.strokeStyle = ink("--accent");
      ctx.lineWidth = 1.5;
      ctx.stroke();
    };
    element.onpointerdown = (event) => {
      element.setPointerCapture(event.pointerId);
      path = [...spot(event)];
    };
    element.onpointermove = (event) => {
      if (!path.length || !event.buttons) return;
      path.push(...spot(event));
      show();
    };
    element.onwheel = (event) => {
      event.preventDefault();
      zoomPlot(plotted.current!.plot, event.offsetX, event.offsetY, event.deltaY < 0 ? 0.8 : 1.25);
    };
    element.ondblclick = () => showAll(plotted.current!.plot, plotted.current!.cloud);
    element.onpointerup = (event) => {
      const all = rows.peek();
      if (path.length > 12) select(places().filter(({ x, y }) => isInside([path], x, y)).map(({ row }) => all.key(row)), event.shiftKey);
      else {
        const [x, y] = spot(event);
        const best = places().map((place) => ({ row: place.row, away: Math.hypot(place.x - x, place.y - y) })).sort((a, b) => a.away - b.away)[0];
        if (best && best.away < 12) select([all.key(best.row)], event.shiftKey);
        else selection.value = [];
      }
      path = [];
      show();
    };
  }, []);
}

/** What the lasso holds: give it a number, look at it, or dim everything else in the pictures. */
function Chosen() {
  const number = useSignal("1");
  const list = selection.value.map(findKey).filter((row): row is number => row !== undefined);
  if (!list.length) return null;
  const others = () => {
    const inside = new Set(list);
    dimmed.value = new Set([...Array(rows.peek().count).keys()].filter((row) => !inside.has(row)));
    openRow(list[0]!);
  };
  return (
    <div class="lassoed">
      <div class="strip">{list.slice(0, 24).map((row) => <button type="button" key={row} title={nameLayers(rows.value.get(row, "layers"))} onClick={() => openRow(row)}><Sprite row={row} /></button>)}</div>
      <div class="row">
        <b>{plural(list.length, rows.value.word)}</b>
        {can("layers") && <>
          <label>are <select aria-label="Layers of the lasso" value={number.value} onChange={(event) => (number.value = event.currentTarget.value)}>{["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "thin", "thick"].map((name) => <option key={name} value={name}>{nameLayers(name)}</option>)}</select></label>
          <Button label="Set these regions" onClick={() => void setLayers(number.value, list)}>Set these</Button>
          {/^\d+$/.test(number.value) && can("known") && <Button icon="teach" label="Teach the set-up of the batch" onClick={() => void teach(Number(number.value), list.slice(0, 20))}>Teach</Button>}
        </>}
        <Button label="Show only these in the pictures" onClick={others}>Only these in pictures</Button>
      </div>
    </div>
  );
}
