"""Losses, schedule, resuming, recipes and export: what a training run promises."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from flatscope.inference.runtime import Network  # noqa: E402
from flatscope.training import engine, flakes, losses, onnx_export, recipes  # noqa: E402
from flatscope.training.engine import Moment, Report, Schedule, Task, Trained  # noqa: E402
from flatscope.training.nets.flakenet import FlakeNet  # noqa: E402
from flatscope.training.recipes import Recipe, RecipeError  # noqa: E402
from flatscope.training.recipes.sections import SECTIONS, Flakes  # noqa: E402


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


PLANTED = {
    "name": "planted", "seed": 4, "scenes_train": 22, "scenes_val": 6, "epochs": 3, "batch": 4, "lr": 1e-2,
    "schedule": "cosine", "checkpoint_minutes": 1000,
    "flakes": {"scene_px": 32, "widths": [4, 8], "ema_decay": 0.8},
}  # fmt: skip


def make_recipe(**changes: object) -> Recipe[Flakes]:
    return recipes.from_dict(PLANTED).change(**changes)


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
    assert {recipes.load(name).task.name for name in recipes.names()} == set(SECTIONS)


def test_recipe_from_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nseed = 1\nscenes_train = 8\nscenes_val = 2\nepochs = 1\nbatch = 2\nlr = 1\n'
        'schedule = "cosine"\n[flakes]\nscene_px = 64\n'
    )
    recipe = recipes.load(path, lr=0.5, widths=(4, 8, 8))
    assert (recipe.name, recipe.lr, recipe.task.widths) == ("mine", 0.5, (4, 8, 8))
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
        ({"schedule": "linear"}, "schedule = linear must be one of cosine, poly"),
        ({"scenes_val": 0}, "scenes_val = 0 must be positive"),
        ({"bits": 16}, "bits = 16 must be 8 or 32"),
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
        recipes.from_dict({"name": "x", "columns": {}})
    with pytest.raises(RecipeError, match=r"has no section: add one of \[flakes\], "):
        recipes.from_dict({key: value for key, value in PLANTED.items() if key != "flakes"})
    with pytest.raises(RecipeError, match="a recipe has one section, not flakes, columns"):
        recipes.from_dict({**PLANTED, "columns": {}})


def test_a_key_in_the_wrong_place_is_sent_to_the_right_one() -> None:
    with pytest.raises(RecipeError, match=r"mine.toml: widths belongs below the line \[flakes\]"):
        recipes.from_dict({**PLANTED, "widths": [4, 8]}, source="mine.toml")
    wrong = {**PLANTED, "flakes": {"scene_px": 32, "lr": 1e-3}}
    with pytest.raises(RecipeError, match=r"mine.toml, \[flakes\]: lr belongs above the section"):
        recipes.from_dict(wrong, source="mine.toml")
    with pytest.raises(RecipeError, match=r"\[flakes\]: unknown key 'depth'"):
        make_recipe(depth=3)


def test_a_recipe_from_before_sections_says_which_keys_moved(tmp_path: Path) -> None:
    """Doing what the error says gives a recipe that works."""
    path = tmp_path / "old.toml"
    head = 'name = "old"\nseed = 1\nscenes_train = 8\nscenes_val = 2\nepochs = 1\nbatch = 2\nlr = 1e-3\n'
    path.write_text(
        f'{head}task = "columns"\npictures = "series"\nscene_px = 64\nwidths = [4, 8]\nbits = 32\n'
    )
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    assert str(caught.value) == (
        f"{path}: recipes have a section now: move scene_px, widths below a last line [columns], "
        'remove task, pictures, bits, and add schedule = "poly" above it'
    )
    path.write_text(f'{head}schedule = "poly"\n[columns]\nscene_px = 64\nwidths = [4, 8]\n')
    assert recipes.load(path).task.widths == (4, 8)


# schedule and augmentation


def test_learning_rate_warms_up_and_anneals() -> None:
    def rates(schedule: Schedule, *shares: float) -> list[float]:
        return [schedule.rate(Moment(round(100 * share), 100, share)) for share in shares]

    cosine = Schedule("cosine", 2.0, warmup=0.1, final_lr=0.05)
    np.testing.assert_allclose(rates(cosine, 0.05, 0.1, 0.55, 1.0), [1.0, 2.0, 2 * (0.05 + 0.95 / 2), 0.1])
    assert cosine.rate(Moment(0, 100, 0.0)) > 0
    assert rates(Schedule("cosine", 2.0), 0.0) == [2.0]
    np.testing.assert_allclose(rates(Schedule("late", 2.0), 0.0, 0.5, 0.75, 1.0), [2.0, 2.0, 1.0, 0.0])
    poly = rates(Schedule("poly", 2.0, warmup=0.1), 0.0, 0.09, 0.1, 0.55)
    np.testing.assert_allclose(poly, [0.2, 2.0, 2.0, 2.0 * 0.5**0.9])
    assert rates(Schedule("constant", 2.0), 0.0, 1.0) == [2.0, 2.0]


@pytest.mark.parametrize(("shape", "count"), [((6, 6), 8), ((4, 6), 4)])
def test_symmetries_turn_picture_and_truth_together(shape: tuple[int, int], count: int) -> None:
    base = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(1, *shape).repeat(300, axis=0)
    part = Part(np.stack([base, base, base], axis=1).astype(np.float16), base, base)
    x, classes, edges = flakes._load(
        part, np.arange(300), device=torch.device("cpu"), rng=np.random.default_rng(0)
    )
    np.testing.assert_array_equal(x[:, 1].numpy(), classes.numpy())
    np.testing.assert_array_equal(edges.numpy(), classes.numpy())
    assert len({item.tobytes() for item in classes.numpy()}) == count


# the loop, on the least task there is: a line through points, drawn anew at every step


PASSED = (
    4.82  # a sum of weights that the run comes to in its fourth step: its best weights are not the last ones
)


def make_line(*, steps: int = 12, validated: bool = False, **settings: object) -> Task[torch.Tensor]:
    """Adam, dropout and a batch of its own for every step; the weights are Task.parts["net"]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)

    def draw(step: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng([5, step]).normal(size=(6, 3)).astype(np.float32))

    def take(batch: torch.Tensor, at: Moment) -> dict[str, float]:
        loss = ((net(batch)[:, 0] - batch.sum(1)) ** 2).mean()
        return {"loss": engine.descend(optimiser, loss, rate=1e-2 * (1 - at.step / at.steps), step=at.step)}

    def validate() -> dict[str, float]:
        return {"score": -abs(float(net[0].weight.detach().abs().sum()) - PASSED)}

    if validated:
        settings |= {"validate": validate, "validate_every": 2}
    return Task({"net": net, "optimiser": optimiser}, draw, take, steps, {"points": 6}, **settings)  # type: ignore[arg-type]


