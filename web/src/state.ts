/** What the page knows: the run, its rows and marks, and what the user looks at. */

import { batch, computed, effect, signal, untracked } from "@preact/signals";

import { api, Refused } from "./api";
import { categoryColour } from "./colours";
import type { Cell, Column, Item, Job, MarksAnswer, Progress, RowsAnswer, Run, StoredEdit } from "./contract";

/** What names a row's class in each table. */
const CLASSES: Record<string, string> = {
  flakes: "layers",
  twist: "status",
  columns: "species",
  moire: "kind",
  defects: "kind",
  tracks: "kind",
};
const WORDS: Record<string, string> = {
  flakes: "region",
  twist: "crystal",
  columns: "column",
  moire: "pair",
};

/** All rows of all items, column by column. */
export class Rows {
  readonly count: number;
  readonly className: string;
  /** What a person calls a row. */
  readonly word: string;
  readonly byItem: Map<number, number[]> = new Map();
  private readonly places = new Map<string, number>();

  constructor(readonly answer: RowsAnswer, readonly table: string, readonly idName: string) {
    this.count = answer.item.length;
    this.className = CLASSES[table] ?? "status";
    this.word = WORDS[table] ?? "defect";
    const ids = answer.columns[this.idName] ?? [];
    for (let row = 0; row < this.count; row++) {
      const item = answer.item[row]!;
      const list = this.byItem.get(item);
      if (list) list.push(row);
      else this.byItem.set(item, [row]);
      const key = `${item}:${ids[row]}`;
      if (!this.places.has(key)) this.places.set(key, row);
    }
    // Classes get their colours in the order of their names, whichever view comes first.
    [...new Set(this.column(this.className).map(String))].sort().forEach(categoryColour);
  }

  get revision(): number {
    return this.answer.revision;
  }

  column(name: string): Cell[] {
    return this.answer.columns[name] ?? [];
  }

  get(row: number, name: string): Cell | undefined {
    return this.answer.columns[name]?.[row];
  }

  has(name: string): boolean {
    return name in this.answer.columns;
  }

  itemOf(row: number): number {
    return this.answer.item[row]!;
  }

  idOf(row: number): number {
    return Number(this.get(row, this.idName));
  }

  key(row: number): string {
    return `${this.itemOf(row)}:${this.idOf(row)}`;
  }

  find(item: number, id: number): number | undefined {
    return this.places.get(`${item}:${id}`);
  }

  of(item: number): number[] {
    return this.byItem.get(item) ?? [];
  }

  /** The text that names a row's class: layers, species or kind. */
  classOf(row: number): string {
    return String(this.get(row, this.className) ?? "");
  }
}

export type View = "gallery" | "picture" | "contrast" | "twist" | "movie" | "export";

export const run = signal<Run | null>(null);
export const rows = signal<Rows>(new Rows({ revision: -1, item: [], columns: {} }, "flakes", "region_id"));
export const marks = signal<ReadonlyMap<number, MarksAnswer>>(new Map());
export const view = signal<View>("gallery");
export const itemIndex = signal(0);
/** Keys "item:id" of selected rows; the last is the one whose card is open. */
export const selection = signal<readonly string[]>([]);
export const compared = signal<readonly string[]>([]);
export const progress = signal<Progress | null>(null);
export const jobs = signal<readonly Job[]>([]);
export const edits = signal<readonly StoredEdit[]>([]);
export const online = signal(true);
export const theme = signal<"auto" | "light" | "dark">(
  (localStorage.getItem("theme") as "light" | "dark" | null) ?? "auto",
);
export const frame = signal(0);
export const helpOpen = signal(false);

export const item = computed<Item | null>(() => run.value?.items[itemIndex.value] ?? null);
export const isLight = computed(() => ["flakes", "twist"].includes(run.value?.table ?? "flakes"));
export const isFlakes = computed(() => run.value?.table === "flakes");
export const columnsByName = computed(
  () => new Map<string, Column>((run.value?.columns ?? []).map((column) => [column.name, column])),
);
export const current = computed<number | undefined>(() => {
  const key = selection.value.at(-1);
  return key === undefined ? undefined : findKey(key);
});
export const can = (kind: string): boolean => run.value?.can.includes(kind) ?? false;

export function findKey(key: string): number | undefined {
  const [at, id] = key.split(":").map(Number);
  return rows.value.find(at!, id!);
}

// --- messages ---------------------------------------------------------------------------------------------------------

export interface Toast {
  id: number;
  text: string;
  bad: boolean;
}
export const toasts = signal<readonly Toast[]>([]);
let toastCount = 0;

export function say(text: string, bad = false): void {
  const toast = { id: ++toastCount, text, bad };
  toasts.value = [...toasts.value.slice(-2), toast];
  setTimeout(() => (toasts.value = toasts.value.filter((other) => other !== toast)), bad ? 9000 : 3500);
}

export function sayError(error: unknown): void {
  say(error instanceof Error ? error.message : String(error), true);
}

// --- loading ----------------------------------------------------------------------------------------------------------

const loading = new Map<number, Promise<void>>();

