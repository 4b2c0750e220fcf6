"""DeepLabV3 on ResNet-50: convolutions of several dilations side by side.

References
----------
Chen et al. 2017, arXiv:1706.05587; used for layer numbers by Yang et al. 2024, doi:10.1021/acs.nanolett.3c04815.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatscope.training.nets.fcn import DilatedSegmenter
from flatscope.training.nets.resnet import LAST_CHANNELS

_DILATIONS = (12, 24, 36)
_WIDTH = 256


class DeepLabV3(DilatedSegmenter):
    """DeepLabV3-ResNet-50 (42.0 million weights with its auxiliary head at 21 classes)."""

    def __init__(self, *, outputs: int = 4, channels: int = 3) -> None:
        head = nn.Sequential(
            Pyramid(LAST_CHANNELS, _WIDTH), *_conv(_WIDTH, _WIDTH, 3), nn.Conv2d(_WIDTH, outputs, 1)
        )
        super().__init__(head, outputs=outputs, channels=channels)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: 1×1, three dilated 3×3 and the mean of the picture, joined."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [nn.Sequential(*_conv(given, width, 1))]
            + [nn.Sequential(*_conv(given, width, 3, dilation=dilation)) for dilation in _DILATIONS]
        )
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv(given, width, 1))
        self.join = nn.Sequential(*_conv(width * (len(_DILATIONS) + 2), width, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(n, given, rows, cols) to (n, width, rows, cols)."""
        parts = [branch(x) for branch in self.branches]
        parts.append(functional.interpolate(self.whole(x), size=x.shape[-2:], mode="nearest"))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


def _conv(given: int, made: int, kernel: int, *, dilation: int = 1) -> list[nn.Module]:
    padding = dilation if kernel == 3 else 0
    return [
        nn.Conv2d(given, made, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(made),
        nn.ReLU(inplace=True),
    ]
