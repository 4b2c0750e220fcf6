"""Contrasts of a batch beside those that thin-film optics compute for its fitted set-up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.flakes import describe_weights, recall_fit
from flatscope.optical.observations import KnownRegion
from flatscope.optical.setups import MODEL_SIGMA
from flatscope.optical.thinfilm import LAYER_GRID
from flatscope.runs.answering import Answers, Entry
from flatscope.runs.flakes import load_network


@dataclass(frozen=True)
class Ladder:
    """The computed contrasts of one batch.

    Parameters
    ----------
    items
        Places of its pictures.
    layers
        Layer numbers, shape (n,).
    contrast, sigma
        Their contrasts in red, green and blue and the 1-sigma error of each, shape (n, 3).
    """

    items: tuple[int, ...]
    layers: NDArray[np.int64]
    contrast: NDArray[np.float64]
    sigma: NDArray[np.float64]


def compute_ladders(answers: Answers, entries: Sequence[Entry], *, most_layers: int = 10) -> list[Ladder]:
    """The ladder of each batch of a run of `flatscope flakes`.

    Parameters
    ----------
    answers, entries
        The run.
    most_layers
        Where the ladders end.

    Raises
    ------
    SettingsError
        If the run cannot be taken up again here.
    """
    task = answers.find_task()
    by_fit: dict[str, list[Entry]] = {}
    for entry in entries:
        shared = answers.shared(entry)
        if shared and "fit" in shared:
            name = json.dumps([shared["fit"], shared.get("known", [])], sort_keys=True)
            by_fit.setdefault(name, []).append(entry)
    weights = describe_weights(load_network(task.given.light.weights))
    ladders = []
    for name, alike in by_fit.items():
        plain, known = json.loads(name)
        regions = [KnownRegion(region["layers"], tuple(region["contrast"])) for region in known]
        params = replace(task.given.params, known=(*task.given.params.known, *regions))
        fit = recall_fit(plain, params, weights)
        shown = np.asarray(LAYER_GRID) <= most_layers
        theory = np.asarray(fit.theory, float)[:, shown]
        mean = theory.mean(axis=0)
        sigma = np.hypot(theory.std(axis=0), MODEL_SIGMA * np.abs(mean))
        items = tuple(entry.index for entry in alike)
        ladders.append(Ladder(items, np.asarray(LAYER_GRID)[shown].astype(int), mean, sigma))
    return ladders
