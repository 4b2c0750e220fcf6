"""Larsen et al. 2021: atomic columns of MoS2 in focal series, by a mixed-scale dense network and by a U-Net.

The study (Technical University of Denmark) trains both on simulated series of three images, bare and on graphene, and
tells 1 Mo, 2 S and 1 S apart. Its series are drawn again here by flatscope's own models, with more kinds of defects;
columns that are none of the three do not count. What its description leaves open stands at the constants below.

References
----------
Pelt and Sethian 2018, doi:10.1073/pnas.1715832114 (mixed-scale dense network); Ronneberger et al., MICCAI 2015,
doi:10.1007/978-3-319-24574-4_28 (U-Net).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max

from flatscope.electron.columns import ColumnParams
from flatscope.electron.drawing.specimens import Specimen, draw_specimen
from flatscope.electron.focal import (
    PIXEL_NM,
    mark_columns,
    normalise,
    resample,
)
from flatscope.electron.kinds import BACKGROUND, OTHER, PART, UNKNOWN, classify_columns
from flatscope.electron.physics.crystals import Sheet, SheetParams, find_crystal
from flatscope.electron.physics.imaging import SeriesParams
from flatscope.evaluation.metrics import Interval, bootstrap
from flatscope.evaluation.papers import Answer, Progress, part_of
from flatscope.evaluation.series import (
    DOSES,
    SUPPORTS,
    Counts,
    bound_single,
    draw_test,
    expose,
    find_columns_in,
    find_detectability,
    score,
)
from flatscope.inference.runtime import Network
from flatscope.report.study import draw_classes, draw_lines

Float = NDArray[np.float64]
Methods = dict[str, Callable[[Specimen], tuple[Float, NDArray[np.int64]]]]

MATERIAL = "MoS2"
MSD = "MSD-net"
UNET = "U-Net"
OURS = "flatscope"
CLASSES = 4  # background, 1 Mo, 2 S, 1 S
_SEED = 2021  # of the training series
_TEST_SEED = 41  # of the tested ones
_VALIDATION_SEED = 42  # of those that choose thresholds
_LEARNING_RATE = 1e-3
_BATCH = 8  # series a step
_DOSE = 1e4  # electrons per Å² in a tested series
_THRESHOLDS = np.linspace(0.2, 0.8, 13)  # tried on other series than the tested ones
_RUNS = 7  # of which the median time is taken
_PUBLISHED_DEPTH = 100  # layers of the paper's MSD-net
EXAMPLE = SeriesParams(
    pixel_nm=0.0115,
    voltage_kv=50.0,
    defocus_nm=(-3.0, 2.0, 7.0),
    spherical_um=14.29,
    astigmatism_nm=3.427,
    spread_nm=0.7,
    dose_e_per_a2=_DOSE,
    mtf=(0.4, 2.0),
)
"""Microscope of the published example; its focal spread, dose and detector are ours."""


@dataclass(frozen=True)
class Size:
    """How much of the protocol is run.

    Parameters
    ----------
    side_px, pictures, steps
        Size and number of the training series, and steps of eight of them; the same for both networks.
    depth, widths
        Layers of the MSD-net, channels of the U-Net.
    tested, validated
        Series on each support.
    doses
        Of the sweep, electrons per Å² in a series.
    swept
        Series on each support at each of these doses.
    """

    side_px: int
    pictures: int
    steps: int
    depth: int
    widths: tuple[int, ...]
    tested: int
    validated: int
    doses: tuple[float, ...]
    swept: int


SIZES = {
    "quick": Size(64, 16, 4, 3, (8, 16, 32), 1, 1, DOSES[::4], 1),
    "cpu": Size(96, 4000, 1500, 30, (8, 16, 32, 64, 128), 40, 8, DOSES, 8),
    "full": Size(256, 10000, 125000, 100, (64, 128, 256, 512, 1024), 250, 50, DOSES, 25),
}


@dataclass(frozen=True)
class Line:
    """What one method reaches on one support at 10,000 electrons per Å².

    `f1` is the mean over series of the F1 of place and kind, `single` that of columns that lack one atom of a pair,
    over all series; `each` the F1 of every series. `ms` is the median time for the network alone on a series of 5 nm.
    """

    support: str
    method: str
    f1: Interval
    single: Interval
    each: tuple[float, ...]
    weights: int
    threshold: float
    ms: float


@dataclass(frozen=True)
class Study:
    """A run of the protocol.

    Parameters
    ----------
    lines
        One a support and method.
    sweep
        Support to method to (doses, mean F1), "counting statistics" being the bound on single atoms.
    examples
        Rows of the published example: three images, the truth, and what each method finds, as maps of classes.
    model
        Which model drew the tested series.
    faster
        By how much flatscope's network in ONNX Runtime is faster than an MSD-net of 100 layers in torch.
    """

    size: str
    lines: list[Line]
    sweep: dict[str, dict[str, tuple[Float, Float]]]
    examples: list[tuple[NDArray[np.uint8], ...]]
    model: str
    faster: float


def run(size: str, *, out: Path | None = None, on_progress: Progress | None = None) -> Study:
    """Train both networks on the same series, and measure them and flatscope on others.

    Parameters
    ----------
    size
        One of `SIZES`.
    out
        Folder for checkpoints; a run that was cut off goes on from them.
    on_progress
        Called with (steps done, steps in all).
    """
    from flatscope.training.nets.msdnet import MSDNet
    from flatscope.training.nets.unet import SaitoUNet
    from flatscope.training.supervised import seeded

    chosen = SIZES[size]
    bodies = {
        MSD: seeded(MSDNet, seed=0, outputs=CLASSES, depth=chosen.depth),
        UNET: seeded(SaitoUNet, seed=0, outputs=CLASSES, widths=chosen.widths, dropout=0.0),
    }
    nets = _train(bodies, chosen, checkpoints=None if out is None else out / size, on_progress=on_progress)
    network = Network.load("columns", task="columns")
    held = [
        _draw(support, index, _VALIDATION_SEED, exact=False)[0]
        for support in SUPPORTS
        for index in range(chosen.validated)
    ]
    thresholds = {name: _choose_threshold(net, held) for name, net in nets.items()}
    methods: Methods = {
        name: lambda specimen, net=net, least=thresholds[name]: read_pixels(net, specimen, least=least)  # type: ignore[misc]
        for name, net in nets.items()
    }
    params = ColumnParams(MATERIAL)
    methods[OURS] = lambda specimen: find_columns_in(specimen, params, network)[:2]
    tested = {
        support: [_draw(support, index, _TEST_SEED, exact=size != "quick") for index in range(chosen.tested)]
        for support in SUPPORTS
    }
    model = tested[SUPPORTS[0]][0][1]
    weights = {name: sum(part.numel() for part in net.parameters()) for name, net in nets.items()}
    weights[OURS] = _count_weights(network)
    seconds, faster = _time(nets, network)
    lines = [
        _judge(
            support,
            name,
            [specimen for specimen, _ in tested[support]],
            method,
            weights[name],
            thresholds.get(name, 0.5),
            seconds[name],
        )
        for support in SUPPORTS
        for name, method in methods.items()
    ]
    sweep = {
        support: _sweep([specimen for specimen, _ in tested[support]][: chosen.swept], methods, chosen.doses)
        for support in SUPPORTS
    }
    examples = [_show(support, methods) for support in SUPPORTS]
    return Study(size, lines, sweep, examples, model, faster)


def present(study: Study) -> Answer:
    """The study's table, F1 series by series and against dose, and the published example's microscope."""
    rows = [
        {
            "sheet": line.support,
            "method": line.method,
            "weights": f"{line.weights:,}",
            "F1 a series": str(line.f1),
            "F1 of 1 S": str(line.single),
            "threshold": f"{line.threshold:.2f}",
            "ms": f"{line.ms:.0f}",
        }
        for line in study.lines
    ]
    notes = (
        f"Size {study.size}; tested series by {study.model}, 10,000 electrons per Å² in a series of three, {MATERIAL} "
        "with vacancies, antisites, holes, edges, grain boundaries. A column counts when it lies within 0.05 nm and is "
        "of its kind; thresholds are chosen on other series. Brackets: 95 % interval by series.",
        f"flatscope's network in ONNX Runtime is {study.faster:.1f} times as fast as an MSD-net of 100 layers in "
        "torch.",
    )
    numbers = [{key: value for key, value in asdict(line).items() if key != "each"} for line in study.lines]
    sweep = {
        support: {name: [list(map(float, axis)) for axis in curve] for name, curve in curves.items()}
        for support, curves in study.sweep.items()
    }
    numbers.append({"faster": study.faster, "model": study.model, "sweep": sweep})
    return Answer("Larsen et al. 2021", rows, numbers, _draw_figures(study), notes)


def _draw_figures(study: Study) -> dict[str, bytes]:
    bins = np.linspace(0.0, 1.0, 41)
    each = {
        support: {
            line.method: (bins[:-1], np.histogram(line.each, bins)[0].astype(float))
            for line in study.lines
            if line.support == support
        }
        for support in study.sweep
    }
    return {
        "F1 of place and kind, series by series": draw_lines(
            each, labels=("F1", "series"), scales=("linear", "linear"), steps=True
        ),
        "F1 against dose": draw_lines(
            study.sweep, labels=("electrons per Å² in a series", "F1"), scales=("log", "linear")
        ),
        "The published example's microscope: three images, the truth and what each finds; yellow: 1 Mo, blue: 2 S, "
        "red: 1 S": draw_classes(study.examples, titles=("-3 nm", "2 nm", "7 nm", "truth", MSD, UNET, OURS)),
    }


def read_pixels(net: Any, specimen: Specimen, *, least: float) -> tuple[Float, NDArray[np.int64]]:
    """Columns by a network of pixels: tops of the probability that there is one, and the likeliest kind there.

    Parameters
    ----------
    least
        A top counts from this probability.

    Returns
    -------
    Positions in nm, shape (n, 2), and classes, shape (n,).
    """
    p = _predict(net, specimen)
    smooth = ndimage.gaussian_filter(1.0 - p[BACKGROUND], 0.8)
    tops = peak_local_max(smooth, min_distance=2, threshold_abs=least, exclude_border=False)
    wide = np.stack([ndimage.uniform_filter(channel, 3) for channel in p])
    kinds = wide[1:, tops[:, 0], tops[:, 1]].argmax(0) + 1
    # The centroid of a top's neighbourhood, and pixels back to those of the series.
    offsets = np.array([(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1)])
    near = np.clip(tops[:, None] + offsets, 0, np.array(smooth.shape) - 1)
    height = smooth[near[..., 0], near[..., 1]]
    height = height - height.min(1, keepdims=True) + 1e-9
    places = (near * height[..., None]).sum(1) / height.sum(1)[:, None]
    factor = PIXEL_NM / specimen.optics.pixel_nm
    return ((places + 0.5) * factor - 0.5) * specimen.optics.pixel_nm, kinds


def _predict(net: Any, specimen: Specimen) -> NDArray[np.float32]:
    """Class probabilities, shape (4, rows, cols), on the networks' pixels."""
    from flatscope.training.supervised import predict

    images = normalise(resample(specimen.images, PIXEL_NM / specimen.optics.pixel_nm))
    probabilities: NDArray[np.float32] = predict(net, images.transpose(1, 2, 0)[None])[0]
    return probabilities


