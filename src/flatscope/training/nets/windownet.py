"""WindowNet: the published classifier of windows around defects, and where in a window it looks.

References
----------
DefectFinder, University of Washington, 2018 (poster and code; no DOI): four convolutions of 7, 5, 3 and 3 px with 8,
16, 32 and 64 channels, batch normalisation and pooling, the mean over the last maps, dropout and a dense layer for six
classes. Class activation maps: Zhou et al. 2016, doi:10.1109/CVPR.2016.319. Unlike there, borders are padded and the
last maps are not pooled, so that the activation maps have 8×8 px instead of one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CONVOLUTIONS = ((8, 7), (16, 5), (32, 3), (64, 3))
"""Channels and side in px of each, as in the published code."""


class WindowNet(nn.Module):
    """Four convolutions with batch normalisation, pooling between them, dropout and a dense layer.

    Parameters
    ----------
    outputs
        Number of classes.
    dropout
        Share of the last channels' means that are dropped in training.

    Notes
    -----
    Float32 (n, 1, 64, 64) in, logits (n, outputs) out.
    """

    def __init__(self, *, outputs: int = 6, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = 1
        for width, side in _CONVOLUTIONS:
            layers += [
                nn.Conv2d(given, width, side, padding=side // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            given = width
        self.body = nn.Sequential(*layers[:-1])
        self.drop = nn.Dropout(dropout)
        self.dense = nn.Linear(given, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, outputs)."""
        logits: Tensor = self.dense(self.drop(self.body(x).mean((2, 3))))
        return logits

    def activation(self, x: Tensor) -> Tensor:
        """Class activation maps, (n, outputs, rows / 8, cols / 8); without dropout their mean is the logits."""
        maps = torch.einsum("nchw,kc->nkhw", self.body(x), self.dense.weight)
        return maps + self.dense.bias[:, None, None]

    @staticmethod
    def loss(answers: Tensor, truth: Tensor) -> Tensor:
        """Cross entropy of the classes `truth` (n,)."""
        loss: Tensor = torch.nn.functional.cross_entropy(answers, truth.long())
        return loss
