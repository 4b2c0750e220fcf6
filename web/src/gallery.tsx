/** The gallery: thumbnails of all rows, best first; only those in view exist in the page. */

import { signal, useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import { thumbUrl } from "./api";
import {
  areaName, classCounts, clearFilters, filters, probabilityName, setFilter, shown, sortBy, type SortBy, statusCounts, toggle,
  toggleCompared,
} from "./choice";
import { categoryColour, layerColour } from "./colours";
import { Compare } from "./compare";
import { Button, Icon, RowName, Sprite, StatusMark } from "./pieces";
import { compared, current, go, isFlakes, openRow, progress, rows, run, select, selection } from "./state";
import { formatArea, formatCount, formatPercent, isNumber, nameLayers, plural } from "./words";

const CELL = 148, FOOT = 50, GAP = 10; // CSS pixels
const tab = signal<"rows" | "pictures">("rows");
export const comparing = signal(false);

export function Gallery() {
  const hasSprites = ["flakes", "defects", "twist"].includes(run.value?.table ?? "");
  useEffect(() => {
    if (!hasSprites) tab.value = "pictures";
  }, [hasSprites]);
  if (comparing.value && compared.value.length === 2) return <Compare onClose={() => (comparing.value = false)} />;
  return (
    <div class="gallery">
      <FilterPanel />
      <section class="results" aria-label="Results">
        <header class="bar-top">
          <div class="tabs" role="tablist">
            {hasSprites && <button type="button" role="tab" aria-selected={tab.value === "rows"} onClick={() => (tab.value = "rows")}>{isFlakes.value ? "Flakes" : "Rows"} <b>{formatCount(shown.value.length)}</b></button>}
            <button type="button" role="tab" aria-selected={tab.value === "pictures"} onClick={() => (tab.value = "pictures")}>Pictures <b>{formatCount(run.value?.items.length ?? 0)}</b></button>
          </div>
          {tab.value === "rows" && hasSprites && <SortBar />}
        </header>
        {tab.value === "rows" && hasSprites ? <RowGrid /> : <PictureGrid />}
      </section>
    </div>
  );
}

// --- filters ----------------------------------------------------------------------------------------------------------

function FilterPanel() {
  const all = rows.value, wanted = filters.value;
  const areas = areaName.value ? all.column(areaName.value).filter(isNumber) : [];
  const largest = areas.reduce((most, area) => Math.max(most, area), 1);
  // The slider of areas runs by powers, since most regions are small.
  const power = (share: number) => (share <= 0 ? 0 : largest ** share);
  const unit = areaName.value === "area_um2" ? "µm²" : "px";
  return (
    <aside class="filters" aria-label="Filters">
      <label class="search">
        <Icon name="filter" />
        <input type="search" id="filter-text" placeholder="Picture, reason, note …" aria-label="Filter by text" value={wanted.text} onInput={(event) => setFilter("text", event.currentTarget.value)} />
      </label>
      {classCounts.value.length > 0 && (
        <fieldset>
          <legend>{all.has("layers") ? "Layers" : all.has("species") ? "Species" : "Kind"}</legend>
          {classCounts.value.map(([name, count]) => (
            <label class="check" key={name}>
              <input type="checkbox" checked={wanted.classes.includes(name)} onChange={() => setFilter("classes", toggle(wanted.classes, name))} />
              <span class="chip"><i style={{ background: all.has("layers") ? layerColour(name) : categoryColour(name) }} /></span>
              {all.has("layers") ? nameLayers(name) : name}
              <b>{formatCount(count)}</b>
            </label>
          ))}
        </fieldset>
      )}
      {all.has("status") && (
        <fieldset>
          <legend>Status</legend>
          {statusCounts.value.map(([name, count]) => (
            <label class="check" key={name}>
              <input type="checkbox" checked={wanted.statuses.includes(name)} onChange={() => setFilter("statuses", toggle(wanted.statuses, name))} />
              <StatusMark status={name} />{name}<b>{formatCount(count)}</b>
            </label>
          ))}
        </fieldset>
      )}
      {probabilityName.value && (
        <label class="slider">
          <span>{probabilityName.value === "layers_p" ? "Sure of layers" : "Probability"} at least <b>{Math.round(100 * wanted.leastProbability)} %</b></span>
          <input type="range" min={0} max={99} aria-label="Least probability" value={100 * wanted.leastProbability} onInput={(event) => setFilter("leastProbability", Number(event.currentTarget.value) / 100)} />
        </label>
      )}
      {areas.length > 0 && (
        <label class="slider">
          <span>Area at least <b>{formatCount(Math.round(wanted.leastArea))} {unit}</b></span>
          <input type="range" min={0} max={1} step={0.01} aria-label="Least area" value={wanted.leastArea > 0 ? Math.log(wanted.leastArea) / Math.log(largest) : 0} onInput={(event) => setFilter("leastArea", Math.round(power(Number(event.currentTarget.value))))} />
        </label>
      )}
      {all.has("star") && (
        <label class="check">
          <input type="checkbox" checked={wanted.starred} onChange={() => setFilter("starred", !wanted.starred)} />
          <Icon name="star" />starred only
        </label>
      )}
      {(run.value?.items.length ?? 0) > 1 && (
        <label class="slider">
          <span>Picture</span>
          <select aria-label="Picture" value={wanted.item ?? ""} onChange={(event) => setFilter("item", event.currentTarget.value === "" ? null : Number(event.currentTarget.value))}>
            <option value="">all pictures</option>
            {run.value!.items.map((item) => <option key={item.index} value={item.index}>{item.name}</option>)}
          </select>
        </label>
      )}
      <Button label="Show all again" onClick={clearFilters}>Reset</Button>
    </aside>
  );
}

const SORTS: [SortBy, string][] = [
  ["interest", "Best first"],
  ["area", "Largest first"],
  ["probability", "Surest first"],
  ["layers", "Fewest layers first"],
  ["item", "By picture"],
];

function SortBar() {
  const all = rows.value;
  const offered = SORTS.filter(([name]) => (name !== "area" || areaName.value) && (name !== "layers" || all.className !== "status"));
  return (
    <div class="sortbar">
      <label>Order <select aria-label="Order" value={sortBy.value} onChange={(event) => (sortBy.value = event.currentTarget.value as SortBy)}>
        {offered.map(([name, word]) => <option key={name} value={name}>{name === "layers" && !all.has("layers") ? "By kind" : word}</option>)}
      </select></label>
      {compared.value.length > 0 && (
        <Button icon="compare" label="Compare the two marked" keys="C" disabled={compared.value.length < 2} onClick={() => (comparing.value = true)}>
          {compared.value.length < 2 ? "Mark one more" : "Compare two"}
        </Button>
      )}
    </div>
  );
}

// --- grids ------------------------------------------------------------------------------------------------------------

/** A grid of equal cells of which only those in view exist. */
function useGrid(count: number, width: number, height: number) {
  const host = useRef<HTMLDivElement>(null);
  const size = useSignal({ width: 0, height: 0, top: 0 });
  useLayoutEffect(() => {
    const element = host.current!;
    const measure = () => (size.value = { width: element.clientWidth, height: element.clientHeight, top: element.scrollTop });
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    element.addEventListener("scroll", measure, { passive: true });
    measure();
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", measure);
    };
  }, []);
  const across = Math.max(1, Math.floor((size.value.width - GAP) / (width + GAP)));
  const stretch = size.value.width ? (size.value.width - GAP) / across - GAP : width;
  const line = height + (stretch - width) + GAP;
  const first = Math.max(0, Math.floor(size.value.top / line) - 1) * across;
  const last = Math.min(count, (Math.ceil((size.value.top + size.value.height) / line) + 1) * across);
  const style = (place: number) => ({
    left: `${GAP + (place % across) * (stretch + GAP)}px`,
    top: `${GAP + Math.floor(place / across) * line}px`,
    width: `${stretch}px`,
    height: `${line - GAP}px`,
  });
  const show = (place: number) => {
    const element = host.current!;
    const top = Math.floor(place / across) * line;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + line + GAP > element.scrollTop + element.clientHeight) element.scrollTop = top + line + GAP - element.clientHeight;
  };
  return { host, across, first, last, style, show, total: Math.ceil(count / across) * line + GAP };
}

