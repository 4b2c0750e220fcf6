"""Residual networks: ResNet-50 as a backbone that keeps an eighth of the resolution, ResNet-18 for one number.

References
----------
He et al. 2016, doi:10.1109/CVPR.2016.90; strides replaced by dilation: Yu et al. 2017, doi:10.1109/CVPR.2017.75.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIDDLE_CHANNELS = 1024  # after the third stage of ResNet-50
LAST_CHANNELS = 2048  # after its last stage
_BLOCKS = (3, 4, 6, 3)  # bottlenecks of its stages


class ResNet50(nn.Module):
    """Residual network of bottlenecks (3, 4, 6 and 3), 23.5 million weights, without a classifier.

    Parameters
    ----------
    channels
        Input channels.

    Notes
    -----
    Float32 (n, channels, rows, cols) in; the third and the fourth stage out, 1024 and 2048 channels at an eighth of
    the resolution. The last two stages dilate by 2 and 4 instead of halving.
    """

    def __init__(self, *, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages, given, dilation = [], 64, 1
        for level, (blocks, stride) in enumerate(zip(_BLOCKS, (1, 2, 1, 1), strict=True)):
            width = 64 * 2**level
            # The first block of a dilated stage still works at the dilation of the stage before.
            before, dilation = dilation, dilation * (2 if level >= 2 else 1)
            first = Bottleneck(given, width, stride=stride, dilation=before)
            given = 4 * width
            rest = [Bottleneck(given, width, dilation=dilation) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Third and fourth stage, (n, 1024, rows/8, cols/8) and (n, 2048, rows/8, cols/8)."""
        x = self.stem(x)
        made = []
        for stage in self.stages:
            x = stage(x)
            made.append(x)
        return made[2], made[3]


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut; gives 4 · `width` channels."""

    def __init__(self, given: int, width: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(given, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or given != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(given, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width)
            )
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of residual and shortcut, rectified."""
        added: Tensor = self.activate(self.residual(x) + self.shortcut(x))
        return added


class ResNet18(nn.Module):
    """Residual network of basic blocks (2, 2, 2 and 2) that gives one number a picture, 11.2 million weights.

    Parameters
    ----------
    channels
        Input channels.

    Notes
    -----
    Float32 (n, channels, rows, cols) in, (n, 1) out; trained by the mean square error. Weights start from
    N(0, √(2 / n)), n the connections of an output (He et al. 2015, doi:10.1109/ICCV.2015.123).
    """

    def __init__(self, *, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        given = 64
        for level in range(4):
            width = 64 * 2**level
            layers += [BasicBlock(given, width, stride=1 if level == 0 else 2), BasicBlock(width, width)]
            given = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(given, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """One number a picture, (n, 1)."""
        given: Tensor = self.head(self.body(x).mean((2, 3)))
        return given

    @staticmethod
    def loss(answers: Tensor, truth: Tensor) -> Tensor:
        """Mean square error of answers (n, 1) against (n,)."""
        return torch.mean((answers[:, 0] - truth.to(answers.dtype)) ** 2)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; gives `width` channels."""

    def __init__(self, given: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(given, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or given != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(given, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of residual and shortcut, rectified."""
        added: Tensor = self.activate(self.residual(x) + self.shortcut(x))
        return added
