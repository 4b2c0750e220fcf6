"""Run a network on a picture of any size through ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatscope.inference import card as cards
from flatscope.inference import registry
from flatscope.inference.card import Card, WeightsError
from flatscope.inference.tiling import cut_tiles

WHOLE_PX = 3_000_000
"""Pictures up to this many pixels go through in one piece: faster, at about 150 bytes of memory a pixel."""
CORE_PX = 1024
"""Side of a larger picture's tile without its halo, rounded down to the network's multiple."""


@dataclass(frozen=True)
class Network:
    """A loaded network. Make one with `load`; it may be used from several threads at once.

    Parameters
    ----------
    card
        What it expects and gives.
    sha256
        Of the file it came from, for the provenance record.
    path
        That file.
    """

    card: Card
    sha256: str
    path: Path
    _session: Any

    def describe(self) -> dict[str, str]:
        """Name, version and digest: which network this is."""
        return {"name": self.card.name, "version": self.card.version, "sha256": self.sha256}

    @classmethod
    def load(cls, name_or_path: str | Path, *, task: str = "flakes", threads: int | None = None) -> Network:
        """Load shipped weights by name, or a user's own .onnx file with a card inside.

        Parameters
        ----------
        task
            What the weights must be for.
        threads
            Threads for one picture; None: every core that this process may use. Give 1 in worker processes.

        Raises
        ------
        WeightsError
            Unknown name, missing or damaged file, missing or damaged card, a card that does not fit, or another task.
        ValueError
            `threads` is below 1.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads = {threads}: give 1 or more, or None for every core")
        path = registry.resolve(name_or_path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror}): check the file") from None
        session = _open(content, path, threads or _usable_cores())
        try:
            text = session.get_modelmeta().custom_metadata_map.get(cards.KEY)
        except UnicodeDecodeError:
            raise WeightsError(f"{path}: damaged card: is no text: copy or export it again") from None
        if text is None:
            raise WeightsError(
                f"{path}: holds no flatscope card: export it with flatscope.training.onnx_export"
            )
        try:
            card = Card.from_json(text)
            if card.task != task:
                raise WeightsError(f"these weights are for the task {card.task!r}, not {task!r}")
            _check_fit(card, session)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        return cls(card=card, sha256=hashlib.sha256(content).hexdigest(), path=path, _session=session)

    def predict(
        self, x: ArrayLike, *, whole_px: int = WHOLE_PX, core_px: int = CORE_PX
    ) -> NDArray[np.float32]:
        """Logits of a normalised picture (see `Card.normalise`).

        Parameters
        ----------
        x
            Finite, (channels, rows, cols), any size from 1 px; padded by mirroring to the net's multiple.
        whole_px
            Above this many pixels the picture is cut into tiles, with the same result.
        core_px
            Side of a tile's core, rounded down to the net's multiple.

        Returns
        -------
        ndarray
            float32 (outputs, rows, cols), channels as in ``card.outputs``.

        Raises
        ------
        ValueError
            Wrong shape, or values that are not finite.
        """
        x = np.asarray(x, dtype=np.float32)
        if x.ndim != 3 or x.shape[0] != len(self.card.channels) or min(x.shape) < 1:
            raise ValueError(
                f"input of shape {x.shape} does not fit network {self.card.name}: "
                f"give ({len(self.card.channels)}, rows, cols), at least 1 px"
            )
        if not np.isfinite(x).all():
            bad = int(np.count_nonzero(~np.isfinite(x)))
            raise ValueError(f"input holds {bad} values that are not finite: set unknown pixels to 0 first")
        rows, cols = x.shape[1:]
        step = self.card.multiple
        # symmetric, not reflect: it is defined from 1 px on
        pad = ((0, 0), (0, -rows % step), (0, -cols % step))
        padded = np.pad(x, pad, mode="symmetric") if rows % step or cols % step else x
        if rows * cols <= whole_px:
            return np.ascontiguousarray(self.run(padded[None])[0, :, :rows, :cols])
        shape = (padded.shape[1], padded.shape[2])
        logits = np.empty((len(self.card.outputs), *shape), dtype=np.float32)
        core_px = max(core_px // step, 1) * step
        for tile in cut_tiles(shape, core_px=core_px, halo_px=self.card.halo_px, multiple=step):
            piece = self.run(np.ascontiguousarray(padded[:, *tile.window])[None])[0]
            logits[:, *tile.core] = piece[:, *tile.inner]
        return np.ascontiguousarray(logits[:, :rows, :cols])

    def probabilities(self, x: ArrayLike) -> NDArray[np.float32]:
        """Probabilities (outputs, rows, cols): softmax over classes, sigmoid of maps; see `predict`."""
        logits = self.predict(x)
        count = len(self.card.classes)
        classes, maps = logits[:count], logits[count:]
        if count:
            classes -= classes.max(axis=0)
            np.exp(classes, out=classes)
            classes /= classes.sum(axis=0)
        # the clip keeps exp finite in float32; beyond it the sigmoid is 0 or 1 to the last digit
        np.clip(maps, -60, 60, out=maps)
        maps[...] = 1 / (1 + np.exp(-maps))
        return logits

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the bare network makes of (n, channels, rows, cols): (n, outputs, ...)."""
        answers: NDArray[np.float32] = self._session.run(None, {self._session.get_inputs()[0].name: x})[0]
        return answers


def _open(content: bytes, path: Path, threads: int) -> Any:
    # imported here: 0.1 s that `import flatscope` and `flatscope --help` must not pay
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = (
        False  # it only pays when all pictures are of one size, and costs the second one
    )
    options.log_severity_level = 4  # what goes wrong is raised below; the log would say it twice
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's classes of error share no base but this
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path}: not a network that ONNX Runtime can read ({reason})") from None


def _check_fit(card: Card, session: Any) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if not inputs or not outputs or min(len(inputs[0].shape), len(outputs[0].shape)) < 2:
        raise WeightsError("the network takes or gives no pictures: export it again")
    given = (inputs[0].shape[1], len(inputs), len(outputs))
    wanted = (len(card.channels), 1, 1)
    if given != wanted:
        raise WeightsError(f"the card says {wanted}, the network has {given} (channels, inputs, outputs)")
    made = outputs[0].shape[1]
    if isinstance(made, int) and made != len(card.outputs):
        raise WeightsError(f"the card names {len(card.outputs)} outputs, the network gives {made}")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