function moveBy(event: KeyboardEvent, across: number): number {
  const steps: Record<string, number> = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -1e9, End: 1e9, PageUp: -4 * across, PageDown: 4 * across };
  return steps[event.key] ?? 0;
}

function RowGrid() {
  const list = shown.value;
  const grid = useGrid(list.length, CELL, CELL + FOOT);
  const row = current.value;
  const place = row === undefined ? -1 : list.indexOf(row);
  const onKeyDown = (event: KeyboardEvent) => {
    const step = moveBy(event, grid.across);
    if (step && list.length && !event.ctrlKey && !event.metaKey) {
      const to = Math.min(list.length - 1, Math.max(0, Math.max(place, step > 0 && place < 0 ? -1 : place) + step));
      select([rows.peek().key(list[to]!)]);
      grid.show(to);
      event.preventDefault();
    } else if (event.key === "Enter" && row !== undefined) openRow(row);
  };
  if (!list.length) return <Empty />;
  return (
    <div class="grid" ref={grid.host} tabIndex={0} role="listbox" aria-label="Flakes, best first" aria-activedescendant={place >= 0 ? `cell-${row}` : ""} onKeyDown={onKeyDown}>
      <div style={{ height: `${grid.total}px` }} role="presentation">
        {list.slice(grid.first, grid.last).map((at, offset) => (
          <Cell key={rows.value.key(at)} row={at} style={grid.style(grid.first + offset)} />
        ))}
      </div>
    </div>
  );
}

