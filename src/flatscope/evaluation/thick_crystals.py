"""Score the thickness of thick crystals: drawn regions of any camera, their colours as a photograph stores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flatscope.evaluation.metrics import Interval, Score, bootstrap, ratio
from flatscope.optical.layers import count_layers
from flatscope.optical.materials import find_material
from flatscope.optical.observations import Observation
from flatscope.optical.setups import APERTURES, MODEL_SIGMA, Prior, Setups, add_flare
from flatscope.optical.thinfilm import contrast, stack_spectra

Float = NDArray[np.float64]

_RANGE_NM = (5.0, 150.0)
"""Thicknesses that are drawn, evenly in their logarithm."""
_REGIONS = 8
"""Regions a picture."""
_OXIDES_NM = (90.0, 285.0)
_OXIDE_SIGMA_NM = 5.0
"""How far the true oxide is off from the nominal one (1 sigma)."""
_BRIGHTEST = 0.97
"""The exposure keeps the brightest crystal below this share of full scale."""
_LEAST_NM, _LEAST_SHARE = 3.0, 0.1
"""A thickness within either of the true one is right."""


@dataclass(frozen=True)
class ThicknessScores(Score):
    """Scores of thickness on drawn regions.

    `told` is the share of regions with a thickness; of these, `right` is the share whose first candidate is within 10 %
    or 3 nm, `among_two` the share with one of the first two so near, and `covered` the share whose 95 % interval holds
    the truth, over all regions. `candidates` is the mean number named.
    """

    told: Interval
    right: Interval
    among_two: Interval
    covered: Interval
    candidates: Interval
    regions: int


def evaluate_thickness(
    count: int,
    *,
    material: str = "hBN",
    seed: int = 7,
    on_progress: Callable[[int, int], None] | None = None,
) -> ThicknessScores:
    """Score thickness on drawn pictures, half on 90 and half on 285 nm oxide, of eight crystals of 5 to 150 nm each.

    Cameras come from the whole prior; crystals differ from theory as in scenes; pictures are exposed so that the
    brightest crystal is not clipped. Regions are given, so this is no test of finding them.
    """
    per_picture = []
    for index in range(count):
        rng = np.random.default_rng(np.random.SeedSequence(entropy=(seed, 990_001), spawn_key=(index,)))
        nominal = _OXIDES_NM[index % len(_OXIDES_NM)]
        true = Prior(material, oxide_nm=nominal + rng.normal(0.0, _OXIDE_SIGMA_NM), oxide_sigma_nm=0.0)
        observation, nm = _photograph(rng, true.draw(rng))
        prior = Prior(material, oxide_nm=nominal, oxide_sigma_nm=_OXIDE_SIGMA_NM)
        found = count_layers(observation, prior, rng=np.random.default_rng(0)).thickness
        named = [[float(part) for part in text.split("|") if part] for text in found.candidates]
        hits = [[_is_right(one, truth) for one in ones] for ones, truth in zip(named, nm, strict=True)]
        per_picture.append(
            (
                len(nm),
                sum(bool(ones) for ones in named),
                sum(any(each[:1]) for each in hits),
                sum(any(each[:2]) for each in hits),
                sum(map(len, named)),
                int(((found.low <= 1.03 * nm) & (nm <= 1.03 * found.high)).sum()),
            )
        )
        if on_progress is not None:
            on_progress(index + 1, count)
    return ThicknessScores(
        told=bootstrap(per_picture, ratio(1, 0)),
        right=bootstrap(per_picture, ratio(2, 1)),
        among_two=bootstrap(per_picture, ratio(3, 1)),
        covered=bootstrap(per_picture, ratio(5, 0)),
        candidates=bootstrap(per_picture, ratio(4, 1)),
        regions=sum(row[0] for row in per_picture),
    )


def _is_right(stated: float, true: float) -> bool:
    return abs(stated - true) <= max(_LEAST_NM, _LEAST_SHARE * true)


def _photograph(rng: np.random.Generator, setup: Setups) -> tuple[Observation, Float]:
    """Contrasts of crystals as one camera stores them in 8 bits, and their thicknesses in nm."""
    crystal, camera = find_material(setup.material), setup.camera
    low, high = np.log(_RANGE_NM)
    nm = np.exp(rng.uniform(low, high, _REGIONS))
    bare, flakes = stack_spectra(
        crystal,
        int(setup.variant[0]),
        setup.substrate,
        nm / crystal.layer_nm,
        fitted_nm=setup.oxide_nm,
        na=APERTURES[setup.aperture[0]],
    )
    linear = contrast(bare, flakes, setup.weights())[0]
    own, common = rng.normal(0.0, MODEL_SIGMA / np.sqrt(2.0), (2, *linear.shape))
    linear = np.maximum(linear * (1.0 + own + common[:1]), -0.98)
    light = np.concatenate([np.ones((1, 3)), add_flare(1.0 + linear[None], setup.flare)[0]])
    colour = setup.bare()[0] * np.exp(rng.normal(0.0, 0.18, 3))
    light *= (colour / colour.max()) ** rng.uniform(0.3, 1.0) * rng.uniform(0.3, 0.85) ** camera.gamma[0]
    light *= min(1.0, _BRIGHTEST / max(light.max(), (light @ camera.matrix()[0].T).max()))
    stored = camera.store(np.clip(light @ camera.matrix()[0].T, 0.0, 1.0)[None])[0]
    stored = np.clip(np.round(255.0 * stored + rng.normal(0.0, 0.3, stored.shape)), 0.0, 255.0) / 255.0
    substrate = np.maximum(stored[0], 0.002)
    step = 0.3 / 255.0 / substrate
    shape = (_REGIONS, 3)
    seen = Observation(
        stored[1:] / substrate - 1.0,
        np.broadcast_to(0.003 + step, shape),
        uneven=np.full(shape, 0.004),
        saturated=stored[1:] > 0.985,
        area_px=np.full(_REGIONS, 2000.0),
        known=np.zeros(_REGIONS, np.int64),
        witness=np.ones(_REGIONS),
    )
    return replace(seen, bare_colour=stored[0]), nm
