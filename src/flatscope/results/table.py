"""What every answer is: rows with declared columns, one vocabulary of status, and where they came from."""

from __future__ import annotations

import html
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd

import flatscope
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, Movie, Stack
from flatscope.results.marks import Marks
from flatscope.results.view import show_answer, show_marks

STATUSES = ("accepted", "uncertain", "rejected", "failed")
"""Of a row: it counts; it counts, with a doubt that `reason` names; it was left out, for the reason that `reason`
names; or its picture could not be analysed."""

Kind = Literal["text", "number", "count", "flag"]

_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")  # OWASP, "CSV injection"


@dataclass(frozen=True)
class Column:
    """One column of a table, declared once.

    Parameters
    ----------
    name
        As in the frame and in every file; a unit is part of it (`area_um2`).
    kind
        What its cells hold: text, a number, a whole number, or a truth value.
    meaning
        What a reader should know, in one or two plain sentences.
    unit
        "px", "nm", "µm²", "°", "s", "%" or "" for a pure number.
    """

    name: str
    kind: Kind
    meaning: str
    unit: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where an answer came from: enough to repeat it.

    Parameters
    ----------
    image
        Name of the picture, series or movie, without its folder.
    image_sha256
        Digest of its file, or of its pixels for an array.
    settings
        Of the verb, as plain values.
    weights, weights_version, weights_sha256
        Of the network; empty where none was used.
    version
        Of flatscope.
    notes
        What the reader and the verb had to decide.
    timings_s
        Stage to seconds. No file holds them, so that the same answer has the same bytes.
    """

    image: str
    image_sha256: str
    settings: Mapping[str, Any]
    weights: str = ""
    weights_version: str = ""
    weights_sha256: str = ""
    version: str = ""
    notes: tuple[str, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls,
        image: Micrograph | Stack | Movie,
        settings: Any,
        *,
        network: Network | None = None,
        notes: tuple[str, ...] = (),
        timings_s: Mapping[str, float] | None = None,
    ) -> Self:
        """Record what was analysed, how, and with which network.

        Parameters
        ----------
        image
            Its notes come first.
        settings
            The verb's settings, a dataclass.
        network
            The network that was used, if any.
        notes
            What the verb had to decide.
        timings_s
            Stage to seconds.
        """
        plain = as_plain(settings)
        if "weights" in plain:
            plain["weights"] = os.path.basename(
                plain["weights"]
            )  # where the file lies is no part of an answer
        return cls(
            image=image.name,
            image_sha256=image.sha256,
            settings=plain,
            weights=network.card.name if network else "",
            weights_version=network.card.version if network else "",
            weights_sha256=network.sha256 if network else "",
            version=flatscope.__version__,
            notes=(*image.notes, *notes),
            timings_s=dict(timings_s or {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """What files hold of it: all but the timings."""
        plain = asdict(self)
        del plain["timings_s"]
        return as_plain(plain)


def as_plain(settings: Any) -> Any:
    """A dataclass or mapping as JSON holds it: tuples become lists, arrays and numpy numbers plain ones."""
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = asdict(settings)
    return json.loads(json.dumps(settings, default=_to_plain))


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


class _FrozenFrame:
    """A data frame inside a frozen dataclass: every reader gets a copy, so nobody changes the original."""

    def __init__(self, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        # Shallow: pandas copies a column when somebody writes to it.
        return getattr(instance, self._name).copy(deep=False)

    def __set__(self, instance: Any, value: pd.DataFrame) -> None:
        object.__setattr__(instance, self._name, value.copy(deep=False))


def freeze_frames(kind: type, *names: str) -> None:
    """Make data frames of a frozen dataclass unchangeable: its readers get copies."""
    for name in names:
        setattr(kind, name, _FrozenFrame(name))


@dataclass(frozen=True)
class Table:
    """The answer of a verb for one picture: rows, their marks and their provenance.

    Parameters
    ----------
    frame
        One row a thing found, with the declared columns in their order. Reading it gives a copy.
    marks
        Outlines, points or paths of the rows in the picture.
    calibration
        Pixel size, or None if unknown.
    provenance
        Picture, settings, weights, version and notes.
    preview
        A small JPEG of the picture for notebooks, or nothing.

    Raises
    ------
    ValueError
        If a declared column is missing, or a status is none of `STATUSES`.
    """

    NAME: ClassVar[str] = "table"
    COLUMNS: ClassVar[tuple[Column, ...]] = ()
    ROW_ID: ClassVar[str] = ""
    SHOWN: ClassVar[tuple[str, ...]] = ()

    frame: pd.DataFrame
    marks: Marks
    calibration: Calibration | None
    provenance: Provenance
    preview: bytes = field(default=b"", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        declared = conform(self.frame, self.COLUMNS)
        strange = sorted(set(declared.get("status", ())) - set(STATUSES))
        if strange:
            raise ValueError(f"a table of {self.NAME} with status {strange}: use {', '.join(STATUSES)}")
        object.__setattr__(self, "_frame", declared)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def accepted(self) -> pd.DataFrame:
        """The rows without a doubt."""
        return self._with_status("accepted")

    @property
    def found(self) -> pd.DataFrame:
        """The rows that count: accepted and uncertain."""
        return self._with_status("accepted", "uncertain")

    @property
    def rejected(self) -> pd.DataFrame:
        """The rows that were left out, each with its reason."""
        return self._with_status("rejected")

    def _with_status(self, *statuses: str) -> pd.DataFrame:
        frame = self.frame
        return frame[frame["status"].isin(statuses)]

    def renamed(self, image: str) -> Self:
        """The same answer under another picture name, as a run gives it where two files share one."""
        provenance = replace(self.provenance, image=image)
        return replace(self, frame=self.frame.assign(image=image), provenance=provenance)

    def to_csv(self) -> str:
        """The rows as comma-separated text, declared columns in their order, empty cells for the unknown."""
        return frame_to_csv(self.frame)

    def to_json(self) -> str:
        """Rows, columns' units and meanings, and provenance as indented JSON."""
        rows = json.loads(self.frame.to_json(orient="records", double_precision=10))
        whole = {"provenance": self.provenance.to_dict(), "columns": describe(self.COLUMNS), "rows": rows}
        return json.dumps(whole, indent=2, ensure_ascii=False)

    def to_parquet(self) -> bytes:
        """The rows as a Parquet file, provenance and units in its metadata (extra: tables).

        Raises
        ------
        ImportError
            If pyarrow is missing; the message says what to install.
        """
        return frame_to_parquet(self.frame, self.COLUMNS, self.provenance.to_dict())

    @classmethod
    def conform(cls, frame: pd.DataFrame) -> pd.DataFrame:
        """A frame with this table's columns, such as the rows of several pictures."""
        return conform(frame, cls.COLUMNS)

    def headline(self) -> str:
        """What was found, in one line."""
        return f"{len(self.found)} found, {len(self.rejected)} rejected"

    def _repr_html_(self) -> str:
        frame = self.frame
        has_status = "status" in frame.columns
        status = dict(zip(frame[self.ROW_ID], frame["status"], strict=True)) if has_status else {}
        head = f"<b>{html.escape(self.provenance.image)}</b>: {html.escape(self.headline())}"
        picture = show_marks(self.preview, self.marks, status)
        return show_answer(head, frame[list(self.SHOWN)] if self.SHOWN else frame, picture)


