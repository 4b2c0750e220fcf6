/** What a lesson would change, shown before it is taken. */

import { insist, lesson, takeLesson } from "./corrections";
import type { Change } from "./contract";
import { Button, Icon } from "./pieces";
import { openRow, rows, run } from "./state";
import { nameLayers, plural } from "./words";

const nameOf = (side: Change["before"]): string =>
  side === null ? "no region" : side["status"] === "rejected" ? "rejected" : nameLayers(side["layers"]);

export function LessonPanel() {
  const asked = lesson.value;
  if (!asked) return null;
  const { preview, doubt } = asked;
  return (
    <section class="lesson" aria-label="What this lesson changes" aria-live="polite">
      <h2><Icon name="teach" />{asked.said}</h2>
      {doubt ? <p class="reason uncertain">{doubt}</p> : !preview ? <p class="soft">Fitting the set-up again …</p> : <><Changes changes={preview.changes} took={preview.took_s} />{preview.more ? <p class="soft">{plural(preview.more, "more picture")} may change too.</p> : null}</>}
      <div class="row">
        {doubt
          ? <Button label="I know better: show what would change" onClick={() => void insist()}>I am certain</Button>
          : <Button primary label="Take the lesson" keys="Enter" disabled={!preview} onClick={() => void takeLesson()}>Take it</Button>}
        <Button label="Leave everything as it is" keys="Esc" onClick={() => (lesson.value = null)}>Leave it</Button>
      </div>
    </section>
  );
}

function Changes({ changes, took }: { changes: Change[]; took: number }) {
  const ways = new Map<string, Change[]>();
  for (const change of changes) {
    const way = `${nameOf(change.before)} → ${nameOf(change.after)}`;
    ways.set(way, [...(ways.get(way) ?? []), change]);
  }
  // Rows whose name stays but whose probability moves are counted, not listed.
  const named = [...ways].filter(([, list]) => nameOf(list[0]!.before) !== nameOf(list[0]!.after)).sort((a, b) => b[1].length - a[1].length);
  const same = changes.length - named.reduce((sum, [, list]) => sum + list.length, 0);
  const pictures = new Set(changes.map((change) => change.item)).size;
  if (!changes.length) return <p>Nothing changes: the answer says so already.</p>;
  return (
    <>
      <p>{plural(changes.length, rows.value.word)} in {plural(pictures, "picture")} would change <span class="soft">(fitted in {took.toFixed(1)} s)</span></p>
      <ul class="changes">
        {named.slice(0, 8).map(([way, list]) => (
          <li key={way}>
            <b>{list.length}</b><span>{way}</span>
            <span class="soft">{list.slice(0, 3).map((change) => {
              const row = rows.value.find(change.item, change.id);
              return row === undefined ? null : <button type="button" class="link" key={`${change.item}:${change.id}`} title={run.value!.items[change.item]?.name ?? ""} onClick={() => openRow(row)}>#{change.id}</button>;
            })}</span>
          </li>
        ))}
        {same > 0 && <li><b>{same}</b><span>same number, other probability</span></li>}
      </ul>
    </>
  );
}
