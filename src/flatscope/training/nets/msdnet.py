"""Mixed-scale dense network: every layer sees the picture and all layers before it, at a scale of its own.

References
----------
Pelt and Sethian 2018, doi:10.1073/pnas.1715832114.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_DILATION = 10


class MSDNet(nn.Module):
    """Mixed-scale dense network of one channel a layer.

    Parameters
    ----------
    outputs
        Classes.
    channels
        Input channels.
    depth
        Layers; layer i has dilation 1 + i mod 10.

    Notes
    -----
    Float32 (n, channels, rows, cols) of any size in; logits (n, outputs, rows, cols) out. Weights: 9 · depth ·
    (channels + (depth − 1) / 2) + depth, and those of the last layer.
    """

    def __init__(self, *, outputs: int = 4, channels: int = 3, depth: int = 100) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(
                channels + index,
                1,
                3,
                padding=1 + index % LARGEST_DILATION,
                dilation=1 + index % LARGEST_DILATION,
            )
            for index in range(depth)
        )
        self.head = nn.Conv2d(channels + depth, outputs, 1)
        count = 9 * (channels + depth) + outputs
        for layer in self.layers:
            # The published initialisation: normal, sqrt(2 / n_c), n_c = connections of a channel on average.
            nn.init.normal_(layer.weight, std=(2.0 / count) ** 0.5)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    @property
    def multiple(self) -> int:
        """Rows and cols may be any number."""
        return 1

    @property
    def halo_px(self) -> int:
        """Context, px, that a pixel on a tile border needs to come out as in the whole picture."""
        return sum(1 + index % LARGEST_DILATION for index in range(len(self.layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, outputs, rows, cols)."""
        for layer in self.layers:
            x = torch.cat([x, functional.relu(layer(x))], dim=1)
        logits: Tensor = self.head(x)
        return logits
