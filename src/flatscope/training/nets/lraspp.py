"""LR-ASPP on MobileNetV3-Large: the light one.

References
----------
Howard et al. 2019, doi:10.1109/ICCV.2019.00140; used for layer numbers by Yang et al. 2024,
doi:10.1021/acs.nanolett.3c04815.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from flatscope.training.nets.unet import initialise


class _Stage(NamedTuple):
    kernel: int
    expanded: int
    made: int
    squeeze: bool
    hard: bool
    stride: int = 1
    dilation: int = 1


_STAGES = (
    _Stage(3, 16, 16, False, False),
    _Stage(3, 64, 24, False, False, stride=2),
    _Stage(3, 72, 24, False, False),
    _Stage(5, 72, 40, True, False, stride=2),
    _Stage(5, 120, 40, True, False),
    _Stage(5, 120, 40, True, False),
    _Stage(3, 240, 80, False, True, stride=2),
    _Stage(3, 200, 80, False, True),
    _Stage(3, 184, 80, False, True),
    _Stage(3, 184, 80, False, True),
    _Stage(3, 480, 112, True, True),
    _Stage(3, 672, 112, True, True),
    # Dilated in place of a stride of 2: the picture stays at a sixteenth.
    _Stage(5, 672, 160, True, True, dilation=2),
    _Stage(5, 960, 160, True, True, dilation=2),
    _Stage(5, 960, 160, True, True, dilation=2),
)
_FIRST = 16  # channels before the first stage
_LAST = 960  # channels after the last stage
_WIDTH = 128  # channels of the head
_LOW_STAGE = 3  # the first stage at an eighth of the resolution


class LRASPP(nn.Module):
    """LR-ASPP with MobileNetV3-Large (3.2 million weights).

    Parameters
    ----------
    outputs, channels
        Classes; input channels.

    Notes
    -----
    Float32 (n, channels, rows, cols) of any size from 16 px in; logits (n, outputs, rows, cols) out.
    """

    def __init__(self, *, outputs: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.stem = _conv(channels, _FIRST, 3, stride=2, activate=nn.Hardswish)
        stages, given = [], _FIRST
        for stage in _STAGES:
            stages.append(Inverted(given, stage))
            given = stage.made
        self.stages = nn.ModuleList(stages)
        self.last = _conv(given, _LAST, 1, activate=nn.Hardswish)
        self.high = _conv(_LAST, _WIDTH, 1, activate=nn.ReLU)
        self.attend = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(_LAST, _WIDTH, 1, bias=False), nn.Sigmoid()
        )
        self.classify_low = nn.Conv2d(_STAGES[_LOW_STAGE].made, outputs, 1)
        self.classify_high = nn.Conv2d(_WIDTH, outputs, 1)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, outputs, rows, cols) of the pictures `x` (n, channels, rows, cols)."""
        size = x.shape[-2:]
        x = self.stem(x)
        low = x
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == _LOW_STAGE:
                low = x
        x = self.last(x)
        x = self.high(x) * self.attend(x)
        x = functional.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
        logits = self.classify_low(low) + self.classify_high(x)
        return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class Inverted(nn.Module):
    """Expand, convolve each channel by itself, weigh the channels, and narrow; a shortcut where shapes agree."""

    def __init__(self, given: int, stage: _Stage) -> None:
        super().__init__()
        activate: Callable[..., nn.Module] = nn.Hardswish if stage.hard else nn.ReLU
        layers: list[nn.Module] = []
        if stage.expanded != given:
            layers.append(_conv(given, stage.expanded, 1, activate=activate))
        layers.append(
            _conv(
                stage.expanded,
                stage.expanded,
                stage.kernel,
                stride=stage.stride,
                dilation=stage.dilation,
                groups=stage.expanded,
                activate=activate,
            )
        )
        if stage.squeeze:
            layers.append(SqueezeExcitation(stage.expanded))
        layers.append(_conv(stage.expanded, stage.made, 1, activate=nn.Identity))
        self.layers = nn.Sequential(*layers)
        self.shortcut = stage.stride == 1 and given == stage.made

    def forward(self, x: Tensor) -> Tensor:
        """(n, given, rows, cols) to (n, made, rows / stride, cols / stride)."""
        made: Tensor = self.layers(x)
        return made + x if self.shortcut else made


class SqueezeExcitation(nn.Module):
    """Weigh each channel by what all of them show on average (Hu et al. 2018, doi:10.1109/CVPR.2018.00745)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _divisible(channels / 4)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        weighed: Tensor = x * self.weigh(x)
        return weighed


def _divisible(value: float, *, by: int = 8) -> int:
    """The nearest multiple, at most a tenth below the value."""
    nearest = max(by, int(value + by / 2) // by * by)
    return nearest + by if nearest < 0.9 * value else nearest


def _conv(
    given: int,
    made: int,
    kernel: int,
    *,
    activate: Callable[..., nn.Module],
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    padding = (kernel - 1) // 2 * dilation
    return nn.Sequential(
        nn.Conv2d(
            given, made, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
        ),
        nn.BatchNorm2d(made, eps=1e-3, momentum=0.01),
        activate(),
    )