def _train(
    bodies: dict[str, Any],
    size: Size,
    *,
    checkpoints: Path | None,
    on_progress: Progress | None,
) -> dict[str, Any]:
    from flatscope.training import columns, supervised

    series = columns.draw_all(size.pictures, side=size.side_px, material=MATERIAL, seed=_SEED)
    classes = series.truth[..., 0].astype(np.uint8)
    classes[classes == OTHER] = UNKNOWN
    trained = {}
    for number, (name, net) in enumerate(bodies.items()):
        plan = supervised.Plan(
            lr=_LEARNING_RATE, steps=size.steps, batch=_BATCH, schedule="poly", warmup=size.steps // 20
        )
        trained[name] = supervised.fit(
            net,
            series.images,
            classes,
            plan,
            augment=_turn,
            checkpoint=None
            if checkpoints is None
            else checkpoints.with_name(f"{checkpoints.name}-{name}.pt"),
            on_progress=part_of(on_progress, number=number, parts=len(bodies), steps=size.steps),
        )
    return trained


def _turn(
    rng: np.random.Generator, images: NDArray[Any], classes: NDArray[np.uint8]
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    quarters = int(rng.integers(4))
    images, classes = np.rot90(images, quarters), np.rot90(classes, quarters)
    return (images[:, ::-1], classes[:, ::-1]) if rng.random() < 0.5 else (images, classes)


def _draw(support: str, index: int, seed: int, *, exact: bool) -> tuple[Specimen, str]:
    specimen, model = draw_test(MATERIAL, support, index, seed=seed, exact=exact)
    return expose(np.random.default_rng([seed, index, 1]), specimen, _DOSE), model


def _count(specimen: Specimen, found: tuple[Float, NDArray[np.int64]]) -> Counts:
    return score(specimen, find_crystal(MATERIAL), *found, other=False)


def _choose_threshold(net: Any, held: list[Specimen]) -> float:
    reached = [
        np.mean([_count(specimen, read_pixels(net, specimen, least=float(least))).f1 for specimen in held])
        for least in _THRESHOLDS
    ]
    return float(_THRESHOLDS[int(np.argmax(reached))])


def _judge(
    support: str,
    name: str,
    tested: list[Specimen],
    method: Callable[[Specimen], tuple[Float, NDArray[np.int64]]],
    weights: int,
    threshold: float,
    seconds: float,
) -> Line:
    counts = [_count(specimen, method(specimen)) for specimen in tested]
    each = np.array([one.f1 for one in counts])
    single = np.array([(one.part_right, one.part_found + one.part_true) for one in counts], float)
    return Line(
        support,
        name,
        bootstrap(np.column_stack([each, np.ones(len(each))]), lambda s: float(s[0] / max(s[1], 1.0))),
        bootstrap(single, lambda s: float(2.0 * s[0] / max(s[1], 1.0))),
        tuple(float(value) for value in each),
        weights,
        threshold,
        1e3 * seconds,
    )


def _sweep(
    tested: list[Specimen], methods: Methods, doses: tuple[float, ...]
) -> dict[str, tuple[Float, Float]]:
    """Mean F1 of every method at every dose, and the bound on single atoms."""
    reached: dict[str, list[float]] = {name: [] for name in (*methods, "single S, counting statistics")}
    for place, dose in enumerate(doses):
        values: dict[str, list[float]] = {name: [] for name in reached}
        for index, specimen in enumerate(tested):
            counted = expose(np.random.default_rng([_TEST_SEED, index, place, 2]), specimen, dose)
            for name, method in methods.items():
                values[name].append(_count(counted, method(counted)).f1)
            classes = classify_columns(specimen.sheet, find_crystal(MATERIAL))
            share = float((classes == PART).sum() / max(int((classes != BACKGROUND).sum()), 1))
            bound = bound_single(find_detectability(specimen, MATERIAL), dose, share)
            values["single S, counting statistics"].append(bound)
        for name, found in values.items():
            reached[name].append(float(np.mean(found)))
    return {name: (np.array(doses), np.array(values)) for name, values in reached.items()}


def _time(nets: dict[str, Any], network: Network) -> tuple[dict[str, float], float]:
    """Median seconds of each network on a series of 5 nm, in turn, and the ratio to an MSD-net of 100 layers.

    Both run on as many threads as they take by themselves, unless the environment says otherwise.
    """
    from flatscope.training.nets.msdnet import MSDNet
    from flatscope.training.supervised import answer

    x = np.zeros((3, 200, 200), np.float32)
    deep = MSDNet(outputs=CLASSES, depth=_PUBLISHED_DEPTH).eval()
    runs: dict[str, Callable[[], Any]] = {
        **{name: lambda net=net: answer(net, x[None]) for name, net in nets.items()},  # type: ignore[misc]
        OURS: lambda: network.predict(x),
        "deep": lambda: answer(deep, x[None]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_RUNS):
        for name, once in runs.items():
            begun = time.perf_counter()
            once()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: float(np.median(found)) for name, found in seconds.items()}
    return medians, medians["deep"] / medians[OURS]


def _count_weights(network: Network) -> int:
    import onnx

    graph = onnx.load(network.path).graph
    return int(sum(np.prod(weight.dims) for weight in graph.initializer if weight.dims))


def _show(support: str, methods: Methods) -> tuple[NDArray[np.uint8], ...]:
    """The published example's microscope on one of our sheets: images, truth and findings."""
    crystal = find_crystal(MATERIAL)

    specimen = _draw_example(support)
    images = normalise(resample(specimen.images, PIXEL_NM / specimen.optics.pixel_nm))
    shape = (images.shape[1], images.shape[2])
    truth = mark_columns(specimen.sheet, crystal, shape=shape)[..., 0]
    maps = [np.where(truth > PART, BACKGROUND, truth).astype(np.uint8)]
    for method in methods.values():
        positions, kinds = method(specimen)
        names = np.array(["", crystal.species[0], crystal.species[1], crystal.second[0], "X"])[kinds]
        found = Sheet(np.zeros(0, np.int64), np.zeros((0, 3)), positions, np.maximum(kinds - 1, 0), names)
        marked = mark_columns(found, crystal, shape=shape)[..., 0]
        maps.append(np.where(marked > PART, BACKGROUND, marked).astype(np.uint8))
    gray = [
        np.repeat(
            np.clip(127.5 + 45.0 * image / image.std(), 0.0, 255.0).astype(np.uint8)[..., None], 3, axis=2
        )
        for image in images
    ]
    return (*gray, *maps)


def _draw_example(support: str) -> Specimen:
    contents = SheetParams(
        MATERIAL,
        turn_deg=12.0,
        vacancies={"one": 0.08, "both": 0.02, "first": 0.01},
        holes=1,
        support="" if support == "bare" else support,
    )
    return draw_specimen(np.random.default_rng([_TEST_SEED, 3]), contents, EXAMPLE, shape=(360, 360))
