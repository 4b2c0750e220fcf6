"""Losses, schedule, resuming, recipes and export: what a training run promises."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from flatscope.inference.runtime import Network  # noqa: E402
from flatscope.training import export, loop, losses, recipes  # noqa: E402
from flatscope.training.nets.flakenet import FlakeNet  # noqa: E402
from flatscope.training.recipes import Recipe, RecipeError  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Part:
    contrast: np.ndarray
    classes: np.ndarray
    edges: np.ndarray


@dataclass(frozen=True)
class Planted:
    train: Part
    val: Part


def plant(n: int, side: int, rng: np.random.Generator) -> Part:
    """Squares, thin or thick, whose contrast tells the class apart from the noise."""
    classes = np.zeros((n, side, side), dtype=np.uint8)
    for scene in classes:
        for kind in (1, 2, 1):
            row, col = rng.integers(0, side - 8, size=2)
            scene[row : row + rng.integers(5, 12), col : col + rng.integers(5, 12)] = kind
    edges = np.zeros_like(classes)
    edges[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    edges[:, :, 1:] |= classes[:, :, 1:] != classes[:, :, :-1]
    level = np.array([0, -1.0, 1.5])[classes]
    contrast = level[:, None] + 0.3 * rng.normal(size=(n, 3, side, side))
    return Part(contrast.astype(np.float16), classes, edges)


@pytest.fixture(scope="module")
def planted() -> Planted:
    rng = np.random.default_rng(11)
    return Planted(plant(22, 32, rng), plant(6, 32, rng))


def make_recipe(**changes: object) -> Recipe:
    table = {
        "name": "planted", "seed": 4, "scenes_train": 22, "scenes_val": 6, "scene_px": 32, "epochs": 3, "batch": 4,
        "lr": 1e-2, "widths": [4, 8], "ema_decay": 0.8, "checkpoint_minutes": 1000,
    }  # fmt: skip
    return recipes.from_dict({**table, **changes})


# losses


def test_cross_entropy_against_arithmetic() -> None:
    logits = torch.tensor([[[[2.0, 0.0, 5.0]], [[0.0, 1.0, 5.0]]]])
    classes = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    first, second = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))
    assert float(losses.cross_entropy(logits, classes)) == pytest.approx((first + second) / 2)
    weighted = losses.cross_entropy(logits, classes, weights=(1.0, 3.0))
    assert float(weighted) == pytest.approx((first + 3 * second) / 4)


def test_dice_against_arithmetic() -> None:
    p = torch.tensor([0.9, 0.2, 0.6, 0.5])
    logits = torch.stack((torch.zeros(4), torch.log(p / (1 - p))))[None, :, None, :]
    classes = torch.tensor([[[1, 0, 1, 255]]], dtype=torch.uint8)
    wanted = 1 - (2 * 1.5 + 1) / (1.7 + 2 + 1)
    assert float(losses.soft_dice(logits, classes, index=1)) == pytest.approx(wanted)


def test_edge_loss_against_arithmetic() -> None:
    logits = torch.tensor([[[1.0, -2.0, 9.0]]])
    truth = torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)
    wanted = (3 * math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2
    assert float(losses.binary_cross_entropy(logits, truth, positive_weight=3)) == pytest.approx(wanted)


def test_ignored_pixels_have_no_gradient() -> None:
    logits = torch.randn(1, 5, 6, 6, requires_grad=True, generator=torch.Generator().manual_seed(0))
    classes = torch.ones(1, 6, 6, dtype=torch.uint8)
    edges = torch.zeros(1, 6, 6, dtype=torch.uint8)
    classes[:, :3], edges[:, :3] = 255, 255
    losses.flake_loss(logits, classes, edges, class_weights=(1, 2, 1, 2)).backward()
    assert float(logits.grad[:, :, :3].abs().max()) == 0
    assert float(logits.grad[:, :, 3:].abs().min()) > 0


def test_a_batch_without_labels_does_no_harm() -> None:
    logits = torch.randn(1, 5, 4, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    nothing = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    loss = losses.flake_loss(logits, nothing, nothing, class_weights=(1, 2, 1, 2))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().max()) == 0


# recipes


def test_shipped_recipes_are_sound() -> None:
    assert {"flakes", "flakes-quick"} <= set(recipes.names())
    for name in recipes.names():
        recipe = recipes.load(name)
        assert recipe.name == name
        assert recipes.from_dict(recipe.to_dict()) == recipe


def test_recipe_from_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nseed = 1\nscenes_train = 8\nscenes_val = 2\nscene_px = 64\nepochs = 1\nbatch = 2\nlr = 1\n'
    )
    recipe = recipes.load(path, lr=0.5, widths=(4, 8, 8))
    assert (recipe.name, recipe.lr, recipe.widths) == ("mine", 0.5, (4, 8, 8))
    assert recipes.load(str(path)).lr == 1.0
    path.write_text("name = ")
    with pytest.raises(RecipeError, match=r"mine.toml: not valid TOML"):
        recipes.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 1}, "unknown key 'learning_rate'"),
        ({"epoch": 1}, "did you mean 'epochs'"),
        ({"epochs": "three"}, "epochs = 'three' must be int"),
        ({"epochs": 2.5}, "epochs = 2.5 must be int"),
        ({"batch": True}, "batch = True must be int"),
        ({"lr": -1}, r"lr = -1.0 must be positive"),
        ({"scene_px": 30}, "scene_px = 30 must be a multiple of 4"),
        ({"class_weights": [1, 1, 1]}, "must be four positive numbers"),
        ({"object_px": [3]}, "must be a list of 2"),
        ({"widths": 4}, "widths = 4 must be a list"),
        ({"ema_decay": 1}, r"ema_decay = 1.0 must lie in \[0, 1\)"),
        ({"max_minutes": 0}, r"max_minutes = 0.0 must be positive"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_recipe(**change)


def test_unknown_and_unfinished_recipes() -> None:
    with pytest.raises(RecipeError, match=r"no recipe called 'flake': choose one of .*flakes"):
        recipes.load("flake")
    with pytest.raises(RecipeError, match=r"gone.toml: no such recipe file; recipes that ship: .*flakes"):
        recipes.load("gone.toml")
    with pytest.raises(RecipeError, match=r"missing .*seed"):
        recipes.from_dict({"name": "x"})


# schedule and augmentation


def test_learning_rate_warms_up_and_anneals() -> None:
    recipe = make_recipe(lr=2.0, warmup=0.1, final_lr=0.05)
    rates = [loop.learning_rate(recipe, fraction=f) for f in (0.05, 0.1, 0.55, 1.0)]
    np.testing.assert_allclose(rates, [1.0, 2.0, 2 * (0.05 + 0.95 / 2), 0.1])
    assert loop.learning_rate(recipe, fraction=0.0) > 0
    flat = make_recipe(lr=2.0, warmup=0.0)
    assert loop.learning_rate(flat, fraction=0.0) == 2.0


@pytest.mark.parametrize(("shape", "count"), [((6, 6), 8), ((4, 6), 4)])
def test_symmetries_turn_picture_and_truth_together(shape: tuple[int, int], count: int) -> None:
    base = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(1, *shape).repeat(300, axis=0)
    part = Part(np.stack([base, base, base], axis=1).astype(np.float16), base, base)
    x, classes, edges = loop._load(
        part, np.arange(300), device=torch.device("cpu"), rng=np.random.default_rng(0)
    )
    np.testing.assert_array_equal(x[:, 1].numpy(), classes.numpy())
    np.testing.assert_array_equal(edges.numpy(), classes.numpy())
    assert len({item.tobytes() for item in classes.numpy()}) == count


# the loop


def weights_of(path: Path) -> np.ndarray:
    net, _ = loop.load_net(path)
    return torch.cat([value.flatten().double() for value in net.state_dict().values()]).numpy()


def test_training_beats_the_constant_predictor(planted: Planted, tmp_path: Path) -> None:
    reports: list[loop.EpochReport] = []
    recipe = make_recipe(epochs=25, widths=[8, 16], lr=2e-2)
    best = loop.train(recipe, out=tmp_path, data=planted, on_epoch=reports.append)
    constant = float((planted.val.classes == 1).mean())
    assert len(reports) == 25
    assert reports[-1].iou_thin > max(0.8, 2 * constant)
    assert reports[-1].iou_thick > 0.5
    assert reports[-1].val_loss < reports[0].val_loss
    _, info = loop.load_net(best)
    scores = info["scores"]
    top = max(reports, key=lambda report: report.score)
    assert scores["iou_thin"]["value"] == pytest.approx(top.iou_thin, abs=1e-6)
    assert all(score["low"] <= score["value"] <= score["high"] for score in scores.values())
    assert 0 < info["thresholds"]["thin"] < 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt"]


def test_a_resumed_run_equals_an_uninterrupted_one(planted: Planted, tmp_path: Path) -> None:
    recipe = make_recipe()
    whole = loop.train(recipe, out=tmp_path / "whole", data=planted)

    def stop_at(step: int) -> None:
        def stop(done: int, total: int) -> None:
            assert total == 18
            if done == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, out=tmp_path / "parts", data=planted, on_progress=stop)

    stop_at(3)  # within an epoch
    stop_at(12)  # after an epoch's last step, before it is judged
    parts = loop.train(recipe, out=tmp_path / "parts", data=planted)
    np.testing.assert_array_equal(weights_of(parts), weights_of(whole))
    histories = [loop.load_net(tmp_path / run / "last.pt")[1]["history"] for run in ("whole", "parts")]
    for mine, other in zip(*histories, strict=True):
        assert {**mine, "minutes": 0} == {**other, "minutes": 0}
    again = loop.train(
        recipe, out=tmp_path / "parts", data=planted, on_progress=lambda done, total: pytest.fail("ran")
    )
    np.testing.assert_array_equal(weights_of(again), weights_of(whole))


def test_ctrl_c_within_a_step_waits_for_its_end(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop.flake_loss, []

    def interrupted(*args: object, **settings: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **settings)  # type: ignore[arg-type]

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(loop, "flake_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(make_recipe(), out=tmp_path, data=planted)
    assert loop.load_net(tmp_path / "last.pt")[1]["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_the_time_budget_ends_the_run_annealed(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(ticks)))
    recipe = make_recipe(epochs=1000, max_minutes=1, batch=1)  # 22 steps an epoch: it ends within one
    reports: list[loop.EpochReport] = []
    steps: list[tuple[int, int]] = []
    loop.train(
        recipe,
        out=tmp_path,
        data=planted,
        on_epoch=reports.append,
        on_progress=lambda a, b: steps.append((a, b)),
    )
    assert 30 < reports[-1].step <= 60
    assert reports[-1].lr < 0.05 * recipe.lr
    assert steps[-1][0] == steps[-1][1]
    assert abs(steps[len(steps) // 2][1] - steps[-1][0]) < 15  # the estimate of the total, halfway


def test_a_checkpoint_of_another_recipe_is_refused(planted: Planted, tmp_path: Path) -> None:
    loop.train(make_recipe(epochs=1), out=tmp_path, data=planted)
    with pytest.raises(RecipeError, match=r"last.pt: made with lr = 0.01, this recipe says 0.02"):
        loop.train(make_recipe(epochs=1, lr=0.02), out=tmp_path, data=planted)
    loop.train(make_recipe(epochs=1, lr=0.02), out=tmp_path, data=planted, resume=False)
    assert loop.load_net(tmp_path / "best.pt")[1]["recipe"]["lr"] == 0.02
    loop.train(make_recipe(epochs=2, lr=0.02), out=tmp_path, data=planted)  # more of the same is allowed
    assert loop.load_net(tmp_path / "last.pt")[1]["step"] == 12
    (tmp_path / "best.pt").unlink()
    best = loop.train(make_recipe(epochs=2, lr=0.02), out=tmp_path, data=planted)  # the last stands in for it
    assert "scores" in loop.load_net(best)[1]


def test_data_and_device_that_do_not_fit(planted: Planted, tmp_path: Path) -> None:
    wrong = Part(planted.val.contrast, planted.val.classes.astype(np.int64), planted.val.edges)
    with pytest.raises(RecipeError, match=r"val.classes is int64 .* must be uint8"):
        loop.train(make_recipe(), out=tmp_path, data=Planted(planted.train, wrong))
    odd = Part(planted.val.contrast[..., :-1], planted.val.classes[..., :-1], planted.val.edges[..., :-1])
    with pytest.raises(RecipeError, match=r"train.contrast is \(6, 3, 32, 31\)"):
        loop.train(make_recipe(), out=tmp_path, data=Planted(odd, planted.val))
    with pytest.raises(RecipeError, match="no device called 'abacus'"):
        loop.train(make_recipe(), out=tmp_path, data=planted, device="abacus")


def test_a_loss_that_is_not_finite_stops_the_run(planted: Planted, tmp_path: Path) -> None:
    sick = np.full_like(planted.train.contrast, np.nan)
    data = Planted(Part(sick, planted.train.classes, planted.train.edges), planted.val)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        loop.train(make_recipe(), out=tmp_path, data=data)


def test_threshold_is_where_the_overlap_is_best() -> None:
    bins = np.zeros((2, 50), dtype=np.int64)
    bins[0, :30], bins[1, 25:] = 10, 10  # truth: no below 0.6, yes above 0.5
    p = (np.arange(50) + 0.5) / 50
    dice = [2 * bins[1, p > t].sum() / (bins[1].sum() + bins[:, p > t].sum()) for t in np.arange(50) / 50]
    assert loop._best_threshold(bins) == pytest.approx(np.argmax(dice) / 50)
    assert loop._best_threshold(np.zeros((2, 50), dtype=np.int64)) == 0.5


# export


def test_from_checkpoint_to_answers(planted: Planted, tmp_path: Path) -> None:
    best = loop.train(make_recipe(epochs=2), out=tmp_path, data=planted)
    net, card = export.read_checkpoint(best)
    network = Network.load(export.export(net, card, tmp_path / "planted.onnx"), threads=1)
    assert network.card == card
    assert (card.name, card.seed, card.multiple, card.halo_px) == ("planted", 4, 4, net.halo_px)
    assert set(card.thresholds) == {"thin", "edge"}
    x = planted.val.contrast[0].astype(np.float32)
    with torch.inference_mode():
        wanted = net(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(network.predict(x), wanted, atol=1e-4)


class Frozen(FlakeNet):
    """Computes with the traced picture's height, as a careless net would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float(int(x.shape[2]))


