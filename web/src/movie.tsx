/** A movie: time bar, tracks up to now, events that one can jump to, and the count of defects against time. */

import { effect, signal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { api } from "./api";
import { Card } from "./card";
import { categoryColour } from "./colours";
import type { MovieAnswer, MovieEvent } from "./contract";
import { LookPanel, PictureBar } from "./picture";
import { Button } from "./pieces";
import { keepSize, makeAxis, uPlot } from "./plot";
import { colourBy } from "./look";
import { Stage, viewer } from "./stage";
import { frame, item, itemIndex, rows, select, sayError, theme } from "./state";
import { formatNumber, isNumber } from "./words";

const movie = signal<MovieAnswer | null>(null);
export const playing = signal(false);
const RATES = [2, 5, 10, 20]; // frames a second

export function stepFrame(by: number): void {
  const last = (movie.peek()?.n_frames ?? item.peek()?.n_frames ?? 1) - 1;
  frame.value = Math.min(last, Math.max(0, frame.peek() + by));
}

export function Movie() {
  const index = itemIndex.value;
  useEffect(() => {
    colourBy.value = "class";
    movie.value = null;
    api.movie(index).then((answer) => (movie.value = answer)).catch(sayError);
  }, [index, rows.value.revision]);
  useEffect(() => () => void (playing.value = false), []);
  if (!item.value) return <p class="nothing">There is no movie in this run yet.</p>;
  return (
    <div class="workspace movie">
      <section class="middle" aria-label={`Movie ${item.value.name}`}>
        <PictureBar />
        <Stage movie />
        <TimeBar />
      </section>
      <div class="side">
        <Card />
        {movie.value && <Counts movie={movie.value} />}
        {movie.value && <Events movie={movie.value} />}
        <LookPanel />
      </div>
    </div>
  );
}

function TimeBar() {
  const rate = useSignal(5);
  const count = movie.value?.n_frames ?? item.value?.n_frames ?? 1;
  const seconds = movie.value?.frame_s;
  useEffect(() => effect(() => {
    if (!playing.value) return undefined;
    const timer = setInterval(() => {
      frame.value = frame.peek() + 1 >= count ? 0 : frame.peek() + 1;
    }, 1000 / rate.value);
    return () => clearInterval(timer);
  }), [count]);
  return (
    <footer class="timebar">
      <Button bare icon={playing.value ? "pause" : "play"} label={playing.value ? "Stop" : "Play"} keys="Space" onClick={() => (playing.value = !playing.value)} />
      <input type="range" min={0} max={count - 1} value={frame.value} aria-label="Frame" onInput={(event) => (frame.value = Number(event.currentTarget.value))} />
      <output>frame {frame.value + 1} of {count}{seconds ? `, ${formatNumber(frame.value * seconds)} s` : ""}</output>
      <label>Frames a second <select aria-label="Frames a second" value={rate.value} onChange={(event) => (rate.value = Number(event.currentTarget.value))}>{RATES.map((value) => <option key={value} value={value}>{value}</option>)}</select></label>
    </footer>
  );
}

function Counts({ movie: shown }: { movie: MovieAnswer }) {
  const host = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const { kinds, by_frame } = shown.count;
    const frames = [...Array(shown.n_frames).keys()];
    const scale = shown.frame_s ?? 1;
    const plot = new uPlot(
      {
        width: host.current!.clientWidth || 280,
        height: 190,
        legend: { live: false },
        cursor: { points: { show: false } },
        scales: { x: { time: false } },
        axes: [makeAxis(shown.frame_s ? "Time (s)" : "Frame"), makeAxis("Defects", { size: 46 })],
        series: [{}, ...kinds.map((kind) => ({ label: kind, stroke: categoryColour(kind), width: 2, points: { show: false } }))],
        hooks: {
          draw: [(self) => {
            const x = self.valToPos(frame.peek() * scale, "x", true);
            self.ctx.save();
            self.ctx.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--text");
            self.ctx.lineWidth = devicePixelRatio || 1;
            self.ctx.beginPath();
            self.ctx.moveTo(x, self.bbox.top);
            self.ctx.lineTo(x, self.bbox.top + self.bbox.height);
            self.ctx.stroke();
            self.ctx.restore();
          }],
        },
      },
      [frames.map((at) => at * scale), ...by_frame] as uPlot.AlignedData,
      host.current!,
    );
    plot.over.addEventListener("click", (event) => {
      const at = plot.posToVal(event.offsetX, "x") / scale;
      frame.value = Math.min(shown.n_frames - 1, Math.max(0, Math.round(at)));
    });
    const end = keepSize(plot, host.current!, () => 190);
    const stop = effect(() => {
      void frame.value;
      plot.redraw(false);
    });
    return () => {
      stop();
      end();
    };
  }, [shown, theme.value]);
  return <section class="look" aria-label="Defects against time"><h3>Defects against time</h3><div class="plot" ref={host} /></section>;
}

function describe(event: MovieEvent): string {
  if (event.event === "transformation") return `${event.kind} becomes ${event.kind_after}`;
  if (["left", "entered"].includes(event.event)) return `${event.kind || event.kind_after} ${event.event}`;
  return `${event.event} of ${event.kind || event.kind_after || "a defect"}`;
}

function Events({ movie: shown }: { movie: MovieAnswer }) {
  const only = useSignal("");
  const kinds = [...new Set(shown.events.map((event) => event.event))].sort();
  const list = shown.events.filter((event) => !only.value || event.event === only.value);
  const jump = (event: MovieEvent) => {
    playing.value = false;
    frame.value = Math.min(shown.n_frames - 1, event.frame);
    select([`${itemIndex.peek()}:${event.track_id}`]);
    if (isNumber(event.x) && isNumber(event.y)) viewer?.fit({ x0: event.x - 15, y0: event.y - 15, x1: event.x + 15, y1: event.y + 15 });
  };
  return (
    <section class="events" aria-label="Events">
      <header><h3>Events</h3>
        <select aria-label="Kind of event" value={only.value} onChange={(event) => (only.value = event.currentTarget.value)}>
          <option value="">all {shown.events.length}</option>
          {kinds.map((kind) => <option key={kind}>{kind}</option>)}
        </select>
      </header>
      <ol>
        {list.slice(0, 400).map((event, place) => (
          <li key={place}>
            <button type="button" class={`link${event.frame === frame.value ? " now" : ""}`} onClick={() => jump(event)}>
              <b>{event.frame + 1}</b><span class="chip round"><i style={{ background: categoryColour(event.kind || event.kind_after || "") }} /></span>{describe(event)}<span class="soft">track {event.track_id}</span>
            </button>
          </li>
        ))}
      </ol>
    </section>
  );
}
