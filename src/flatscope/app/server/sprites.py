"""Thumbnails of rows on sheets, so that a gallery of thousands needs few requests."""

from __future__ import annotations

import threading
from collections import OrderedDict

from PIL import Image

from flatscope.micrograph import MicrographError
from flatscope.report.figures import encode_jpeg
from flatscope.results import Table
from flatscope.runs.pictures import Pictures
from flatscope.runs.workbench import Workbench

CELL_PX = 128
"""Side of a thumbnail."""
_A_SIDE = 8
_SHEETS_KEPT = 64
_MARGIN = 1.5
"""A thumbnail shows this many times the longer side of its region …"""
_LEAST_SIDE_PX = 48.0
"""… and at least this many pixels."""
_EMPTY = (60, 60, 66)


class Sprites:
    """The sheets of thumbnails of an open run.

    Parameters
    ----------
    bench, pictures
        The run and its pictures.
    """

    def __init__(self, bench: Workbench, pictures: Pictures) -> None:
        self._bench, self._pictures = bench, pictures
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._cells: dict[tuple[str, int], Image.Image] = {}
        self._lock = threading.Lock()

    def sheet(self, page: int) -> bytes | None:
        """A sheet as JPEG, or None where there are no such rows."""
        rows = self._bench.rows()
        part = rows.iloc[page * _A_SIDE**2 : (page + 1) * _A_SIDE**2] if page >= 0 else rows.iloc[:0]
        kind = self._bench.kind
        if not len(part) or kind is None:
            return None
        key = page, self._bench.revision
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        sheet = Image.new("RGB", (_A_SIDE * CELL_PX,) * 2, _EMPTY)
        places = list(zip(part["item"].tolist(), part[kind.ROW_ID].tolist(), strict=True))
        # by item, so that each picture is opened once
        for number in sorted(range(len(places)), key=lambda number: places[number]):
            cell = self._cell(*map(int, places[number]))
            if cell is not None:
                row, col = divmod(number, _A_SIDE)
                sheet.paste(cell, (col * CELL_PX, row * CELL_PX))
        content = encode_jpeg(sheet, quality=82)
        with self._lock:
            self._kept[key] = content
            while len(self._kept) > _SHEETS_KEPT:
                self._kept.popitem(last=False)
        return content

    def _cell(self, index: int, row_id: int) -> Image.Image | None:
        entry = self._bench.entries[index]
        key = entry.answer, row_id
        if key not in self._cells:
            table = self._bench.table(index)
            try:
                made = None if table is None else self._cut(table, index, row_id)
            except MicrographError:
                return None
            if made is None:
                return None
            self._cells[key] = made
        return self._cells[key]

    def _cut(self, table: Table, index: int, row_id: int) -> Image.Image | None:
        if row_id not in table.marks:
            return None
        left, top, right, bottom = table.marks[row_id].bounds
        side = max(_MARGIN * max(right - left, bottom - top), _LEAST_SIDE_PX)
        rows, cols = table.marks.shape_px
        # A crop that reaches beyond the picture is black there; shifting it inside shows more crystal.
        x = min(max((left + right + 1 - side) / 2, 0.0), max(0.0, cols - side))
        y = min(max((top + bottom + 1 - side) / 2, 0.0), max(0.0, rows - side))
        box = (x, y, x + side, y + side)
        return self._pictures.crop(index, 0, box, CELL_PX)
