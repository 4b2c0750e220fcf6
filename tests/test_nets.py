"""The published layer networks: one tester for all, and the loop that trains them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from flatscope.training import supervised  # noqa: E402
from flatscope.training.curve import LearningCurve  # noqa: E402
from flatscope.training.engine import Moment  # noqa: E402
from flatscope.training.nets.blobnet import BlobNet  # noqa: E402
from flatscope.training.nets.cropnet import CropNet  # noqa: E402
from flatscope.training.nets.deeplabv3 import DeepLabV3  # noqa: E402
from flatscope.training.nets.fcn import FCN  # noqa: E402
from flatscope.training.nets.lraspp import LRASPP  # noqa: E402
from flatscope.training.nets.msdnet import MSDNet  # noqa: E402
from flatscope.training.nets.resnet import ResNet18  # noqa: E402
from flatscope.training.nets.unet import SaitoUNet, YangUNet  # noqa: E402
from flatscope.training.nets.windownet import WindowNet  # noqa: E402
from flatscope.training.onnx_export import run_onnx, to_onnx  # noqa: E402

NETS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {
    # Classes and number of weights: of the papers for the U-Nets, of the reference implementations at 21 classes.
    "SaitoUNet": (SaitoUNet, 3, 31_031_875),
    "YangUNet": (YangUNet, 4, 4_318_500),
    "DeepLabV3": (DeepLabV3, 21, 42_004_074),
    "FCN": (FCN, 21, 35_322_218),
    "LRASPP": (LRASPP, 21, 3_221_538),
    # By its formula: 100 layers of 9 weights for each of 3 + i channels, and the last one.
    "MSDNet": (MSDNet, 4, 9 * sum(range(3, 103)) + 100 + 4 * 103 + 4),
}
SMALL = {
    "SaitoUNet": {"widths": (4, 8, 8, 16, 16)},
    "YangUNet": {"widths": (4, 8, 16, 32, 64)},
    "MSDNet": {"depth": 12},
}


def build(name: str, **settings: object) -> nn.Module:
    net = supervised.seeded(NETS[name][0], seed=3, **SMALL.get(name, {}), **settings).eval()
    if isinstance(net, MSDNet):
        # Its last layer begins with zeros, as published: an untrained one says nothing.
        supervised.seeded(nn.init.normal_, seed=4, tensor=net.head.weight)
    return net


def answer(net: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("name", NETS)
def test_as_many_weights_as_published(name: str) -> None:
    make, outputs, published = NETS[name]
    with torch.device("meta"):
        net = make(outputs=outputs)
    assert sum(parameter.numel() for parameter in net.parameters()) == published


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("channels", "rows", "cols"), [(1, 33, 47), (2, 64, 64), (4, 51, 32)])
def test_any_size_and_number_of_channels(name: str, channels: int, rows: int, cols: int) -> None:
    """Every pixel gets an answer of its own: another picture gives other logits, nowhere NaN."""
    net = build(name, channels=channels, outputs=5)
    x = np.random.default_rng(1).random((2, channels, rows, cols), np.float32)
    logits = answer(net, x)
    assert logits.shape == (2, 5, rows, cols)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 1e-4


@pytest.mark.parametrize("name", NETS)
def test_saved_loaded_and_exported_nets_say_the_same(name: str) -> None:
    net = build(name)
    # Statistics that are not those of a fresh net: a normalisation that export folds wrongly would show.
    net.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        net(torch.rand(2, 3, 64, 96))
    net.eval()
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    stream.seek(0)
    other = supervised.seeded(NETS[name][0], seed=4, **SMALL.get(name, {})).eval()
    other.load_state_dict(torch.load(stream, weights_only=True))
    x = np.random.default_rng(2).random((1, 3, 96, 160), np.float32)
    wanted = answer(net, x)
    np.testing.assert_array_equal(answer(other, x), wanted)
    given = run_onnx(to_onnx(net), x)
    assert np.abs(given - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("name", NETS)
def test_weights_start_as_he_says(name: str) -> None:
    net = build(name)
    kernels = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
    ratios = [
        float(kernel.detach().std() * np.sqrt(kernel[0].numel() / 2.0))
        for kernel in kernels
        if kernel.numel() > 5000
    ]
    if name not in SMALL:
        assert len(ratios) > 10
    assert ratios == pytest.approx([1.0] * len(ratios), abs=0.05)


def test_resnet_18_for_one_number() -> None:
    """As many weights as published, less the thousand classes; exported it says the same."""
    net = supervised.seeded(ResNet18, seed=1).eval()
    published, classes = 11_689_512, 513_000
    assert sum(parameter.numel() for parameter in net.parameters()) == published - classes + 513
    kernel = net.body[0].weight.detach()
    assert float(kernel.std() * np.sqrt(kernel[0].numel() / 2.0)) == pytest.approx(1.0, abs=0.05)
    x = np.random.default_rng(0).random((1, 3, 96, 160), np.float32)
    wanted = answer(net, x)
    assert wanted.shape == (1, 1)
    assert np.abs(run_onnx(to_onnx(net), x) - wanted).max() < 1e-4 * max(1.0, float(np.abs(wanted).max()))


class _Mean(nn.Module):
    """A line through the mean brightness, judged by its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x.mean((1, 2, 3))[:, None])

    loss = staticmethod(ResNet18.loss)


