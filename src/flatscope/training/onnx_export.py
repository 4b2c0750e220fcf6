"""From a trained net to one .onnx file with its card inside, checked against torch before it is kept.

With pictures to measure the range of each layer on, weights and activations are stored in 8 bits: the file is
a quarter as large and runs nearly twice as fast on a CPU (Jacob et al. 2018, doi:10.1109/CVPR.2018.00286). The
first and the last layer stay in 32 bits, since faint contrast and exact probabilities pass through them.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flatscope.files.write import write_atomic
from flatscope.inference import card as cards
from flatscope.inference.card import Card

TOLERANCE = 1e-4  # largest difference between torch's and ONNX Runtime's logits that is put down to rounding
OPSET = 17  # version of ONNX's operators
_MOST_CHANGED = 0.01  # largest share of the calibration pictures' pixels whose class 8 bits may change


class ExportError(RuntimeError):
    """The exported file does not compute what the net computes."""


def export(
    net: nn.Module, card: Card, path: str | Path, *, calibration: NDArray[np.floating] | None = None
) -> Path:
    """Write `net` and its `card` to `path` as ONNX; all of it or nothing.

    Rows and cols stay free (multiples of ``card.multiple``); batch normalisation is folded away.

    Parameters
    ----------
    net, card
        A trained network and what it is; see `engine.Trained`.
    path
        File to write.
    calibration
        Normalised pictures (n, channels, rows, cols) like those the net was trained on: the file then computes in
        8 bits, their ranges chosen on these pictures. None keeps 32 bits.

    Raises
    ------
    ExportError
        ONNX Runtime's logits differ from torch's by more than `TOLERANCE` (relative to the largest, where
        that is above 1) on random pictures of two sizes, or 8 bits change the class of more than one pixel in a
        hundred of the calibration pictures.
    """
    path = Path(path)
    net = net.eval().cpu()
    model = to_onnx(net, channels=len(card.channels), multiple=card.multiple)
    _compare(net, model, card)
    if calibration is not None:
        exact, model = model, to_eight_bits(model, calibration)
        _compare_classes(exact, model, calibration, card)
    return write_atomic(path, _pack(model, card))


def replace_card(base: str | Path, card: Card, path: str | Path) -> Path:
    """Write the network of an exported file with another card."""
    return write_atomic(Path(path), _pack(Path(base).read_bytes(), card))


def to_onnx(net: nn.Module, *, channels: int = 3, multiple: int = 32) -> bytes:
    """A network in eval mode as ONNX, input "contrast", output "logits"; any number of pictures, rows and cols free
    multiples of `multiple`."""
    # a size that is not square and not what is checked: a frozen dimension would show in the comparison
    example = torch.zeros(1, channels, 4 * multiple, 6 * multiple)
    with torch.inference_mode():
        a_picture = net(example).ndim == 4
    names = ("contrast", "logits") if a_picture else ("contrast",)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # the classic exporter is deprecated, but the new one needs one more package (onnxscript)
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example,),
            buffer,  # type: ignore[arg-type]  # the classic exporter writes to any stream
            opset_version=OPSET,
            dynamo=False,
            input_names=["contrast"],
            output_names=["logits"],
            dynamic_axes={name: {0: "pictures", 2: "rows", 3: "cols"} for name in names},
        )
    return buffer.getvalue()


def to_eight_bits(model: bytes, pictures: NDArray[np.floating]) -> bytes:
    """An ONNX model that computes in 8 bits, the range of each layer taken from `pictures` (n, channels, rows, cols).

    The first and the last convolution stay as they are.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self._pictures: Iterator[NDArray[np.floating]] = iter(pictures)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            picture = next(self._pictures, None)
            return None if picture is None else {"contrast": picture[None].astype(np.float32)}

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.onnx"), Path(folder, "made.onnx")
        given.write_bytes(model)
        quantization.quant_pre_process(given, given, skip_symbolic_shape=True)
        convolutions = [node.name for node in onnx.load(given).graph.node if node.op_type == "Conv"]
        with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress to whoever listens
            quantization.quantize_static(
                given,
                made,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                calibrate_method=quantization.CalibrationMethod.Percentile,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                # 7-bit weights: without VNNI, sums of two 8-bit products overflow
                reduce_range=True,
                nodes_to_exclude=[convolutions[0], convolutions[-1]],
            )
        return made.read_bytes()


def _compare_classes(exact: bytes, coarse: bytes, pictures: NDArray[np.floating], card: Card) -> None:
    changed = []
    for picture in pictures:
        x = picture[None].astype(np.float32)
        wanted, given = (run_onnx(model, x)[0, : len(card.classes)].argmax(0) for model in (exact, coarse))
        changed.append(np.mean(wanted != given))
    share = float(np.mean(changed))
    if not share <= _MOST_CHANGED:
        raise ExportError(
            f"8 bits change the class of {share:.1%} of the pixels: export {card.name} with bits = 32"
        )


def _pack(model: bytes, card: Card) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(model)
    onnx.helper.set_model_props(proto, {cards.KEY: card.to_json()})
    proto.doc_string = f"flatscope network {card.name} {card.version}, {card.licence}"
    onnx.checker.check_model(proto, full_check=True)
    packed: bytes = proto.SerializeToString()
    return packed


def _compare(net: nn.Module, model: bytes, card: Card) -> None:
    rng = np.random.default_rng(card.seed)
    for factors in ((3, 8), (9, 5)):
        shape = (1, len(card.channels), factors[0] * card.multiple, factors[1] * card.multiple)
        x = rng.normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            wanted: NDArray[np.float32] = net(torch.from_numpy(x)).numpy()
        given = run_onnx(model, x)
        if given.shape != wanted.shape or given.shape[1] != len(card.outputs):
            raise ExportError(
                f"exported {card.name} gives {given.shape}, torch gives {wanted.shape}, "
                f"the card names {len(card.outputs)} outputs"
            )
        worst = float(np.abs(given - wanted).max() / max(1.0, float(np.abs(wanted).max())))
        if not worst <= TOLERANCE:
            raise ExportError(f"exported {card.name} differs from torch by {worst:.2g} > {TOLERANCE:.0e}")


def run_onnx(model: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of the pictures `x` (n, channels, rows, cols), on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"contrast": x})[0]
    return logits
