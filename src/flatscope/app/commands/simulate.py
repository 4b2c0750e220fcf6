"""`flatscope simulate`: draw focal series and scans with their truth."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.app.command import Plan, carry_out
from flatscope.app.folder import Folder
from flatscope.app.items import Item
from flatscope.app.run import Answer, Content, Finished, Task
from flatscope.app.settings import checked
from flatscope.electron import focal
from flatscope.electron.columns import ColumnParams
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
from flatscope.electron.drawing.translation import MOVED_NM, TASK, check_honesty, translate
from flatscope.electron.kinds import UNKNOWN, list_defects
from flatscope.electron.physics.crystals import Sheet, find_crystal
from flatscope.electron.physics.imaging import draw_series
from flatscope.electron.physics.multislice import simulate_series
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError
from flatscope.results.table import as_plain as plain_values

_QUICK_PX, _LEAST_CELLS = 64, 8
"""Side of quick images; of translated ones, in lattice constants, at least."""
_AROUND_NM = 0.1
"""Pixels so near to a column that was moved are nobody's."""
_SUPPORTS = {"none": ("",), "graphene": ("graphene",), "both": ("", "graphene")}
_NO_ABTEM = "multislice needs abTEM: pip install 'flatscope[multislice]'"
_NO_H5PY = "data sets are written as HDF5: pip install 'flatscope[simulate]'"


@dataclass(frozen=True)
class _Order:
    """What every item of a data set has in common."""

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
    """One of them."""

    images: NDArray[np.float32]
    mask: NDArray[np.uint8]
    columns: pd.DataFrame
    defects: pd.DataFrame
    params: dict[str, Any]


