"""WindowNet: the published classifier of windows around defects, and where in a window it looks.

References
----------
DefectFinder, University of Washington, 2018 (poster and code; no DOI): convolutions with batch normalisation and
dropout on windows of 64×64 px, six classes. What it leaves open is chosen here: three levels of 32, 64 and 128
channels, mean over the last maps, so that class activation maps (Zhou et al. 2016, doi:10.1109/CVPR.2016.319) follow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WindowNet(nn.Module):
    """Three convolutions of 5×5, each with batch normalisation, pooling and dropout.

    Parameters
    ----------
    outputs
        Number of classes.
    dropout
        Share of the maps that are dropped in training.
    widths
        Channels a level.

    Notes
    -----
    Float32 (n, 1, 64, 64) in, logits (n, outputs) out.
    """

    def __init__(
        self, *, outputs: int = 6, dropout: float = 0.2, widths: tuple[int, ...] = (32, 64, 128)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = 1
        for width in widths:
            layers += [
                nn.Conv2d(given, width, 5, padding=2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
                nn.Dropout2d(dropout),
            ]
            given = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(given, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, outputs)."""
        logits: Tensor = self.activation(x).mean((2, 3))
        return logits

    def activation(self, x: Tensor) -> Tensor:
        """Class activation maps, (n, outputs, rows / 8, cols / 8)."""
        maps: Tensor = self.head(self.body(x))
        return maps

    @staticmethod
    def loss(answers: Tensor, truth: Tensor) -> Tensor:
        """Cross entropy of the classes `truth` (n,)."""
        loss: Tensor = torch.nn.functional.cross_entropy(answers, truth.long())
        return loss
