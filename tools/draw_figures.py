"""Draw the figures of the docs: `python tools/draw_figures.py [--real FOLDER] [--scores FILE] [--curve FOLDER] ...`.

Without options, everything that follows from the package alone. `--real` takes the folder of real micrographs (never
part of the repository) for the before-and-after figure, scenes beside them, and the comparison of contrasts; `--scores`
takes what `flatscope evaluate scenes --json` printed, for the reliability diagram; `--curve` the folder of
`flatscope evaluate adaptation --json > FOLDER/curve.json --out FOLDER`; `--larsen` the larsen2021.json of
`flatscope reproduce larsen2021`; `--sheets` the folder of `flatscope evaluate laboratories --sheets FOLDER`, for ten
pictures of other laboratories; `--look` weights of `flatscope train realism` for the HAADF image of WSe2 in `--real`.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

import flatscope
from flatscope.electron.drawing.appearance import draw_clean
from flatscope.electron.drawing.hopping import HoppingParams, draw_hopping
from flatscope.electron.drawing.microscopes import learn_look
from flatscope.electron.drawing.noise import NoiseParams
from flatscope.electron.drawing.specimens import draw_scanned, draw_specimen
from flatscope.electron.kinds import find_codes
from flatscope.electron.physics.crystals import SheetParams, find_crystal
from flatscope.electron.physics.imaging import ScanParams
from flatscope.electron.scans import open_scan
from flatscope.evaluation.collection import LABORATORIES
from flatscope.evaluation.defects import as_movie
from flatscope.evaluation.likeness import list_ways
from flatscope.evaluation.papers.larsen2021 import EXAMPLE
from flatscope.files.read import read
from flatscope.inference.runtime import Network
from flatscope.optical.bilayers import PUBLISHED, RAGGED, draw_bilayer
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.optical.thinfilm import channel_weights, contrast, spectral_table
from flatscope.report.atoms import draw_columns
from flatscope.report.defects import choose_styles, draw_broom, draw_defects, draw_examples
from flatscope.report.figures import Display, draw_overlay, load_font, to_display
from flatscope.report.study import draw_grays
from flatscope.report.twist import draw_twist

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
CHANNELS = (("red", "#c0392b"), ("green", "#2e8b57"), ("blue", "#2d5fa8"))
# Development pictures, graphene on nominally 90 nm: median contrast of regions of one to three layers.
MEASURED = np.array([[-0.138, -0.139, -0.068], [-0.251, -0.262, -0.147], [-0.350, -0.368, -0.215]])
# Name, material, nominal oxide, pixel size, and the part to show: top, left, rows, columns.
REAL = (
    ("graphene/45ce9af7.jpg", "graphene", 90.0, 0.384, (500, 220, 240, 375)),
    ("graphene/45ce9af7.jpg", "graphene", 90.0, 0.384, (620, 740, 320, 500)),
    ("graphene/20ea4e7f.jpg", "graphene", 90.0, 0.384, (300, 60, 240, 375)),
    ("graphene/large_2456x1842.jpg", "graphene", 285.0, None, (480, 1080, 800, 1250)),
    ("wse2/4b7772c0.jpg", "WSe2", 70.0, 0.384, (0, 1295, 400, 625)),
)
# Laboratory and picture; only of licences that allow it: MIT, BSD, Apache, CC BY.
SHOWN_PICTURES = (
    ("graphene", "45ce9af7"),
    ("wse2", "4b7772c0"),
    ("kleinlab_graphene", "20260213_SD_GpF10000"),
    ("kleinlab_hbn", "ETBN2_3_e0002_thin_hBN_3"),
    ("kleinlab_hbn", "ETBN3_5_c0005_thin_hBN_1"),
    ("islandlab_graphene", "large_2456x1842"),
    ("karolync", "28-29_20x-1_jpg"),
    ("karolync", "34_20x-2_jpg"),
    ("karolync", "37_20x-1_jpg"),
    ("tdmms", "default_OM_image"),
)
REAL_FOLDERS = ("wse2", "ws2", "mose2", "graphene")


def model(material: str, oxide: np.ndarray, na: float) -> np.ndarray:
    """Contrast (oxide, layers, channel) of a plain camera under a 5500 K lamp."""
    one = np.ones(1)
    weights = np.repeat(channel_weights(5500.0 * one, np.zeros((1, 3)), one, 0.0 * one), len(oxide), axis=0)
    bare, flakes = spectral_table(material, 0, na=na, oxide_range_nm=(50.0, 330.0)).at(oxide)
    return contrast(bare, flakes, weights)


def draw_contrast() -> None:
    """Contrast against oxide thickness and layer number, for three materials."""
    oxide = np.arange(60.0, 320.0, 1.0)
    figure, axes = plt.subplots(3, 3, figsize=(10, 7.5), sharex=True, sharey="row", layout="constrained")
    for row, (material, na) in enumerate((("graphene", 0.45), ("MoS2", 0.45), ("hBN", 0.45))):
        values = model(material, oxide, na)
        for column, (channel, colour) in enumerate(CHANNELS):
            for layers in (1, 2, 3):
                axes[row, column].plot(
                    oxide,
                    values[:, layers - 1, column],
                    color=colour,
                    alpha=0.25 + 0.25 * layers,
                    lw=1 + 0.4 * layers,
                    label=f"{layers}L",
                )
            axes[row, column].axhspan(-0.02, 0.02, color="0.85", zorder=0)
            axes[row, column].set_title(f"{material}, {channel}", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("SiO$_2$ thickness / nm")
    for axis in axes[:, 0]:
        axis.set_ylabel("$I/I_{substrate} - 1$")
    figure.savefig(FIGURES / "contrast_vs_oxide.png", dpi=110)
    plt.close(figure)


def draw_measured() -> None:
    """Measured against computed contrast of graphene, only the oxide fitted."""
    oxide = np.arange(70.0, 115.0, 0.5)
    values = model("graphene", oxide, 0.35)
    errors = np.abs(values[:, :3] - MEASURED).mean((1, 2))
    best = int(errors.argmin())
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for column, (channel, colour) in enumerate(CHANNELS):
        axis.plot(range(7), [0.0, *values[best, :6, column]], color=colour, label=f"computed, {channel}")
        axis.plot(range(1, 4), MEASURED[:, column], "o", color=colour, mec="black")
    axis.set_xlabel("layers of graphene")
    axis.set_ylabel("contrast")
    axis.set_title(f"oxide fitted to {oxide[best]:.1f} nm, mean error {errors[best]:.4f}", fontsize=10)
    axis.legend(fontsize=8)
    figure.savefig(FIGURES / "graphene_measured.png", dpi=110)
    plt.close(figure)
    print(f"graphene on SiO2/Si: fitted oxide {oxide[best]:.1f} nm, mean contrast error {errors[best]:.4f}")


def draw_scenes(folder: Path) -> None:
    """Twelve scenes beside twelve real micrographs."""
    scenes = [
        draw_scene(np.random.default_rng([3, seed]), SceneParams(shape=(400, 600))).pixels
        for seed in range(12)
    ]
    paths = [path for name in REAL_FOLDERS for path in sorted((folder / name).glob("????????.jpg"))[:3]]
    real = [np.asarray(Image.open(path).convert("RGB").resize((640, 400)))[:, 20:620] for path in paths]
    pair = [np.asarray(_sheet(tiles, across=3)) for tiles in (scenes, real)]
    divider = np.full((pair[0].shape[0], 24, 3), 255, np.uint8)
    Image.fromarray(np.hstack([pair[0], divider, pair[1]])).save(
        FIGURES / "scenes_beside_real.jpg", quality=82
    )


def _sheet(tiles: list[np.ndarray], *, across: int) -> Image.Image:
    rows = [np.hstack(tiles[start : start + across]) for start in range(0, len(tiles), across)]
    sheet = Image.fromarray(np.vstack(rows))
    return sheet.resize((300 * across, 200 * len(rows)), Image.Resampling.LANCZOS)


def draw_before_after(folder: Path) -> None:
    """Real pictures and what was found in them."""
    network = Network.load("flakes")
    rows = []
    for name, material, oxide, um_per_px, (top, left, height, width) in REAL:
        picture = flatscope.read(folder / name, um_per_px=um_per_px)
        params = flatscope.FlakeParams(material, oxide_nm=oxide)
        table = flatscope.find_flakes(picture, params, network=network)
        display = to_display(picture)
        pair = []
        for image in (Image.fromarray(display.pixels), draw_overlay(display, table)):
            scale = image.width / picture.shape[1]
            box = tuple(round(scale * side) for side in (left, top, left + width, top + height))
            part = image.convert("RGB").crop(box).resize((560, 360), Image.Resampling.LANCZOS)
            pair.append(np.asarray(part))
        rows.append(np.hstack(pair))
    Image.fromarray(np.vstack(rows)).save(FIGURES / "real_before_after.jpg", quality=82)
    Image.fromarray(np.vstack(rows[:2])).save(FIGURES / "overview.jpg", quality=85)


def draw_laboratories(sheets: Path) -> None:
    """Ten pictures with what flatscope shows, at most 400 px each; only of laboratories whose licence allows it."""
    tiles = []
    for name, stem in SHOWN_PICTURES:
        lab = LABORATORIES[name]
        (picture,) = sheets.glob(f"{name}, oxide */{stem}.png")
        shown = Image.open(picture)
        pair = shown.crop((0, 24, *shown.size))
        small = pair.resize((800, round(pair.height * 800 / pair.width)), Image.Resampling.LANCZOS)
        tile = Image.new("RGB", (800, 420), "white")
        tile.paste(small.crop((0, 0, 800, min(small.height, 392))), (0, 26))
        ImageDraw.Draw(tile).text((4, 4), f"{lab.source}, {lab.licence}", fill="black", font=load_font(15))
        tiles.append(tile)
    whole = Image.new("RGB", (1600, 420 * -(-len(tiles) // 2)), "white")
    for place, tile in enumerate(tiles):
        whole.paste(tile, (place % 2 * 800, place // 2 * 420))
    whole.save(FIGURES / "laboratories.jpg", quality=80)


_FEWEST_IN_A_BIN = 10  # a share of fewer says nothing


def draw_reliability(scores: Path) -> None:
    """Stated probability against the share that is right."""
    bins = [part for part in json.loads(scores.read_text())["reliability"] if part[2] >= _FEWEST_IN_A_BIN]
    figure, axis = plt.subplots(figsize=(4.2, 4.0), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.6", lw=1)
    axis.fill_between([0, 1], [-0.05, 0.95], [0.05, 1.05], color="0.9")
    axis.plot([b[0] for b in bins], [b[1] for b in bins], "o-", color="#2d5fa8")
    for stated, right, number in bins:
        axis.annotate(str(number), (stated, right), textcoords="offset points", xytext=(5, -10), fontsize=7)
    axis.set_xlim(0.4, 1.02)
    axis.set_ylim(0.4, 1.02)
    axis.set_xlabel("stated probability")
    axis.set_ylabel("share that is right")
    figure.savefig(FIGURES / "reliability.png", dpi=110)
    plt.close(figure)


def draw_learning_curve(folder: Path) -> None:
    """Class accuracy and region vote against the number of labelled pictures."""
    rows = json.loads((folder / "curve.json").read_text())
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
    for axis, key in zip(axes, ("accuracy", "vote"), strict=True):
        for method, colour in (("adapted", "#2d5fa8"), ("U-Net from scratch", "#c0392b")):
            own = [row for row in rows if row["method"] == method]
            middle = np.array([row[key]["value"] for row in own])
            ends = np.array([[row[key]["low"], row[key]["high"]] for row in own])
            pictures = [row["pictures"] for row in own]
            axis.errorbar(
                pictures, middle, np.abs(ends.T - middle), marker="o", capsize=3, color=colour, label=method
            )
        default = next(row for row in rows if row["method"] == "default")[key]["value"]
        axis.axhline(default, color="0.4", ls="--", label="default, unadapted")
        axis.set(
            xlabel="labelled pictures", xscale="log", ylim=(0, 1.02), title=f"{key} (one and two layers)"
        )
        axis.set_xticks(pictures, [str(count) for count in pictures])
        axis.minorticks_off()
    axes[0].legend(fontsize=8, loc="lower right")
    figure.savefig(FIGURES / "learning_curve.png", dpi=110)
    plt.close(figure)


def draw_adapted(folder: Path) -> None:
    """Pictures of an unseen set-up with the truth, the default's answer, and that after six labelled pictures."""
    from flatscope.evaluation import adaptation, monolayers

    microscope = adaptation.draw_unseen(np.random.default_rng([11, 0]))
    scenes = monolayers.draw_scenes(4, seed=11001, microscope=microscope)
    networks = [Network.load("flakes"), Network.load(folder / "setup-0-6" / "layers-adapt.onnx")]
    colours = np.full((256, 3), 255, np.uint8)
    colours[:4] = [[40, 40, 48], [240, 228, 66], [86, 180, 233], [213, 94, 0]]
    colours[4:7], colours[255] = (0, 158, 115), (40, 40, 48)
    rows = []
    for scene in scenes:
        picture = flatscope.Micrograph(scene.pixels, source="scene")
        params = flatscope.FlakeParams("MoS2", min_area_px=80)
        answers = [flatscope.find_flakes(picture, params, network=net).layer_image() for net in networks]
        rows.append(np.hstack([scene.pixels, *(colours[layers] for layers in (scene.layers, *answers))]))
    sheet = Image.fromarray(np.vstack(rows))
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(
        FIGURES / "adapted.jpg", quality=85
    )