freeze_frames(Table, "frame")


def conform(frame: pd.DataFrame, columns: tuple[Column, ...]) -> pd.DataFrame:
    """A frame with the declared columns in their order, each of its kind.

    Raises
    ------
    ValueError
        If a declared column is missing.
    """
    missing = [column.name for column in columns if column.name not in frame.columns]
    if missing:
        raise ValueError(f"this table needs the columns {', '.join(missing)}")
    return pd.DataFrame(
        {column.name: _cast(frame[column.name], column.kind) for column in columns},
        index=pd.RangeIndex(len(frame)),
    )


def _cast(values: pd.Series, kind: Kind) -> Any:
    if values.dtype.kind not in "biuf":
        values = values.astype(object).where(values.astype(object) != "", None)
    empty = values.isna().to_numpy(bool)
    if kind == "text":
        # Plain objects: pandas' own text type differs between its versions and with pyarrow installed.
        return np.where(empty, "", values.astype(object).to_numpy()).astype(object)
    if kind == "number":
        return values.astype(float).to_numpy()
    whole: tuple[str, str] = ("int64", "Int64") if kind == "count" else ("bool", "boolean")
    if not empty.any():
        return values.to_numpy(whole[0])
    return values.astype(object).where(~empty, None).astype(whole[1]).array


