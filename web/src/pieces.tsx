/** Small pieces that several views share. */

import type { ComponentChildren } from "preact";

import { spriteUrl } from "./api";
import type { Cell } from "./contract";
import { categoryColour, LAYER_COLOURS, layerColour, REJECTED_COLOUR } from "./colours";
import { rows } from "./state";
import { formatPercent, isNumber, nameLayers } from "./words";

const ICONS: Record<string, string> = {
  select: "M4 2l9 6-4 .8L11 14l-2 .8-2-5L4 12z",
  lasso: "M8 3c3.3 0 5.5 1.6 5.5 3.6S11.300 10.200 8 10.200 2.500 8.700 2.500 6.600 4.700 3 8 3zM5 9.800c-.8 1-.4 2 .4 2.200s1.300 1 .6 2",
  split: "M2 4h4v8H2zM10 4h4v8h-4zM8 1v3M8 6.500v3M8 12v3",
  merge: "M2 4h7v7H2zM7 6h7v7H7z",
  paint: "M13.500 2.500L7 9M6.500 9c-2 0-2 1.500-2.300 3-.2.9-1 1.300-1.700 1.300 2.500 1 6 .3 6-2.300 0-1.200-.9-2-2-2z",
  erase: "M6 13h7.500M3 10l6.500-6.500 3.500 3.500L7 13H5.500z",
  draw: "M3 5l4-2.500 6 2.500-1 6-6 2-4-3.500zM3 5h.01M7 2.500h.01M13 5h.01",
  flood: "M8 2l5 5-5 5-5-5zM3.500 7h9M13.500 10c.8 1.200 1 1.700 1 2.200a1 1 0 01-2 0c0-.5.200-1 1-2.200z",
  ruler: "M1.500 10.500l9-9 4 4-9 9zM5 7l1.500 1.500M7.500 4.500L9 6M3 9.500L4 10.500",
  scale: "M2 5v6M14 5v6M2 8h12",
  outlines: "M3 4l5-2 5 3v6l-4 3-6-2z",
  fill: "M3 4l5-2 5 3v6l-4 3-6-2zM5 5l6 7M8.500 4l4 4.500M4 8.500l3.500 4",
  rejected: "M3.500 3.500l9 9M12.500 3.500l-9 9",
  undo: "M5 3L2 6l3 3M2 6h7a4 4 0 010 8H6",
  redo: "M11 3l3 3-3 3M14 6H7a4 4 0 000 8h3",
  left: "M10 3L5 8l5 5",
  right: "M6 3l5 5-5 5",
  star: "M8 1.800l1.900 4 4.300.5-3.200 3 .9 4.300L8 11.400l-3.900 2.200.9-4.300-3.200-3 4.300-.5z",
  sun: "M8 5a3 3 0 100 6 3 3 0 000-6zM8 1v1.500M8 13.500V15M1 8h1.500M13.500 8H15M3 3l1 1M12 12l1 1M3 13l1-1M12 4l1-1",
  moon: "M13.500 9.500A6 6 0 016.500 2.500a6 6 0 107 7z",
  auto: "M8 2a6 6 0 100 12A6 6 0 008 2zM8 2v12",
  help: "M5.500 6a2.500 2.500 0 115 0c0 1.700-2.500 1.800-2.500 3.700M8 12.500h.01",
  play: "M5 3l8 5-8 5z",
  pause: "M5 3v10M11 3v10",
  fit: "M2 5V2h3M11 2h3v3M14 11v3h-3M5 14H2v-3",
  close: "M4 4l8 8M12 4l-8 8",
  filter: "M2 3h12l-4.500 5.500V13l-3-1.500v-3z",
  compare: "M2 3h5v10H2zM9 3h5v10H9z",
  download: "M8 2v8M4.500 7L8 10.500 11.500 7M2.500 13.500h11",
  teach: "M1.500 6L8 3l6.500 3L8 9zM4 7.500V11c2 1.700 6 1.700 8 0V7.500",
};

export function Icon({ name }: { name: string }) {
  return (
    <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
      <path d={ICONS[name] ?? ""} />
    </svg>
  );
}

export interface ButtonProps {
  icon?: string;
  label: string;
  keys?: string;
  pressed?: boolean;
  disabled?: boolean;
  bare?: boolean;
  primary?: boolean;
  onClick: () => void;
  children?: ComponentChildren;
}

/** A button that says its key. */
export function Button({ icon, label, keys, pressed, disabled, bare, primary, onClick, children }: ButtonProps) {
  return (
    <button
      type="button"
      class={`button${bare ? " bare" : ""}${primary ? " primary" : ""}`}
      title={keys ? `${label} (${keys})` : label}
      aria-label={label}
      {...(pressed === undefined ? {} : { "aria-pressed": pressed })}
      disabled={disabled ?? false}
      onClick={onClick}
    >
      {icon && <Icon name={icon} />}
      {children}
    </button>
  );
}

