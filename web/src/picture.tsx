/** The picture: its tools on the left, its card on the right. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { api } from "./api";
import { Card } from "./card";
import type { MapInfo } from "./contract";
import { pending, redo, setPixelSize, undo } from "./corrections";
import { Histogram } from "./histogram";
import { LessonPanel } from "./lesson";
import { Button, Icon, Legend } from "./pieces";
import { bordersOnly, colourBy, mapShown, opacity, outlinesOn, rejectedOn } from "./look";
import { drawTime, pixelNm, placement, Stage, viewer } from "./stage";
import { can, go, isFlakes, isLight, item, itemIndex, marks, rows, run } from "./state";
import { brush, measured, newLayers, pickTool, tool, toolName, TOOLS, usable } from "./tools";
import { formatLength, formatNumber, plural } from "./words";

export function Picture() {
  const of = item.value;
  useEffect(() => {
    if (!rows.value.has("layers") && colourBy.peek() === "layers") colourBy.value = "class";
  }, []);
  if (!of) return <p class="nothing">There is no picture in this run yet.</p>;
  return (
    <div class="workspace">
      <Toolbar />
      <section class="middle" aria-label={`Picture ${of.name}`}>
        <PictureBar />
        <Stage>
          <Measure />
          <Hint />
          {of.status === "failed" && <div class="failed-note">{of.reason}</div>}
        </Stage>
      </section>
      <div class="side">
        <LessonPanel />
        <Card />
        <LookPanel />
        {!isLight.value && rows.value.has("intensity") && <Histogram key={itemIndex.value} index={itemIndex.value} />}
      </div>
    </div>
  );
}

function Toolbar() {
  const offered = TOOLS.filter((which) => usable(which) || which.needs === "");
  return (
    <div class="toolbar" role="toolbar" aria-label="Tools" aria-orientation="vertical">
      {offered.map((which) => (
        <Button key={which.name} bare icon={which.name} label={`${which.word}: ${which.hint}`} keys={which.key.toUpperCase()} pressed={toolName.value === which.name} onClick={() => pickTool(which.name)} />
      ))}
      <hr />
      <Button bare icon="undo" label="Undo" keys="Ctrl-Z" onClick={() => void undo()} />
      <Button bare icon="redo" label="Redo" keys="Ctrl-Shift-Z" onClick={() => void redo()} />
      <hr />
      <Button bare icon="fit" label="Whole picture" keys="Z" onClick={() => viewer?.home()} />
      {pending.value > 0 && <span class="busy" role="status" title="Waiting for the answer" />}
    </div>
  );
}

export function PictureBar() {
  const of = item.value!, count = run.value!.items.length;
  return (
    <header class="picture-bar">
      <Button bare icon="left" label="Previous picture" keys="A" disabled={itemIndex.value === 0} onClick={() => step(-1)} />
      <select aria-label="Picture" value={itemIndex.value} onChange={(event) => go("picture", Number(event.currentTarget.value))}>
        {run.value!.items.map((other) => <option key={other.index} value={other.index}>{other.name}</option>)}
      </select>
      <Button bare icon="right" label="Next picture" keys="D" disabled={itemIndex.value === count - 1} onClick={() => step(1)} />
      <span class="soft">{itemIndex.value + 1} of {count}</span>
      <span class="soft facts-line">{of.width} × {of.height} px{pixelNm() ? `, ${formatLength(pixelNm()!)} a pixel` : ", pixel size unknown"}, {plural(of.n_rows, rows.value.word)}</span>
      {of.notes.length > 0 && <details class="notes"><summary>{of.notes.length} {of.notes.length === 1 ? "note" : "notes"}</summary><ul>{of.notes.map((note) => <li key={note}>{note}</li>)}</ul></details>}
    </header>
  );
}

export function step(by: number): void {
  const last = (run.peek()?.items.length ?? 1) - 1;
  const to = Math.min(last, Math.max(0, itemIndex.peek() + by));
  if (to !== itemIndex.peek()) go("picture", to);
}

export function LookPanel() {
  const all = rows.value;
  const ways = ([["layers", "layer number"], ["class", all.has("species") ? "species" : "kind"], ["p_flake", "probability"], ["status", "status"]] as const)
    .filter(([name]) => (name === "layers" ? all.has("layers") : name === "class" ? !all.has("layers") : name === "status" ? all.has("status") : true));
  return (
    <section class="look" aria-label="What is drawn">
      <h3>Marks</h3>
      <div class="row wrap">
        <Button icon="outlines" label="Outlines" keys="O" pressed={outlinesOn.value} onClick={() => (outlinesOn.value = !outlinesOn.value)}>{isFlakes.value ? "Outlines" : "Marks"}</Button>
        {isFlakes.value && <Button icon="fill" label="Fill regions" keys="B" pressed={!bordersOnly.value} onClick={() => (bordersOnly.value = !bordersOnly.value)}>Fill</Button>}
        <Button icon="rejected" label="Show what was rejected" keys="J" pressed={rejectedOn.value} onClick={() => (rejectedOn.value = !rejectedOn.value)}>Rejected</Button>
      </div>
      <label class="slider"><span>Colour by</span>
        <select aria-label="Colour by" value={colourBy.value} onChange={(event) => (colourBy.value = event.currentTarget.value as typeof colourBy.value)}>
          {ways.map(([name, word]) => <option key={name} value={name}>{word}</option>)}
        </select>
      </label>
      <label class="slider"><span>Opacity <b>{Math.round(100 * opacity.value)} %</b></span>
        <input type="range" min={0} max={1} step={0.05} aria-label="Opacity of marks" value={opacity.value} onInput={(event) => (opacity.value = Number(event.currentTarget.value))} />
      </label>
      <Legend by={colourBy.value} />
      {!isLight.value && <Maps key={itemIndex.value} />}
      <p class="soft small" data-draw-ms={drawTime.value.toFixed(1)}>{marks.value.get(itemIndex.value)?.ids.length ?? 0} marks</p>
    </section>
  );
}

function Maps() {
  const list = useSignal<MapInfo[]>([]);
  const name = useSignal(""), strength = useSignal(0.7), info = useSignal<MapInfo | null>(null);
  const index = itemIndex.value;
  useEffect(() => {
    api.maps(index).then((got) => (list.value = got)).catch(() => undefined);
    return () => void (mapShown.value = null);
  }, [index]);
  useEffect(() => {
    mapShown.value = name.value ? { url: `./api/items/${index}/maps/${name.value}.png`, opacity: strength.value } : null;
    info.value = null;
    if (name.value) api.map(index, name.value).then((got) => (info.value = got)).catch(() => undefined);
  }, [name.value, strength.value]);
  if (!list.value.length) return null;
  return (
    <>
      <label class="slider"><span>Map</span>
        <select aria-label="Map over the picture" value={name.value} onChange={(event) => (name.value = event.currentTarget.value)}>
          <option value="">none</option>
          {list.value.map((map) => <option key={map.name} value={map.name}>{map.name.replaceAll("_", " ")}</option>)}
        </select>
      </label>
      {name.value && (
        <label class="slider"><span>Opacity of the map</span>
          <input type="range" min={0} max={1} step={0.05} aria-label="Opacity of the map" value={strength.value} onInput={(event) => (strength.value = Number(event.currentTarget.value))} />
        </label>
      )}
      {info.value?.low !== undefined && <div class="legend"><span class="ramp diverging" /><span class="ends"><span>{formatNumber(info.value.low)}</span><span>{formatNumber(info.value.high)} {info.value.unit}</span></span></div>}
      {info.value?.legend && <ul class="legend">{info.value.legend.map((entry) => <li key={entry.name}><span class="chip"><i style={{ background: entry.colour }} /></span>{entry.name}</li>)}</ul>}
    </>
  );
}

// --- what lies on the stage -------------------------------------------------------------------------------------------

function Hint() {
  const which = tool();
  if (which.name === "select") return null;
  const needsLayers = ["draw", "flood", "paint"].includes(which.name);
  return (
    <div class="hint" role="status">
      <Icon name={which.name} /><span>{which.hint}</span>
      {which.shape === "line" || which.shape === "closed" ? <span class="soft">Enter ends, Esc leaves</span> : <span class="soft">Esc leaves</span>}
      {needsLayers && <label>Layers <select aria-label="Layers of what is drawn" value={newLayers.value} onChange={(event) => (newLayers.value = event.currentTarget.value)}>
        {["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "thin", "thick"].map((name) => <option key={name}>{name}</option>)}
      </select></label>}
      {which.shape === "stroke" && <label>Brush <input type="range" min={1} max={80} aria-label="Radius of the brush" value={brush.value} onInput={(event) => (brush.value = Number(event.currentTarget.value))} /> {brush.value} px</label>}
    </div>
  );
}

/** The line of the ruler with its length; for the scale tool, the field that asks for it. */
function Measure() {
  const line = measured.value, to = placement.value;
  const typed = useSignal(""), all = useSignal(false);
  if (!line || !to) return null;
  const [x0, y0, x1, y1] = line as [number, number, number, number];
  const length = Math.hypot(x1 - x0, y1 - y0);
  const place = (x: number, y: number) => [to.x + (x + 0.5) * to.scale, to.y + (y + 0.5) * to.scale] as const;
  const [ax, ay] = place(x0, y0), [bx, by] = place(x1, y1);
  const nm = pixelNm();
  const save = async (event: Event) => {
    event.preventDefault();
    const um = Number(typed.value.replace(",", "."));
    if (um > 0 && (await setPixelSize(um / length, all.value))) {
      measured.value = null;
      toolName.value = "select";
    }
  };
  return (
    <>
      <svg class="measure" aria-hidden="true"><line x1={ax} y1={ay} x2={bx} y2={by} class="halo" /><line x1={ax} y1={ay} x2={bx} y2={by} /></svg>
      <div class="measured" style={{ left: `${(ax + bx) / 2}px`, top: `${(ay + by) / 2}px` }}>
        {toolName.value === "scale" && can("pixel_size") ? (
          <form onSubmit={save}>
            <label>{formatNumber(length)} px are <input ref={(field) => void field?.focus()} inputMode="decimal" size={6} aria-label="Length of the scale bar in µm" value={typed.value} onInput={(event) => (typed.value = event.currentTarget.value)} /> µm</label>
            <label class="check"><input type="checkbox" checked={all.value} onChange={() => (all.value = !all.value)} />all pictures without a pixel size</label>
            <button type="submit" class="button primary">Set</button>
          </form>
        ) : (
          <b>{formatNumber(length, 4)} px{nm ? ` = ${formatLength(length * nm)}` : ""}</b>
        )}
      </div>
    </>
  );
}
