/** The workbench: one page over one run. */

import "uplot/dist/uPlot.min.css";
import "./style.css";

import { useSignal } from "@preact/signals";
import { render } from "preact";

import { Contrast } from "./contrast";
import { Export } from "./export";
import { Gallery } from "./gallery";
import { Help } from "./help";
import { onKey, views } from "./keys";
import { Movie } from "./movie";
import { Picture } from "./picture";
import { Button } from "./pieces";
import { go, helpOpen, online, progress, run, say, start, theme, toasts, view, type View } from "./state";
import { Twist } from "./twist";
import { formatTime } from "./words";

const NAMES: Record<View, string> = {
  gallery: "Gallery",
  picture: "Picture",
  contrast: "Contrast",
  twist: "Twist",
  movie: "Movie",
  export: "Export",
};
const VIEWS: Record<View, () => preact.JSX.Element> = {
  gallery: Gallery,
  picture: Picture,
  contrast: Contrast,
  twist: Twist,
  movie: Movie,
  export: Export,
};
const THEMES = ["auto", "light", "dark"] as const;

function Header() {
  const of = run.value!;
  const now = THEMES.indexOf(theme.value);
  return (
    <header class="top">
      <div class="brand"><svg viewBox="0 0 16 16" aria-hidden="true"><path d="M8 1.500 14.500 13h-13z" fill="#56b4e9" /><path d="M8 6.300l3.200 5.500H4.800z" fill="#f0e442" /></svg><b>flatscope</b></div>
      <span class="run-name" title={`flatscope ${of.flatscope}, ${of.verb}`}>{of.name ?? of.verb}<small>{of.verb}{of.material ? `, ${of.material}` : ""}</small></span>
      <nav aria-label="Views">
        {views().map((name, place) => <button type="button" key={name} aria-current={view.value === name ? "page" : undefined} title={`${NAMES[name]} (Alt-${place + 1})`} onClick={() => go(name)}>{NAMES[name]}</button>)}
      </nav>
      <Running />
      <Button bare icon={["auto", "sun", "moon"][now]!} label={`Theme: ${theme.value}`} onClick={() => (theme.value = THEMES[(now + 1) % 3]!)} />
      <Button bare icon="help" label="Keys" keys="?" onClick={() => (helpOpen.value = true)} />
    </header>
  );
}

function Running() {
  const now = progress.value;
  if (!online.value) return <span class="running bad" role="status">connection lost, trying again</span>;
  if (!now || !run.value?.running || now.done >= now.total) return null;
  return (
    <span class="running" role="status">
      <progress max={now.total} value={now.done} aria-label={now.stage} />
      {now.done} of {now.total}{now.failed ? `, ${now.failed} failed` : ""}{now.left_s ? `, ${formatTime(now.left_s)} left` : ""}
    </span>
  );
}

function Toasts() {
  return <div class="toasts" role="status" aria-live="polite">{toasts.value.map((toast) => <p key={toast.id} class={toast.bad ? "bad" : ""}>{toast.text}</p>)}</div>;
}

function App() {
  const failure = useSignal("");
  if (!run.value) {
    if (!begun) {
      begun = true;
      start().catch((error: unknown) => (failure.value = error instanceof Error ? error.message : String(error)));
    }
    return <p class="nothing" role="status">{failure.value || "Opening the run …"}</p>;
  }
  const Shown = VIEWS[views().includes(view.value) ? view.value : "gallery"];
  return (
    <>
      <Header />
      {run.value.trouble && <p class="trouble" role="status">{run.value.trouble}</p>}
      <main><Shown /></main>
      <Toasts />
      <Help />
    </>
  );
}

let begun = false;
addEventListener("keydown", onKey);
addEventListener("unhandledrejection", (event) => say(String((event.reason as Error)?.message ?? event.reason), true));
render(<App />, document.getElementById("app")!);