def line_of(run: engine.Run[torch.Tensor]) -> np.ndarray:
    """The outcome of a run, and all that it would go on with."""
    parts = [run.weights, run.task.parts["net"].state_dict()]
    return torch.cat([value.flatten() for part in parts for value in part.values()]).numpy()


@pytest.mark.parametrize("validated", [False, True])
def test_a_run_that_ctrl_c_ends_goes_on_to_the_same_weights(tmp_path: Path, validated: bool) -> None:
    whole = engine.train(make_line(validated=validated))
    for step in (3, 4, 7):

        def stop(done: int, _: int, step: int = step) -> None:
            if done == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.train(make_line(validated=validated), checkpoint=tmp_path / "line.pt", on_progress=stop)
        assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == step
    parts = engine.train(make_line(validated=validated), checkpoint=tmp_path / "line.pt")
    np.testing.assert_array_equal(line_of(parts), line_of(whole))
    reports = [{**report, "minutes": 0} for report in whole.history]
    assert [{**report, "minutes": 0} for report in parts.history] == reports
    assert len(reports) == (6 if validated else 0)
    again = engine.train(
        make_line(validated=validated),
        checkpoint=tmp_path / "line.pt",
        on_progress=lambda *_: pytest.fail("ran"),
    )
    np.testing.assert_array_equal(line_of(again), line_of(whole))


