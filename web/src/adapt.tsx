/** Training on the corrections: a job with its curve, and its before and after on pictures held out. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { api } from "./api";
import type { Job, Score } from "./contract";
import { Button } from "./pieces";
import { ink, keepSize, makeAxis, uPlot } from "./plot";
import { edits, jobs, sayError, theme } from "./state";
import { plural } from "./words";

const TAUGHT = new Set(["layers", "known", "residue", "restore"]);

const scored = (score: Score | null | undefined): string =>
  score ? `${(100 * score.accuracy).toFixed(0)} % (${(100 * score.low).toFixed(0)} to ${(100 * score.high).toFixed(0)}), ${score.n} held out` : "not measured";

export function Adaptation() {
  const steps = useSignal(200), offered = useSignal(false);
  useEffect(() => {
    // A server without the extra for training has no jobs.
    api.jobs().then((got) => {
      jobs.value = got;
      offered.value = true;
    }).catch(() => undefined);
  }, []);
  if (!offered.value) return null;
  const given = edits.value.filter((line) => line.counts && TAUGHT.has(line.edit)).length;
  const job = jobs.value.at(-1);
  const busy = job?.state === "running" || job?.state === "waiting";
  const act = (what: Promise<Job>) => void what.then((got) => (jobs.value = [...jobs.peek().filter((other) => other.id !== got.id), { ...jobs.peek().find((other) => other.id === got.id), ...got }])).catch(sayError);
  return (
    <section class="adapt" aria-label="Train on corrections">
      <h3>Train on your corrections</h3>
      <p class="soft">{plural(given, "correction")} so far. Training reads colours of this camera; it is offered only if pictures held out are read better.</p>
      {!busy && (
        <div class="row">
          <label>Steps <input type="number" min={10} max={5000} step={10} value={steps.value} onInput={(event) => (steps.value = Number(event.currentTarget.value))} /></label>
          <Button label="Start the training" disabled={given < 2} onClick={() => act(api.adapt(steps.value))}>Train</Button>
        </div>
      )}
      {job && <JobView job={job} act={act} busy={busy} />}
    </section>
  );
}

function JobView({ job, busy, act }: { job: Job; busy: boolean; act: (what: Promise<Job>) => void }) {
  return (
    <div class="job" data-state={job.state}>
      {busy && <progress max={job.total ?? 1} value={job.done ?? 0} aria-label="Training" />}
      {(job.curve?.length ?? 0) > 1 && <Curve curve={job.curve!} />}
      {job.message && <p class={job.state === "failed" ? "reason rejected" : "soft"}>{job.message}</p>}
      {job.state === "done" && <dl class="facts"><dt>Before</dt><dd>{scored(job.before)}</dd><dt>After</dt><dd>{scored(job.after)}</dd></dl>}
      <div class="row">
        {busy && <Button label="Stop the training" onClick={() => act(api.stopJob(job.id))}>Stop</Button>}
        {job.state === "done" && job.usable !== false && (
          <Button primary={!job.used} label="Use the trained weights" onClick={() => act(api.useJob(job.id, !job.used))}>{job.used ? "Stop using it" : "Use from now on"}</Button>
        )}
        {job.state === "done" && job.usable === false && <p>What was there before reads the held-out pictures at least as well: it stays.</p>}
      </div>
    </div>
  );
}

function Curve({ curve }: { curve: number[][] }) {
  const host = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const steps = curve.map((point) => point[0] ?? 0), loss = curve.map((point) => point[1] ?? null);
    const plot = new uPlot(
      {
        width: host.current!.clientWidth || 280,
        height: 150,
        legend: { show: false },
        scales: { x: { time: false } },
        axes: [makeAxis("Step"), makeAxis("Loss", { size: 52 })],
        series: [{}, { stroke: () => ink("--accent"), width: 2 }],
      },
      [steps, loss] as uPlot.AlignedData,
      host.current!,
    );
    return keepSize(plot, host.current!, () => 150);
  }, [curve, theme.value]);
  return <div class="plot" ref={host} />;
}
