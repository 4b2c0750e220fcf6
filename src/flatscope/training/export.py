"""From a trained net to one .onnx file with its card inside, checked against torch before it is kept."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flatscope.inference import card as cards
from flatscope.inference.card import Card, Score
from flatscope.training import loop
from flatscope.training.nets.flakenet import CLASSES, MAPS, FlakeNet

TOLERANCE = 1e-4
"""Largest difference between torch's and ONNX Runtime's logits that is put down to rounding."""
_OPSET = 17


class ExportError(RuntimeError):
    """The exported file does not compute what the net computes."""


def read_checkpoint(checkpoint: str | Path) -> tuple[FlakeNet, Card]:
    """Net (eval mode, averaged weights) and card of a checkpoint that `loop.train` returned."""
    net, info = loop.load_net(checkpoint)
    recipe = info["recipe"]
    card = Card(
        name=recipe["name"],
        version=recipe["version"],
        task=recipe["task"],
        recipe=recipe["name"],
        training_data=f"{recipe['training_data']}; {recipe['scenes_train']} scenes of "
        f"{recipe['scene_px']} px, {info['step']} steps of {recipe['batch']}",
        seed=recipe["seed"],
        channels=("red", "green", "blue"),
        classes=CLASSES,
        maps=MAPS,
        scale=recipe["contrast_scale"],
        object_px=(recipe["object_px"][0], recipe["object_px"][1]),
        multiple=net.multiple,
        halo_px=net.halo_px,
        thresholds=info.get("thresholds", {}),
        scores={name: Score(**score) for name, score in info.get("scores", {}).items()},
        licence=recipe["licence"],
        created_with=f"flatscope.training, torch {torch.__version__}, ONNX opset {_OPSET}",
    )
    return net, card


def export(net: nn.Module, card: Card, path: str | Path) -> Path:
    """Write `net` and its `card` to `path` as ONNX; all of it or nothing.

    Rows and cols stay free (multiples of ``card.multiple``); batch normalisation is folded away.

    Raises
    ------
    ExportError
        ONNX Runtime's logits differ from torch's by more than `TOLERANCE` (relative to the largest, where
        that is above 1) on random pictures of two sizes.
    """
    path = Path(path)
    net = net.eval().cpu()
    # a size that is not square and not what is checked: a frozen dimension would show below
    rows, cols = 4 * card.multiple, 6 * card.multiple
    example = torch.zeros(1, len(card.channels), rows, cols)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # the classic exporter is deprecated, but the new one needs one more package (onnxscript)
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example,),
            buffer,  # type: ignore[arg-type]  # the classic exporter writes to any stream
            opset_version=_OPSET,
            dynamo=False,
            input_names=["contrast"],
            output_names=["logits"],
            dynamic_axes={"contrast": {2: "rows", 3: "cols"}, "logits": {2: "rows", 3: "cols"}},
        )
    packed = _pack(buffer.getvalue(), card)
    _compare(net, packed, card)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(packed)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _pack(model: bytes, card: Card) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(model)
    onnx.helper.set_model_props(proto, {cards.KEY: card.to_json()})
    proto.doc_string = f"flatscope network {card.name} {card.version}, {card.licence}"
    onnx.checker.check_model(proto, full_check=True)
    packed: bytes = proto.SerializeToString()
    return packed


def _compare(net: nn.Module, packed: bytes, card: Card) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(packed, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(card.seed)
    for factors in ((3, 8), (9, 5)):
        shape = (1, len(card.channels), factors[0] * card.multiple, factors[1] * card.multiple)
        x = rng.normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            wanted: NDArray[np.float32] = net(torch.from_numpy(x)).numpy()
        given = session.run(None, {"contrast": x})[0]
        if given.shape != wanted.shape or given.shape[1] != len(card.outputs):
            raise ExportError(
                f"exported {card.name} gives {given.shape}, torch gives {wanted.shape}, "
                f"the card names {len(card.outputs)} outputs"
            )
        worst = float(np.abs(given - wanted).max() / max(1.0, float(np.abs(wanted).max())))
        if not worst <= TOLERANCE:
            raise ExportError(f"exported {card.name} differs from torch by {worst:.2g} > {TOLERANCE:.0e}")
