"""Labelled pictures: read in four formats, and what the flake finder learns from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatscope.app.cli import run
from flatscope.evaluation import adaptation, monolayers
from flatscope.evaluation.adaptation import RegionErrors, count_errors
from flatscope.files.label_formats import layers_of
from flatscope.files.layer_labels import Labels, find_layer_labels
from flatscope.inference.card import WeightsError
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.layers import count_layers, sample_ladders
from flatscope.optical.observations import KnownRegion, observe_known
from flatscope.optical.photographs import Microscope
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.optical.setups import Prior
from flatscope.results import THICK_LABEL
from flatscope.training import adapt, onnx_export, recipes
from flatscope.training.adapt import LabelledPicture
from flatscope.training.nets.flakenet import FlakeNet

# A monolayer from column 2 to 8 and row 1 to 7, with a bilayer terrace in it, seen from the corner of the picture.
SQUARE = [[2, 1], [8, 1], [8, 7], [2, 7]]
TERRACE = [[4, 3], [6, 3], [6, 5], [4, 5]]
SHAPE = (10, 12)


def expected() -> np.ndarray:
    layers = np.zeros(SHAPE, np.uint8)
    layers[1:7, 2:8] = 1
    layers[3:5, 4:6] = 2
    return layers


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def coco(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "folder/a.png", "width": 12, "height": 10}],
        "categories": [{"id": 1, "name": "Monolayer"}, {"id": 2, "name": "2L"}],
        "annotations": [{"image_id": 7, "id": i, **item} for i, item in enumerate(annotations)],
    }


def flat(points: list[list[int]]) -> list[int]:
    return [value for point in points for value in point]


LABELME = {
    "imagePath": "C:\\photos\\a.png",
    "shapes": [
        {"label": "2 layers", "points": [[4, 3], [6, 5]], "shape_type": "rectangle"},
        {"label": "1L", "points": SQUARE, "shape_type": "polygon"},
    ],
}
LABEL_STUDIO = [
    {
        "data": {"image": "/data/upload/3/1f2e3d4c-a.png"},
        "annotations": [
            {
                "result": [
                    {
                        "type": "polygonlabels",
                        "value": {
                            "points": [[100 * x / SHAPE[1], 100 * y / SHAPE[0]] for x, y in points],
                            "polygonlabels": [name],
                        },
                    }
                    for name, points in (("bilayer", TERRACE), ("monolayer", SQUARE))
                ]
            }
        ],
    }
]


@pytest.mark.parametrize(
    "content",
    [
        coco(
            {"category_id": 2, "segmentation": [flat(TERRACE)]},
            {"category_id": 1, "segmentation": [flat(SQUARE)]},
        ),
        LABELME,
        LABEL_STUDIO,
    ],
    ids=["coco", "labelme", "label-studio"],
)
def test_outlines_of_every_format_become_the_same_label_image(tmp_path: Path, content: Any) -> None:
    """The half pixel between corner and centre, shares of the picture, other systems' paths; terraces lie on top."""
    found = find_layer_labels([Path("a.png"), Path("other.png")], write(tmp_path / "labels.json", content))
    assert list(found) == [Path("a.png")]
    drawn = found[Path("a.png")].draw(SHAPE)
    np.testing.assert_array_equal(drawn, expected())


def test_coco_masks_are_decoded_as_pycocotools_does(tmp_path: Path) -> None:
    from pycocotools import mask as reference

    rng = np.random.default_rng(1)
    for trial in range(20):
        mask = rng.random(SHAPE) < rng.random()
        runs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        runs = {"size": runs["size"], "counts": runs["counts"].decode()}
        path = write(tmp_path / f"{trial}.json", coco({"category_id": 1, "segmentation": runs}))
        drawn = find_layer_labels([Path("a.png")], path)[Path("a.png")].draw(SHAPE)
        np.testing.assert_array_equal(drawn, mask.astype(np.uint8))


