/** The card of a row: what it is, how sure that is, why, and what the user can say about it. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { api } from "./api";
import { layerColour } from "./colours";
import type { RowAnswer } from "./contract";
import { markResidue, merge, remark, restore, setKind, setLayers, setSpecies, teach } from "./corrections";
import { Bar, Button, Icon, RowName, StatusMark } from "./pieces";
import { can, columnsByName, current, findKey, isFlakes, openRow, rows, run, selection } from "./state";
import { columnWord, formatArea, formatNumber, formatPercent, formatSigned, isNumber, nameLayers, plural } from "./words";

const LAYERS = ["1", "2", "3", "4", "5", "6", "thin", "thick"];

export function Card() {
  const row = current.value;
  if (selection.value.length > 1) return <Several />;
  if (row === undefined) {
    return (
      <aside class="card empty">
        <p>Click a {rows.value.word}, or step through them with <kbd>,</kbd> and <kbd>.</kbd></p>
        <p class="soft">Shift-click selects several. <kbd>?</kbd> lists all keys.</p>
      </aside>
    );
  }
  return <RowCard key={`${rows.value.key(row)}:${rows.value.revision}`} row={row} />;
}

function Several() {
  const list = selection.value.map(findKey).filter((row): row is number => row !== undefined);
  const all = rows.value;
  const counts = new Map<string, number>();
  for (const row of list) counts.set(all.classOf(row), (counts.get(all.classOf(row)) ?? 0) + 1);
  const area = list.reduce((sum, row) => sum + Number(all.get(row, "area_um2") ?? 0), 0);
  return (
    <aside class="card" aria-label="Selected rows">
      <header><h2>{plural(list.length, rows.value.word)} selected</h2></header>
      <ul class="counts">
        {[...counts].map(([name, count]) => <li key={name}>{count} × {all.has("layers") ? nameLayers(name) : name}</li>)}
      </ul>
      {area > 0 && <p>{formatNumber(area)} µm² in all</p>}
      <Actions list={list} />
    </aside>
  );
}

function RowCard({ row }: { row: number }) {
  const all = rows.value;
  const id = all.idOf(row), item = all.itemOf(row);
  const answer = useSignal<RowAnswer | null>(null);
  useEffect(() => {
    let here = true;
    api.row(item, id).then((got) => here && (answer.value = got)).catch(() => undefined);
    return () => void (here = false);
  }, [item, id, all.revision]);
  const status = String(all.get(row, "status") ?? "");
  const reason = String(all.get(row, "reason") ?? "");
  return (
    <aside class="card" aria-label={`Row ${id}`} aria-live="polite">
      <header>
        <h2><RowName row={row} /></h2>
        {status && <StatusMark status={status} />}
        <StarButton row={row} />
      </header>
      <p class="soft">
        {isFlakes.value ? `region ${id}, flake ${formatNumber(all.get(row, "flake_id"))}` : `${rows.value.word} ${id}`} in {run.value!.items[item]?.name}
      </p>
      {reason && <p class={`reason ${status}`}>{reason}</p>}
      {isFlakes.value && <FlakeFacts row={row} />}
      {!isFlakes.value && <Facts row={row} />}
      {answer.value && <Pictures answer={answer.value} />}
      <Actions list={[row]} />
      <NoteField row={row} />
      {answer.value?.neighbours?.length ? <Neighbours item={item} answer={answer.value} /> : null}
      {isFlakes.value && <details><summary>All columns</summary><Facts row={row} /></details>}
    </aside>
  );
}

function FlakeFacts({ row }: { row: number }) {
  const all = rows.value;
  const chances = ["1", "2", "3", "4", "5", "6", "thick"]
    .map((name) => ({ name, p: all.get(row, `p_${name}`) }))
    .filter((entry): entry is { name: string; p: number } => isNumber(entry.p) && entry.p >= 0.005)
    .sort((a, b) => b.p - a.p)
    .slice(0, 4);
  const thickness = all.get(row, "thickness_nm");
  const low = all.get(row, "layers_low"), high = all.get(row, "layers_high");
  return (
    <>
      <div class="bars">
        {chances.map(({ name, p }) => <Bar key={name} label={nameLayers(name)} share={p} colour={layerColour(name)} />)}
      </div>
      <dl class="facts">
        <dt>Crystal</dt><dd>{formatPercent(all.get(row, "p_flake"))}</dd>
        <dt>Area</dt><dd>{formatArea(all.get(row, "area_um2"), all.get(row, "area_px"))}{all.get(row, "touches_edge") ? ", cut by the edge" : ""}</dd>
        {isNumber(low) && isNumber(high) && low !== high && <><dt>Layers, 95 %</dt><dd>{formatNumber(low)} to {formatNumber(high)}</dd></>}
        {isNumber(thickness) && <><dt>Thickness</dt><dd>{formatNumber(thickness)} nm ({formatNumber(all.get(row, "thickness_low_nm"))} to {formatNumber(all.get(row, "thickness_high_nm"))})</dd></>}
        <dt>Contrast</dt>
        <dd class="rgb">
          {(["red", "green", "blue"] as const).map((channel) => (
            <span key={channel}><small>{channel[0]!.toUpperCase()}</small> {formatSigned(all.get(row, `contrast_${channel[0]}`))}</span>
          ))}
        </dd>
        {isNumber(all.get(row, "oxide_nm")) && <><dt>Oxide</dt><dd>{formatNumber(all.get(row, "oxide_nm"))} ± {formatNumber(all.get(row, "oxide_sigma_nm"), 2)} nm</dd></>}
      </dl>
    </>
  );
}

const HIDDEN = new Set(["image", "status", "reason", "star", "note"]);

function Facts({ row }: { row: number }) {
  const all = rows.value;
  const names = Object.keys(all.answer.columns).filter((name) => !HIDDEN.has(name) && all.get(row, name) !== null && all.get(row, name) !== "");
  return (
    <dl class="facts">
      {names.map((name) => {
        const column = columnsByName.value.get(name);
        const value = all.get(row, name);
        return [
          <dt key={name} title={column?.meaning ?? ""}>{columnWord(name)}</dt>,
          <dd key={`${name}=`}>{isNumber(value) ? formatNumber(value, 4) : String(value)}{column?.unit ? ` ${column.unit}` : ""}</dd>,
        ];
      })}
    </dl>
  );
}

function Pictures({ answer }: { answer: RowAnswer }) {
  const pictures = ([["crop", "measured"], ["fit", "fit"], ["evidence", "evidence"]] as const)
    .map(([name, word]) => ({ src: answer[name], word }))
    .filter((picture): picture is { src: string; word: "measured" | "fit" | "evidence" } => typeof picture.src === "string" && picture.src.startsWith("data:image/"));
  if (!pictures.length) return null;
  return (
    <div class="crops">
      {pictures.map(({ src, word }) => <figure key={word}><img src={src} alt={word} /><figcaption>{word}</figcaption></figure>)}
    </div>
  );
}

function Neighbours({ item, answer }: { item: number; answer: RowAnswer }) {
  const list = answer.neighbours!.map((other) => rows.value.find(item, Number(other.id))).filter((row): row is number => row !== undefined);
  if (!list.length) return null;
  return (
    <section>
      <h3>Neighbours</h3>
      <ul class="neighbours">
        {list.slice(0, 8).map((row) => (
          <li key={row}><button type="button" class="link" onClick={() => openRow(row)}><RowName row={row} /><span class="soft">#{rows.value.idOf(row)}</span></button></li>
        ))}
      </ul>
    </section>
  );
}

// --- what the user says -----------------------------------------------------------------------------------------------

function Actions({ list }: { list: number[] }) {
  const all = rows.value;
  if (all.table === "columns" && can("species")) return <Names list={list} names={distinct("species")} word="Species" act={setSpecies} />;
  if ((all.table === "defects" || all.table === "tracks") && can("kind")) {
    return <Names list={list} names={distinct("kind")} word="Kind" act={setKind} />;
  }
  if (!can("layers")) return null;
  const now = list.length === 1 ? String(all.get(list[0]!, "layers") ?? "") : "";
  const rejected = list.every((row) => all.get(row, "status") === "rejected");
  return (
    <section class="actions">
      <h3>Correct</h3>
      <div class="layer-keys" role="group" aria-label="Layer number of this region alone">
        {LAYERS.map((name) => (
          <button type="button" key={name} class={`key${name === now ? " now" : ""}`} title={`Set to ${nameLayers(name)}${/^\d$/.test(name) ? ` (key ${name})` : ""}`} onClick={() => void setLayers(name, list)}>
            <i style={{ background: layerColour(name) }} />{name}
          </button>
        ))}
      </div>
      <div class="row">
        {rejected
          ? <Button icon="undo" label="Restore: it is a crystal" keys="R" onClick={() => void restore(list)}>Restore</Button>
          : <Button icon="rejected" label="Residue: it is no crystal" keys="Delete" onClick={() => void markResidue(list)}>Residue</Button>}
        {list.length > 1 && can("merge") && <Button icon="merge" label="Merge these regions into one" keys="M" onClick={() => void merge(list)}>Merge</Button>}
      </div>
      {can("known") && <Teach list={list} />}
    </section>
  );
}

function Teach({ list }: { list: number[] }) {
  const layers = useSignal(1);
  return (
    <div class="teach">
      <h3><Icon name="teach" />Teach</h3>
      <p class="soft">You know the number for certain? The set-up of the whole batch follows.</p>
      <div class="row">
        <label>This is <input type="number" min={1} max={10} value={layers.value} aria-label="Known layer number" onInput={(event) => (layers.value = Number(event.currentTarget.value))} /> {layers.value === 1 ? "layer" : "layers"}</label>
        <Button label="Show what would change" keys="T" disabled={!(layers.value >= 1)} onClick={() => void teach(layers.value, list)}>Show what changes</Button>
      </div>
    </div>
  );
}

function distinct(column: string): string[] {
  return [...new Set(rows.value.column(column).map(String))].filter((name) => name && name !== "null").sort();
}

function Names({ list, names, word, act }: { list: number[]; names: string[]; word: string; act: (name: string, list: number[]) => Promise<boolean> }) {
  const other = useSignal("");
  const now = list.length === 1 ? rows.value.classOf(list[0]!) : "";
  return (
    <section class="actions">
      <h3>{word}</h3>
      <div class="row wrap">
        {names.map((name, place) => (
          <button type="button" key={name} class={`key${name === now ? " now" : ""}`} title={`Key ${place + 1}`} onClick={() => void act(name, list)}>{name}</button>
        ))}
        <form class="row" onSubmit={(event) => { event.preventDefault(); if (other.value.trim()) void act(other.value.trim(), list); }}>
          <input size={7} aria-label={`Another ${word.toLowerCase()}`} placeholder="other" value={other.value} onInput={(event) => (other.value = event.currentTarget.value)} />
        </form>
      </div>
    </section>
  );
}

export const namesByKey = (): string[] => distinct(rows.peek().className);

export function StarButton({ row }: { row: number }) {
  const starred = rows.value.get(row, "star") === true;
  if (!can("remark")) return null;
  return (
    <button type="button" class={`button bare star${starred ? " on" : ""}`} aria-pressed={starred} aria-label="Star" title="Star (Y)" onClick={() => toggleStar(row)}>
      <Icon name="star" />
    </button>
  );
}

export const toggleStar = (row: number): void =>
  void remark(row, rows.peek().get(row, "star") !== true, String(rows.peek().get(row, "note") ?? ""));

function NoteField({ row }: { row: number }) {
  const had = String(rows.value.get(row, "note") ?? "");
  const text = useSignal(had);
  if (!can("remark")) return null;
  const save = () => {
    if (text.value !== had) void remark(row, rows.peek().get(row, "star") === true, text.value);
  };
  return (
    <label class="note">Note
      <textarea id="note" rows={2} maxLength={2000} value={text.value} onInput={(event) => (text.value = event.currentTarget.value)} onBlur={save} onKeyDown={(event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(); }} />
    </label>
  );
}
