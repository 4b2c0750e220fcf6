"""Is an adapted flake finder better than the default, and how does it learn with the number of labelled pictures?"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flatscope.evaluation import monolayers
from flatscope.evaluation.metrics import Interval, Score, bootstrap, ratio, vote_regions
from flatscope.evaluation.papers import saito2019
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.camera import Camera
from flatscope.optical.flakes import FlakeParams, choose_least_px, find_flakes
from flatscope.optical.photographs import Microscope, draw_microscope
from flatscope.optical.scenes import Scene, label_regions
from flatscope.optical.setups import Prior
from flatscope.results import REJECTED_LABEL, THICK_LABEL, THIN_LABEL, FlakeTable

if TYPE_CHECKING:
    from flatscope.training.adapt import LabelledPicture
    from flatscope.training.recipes import Recipe
    from flatscope.training.recipes.sections import Flakes

LEAST_PICTURES = 3  # one of them is held out
DEFAULT = "default"
COLOURS = "measured colours"
TUNED = "fine-tuned"
_HELD_OUT_SHARE = 0.25  # of the labelled pictures
_TESTED = 12  # pictures of each set-up on which the learning curve is measured
_UNET = saito2019.Size((8, 16, 32, 64, 128), 128, 600, 4, 2e-3, (("contrast", True),))  # trained from scratch
_TOLD = FlakeParams("MoS2", min_area_px=monolayers.PARAMS.min_area_px)
"""What flatscope is given of an unseen set-up: no oxide, since the true one is refused."""


@dataclass(frozen=True)
class RegionErrors:
    """Errors on labelled pictures, counted in regions of at least the smallest area that counts.

    Parameters
    ----------
    regions
        Labelled regions.
    wrong
        Labelled regions most of whose pixels get another layer number.
    missed
        Labelled regions most of whose pixels are called substrate or rejected.
    false
        Found regions less than half of which is labelled.
    """

    regions: int = 0
    wrong: int = 0
    missed: int = 0
    false: int = 0

    @property
    def total(self) -> int:
        """All errors."""
        return self.wrong + self.missed + self.false

    def __add__(self, other: RegionErrors) -> RegionErrors:
        return RegionErrors(
            *(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True))
        )


@dataclass(frozen=True)
class Adaptation:
    """What adapting reached on pictures that were held out.

    Parameters
    ----------
    weights
        The new .onnx file, or None where nothing was better than the default.
    errors
        Of the default; of the default's network with the colours measured in the labelled pictures; and of the
        fine-tuned network with them.
    chosen
        Which of these it is.
    trained, held_out
        Number of pictures.
    known
        Labelled regions by layer number, of all pictures.
    """

    weights: Path | None
    errors: dict[str, RegionErrors]
    chosen: str
    trained: int
    held_out: int
    known: dict[int, int]


def count_errors(table: FlakeTable, picture: LabelledPicture, *, least_px: float = 250.0) -> RegionErrors:
    """Compare a table with the labels of its picture."""
    unknown = np.isin(picture.layers, (THIN_LABEL, REJECTED_LABEL))
    known = np.where(unknown, 0, picture.layers).astype(np.uint8)
    regions = label_regions(known)
    areas = np.bincount(regions.ravel())
    regions[areas[regions] < least_px] = 0
    answer = table.layer_image()
    answer[answer == REJECTED_LABEL] = 0
    labels, votes = vote_regions(regions, answer, count=THICK_LABEL + 1)
    true = np.zeros(len(areas), int)
    true[regions] = known
    right = votes == true[labels]
    rows = table.found[table.found["area_px"] >= least_px]
    on_label = np.bincount(table.labels.ravel(), weights=(picture.layers > 0).ravel())
    false = on_label[rows["region_id"].to_numpy(int)] < 0.5 * rows["area_px"].to_numpy(float)
    return RegionErrors(
        len(labels), int((~right & (votes > 0)).sum()), int((~right & (votes == 0)).sum()), int(false.sum())
    )


def adapt(
    pictures: Sequence[LabelledPicture],
    params: FlakeParams,
    recipe: Recipe[Flakes],
    *,
    base: Network,
    out: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Adaptation:
    """Adapt `base` to labelled pictures, and keep the outcome only if it is better on those held out.

    A quarter of the pictures, at least one, is held out from training and chooses among default, measured
    colours and fine-tuned weights. What is kept remembers the colours of all pictures.

    Parameters
    ----------
    pictures
        At least three.
    params
        Material and nominal set-up.
    recipe
        How to fine-tune, see `flatscope.training.adapt`.
    base
        Weights to start from.
    out
        Folder for checkpoints and ``layers-adapt.onnx``.

    Raises
    ------
    MicrographError
        For fewer pictures, or labels without a region of one to six layers large enough.
    """
    from flatscope.training import adapt as training
    from flatscope.training import flakes, onnx_export
    from flatscope.training.nets.flakenet import FlakeNet

    train, held_out = _split(pictures, seed=recipe.seed)
    known = training.measure_known(train)
    told = replace(params, known=(*params.known, *known))
    made = training.build(train, held_out, recipe, params.prior(), base=base)
    # Other pictures or weights are another run: a checkpoint must not be taken for theirs.
    folder = out / f"checkpoint-{_digest(pictures, base)}"
    plan = recipe.change(start=str(base.path), widths=FlakeNet.from_onnx(base.path).widths)
    trained = flakes.train_on(made, plan, out=folder, on_progress=on_progress)
    everything = training.measure_known(pictures)
    card = replace(
        trained.card,
        training_data=f"{recipe.training_data}: {len(train)} pictures, on top of {base.card.name} {base.card.version}",
        material=params.material,
        known=tuple((region.layers, *region.contrast) for region in everything),
    )
    path = out / f"{card.name}.onnx"
    # Judged with the colours of the pictures trained on only; the kept file knows those of all.
    scratch, plain = folder / path.name, replace(card, known=())
    try:
        onnx_export.export(trained.net, plain, scratch, calibration=trained.calibration)
    except onnx_export.ExportError:
        # Faint colours do not always survive 8 bits; 32 bits are larger and slower, and exact.
        onnx_export.export(trained.net, plain, scratch)
    tuned = Network.load(scratch)
    errors = {
        DEFAULT: _judge(held_out, params, base),
        COLOURS: _judge(held_out, told, base),
        TUNED: _judge(held_out, told, tuned),
    }
    chosen = min(errors, key=lambda name: errors[name].total)
    if chosen == TUNED:
        onnx_export.replace_card(scratch, card, path)
    elif chosen == COLOURS:
        onnx_export.replace_card(
            base.path, replace(base.card, material=card.material, known=card.known), path
        )
    return Adaptation(
        None if chosen == DEFAULT else path,
        errors,
        chosen,
        len(train),
        len(held_out),
        {number: sum(region.layers == number for region in everything) for number in range(1, 7)},
    )


def _digest(pictures: Sequence[LabelledPicture], base: Network) -> str:
    digest = hashlib.sha256(base.sha256.encode())
    for picture in pictures:
        digest.update(picture.micrograph.pixels.tobytes())
        digest.update(picture.layers.tobytes())
    return digest.hexdigest()[:12]


def _split(
    pictures: Sequence[LabelledPicture], *, seed: int
) -> tuple[list[LabelledPicture], list[LabelledPicture]]:
    """Pictures to train on, and at least one to hold out that shows a labelled region."""
    if len(pictures) < LEAST_PICTURES:
        raise MicrographError(f"{len(pictures)} labelled pictures: adapting takes at least {LEAST_PICTURES}")
    order = np.random.default_rng(seed).permutation(len(pictures)).tolist()
    order.sort(key=lambda index: not _shows_layers(pictures[index]))
    count = max(1, round(_HELD_OUT_SHARE * len(pictures)))
    # Those that show a layer come first: every other one of them is held out until there are enough.
    held = [index for place, index in enumerate(order) if place % 2 == 0][:count]
    return [pictures[i] for i in range(len(pictures)) if i not in held], [pictures[i] for i in held]


def _shows_layers(picture: LabelledPicture) -> bool:
    return bool(((picture.layers > 0) & (picture.layers < THIN_LABEL)).any())


def _judge(pictures: Sequence[LabelledPicture], params: FlakeParams, network: Network) -> RegionErrors:
    total = RegionErrors()
    for picture in pictures:
        table = find_flakes(picture.micrograph, params, network=network)
        least_px = choose_least_px(params, picture.micrograph.calibration)
        total += count_errors(table, picture, least_px=least_px)
    return total


@dataclass(frozen=True)
class Point:
    """One point of the learning curve: a method trained on some pictures of one set-up.

    Parameters
    ----------
    method
        "default", "adapted", or "U-Net from scratch".
    setup, pictures
        Number of the set-up; labelled pictures.
    verdicts
        As in Saito's study: class accuracy, and votes on regions of one and two layers.
    errors
        By picture, in regions of all layer numbers; none for the U-Net, which knows one and two only.
    minutes
        Time that training took.
    """

    method: str
    setup: int
    pictures: int
    verdicts: monolayers.Verdicts
    errors: tuple[RegionErrors, ...]
    minutes: float


def draw_unseen(rng: np.random.Generator) -> Microscope:
    """A microscope outside all that the default expects of MoS2: thicker oxide, steeper tone curve, mixed colours."""
    setup = Prior("MoS2", oxide_nm=300.0).draw(rng, wide=False)
    unseen = replace(
        setup,
        oxide_nm=rng.uniform(350.0, 420.0, 1),
        camera=Camera.plain(rng.uniform(2.5, 3.0, 1)),
        mixing=rng.uniform(0.25, 0.4, 1),
    )
    return draw_microscope(rng, unseen)


def measure_learning_curve(
    *,
    setups: int,
    pictures: Sequence[int],
    out: Path,
    seed: int = 11,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """Measure how default, adapted finder and a U-Net trained from scratch learn with labelled pictures.

    Every set-up is drawn by `draw_unseen`; all methods see the same pictures, and twelve others of the same set-up test
    them. The U-Net is a small one of Saito's kind (8 to 128 channels, weighted loss, changed contrast, 600 steps), as
    in `papers.saito2019`.

    Parameters
    ----------
    setups
        Number of set-ups.
    pictures
        Numbers of labelled pictures.
    out
        Folder for checkpoints; a run that was cut off goes on from them.
    seed
        Of set-ups and scenes.
    """
    from flatscope.training import recipes

    recipe = recipes.load("layers-adapt")
    base = Network.load("flakes")
    points = []
    done, parts = 0, 2 * setups * len(pictures)

    def part(number: int) -> Callable[[int, int], None] | None:
        if on_progress is None:
            return None
        return lambda step, steps: on_progress(100 * number + 100 * step // steps, 100 * parts)

    for number in range(setups):
        microscope = draw_unseen(np.random.default_rng([seed, number]))
        drawn = monolayers.draw_scenes(max(pictures), seed=1000 * seed + 2 * number, microscope=microscope)
        tested = monolayers.draw_scenes(_TESTED, seed=1000 * seed + 2 * number + 1, microscope=microscope)
        points.append(_test_finder(DEFAULT, number, 0, tested, base, 0.0))
        for count in pictures:
            folder = out / f"setup-{number}-{count}"
            begun = time.perf_counter()
            outcome = adapt(
                [label(scene) for scene in drawn[:count]], _TOLD, recipe, base=base, out=folder,
                on_progress=part(done),
            )  # fmt: skip
            minutes = (time.perf_counter() - begun) / 60
            network = base if outcome.weights is None else Network.load(outcome.weights)
            points.append(_test_finder("adapted", number, count, tested, network, minutes))
            begun = time.perf_counter()
            guesses = _train_from_scratch(drawn[:count], tested, folder, on_progress=part(done + 1))
            minutes = (time.perf_counter() - begun) / 60
            verdicts = monolayers.score_scenes(tested, guesses, tested, guesses)
            points.append(Point("U-Net from scratch", number, count, verdicts, (), minutes))
            done += 2
    return points


def label(scene: Scene) -> LabelledPicture:
    """A scene as a person would label it."""
    from flatscope.training.adapt import LabelledPicture

    return LabelledPicture(Micrograph(scene.pixels, source="scene"), scene.layers)


def _test_finder(
    method: str, setup: int, pictures: int, tested: list[Scene], network: Network, minutes: float
) -> Point:
    errors, guesses = [], []
    for scene in tested:
        picture = label(scene)
        table = find_flakes(picture.micrograph, _TOLD, network=network)
        errors.append(count_errors(table, picture))
        guesses.append(monolayers.to_probabilities(table))
    verdicts = monolayers.score_scenes(tested, guesses, tested, guesses)
    return Point(method, setup, pictures, verdicts, tuple(errors), minutes)


def _train_from_scratch(
    drawn: list[Scene], tested: list[Scene], folder: Path, *, on_progress: Callable[[int, int], None] | None
) -> list[NDArray[np.float32]]:
    """Class probabilities of the tested scenes by a U-Net that saw the drawn ones only."""
    from flatscope.training import supervised
    from flatscope.training.nets.unet import SaitoUNet

    pictures, truth = monolayers.stack(drawn)
    plan = supervised.Plan(
        lr=_UNET.lr,
        steps=_UNET.steps,
        batch=_UNET.batch,
        class_weights=supervised.median_frequency_weights(truth, count=len(monolayers.CLASSES)),
    )
    net = supervised.fit(
        supervised.seeded(SaitoUNet, seed=0, outputs=len(monolayers.CLASSES), widths=_UNET.widths),
        pictures,
        truth,
        plan,
        augment=saito2019.make_augment("contrast", crop_px=_UNET.crop_px),
        checkpoint=folder / "unet.pt",
        on_progress=on_progress,
    )
    return [supervised.predict(net, scene.pixels[None])[0] for scene in tested]


@dataclass(frozen=True)
class CurveRow(Score):
    """A method trained on some labelled pictures, all set-ups together; None where a score does not apply.

    `errors` are wrong, missed and false regions of all layer numbers over the labelled ones. `accuracy` is the mean
    pixel accuracy of substrate and thicker, monolayer and bilayer; `vote` the share of monolayer and bilayer regions
    whose pixels mostly have the right number.
    """

    method: str
    pictures: int
    errors: Interval | None
    accuracy: Interval
    vote: Interval
    minutes: float

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "": self.method,
            "pictures": str(self.pictures),
            "region errors": "" if self.errors is None else str(self.errors),
            "class accuracy": str(self.accuracy),
            "region vote": str(self.vote),
            "minutes": f"{self.minutes:.1f}",
        }


def tabulate(points: Sequence[Point]) -> list[CurveRow]:
    """The points of all set-ups together, by method and number of pictures; minutes are the longest."""
    rows = []
    for method, pictures in dict.fromkeys((point.method, point.pictures) for point in points):
        same = [point for point in points if (point.method, point.pictures) == (method, pictures)]
        whole = monolayers.Verdicts(
            np.concatenate([point.verdicts.confusion for point in same]),
            np.concatenate([point.verdicts.histograms for point in same]),
            (sum(point.verdicts.votes[0] for point in same), sum(point.verdicts.votes[1] for point in same)),
        )
        counts = [(each.total, each.regions) for point in same for each in point.errors]
        rows.append(
            CurveRow(
                method,
                pictures,
                bootstrap(counts, ratio(0, 1)) if counts else None,
                whole.accuracy,
                whole.vote,
                max(point.minutes for point in same),
            )
        )
    return rows