def draw_twisted() -> None:
    """Artificial bilayers, clean and ragged, with the angles read from them."""
    tiles = []
    for index, params in enumerate((replace(PUBLISHED, cut_share=0.0), PUBLISHED, RAGGED, RAGGED)):
        params = replace(params, shape=(300, 300), radius_px=(110.0, 140.0), beyond=0.0)
        drawn = draw_bilayer(np.random.default_rng([4, index]), params)
        shades = np.array([[40, 40, 48], [120, 115, 60], [60, 95, 120]], np.uint8)
        frame = flatscope.measure_twist(drawn.layers).frame
        tiles.append(np.asarray(draw_twist(Display(shades[drawn.layers]), drawn.layers, frame)))
        print(f"drawn {drawn.twist_deg:.2f}°, read {frame['twist_deg'].tolist()}")
    Image.fromarray(np.hstack(tiles)).save(FIGURES / "twist.png")


def draw_atoms(real: Path) -> None:
    """A part of an ADF image, plain and with the columns that are found in it."""
    path = real / "electron" / "wse2_ti" / "ti_wse2_adf2.dm4"
    scan = flatscope.read(path, modality="electron")
    table = flatscope.find_columns(scan, flatscope.ColumnParams("WSe2"))
    nothing = replace(table, frame=table.frame[:0])
    part = (600, 540, 1200, 990)
    tiles = [np.asarray(draw_columns(scan, one).crop(part)) for one in (nothing, table)]
    Image.fromarray(np.hstack(tiles)).save(FIGURES / "atoms.jpg", quality=85, subsampling=0)