def test_label_images_stand_beside_or_apart_and_win_over_outlines(tmp_path: Path) -> None:
    layers = expected()
    layers[0, 0], layers[9, 9] = THICK_LABEL, 255
    Image.fromarray(layers).save(tmp_path / "a.layers.png")
    write(tmp_path / "all.json", LABELME)
    found = find_layer_labels([Path("pictures/a.jpg")], tmp_path)
    np.testing.assert_array_equal(found[Path("pictures/a.jpg")].draw(SHAPE), layers)
    with pytest.raises(MicrographError, match="12x10 px on one of 9x9"):
        found[Path("pictures/a.jpg")].draw((9, 9))
    # The picture itself is no label image of its own.
    Image.fromarray(layers).save(tmp_path / "b.png")
    assert find_layer_labels([tmp_path / "b.png"], tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "layers"),
    [("1L", 1), ("Monolayer", 1), ("bi-layer", 2), ("3 layers", 3), ("12L", THICK_LABEL), ("bulk", THICK_LABEL),
     ("background", 0), ("dirt", 255), ("6", 6), ("255", 255)],
)  # fmt: skip
def test_names_of_layer_numbers(name: str, layers: int) -> None:
    assert layers_of(name) == layers


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ({"a": 1}, "neither COCO nor labelme nor Label Studio"),
        ([], None),
        (
            {**LABELME, "shapes": [{"label": "flake", "points": SQUARE}]},
            "'flake' is no layer number: call it 1L",
        ),
        ({**LABELME, "shapes": [{"label": "1L", "points": SQUARE[:2]}]}, "fewer than three points"),
        ({**LABELME, "shapes": [{"label": "1L", "points": SQUARE, "shape_type": "line"}]}, "type 'line'"),
        ({"shapes": []}, "'imagePath' missing"),
        (coco({"category_id": 9, "segmentation": [flat(SQUARE)]}), "9 missing"),
    ],
)
def test_bad_labels_are_told_in_one_line(tmp_path: Path, content: Any, words: str | None) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if words is None:
        assert find_layer_labels([Path("a.png")], path) == {}
        return
    with pytest.raises(MicrographError, match=words) as caught:
        find_layer_labels([Path("a.png")], path)
    assert "\n" not in str(caught.value) and "labels.json" in str(caught.value)


def test_one_broken_file_of_a_folder_costs_only_itself(tmp_path: Path) -> None:
    write(tmp_path / "good.json", LABELME)
    (tmp_path / "bad.json").write_text("{")
    problems: list[MicrographError] = []
    found = find_layer_labels([Path("a.png")], tmp_path, on_problem=problems.append)
    assert list(found) == [Path("a.png")]
    assert len(problems) == 1 and "bad.json" in str(problems[0])


