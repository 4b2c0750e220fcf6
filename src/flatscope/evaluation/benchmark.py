"""How fast the published layer networks and flatscope's own run, side by side in one process."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.scenes import SceneParams, draw_scene

SIDE_PX = 512
OURS = "flatscope network"
PUBLISHED_PER_SECOND = {"DeepLabV3": 1.16, "FCN": 1.32, "LR-ASPP": 9.80, "Yang U-Net": 3.56}
"""On the CPU of Yang et al. 2024 (doi:10.1021/acs.nanolett.3c04815), in the training framework."""


@dataclass(frozen=True)
class Speed:
    """One network in one runtime.

    Parameters
    ----------
    network, runtime
        What ran where: "torch" with its usual order of memory (NCHW), "torch NHWC" with channels last, "ONNX 32-bit",
        "ONNX 8-bit", or "whole answer" for all of `find_flakes`.
    seconds
        Median time of a picture.
    low, high
        Quartiles.
    peak_mib
        Highest memory of a process that runs it once; NaN where it was not measured, and on systems other than Linux.
    """

    network: str
    runtime: str
    seconds: float
    low: float
    high: float
    peak_mib: float

    @property
    def per_second(self) -> float:
        """Pictures a second."""
        return 1.0 / self.seconds


def time_layer_networks(
    *,
    rounds: int = 7,
    threads: int = 2,
    only: Collection[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Speed]:
    """Time every network on pictures of 512×512, one at a time, all networks in turn in every round.

    In its turn each takes two pictures, and the second is timed. Weights are random: they do not change the time.

    Parameters
    ----------
    rounds
        Timed rounds, after one that is not.
    threads
        Threads of both runtimes.
    only
        Names of the networks to time; None times all.
    on_progress
        Called with (steps done, steps in all).
    """
    from flatscope.training import supervised

    runs, models = _make_runs(threads, only)
    steps = len(runs) * (rounds + 1)
    done = 0
    took: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with supervised.threads(threads):
        for turn in range(rounds + 1):
            for key, run in runs.items():
                # Once for nothing: the network before has taken caches and memory with it.
                run()
                begun = time.perf_counter()
                run()
                if turn:
                    took[key].append(time.perf_counter() - begun)
                done += 1
                if on_progress is not None:
                    on_progress(done, steps)
    peaks = {key: _measure_peak(model) for key, model in models.items()}
    made = []
    for key, times in took.items():
        low, middle, high = np.percentile(times, (25, 50, 75))
        made.append(Speed(*key, float(middle), float(low), float(high), peaks.get(key, float("nan"))))
    return made


def _make_runs(
    threads: int, only: Collection[str] | None
) -> tuple[dict[tuple[str, str], Callable[[], object]], dict[tuple[str, str], bytes]]:
    """What to time, and the ONNX models among it."""
    import onnxruntime

    from flatscope.training import export, supervised
    from flatscope.training.nets.deeplabv3 import DeepLabV3
    from flatscope.training.nets.fcn import FCN
    from flatscope.training.nets.flakenet import FlakeNet
    from flatscope.training.nets.lraspp import LRASPP
    from flatscope.training.nets.unet import SaitoUNet, YangUNet

    builders: dict[str, Callable[..., Any]] = {
        "Saito U-Net": SaitoUNet,
        "DeepLabV3": DeepLabV3,
        "FCN": FCN,
        "LR-ASPP": LRASPP,
        "Yang U-Net": YangUNet,
        OURS: FlakeNet,
    }
    x = np.random.default_rng(0).random((1, 3, SIDE_PX, SIDE_PX), np.float32)
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    models: dict[tuple[str, str], bytes] = {}

    def in_onnx(model: bytes) -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Idle threads that spin would slow whoever comes next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"contrast": x})

    for name, build in builders.items():
        if only is not None and name not in only:
            continue
        net = supervised.seeded(build, seed=0).eval()
        runs[name, "torch"] = partial(supervised.answer, net, x)
        runs[name, "torch NHWC"] = partial(supervised.answer, *supervised.put_channels_last(net, x))
        models[name, "ONNX 32-bit"] = export.to_onnx(net)
        models[name, "ONNX 8-bit"] = export.to_eight_bits(
            models[name, "ONNX 32-bit"], x[:, :, :256, :256].repeat(2, axis=0)
        )
    runs |= {key: in_onnx(model) for key, model in models.items()}
    network = Network.load("flakes", threads=threads)
    scene = draw_scene(
        np.random.default_rng(0), SceneParams(shape=(SIDE_PX, SIDE_PX), material="MoS2", oxide_nm=300.0)
    )
    picture, params = Micrograph(scene.pixels, source="scene"), FlakeParams("MoS2", oxide_nm=300.0)
    runs["flatscope", "whole answer"] = lambda: find_flakes(picture, params, network=network)
    return runs, models


def _measure_peak(model: bytes) -> float:
    """Highest memory in MiB of a process of its own that runs the model once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(model)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_run_once, str(path)).result()


def _run_once(path: str) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    picture: NDArray[np.float32] = np.zeros((1, 3, SIDE_PX, SIDE_PX), np.float32)
    session.run(None, {"contrast": picture})
    # Not getrusage: its maximum is handed down from the process that started this one.
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    peak = [float(line.split()[1]) / 1024.0 for line in lines if line.startswith("VmHWM:")]
    return peak[0] if peak else float("nan")