def draw_series_found() -> None:
    """A drawn focal series on graphene, and the columns that are found in it."""
    contents = SheetParams(
        "MoS2", turn_deg=14.0, vacancies={"one": 0.08, "both": 0.02}, holes=1, hole_nm=0.6, support="graphene"
    )
    optics = replace(EXAMPLE, dose_e_per_a2=2e4)
    drawn = draw_specimen(np.random.default_rng(8), contents, optics, shape=(300, 300))
    stack = flatscope.Stack(drawn.images, flatscope.Calibration((optics.pixel_nm,) * 2, "user"))
    params = flatscope.ColumnParams("MoS2", defocus_nm=optics.defocus_nm)
    rings = draw_columns(stack, flatscope.find_columns(stack, params)).resize((600, 600))
    tiles = []
    for image in drawn.images[[0, 2]]:
        low, high = np.quantile(image, (0.002, 0.998))
        gray = np.clip((image - low) / (high - low) * 255.0, 0.0, 255.0).astype(np.uint8)
        tiles.append(np.asarray(Image.fromarray(gray).resize((600, 600)).convert("RGB")))
    both = np.hstack([tiles[0], np.asarray(rings), tiles[1]])
    Image.fromarray(both).save(FIGURES / "series.jpg", quality=85, subsampling=0)