def test_other_bad_labels(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="no such file or folder with labels"):
        find_layer_labels([], tmp_path / "nowhere")
    Image.fromarray(np.full(SHAPE, 40, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(MicrographError, match="label 40 is no layer number"):
        Labels(tmp_path / "a.png").draw(SHAPE)
    broken = {"size": [10, 12], "counts": [500]}
    path = write(tmp_path / "c.json", coco({"category_id": 1, "segmentation": broken}))
    with pytest.raises(MicrographError, match="damaged run-length mask"):
        find_layer_labels([Path("a.png")], path)[Path("a.png")].draw(SHAPE)


# --- colours ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unseen() -> Microscope:
    return adaptation.draw_unseen(np.random.default_rng([5, 0]))


def known_of(microscope: Microscope, numbers: tuple[int, ...]) -> tuple[KnownRegion, ...]:
    return tuple(KnownRegion(n, tuple(microscope.contrast()[n - 1].tolist())) for n in numbers)


def test_ladders_pass_through_what_is_known(unseen: Microscope) -> None:
    """Also in a set-up that theory cannot reach; in between they follow theory's shape."""
    known = known_of(unseen, (1, 2, 4))
    setups, ladders = sample_ladders(
        observe_known(known), Prior("MoS2"), count=20, rng=np.random.default_rng(0)
    )
    assert len(setups) == len(ladders) == 20
    for region in known:
        np.testing.assert_allclose(ladders[:, region.layers - 1], [region.contrast] * 20, atol=1e-6)
    drawn = Microscope.from_contrast(setups.take(np.array([3])), ladders[3])
    np.testing.assert_allclose(drawn.contrast(), ladders[3], atol=1e-6)


def test_known_regions_settle_a_set_up_that_theory_does_not_know(unseen: Microscope) -> None:
    """Layers 1 to 4 measured with a little noise: right with the known ones, unsure by theory alone."""
    rng = np.random.default_rng(2)
    measured = observe_known(known_of(unseen, (1, 2, 3, 4)))
    noisy = measured.contrast + rng.normal(0.0, 0.002, measured.contrast.shape)
    regions = type(measured)(
        noisy, measured.sigma, measured.uneven, measured.saturated, measured.area_px,
        np.zeros(4, np.int64), measured.witness,
    )  # fmt: skip
    told = count_layers(measured.join(regions), Prior("MoS2"), rng=np.random.default_rng(0))
    alone = count_layers(regions, Prior("MoS2", 300.0, 5.0), rng=np.random.default_rng(0))
    truth = np.arange(4)
    assert told.p[4 + truth, truth].min() > 0.9
    assert alone.p[truth, truth].mean() < 0.8


def test_scatter_of_known_regions_is_error_of_their_layer_number() -> None:
    one, other = KnownRegion(1, (0.1, 0.0, -0.1)), KnownRegion(1, (0.14, 0.0, -0.1))
    third = KnownRegion(1, (0.12, 0.0, -0.1))
    summary = observe_known((one, other, third, KnownRegion(3, (0.3, 0.0, -0.2))))
    assert summary.known.tolist() == [1, 3]
    np.testing.assert_allclose(summary.contrast[0], (0.12, 0.0, -0.1))
    np.testing.assert_allclose(summary.uneven, [[1.4826 * 0.02, 0.0, 0.0], [0.0, 0.0, 0.0]], atol=1e-9)


# --- the network -----------------------------------------------------------------------------------------------------


def test_an_exported_network_comes_back(tmp_path: Path) -> None:
    """In 32 bits to rounding, in 8 bits to the error of 8 bits; and it can be exported again."""
    base = Network.load("flakes")
    net = FlakeNet.from_onnx(base.path)
    x = np.random.default_rng(0).normal(0.0, 0.5, (3, 96, 64)).astype(np.float32)
    again = Network.load(onnx_export.export(net, base.card, tmp_path / "again.onnx"))
    twice = FlakeNet.from_onnx(again.path)
    assert np.abs(base.predict(x) - again.predict(x)).mean() < 0.1
    exact = Network.load(onnx_export.export(twice, base.card, tmp_path / "twice.onnx")).predict(x)
    np.testing.assert_allclose(exact, again.predict(x), atol=1e-4)


def test_a_foreign_network_is_refused(tmp_path: Path) -> None:
    import onnx

    node = onnx.helper.make_node("Relu", ["contrast"], ["logits"])
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 8, 8]) for name in ("contrast", "logits")]
    path = tmp_path / "relu.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:])), path)
    with pytest.raises(WeightsError, match="holds no network of the flake finder"):
        FlakeNet.from_onnx(path)


def picture_of(microscope: Microscope, seed: int, side: int = 256) -> tuple[Scene, LabelledPicture]:
    rng = np.random.default_rng([seed, 3])
    scene = draw_scene(
        rng,
        SceneParams(shape=(side, side), microscope=microscope, growth="exfoliated", density=2.5, clean=True),
    )
    return scene, LabelledPicture(Micrograph(scene.pixels, source=f"{seed}"), scene.layers)