/** Load the marks of a picture, unless this revision of them is here. */
export function loadMarks(index: number): Promise<void> {
  const revision = rows.peek().revision;
  const had = marks.peek().get(index);
  if (had && had.revision >= revision) return Promise.resolve();
  const busy = loading.get(index);
  if (busy) return busy;
  const task = api.marks(index)
    .then((answer) => {
      marks.value = new Map(marks.peek()).set(index, answer);
    })
    .catch((error: unknown) => {
      if (!(error instanceof Refused && error.status === 404)) sayError(error);
    })
    .finally(() => loading.delete(index));
  loading.set(index, task);
  return task;
}

let refreshing: Promise<void> | null = null;
let wanted = -1;

/** Bring run, rows and the marks on display up to a revision; calls while one is under way are joined. */
export function refresh(revision = Infinity): Promise<void> {
  if (revision <= rows.peek().revision) return Promise.resolve();
  wanted = Math.max(wanted, Number.isFinite(revision) ? revision : rows.peek().revision + 1);
  refreshing ??= (async () => {
    try {
      for (let tries = 0; tries < 5; tries++) {
        const [newRun, newRows] = await Promise.all([api.run(), api.rows()]);
        const index = itemIndex.peek();
        const shown = marks.peek().has(index) ? await api.marks(index).catch(() => undefined) : undefined;
        batch(() => {
          run.value = newRun;
          rows.value = new Rows(newRows, newRun.table, newRun.row_id);
          marks.value = new Map(shown ? [[index, shown]] : []);
          selection.value = selection.peek().filter((key) => findKey(key) !== undefined);
          compared.value = compared.peek().filter((key) => findKey(key) !== undefined);
        });
        if (rows.peek().revision >= wanted || !Number.isFinite(revision)) break;
      }
      edits.value = await api.edits();
    } catch (error) {
      sayError(error);
    } finally {
      refreshing = null;
      wanted = -1;
    }
  })();
  return refreshing;
}

export async function start(): Promise<void> {
  const [newRun, newRows] = await Promise.all([api.run(), api.rows()]);
  batch(() => {
    run.value = newRun;
    rows.value = new Rows(newRows, newRun.table, newRun.row_id);
  });
  document.title = `${newRun.name ?? newRun.verb} — flatscope`;
  followEvents();
  edits.value = await api.edits();
}

function followEvents(): void {
  const source = new EventSource("./api/events", { withCredentials: true });
  const on = <T>(name: string, act: (data: T) => void) =>
    source.addEventListener(name, (event) => act(JSON.parse((event as MessageEvent<string>).data) as T));
  source.onopen = () => {
    if (!online.peek()) void refresh();
    online.value = true;
  };
  source.onerror = () => (online.value = false);
  on<Progress>("progress", (data) => (progress.value = data));
  on<{ revision: number }>("revision", (data) => void refresh(data.revision));
  on<Job>("job", (data) => {
    jobs.value = [...jobs.peek().filter((job) => job.id !== data.id), data];
  });
}

// --- going somewhere --------------------------------------------------------------------------------------------------

/** The address carries view and picture, so that "back" and a reload come back to them. */
function readAddress(): void {
  const [name, index, id] = location.hash.replace(/^#\/?/, "").split("/");
  const views: View[] = ["gallery", "picture", "contrast", "twist", "movie", "export"];
  batch(() => {
    view.value = views.find((known) => known === name) ?? "gallery";
    const asked = Number(index);
    if (index && Number.isInteger(asked) && asked >= 0) itemIndex.value = asked;
    if (id) selection.value = [`${asked}:${id}`];
  });
}

readAddress();
addEventListener("hashchange", readAddress);

export function go(to: View, index = itemIndex.peek()): void {
  const last = run.peek()?.items.length ?? 0;
  batch(() => {
    view.value = to;
    itemIndex.value = Math.min(Math.max(0, index), Math.max(0, last - 1));
    frame.value = 0;
  });
  const hash = to === "gallery" || to === "contrast" || to === "export" ? `#/${to}` : `#/${to}/${itemIndex.peek()}`;
  if (location.hash !== hash) history.pushState(null, "", hash);
}

export function select(keys: readonly string[], add = false): void {
  const base = add ? selection.peek().filter((key) => !keys.includes(key)) : [];
  selection.value = [...base, ...keys];
}

export function openRow(row: number): void {
  const all = rows.peek();
  select([all.key(row)]);
  go(run.peek()?.table === "twist" ? "twist" : "picture", all.itemOf(row));
}

effect(() => {
  const chosen = theme.value;
  if (chosen === "auto") {
    delete document.documentElement.dataset["theme"];
    localStorage.removeItem("theme");
  } else {
    document.documentElement.dataset["theme"] = chosen;
    localStorage.setItem("theme", chosen);
  }
});

effect(() => {
  // Marks of the picture on display follow the picture and the revision.
  const index = itemIndex.value;
  const shows = view.value !== "gallery" && view.value !== "export" && view.value !== "contrast";
  if (shows && rows.value.revision >= 0) untracked(() => void loadMarks(index));
});
