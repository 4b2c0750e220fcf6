/** The sheet of keys. */

import { useEffect, useRef } from "preact/hooks";

import { Button } from "./pieces";
import { helpOpen } from "./state";

const SHEET: [string, [string, string][]][] = [
  ["Everywhere", [
    ["?", "this sheet"], ["Ctrl-Z", "undo"], ["Ctrl-Shift-Z", "redo"], ["Esc", "leave a tool, a lesson, a selection"],
    ["A  D", "previous and next picture"], ["/", "filter by text"], ["Alt-1 … Alt-5", "views"],
  ]],
  ["Gallery", [
    ["Arrows", "from cell to cell"], ["Enter", "open in the picture"], ["C", "mark for comparison"], ["Y", "star"],
  ]],
  ["Picture", [
    ["Scroll  +  −", "zoom"], ["Drag, arrows", "move the picture"], ["Z", "whole picture"], ["Q", "zoom to the selected region"],
    [",  .", "previous and next region"], ["O", "marks on and off"], ["B", "borders only"], ["J", "rejected ones"], ["H", "next way to colour"],
  ]],
  ["Correct", [
    ["1 … 9, 0", "that many layers (0: ten)"], ["I  K", "thin, thick"], ["Delete, X", "residue: no crystal"], ["Ctrl-click", "reject the region"],
    ["R", "restore"], ["M", "merge the selected"], ["T", "teach: a known layer number"], ["N", "note"], ["Y", "star"],
  ]],
  ["Tools", [
    ["V", "select"], ["L", "lasso"], ["S", "split along a line"], ["P", "paint"], ["E", "erase"], ["W", "draw an outline"], ["F", "fill by a click"],
    ["U", "ruler"], ["G", "set the pixel size"], ["[  ]", "smaller and larger brush"],
    ["Arrows, Space, Enter", "draw by keyboard: move the cross hair, set a corner, end"],
  ]],
  ["Movie", [["Space", "play and stop"], ["Left, Right", "frame by frame"]]],
];

export function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (helpOpen.value) dialog.current?.showModal();
    else dialog.current?.close();
  }, [helpOpen.value]);
  return (
    <dialog ref={dialog} class="help" aria-label="Keys" onClose={() => (helpOpen.value = false)} onClick={(event) => { if (event.target === dialog.current) helpOpen.value = false; }}>
      <header><h2>Keys</h2><Button bare icon="close" label="Close" keys="Esc" onClick={() => (helpOpen.value = false)} /></header>
      <div class="sheet">
        {SHEET.map(([title, list]) => (
          <section key={title}>
            <h3>{title}</h3>
            <dl>{list.map(([keys, what]) => [<dt key={keys}>{keys.split(/\s{2,}/).map((key) => <kbd key={key}>{key}</kbd>)}</dt>, <dd key={what}>{what}</dd>])}</dl>
          </section>
        ))}
      </div>
    </dialog>
  );
}