def test_a_run_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Without a word, after seven steps; of these the checkpoint knows five, and steps six and seven are repeated."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import test_training as home\n"
        "from flatscope.training import engine\n"
        "home.torch.set_num_threads(1)\n"
        "save = engine.Run.save\n"
        "engine.Run.save = lambda run: save(run) if run.step <= 5 else None\n"
        "def kill(done, total):\n"
        "    if done == 7:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "line = home.make_line(validated=True, checkpoint_minutes=1e-9)\n"
        "engine.train(line, checkpoint=Path(sys.argv[1]), on_progress=kill)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(engine.__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "line.pt"
    ended = subprocess.run([sys.executable, str(script), str(checkpoint)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert torch.load(checkpoint, weights_only=True)["step"] == 5
    (tmp_path / ".line.pt.1.tmp").write_bytes(b"half a checkpoint")  # what a kill while writing leaves
    parts = engine.train(make_line(validated=True), checkpoint=checkpoint)
    np.testing.assert_array_equal(line_of(parts), line_of(engine.train(make_line(validated=True))))


def test_a_run_that_its_budget_ends_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.train(make_line())
    ticks = iter(range(10**6))
    monkeypatch.setattr(engine.time, "perf_counter", lambda: float(next(ticks)))
    first = engine.train(make_line(max_minutes=0.1), checkpoint=tmp_path / "line.pt")
    assert 0 < first.step < 12
    rest = engine.train(make_line(max_minutes=10.0), checkpoint=tmp_path / "line.pt")
    assert rest.elapsed > first.elapsed
    np.testing.assert_array_equal(line_of(rest), line_of(whole))


def test_the_best_weights_are_kept_and_not_the_last() -> None:
    run = engine.train(make_line(validated=True))
    scores = [report["measured"]["score"] for report in run.history]
    assert run.best_score == max(scores) > scores[-1]
    best = float(run.weights["0.weight"].abs().sum())
    assert -abs(best - PASSED) == pytest.approx(max(scores))


def test_a_checkpoint_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "line.pt"
    engine.train(make_line(steps=1), checkpoint=path)
    other = make_line(steps=1)
    with pytest.raises(
        RecipeError, match=r"line.pt: made with points = 6, this run has 7: train into another"
    ):
        engine.train(Task(other.parts, other.draw, other.take, 1, {"points": 7}), checkpoint=path)
    for content in (b"", b"no checkpoint", path.read_bytes()[:300]):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=r"line.pt is not a checkpoint of this version"):
            engine.train(make_line(), checkpoint=path)
    torch.save({"format": 1, "recipe": {}}, path)
    with pytest.raises(RecipeError, match=r"line.pt is not a checkpoint of this version"):
        engine.train(make_line(), checkpoint=path)


def test_a_checkpoint_runs_no_foreign_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"format": 2, "trap": Trap()}, tmp_path / "line.pt")
    with pytest.raises(RecipeError, match="not a checkpoint"):
        engine.train(make_line(), checkpoint=tmp_path / "line.pt")
    assert not (tmp_path / "sprung").exists()


# the flake finder


def weights_of(net: torch.nn.Module) -> np.ndarray:
    return torch.cat([value.flatten().double() for value in net.state_dict().values()]).numpy()


def read(path: Path) -> dict[str, object]:
    return torch.load(path, weights_only=True)


def test_training_beats_the_constant_predictor(planted: Planted, tmp_path: Path) -> None:
    reports: list[Report] = []
    recipe = make_recipe(epochs=25, widths=[8, 16], lr=2e-2)
    trained = flakes.train_on(planted, recipe, out=tmp_path, on_report=reports.append)
    constant = float((planted.val.classes == 1).mean())
    assert len(reports) == 25
    assert reports[-1].measured["iou_thin"] > max(0.8, 2 * constant)
    assert reports[-1].measured["iou_thick"] > 0.5
    assert reports[-1].measured["loss"] < reports[0].measured["loss"]
    scores = trained.card.scores
    top = max(reports, key=lambda report: report.measured["score"])
    assert scores["iou_thin"].value == pytest.approx(top.measured["iou_thin"], abs=1e-6)
    assert all(score.low <= score.value <= score.high for score in scores.values())
    assert 0 < trained.card.thresholds["thin"] < 1
    assert [path.name for path in tmp_path.iterdir()] == ["planted.pt"]


