"""The orientation of a three-fold crystal from its outline: by its straight edges, or by a network.

Edges of a grown crystal with three-fold symmetry, cut corners included, lie in six directions 60° apart. Every straight
piece of an outline therefore fixes the orientation modulo 60°, however little of the crystal is left. The longer edges
decide between the two orientations that remain: cut corners are the shorter ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from flatscope.inference.runtime import Network
from flatscope.optical.edges import Float, Mask, fit_edges

METHODS = ("auto", "edges", "network")
"""Ways to find an orientation; "auto" weighs both."""
CROP_PX = 64
"""Side of the network's input."""

_LEAST_ASYMMETRY = 0.25
"""Smallest difference of longer and shorter edges, as a share of their sum, that tells them apart: corners cut at 0.27
of the side."""
_SIGMA_SCALE_NETWORK = 0.93
"""Factor on the error that the network states."""
_SURE_DEG = 0.65
"""Both ways underestimate large errors: from this one on an error grows …"""
_SURER = 0.1
"""… by this power of itself (`evaluate twist --mix outlines`, seed 2, and `--mix ragged`, seed 4)."""
_CORRELATION = 0.8
"""Correlation of the errors of edges and network, which see the same outline (drawn bilayers, seeds 2 and 4)."""
_CONTRADICT_SIGMA = 3.0
"""Edges and network contradict each other if they differ by more than this many errors …"""
_DOUBT_SIGMA = 0.8
"""… and make each other doubtful from this many on (the same drawings)."""
_ALONE = 1.25
"""Factor on the caution about an answer that only one way gives."""
_MARGIN_SHARE = 0.15
"""Margin around a layer in the network's input, as a share of the layer's size …"""
_MARGIN_PX = 3.0
"""… and added to that, on either side."""
_LEAST_LOGIT = 3.0
"""Smallest log odds (95 %) that tell a direction from the one 60° off."""


@dataclass(frozen=True)
class Orientation:
    """The orientation of one layer.

    Parameters
    ----------
    corner_deg
        Direction of a corner of the triangle, degrees counter-clockwise as displayed, in [0, 120).
    sigma_deg
        1-sigma error.
    caution_deg
        The error that decides whether to rely on it: larger where only one of two ways is sure.
    three_fold
        False if it looks the same turned by 60°, as a hexagon does.
    method
        "edges", "network", or "edges and network".
    """

    corner_deg: float
    sigma_deg: float
    caution_deg: float
    three_fold: bool
    method: str


def orient(mask: Mask, hidden: Mask, *, method: str, network: Network) -> Orientation | None:
    """Orientation of a crystal by one method, or by both; None where there is none.

    Parameters
    ----------
    mask, hidden
        See `orient_by_edges`.
    method
        One of `METHODS`.
    network
        Of the task "orientation".
    """
    if method == "edges":
        found = orient_by_edges(mask, hidden)
    else:
        found = orient_by_network(mask, hidden, network=network)
        straight = None if method == "network" else orient_by_edges(mask, hidden, near_deg=found.corner_deg)
        found = found if straight is None else weigh(straight, found)
    if found is None:
        return None
    return replace(found, sigma_deg=found.sigma_deg * max(found.sigma_deg, _SURE_DEG) ** _SURER)


def weigh(straight: Orientation, seen: Orientation) -> Orientation:
    """Mean of the answers of edges and network with the smallest error, given that their errors are correlated.

    An error that is far larger than the other has no weight. Where both disagree by far more than they state, the edges
    belong to something else, and the network counts; the farther apart, the larger the error. An outline that only one
    of both is sure of misleads more often than its error says: caution depends on both errors.

    Parameters
    ----------
    straight, seen
        From edges and from the network.
    """
    apart = (straight.corner_deg - seen.corner_deg + 30.0) % 60.0 - 30.0
    common = _CORRELATION * straight.sigma_deg * seen.sigma_deg
    variance = straight.sigma_deg**2 + seen.sigma_deg**2 - 2.0 * common
    doubt = abs(apart) / np.sqrt(variance)
    weight = 0.0
    if doubt <= _CONTRADICT_SIGMA:
        weight = float(np.clip((seen.sigma_deg**2 - common) / variance, 0.0, 1.0))
    sigma = np.sqrt(
        (weight * straight.sigma_deg) ** 2
        + ((1.0 - weight) * seen.sigma_deg) ** 2
        + 2.0 * weight * (1.0 - weight) * common
    )
    surer = straight if weight > 0.5 else seen
    farther = np.sqrt(max(doubt / _DOUBT_SIGMA, 1.0))
    return Orientation(
        # The surer one decides between the two directions 60° apart.
        float((surer.corner_deg + (weight - (surer is straight)) * apart) % 120.0),
        float(sigma * farther),
        float(np.sqrt(straight.sigma_deg * seen.sigma_deg) * farther),
        surer.three_fold,
        surer.method if weight in (0.0, 1.0) else f"{straight.method} and {seen.method}",
    )