def test_pieces_agree_with_their_labels(unseen: Microscope) -> None:
    """Turned, enlarged and moved, a piece's colour still is the colour of its class; outside nothing is claimed."""
    _, picture = picture_of(unseen, 4)
    recipe = recipes.load("layers-adapt", scenes_train=24, scenes_val=4, scene_px=128)
    made = adapt.build([picture], [picture], recipe, Prior("MoS2"), base=Network.load("flakes"))
    assert made.train.contrast.shape == (24, 3, 128, 128) and made.val.contrast.shape == (4, 3, 128, 128)
    strength = np.abs(np.sinh(made.train.contrast[:12].astype(float))).max(1) * recipe.task.contrast_scale
    flake = np.isin(made.train.classes[:12], (1, 2)) & (made.train.edges[:12] == 0)
    bare = made.train.classes[:12] == 0
    assert np.median(strength[flake]) > 1.5 * np.median(strength[bare])
    empty = LabelledPicture(picture.micrograph, np.zeros_like(picture.layers))
    with pytest.raises(MicrographError, match="no labelled region of 1 to 6 layers is large enough"):
        adapt.build([empty], [picture], recipe, Prior("MoS2"), base=Network.load("flakes"))
    with pytest.raises(ValueError, match=r"labels of \(2, 2\)"):
        LabelledPicture(picture.micrograph, np.zeros((2, 2), np.uint8))


