"""What stands in every pixel's column, where its middle is, and how sure that is: a loss around any network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatscope.electron.kinds import COLUMN_CLASSES
from flatscope.training.losses import IGNORE

_PLACE_WEIGHT = 0.1  # of the distances in the loss, over that of the classes
_LOG_SIGMA = (
    -4.0,
    2.0,
)  # bounds of the logarithm of the stated 1-sigma error in px, so that the loss stays finite


class ColumnNet(nn.Module):
    """A network of pixels with the loss of columns.

    Parameters
    ----------
    body
        A network with as many outputs as `flatscope.electron.focal` has `CLASSES` and `MAPS`, and with `multiple` and
        `halo_px` as in `flatscope.inference.card.Card`.
    weights
        Of the classes in the cross entropy.
    """

    def __init__(self, body: nn.Module, *, weights: tuple[float, ...] = (0.5, 1.0, 1.0, 2.0, 2.0)) -> None:
        super().__init__()
        self.body = body
        self.weights = weights
        self.multiple = int(body.multiple)  # type: ignore[arg-type]
        self.halo_px = int(body.halo_px)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes and values of the maps, (n, 8, rows, cols)."""
        answers: Tensor = self.body(x)
        return answers

    def loss(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Cross entropy of the classes, and negative log likelihood of the distances where a column is.

        Parameters
        ----------
        truth
            Shape (n, rows, cols, 3): class (255 ignored), distance down, distance right.
        """
        count = len(COLUMN_CLASSES)
        classes = truth[..., 0].long()
        weight = torch.tensor(self.weights, dtype=answers.dtype)
        crossed = functional.cross_entropy(answers[:, :count], classes, weight=weight, ignore_index=IGNORE)
        here = (classes > 0) & (classes != IGNORE)
        log_sigma = answers[:, count + 2].clamp(*_LOG_SIGMA)
        away = ((answers[:, count : count + 2] - truth[..., 1:].movedim(-1, 1).to(answers.dtype)) ** 2).sum(1)
        placed = 0.5 * away * torch.exp(-2.0 * log_sigma) + 2.0 * log_sigma
        return crossed + _PLACE_WEIGHT * placed[here].sum() / here.sum().clamp(min=1)
