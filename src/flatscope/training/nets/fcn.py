"""FCN on ResNet-50: one convolution more, and the result blown up to the picture's size.

References
----------
Long et al. 2015, doi:10.1109/CVPR.2015.7298965; used for layer numbers by Yang et al. 2024,
doi:10.1021/acs.nanolett.3c04815.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from flatscope.training.nets.resnet import LAST_CHANNELS, MIDDLE_CHANNELS, ResNet50
from flatscope.training.nets.unet import initialise


class DilatedSegmenter(nn.Module):
    """ResNet-50, a head on its last stage and an auxiliary FCN head on the third, which only training uses.

    Parameters
    ----------
    head
        From 2048 channels to logits.
    outputs, channels
        Classes; input channels.

    Notes
    -----
    Float32 (n, channels, rows, cols) of any size from 16 px in; logits (n, outputs, rows, cols) out.
    """

    def __init__(self, head: nn.Module, *, outputs: int, channels: int) -> None:
        super().__init__()
        self.backbone = ResNet50(channels=channels)
        self.head = head
        self.auxiliary = fcn_head(MIDDLE_CHANNELS, outputs)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, outputs, rows, cols) of the pictures `x` (n, channels, rows, cols)."""
        return _enlarge(self.head(self.backbone(x)[1]), x)

    def with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads."""
        middle, last = self.backbone(x)
        return _enlarge(self.head(last), x), _enlarge(self.auxiliary(middle), x)


class FCN(DilatedSegmenter):
    """FCN-ResNet-50 (35.3 million weights with its auxiliary head at 21 classes)."""

    def __init__(self, *, outputs: int = 4, channels: int = 3) -> None:
        super().__init__(fcn_head(LAST_CHANNELS, outputs), outputs=outputs, channels=channels)


def fcn_head(given: int, outputs: int) -> nn.Sequential:
    """3×3 convolution to a quarter of the channels, dropout, 1×1 convolution to the classes."""
    return nn.Sequential(
        nn.Conv2d(given, given // 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(given // 4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(given // 4, outputs, 1),
    )


def _enlarge(logits: Tensor, picture: Tensor) -> Tensor:
    return functional.interpolate(logits, size=picture.shape[-2:], mode="bilinear", align_corners=False)
