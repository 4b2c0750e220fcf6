"""Answers as files for other programs: one small module a format, which returns bytes and never writes.

>>> sorted(EXPORTS)[:3]
['cif', 'coco', 'csv']
>>> find_export("gds").suffix
'.gds'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from flatscope.results.answers import TABLES, ColumnTable, DefectTable, FlakeTable, MoireTable, TwistTable
from flatscope.results.table import Table

_HERE = "flatscope.results.exports"


@dataclass(frozen=True)
class Export:
    """A file format that answers can be written in.

    Parameters
    ----------
    name
        As in `flatscope export --to`.
    title
        As people call it.
    suffix
        Of its files, with the dot.
    scope
        "run": one file for all pictures of a run. "picture": one file a picture.
    tables
        The answers it can hold.
    encoder
        "module:function" of this package, loaded on first use.
    needs
        A package outside flatscope's base, or "".
    extra
        Of flatscope, which installs it.
    """

    name: str
    title: str
    suffix: str
    scope: Literal["run", "picture"]
    tables: tuple[type[Table], ...]
    encoder: str
    needs: str = ""
    extra: str = ""

    def encode(self, answer: Table | Sequence[Table]) -> bytes:
        """Turn answers into the content of a file.

        Parameters
        ----------
        answer
            The tables of a run, in its order, where the scope is "run"; one table where it is "picture".

        Returns
        -------
        Equal answers give equal bytes.

        Raises
        ------
        ImportError
            If a package is missing; the message says what to install.
        ValueError
            If the format cannot hold such a table, or there is none.
        MicrographError
            If the format is in µm and the pixel size is unknown.
        """
        tables = [answer] if isinstance(answer, Table) else list(answer)
        if not tables:
            raise ValueError(f"{self.title} needs a finished picture: the run has none")
        for table in tables:
            if not isinstance(table, self.tables):
                able = ", ".join(kind.NAME for kind in self.tables)
                raise ValueError(
                    f"{table.provenance.image}: {self.title} holds {able}, not {table.NAME}: "
                    f"use one of {', '.join(list_exports(type(table)))}"
                )
        encode = self._load()
        return encode(tables) if self.scope == "run" else encode(*tables)

    def _load(self) -> Callable[..., bytes]:
        module, function = self.encoder.split(":")
        try:
            return getattr(import_module(f"{_HERE}.{module}"), function)
        except ModuleNotFoundError as error:
            if not self.needs or error.name != self.needs:
                raise
            way = f"pip install 'flatscope[{self.extra}]'"
            raise ImportError(f"{self.title} needs {self.needs}: {way}", name=self.needs) from None


_POINTS_TOO = (FlakeTable, ColumnTable, DefectTable)
_PLACED = (FlakeTable, TwistTable)

EXPORTS: dict[str, Export] = {
    export.name: export
    for export in (
        Export("csv", "CSV", ".csv", "run", TABLES, "tables:encode_csv"),
        Export("parquet", "Parquet", ".parquet", "run", TABLES, "tables:encode_parquet", "pyarrow", "tables"),
        Export("json", "JSON", ".json", "run", TABLES, "tables:encode_json"),
        Export("geojson", "GeoJSON", ".geojson", "run", TABLES, "geojson:encode_geojson"),
        Export("coco", "COCO", ".coco.json", "run", _POINTS_TOO, "coco:encode_coco"),
        Export("labelme", "labelme", ".labelme.json", "picture", TABLES, "labelme:encode_labelme"),
        Export("roi", "ImageJ ROI", ".roi.zip", "picture", TABLES, "roi:encode_roi", "roifile", "exports"),
        Export("gds", "GDSII", ".gds", "picture", _PLACED, "gds:encode_gds", "gdstk", "exports"),
        Export("dxf", "DXF", ".dxf", "picture", _PLACED, "dxf:encode_dxf", "ezdxf", "exports"),
        Export("xyz", "XYZ", ".xyz", "picture", (ColumnTable, MoireTable), "structures:encode_xyz"),
        Export("cif", "CIF", ".cif", "picture", (ColumnTable, MoireTable), "structures:encode_cif"),
    )
}
"""The formats by name."""


def list_exports(kind: type[Table]) -> list[str]:
    """Names of the formats that hold answers of a kind.

    >>> "xyz" in list_exports(ColumnTable), "xyz" in list_exports(FlakeTable)
    (True, False)
    """
    return [export.name for export in EXPORTS.values() if issubclass(kind, export.tables)]


def find_export(name: str) -> Export:
    """The format of that name.

    Raises
    ------
    ValueError
        If there is none; the message lists the names.
    """
    if name not in EXPORTS:
        raise ValueError(f"no format is called {name!r}: use one of {', '.join(EXPORTS)}")
    return EXPORTS[name]
