"""BlobNet: the published network that marks defects in every frame of a movie, trained on its first one.

References
----------
Maksov et al. 2019, doi:10.1038/s41524-019-0152-9: convolutions of 20, 40, 40 and 20 channels on windows of 256×256 px.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (20, 40, 40, 20)


class BlobNet(nn.Module):
    """Four convolutions of 3×3 at full resolution and a last one of 1×1.

    Parameters
    ----------
    widths
        Channels of the four.
    reach
        Distance of the taps of the two in the middle: they see so much farther.

    Notes
    -----
    Float32 (n, 1, rows, cols) in; logits (n, 2, rows, cols) out, nothing and defect.
    """

    def __init__(self, *, widths: tuple[int, ...] = WIDTHS, reach: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = 1
        for place, width in enumerate(widths):
            step = reach if 0 < place < len(widths) - 1 else 1
            layers += [nn.Conv2d(given, width, 3, padding=step, dilation=step), nn.ReLU(inplace=True)]
            given = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(given, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of both classes."""
        logits: Tensor = self.head(self.body(x))
        return logits

    @staticmethod
    def loss(answers: Tensor, truth: Tensor) -> Tensor:
        """Cross entropy of the classes `truth` (n, rows, cols), defects weighing as much as their surroundings."""
        share = truth.float().mean().clamp(1e-3, 0.5)
        weights = torch.stack([0.5 / (1.0 - share), 0.5 / share])
        loss: Tensor = nn.functional.cross_entropy(answers, truth.long(), weight=weights)
        return loss