def test_a_net_with_its_own_loss_learns_one_number() -> None:
    """Three times the share of bright pixels, from pictures and numbers."""
    rng = np.random.default_rng(0)
    share = rng.uniform(0.0, 1.0, 64).astype(np.float32)
    pictures = (rng.random((64, 32, 32, 1)) < share[:, None, None, None]).astype(np.uint8) * 255
    plan = supervised.Plan(lr=0.05, steps=400, batch=16, schedule="poly", warmup=5)
    net = supervised.seeded(_Mean, seed=0)
    net = supervised.fit(net, pictures, 3.0 * share, plan, augment=_as_it_is)
    found = answer(net, supervised.to_tensor(pictures).numpy())[:, 0]
    assert np.abs(found - 3.0 * share).max() < 0.25


def _squares(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with a bright and a dark square."""
    rng = np.random.default_rng(7)
    pictures = rng.integers(110, 130, (count, 32, 32, 3)).astype(np.uint8)
    classes = np.zeros((count, 32, 32), np.uint8)
    for index in range(count):
        row, col = rng.integers(0, 12, 2)
        pictures[index, row : row + 8, col : col + 8] += 60
        classes[index, row : row + 8, col : col + 8] = 1
        pictures[index, 20:28, 20:28] -= 60
        classes[index, 20:28, 20:28] = 2
    return pictures, classes


def _as_it_is(
    _: np.random.Generator, picture: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return picture, truth


@pytest.mark.parametrize(
    "plan",
    [
        supervised.Plan(lr=3e-3, steps=60, batch=4),
        supervised.Plan(
            lr=0.05, steps=60, batch=4, optimiser="sgd", schedule="poly", warmup=5, weight_decay=1e-4
        ),
    ],
    ids=["adam", "sgd"],
)
def test_a_net_learns_squares(plan: supervised.Plan) -> None:
    pictures, classes = _squares(12)
    net = supervised.seeded(YangUNet, seed=3, outputs=3, widths=(8, 16, 32, 64, 128))
    net = supervised.fit(net, pictures[:8], classes[:8], plan, augment=_as_it_is)
    found = supervised.predict(net, pictures[8:]).argmax(1)
    assert (found == classes[8:]).mean() > 0.97


def test_a_second_head_is_trained_too() -> None:
    pictures, classes = _squares(2)
    net = build("FCN", outputs=3)
    before = net.auxiliary[0].weight.detach().clone()
    plan = supervised.Plan(lr=1e-3, steps=1, batch=2, optimiser="sgd")
    net = supervised.fit(net, pictures, classes, plan, augment=_as_it_is)
    assert not torch.equal(net.auxiliary[0].weight, before)


def test_a_run_that_was_cut_off_ends_as_the_whole_one(tmp_path: Path) -> None:
    """Adam, dropout and augmentation included."""
    pictures, classes = _squares(6)
    path = tmp_path / "net.pt"

    def flip(
        rng: np.random.Generator, picture: np.ndarray, truth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return (picture[::-1], truth[::-1]) if rng.random() < 0.5 else (picture, truth)

    def train(checkpoint: Path | None, stop: int | None = None) -> dict[str, torch.Tensor]:
        def interrupt(done: int, _: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        plan = supervised.Plan(lr=1e-3, steps=8, batch=2)
        net = supervised.fit(
            build("SaitoUNet"),
            pictures,
            classes,
            plan,
            augment=flip,
            checkpoint=checkpoint,
            on_progress=interrupt,
        )
        return net.state_dict()

    whole = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(path, stop=5)
    assert torch.load(path, weights_only=True)["step"] == 5
    resumed = train(path)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(ValueError, match=r"made with lr = 0\.001, this run has 0\.002"):
        supervised.fit(
            build("SaitoUNet"),
            pictures,
            classes,
            supervised.Plan(lr=2e-3, steps=8, batch=2),
            augment=flip,
            checkpoint=path,
        )


def test_a_training_ends_when_its_curve_is_flat_and_keeps_the_best(tmp_path: Path) -> None:
    """Cut off at any step it goes on, with one line a measurement; called again it trains no more."""
    pictures, classes = _squares(6)
    scores = iter(
        [*range(10), *[0] * 90]
    )  # the tenth is best: it ends when a third of the run brought nothing better
    seen: list[dict[str, torch.Tensor]] = []

    def score(net: nn.Module) -> dict[str, float]:
        seen.append({key: value.clone() for key, value in net.state_dict().items()})
        return {"validation": float(next(scores))}

    def train(stop: int | None = None) -> nn.Module:
        def interrupt(done: int, _: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        return supervised.fit(
            build("SaitoUNet"),
            pictures,
            classes,
            supervised.Plan(lr=1e-3, steps=200, batch=2),
            augment=_as_it_is,
            checkpoint=LearningCurve(tmp_path / "net.pt", score, every=2, patience=1 / 3),
            on_progress=interrupt,
        )

    with pytest.raises(KeyboardInterrupt):
        train(stop=7)
    net = train()
    steps = [json.loads(line)["step"] for line in (tmp_path / "net.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 34, 2))  # 32 - 20 is the first gap above a third of 32
    assert all(torch.equal(value, seen[9][key]) for key, value in net.state_dict().items())
    again = train()
    assert len(seen) == len(steps)
    assert all(torch.equal(value, seen[9][key]) for key, value in again.state_dict().items())


def test_rare_classes_weigh_more() -> None:
    """Ten pixels in a hundred, in the one picture of two that shows them, and no third class."""
    classes = np.zeros((2, 10, 10), np.uint8)
    classes[0, 0] = 1
    # Frequencies: 190 of 200 and 10 of 100, median 0.525.
    assert supervised.median_frequency_weights(classes, count=3) == pytest.approx((0.525 / 0.95, 5.25, 1.0))


def test_the_polynomial_schedule_rises_then_falls() -> None:
    plan = supervised.Plan(lr=0.02, steps=100, schedule="poly", warmup=10)
    rates = [plan.rates().rate(Moment(step, 100, step / 100)) for step in range(100)]
    assert rates[0] == pytest.approx(0.002) and rates[9] == pytest.approx(0.02)
    assert rates[55] == pytest.approx(0.02 * 0.5**0.9)
    assert all(after < before for before, after in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("make", "shape", "wanted"),
    [
        (partial(CropNet, outputs=9, groups=((0, 4), (4, 9))), (3, 2, 24, 24), (3, 9, 6, 6)),
        (WindowNet, (3, 1, 64, 64), (3, 6)),
        (BlobNet, (3, 1, 40, 56), (3, 2, 40, 56)),
    ],
)
def test_networks_of_defects_are_exported_as_they_are(
    make: Callable[..., nn.Module], shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    """Any number of crops at once; a loss that falls when the right answer is called louder."""
    net = supervised.seeded(make, seed=6).eval()
    x = np.random.default_rng(3).random(shape, np.float32)
    logits = answer(net, x)
    assert logits.shape == wanted
    given = run_onnx(to_onnx(net, channels=shape[1], multiple=8), x)
    assert np.abs(given - logits).max() <= 1e-4 * max(1.0, np.abs(logits).max())
    truth = torch.zeros((3, *wanted[2:]) if isinstance(net, BlobNet) else (3,), dtype=torch.uint8)
    said = torch.from_numpy(logits)
    louder = said.clone()
    louder[:, 0] += 1.0
    assert float(net.loss(louder, truth)) < float(net.loss(said, truth))


def test_crops_are_judged_within_their_own_group() -> None:
    net = supervised.seeded(CropNet, seed=1, outputs=5, groups=((0, 2), (2, 5)))
    answers = torch.zeros(2, 5, 1, 1)
    answers[0, 4], answers[1, 0] = 50.0, 50.0  # loud, but of the other sublattice
    expected = (np.log(2.0) + np.log(3.0)) / 2.0
    assert float(net.loss(answers, torch.tensor([0, 2]))) == pytest.approx(expected)


def test_balanced_answers_know_no_frequency() -> None:
    """What was seen nine times as often is no likelier than the other of its group, other groups stay as they are."""
    net = supervised.seeded(CropNet, seed=1, outputs=4, groups=((0, 2), (2, 4))).eval()
    x = torch.rand(1, 2, 24, 24)
    before = net(x).mean((2, 3))
    net.balance(torch.tensor([900.0, 100.0, 5.0, 5.0]))
    change = (net(x).mean((2, 3)) - before)[0].detach()
    assert float(change[1] - change[0]) == pytest.approx(np.log(9.0), abs=1e-4)
    assert float(change[3] - change[2]) == pytest.approx(0.0, abs=1e-5)
