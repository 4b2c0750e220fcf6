/** The twist view: outline fits over both crystals, with corners that can be dragged and an angle that follows. */

import { effect, signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { api } from "./api";
import { Card } from "./card";
import type { Place, TwistAnswer } from "./contract";
import { correct } from "./corrections";
import { PictureBar } from "./picture";
import { Button, RowName } from "./pieces";
import { placement, Stage, viewer } from "./stage";
import { can, current, item, itemIndex, rows, run, sayError, select } from "./state";
import { isNumber } from "./words";

type Which = "bottom" | "top";

const fitted = signal<TwistAnswer | null>(null);
/** Corners as the user moved them; null while they are as they were fitted. */
const moved = signal<Record<Which, Place[]> | null>(null);
const angle = signal<{ twist_deg: number | null; sigma_deg: number | null } | null>(null);

export function Twist() {
  const row = current.value;
  const index = itemIndex.value;
  useEffect(() => {
    // Without a crystal chosen in this picture, the surest one.
    const all = rows.peek();
    if (row === undefined || all.itemOf(row) !== index) {
      const first = all.of(index)[0];
      if (first !== undefined) select([all.key(first)]);
    }
  }, [index, row, rows.value.revision]);
  useEffect(() => {
    fitted.value = moved.value = angle.value = null;
    if (row === undefined || rows.peek().itemOf(row) !== index) return;
    api.twist(index, rows.peek().idOf(row)).then((answer) => {
      fitted.value = answer;
      angle.value = answer;
      frameIt(answer);
    }).catch(sayError);
  }, [row, index, rows.value.revision]);
  if (!item.value) return <p class="nothing">There is no picture in this run yet.</p>;
  return (
    <div class="workspace">
      <section class="middle" aria-label={`Twist in ${item.value.name}`}>
        <PictureBar />
        <Stage><Handles /></Stage>
      </section>
      <div class="side">
        <AnglePanel />
        <section class="look" aria-label="Crystals of this picture">
          <h3>Crystals</h3>
          <ul class="neighbours">
            {rows.value.of(index).map((other) => (
              <li key={other}><button type="button" class={`link${other === row ? " now" : ""}`} onClick={() => select([rows.peek().key(other)])}><RowName row={other} /><span class="soft">#{rows.value.idOf(other)}</span></button></li>
            ))}
          </ul>
        </section>
        <Card />
      </div>
    </div>
  );
}

/** Zoom to the crystal once the picture is open. */
function frameIt(answer: TwistAnswer): void {
  const all = [...answer.bottom.outline, ...answer.top.outline, ...answer.bottom.corners];
  if (!all.length) return;
  const ys = all.map(([row]) => row), xs = all.map(([, col]) => col);
  const box = answer.box ? { x0: answer.box[1], y0: answer.box[0], x1: answer.box[3], y1: answer.box[2] } : { x0: Math.min(...xs), y0: Math.min(...ys), x1: Math.max(...xs), y1: Math.max(...ys) };
  const stop = effect(() => {
    if (placement.value) queueMicrotask(() => { stop(); viewer?.fit(box); });
  });
}

const corners = (which: Which): Place[] => moved.value?.[which] ?? fitted.value?.[which].corners ?? [];

let asking = false;

/** Ask for the angle of moved corners; while one answer is awaited, only the latest move is kept. */
async function follow(): Promise<void> {
  const row = current.peek();
  if (asking || row === undefined) return;
  asking = true;
  try {
    let sent;
    do {
      sent = moved.peek();
      if (sent) angle.value = await api.angle(itemIndex.peek(), rows.peek().idOf(row), sent.bottom, sent.top);
    } while (moved.peek() !== sent);
  } catch (error) {
    sayError(error);
  } finally {
    asking = false;
  }
}

function move(which: Which, place: number, to: Place): void {
  const base = moved.peek() ?? { bottom: fitted.peek()!.bottom.corners, top: fitted.peek()!.top.corners };
  moved.value = { ...base, [which]: base[which].map((corner, at) => (at === place ? to : corner)) };
  void follow();
}

function Handles() {
  const to = placement.value, answer = fitted.value;
  if (!to || !answer) return null;
  const screen = ([row, col]: Place) => `${to.x + (col + 0.5) * to.scale},${to.y + (row + 0.5) * to.scale}`;
  return (
    <svg class="handles">
      {(["bottom", "top"] as const).map((which) => (
        <g key={which} class={which}>
          {answer[which].outline.length > 1 && <polygon class="fitted halo" points={answer[which].outline.map(screen).join(" ")} />}
          {answer[which].outline.length > 1 && <polygon class="fitted" points={answer[which].outline.map(screen).join(" ")} />}
          <polygon class="drawn" points={corners(which).map(screen).join(" ")} />
          {corners(which).map((corner, place) => <Handle key={place} which={which} place={place} corner={corner} />)}
        </g>
      ))}
    </svg>
  );
}

function Handle({ which, place, corner }: { which: Which; place: number; corner: Place }) {
  const to = placement.value!;
  const x = to.x + (corner[1] + 0.5) * to.scale, y = to.y + (corner[0] + 0.5) * to.scale;
  const drag = (event: PointerEvent) => {
    const circle = event.currentTarget as SVGElement;
    if (event.type === "pointerdown") circle.setPointerCapture(event.pointerId);
    else if (event.buttons) {
      const box = circle.ownerSVGElement!.getBoundingClientRect();
      const at = viewer!.toPicture(event.clientX - box.left, event.clientY - box.top);
      move(which, place, [at.y, at.x]);
    }
    event.stopPropagation();
  };
  const keys = (event: KeyboardEvent) => {
    const step = event.shiftKey ? 5 : 1;
    const by: Record<string, Place> = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] };
    const way = by[event.key];
    if (!way) return;
    move(which, place, [corner[0] + way[0], corner[1] + way[1]]);
    event.preventDefault();
    event.stopPropagation();
  };
  return <circle cx={x} cy={y} r={7} tabIndex={0} role="button" aria-label={`Corner ${place + 1} of the ${which === "bottom" ? "first" : "second"} layer; arrow keys move it`} onPointerDown={drag} onPointerMove={drag} onKeyDown={keys} />;
}