def draw_defects_found() -> None:
    """A drawn ADF image with the defects found in it, and the tracks of vacancies that hop through a drawn movie."""
    contents = SheetParams(
        "MoS2",
        turn_deg=14.0,
        vacancies={"first": 0.008, "one": 0.02, "both": 0.008},
        dopant="W",
        dopant_share=0.01,
        antisites=0.004,
        holes=1,
        hole_nm=0.7,
    )
    optics = ScanParams(pixel_nm=0.025)
    rng = np.random.default_rng(11)
    noise = NoiseParams(lag=0.15, jitter_px=0.2)
    drawn = draw_scanned(rng, contents, optics, noise, shape=(300, 300), electrons_per_px=40.0)
    size = flatscope.Calibration((optics.pixel_nm,) * 2, "user")
    scan = flatscope.Micrograph(drawn.image, full_scale=float(drawn.image.max()), calibration=size)
    table = flatscope.find_defects(scan, flatscope.DefectParams("MoS2", dopants="W"))
    styles = choose_styles(find_codes(table.found["kind"], find_crystal("MoS2")))
    marked = draw_defects(scan.pixels, table, styles, constant_px=0.316 / optics.pixel_nm)
    params = HoppingParams(frames=40, vacancies=0.015, hop=0.15)
    movie = as_movie(draw_hopping(np.random.default_rng(2), params), params)
    tracks = flatscope.track_defects(movie, flatscope.TrackParams("WS2"))
    broom = draw_broom(tracks, choose_styles(find_codes(tracks.frame["kind"], find_crystal("WS2"))))
    high = 620
    tiles = [marked, Image.open(io.BytesIO(broom)).convert("RGB")]
    tiles = [tile.resize((round(tile.width * high / tile.height), high)) for tile in tiles]
    Image.fromarray(np.hstack(tiles)).save(FIGURES / "defects.jpg", quality=88, subsampling=0)
    examples = Image.open(io.BytesIO(draw_examples(table))).convert("RGB")
    examples.save(FIGURES / "evidence.jpg", quality=85, subsampling=0)