def orient_by_edges(mask: Mask, hidden: Mask, *, near_deg: float | None = None) -> Orientation | None:
    """Orientation of a crystal from the straight pieces of its outline; None with fewer than three of them.

    Parameters
    ----------
    mask
        The crystal, shape (rows, cols).
    hidden
        Where its outline is not its own: cut by the picture or another crystal. Same shape.
    near_deg
        Rough direction of a corner modulo 60°, if known: saves the search.
    """
    fit = fit_edges(mask, hidden, near_deg=near_deg)
    if fit is None:
        return None
    return find_orientation(fit.centre_deg, fit.lengths_px, fit.sigma_deg, method="edges")


def find_orientation(centre_deg: float, lengths_px: Float, sigma_deg: float, *, method: str) -> Orientation:
    """The orientation of a crystal whose edges are known.

    Parameters
    ----------
    centre_deg
        Direction of the normal of edge 0.
    lengths_px
        Of the edges in the six directions from there, shape (6,).
    sigma_deg
        1-sigma error of the direction.
    method
        How the edges were found.
    """
    # Lines in the direction of a corner's opposite edge and in the other three.
    far, near = lengths_px[::2].sum(), lengths_px[1::2].sum()
    corner = centre_deg + (60.0 if far >= near else 0.0)
    three_fold = bool(abs(far - near) >= _LEAST_ASYMMETRY * (far + near))
    return Orientation(corner % 120.0, sigma_deg, _ALONE * sigma_deg, three_fold, method)


def crop_layer(mask: Mask, hidden: Mask) -> NDArray[np.uint8]:
    """The network's input: a square around a layer, shape (64, 64, 2), 0 to 255.

    Parameters
    ----------
    mask, hidden
        See `orient_by_edges`; the mask must not be empty.

    Returns
    -------
    The layer, and what hides its outline; parts of pixels are parts of 255.
    """
    rows, cols = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    height, width = rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
    half = 0.5 * max(height, width) * (1.0 + _MARGIN_SHARE) + _MARGIN_PX
    middle = 0.5 * (rows[0] + rows[-1] + 1), 0.5 * (cols[0] + cols[-1] + 1)
    first, last = (np.array(middle) - half, np.array(middle) + half)
    before = np.maximum(np.ceil(-first), 0).astype(int)
    after = np.maximum(np.ceil(last - mask.shape), 0).astype(int)
    around = tuple(zip(before, after, strict=True))
    top, left, bottom, right = (float(edge) for edge in (*(first + before), *(last + before)))
    seen = [
        # The border of the picture hides what lies beyond it.
        Image.fromarray(
            np.pad(np.where(layer, np.uint8(255), np.uint8(0)), around, constant_values=outside)
        ).resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        for layer, outside in ((ndimage.binary_fill_holes(mask), 0), (hidden, 255))
    ]
    return np.stack([np.asarray(layer) for layer in seen], axis=2)


def orient_by_network(mask: Mask, hidden: Mask, *, network: Network) -> Orientation:
    """Orientation of a crystal by a network that learned from drawn ones; see `orient_by_edges`.

    Its answers for all eight turned and mirrored copies are turned back and averaged.

    References
    ----------
    The four numbers that it gives are explained in `flatscope.training.nets.orientnet`.
    """
    crop = crop_layer(mask, hidden) / np.float32(255.0)
    answers = np.zeros(4)
    for mirrored in (False, True):
        for quarters in range(4):
            copy = np.rot90(crop[:, ::-1] if mirrored else crop, quarters)
            answers += (
                _turn_back(network.run(network.card.normalise(copy)[None])[0], mirrored, quarters) / 8.0
            )
    (angle,), (sigma,), (logit,) = decode_density(answers[None])
    corner = angle + (0.0 if logit >= 0 else 60.0)
    error = _SIGMA_SCALE_NETWORK * float(sigma)
    three_fold = bool(abs(logit) >= _LEAST_LOGIT)
    return Orientation(float(corner % 120.0), error, _ALONE * error, three_fold, "network")


def _turn_back(answer: NDArray[np.float32], mirrored: bool, quarters: int) -> Float:
    """The network's answer for the crop itself, from that for a copy: mirrored, then turned by quarters."""
    six, three = (complex(*pair) for pair in answer.astype(float).reshape(2, 2))
    # A corner at φ lies at 180° − φ in the mirror, and a quarter turn adds 90°.
    six, three = six * np.exp(-3j * np.pi * quarters), three * np.exp(-1.5j * np.pi * quarters)
    if mirrored:
        six, three = six.conjugate(), -three.conjugate()
    return np.array([six.real, six.imag, three.real, three.imag])


def decode_density(answers: NDArray[np.floating]) -> tuple[Float, Float, Float]:
    """Direction of a corner modulo 60° and its error, both in degrees, and the log odds against a turn by 60°.

    Parameters
    ----------
    answers
        Of the network, shape (n, 4).
    """
    six_cos, six_sin, three_cos, three_sin = np.asarray(answers, float).T
    angle = np.arctan2(six_sin, six_cos) / 6.0
    logit = 2.0 * (three_cos * np.cos(3.0 * angle) + three_sin * np.sin(3.0 * angle))
    # The width of a sharp von Mises distribution is 1 / √κ, here of six times the angle.
    sigma = 1.0 / (6.0 * np.sqrt(np.maximum(np.hypot(six_cos, six_sin), 1e-6)))
    return np.rad2deg(angle), np.rad2deg(sigma), logit
