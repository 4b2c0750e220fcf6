"""Outlines that users corrected: regions split along a line, merged, drawn and erased, before anyone counts layers.

No pixels are looked at: a piece keeps the contrast of the region that it comes from, merged regions have the mean
contrast of their areas, and so has a drawn region of what it covers, the substrate counting as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.optical.evidence import Evidence
from flatscope.optical.regions import Measured, Regions, number_flakes
from flatscope.results.marks import trace_outlines
from flatscope.runs.edits import Line, Merge, Outline, Place, SetLayers, Split

Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]
Corners = Sequence[tuple[float, float]]

_SURE = Evidence(*np.array([[1.0], [0.0], [0.0], [np.nan], [1.0]]))
"""Of a region that somebody drew where nothing was seen."""

_LEAST_PAINTED_PX = 12
"""Fewer painted pixels are a slip of the brush."""


def find_region(regions: Regions, place: Place) -> int:
    """Label of the region at a place; 0 for the substrate and outside."""
    return _label_at(regions.labels, place.row_px, place.col_px, regions.factor)


def name_drawn(line: Outline) -> SetLayers:
    """The layer number of a drawn region, as a correction of a place within it."""
    inside = shapely.Polygon([(col, row) for row, col in line.corners]).buffer(0).representative_point()
    place = {"row_px": max(inside.y, 0.0), "col_px": max(inside.x, 0.0)}
    return SetLayers(image=line.image, sha256=line.sha256, layers=line.layers, **place)


def find_deepest(mask: Mask) -> tuple[int, int]:
    """Row and column of the pixel that lies farthest from the border of a patch."""
    rows, cols = np.nonzero(mask)
    top, left = rows.min(), cols.min()
    depth = ndimage.distance_transform_edt(np.pad(mask[top : rows.max() + 1, left : cols.max() + 1], 1))
    row, col = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(top + row - 1), int(left + col - 1)


def trace_corners(mask: Mask) -> list[tuple[tuple[float, float], ...]]:
    """Corners of an outline, as rows and columns, around each patch of pixels that a hand would paint."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    patches = np.flatnonzero(sizes >= _LEAST_PAINTED_PX) + 1
    outlines = trace_outlines(labels, patches)
    rings = [shapely.get_exterior_ring(shapely.get_geometry(one, 0)) for one in outlines.values()]
    return [tuple((max(y, 0.0), max(x, 0.0)) for x, y in ring.simplify(0.25).coords[:-1]) for ring in rings]


def reshape(regions: Regions, lines: Sequence[Line]) -> Regions:
    """Regions as users split, merged, drew and erased them.

    Parameters
    ----------
    regions
        As the picture shows them.
    lines
        Corrections of its picture, in their order; other kinds are left out.

    Returns
    -------
    Regions with new numbers where some vanished; its notes say which corrections could not be done.
    """
    made = [line for line in lines if isinstance(line, Split | Merge | Outline)]
    if not made:
        return regions
    notes: list[str] = []
    for line in made:
        if regions.sha256 != (line.sha256 or regions.sha256):
            notes.append(f"{line.edit}: the picture has changed since, the correction does not count")
            continue
        match line:
            case Split():
                changed = _split(regions, line)
            case Merge():
                changed = _merge(regions, line)
            case Outline():
                changed = _draw(regions, line)
        if isinstance(changed, str):
            notes.append(changed)
        else:
            regions = changed
    return replace(regions, notes=(*regions.notes, *notes))


# --- the three kinds --------------------------------------------------------------------------------------------------


def _split(regions: Regions, line: Split) -> Regions | str:
    label = find_region(regions, line)
    if not label:
        return f"{line.describe()}: no region is there to split"
    labels = regions.labels.copy()
    box = ndimage.find_objects(labels, label)[label - 1]
    own = labels[box] == label
    cut = _trace_line(line.line, regions.factor, labels.shape)[box] & own
    # A line of pixels that touch at corners keeps apart what touches along sides.
    pieces, count = ndimage.label(own & ~cut)
    if count < 2:
        return f"{line.describe()}: the line does not divide the region"
    nearest = ndimage.distance_transform_edt(pieces == 0, return_distances=False, return_indices=True)
    pieces = np.where(own, pieces[tuple(nearest)], 0)
    first = len(regions)
    labels[box][pieces > 1] = first + pieces[pieces > 1] - 1
    return _measure_again(regions, labels, [*range(first), *[label - 1] * (count - 1)])


def _merge(regions: Regions, line: Merge) -> Regions | str:
    places = [(line.row_px, line.col_px), *line.others]
    found = {_label_at(regions.labels, *place, regions.factor) for place in places} - {0}
    if len(found) < 2:
        return f"{line.describe()}: fewer than two regions are there to merge"
    kept, *others = sorted(found)
    labels = regions.labels.copy()
    labels[np.isin(labels, others)] = kept
    return _measure_again(regions, labels, list(range(len(regions))))