def test_errors_are_counted_by_region(unseen: Microscope) -> None:
    scene, picture = picture_of(unseen, 4)
    table = find_flakes(picture.micrograph, FlakeParams("MoS2"), network=Network.load("flakes"))
    answer = table.layer_image()
    answer[answer == 255] = 0
    as_answered = LabelledPicture(picture.micrograph, answer)
    assert count_errors(table, as_answered).total == 0
    nothing = LabelledPicture(picture.micrograph, np.zeros_like(scene.layers))
    assert count_errors(table, nothing) == RegionErrors(0, 0, 0, len(table.found))
    ignored = LabelledPicture(picture.micrograph, np.full_like(scene.layers, 255))
    assert count_errors(table, ignored) == RegionErrors()
    assert RegionErrors(4, 1, 0, 2) + RegionErrors(1, 0, 1, 0) == RegionErrors(5, 1, 1, 2)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled pictures of an unseen set-up, and a sixth whose labels do not fit."""
    folder = tmp_path_factory.mktemp("labelled")
    microscope = adaptation.draw_unseen(np.random.default_rng([8, 0]))
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(5):
        scene, _ = picture_of(microscope, 20 + index)
        Image.fromarray(scene.pixels).save(folder / "images" / f"p{index}.png")
        Image.fromarray(scene.layers).save(folder / "masks" / f"p{index}.layers.png")
    Image.fromarray(scene.pixels).save(folder / "images" / "odd.png")
    Image.fromarray(scene.layers[:9]).save(folder / "masks" / "odd.png")
    recipe = (Path(recipes.__file__).parent / "layers-adapt.toml").read_text()
    short = recipe.replace("scenes_train = 320", "scenes_train = 24").replace(
        "scenes_val = 48", "scenes_val = 4"
    )
    short = short.replace("scene_px = 256", "scene_px = 128").replace("epochs = 8", "epochs = 1")
    (folder / "short.toml").write_text(short.replace('name = "layers-adapt"', 'name = "short"'))
    return folder


def run_adapt(folder: Path, out: Path, *more: str) -> int:
    command = ["train", str(folder / "short.toml"), "--images", str(folder / "images")]
    return run([*command, "--masks", str(folder / "masks"), "--material", "MoS2", "--out", str(out), *more])


@pytest.mark.slow
def test_adapted_weights_are_better_and_every_command_takes_them(
    labelled: Path, tmp_path: Path, capsys: Any
) -> None:
    assert run_adapt(labelled, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "left out" in said.err and "odd.png" in said.err
    assert "4 pictures trained on, 1 held out" in said.out
    weights = tmp_path / "out" / "short.onnx"
    card = Network.load(weights).card
    assert card.material == "MoS2" and {region[0] for region in card.known} >= {1, 2}
    picture = picture_of(adaptation.draw_unseen(np.random.default_rng([8, 0])), 77, side=512)[1]
    default, adapted = (
        count_errors(
            find_flakes(picture.micrograph, FlakeParams("MoS2"), network=Network.load(name)), picture
        )
        for name in ("flakes", weights)
    )
    assert adapted.total < default.total
    # The same again goes on from its checkpoint, another material's colours are another matter.
    assert run_adapt(labelled, tmp_path / "out") == 1
    other = find_flakes(picture.micrograph, FlakeParams("WSe2"), network=Network.load(weights))
    assert any("adapted to MoS2" in note for note in other.provenance.notes)


@pytest.mark.slow
def test_nothing_replaces_a_default_that_is_better(
    labelled: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    verdicts = iter([RegionErrors(9, 1, 0, 0), RegionErrors(9, 2, 0, 0), RegionErrors(9, 0, 1, 0)])
    monkeypatch.setattr(adaptation, "_judge", lambda *given: next(verdicts))
    assert run_adapt(labelled, tmp_path / "out") == 1
    assert "nothing is better than the default" in capsys.readouterr().out
    assert not (tmp_path / "out" / "short.onnx").exists()


def test_what_adapting_refuses(labelled: Path, tmp_path: Path, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "out")]
    few = tmp_path / "few"
    few.mkdir()
    (few / "p0.png").hardlink_to(labelled / "images" / "p0.png")
    masks, of = ["--masks", str(labelled / "masks")], ["--material", "MoS2"]
    for command, words in (
        (["train", "layers-adapt", *out], "needs labelled pictures: give --images DIR and --masks DIR"),
        (
            ["train", "layers-adapt", "--images", str(few), *masks, *out, "--ship"],
            "--ship belongs to flakes, columns, defects, orientation, not to layers-adapt",
        ),
        (
            ["train", "flakes-quick", *masks, "--images", str(few), *out],
            "--masks belongs to layers-adapt, not to flakes-quick",
        ),
        (
            ["train", "layers-adapt", "--images", str(few), *masks, *out],
            "learns the colours of one material: give --material NAME",
        ),
        (["train", "layers-adapt", "--images", str(few), *masks, *out, *of], "adapting takes at least 3"),
        (
            ["train", "layers-adapt", "--images", str(few), "--masks", str(few), *out, *of],
            f"no picture in {few} has labels in {few}",
        ),
    ):
        assert run(command) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") <= 2


@pytest.mark.slow
def test_the_learning_curve_goes_from_one_command_to_a_table(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Every method stands in it, tested on pictures that none was trained on."""
    load = recipes.load
    short = {"scenes_train": 16, "scenes_val": 4, "scene_px": 128, "epochs": 1}
    monkeypatch.setattr(recipes, "load", lambda name: load(name, **short))
    monkeypatch.setattr(adaptation, "_TESTED", 2)
    monkeypatch.setattr(adaptation, "_UNET", replace(adaptation._UNET, steps=1, widths=(4, 4), crop_px=32))
    drawn: list[int] = []
    draw_scenes = monolayers.draw_scenes
    monkeypatch.setattr(
        monolayers,
        "draw_scenes",
        lambda count, **given: drawn.append(given["seed"]) or draw_scenes(count, **given),
    )
    command = ["evaluate", "adaptation", "--setups", "1", "--pictures", "3", "--json"]
    assert run([*command, "--out", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["pictures"]) for row in rows] == [
        ("default", 0), ("adapted", 3), ("U-Net from scratch", 3),
    ]  # fmt: skip
    assert len(set(drawn)) == 2
    assert rows[0]["errors"]["value"] > 0 and rows[2]["errors"] is None