def test_an_export_that_differs_leaves_the_old_file(planted: Planted, tmp_path: Path) -> None:
    best = loop.train(make_recipe(epochs=1), out=tmp_path, data=planted)
    net, card = export.read_checkpoint(best)
    path = export.export(net, card, tmp_path / "net.onnx")
    before = path.read_bytes()
    with pytest.raises(export.ExportError, match="exported planted differs from torch by"):
        export.export(Frozen(widths=(4, 8)), card, path)
    assert path.read_bytes() == before
    assert not [found for found in tmp_path.iterdir() if found.name.startswith(".")]


def test_eight_bits_decide_as_thirty_two(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = loop.train(make_recipe(epochs=8), out=tmp_path, data=planted)
    net, card = export.read_checkpoint(best)
    exact, coarse = tmp_path / "exact.onnx", tmp_path / "coarse.onnx"
    export.export(net, card, exact)
    export.export(net, card, coarse, calibration=planted.train.contrast[:8])
    assert b"QuantizeLinear" in coarse.read_bytes()
    assert b"QuantizeLinear" not in exact.read_bytes()
    wanted, given = (
        np.stack([Network.load(path, threads=1).predict(x)[:4].argmax(0) for x in planted.val.contrast])
        for path in (exact, coarse)
    )
    assert np.mean(wanted != given) < 0.01
    before = coarse.read_bytes()
    monkeypatch.setattr(export, "_MOST_CHANGED", -1.0)
    with pytest.raises(export.ExportError, match="8 bits change the class of"):
        export.export(net, card, coarse, calibration=planted.train.contrast[:8])
    assert coarse.read_bytes() == before


def test_the_shipped_net_is_small_enough() -> None:
    recipe = recipes.load("flakes")
    net = FlakeNet(widths=recipe.widths)
    assert 4 * sum(parameter.numel() for parameter in net.parameters()) <= 10 * 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_gpu_trains_what_the_cpu_trains(planted: Planted, tmp_path: Path) -> None:
    reports: list[loop.EpochReport] = []
    best = loop.train(
        make_recipe(epochs=12), out=tmp_path, data=planted, device="cuda", on_epoch=reports.append
    )
    assert reports[-1].iou_thin > 0.8
    net, card = export.read_checkpoint(best)
    export.export(net, card, tmp_path / "gpu.onnx")
