"""CropNet: a small convolutional network that names what stands in the middle of a crop, and shows why.

Its last layer gives a map for every class, whose mean is the class's logit: the map is the class's activation map, and
the same as Grad-CAM of that layer.

References
----------
Zhou et al. 2016, doi:10.1109/CVPR.2016.319 (class activation maps); Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74
(Grad-CAM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatscope.training.losses import IGNORE

WIDTHS = (24, 48, 64)


class CropNet(nn.Module):
    """Two convolutions a level.

    Parameters
    ----------
    outputs
        Number of classes.
    groups
        Classes that exclude each other: (first, last + 1) of each group; only those of a crop's own group count.
    channels
        Of the crop.
    widths
        Channels at 1/1, 1/2, 1/4 ... of the crop's resolution.

    Notes
    -----
    Float32 (n, channels, rows, cols) in, (n, outputs, rows / 4, cols / 4) out for three levels.
    """

    def __init__(
        self,
        *,
        outputs: int,
        groups: tuple[tuple[int, int], ...],
        channels: int = 2,
        widths: tuple[int, ...] = WIDTHS,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = channels
        for level, width in enumerate(widths):
            if level:
                layers.append(nn.MaxPool2d(2))
            for _ in range(2):
                layers += [
                    nn.Conv2d(given, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                given = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(given, outputs, 1)
        self.groups = groups
        self.multiple = 2 ** (len(widths) - 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Activation maps of all classes."""
        maps: Tensor = self.head(self.body(x))
        return maps

    def loss(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Mean cross entropy of the classes `truth` (n,), each within its own group."""
        logits = answers.mean((2, 3))
        total = logits.new_zeros(())
        for first, end in self.groups:
            mine = (truth >= first) & (truth < end)
            if mine.any():
                chosen = logits[mine, first:end]
                total = total + nn.functional.cross_entropy(
                    chosen, truth[mine].long() - first, reduction="sum"
                )
        return total / max(int((truth != IGNORE).sum()), 1)

    @torch.no_grad()
    def balance(self, counts: Tensor) -> None:
        """Answer as if all classes of a group were equally frequent.

        How frequent a kind is, the image itself shows. `counts`, shape (outputs,), says how many training crops had
        each class.
        """
        assert self.head.bias is not None
        for first, end in self.groups:
            share = counts[first:end].clamp(min=1.0)
            self.head.bias[first:end] -= torch.log(share / share.sum())

    @torch.no_grad()
    def sharpen(self, factor: float) -> None:
        """Multiply all logits: one over the temperature of calibrated probabilities."""
        self.head.weight *= factor
        assert self.head.bias is not None
        self.head.bias *= factor