@click.command()
@click.argument("modality", type=click.Choice(["hrtem", "stem"]))
@click.option(
    "-n", "--count", type=click.IntRange(1), default=100, show_default=True, help="Number of items."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the data set.")
@click.option("--material", default=None, help="MoS2 by default; with --realism what its weights say.")
@click.option("--support", type=click.Choice(tuple(_SUPPORTS)), default="both", show_default=True)
@click.option("--side-px", type=click.IntRange(32), default=256, show_default=True)
@click.option("--nm-per-px", type=float, default=None, help="0.0115 for hrtem and 0.02 for stem by default.")
@click.option(
    "--dose",
    type=float,
    nargs=2,
    default=None,
    help="Range: electrons per Å² of a series (100 100000), or detected electrons a pixel (3 100); with --realism over "
    "those of the image that was learned from (1 1).",
)
@click.option("--noise", type=click.Path(path_type=Path), help="For stem: what flatscope fit-noise wrote.")
@click.option(
    "--realism",
    type=click.Path(path_type=Path),
    help="For stem: weights that flatscope train realism wrote; they say material, pixel size and noise.",
)
@click.option(
    "--translated",
    type=click.FloatRange(0.0, 1.0),
    default=1.0,
    show_default=True,
    help="With --realism: share of images that are translated; the others have the noise fitted to the same image.",
)
@click.option("--exact", is_flag=True, help="For hrtem: multislice by abTEM (extra: multislice).")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--replace", is_flag=True, help="Remove an earlier data set from the folder first.")
@click.option("--timings", is_flag=True, help="Print where the time went.")
@click.option("--quick", is_flag=True, help=f"Images of {_QUICK_PX} px.")
def simulate(modality: str, count: int, seed: int, out: Path, **settings: Any) -> int:
    """Draw HRTEM focal series or ADF-STEM images of sheets with every kind of defect, with their truth.

    With --realism the images look like the one that the weights were trained on: dichalcogenides with vacancies, oxygen
    and a dopant, in its lattice's own direction.

    Writes data.h5 (images, and masks: 0 nothing, 1 and 2 the columns of either sublattice, 3 half a pair, 4 another
    one, 255 nobody can tell), columns.csv, defects.csv and params.jsonl. Item i follows from the seed and i alone.
    """
    if find_spec("h5py") is None:
        raise click.ClickException(_NO_H5PY)
    if settings["exact"] and find_spec("abtem") is None:
        raise click.ClickException(_NO_ABTEM)
    order = _read_order(modality, seed, settings)
    task = Task(
        "simulate",
        plain_values({"modality": modality, "seed": seed, **_state(order)}),
        alone=draw_item,
        conclude=state_facts,
        views=make_views,
        endings=(),
        view_names=("data.h5", "columns.csv", "defects.csv", "params.jsonl"),
        given=order,
        kinds=(Drawing,),
    )
    items = [Item(f"{index:06d}", f"{index:06d}", given=index) for index in range(count)]
    folder = Folder(out)
    if settings["replace"]:
        folder.clear()
    return carry_out(Plan(task, items, summarise, what="items"), folder, settings, begun=time.perf_counter())


def _state(order: _Order) -> dict[str, Any]:
    """The order as settings: of weights their digest, not where they lie."""
    stated = asdict(order)
    if order.realism is not None:
        stated["realism"] = load_translator(order.realism).sha256
    return stated


@cache
def load_translator(path: Path) -> Network:
    """The network that translates drawn images, with one thread."""
    return Network.load(path, task=TASK, threads=1)


def state_facts(item: Item, drawing: Drawing, shared: None, order: _Order) -> tuple[Answer, dict[str, bytes]]:
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
    import h5py  # type: ignore[import-untyped]

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


def summarise(run: Finished, out: Path) -> None:
    """Print what became of columns when images were translated, and where the data set lies."""
    params = [answer.facts["params"] for _, answer in run.answers()]
    if run.task.given.realism is not None:
        names = ("columns", "moved", "vanished")
        columns, moved, vanished = (sum(one[name] for one in params) for name in names)
        click.echo(
            f"of {columns} columns {moved / max(columns, 1):.1%} were moved by more than {1e3 * MOVED_NM:.0f} pm, and "
            f"{vanished} defects vanished: marked 255"
        )
    click.echo(f"{len(params)} items: {out / 'data.h5'}")


def _read_order(modality: str, seed: int, settings: dict[str, Any]) -> _Order:
    hrtem = modality == "hrtem"
    if settings["exact"] and not hrtem:
        raise click.UsageError("--exact belongs to hrtem")
    if settings["noise"] is not None and hrtem:
        raise click.UsageError("--noise belongs to stem: series have the counting noise of --dose")
    if settings["realism"] is not None:
        settings = settings | _read_look(settings, hrtem=hrtem)
    elif settings["translated"] < 1.0:
        raise click.UsageError("--translated belongs to --realism")
    material = find_crystal(checked(ColumnParams, material=settings["material"] or "MoS2").material).name
    pixel_nm = settings["nm_per_px"] or (0.0115 if hrtem else 0.02)
    dose = settings["dose"] or ((1e2, 1e5) if hrtem else (3.0, 100.0))
    if not 0.0 < dose[0] <= dose[1]:
        raise click.UsageError(
            f"--dose {dose[0]:g} {dose[1]:g}: give two positive numbers, the smaller one first"
        )
    if not 0.0 < pixel_nm < 0.1:
        raise click.UsageError(f"--nm-per-px {pixel_nm:g}: columns want pixels below 0.1 nm")
    return _Order(
        modality=modality,
        material=material,
        side_px=_QUICK_PX if settings["quick"] else settings["side_px"],
        pixel_nm=pixel_nm,
        dose=dose,
        supports=_SUPPORTS[settings["support"]],
        seed=seed,
        exact=settings["exact"],
        noise=None if settings["noise"] is None else _read_noise(settings["noise"]),
        realism=settings["realism"],
        translated=settings["translated"],
    )


def _read_look(settings: dict[str, Any], *, hrtem: bool) -> dict[str, Any]:
    """Material and pixel size that weights for --realism were trained at."""
    if hrtem:
        raise click.UsageError("--realism belongs to stem")
    for name in ("material", "nm_per_px", "noise"):
        if settings[name] is not None:
            raise click.UsageError(
                f"--{name.replace('_', '-')} comes with the weights of --realism: leave it out"
            )
    look = Look.from_card(Network.load(settings["realism"], task=TASK).card)
    least = int(np.ceil(_LEAST_CELLS * look.constant_px))
    if (_QUICK_PX if settings["quick"] else settings["side_px"]) < least:
        raise click.UsageError(
            f"these weights want images of {least} px or more: --side-px {least}, no --quick"
        )
    return {
        "material": look.material,
        "nm_per_px": look.pixel_nm,
        "dose": settings["dose"] or (1.0, 1.0),
    }


def _read_noise(path: Path) -> NoiseParams:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(NoiseParams)}
        chosen: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in stored["noise"].items()
            if key in known
        }
        return NoiseParams(**chosen)
    except OSError as error:
        raise MicrographError(f"{path}: cannot be read ({error.strerror}): check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MicrographError(f"{path}: is not what flatscope fit-noise wrote ({error})") from None


def draw_item(item: Item, order: _Order) -> Drawing:
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


def _draw_realistic(rng: np.random.Generator, order: _Order, weights: Path) -> Drawing:
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


def _place_pixels(order: _Order) -> NDArray[np.float64]:
    """Where pixels lie, shape (rows, cols, 2), nm."""
    axis = np.arange(order.side_px) * order.pixel_nm
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)


def _pack(images: NDArray[np.float32], sheet: Sheet, order: _Order, params: dict[str, Any]) -> Drawing:
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


def _list(sheet: Sheet, order: _Order, side_nm: float) -> pd.DataFrame:
    table = pd.DataFrame(
        [asdict(defect) for defect in list_defects(sheet, order.material)],
        columns=["kind", "row_nm", "col_nm"],
    )
    return table[table["row_nm"].between(0.0, side_nm) & table["col_nm"].between(0.0, side_nm)]
