/** Two rows beside each other, at the same scale. */

import { useEffect, useRef } from "preact/hooks";

import { shapesOf } from "./corrections";
import { Overlay } from "./overlay";
import { Button, RowName, StatusMark } from "./pieces";
import { compared, findKey, loadMarks, openRow, rows, run } from "./state";
import { Shapes } from "./shapes";
import { marks } from "./state";
import { formatArea, formatPercent, formatSigned } from "./words";
import { Viewer } from "./viewer";

export function Compare({ onClose }: { onClose: () => void }) {
  return (
    <section class="compare" aria-label="Comparison">
      <header class="bar-top"><h2>Two flakes beside each other</h2><Button icon="close" label="Back to the gallery" keys="Esc" onClick={onClose}>Close</Button></header>
      <div class="two">
        {compared.value.map((key) => <Side key={key} itemKey={key} />)}
      </div>
    </section>
  );
}

function Side({ itemKey }: { itemKey: string }) {
  const row = findKey(itemKey);
  const host = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    if (row === undefined) return;
    const index = rows.peek().itemOf(row), id = rows.peek().idOf(row);
    const overlay = new Overlay(canvas.current!);
    const viewer = new Viewer(host.current!, (to) => overlay.follow(to));
    void viewer.show(index, 0).then(() => loadMarks(index)).then(() => {
      const answer = marks.peek().get(index);
      if (!answer) return;
      // Shapes of its own: the stage keeps one picture at a time.
      const shapes = shapesOf(index) ?? new Shapes(answer, rows.peek(), index);
      overlay.set(shapes, rows.peek(), { by: rows.peek().has("layers") ? "layers" : "class", opacity: 1, bordersOnly: true, rejected: false, dimmed: null });
      const shape = shapes.get(id);
      if (shape) viewer.fit(shape.box, true);
    }).catch(() => undefined);
    return () => viewer.destroy();
  }, [itemKey]);
  if (row === undefined) return null;
  const all = rows.value;
  return (
    <article>
      <div class="stage"><div class="deep" ref={host} /><canvas class="marks" ref={canvas} /></div>
      <dl class="facts">
        <dt>What</dt><dd><RowName row={row} /> <StatusMark status={String(all.get(row, "status"))} /></dd>
        <dt>Picture</dt><dd><button type="button" class="link" onClick={() => openRow(row)}>{run.value!.items[all.itemOf(row)]?.name}</button></dd>
        <dt>Sure</dt><dd>{formatPercent(all.get(row, "layers_p"))}</dd>
        <dt>Crystal</dt><dd>{formatPercent(all.get(row, "p_flake"))}</dd>
        <dt>Area</dt><dd>{formatArea(all.get(row, "area_um2"), all.get(row, "area_px"))}</dd>
        <dt>Contrast</dt><dd class="rgb">{(["red", "green", "blue"] as const).map((name) => <span key={name}><small>{name[0]!.toUpperCase()}</small> {formatSigned(all.get(row, `contrast_${name[0]}`))}</span>)}</dd>
        <dt>Reason</dt><dd>{String(all.get(row, "reason") ?? "") || "none"}</dd>
      </dl>
    </article>
  );
}