def draw_dose(numbers: Path) -> None:
    """F1 against dose of both published networks and flatscope, beside what counting statistics allow."""
    sweep = json.loads(numbers.read_text(encoding="utf-8"))[-1]["sweep"]
    figure, axes = plt.subplots(1, len(sweep), figsize=(9.0, 3.4), layout="constrained", sharey=True)
    for axis, (support, curves) in zip(axes, sweep.items(), strict=True):
        for name, (dose, reached) in curves.items():
            axis.plot(dose, reached, "--" if "statistics" in name else "-", label=name)
        axis.set(title=support, xscale="log", xlabel="electrons per Å² in a series", ylim=(0.0, 1.02))
    axes[0].set_ylabel("F1 of place and kind")
    axes[1].legend(frameon=False, fontsize="small")
    figure.savefig(FIGURES / "dose.png", dpi=110)


def draw_limits(numbers: Path) -> None:
    """Where the fast image models leave the exact ones; from `flatscope evaluate imaging --limits --json`."""
    points = [one for one in json.loads(numbers.read_text(encoding="utf-8")) if "at" in one]
    panels = {"HRTEM": "voltage / kV", "ADF-STEM": "inner angle of the detector / mrad"}
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained", sharey=True)
    for axis, (model, label) in zip(axes, panels.items(), strict=True):
        mine = [one for one in points if one["model"] == model]
        for sheet in dict.fromkeys(one["sheet"] for one in mine):
            line = [(one["at"], one["rms"]) for one in mine if one["sheet"] == sheet]
            axis.plot(*zip(*line, strict=True), "o-", label=sheet)
        axis.axhline(0.1, color="0.6", linestyle="--")
        axis.set(title=model, xlabel=label, ylim=(0.0, None))
        axis.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("rms difference / standard deviation")
    figure.savefig(FIGURES / "limits.png", dpi=110)


def draw_look(real: Path, weights: Path) -> None:
    """Parts of an experimental image, and of a drawn one as it is, with fitted noise, and translated."""
    path = real / "electron" / "wse2_ti" / "ti_wse2_adf2.dm4"
    teacher = learn_look(open_scan(read(path, modality="electron"), "WSe2", []), "WSe2", source=path.name)
    drawn = draw_clean(teacher.look, 1, side=160, seed=3, workers=1)[0]
    rng = np.random.default_rng(0)
    ways = list_ways(teacher, Network.load(weights, task="realism"))
    images = {"experiment": teacher.image[-200:-104, -120:-24]}
    images |= {name: way(rng, drawn)[32:128, 32:128] for name, way in ways.items()}
    (FIGURES / "look.png").write_bytes(draw_grays(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--curve", type=Path)
    parser.add_argument("--larsen", type=Path)
    parser.add_argument("--limits", type=Path)
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--look", type=Path)
    options = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    draw_contrast()
    draw_measured()
    draw_twisted()
    draw_series_found()
    draw_defects_found()
    if options.larsen:
        draw_dose(options.larsen)
    if options.limits:
        draw_limits(options.limits)
    if options.curve:
        draw_learning_curve(options.curve)
        draw_adapted(options.curve)
    if options.sheets:
        draw_laboratories(options.sheets)
    if options.scores:
        draw_reliability(options.scores)
    if options.real:
        draw_scenes(options.real)
        draw_before_after(options.real)
        draw_atoms(options.real)
    if options.real and options.look:
        draw_look(options.real, options.look)


if __name__ == "__main__":
    main()