function Cell({ row, style }: { row: number; style: Record<string, string> }) {
  const all = rows.value, key = all.key(row);
  const chosen = selection.value.includes(key), marked = compared.value.includes(key);
  const p = probabilityName.value ? all.get(row, probabilityName.value) : null;
  const area = formatArea(all.get(row, "area_um2"), all.get(row, "area_px"));
  return (
    <div
      id={`cell-${row}`}
      class={`cell${chosen ? " chosen" : ""}`}
      style={style}
      role="option"
      aria-selected={chosen}
      onClick={(event) => select([key], event.shiftKey || event.ctrlKey || event.metaKey)}
      onDblClick={() => openRow(row)}
      title={String(all.get(row, "reason") ?? "")}
    >
      <Sprite row={row} />
      <div class="marks-on">
        {all.get(row, "star") === true && <span class="starred" title="starred"><Icon name="star" /></span>}
        {String(all.get(row, "status")) !== "accepted" && <StatusMark status={String(all.get(row, "status"))} />}
      </div>
      <button type="button" tabIndex={-1} class={`mark${marked ? " on" : ""}`} aria-pressed={marked} title="Mark for comparison (C)" aria-label="Mark for comparison" onClick={(event) => { event.stopPropagation(); toggleCompared(key); }}>
        <Icon name="compare" />
      </button>
      <div class="foot">
        <div><RowName row={row} /><b>{formatPercent(p)}</b></div>
        <div class="soft"><span class="name">{run.value!.items[all.itemOf(row)]?.stem}</span><span>{area}</span></div>
      </div>
    </div>
  );
}

function PictureGrid() {
  const items = run.value!.items;
  const grid = useGrid(items.length, 236, 236 * 0.72 + FOOT);
  const at = useSignal(0);
  const onKeyDown = (event: KeyboardEvent) => {
    const step = moveBy(event, grid.across);
    if (step) {
      at.value = Math.min(items.length - 1, Math.max(0, at.value + step));
      grid.show(at.value);
      event.preventDefault();
    } else if (event.key === "Enter") go("picture", at.value);
  };
  return (
    <div class="grid" ref={grid.host} tabIndex={0} role="listbox" aria-label="Pictures" aria-activedescendant={`picture-${at.value}`} onKeyDown={onKeyDown}>
      <div style={{ height: `${grid.total}px` }} role="presentation">
        {items.slice(grid.first, grid.last).map((item, offset) => (
          <div key={item.index} id={`picture-${item.index}`} role="option" aria-selected={at.value === item.index} class={`cell picture${at.value === item.index ? " chosen" : ""}`} style={grid.style(grid.first + offset)} title={item.reason || item.name} onClick={() => { at.value = item.index; go("picture", item.index); }}>
            {item.status === "analysed" || item.width
              ? <img src={thumbUrl(item.index)} alt="" loading="lazy" />
              : <div class="noimage">{item.reason || item.status}</div>}
            <div class="foot">
              <div><span class="name">{item.name}</span></div>
              <div class="soft"><span>{item.status === "failed" ? "failed" : item.status === "analysed" ? plural(item.n_rows, rows.value.word) : item.status}</span><span>{item.n_frames > 1 ? plural(item.n_frames, "frame") : `${item.width} × ${item.height}`}</span></div>
            </div>
          </div>
        ))}
      </div>
    </div>
  );
}

function Empty() {
  const busy = run.value?.running;
  return (
    <div class="nothing">
      {rows.value.count
        ? <><p>No row passes these filters.</p><Button label="Show all again" onClick={clearFilters}>Reset filters</Button></>
        : <p>{busy ? `Working: ${progress.value?.done ?? 0} of ${progress.value?.total ?? run.value?.items.length} pictures are finished.` : "This run found nothing. The pictures and their reasons are under Pictures."}</p>}
    </div>
  );
}
