"""The run that draws data sets: focal series and scans of sheets with every kind of defect, with their truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron import focal
from flatscope.electron.drawing.appearance import Drawn, Look, change_dose, draw_one, scan_again
from flatscope.electron.drawing.noise import NoiseParams
from flatscope.electron.drawing.specimens import (
    Draw,
    draw_contents,
    draw_microscope,
    draw_noise,
    draw_optics,
    draw_scanned,
    draw_specimen,
)
from flatscope.electron.drawing.translation import TASK, check_honesty, translate
from flatscope.electron.kinds import UNKNOWN, list_defects
from flatscope.electron.physics.crystals import Sheet, find_crystal
from flatscope.electron.physics.imaging import draw_series
from flatscope.electron.physics.multislice import simulate_series
from flatscope.inference.runtime import Network
from flatscope.results.table import as_plain as plain_values
from flatscope.runs.items import Item
from flatscope.runs.task import Answer, Content, Finished, Task

_AROUND_NM = 0.1  # pixels this near to a column that was moved are nobody's


@dataclass(frozen=True)
class Order:
    """What every item of a data set has in common.

    Parameters
    ----------
    modality
        "hrtem" or "stem".
    material
        One of `flatscope.electron.physics.crystals.CRYSTALS`.
    side_px, pixel_nm
        Side of an image, and its pixel size.
    dose
        Range: electrons per Å² of a series, electrons a pixel of a scan, or times those of the image of `realism`.
    supports
        "" for a bare sheet, "graphene" for one on it; items take turns.
    seed
        Of all items.
    exact
        Multislice by abTEM in place of the fast model.
    noise
        Of scans; None draws it.
    realism
        Weights that translate scans into the appearance of one image.
    translated
        Share of images that are translated; the others have the noise fitted to that image.
    """

    modality: str
    material: str
    side_px: int
    pixel_nm: float
    dose: tuple[float, float]
    supports: tuple[str, ...]
    seed: int
    exact: bool
    noise: NoiseParams | None
    realism: Path | None
    translated: float


@dataclass(frozen=True)
class Drawing:
    """One drawn item.

    Parameters
    ----------
    images
        Shape (images, rows, cols).
    mask
        Shape (rows, cols): what stands on each pixel.
    columns, defects
        The truth, one row each.
    params
        How it was drawn.
    """

    images: NDArray[np.float32]
    mask: NDArray[np.uint8]
    columns: pd.DataFrame
    defects: pd.DataFrame
    params: dict[str, Any]


def make_task(order: Order) -> Task:
    """The task of drawing a data set."""
    return Task(
        "simulate",
        plain_values(_state(order)),
        alone=draw_item,
        conclude=state_facts,
        views=make_views,
        endings=(),
        view_names=("data.h5", "columns.csv", "defects.csv", "params.jsonl"),
        given=order,
        kinds=(Drawing,),
    )


def list_items(count: int) -> list[Item]:
    """As many items to draw; each follows from the seed and its number."""
    return [Item(f"{index:06d}", f"{index:06d}", given=index) for index in range(count)]


def _state(order: Order) -> dict[str, Any]:
    """The order as settings: of weights their digest, not where they lie."""
    stated = asdict(order)
    if order.realism is not None:
        stated["realism"] = load_translator(order.realism).sha256
    return stated


@cache
def load_translator(path: Path) -> Network:
    """The network that translates drawn images, with one thread."""
    return Network.load(path, task=TASK, threads=1)


def state_facts(item: Item, drawing: Drawing, shared: None, order: Order) -> tuple[Answer, dict[str, bytes]]:
    """Nothing is concluded of a drawn image: its part is the answer."""
    return Answer(facts={"params": drawing.params}), {}


def make_views(run: Finished) -> Iterator[tuple[str, Content]]:
    """The data set."""
    columns, defects, params = [], [], []
    for number, (_, drawing) in enumerate(run.parts()):
        columns.append(drawing.columns.assign(item=number))
        defects.append(drawing.defects.assign(item=number))
        params.append(json.dumps(drawing.params))
    yield "data.h5", partial(_write_images, run)
    yield "columns.csv", pd.concat(columns).to_csv(index=False, float_format="%.5f")
    yield "defects.csv", pd.concat(defects).to_csv(index=False, float_format="%.5f")
    yield "params.jsonl", "\n".join(params) + "\n"


def _write_images(run: Finished, path: Path) -> None:
    """Images and masks, one after the other."""
    import h5py

    order = run.task.given
    with h5py.File(path, "w") as store:
        store.attrs.update({"pixel_nm": order.pixel_nm, "material": order.material})
        for _, drawing in run.parts():
            _append(store, "images", drawing.images)
            _append(store, "masks", drawing.mask)


def _append(store: Any, name: str, values: NDArray[Any]) -> None:
    """Add one item to a data set of the store."""
    if name not in store:
        store.create_dataset(
            name,
            (0, *values.shape),
            values.dtype,
            maxshape=(None, *values.shape),
            chunks=(1, *values.shape),
            compression="lzf",
            track_times=False,
        )
    store[name].resize(len(store[name]) + 1, axis=0)
    store[name][-1] = values


def draw_item(item: Item, order: Order) -> Drawing:
    """Draw one item: it follows from the seed and its number alone."""
    index = item.given
    rng = np.random.default_rng(np.random.SeedSequence(order.seed, spawn_key=(index,)))
    if order.realism is not None:
        return _draw_realistic(rng, order, order.realism)
    shape = (order.side_px, order.side_px)
    side_nm = order.side_px * order.pixel_nm
    support = order.supports[index % len(order.supports)]
    contents = draw_contents(rng, order.material, field_nm=(side_nm, side_nm), support=support)
    params: dict[str, Any] = {"contents": asdict(contents)}
    if order.modality == "hrtem":
        optics = draw_optics(rng, pixel_nm=order.pixel_nm, dose_e_per_a2=order.dose)
        model: Draw = simulate_series if order.exact else draw_series
        specimen = draw_specimen(rng, contents, optics, shape=shape, draw=model)
        params["optics"] = asdict(optics)
        return _pack(specimen.images, specimen.sheet, order, params)
    microscope = draw_microscope(rng, pixel_nm=order.pixel_nm)
    noise = order.noise or draw_noise(rng)
    low, high = np.log(order.dose)
    electrons = float(np.exp(rng.uniform(low, high)))
    scanned = draw_scanned(rng, contents, microscope, noise, shape=shape, electrons_per_px=electrons)
    params |= {"optics": asdict(microscope), "noise": asdict(noise), "electrons_per_px": electrons}
    return _pack(scanned.image[None], scanned.sheet, order, params)


def _draw_realistic(rng: np.random.Generator, order: Order, weights: Path) -> Drawing:
    """An image translated by trained weights, or scanned with the noise that they start from; columns that were moved
    thereby, and defects that were taken away, are what nobody can tell."""
    network = load_translator(weights)
    look = Look.from_card(network.card)
    drawn = draw_one(rng, look, side=order.side_px)
    translated = bool(rng.spawn(1)[0].random() < order.translated)

    def look_like(rng: np.random.Generator, one: Drawn) -> NDArray[np.float32]:
        return translate(rng, one, network) if translated else scan_again(rng, one, look)

    honesty = check_honesty(rng.spawn(1)[0], drawn, look_like)
    bad = honesty.places_px[honesty.rejected] * order.pixel_nm
    times = float(np.exp(rng.uniform(*np.log(order.dose))))
    params = {
        "realism": network.sha256,
        "translated": translated,
        "dose_over_image": times,
        "columns": len(honesty.rejected),
        "moved": int(honesty.moved.sum()),
        "vanished": int(honesty.vanished.sum()),
    }
    image = change_dose(drawn, look_like(rng, drawn), times)
    item = _pack(image[None], drawn.sheet, order, params)
    near = cKDTree(bad).query(_place_pixels(order))[0] if len(bad) else np.full(item.mask.shape, np.inf)
    item.mask[near < _AROUND_NM] = UNKNOWN
    return item


def _place_pixels(order: Order) -> NDArray[np.float64]:
    """Where pixels lie, shape (rows, cols, 2), nm."""
    axis = np.arange(order.side_px) * order.pixel_nm
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)


def _pack(images: NDArray[np.float32], sheet: Sheet, order: Order, params: dict[str, Any]) -> Drawing:
    crystal = find_crystal(order.material)
    side_nm = order.side_px * order.pixel_nm
    marked = focal.mark_columns(sheet, crystal, shape=(order.side_px, order.side_px), pixel_nm=order.pixel_nm)
    mask = marked[..., 0].astype(np.uint8)
    return Drawing(
        images, mask, _tabulate(sheet, order.material, side_nm), _list(sheet, order, side_nm), params
    )


def _tabulate(sheet: Sheet, material: str, side_nm: float) -> pd.DataFrame:
    crystal = find_crystal(material)
    names = np.array([*crystal.sublattices, ""])
    table = pd.DataFrame(
        {
            "row_nm": sheet.sites_nm[:, 0],
            "col_nm": sheet.sites_nm[:, 1],
            "sublattice": names[sheet.sublattice],
            "species": sheet.species,
            "buried": sheet.buried,
        }
    )
    inside = table["row_nm"].between(0.0, side_nm) & table["col_nm"].between(0.0, side_nm)
    return table[inside & (table["species"] != "")]


def _list(sheet: Sheet, order: Order, side_nm: float) -> pd.DataFrame:
    table = pd.DataFrame(
        [asdict(defect) for defect in list_defects(sheet, order.material)],
        columns=["kind", "row_nm", "col_nm"],
    )
    return table[table["row_nm"].between(0.0, side_nm) & table["col_nm"].between(0.0, side_nm)]