/** Chips in the colours of the overlay beside the words, so that colour never stands alone. */
export function Layers({ layers, status }: { layers: Cell | undefined; status: Cell | undefined }) {
  const parts = String(layers ?? "").split("|").filter(Boolean);
  const colours = status === "rejected" || !parts.length ? [REJECTED_COLOUR] : parts.map((part) => layerColour(part));
  return (
    <span class="layers">
      <span class={`chip${status === "rejected" ? " dashed" : ""}`}>
        {colours.map((colour) => <i style={{ background: colour }} />)}
      </span>
      {nameLayers(layers)}
    </span>
  );
}

export function ClassChip({ name }: { name: string }) {
  return <span class="layers"><span class="chip round"><i style={{ background: categoryColour(name) }} /></span>{name}</span>;
}

/** What a row is, in its colours. */
export function RowName({ row }: { row: number }) {
  const all = rows.value;
  if (all.has("layers")) return <Layers layers={all.get(row, "layers")} status={all.get(row, "status")} />;
  if (all.table === "twist") {
    const angle = all.get(row, "twist_deg"), sigma = all.get(row, "sigma_deg");
    const folded = all.get(row, "twist_fold30_deg");
    if (!isNumber(angle) && isNumber(folded)) return <span class="layers">{folded.toFixed(1)}° or {(60 - folded).toFixed(1)}°</span>;
    return <span class="layers">{isNumber(angle) ? `${angle.toFixed(1)}° ± ${isNumber(sigma) ? sigma.toFixed(1) : "?"}°` : "no angle"}</span>;
  }
  return <ClassChip name={all.classOf(row)} />;
}

const STATUS_SIGNS: Record<string, string> = { accepted: "M3 8.500l3.500 3.500L13 4.500", uncertain: "M5.500 6a2.500 2.500 0 115 0c0 1.700-2.500 1.800-2.500 3.700M8 12.500h.01", rejected: "M4 4l8 8M12 4l-8 8", failed: "M8 3v6.500M8 12.500h.01" };

export function StatusMark({ status }: { status: string }) {
  return (
    <span class={`status ${status}`} title={status}>
      <svg class="icon" viewBox="0 0 16 16" role="img" aria-label={status}>
        <path d={STATUS_SIGNS[status] ?? ""} />
      </svg>
    </span>
  );
}

export function Bar({ share, colour, label }: { share: number; colour: string; label: string }) {
  return (
    <div class="bar" title={`${label}: ${formatPercent(share)}`}>
      <span>{label}</span>
      <div><i style={{ width: `${Math.max(0, Math.min(1, share)) * 100}%`, background: colour }} /></div>
      <b>{formatPercent(share)}</b>
    </div>
  );
}

const ACROSS = 8; // cells of a sheet of thumbnails

/** Thumbnail of a row, cut out of its sheet. */
export function Sprite({ row }: { row: number }) {
  const page = Math.floor(row / (ACROSS * ACROSS)), cell = row % (ACROSS * ACROSS);
  const col = cell % ACROSS, line = Math.floor(cell / ACROSS);
  const share = (at: number) => `${(100 * at) / (ACROSS - 1)}%`;
  return (
    <div
      class="sprite"
      style={{
        backgroundImage: `url(${spriteUrl(page, rows.value.revision)})`,
        backgroundSize: `${100 * ACROSS}% ${100 * ACROSS}%`,
        backgroundPosition: `${share(col)} ${share(line)}`,
      }}
    />
  );
}

export function Legend({ by }: { by: string }) {
  const all = rows.value;
  let entries: [string, string][];
  if (by === "layers") {
    const present = new Set(all.column("layers").flatMap((cell) => String(cell ?? "").split("|")));
    entries = Object.entries(LAYER_COLOURS).filter(([name]) => present.has(name)).map(([name, colour]) => [nameLayers(name), colour]);
  } else if (by === "status") {
    entries = [["accepted", "#009e73"], ["uncertain", "#e69f00"], ["rejected", "#d55e00"]];
  } else if (by === "class") {
    entries = [...new Set(all.column(all.className).map(String))].sort().slice(0, 12).map((name) => [name, categoryColour(name)]);
  } else {
    return <div class="legend"><span class="ramp" /><span class="ends"><span>0 %</span><span>100 %</span></span></div>;
  }
  return (
    <ul class="legend">
      {entries.map(([name, colour]) => (
        <li key={name}><span class="chip"><i style={{ background: colour }} /></span>{name}</li>
      ))}
    </ul>
  );
}
