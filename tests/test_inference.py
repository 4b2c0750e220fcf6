"""Networks at work: any size, tiles without seams, cards, registry and what is said when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flatscope.inference import card as cards
from flatscope.inference import registry
from flatscope.inference.card import Card, Score, WeightsError
from flatscope.inference.runtime import Network
from flatscope.inference.tiling import cut_tiles

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from flatscope.training.nets.flakenet import CLASSES, MAPS, FlakeNet  # noqa: E402
from flatscope.training.onnx_export import export  # noqa: E402


def make_net(widths: tuple[int, ...], seed: int) -> FlakeNet:
    """A net whose BatchNorm has statistics of its own, so that a forgotten or unfolded one shows."""
    torch.manual_seed(seed)
    net = FlakeNet(widths=widths)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    return net.eval()


def make_card(net: FlakeNet, **changes: object) -> Card:
    values: dict[str, object] = {
        "name": "tester", "version": "1", "task": "flakes", "recipe": "none", "training_data": "none: random weights",
        "seed": 3, "channels": ("red", "green", "blue"), "classes": CLASSES, "maps": MAPS, "scale": 0.1,
        "object_px": (6.0, 600.0), "multiple": net.multiple, "halo_px": net.halo_px,
        "thresholds": {"thin": 0.4, "edge": 0.5}, "licence": "BSD-3-Clause", "created_with": "tests",
        "scores": {"iou_thin": Score(value=0.5, low=0.4, high=0.6, data="µ: 4 scenes")},
    }  # fmt: skip
    return Card(**{**values, **changes})  # type: ignore[arg-type]


NETS = {"two levels": (4, 6), "three levels": (4, 6, 8), "as shipped": (16, 32, 64, 128)}


@pytest.fixture(scope="module", params=NETS, ids=lambda name: name.replace(" ", "-"))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FlakeNet, Network]:
    """A torch net and the same net loaded from its exported file."""
    torch.set_num_threads(1)
    net = make_net(NETS[request.param], seed=len(request.param))
    path = export(net, make_card(net), tmp_path_factory.mktemp("net") / "tester.onnx")
    return net, Network.load(path, threads=1)


def draw(rows: int, cols: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, rows, cols)).astype(np.float32)


# every network


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (16, 16), (33, 50), (48, 32), (127, 65)])
def test_any_size_equals_torch_on_the_padded_picture(
    pair: tuple[FlakeNet, Network], size: tuple[int, int]
) -> None:
    net, network = pair
    x = draw(*size)
    given = network.predict(x)
    pad = [(0, 0)] + [(0, -n % net.multiple) for n in size]
    with torch.inference_mode():
        wanted = net(torch.from_numpy(np.pad(x, pad, mode="symmetric")[None]))[0].numpy()
    assert given.dtype == np.float32
    assert given.shape == (len(CLASSES) + len(MAPS), *size)
    np.testing.assert_allclose(given, wanted[:, : size[0], : size[1]], atol=1e-4)


@pytest.mark.parametrize("size", [(400, 416), (401, 333)])
def test_tiles_equal_the_whole(pair: tuple[FlakeNet, Network], size: tuple[int, int]) -> None:
    _, network = pair
    x = draw(*size)
    whole = network.predict(x, whole_px=10**9)
    tiled = network.predict(x, whole_px=0, core_px=64)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_a_smaller_halo_would_leave_seams(pair: tuple[FlakeNet, Network]) -> None:
    _, network = pair
    short = dataclasses.replace(network.card, halo_px=0)
    seamed = dataclasses.replace(network, card=short)
    x = draw(256, 256)
    difference = np.abs(seamed.predict(x, whole_px=0, core_px=64) - network.predict(x))
    assert difference.max() > 1e-3


def test_halo_is_the_receptive_field(pair: tuple[FlakeNet, Network]) -> None:
    """No pixel outside the halo touches the block, and one multiple less would not do."""
    net, _ = pair
    block, halo = net.multiple, net.halo_px
    side = 2 * (halo + 2 * block) + block
    start = side // 2 // block * block
    # all-positive weights and no ReLU in play: nothing can cancel, so the gradient shows every path
    reach = FlakeNet(widths=tuple(1 for _ in net.widths), outputs=1).eval()
    for parameter in reach.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    reach.pool = torch.nn.AvgPool2d(2)  # the same field as the largest of four, without its choice
    x = torch.ones(1, 3, side, side, requires_grad=True)
    reach.double()(x.double())[0, 0, start : start + block, start : start + block].sum().backward()
    touched = torch.nonzero(x.grad[0].abs().sum(dim=0) > 0)
    low, high = int(touched.min()), int(touched.max())
    far = max(start - low, high - (start + block - 1))
    assert halo - block < far <= halo


def test_saved_and_loaded_again_gives_the_same(pair: tuple[FlakeNet, Network], tmp_path: Path) -> None:
    net, network = pair
    again = Network.load(export(net, network.card, tmp_path / "again.onnx"), threads=1)
    x = draw(40, 24)
    assert again.card == network.card
    np.testing.assert_array_equal(again.predict(x), network.predict(x))


def test_probabilities(pair: tuple[FlakeNet, Network]) -> None:
    _, network = pair
    x = 30 * draw(20, 20)  # logits of hundreds must not overflow
    logits, p = network.predict(x).astype(float), network.probabilities(x)
    np.testing.assert_allclose(p[:4].sum(axis=0), 1, atol=1e-5)
    odds = np.exp(np.clip(logits[1] - logits[0], -20, 20))
    safe = (p[0] > 1e-6) & (p[1] > 1e-6)
    np.testing.assert_allclose((p[1] / np.maximum(p[0], 1e-30))[safe], odds[safe], rtol=1e-2)
    np.testing.assert_allclose(p[4], 1 / (1 + np.exp(-np.clip(logits[4], -60, 60))), atol=1e-5)


def test_bad_input_is_named(pair: tuple[FlakeNet, Network]) -> None:
    _, network = pair
    with pytest.raises(
        ValueError, match=r"shape \(8, 8\) does not fit network tester: give \(3, rows, cols\)"
    ):
        network.predict(np.zeros((8, 8)))
    with pytest.raises(ValueError, match=r"shape \(3, 0, 4\)"):
        network.predict(np.zeros((3, 0, 4)))
    x = draw(9, 9)
    x[0, 2, 2], x[1, 3, 3] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 values that are not finite"):
        network.predict(x)


# tiles


@pytest.mark.parametrize(
    ("shape", "core", "halo", "step"), [((1, 1), 8, 3, 1), ((160, 96), 48, 32, 16), ((57, 300), 50, 7, 1)]
)
def test_each_pixel_has_one_owner(shape: tuple[int, int], core: int, halo: int, step: int) -> None:
    owners = np.zeros(shape, dtype=int)
    tiles = list(cut_tiles(shape, core_px=core, halo_px=halo, multiple=step))
    position = np.arange(shape[0] * shape[1]).reshape(shape)
    for tile in tiles:
        owners[tile.core] += 1
        np.testing.assert_array_equal(position[tile.window][tile.inner], position[tile.core])
        for axis in (0, 1):
            assert tile.core[axis].stop - tile.core[axis].start <= core
            assert tile.window[axis].start % step == 0
            left = tile.core[axis].start - tile.window[axis].start
            assert left == min(halo, tile.core[axis].start)
    assert (owners == 1).all()
    rng = np.random.default_rng(1)
    for row, col in rng.uniform(-0.5, 0.499, size=(50, 2)) + rng.integers(shape, size=(50, 2)):
        assert sum(tile.owns(row, col) for tile in tiles) == 1


def test_unaligned_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="core_px 50 and halo_px 32 must be multiples of 16"):
        list(cut_tiles((64, 64), core_px=50, halo_px=32, multiple=16))
    with pytest.raises(ValueError, match="65 x 64 px must be padded"):
        list(cut_tiles((65, 64), core_px=32, halo_px=32, multiple=16))


# card


@pytest.fixture
def card() -> Card:
    return make_card(FlakeNet(widths=(4, 6)))


def test_card_round_trip(card: Card) -> None:
    assert Card.from_json(card.to_json()) == card


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("classes"), "classes missing"),
        (lambda t: t.update(scale="0.1"), "scale = '0.1' has the wrong type"),
        (lambda t: t.update(scale=0), "scale = 0.0 is not positive"),
        (lambda t: t.update(format=2), "card of format 2, this flatscope reads 1"),
        (lambda t: t.update(colour="red"), "unknown entries colour"),
        (lambda t: t.update(halo_px=9), "halo_px = 9 is no multiple"),
        (lambda t: t.update(multiple=0), "multiple = 0 is not positive"),
        (lambda t: t.update(thresholds={"thick": 0.5, "bulk": 0.5}), "thresholds name bulk"),
        (lambda t: t.update(normalisation="contrast / scale"), "normalisation 'contrast / scale'"),
        (lambda t: t.update(maps=["thin"]), "repeat a name"),
        (lambda t: t.update(scores={"iou": {"value": 1}}), "scores need value, low, high"),
        (lambda t: t.update(object_px=[1]), r"object_px = \[1\] has the wrong type"),
        (lambda t: t.update(seed=True), "seed = True has the wrong type"),
    ],
)
def test_damaged_cards_say_what_is_wrong(card: Card, change, words: str) -> None:  # type: ignore[no-untyped-def]
    table = json.loads(card.to_json())
    change(table)
    with pytest.raises(WeightsError, match=words):
        Card.from_json(json.dumps(table))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_card_that_is_no_card(text: str) -> None:
    with pytest.raises(WeightsError, match="damaged card"):
        Card.from_json(text)


def test_normalisation_is_what_the_card_says(card: Card) -> None:
    contrast = np.random.default_rng(0).uniform(-0.9, 3, size=(5, 3, 3))
    x = card.normalise(contrast)
    assert x.shape == (3, 5, 3)
    np.testing.assert_allclose(np.sinh(x[1].astype(float)) * 0.1, contrast[:, :, 1], rtol=1e-5)
    with pytest.raises(ValueError, match=r"give \(rows, cols, 3\)"):
        card.normalise(np.zeros((3, 5, 4)))


# files


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = make_net((4, 6), seed=5)
    return export(net, make_card(net), tmp_path_factory.mktemp("good") / "tester.onnx")


def rewrite(path: Path, target: Path, card: str | None) -> Path:
    """The same network with another card, or none."""
    proto = onnx.load(path)
    del proto.metadata_props[:]
    if card is not None:
        onnx.helper.set_model_props(proto, {cards.KEY: card})
    target.write_bytes(proto.SerializeToString())
    return target


def one_line(error: pytest.ExceptionInfo[WeightsError]) -> bool:
    return "\n" not in str(error.value)


def test_damaged_files_are_named_in_one_line(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    for name, bad in {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "text": b"hello, not a network",
    }.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(bad)
        with pytest.raises(
            WeightsError, match=f"{name}.onnx: not a network that ONNX Runtime can read"
        ) as error:
            Network.load(path)
        assert one_line(error)


def test_a_network_without_a_card_is_refused(good: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"bare.onnx: holds no flatscope card"):
        Network.load(rewrite(good, tmp_path / "bare.onnx", None))
    with pytest.raises(WeightsError, match=r"odd.onnx: damaged card: is no JSON"):
        Network.load(rewrite(good, tmp_path / "odd.onnx", "{"))


def test_a_card_of_another_network_is_refused(good: Path, tmp_path: Path, card: Card) -> None:
    gray = dataclasses.replace(card, channels=("gray",)).to_json()
    with pytest.raises(WeightsError, match=r"the card says \(1, 1, 1\), the network has \(3, 1, 1\)"):
        Network.load(rewrite(good, tmp_path / "gray.onnx", gray))
    fewer = dataclasses.replace(card, maps=(), thresholds={}).to_json()
    with pytest.raises(WeightsError, match="card names 4 outputs, the network gives 5"):
        Network.load(rewrite(good, tmp_path / "fewer.onnx", fewer))
    with pytest.raises(WeightsError, match="for the task 'flakes', not 'orientation'"):
        Network.load(good, task="orientation")


def test_threads_below_one(good: Path) -> None:
    with pytest.raises(ValueError, match="threads = 0"):
        Network.load(good, threads=0)


def test_register_resolve_and_damage(good: Path, tmp_path: Path) -> None:
    assert registry.names(folder=tmp_path) == ()
    with pytest.raises(WeightsError, match="no weights called 'flakes'; shipped: none"):
        registry.resolve("flakes", folder=tmp_path)
    kept = registry.register(good, name="flakes", folder=tmp_path)
    assert registry.resolve("flakes", folder=tmp_path) == kept
    assert kept.read_bytes() == good.read_bytes()
    registry.register(good, name="columns", folder=tmp_path)
    assert registry.names(folder=tmp_path) == ("columns", "flakes")
    with pytest.raises(
        WeightsError, match=r"no weights called 'flake'; shipped: columns, flakes; or give an .onnx"
    ):
        registry.resolve("flake", folder=tmp_path)
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    with pytest.raises(WeightsError, match=r"'flakes' are damaged .*reinstall") as error:
        registry.resolve("flakes", folder=tmp_path)
    assert one_line(error)
    kept.unlink()
    with pytest.raises(WeightsError, match="'flakes' are missing: reinstall"):
        registry.resolve("flakes", folder=tmp_path)
    (tmp_path / "registry.json").write_text('{"flakes": 3}')
    with pytest.raises(WeightsError, match=r"registry.json: damaged list"):
        registry.resolve("flakes", folder=tmp_path)


def test_register_refuses(good: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'../x' cannot be a name"):
        registry.register(good, name="../x", folder=tmp_path)
    with pytest.raises(WeightsError, match=r"gone.onnx: no such file to register"):
        registry.register(tmp_path / "gone.onnx", name="flakes", folder=tmp_path)
    assert registry.names(folder=tmp_path) == ()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_missing_file_and_a_missing_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"mine.onnx: no such weights file; shipped: "):
        Network.load(tmp_path / "mine.onnx")
    with pytest.raises(WeightsError, match="no weights called 'nothing'"):
        Network.load("nothing")


def test_whatever_ships_is_whole() -> None:
    tasks = {"columns": "columns", "defects": "defects", "flakes": "flakes", "orientation": "orientation"}
    assert set(registry.names()) == set(tasks)
    for name, task in tasks.items():
        network = Network.load(name, task=task, threads=1)
        assert network.card.name == name
        assert network.path.stat().st_size <= 10 * 2**20


def test_inference_needs_no_torch(good: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        "import numpy as np; from flatscope.inference.runtime import Network\n"
        "assert 'onnxruntime' not in sys.modules, 'imported before it is needed'\n"
        "print(Network.load(sys.argv[1], threads=1).predict(np.zeros((3, 5, 7), 'f4')).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(good)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "(5, 5, 7)", done.stderr
