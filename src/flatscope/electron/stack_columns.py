"""The columns of both layers of a stack, and what stands in each."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from flatscope.electron.columns import weigh_species
from flatscope.electron.lattice import find_honeycomb, place_sites
from flatscope.electron.physics.crystals import Crystal
from flatscope.electron.stack_lattices import Layer, Pair, repeat_mean
from flatscope.results import mark

Float = NDArray[np.float64]

_WIDTH_NM = 0.045  # Gaussian (1 sigma) that columns are weighed by
_UNRESOLVED_NM = 0.06  # columns of two layers nearer than this are one spot
_SURE_P = 0.8  # probability of its species from which a column is accepted
OVERLAPPING = "overlapping: not resolved"


def find_places(layer: Layer) -> tuple[Float, Float]:
    """Where in a layer's cell its two sites lie, the brighter first, and their brightness: see `find_honeycomb`.

    The cell is the same after a third of a turn about a site, so the phases of three of its waves 120° apart are alike
    there: that places the sites between the bins of the cell.
    """
    places, bright = find_honeycomb(layer.cell)
    side = len(layer.cell)
    index = np.array([(1, 0), (-1, 1), (0, -1)])
    waves = fft.fft2(layer.cell)[index[:, 0], index[:, 1]]
    waves = waves * np.exp(2j * np.pi * (index @ (places[0] - 0.5 / side)))
    turned = np.angle(waves * np.conj(waves.sum())) / (2.0 * np.pi)
    shift = np.linalg.lstsq(index.astype(float), -turned, rcond=None)[0]
    return (places + shift) % 1.0, bright


def list_columns(
    pair: Pair, places: list[Float], crystals: tuple[Crystal, Crystal], *, pixel_nm: float, image: str
) -> pd.DataFrame:
    """All columns of both layers from top to bottom, with what stands in each.

    Parameters
    ----------
    places
        Of the first and the second sublattice in the cell of each layer.
    crystals
        Of both layers.
    pixel_nm
        Pixel size.
    image
        Name of the picture.
    """
    parts = []
    for number, (layer, crystal) in enumerate(zip(pair.layers, crystals, strict=True)):
        for kind in (0, 1):
            at, _ = place_sites(layer.phases, places[number][kind])
            part = pd.DataFrame({"row_px": at[:, 0], "col_px": at[:, 1], "layer": number + 1, "kind": kind})
            parts.append(part.assign(material=crystal.name, sublattice=crystal.sublattices[kind]))
    frame = pd.concat(parts, ignore_index=True)
    at = np.rint(frame[["row_px", "col_px"]].to_numpy(float)).astype(int)
    frame["sigma_px"] = pair.place_sigma_px[at[:, 0], at[:, 1]]
    frame = frame.assign(image=image, status="accepted", reason="", species="", species_p=0.0)
    excess = _weigh(pair, frame, _WIDTH_NM / pixel_nm)
    for number, crystal in enumerate(crystals):
        usual = _find_heights(pair.layers[number], places[number], _WIDTH_NM / pixel_nm)
        for kind in (0, 1):
            mine = np.flatnonzero((frame["layer"] == number + 1) & (frame["kind"] == kind))
            if not len(mine):
                continue
            ratio = 1.0 + excess[mine] / usual[kind]
            noise = np.full(len(mine), 1.4826 * float(np.median(np.abs(ratio - np.median(ratio)))))
            names, p = weigh_species(ratio, noise, crystal, kind)
            frame.loc[mine, "species"], frame.loc[mine, "species_p"] = names, p
            frame.loc[mine, "intensity"], frame.loc[mine, "intensity_sigma"] = ratio, noise
    return _finish_columns(frame, pair.rest.shape, pixel_nm)


def _finish_columns(frame: pd.DataFrame, shape: tuple[int, ...], pixel_nm: float) -> pd.DataFrame:
    """Rows with status, number and places in nm."""
    at = frame[["row_px", "col_px"]].to_numpy(float)
    gap = np.full(len(frame), np.inf)
    for number in (1, 2):
        mine, others = (frame["layer"] == number).to_numpy(), (frame["layer"] != number).to_numpy()
        gap[mine] = cKDTree(at[others]).query(at[mine])[0] * pixel_nm
    rim = _WIDTH_NM / pixel_nm
    cut = ((at < rim) | (at > np.array(shape) - 1.0 - rim)).any(1)
    unsure = frame["species_p"] < _SURE_P
    frame = mark(frame, unsure, status="uncertain", reason="its brightness fits two species")
    frame = mark(frame, gap < _UNRESOLVED_NM, status="uncertain", reason=OVERLAPPING)
    frame = mark(frame, cut, status="rejected", reason="cut by the border")
    frame["x_nm"], frame["y_nm"] = frame["col_px"] * pixel_nm, frame["row_px"] * pixel_nm
    frame["sigma_nm"] = frame["sigma_px"] * pixel_nm
    frame = frame.sort_values(["row_px", "col_px"], ignore_index=True)
    return frame.assign(column_id=np.arange(1, len(frame) + 1))


def _find_heights(layer: Layer, places: Float, width: float) -> tuple[float, float]:
    """How bright the mean column of either sublattice is above the hollow, weighed as single columns are."""
    seen = 2.0 * ndimage.gaussian_filter(repeat_mean(layer), width)
    hollow, one, two = (
        float(np.median(ndimage.map_coordinates(seen, at.T, order=1)))
        for at in (place_sites(layer.phases, place)[0] for place in (2.0 * places[1] - places[0], *places))
    )
    return max(one - hollow, 1e-9), max(two - hollow, 1e-9)


def _weigh(pair: Pair, frame: pd.DataFrame, width: float) -> Float:
    """How much more than usual stands in each column, all together: what neighbours within a width share is divided
    among them."""
    at = frame[["row_px", "col_px"]].to_numpy(float)
    seen = 2.0 * ndimage.gaussian_filter(pair.rest, width)
    values = ndimage.map_coordinates(seen, at.T, order=1, mode="nearest")
    near = cKDTree(at).query_pairs(4.0 * width, output_type="ndarray")
    overlap = np.exp(-np.square(at[near[:, 0]] - at[near[:, 1]]).sum(1) / (4.0 * width**2))
    count = len(at)
    shared = sparse.coo_matrix((overlap, (near[:, 0], near[:, 1])), shape=(count, count))
    matrix = (shared + shared.T + 1.02 * sparse.identity(count)).tocsr()
    return np.asarray(cg(matrix, values, rtol=1e-4, maxiter=200)[0])
