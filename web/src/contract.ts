/** What server and page say to each other, as types. */

export type Status = "accepted" | "uncertain" | "rejected" | "failed";
export type Cell = string | number | boolean | null;
export type Place = [row: number, col: number];

export interface Column {
  name: string;
  unit: string;
  meaning: string;
  kind: "text" | "number" | "count" | "flag";
}

export interface Item {
  index: number;
  name: string;
  stem: string;
  status: string;
  reason: string;
  notes: string[];
  n_rows: number;
  width: number;
  height: number;
  n_frames: number;
  um_per_px?: number | null;
  nm_per_px?: number | null;
  sha256?: string;
}

export interface Run {
  name?: string;
  verb: string;
  flatscope: string;
  complete: boolean;
  running: boolean;
  revision: number;
  settings: Record<string, unknown>;
  weights: Record<string, unknown>;
  items: Item[];
  columns: Column[];
  table: string;
  /** Column that ids of marks mean. */
  row_id: string;
  can: string[];
  /** Why corrections cannot be taken, or "". */
  trouble?: string;
  material?: string | null;
}

export interface RowsAnswer {
  revision: number;
  item: number[];
  columns: Record<string, Cell[]>;
}

export interface MarksAnswer {
  revision: number;
  shape: [rows: number, cols: number];
  kind: "outlines" | "points" | "paths";
  ids: number[];
  rings?: number[][][];
  x?: number[];
  y?: number[];
  lines?: number[][];
  classes?: string[];
}

export interface Tiles {
  width: number;
  height: number;
  tile_size: number;
  levels: number;
  n_frames: number;
  version?: string;
}

export interface RowAnswer {
  row: Record<string, Cell>;
  neighbours?: { id: number; [column: string]: Cell }[];
  crop?: string | null;
  fit?: string | null;
  evidence?: string | null;
}

/** A line of edits.jsonl without who and when. */
export interface EditLine {
  edit: string;
  [field: string]: unknown;
}

export interface StoredEdit extends EditLine {
  id: string;
  counts: boolean;
  who?: string;
  when?: string;
}

export interface Change {
  item: number;
  id: number;
  before: Record<string, Cell> | null;
  after: Record<string, Cell> | null;
}

export interface Preview {
  revision: number;
  changes: Change[];
  took_s: number;
  /** Pictures that may change too and were not looked at. */
  more?: number;
}

export interface LadderStep {
  layers: number;
  contrast: [number, number, number];
  sigma: [number, number, number];
}

export interface ContrastAnswer {
  groups: { items: number[]; ladder: LadderStep[] }[];
}

export interface Progress {
  stage: string;
  done: number;
  failed: number;
  total: number;
  rate?: number;
  left_s?: number | null;
}

export interface Score {
  accuracy: number;
  low: number;
  high: number;
  n: number;
}

export interface Job {
  id: string;
  state: "waiting" | "running" | "done" | "stopped" | "failed";
  done?: number;
  total?: number;
  curve?: number[][];
  before?: Score | null;
  after?: Score | null;
  message?: string;
  usable?: boolean;
  used?: boolean;
}

export interface Crystal {
  corners: Place[];
  outline: Place[];
  angle_deg?: number;
}

export interface TwistAnswer {
  bottom: Crystal;
  top: Crystal;
  twist_deg: number | null;
  sigma_deg: number | null;
  box?: [number, number, number, number];
}

export interface TwistAngle {
  twist_deg: number;
  sigma_deg: number;
  bottom?: { angle_deg: number };
  top?: { angle_deg: number };
}

export interface MovieEvent {
  event: string;
  track_id: number;
  frame: number;
  time_s: number | null;
  kind: string;
  kind_after: string | null;
  x: number | null;
  y: number | null;
}

export interface MovieAnswer {
  n_frames: number;
  frame_s: number | null;
  tracks: { id: number; kind: string; frames: number[]; x: number[]; y: number[] }[];
  events: MovieEvent[];
  count: { kinds: string[]; by_frame: number[][] };
}

export interface HistogramAnswer {
  classes: { name: string; sublattice?: string; values?: number[]; counts?: number[] }[];
  edges: number[];
}

export interface ExportFormat {
  format: string;
  name: string;
  note?: string;
  available?: boolean;
}

export interface MapInfo {
  name: string;
  unit?: string;
  low?: number;
  high?: number;
  legend?: { name: string; colour: string }[];
}