def _draw(regions: Regions, line: Outline) -> Regions | str:
    inside = _fill(line.corners, regions.factor, regions.labels.shape)
    if not inside.any():
        return f"outline: encloses no pixel of {line.image}"
    labels = regions.labels.copy()
    if not line.layers:
        labels[inside] = 0
        return _measure_again(regions, labels, list(range(len(regions))))
    below = np.bincount(labels[inside], minlength=len(regions) + 1)
    labels[inside] = len(regions) + 1
    main = int(below[1:].argmax()) if below[1:].any() else -1
    return _measure_again(regions, labels, [*range(len(regions)), main])


# --- what is known of the new regions ---------------------------------------------------------------------------------


def _measure_again(regions: Regions, labels: Labels, parents: list[int]) -> Regions:
    """The regions under other labels.

    Parameters
    ----------
    labels
        Up to one more than `parents`; labels without a pixel vanish.
    parents
        For each label the row of the region that it is like; -1 for none.
    """
    area = np.bincount(labels.ravel(), minlength=len(parents) + 1)[1:]
    there = area > 0
    lookup = np.concatenate([[0], np.where(there, np.cumsum(there), 0)]).astype(np.int32)
    labels, parent = lookup[labels], np.array(parents, int)[there]
    count, orphan = len(parent), parent < 0

    def inherit(values: NDArray[Any], fresh: Any) -> NDArray[Any]:
        if not len(values):
            return np.array([fresh] * count, values.dtype)
        return np.where(orphan.reshape(-1, *[1] * (values.ndim - 1)), fresh, values[parent]).astype(
            values.dtype
        )

    evidence = {
        part.name: inherit(getattr(regions.evidence, part.name), getattr(_SURE, part.name)[0])
        for part in fields(Evidence)
    }
    nothing = np.zeros(3)
    return replace(
        regions,
        labels=labels,
        measured=_place(regions, labels, area[there].astype(float), inherit),
        evidence=Evidence(**evidence),
        foreign=inherit(regions.foreign, False),
        metal=inherit(regions.metal, False),
        beside_metal=inherit(regions.beside_metal, False),
        saturated=inherit(regions.saturated, nothing > 0),
        flake_id=number_flakes(labels, count),
    )


def _place(regions: Regions, labels: Labels, area: NDArray[np.float64], inherit: Any) -> Measured:
    """Areas and places of the labels, and the mean contrast of the regions that they cover."""
    old = regions.measured
    count = len(area)
    known = np.vstack([np.zeros(3), old.contrast])[regions.labels.ravel()]
    sums = [np.bincount(labels.ravel(), channel, minlength=count + 1)[1:] for channel in known.T]
    contrast = np.array(sums).T / area[:, None]
    found = ndimage.find_objects(labels)
    boxes = [(down.start, across.start, down.stop - 1, across.stop - 1) for down, across in found]
    centre = ndimage.center_of_mass(labels > 0, labels, np.arange(1, count + 1))
    spread = inherit(old.spread, regions.noise)
    inside = np.minimum(inherit(old.inside_px, np.inf), area)
    return Measured(
        area, np.array(centre).reshape(-1, 2), contrast, spread, inside, np.array(boxes).reshape(-1, 4)
    )


# --- pixels -----------------------------------------------------------------------------------------------------------


def _label_at(labels: Labels, row_px: float, col_px: float, factor: int) -> int:
    row, col = round(row_px) // factor, round(col_px) // factor
    rows, cols = labels.shape
    return int(labels[row, col]) if row < rows and col < cols else 0


def _to_working(corners: Corners, factor: int) -> NDArray[np.float64]:
    """Corners in pixels of the working picture, shape (corners, 2)."""
    return (np.array(corners, float) + 0.5) / factor - 0.5


def _fill(corners: Corners, factor: int, shape: tuple[int, ...]) -> Mask:
    from skimage.draw import polygon2mask  # imported late, as few runs have corrections

    return np.asarray(polygon2mask(shape, _to_working(corners, factor)), bool)


def _trace_line(corners: Corners, factor: int, shape: tuple[int, ...]) -> Mask:
    """Pixels of a line through the corners, drawn on a little at both ends, since hands stop short of the border."""
    from skimage.draw import line as trace

    points = _to_working(corners, factor)
    reach = 0.03 * max(shape)
    for end, before in ((0, 1), (-1, -2)):
        along = points[end] - points[before]
        points[end] += reach * along / max(float(np.hypot(*along)), 1e-9)
    whole = np.zeros(shape, bool)
    for (row, col), (to_row, to_col) in zip(
        points.round().astype(int), points[1:].round().astype(int), strict=False
    ):
        rows, cols = trace(row, col, to_row, to_col)
        kept = (rows >= 0) & (cols >= 0) & (rows < shape[0]) & (cols < shape[1])
        whole[rows[kept], cols[kept]] = True
    return whole