function AnglePanel() {
  const now = angle.value, row = current.value, before = fitted.value;
  const keep = () => {
    const all = rows.peek();
    const { name, sha256 } = run.peek()!.items[itemIndex.peek()]!;
    void correct("Corners kept", [{ edit: "twist", image: name, ...(sha256 ? { sha256 } : {}), row_px: Number(all.get(row!, "row_px")), col_px: Number(all.get(row!, "col_px")), bottom: corners("bottom"), top: corners("top") }]);
  };
  return (
    <section class="angle" aria-live="polite" aria-label="Twist angle">
      <p class="big">{isNumber(now?.twist_deg) ? <>{now.twist_deg.toFixed(1)}° <span>± {isNumber(now.sigma_deg) ? now.sigma_deg.toFixed(1) : "?"}°</span></> : row === undefined ? "no angle" : <RowName row={row} />}</p>
      {moved.value && isNumber(before?.twist_deg) && <p class="soft">fitted: {before.twist_deg.toFixed(1)}° ± {isNumber(before.sigma_deg) ? before.sigma_deg.toFixed(1) : "?"}°</p>}
      <ul class="legend"><li><span class="chip"><i style={{ background: "#f0e442" }} /></span>first layer</li><li><span class="chip"><i style={{ background: "#56b4e9" }} /></span>second layer</li></ul>
      {moved.value ? (
        <div class="row">
          {can("twist") && <Button primary label="Keep these corners" onClick={keep}>Keep</Button>}
          <Button label="Back to the fitted corners" onClick={() => { moved.value = null; angle.value = fitted.peek(); }}>As fitted</Button>
        </div>
      ) : <p class="soft">Drag a corner, or focus it and press the arrow keys: the angle follows.</p>}
    </section>
  );
}
