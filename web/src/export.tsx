/** Export, figure, report, and the sentence for the methods section. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { api } from "./api";
import type { ExportFormat } from "./contract";
import { Button, Icon } from "./pieces";
import { itemIndex, rows, run, say, sayError } from "./state";

export function Export() {
  const formats = useSignal<ExportFormat[]>([]);
  const methods = useSignal("");
  useEffect(() => {
    api.exports().then((got) => (formats.value = got)).catch(sayError);
    api.methods().then((text) => (methods.value = text.replace(/^"|"$/g, ""))).catch(sayError);
  }, [rows.value.revision]);
  const copy = () => void navigator.clipboard.writeText(methods.value).then(() => say("Copied")).catch(() => say("Select the text and copy it by hand", true));
  return (
    <div class="export">
      <div class="stack">
      <section>
        <h2>For the methods section</h2>
        <blockquote id="methods">{methods.value || "…"}</blockquote>
        <Button label="Copy the text" onClick={copy}>Copy</Button>
      </section>
      <section>
        <h2>Report</h2>
        <p>One page that needs no network: best rows, tables, pictures, settings.</p>
        <a class="button" href="./api/report" target="_blank" rel="noopener">Open the report</a>
      </section>
      </div>
      <Figure />
      <section class="wide">
        <h2>Files for other programs</h2>
        <ul class="formats">
          {formats.value.map(({ format, name, note, available }) => (
            <li key={format}>
              {available === false
                ? <span class="button off"><Icon name="download" />{name}</span>
                : <a class="button" href={`./api/export/${format}`} download><Icon name="download" />{name}</a>}
              <span class="soft">{note}</span>
            </li>
          ))}
        </ul>
      </section>
    </div>
  );
}

function Figure() {
  const width = useSignal(85), kind = useSignal("png");
  const url = `./api/figure/${itemIndex.value}.${kind.value}?width_mm=${width.value}`;
  const sound = width.value >= 20 && width.value <= 400;
  return (
    <section>
      <h2>Figure</h2>
      <p>Picture with outlines, scale bar and legend.</p>
      <div class="row wrap">
        <label>Picture <select aria-label="Picture of the figure" value={itemIndex.value} onChange={(event) => (itemIndex.value = Number(event.currentTarget.value))}>{run.value!.items.map((item) => <option key={item.index} value={item.index}>{item.name}</option>)}</select></label>
        <label>Width <input type="number" min={20} max={400} value={width.value} onInput={(event) => (width.value = Number(event.currentTarget.value))} /> mm</label>
        <label>As <select aria-label="Kind of file" value={kind.value} onChange={(event) => (kind.value = event.currentTarget.value)}><option value="png">PNG</option><option value="svg">SVG</option></select></label>
        {sound ? <a class="button" href={url} download><Icon name="download" />Figure</a> : <span class="soft">from 20 to 400 mm</span>}
      </div>
      {sound && <img class="preview" src={`./api/figure/${itemIndex.value}.png?width_mm=85`} alt="Preview of the figure" loading="lazy" />}
    </section>
  );
}
