"""Verdicts on regions: nothing visible is thrown away, dirt is, and the way to a layer number is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from flatscope.micrograph import Micrograph
from flatscope.optical.batches import Sighting
from flatscope.optical.evidence import gather_evidence
from flatscope.optical.flakes import FlakeParams, find_regions, fit_setups, place_layers
from flatscope.optical.known import count_from_height, question
from flatscope.optical.layers import LayerPosterior
from flatscope.optical.regions import Regions
from flatscope.optical.setups import Prior
from flatscope.optical.tabulation import tabulate
from flatscope.optical.verdicts import weigh_evidence
from flatscope.results import FlakeTable

STRANGE = np.array([-0.3, -0.1, 0.1])
PARAMS = FlakeParams("graphene", oxide_nm=90.0, oxide_sigma_nm=3.0, gamma=1.0)


def photograph(*, seed: int = 0) -> Micrograph:
    """Three even crystals of two strange contrasts, and a smear."""
    generator = np.random.default_rng(seed)
    field = np.ones((300, 420, 3))
    field[40:110, 40:130] += STRANGE
    field[40:110, 200:290] += STRANGE
    field[160:250, 60:160] += 1.5 * STRANGE
    rows, cols = np.mgrid[:300, :420]
    wisp = ndimage.gaussian_filter(generator.normal(0.0, 1.0, (300, 420)), 4.0)
    smear = np.exp(-(((rows - 220) / 30) ** 2) - ((cols - 320) / 45) ** 2) * (wisp / wisp.std() > 0.3)
    field -= 0.25 * ndimage.gaussian_filter(smear, 2.0)[..., None]
    field = ndimage.gaussian_filter(field, (0.8, 0.8, 0.0))
    pixels = field * (150.0, 120.0, 160.0) + generator.normal(0.0, 1.2, field.shape)
    return Micrograph(pixels.clip(0, 255).round().astype(np.uint8), source="a.png")


@pytest.fixture(scope="module")
def regions() -> Regions:
    return find_regions(photograph(), PARAMS)


def fit(regions: Regions) -> LayerPosterior:
    (setup,) = fit_setups([Sighting.of(regions)], PARAMS)
    return place_layers(regions, setup)


@pytest.fixture(scope="module")
def table(regions: Regions) -> FlakeTable:
    """As under a camera whose colours the optics cannot explain."""
    posterior = fit(regions)
    unexplained = replace(posterior, p_foreign=np.ones(len(regions)))
    return tabulate(regions, unexplained, material="graphene", settings={})


def test_crystals_that_no_thickness_explains_stay_visible(table: FlakeTable) -> None:
    centres = {(74, 84), (74, 244), (204, 110)}
    rows = table.found[table.found["area_px"] > 4000]
    assert {(round(row), round(col)) for row, col in rows[["row_px", "col_px"]].to_numpy()} == centres
    assert set(rows["status"]) == {"uncertain"} and rows["layers_p"].isna().all()
    assert (
        rows["reason"].str.contains(r"layer number not known: contrast step \d of \d of this picture").all()
    )
    weak, strong = rows[rows["row_px"] < 100]["reason"], rows[rows["row_px"] > 100]["reason"]
    assert weak.nunique() == 1 and set(weak) != set(strong), "equal contrasts are one step"
    assert table.layer_image()[75, 84] == 253


def test_the_way_to_their_layer_number_is_said(table: FlakeTable) -> None:
    (note,) = [note for note in table.provenance.notes if "no layer number" in note]
    row, col = (int(part) for part in note.split("--known a.png@")[1].split("=")[0].split(","))
    assert table.layer_image()[row, col] == 253


def test_a_smear_is_no_crystal(table: FlakeTable) -> None:
    smear = table.frame[(table.frame["row_px"] > 150) & (table.frame["col_px"] > 240)]
    assert len(smear) and (smear["p_flake"] < 0.5).mean() > 0.7


def test_unexplained_colours_count_less_where_the_optics_explain_nothing(regions: Regions) -> None:
    """The same unexplained region is likelier a crystal where the other crystals are unexplained, too."""
    posterior = fit(regions)
    large = np.argsort(-regions.measured.area_px)[:3]
    explained = posterior.p_foreign.copy()
    explained[large[1:]] = 0.0
    explained[large[0]] = 1.0
    sure = replace(regions, evidence=replace(regions.evidence, crystal=np.full(len(regions), 0.9)))
    lone = weigh_evidence(sure, replace(posterior, p_foreign=explained))[large[0]]
    alike = weigh_evidence(sure, replace(posterior, p_foreign=np.ones_like(explained)))[large[0]]
    assert alike > lone + 0.05


def test_evidence_does_not_depend_on_how_the_picture_is_turned() -> None:
    generator = np.random.default_rng(4)
    labels = np.zeros((60, 80), np.int32)
    labels[10:30, 12:50], labels[40:52, 30:70] = 1, 2
    contrast = generator.normal(0.0, 0.01, (60, 80, 3)).astype(np.float32) + 0.2 * (labels > 0)[..., None]
    chances = generator.random((3, 60, 80)).astype(np.float32)
    names, middle = ("thin", "thick", "artefact"), np.full((2, 3), 0.2)
    upright = gather_evidence(labels, contrast.astype(np.float32), chances, names, middle)
    turned = gather_evidence(
        np.rot90(labels).copy(),
        np.rot90(contrast).copy(),
        np.rot90(chances, axes=(1, 2)).copy(),
        names,
        middle,
    )
    for name in ("crystal", "residue", "thick", "rise", "roundness"):
        np.testing.assert_allclose(getattr(turned, name), getattr(upright, name), rtol=1e-5)
    np.testing.assert_allclose(upright.rise, 1.0, atol=0.05)


@pytest.mark.parametrize(
    ("layers", "contrast", "words"),
    [
        (1, (-0.138, -0.139, -0.068), ""),
        (2, (-0.251, -0.262, -0.147), ""),
        (1, (0.001, -0.002, 0.001), "is it the substrate"),
        (1, (0.5, 0.5, 0.5), "is it 1L graphene"),
        (5, (-0.03, -0.03, -0.02), "is it 5L graphene"),
    ],
)
def test_known_crystals_are_questioned(layers: int, contrast: Any, words: str) -> None:
    """Measured contrasts of graphene on 90 nm oxide are believed, absurd ones are not."""
    doubt = question(layers, contrast, np.full(3, 0.007), Prior("graphene", 90.0, 5.0))
    assert words in doubt if words else doubt == ""


def test_heights_count_layers_a_monolayer_may_read_too_high() -> None:
    assert [count_from_height(height, 0.615) for height in (0.3, 0.9, 1.2, 6.2)] == [1, 1, 2, 10]
