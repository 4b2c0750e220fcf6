"""U-GAT-IT, light: generators and discriminators that translate one kind of picture into another and back.

Smaller than published: one halving of the resolution, few blocks, gray crops; and a generator gives what is to be added
to its crop, so that an untrained one leaves it nearly as it is.

References
----------
Kim et al. 2020, arXiv:1907.10830 (attention by class activation maps, adaptive layer-instance normalisation);
Zhu et al. 2017, doi:10.1109/ICCV.2017.244 (cycle consistency); Khan et al. 2023, doi:10.1038/s41524-023-01042-3 (a
discriminator of spectra).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

_Layer = TypeVar("_Layer", bound=nn.Module)
_SMALL = 1e-5  # added to variances before they divide


class LayerInstanceNorm(nn.Module):
    """A learned mixture of instance and layer normalisation; its scale and shift are its own or come from outside.

    Parameters
    ----------
    channels
        Of what is normalised.
    first_share
        Of instance normalisation in the mixture.
    adaptive
        Whether scale and shift come from outside.
    """

    def __init__(self, channels: int, *, first_share: float, adaptive: bool) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((1, channels, 1, 1), first_share))
        self.own: Sequence[Tensor] | nn.ParameterList = (
            []
            if adaptive
            else nn.ParameterList(torch.full((1, channels, 1, 1), first) for first in (1.0, 0.0))
        )

    def forward(self, x: Tensor, *style: Tensor) -> Tensor:
        """Normalise (n, channels, rows, cols); scale and shift (n, channels, 1, 1) are given if adaptive."""
        instance, layer = (
            (x - x.mean(over, keepdim=True)) * torch.rsqrt(x.var(over, keepdim=True, unbiased=False) + _SMALL)
            for over in ((2, 3), (1, 2, 3))
        )
        share = self.share.clamp(0.0, 1.0)
        mixed = share * instance + (1.0 - share) * layer
        scale, shift = style or self.own
        return mixed * scale + shift


class _Block(nn.Module):
    """Two convolutions beside a shortcut, adaptively normalised or by instance."""

    def __init__(self, width: int, *, adaptive: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(width, width, 3) for _ in range(2))
        self.norms = nn.ModuleList(
            LayerInstanceNorm(width, first_share=0.9, adaptive=True) if adaptive else nn.InstanceNorm2d(width)
            for _ in range(2)
        )

    def forward(self, x: Tensor, *style: Tensor) -> Tensor:
        """(n, width, rows, cols) in and out."""
        seen = functional.relu(self.norms[0](self.convs[0](x), *style))
        made: Tensor = x + self.norms[1](self.convs[1](seen), *style)
        return made


class _Attention(nn.Module):
    """Channels weighted by what they say of the domain: class activation maps of mean and maximum."""

    def __init__(self, width: int, *, bounded: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(width, 1, bias=False) for _ in range(2)]
        self.of_mean, self.of_top = map(_bounded, layers) if bounded else layers
        self.merge = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted maps, (n, width, rows, cols), and both logits, (n, 2)."""
        logits = torch.cat([self.of_mean(x.mean((2, 3))), self.of_top(x.amax((2, 3)))], dim=1)
        maps = torch.cat([x * layer.weight[..., None, None] for layer in (self.of_mean, self.of_top)], dim=1)
        return self.merge(maps), logits


class Generator(nn.Module):
    """Translates crops.

    Parameters
    ----------
    width
        Channels at full resolution; twice as many at half of it.
    blocks
        Residual blocks on either side of the attention.

    Notes
    -----
    Float32 (n, 1, rows, cols) in and out, sides even.
    """

    multiple = 2

    def __init__(self, *, width: int = 24, blocks: int = 2) -> None:
        super().__init__()
        inner = 2 * width
        self.down = nn.Sequential(
            _conv(1, width, 7),
            nn.InstanceNorm2d(width),
            nn.ReLU(inplace=True),
            _conv(width, inner, 3, stride=2),
            nn.InstanceNorm2d(inner),
            nn.ReLU(inplace=True),
            *(_Block(inner, adaptive=False) for _ in range(blocks)),
        )
        self.attention = _Attention(inner)
        self.style = nn.Sequential(
            nn.Linear(inner, inner, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(inner, inner, bias=False),
            nn.ReLU(inplace=True),
        )
        self.scale, self.shift = (nn.Linear(inner, inner, bias=False) for _ in range(2))
        self.blocks = nn.ModuleList(_Block(inner, adaptive=True) for _ in range(blocks))
        self.grow = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            _conv(inner, width, 3),
            LayerInstanceNorm(width, first_share=0.0, adaptive=False),
            nn.ReLU(inplace=True),
        )
        self.head = _conv(width, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        """The translated crops."""
        return self.translate(x)[0]

    def translate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The translated crops, and logits (n, 2) of the domain they come from."""
        seen, logits = self.attention(self.down(x))
        seen = functional.relu(seen)
        style = self.style(seen.mean((2, 3)))
        scale, shift = self.scale(style)[..., None, None], self.shift(style)[..., None, None]
        for block in self.blocks:
            seen = block(seen, scale, shift)
        added: Tensor = self.head(self.grow(seen))
        return x + added, logits


class Discriminator(nn.Module):
    """Tells real crops from translated ones, place by place.

    Parameters
    ----------
    halvings
        Of the resolution: two for a local one, three for a global one.
    width
        Channels after the first of them.
    spectrum
        Whether it looks at the logarithm of a crop's power spectrum in place of the crop.
    """

    def __init__(self, *, halvings: int, width: int = 24, spectrum: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given, made = 1, width
        for _ in range(halvings):
            layers += [
                nn.ReflectionPad2d(1),
                _bounded(nn.Conv2d(given, made, 4, stride=2)),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            given, made = made, 2 * made
        self.body = nn.Sequential(*layers)
        self.attention = _Attention(given, bounded=True)
        self.head = nn.Sequential(nn.ReflectionPad2d(1), _bounded(nn.Conv2d(given, 1, 3, bias=False)))
        self.spectrum = spectrum

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of places (n, 1, rows, cols), and of the attention (n, 2), for crops (n, 1, rows, cols)."""
        seen, logits = self.attention(self.body(_see_spectrum(x) if self.spectrum else x))
        return self.head(functional.leaky_relu(seen, 0.2)), logits


def _see_spectrum(x: Tensor) -> Tensor:
    """Logarithm of the power of windowed crops, frequency 0 in the middle, about from -1 to 1."""
    rows, cols = (torch.hann_window(side, periodic=False) for side in x.shape[-2:])
    power = torch.fft.fft2((x - x.mean((2, 3), keepdim=True)) * (rows[:, None] * cols)).abs() ** 2
    return torch.fft.fftshift(torch.log(power + 1e-2), dim=(-2, -1)) / 5.0


def _bounded(module: _Layer) -> _Layer:
    """Spectral normalisation (Miyato et al. 2018, arXiv:1802.05957)."""
    nn.utils.parametrizations.spectral_norm(module)
    return module


def _conv(given: int, made: int, side: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        given,
        made,
        side,
        stride=stride,
        padding=(side - stride + 1) // 2 if stride > 1 else side // 2,
        padding_mode="reflect",
        bias=False,
    )
