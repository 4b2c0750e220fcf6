"""`flatscope simulate`: focal series and scans with their truth, as many as wanted; `flatscope fit-noise`."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.app import show
from flatscope.app.settings import checked
from flatscope.electron import focal
from flatscope.electron.columns import ColumnParams
from flatscope.electron.drawing.appearance import Drawn, Look, change_dose, draw_one, scan_again
from flatscope.electron.drawing.noise import NoiseParams, fit_noise, measure_ratios, simulate_again
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
from flatscope.electron.physics.multislice import MultisliceError, simulate_series
from flatscope.files.read import read
from flatscope.files.write import write_atomic
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError
from flatscope.parallel import map_in_order

_QUICK_PX, _LEAST_CELLS = 64, 8
"""Side of quick images; of translated ones, in lattice constants, at least."""
_AROUND_NM = 0.1
"""Pixels so near to a column that was moved are nobody's."""
_SUPPORTS = {"none": ("",), "graphene": ("graphene",), "both": ("", "graphene")}
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
class _Item:
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
@click.option("--quick", is_flag=True, help=f"Images of {_QUICK_PX} px.")
def simulate(modality: str, count: int, seed: int, out: Path, **settings: Any) -> int:
    """Draw HRTEM focal series or ADF-STEM images of sheets with every kind of defect, with their truth.

    With --realism the images look like the one that the weights were trained on: dichalcogenides with vacancies, oxygen
    and a dopant, in its lattice's own direction.

    Writes data.h5 (images, and masks: 0 nothing, 1 and 2 the columns of either sublattice, 3 half a pair, 4 another
    one, 255 nobody can tell), columns.csv, defects.csv and params.jsonl. Item i follows from the seed and i alone.
    """
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError:
        raise click.ClickException(_NO_H5PY) from None
    order = _read_order(modality, seed, settings)
    jobs = [(order, index) for index in range(count)]
    begun = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / f".data.{os.getpid()}.h5"
    columns: list[pd.DataFrame] = []
    defects: list[pd.DataFrame] = []
    params: list[str] = []
    try:
        with h5py.File(scratch, "w") as store, show.progress("items") as on_progress:
            store.attrs.update({"pixel_nm": order.pixel_nm, "material": order.material})
            for index, item in enumerate(map_in_order(_draw, jobs, workers=settings["workers"])):
                _append(store, "images", item.images)
                _append(store, "masks", item.mask)
                columns.append(item.columns.assign(item=index))
                defects.append(item.defects.assign(item=index))
                params.append(json.dumps(item.params))
                on_progress(index + 1, count)
    except MultisliceError as error:
        raise click.ClickException(str(error)) from None
    finally:
        # Also after Ctrl-C: what is finished is a smaller data set.
        if params:
            os.replace(scratch, out / "data.h5")
            for name, tables in (("columns.csv", columns), ("defects.csv", defects)):
                text = pd.concat(tables[: len(params)]).to_csv(index=False, float_format="%.5f")
                write_atomic(out / name, text)
            write_atomic(out / "params.jsonl", "\n".join(params) + "\n")
        scratch.unlink(missing_ok=True)
    seconds = time.perf_counter() - begun
    if order.realism is not None:
        _tell_rejected([json.loads(text) for text in params])
    click.echo(f"{count} items in {seconds:.1f} s, {count / seconds:.1f} a second: {out / 'data.h5'}")
    return 0


def _tell_rejected(params: list[dict[str, Any]]) -> None:
    """Print what became of columns when images were translated."""
    columns, moved, vanished = (sum(one[name] for one in params) for name in ("columns", "moved", "vanished"))
    click.echo(
        f"of {columns} columns {moved / max(columns, 1):.1%} were moved by more than {1e3 * MOVED_NM:.0f} pm, and "
        f"{vanished} defects vanished: marked 255"
    )


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
        )
    store[name].resize(len(store[name]) + 1, axis=0)
    store[name][-1] = values


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
                f"--{name.replace('_', '-')} is said by the weights of --realism: leave it out"
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


def _draw(job: tuple[_Order, int]) -> _Item:
    order, index = job
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


def _draw_realistic(rng: np.random.Generator, order: _Order, weights: Path) -> _Item:
    """An image translated by trained weights, or scanned with the noise that they start from; columns that were moved
    thereby, and defects that were taken away, are what nobody can tell."""
    network = Network.load(weights, task=TASK, threads=1)
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


def _pack(images: NDArray[np.float32], sheet: Sheet, order: _Order, params: dict[str, Any]) -> _Item:
    crystal = find_crystal(order.material)
    side_nm = order.side_px * order.pixel_nm
    marked = focal.mark_columns(sheet, crystal, shape=(order.side_px, order.side_px), pixel_nm=order.pixel_nm)
    mask = marked[..., 0].astype(np.uint8)
    return _Item(
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


@click.command(name="fit-noise")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for flatscope simulate stem --noise.")
def fit_noise_command(image: Path, out: Path | None) -> int:
    """Measure the noise of one scanned IMAGE of a crystal: electrons a pixel, lag along rows, jumps of rows.

    Prints how much more noise there is from row to row than along the diagonal, in the image and in one drawn with what
    was measured.
    """
    micrograph = read(image, modality="electron")
    if not micrograph.is_gray:
        raise MicrographError(f"{image}: is coloured: a scanned image has one channel")
    pixels = micrograph.pixels if micrograph.pixels.ndim == 2 else micrograph.pixels[..., 0]
    try:
        noise = fit_noise(pixels)
    except ValueError as error:
        raise MicrographError(f"{image}: {error}") from None
    again = simulate_again(np.random.default_rng(0), np.asarray(pixels, float), noise)
    ratios = {"image": measure_ratios(pixels), "drawn again": measure_ratios(again)}
    electrons = float((pixels - min(float(pixels.min()), 0.0)).mean()) / noise.gain
    show.print_rows(
        ("", "row to row / diagonal", "along rows / diagonal"),
        [(name, f"{slow:.2f}", f"{fast:.2f}") for name, (slow, fast) in ratios.items()],
    )
    click.echo(
        f"about {electrons:.3g} electrons a pixel, {noise.gain:.4g} image units each; other noise "
        f"{noise.read_sigma:.3g} units; lag {noise.lag:.3f}; rows jump by {noise.jitter_px:.3f} px and "
        f"{noise.row_sigma:.3g} units"
    )
    if out is not None:
        stored = {"image": micrograph.name, "noise": asdict(noise), "ratios": ratios}
        write_atomic(out, json.dumps(stored, indent=1))
        click.echo(f"noise: {out}")
    return 0