def test_a_resumed_run_equals_an_uninterrupted_one(planted: Planted, tmp_path: Path) -> None:
    """Averaged weights, symmetries and normalisation included."""
    recipe = make_recipe()
    whole = flakes.train_on(planted, recipe, out=tmp_path / "whole")

    def stop_at(step: int) -> None:
        def stop(done: int, total: int) -> None:
            assert total == 18
            if done == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            flakes.train_on(planted, recipe, out=tmp_path / "parts", on_progress=stop)

    stop_at(3)  # within an epoch
    stop_at(12)  # after an epoch's last step, before it is validated
    parts = flakes.train_on(planted, recipe, out=tmp_path / "parts")
    np.testing.assert_array_equal(weights_of(parts.net), weights_of(whole.net))
    assert parts.card == whole.card
    again = flakes.train_on(
        planted, recipe, out=tmp_path / "parts", on_progress=lambda done, total: pytest.fail("ran")
    )
    np.testing.assert_array_equal(weights_of(again.net), weights_of(whole.net))
    fresh = flakes.train_on(planted, recipe, out=tmp_path / "parts", resume=False)
    np.testing.assert_array_equal(weights_of(fresh.net), weights_of(whole.net))


def test_ctrl_c_within_a_step_waits_for_its_end(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = flakes.flake_loss, []

    def interrupted(*args: object, **settings: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **settings)  # type: ignore[arg-type]

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(flakes, "flake_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flakes.train_on(planted, make_recipe(), out=tmp_path)
    assert read(tmp_path / "planted.pt")["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_the_time_budget_ends_the_run_annealed(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(engine.time, "perf_counter", lambda: float(next(ticks)))
    recipe = make_recipe(epochs=1000, max_minutes=1, batch=1)  # 22 steps an epoch: it ends within one
    reports: list[Report] = []
    steps: list[tuple[int, int]] = []
    flakes.train_on(
        planted,
        recipe,
        out=tmp_path,
        on_report=reports.append,
        on_progress=lambda a, b: steps.append((a, b)),
    )
    assert 30 < reports[-1].step <= 60
    assert reports[-1].measured["lr"] < 0.05 * recipe.lr
    assert steps[-1][0] == steps[-1][1]
    assert abs(steps[len(steps) // 2][1] - steps[-1][0]) < 15  # the estimate of the total, halfway


def test_a_checkpoint_of_another_recipe_is_refused(planted: Planted, tmp_path: Path) -> None:
    def train(*, resume: bool = True, **changes: object) -> Trained:
        return flakes.train_on(planted, make_recipe(**changes), out=tmp_path, resume=resume)

    train(epochs=1)
    with pytest.raises(RecipeError, match=r"planted.pt: made with lr = 0.01, this run has 0.02"):
        train(epochs=1, lr=0.02)
    with pytest.raises(RecipeError, match=r"made with widths = \[4, 8\], this run has \[4, 16\]"):
        train(epochs=1, widths=[4, 16])
    train(epochs=1, lr=0.02, resume=False)
    assert read(tmp_path / "planted.pt")["identity"]["lr"] == 0.02  # type: ignore[index]
    train(epochs=2, lr=0.02)  # more of the same is allowed
    assert read(tmp_path / "planted.pt")["step"] == 12


def test_data_and_device_that_do_not_fit(planted: Planted, tmp_path: Path) -> None:
    wrong = Part(planted.val.contrast, planted.val.classes.astype(np.int64), planted.val.edges)
    with pytest.raises(RecipeError, match=r"val.classes is int64 .* must be uint8"):
        flakes.train_on(Planted(planted.train, wrong), make_recipe(), out=tmp_path)
    odd = Part(planted.val.contrast[..., :-1], planted.val.classes[..., :-1], planted.val.edges[..., :-1])
    with pytest.raises(RecipeError, match=r"train.contrast is \(6, 3, 32, 31\)"):
        flakes.train_on(Planted(odd, planted.val), make_recipe(), out=tmp_path)
    with pytest.raises(RecipeError, match="no device called 'abacus'"):
        flakes.train_on(planted, make_recipe(), out=tmp_path, device="abacus")


def test_a_loss_that_is_not_finite_stops_the_run(planted: Planted, tmp_path: Path) -> None:
    sick = np.full_like(planted.train.contrast, np.nan)
    data = Planted(Part(sick, planted.train.classes, planted.train.edges), planted.val)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        flakes.train_on(data, make_recipe(), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_threshold_is_where_the_overlap_is_best() -> None:
    bins = np.zeros((2, 50), dtype=np.int64)
    bins[0, :30], bins[1, 25:] = 10, 10  # truth: no below 0.6, yes above 0.5
    p = (np.arange(50) + 0.5) / 50
    dice = [2 * bins[1, p > t].sum() / (bins[1].sum() + bins[:, p > t].sum()) for t in np.arange(50) / 50]
    assert flakes._best_threshold(bins) == pytest.approx(np.argmax(dice) / 50)
    assert flakes._best_threshold(np.zeros((2, 50), dtype=np.int64)) == 0.5


# export


def test_from_checkpoint_to_answers(planted: Planted, tmp_path: Path) -> None:
    trained = flakes.train_on(planted, make_recipe(epochs=2), out=tmp_path)
    net, card = trained.net, trained.card
    network = Network.load(onnx_export.export(net, card, tmp_path / "planted.onnx"), threads=1)
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
    trained = flakes.train_on(planted, make_recipe(epochs=1), out=tmp_path)
    path = onnx_export.export(trained.net, trained.card, tmp_path / "net.onnx")
    before = path.read_bytes()
    with pytest.raises(onnx_export.ExportError, match="exported planted differs from torch by"):
        onnx_export.export(Frozen(widths=(4, 8)), trained.card, path)
    assert path.read_bytes() == before
    assert not [found for found in tmp_path.iterdir() if found.name.startswith(".")]


def test_eight_bits_decide_as_thirty_two(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = flakes.train_on(planted, make_recipe(epochs=8, bits=8), out=tmp_path)
    net, card = trained.net, trained.card
    np.testing.assert_array_equal(trained.calibration, planted.train.contrast)
    exact, coarse = tmp_path / "exact.onnx", tmp_path / "coarse.onnx"
    onnx_export.export(net, card, exact)
    onnx_export.export(net, card, coarse, calibration=planted.train.contrast[:8])
    assert b"QuantizeLinear" in coarse.read_bytes()
    assert b"QuantizeLinear" not in exact.read_bytes()
    wanted, given = (
        np.stack([Network.load(path, threads=1).predict(x)[:4].argmax(0) for x in planted.val.contrast])
        for path in (exact, coarse)
    )
    assert np.mean(wanted != given) < 0.01
    before = coarse.read_bytes()
    monkeypatch.setattr(onnx_export, "_MOST_CHANGED", -1.0)
    with pytest.raises(onnx_export.ExportError, match="8 bits change the class of"):
        onnx_export.export(net, card, coarse, calibration=planted.train.contrast[:8])
    assert coarse.read_bytes() == before


def test_the_shipped_net_is_small_enough() -> None:
    recipe = recipes.load("flakes")
    net = FlakeNet(widths=recipe.task.widths)
    assert 4 * sum(parameter.numel() for parameter in net.parameters()) <= 10 * 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_gpu_trains_what_the_cpu_trains(planted: Planted, tmp_path: Path) -> None:
    reports: list[Report] = []
    trained = flakes.train_on(
        planted, make_recipe(epochs=12), out=tmp_path, device="cuda", on_report=reports.append
    )
    assert reports[-1].measured["iou_thin"] > 0.8
    onnx_export.export(trained.net, trained.card, tmp_path / "gpu.onnx")
