"""U-Net in the two forms that studies of layer numbers used.

References
----------
Ronneberger et al., MICCAI 2015, doi:10.1007/978-3-319-24574-4_28;
Saito et al., npj Comput. Mater. 5, 124 (2019), doi:10.1038/s41524-019-0262-4;
Yang et al., Nano Lett. (2024), doi:10.1021/acs.nanolett.3c04815.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

SAITO_WIDTHS = (64, 128, 256, 512, 1024)
YANG_WIDTHS = (32, 64, 128, 256, 512)


class SaitoUNet(nn.Module):
    """U-Net with transposed convolutions and dropout after the first three of them (31.0 million weights).

    Parameters
    ----------
    outputs
        Classes.
    channels
        Input channels.
    widths
        Channels of each level, finest first.
    dropout
        Share of activations that are dropped behind each of the three coarsest up-convolutions.

    Notes
    -----
    Float32 (n, channels, rows, cols) of any size from 16 px in; logits (n, outputs, rows, cols) out.
    """

    def __init__(
        self,
        *,
        outputs: int = 3,
        channels: int = 3,
        widths: tuple[int, ...] = SAITO_WIDTHS,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _double_conv(before, after, norm=False)
            for before, after in itertools.pairwise((channels, *widths))
        )
        coarse_to_fine = list(itertools.pairwise(widths[::-1]))
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 2, stride=2) for before, after in coarse_to_fine
        )
        self.drop = nn.ModuleList(
            nn.Dropout(dropout if level < 3 else 0.0) for level in range(len(coarse_to_fine))
        )
        self.up = nn.ModuleList(_double_conv(2 * after, after, norm=False) for _, after in coarse_to_fine)
        self.head = nn.Conv2d(widths[0], outputs, 1)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, outputs, rows, cols) of the pictures `x` (n, channels, rows, cols)."""
        x, skips = _descend(self.down, x)
        for grow, drop, up in zip(self.grow, self.drop, self.up, strict=True):
            skip = skips.pop()
            x = up(torch.cat((skip, _fit_to(drop(grow(x)), skip)), dim=1))
        logits: Tensor = self.head(x)
        return logits


class YangUNet(nn.Module):
    """U-Net with bilinear upsampling and batch normalisation (4.3 million weights).

    Parameters
    ----------
    outputs
        Classes.
    channels
        Input channels.
    widths
        Channels of each level, finest first; the coarsest keeps half of its number, as upsampling does not halve it.

    Notes
    -----
    Float32 (n, channels, rows, cols) of any size from 16 px in; logits (n, outputs, rows, cols) out.
    """

    def __init__(self, *, outputs: int = 4, channels: int = 3, widths: tuple[int, ...] = YANG_WIDTHS) -> None:
        super().__init__()
        made = (*widths[:-1], widths[-1] // 2)
        self.down = nn.ModuleList(
            _double_conv(before, after) for before, after in itertools.pairwise((channels, *made))
        )
        halves = (*(width // 2 for width in widths[-2:0:-1]), widths[0])
        self.grow = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.up = nn.ModuleList(
            _double_conv(2 * skip, after, between=skip)
            for skip, after in zip(widths[-2::-1], halves, strict=True)
        )
        self.head = nn.Conv2d(widths[0], outputs, 1)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, outputs, rows, cols) of the pictures `x` (n, channels, rows, cols)."""
        x, skips = _descend(self.down, x)
        for up in self.up:
            skip = skips.pop()
            x = up(torch.cat((skip, _fit_to(self.grow(x), skip)), dim=1))
        logits: Tensor = self.head(x)
        return logits


def initialise(module: nn.Module) -> None:
    """He et al. 2015 (doi:10.1109/ICCV.2015.123): weights that keep the variance under ReLU; biases 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _descend(down: nn.ModuleList, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The coarsest level, and what the others pass across."""
    skips: list[Tensor] = []
    for level, block in enumerate(down):
        x = block(x if level == 0 else functional.max_pool2d(x, 2))
        skips.append(x)
    return skips.pop(), skips


def _fit_to(x: Tensor, skip: Tensor) -> Tensor:
    """Odd sizes lose a row or column on the way down: the last one is repeated."""
    rows, cols = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
    return functional.pad(x, (0, cols, 0, rows), mode="replicate") if rows or cols else x


def _double_conv(before: int, after: int, *, between: int | None = None, norm: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for given, made in ((before, between or after), (between or after, after)):
        layers.append(nn.Conv2d(given, made, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(made)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
