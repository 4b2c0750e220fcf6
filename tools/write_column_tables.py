"""Write the column tables of the docs from the columns' declarations: `python tools/write_column_tables.py`.

A page holds `<!-- columns: flakes -->` and `<!-- end -->`; what stands between them is written anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flatscope.results import EVENT_COLUMNS, TABLES, Column

DOCS = Path(__file__).parents[1] / "docs"
DECLARED = {**{kind.NAME: kind.COLUMNS for kind in TABLES}, "events": EVENT_COLUMNS}
_BLOCK = re.compile(r"<!-- columns: (\w+) -->\n(?:.*?\n)??<!-- end -->", re.DOTALL)


def fill(page: str) -> str:
    """A page with every column table as declared.

    Raises
    ------
    KeyError
        If no table has the name in a marker.
    """
    return _BLOCK.sub(lambda block: _block(block[1]), page)


def _block(name: str) -> str:
    return f"<!-- columns: {name} -->\n{draw_table(DECLARED[name])}<!-- end -->"


def draw_table(columns: Sequence[Column]) -> str:
    """Markdown of one table: a row a column."""
    rows = [("column", "unit", "meaning"), ("---", "---", "---")]
    rows += [(f"`{column.name}`", column.unit, column.meaning.replace("|", r"\|")) for column in columns]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def main() -> None:
    """Fill every page and name those that changed."""
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text("utf-8")
        if (filled := fill(page)) != page:
            path.write_text(filled, "utf-8")
            print(path.name)


if __name__ == "__main__":
    main()