def empty_frame(columns: tuple[Column, ...]) -> pd.DataFrame:
    """No rows, every declared column."""
    return conform(pd.DataFrame({column.name: [] for column in columns}), columns)


def failed_frame(columns: tuple[Column, ...], image: str, reason: str) -> pd.DataFrame:
    """The row of a picture that could not be analysed."""
    row: dict[str, Any] = {column.name: None for column in columns}
    return pd.DataFrame([row | {"image": image, "status": "failed", "reason": reason}])


def mark(frame: pd.DataFrame, where: Any, *, status: str, reason: str) -> pd.DataFrame:
    """Give rows a status and its reason, in place of those they have.

    Parameters
    ----------
    frame
        With the columns `status` and `reason`.
    where
        Shape (rows,), true where the status applies.
    status
        One of `STATUSES`.
    reason
        In words.

    Returns
    -------
    A new frame.

    Examples
    --------
    >>> frame = pd.DataFrame({"status": ["accepted", "accepted"], "reason": ["", ""]})
    >>> mark(frame, [False, True], status="uncertain", reason="near the edge")["status"].tolist()
    ['accepted', 'uncertain']
    """
    where = np.asarray(where, bool)
    return frame.assign(
        status=np.where(where, status, frame["status"].to_numpy(object)),
        reason=np.where(where, reason, frame["reason"].to_numpy(object)),
    )


def describe(columns: tuple[Column, ...]) -> dict[str, dict[str, str]]:
    """Name to kind, unit and meaning: what documentation and files say of the columns."""
    return {c.name: {"kind": c.kind, "unit": c.unit, "meaning": c.meaning} for c in columns}


def make_schema(name: str, columns: tuple[Column, ...]) -> dict[str, Any]:
    """JSON schema of the rows of a table."""
    types = {"text": "string", "number": "number", "count": "integer", "flag": "boolean"}
    properties: dict[str, Any] = {}
    for column in columns:
        said = f"{column.meaning} [{column.unit}]" if column.unit else column.meaning
        kind: Any = types[column.kind] if column.kind == "text" else [types[column.kind], "null"]
        properties[column.name] = {"type": kind, "description": said}
    if "status" in properties:
        properties["status"]["enum"] = list(STATUSES)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Rows of {name}",
        "type": "array",
        "items": {"type": "object", "properties": properties, "required": list(properties)},
    }


def frame_to_csv(frame: pd.DataFrame) -> str:
    """A frame as comma-separated text with six significant digits.

    A text that a spreadsheet would take for a formula, as the name of a picture can be, gets an apostrophe in front;
    line breaks in it become blanks.
    """
    text = io.StringIO()
    safe = frame.copy()
    for number, kind in enumerate(frame.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            safe.isetitem(number, frame.iloc[:, number].astype(object).map(_to_cell))
    safe.to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    return text.getvalue()


def _to_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    plain = " ".join(value.splitlines())
    return f"'{plain}" if plain.startswith(_FORMULA_SIGNS) else plain


def frame_to_parquet(frame: pd.DataFrame, columns: tuple[Column, ...], provenance: Any) -> bytes:
    """A frame as a Parquet file with its columns' units and its provenance in the metadata.

    Raises
    ------
    ImportError
        If pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError("Parquet needs pyarrow: pip install 'flatscope[tables]'") from None
    arrow = pyarrow.Table.from_pandas(frame, preserve_index=False)
    about = {"flatscope": json.dumps({"provenance": provenance, "columns": describe(columns)})}
    stream = io.BytesIO()
    parquet.write_table(arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **about}), stream)
    return stream.getvalue()
