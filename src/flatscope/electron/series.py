"""Columns of a monolayer in an HRTEM focal series: the images checked, aligned and read by a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.electron.drawing.specimens import DEFOCUS_NM, STEP_NM
from flatscope.electron.fitting import VAGUE_SHARE, measure_spacing
from flatscope.electron.focal import (
    PIXEL_NM,
    Reading,
    normalise,
    read_columns,
    resample,
    settle_sublattices,
)
from flatscope.electron.kinds import FIRST, FOREIGN, OTHER, SECOND
from flatscope.electron.lattice import Lattice, NoLatticeError, Phases, find_lattice, map_phases
from flatscope.electron.physics.crystals import Crystal
from flatscope.electron.scans import SATURATED_SHARE, calibrate, warn_of_lattice
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, MicrographError, Stack
from flatscope.results import mark

Float = NDArray[np.float64]
Real = NDArray[np.float32]

APART = "the images show the lattice in different places"
"""Reason of all columns of a series that has drifted too far."""
_SURE_P = 0.8  # probability of its species from which a column is accepted
_COARSEST_NM = 0.05  # largest pixel that resolves columns
_NOTED_DRIFT_NM = 0.02  # least drift that is noted and removed
_RIM_NM = 0.05  # what a column needs beside it
_SLACK_NM = 0.5  # how far steps of defocus may lie outside the network's range without a note


@dataclass(frozen=True)
class _DriftLimits:
    """When the phases of Bragg peaks tell how far two images of a series lie apart."""

    closure_rad: float = 0.6  # largest disagreement of three peaks
    largest_cells: float = 0.15  # largest shift; doubled phases repeat beyond a quarter of a plane distance
    weak_share: float = 0.27  # of the strongest peaks, below which a phase means nothing


_DRIFT = _DriftLimits()


@dataclass(frozen=True)
class SeriesColumns:
    """The columns of a series.

    Parameters
    ----------
    rows
        `row_px`, `col_px`, `sigma_px`, `sublattice`, `species`, `species_p`, `intensity`, `intensity_sigma`, `status`
        and `reason`.
    phases
        Of the lattice in the clearest image.
    calibration
        Pixel size by the lattice.
    """

    rows: pd.DataFrame
    phases: Phases
    calibration: Calibration


def find_in_series(
    series: Stack, crystal: Crystal, network: Network, notes: list[str], *, defocus_nm: tuple[float, ...] = ()
) -> SeriesColumns:
    """Find and name the columns in a focal series.

    Parameters
    ----------
    series
        Three images.
    crystal
        The material.
    network
        Weights for the task "columns".
    notes
        What a reader should know is added.
    defocus_nm
        Of each image; empty where they ascend.

    Raises
    ------
    MicrographError
        If the network does not know the material, if the series has not three images or not as many values of
        defocus, or if its lattice is not this material's.
    """
    _check_network(series, crystal, network)
    images = _order(series, len(network.card.channels), defocus_nm, notes)
    stated = None if series.calibration is None else float(np.mean(series.calibration.pixel_size_nm))
    try:
        lattice = find_lattice(images, expected_px=None if stated is None else crystal.lattice_nm / stated)
    except NoLatticeError as error:
        raise MicrographError(f"{series.source}: {error}") from None
    calibration = calibrate(series, lattice, crystal, notes)
    pixel_nm = calibration.pixel_size_nm[0]
    if pixel_nm > _COARSEST_NM:
        raise MicrographError(
            f"{series.source}: pixels of {pixel_nm:.3f} nm do not resolve columns: at most {_COARSEST_NM} nm"
        )
    shifts = _find_drift(images, lattice)
    apart = bool(np.isnan(shifts).any())
    shifts = np.nan_to_num(shifts)
    farthest_nm = float(np.hypot(*shifts.T).max()) * pixel_nm
    if apart:
        notes.append(f"{APART}: align them with each other first")
    elif farthest_nm > _NOTED_DRIFT_NM:
        notes.append(f"the images lie up to {farthest_nm:.2f} nm apart: moved onto each other")
        images = _align(images, shifts).astype(float)
    factor = PIXEL_NM / pixel_nm
    seen = normalise(resample(images, factor))
    reading = read_columns(network, seen)
    rows = _name_columns(reading, crystal, shape=seen.shape[1:], margin=np.abs(shifts).max() / factor)
    rows["row_px"], rows["col_px"] = ((rows[name] + 0.5) * factor - 0.5 for name in ("row_px", "col_px"))
    rows["sigma_px"] *= factor
    if apart:
        rows = mark(rows, rows["status"] == "accepted", status="uncertain", reason=APART)
    phases = map_phases(images[_find_clearest(images, lattice)], lattice)
    warn_of_lattice(phases, crystal, notes)
    return SeriesColumns(rows, phases, calibration)


def _check_network(series: Stack, crystal: Crystal, network: Network) -> None:
    """Refuse a network that knows another material or other pixels."""
    card = network.card
    if card.material and card.material != crystal.name:
        raise MicrographError(
            f"{series.source}: the weights {card.name} know {card.material}, not {crystal.name}: train your own with "
            "flatscope train columns, and pass them by --weights"
        )
    if card.pixel_size_nm != PIXEL_NM:
        raise MicrographError(
            f"{series.source}: the weights {card.name} want {card.pixel_size_nm} nm a pixel, this flatscope reads "
            f"series at {PIXEL_NM}: use weights and program of one release"
        )


def _order(series: Stack, wanted: int, defocus_nm: tuple[float, ...], notes: list[str]) -> Float:
    """The images as floats in ascending order of defocus, once it is clear that they can be read."""
    if len(series) != wanted:
        held = "one image" if len(series) == 1 else f"{len(series)} images"
        raise MicrographError(f"{series.source}: holds {held}, a focal series has {wanted}")
    if defocus_nm and len(defocus_nm) != len(series):
        raise MicrographError(
            f"{series.source}: {len(defocus_nm)} values of defocus for {len(series)} images: give one an image"
        )
    frames = np.asarray(series.frames, float)
    for number, frame in enumerate(frames, start=1):
        _check_image(frame, number, series.source)
    if not defocus_nm:
        notes.append(
            "the images are taken to stand in ascending order of defocus: --defocus-nm says so, or not"
        )
        return frames
    low, high = DEFOCUS_NM[0] - STEP_NM[1], DEFOCUS_NM[1] + STEP_NM[1]
    ordered = np.sort(defocus_nm)
    steps = np.diff(ordered)
    even = steps.min() >= STEP_NM[0] - _SLACK_NM and steps.max() <= STEP_NM[1] + _SLACK_NM
    if ordered[0] < low or ordered[-1] > high or not even:
        notes.append(
            f"the network knows series from {low:g} to {high:g} nm in steps of {STEP_NM[0]:g} to {STEP_NM[1]:g}: "
            "this one lies outside, check its columns by eye"
        )
    return frames[np.argsort(defocus_nm)]


def _check_image(frame: Float, number: int, source: str) -> None:
    """Refuse an image in which nothing can be seen."""
    if frame.max() <= frame.min():
        raise MicrographError(f"{source}: all pixels of image {number} are {frame.min():g}: nothing to see")
    if frame.mean() <= 0.0:
        raise MicrographError(
            f"{source}: image {number} has a mean of {frame.mean():g}: counts or intensities are needed, "
            "background not subtracted"
        )
    top = float((frame >= frame.max()).mean())
    if top > SATURATED_SHARE:
        raise MicrographError(f"{source}: {top:.0%} of the pixels of image {number} are saturated")


def _find_clearest(images: NDArray[np.floating], lattice: Lattice) -> int:
    """Which image of a series shows the lattice best."""
    peaks = np.abs(_measure_peaks(images, lattice)).min(1)
    return int(np.argmax(peaks / images.std((1, 2))))


def _find_drift(images: NDArray[np.floating], lattice: Lattice) -> Float:
    """Shift of every image against the clearest one, pixels.

    It follows from the phases of three Bragg peaks, doubled because the contrast of a lattice reverses with defocus.

    Returns
    -------
    Shape (images, 2), (rows, cols). An image that shows the lattice too weakly takes its shift from the images beside
    it; NaN where the three peaks disagree, or where the shift is so large that another one explains the phases too.

    Notes
    -----
    A shift by a whole lattice vector looks like none.
    """
    reciprocal = np.vstack([lattice.reciprocal, lattice.reciprocal[1] - lattice.reciprocal[0]])
    peaks = _measure_peaks(images, lattice)
    strength = np.abs(peaks) / images.std((1, 2))[:, None]
    strong = np.flatnonzero(strength.min(1) >= _DRIFT.weak_share * np.median(strength.max(0)))
    clearest = _find_clearest(images, lattice)
    if clearest not in strong:
        return np.zeros((len(images), 2))
    # From one strong image to the next, as these lie closer to each other than to the clearest.
    places = np.zeros((len(strong), 2))
    for index in range(1, len(strong)):
        turned = np.angle((peaks[strong[index]] * np.conj(peaks[strong[index - 1]])) ** 2)
        step = np.linalg.lstsq(-4.0 * np.pi * reciprocal, turned, rcond=None)[0]
        left = np.abs(turned + 4.0 * np.pi * reciprocal @ step).max()
        if left > _DRIFT.closure_rad or np.hypot(*step) > _DRIFT.largest_cells * lattice.constant_px:
            step = np.full(2, np.nan)
        places[index] = places[index - 1] + step
    places -= places[strong == clearest]
    every = np.arange(len(images))
    return np.stack([np.interp(every, strong, places[:, axis]) for axis in (0, 1)], axis=1)


def _measure_peaks(images: NDArray[np.floating], lattice: Lattice) -> NDArray[np.complex128]:
    """Amplitudes of three Bragg peaks in each image, shape (images, 3)."""
    rows, cols = (np.arange(side) for side in images.shape[1:])
    window = np.outer(*(np.hanning(side) for side in images.shape[1:]))
    flat = (images - images.mean((1, 2), keepdims=True)) * window
    third = lattice.reciprocal[1] - lattice.reciprocal[0]
    peaks = [
        (flat @ np.exp(-2j * np.pi * across * cols)) @ np.exp(-2j * np.pi * down * rows)
        for down, across in (*lattice.reciprocal, third)
    ]
    return np.stack(peaks, axis=1)


def _align(images: NDArray[np.floating], shifts: Float) -> Real:
    """Images moved back by their shifts; what moves in is the mirrored rim."""
    return np.stack(
        [
            ndimage.shift(np.asarray(image, np.float32), -shift, order=1, mode="mirror")
            if shift.any()
            else image
            for image, shift in zip(images, shifts, strict=True)
        ]
    ).astype(np.float32)


def _name_columns(
    reading: Reading, crystal: Crystal, *, shape: tuple[int, ...], margin: float
) -> pd.DataFrame:
    """Rows of a column table from what a network says, in its own pixels."""
    names = np.array(["", *crystal.species, crystal.second[0], FOREIGN])
    sublattice, p = settle_sublattices(reading)
    called = p[:, 1:].argmax(1) + 1
    plain = np.ones(reading.contrast.shape[1])
    usual = np.stack(
        [
            np.median(reading.contrast[called == kind], axis=0) if (called == kind).any() else plain
            for kind in (FIRST, SECOND)
        ]
    )
    template = usual[sublattice]
    frame = pd.DataFrame(
        {
            "row_px": reading.positions[:, 0],
            "col_px": reading.positions[:, 1],
            "sigma_px": reading.sigma,
            "sublattice": np.array(crystal.sublattices)[sublattice],
            "species": names[called],
            "species_p": p[np.arange(len(called)), called],
            "intensity": (reading.contrast * template).sum(1) / np.maximum((template**2).sum(1), 1e-9),
            "intensity_sigma": np.nan,
            "status": "accepted",
            "reason": "",
        }
    )
    frame = mark(frame, called == OTHER, status="uncertain", reason="neither of the material's columns")
    unsure = frame["species_p"] < _SURE_P
    frame = mark(
        frame, unsure, status="uncertain", reason="two kinds of column, or none, are about as likely"
    )
    vague = reading.sigma > VAGUE_SHARE * measure_spacing(reading.positions)
    frame = mark(frame, vague, status="uncertain", reason="its place is uncertain")
    rim = _RIM_NM / PIXEL_NM + margin
    cut = ((reading.positions < rim) | (reading.positions > np.array(shape[-2:]) - 1.0 - rim)).any(1)
    return mark(frame, cut, status="rejected", reason="cut by the border")
