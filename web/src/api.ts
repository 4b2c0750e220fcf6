/** Requests to the one local server, each typed by the contract. */

import type {
  Cell, ContrastAnswer, EditLine, ExportFormat, HistogramAnswer, Job, MapInfo, MarksAnswer, MovieAnswer, Place,
  Preview, RowAnswer, RowsAnswer, Run, StoredEdit, Tiles, TwistAngle, TwistAnswer,
} from "./contract";

/** The server refused a request, in one line for the user. */
export class Refused extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

async function explain(answer: Response): Promise<string> {
  const text = await answer.text();
  try {
    const detail = (JSON.parse(text) as { detail?: unknown }).detail;
    if (typeof detail === "string") return detail;
    if (Array.isArray(detail)) return detail.map((part: { msg?: string }) => part.msg ?? "").join("; ");
  } catch {
    // not JSON: the text itself is the explanation
  }
  return text.slice(0, 300) || `${answer.status} ${answer.statusText}`;
}

async function ask(path: string, init?: RequestInit): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(`./api/${path}`, { credentials: "same-origin", ...init });
  } catch {
    throw new Refused(0, "The server does not answer: is flatscope open still running?");
  }
  if (!answer.ok) throw new Refused(answer.status, await explain(answer));
  return answer;
}

const get = async <T>(path: string): Promise<T> => (await ask(path)).json() as Promise<T>;

const post = async <T>(path: string, body: unknown = {}): Promise<T> =>
  (await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  })).json() as Promise<T>;

export const api = {
  run: () => get<Run>("run"),
  rows: () => get<RowsAnswer>("rows"),
  marks: (item: number) => get<MarksAnswer>(`items/${item}/marks`),
  tiles: (item: number) => get<Tiles>(`items/${item}/tiles.json`),
  row: async (item: number, id: number): Promise<RowAnswer> => {
    const answer = await get<RowAnswer & Record<string, Cell>>(`items/${item}/rows/${id}`);
    return answer.row ? answer : { ...answer, row: answer };
  },
  maps: async (item: number): Promise<MapInfo[]> => {
    const answer = await get<(string | MapInfo)[] | { maps: (string | MapInfo)[] }>(`items/${item}/maps`);
    const list = Array.isArray(answer) ? answer : answer.maps;
    return list.map((map) => (typeof map === "string" ? { name: map } : map));
  },
  map: (item: number, name: string) => get<MapInfo>(`items/${item}/maps/${name}.json`),
  contrast: () => get<ContrastAnswer>("contrast"),
  edits: () => get<StoredEdit[]>("edits"),
  edit: (lines: EditLine[]) => post<{ ids: string[]; revision: number }>("edits", { lines }),
  preview: (lines: EditLine[]) => post<Preview>("edits/preview", { lines }),
  undo: () => post<{ id: string | null; revision: number }>("undo"),
  redo: () => post<{ id: string | null; revision: number }>("redo"),
  flood: (item: number, row_px: number, col_px: number) =>
    post<{ corners: Place[] }>("flood", { item, row_px, col_px }),
  jobs: () => get<Job[]>("jobs"),
  adapt: (steps: number) => post<Job>("jobs/adapt", { steps }),
  stopJob: (id: string) => post<Job>(`jobs/${id}/stop`),
  useJob: (id: string, use: boolean) => post<Job>(`jobs/${id}/use`, { use }),
  twist: (item: number, id: number) => get<TwistAnswer>(`twist/${item}/${id}`),
  angle: (item: number, id: number, bottom: Place[], top: Place[]) =>
    post<TwistAngle>(`twist/${item}/${id}/angle`, { bottom, top }),
  movie: (item: number) => get<MovieAnswer>(`movie/${item}`),
  histogram: (item: number) => get<HistogramAnswer>(`histogram/${item}`),
  exports: () => get<ExportFormat[]>("export"),
  methods: async () => (await ask("methods")).text(),
};

export const tileUrl = (item: number, frame: number, level: number, col: number, row: number, version = "") =>
  `./api/items/${item}/tiles/${frame}/${level}/${col}_${row}.jpg${version && `?v=${version}`}`;

export const thumbUrl = (item: number) => tileUrl(item, 0, 8, 0, 0);

export const spriteUrl = (page: number, revision: number) => `./api/sprites/${page}.jpg?v=${revision}`;
