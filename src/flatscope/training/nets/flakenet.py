"""FlakeNet: a small U-Net that finds flakes in calibrated contrast.

The stem halves the picture before anything expensive happens and the head gives the resolution back by pixel
shuffle: three quarters of a full-resolution U-Net's time go into its first and last level, where a flake edge
needs no more than a few channels.

References
----------
Ronneberger et al., MICCAI 2015, doi:10.1007/978-3-319-24574-4_28 (U-Net);
Shi et al., CVPR 2016, doi:10.1109/CVPR.2016.207 (pixel shuffle).
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flatscope.inference.card import WeightsError

CLASSES = ("substrate", "thin", "thick", "artefact")
"""Softmax channels, in order."""
MAPS = ("edge",)
"""Channels that stand alone (sigmoid), after the classes: a region's boundary, terrace steps included."""
WIDTHS = (16, 32, 64, 128)
_PRIORS = (
    0.85,
    0.06,
    0.06,
    0.03,
    0.08,
)  # rough share of each class and of edges in scenes; training starts from it


class FlakeNet(nn.Module):
    """U-Net with a stride-2 stem and a pixel-shuffle head.

    Parameters
    ----------
    widths
        Channels at 1/2, 1/4, 1/8, ... of the picture's resolution; at least two levels.
    channels
        Input channels (three: R, G, B contrast, normalised).
    outputs
        Logits a pixel: four classes and the edge map.

    Notes
    -----
    The input is float32 (n, channels, rows, cols) with rows and cols multiples of `multiple`; the output is
    float32 logits (n, outputs, rows, cols). Zero padding is meant: zero contrast is bare substrate.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = WIDTHS,
        channels: int = 3,
        outputs: int = len(CLASSES) + len(MAPS),
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths {widths} do not make a U-Net: give two or more positive channel counts")
        self.widths = tuple(widths)
        self.channels = channels
        self.outputs = outputs
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        fine_to_coarse = list(zip((widths[0], *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(_double_conv(before, after) for before, after in fine_to_coarse)
        self.pool = nn.MaxPool2d(2)
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in itertools.pairwise(widths))
        self.grow = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.up = nn.ModuleList(_double_conv(2 * fine, fine) for fine in widths[:-1])
        self.head = nn.Sequential(nn.Conv2d(widths[0], 4 * outputs, 1), nn.PixelShuffle(2))
        self.apply(_initialise)
        if outputs == len(_PRIORS):
            self._start_from_priors()

    @classmethod
    def from_onnx(cls, path: str | Path) -> FlakeNet:
        """The network inside an exported file, in eval mode, so that it can be trained further.

        What was folded into the convolutions stands in the normalisations as scale 1 and the bias; weights of 8 bits
        come back as the numbers that they stand for.

        Raises
        ------
        WeightsError
            The file holds another network.
        """
        import onnx

        graph = onnx.load(path).graph
        stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in stored:
                whole, scale = (stored[name].astype(np.float32) for name in node.input[:2])
                stored[node.output[0]] = whole * scale.reshape(-1, *(1,) * (whole.ndim - 1))
        # a node is called by the modules around it: /down.0/down.0.3/Conv
        found = {
            node.name.split("/")[-2]: [stored[name] for name in node.input[1:]]
            for node in graph.node
            if node.op_type == "Conv"
        }
        try:
            levels = sum(name.endswith(".3") and name.startswith("down.") for name in found)
            net = cls(widths=tuple(len(found[f"down.{level}.3"][0]) for level in range(levels)))
            state = net.state_dict()
            for name, (weight, bias) in found.items():
                state[f"{name}.weight"] = torch.tensor(weight)
                owner = name
                if f"{name}.bias" not in state:
                    stem, _, place = name.rpartition(".")
                    owner = f"{stem}.{int(place) + 1}"
                    state[f"{owner}.running_var"] = torch.full((len(weight),), 1.0 - nn.BatchNorm2d(1).eps)
                state[f"{owner}.bias"] = torch.tensor(bias)
            net.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            detail = str(error).splitlines()[0]
            raise WeightsError(f"{path}: holds no network of the flake finder ({detail})") from None
        return net.eval()

    def _start_from_priors(self) -> None:
        # else the first hundred steps go into learning that most of a picture is substrate
        # (Lin et al. 2017, doi:10.1109/ICCV.2017.324, sec. 3.3)
        logits = [math.log(p) for p in _PRIORS[: len(CLASSES)]]
        logits += [math.log(p / (1 - p)) for p in _PRIORS[len(CLASSES) :]]
        bias = self.head[0].bias
        assert isinstance(bias, nn.Parameter)
        with torch.no_grad():
            bias.copy_(
                torch.tensor(logits).repeat_interleave(4)
            )  # pixel shuffle: four in a row make one output

    @property
    def multiple(self) -> int:
        """Rows and cols must be multiples of this, px."""
        return int(2 ** len(self.widths))

    @property
    def halo_px(self) -> int:
        """Context, px, that a pixel on a tile border needs to come out as in the whole picture.

        A multiple of `multiple`, by following the receptive field of the block ``[0, multiple)`` back to the
        input; tiles that start on multiples of `multiple` share the whole picture's grid, so this is exact.
        """
        low, high = 0, self.multiple // 2 - 1
        levels = len(self.widths)
        for _ in range(levels - 1):  # decoder, fine to coarse
            low, high = low - 2, high + 2
            # bilinear x2 reads the two nearest coarse pixels: (i - 0.5) / 2 rounded down, and one more
            low, high = (low - 1) // 2, (high - 1) // 2 + 1
        for level in range(levels):  # encoder, coarse to fine
            low, high = low - 2, high + 2
            if level < levels - 1:
                low, high = 2 * low, 2 * high + 1
        low, high = 2 * low - 1, 2 * high + 2
        reach = max(-low, high - (self.multiple - 1))
        return math.ceil(reach / self.multiple) * self.multiple

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, outputs, rows, cols) of the pictures `x` (n, channels, rows, cols)."""
        skips: list[Tensor] = []
        x = self.stem(x)
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            # narrowing before growing: the same linear map on a quarter of the pixels
            x = torch.cat((skips[level], self.grow(self.narrow[level](x))), dim=1)
            x = self.up[level](x)
        logits: Tensor = self.head(x)
        return logits


def _double_conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    # He et al. 2015, doi:10.1109/ICCV.2015.123; fan_out keeps the backward pass level in a net that narrows
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
