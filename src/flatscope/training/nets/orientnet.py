"""OrientNet: a small residual network that says how a three-fold crystal lies, and how sure it is.

Its four numbers are the natural parameters of a density on the circle that has the crystal's symmetry. The first two
are a von Mises distribution of six times the angle: every edge, long or short, tells that much. The last two tell
which of both directions 60° apart it is, by the logit 2 t · (cos 3φ, sin 3φ). Neither jumps where the angle does, and
a hexagon, of which the second can say nothing, still has the first.

References
----------
He et al. 2016, doi:10.1109/CVPR.2016.90 (residual networks); Mardia and Jupp 2000, doi:10.1002/9780470316979
(von Mises distribution).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatscope.training.nets.resnet import BasicBlock

WIDTHS = (16, 32, 64, 128)
OUTPUTS = ("six_cos", "six_sin", "three_cos", "three_sin")


class OrientNet(nn.Module):
    """Residual network of two basic blocks a level.

    Parameters
    ----------
    widths
        Channels at 1/2, 1/4, 1/8 ... of the crop's resolution.

    Notes
    -----
    Float32 (n, 2, 64, 64) in, see `flatscope.optical.orientation.crop_layer`; (n, 4) out, see `OUTPUTS`.
    """

    def __init__(self, *, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(2, widths[0], 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        given = widths[0]
        for level, width in enumerate(widths):
            layers += [BasicBlock(given, width, stride=1 if level == 0 else 2), BasicBlock(width, width)]
            given = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(given, len(OUTPUTS))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Natural parameters, (n, 4)."""
        raw: Tensor = self.head(self.body(x).mean((2, 3)))
        # A clean outline's sharpness is ten thousand times that of a ragged one: its cube root is learned.
        six = raw[:, :2] * (raw[:, :2] ** 2).sum(1, keepdim=True)
        return torch.cat([six, raw[:, 2:]], dim=1)

    @staticmethod
    def loss(answers: Tensor, truth: Tensor) -> Tensor:
        """Mean negative log likelihood of the corner directions `truth` (n,), degrees."""
        angle = torch.deg2rad(truth).to(answers.dtype)
        six, three = answers[:, :2], answers[:, 2:]
        sure = torch.linalg.vector_norm(six, dim=1)
        agree = (six * torch.stack([torch.cos(6.0 * angle), torch.sin(6.0 * angle)], 1)).sum(1)
        which = (three * torch.stack([torch.cos(3.0 * angle), torch.sin(3.0 * angle)], 1)).sum(1)
        # log I0(κ) = κ + log of the scaled function, which does not overflow.
        density = agree - sure - torch.log(torch.special.i0e(sure))
        return -(density + nn.functional.logsigmoid(2.0 * which)).mean()
