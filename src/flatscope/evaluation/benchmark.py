"""How fast the published layer networks and flatscope's own run, in turn, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.evaluation.metrics import Score
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.parallel import worker_processes

SIDE_PX = 512
OURS = "flatscope network"
PUBLISHED_PER_SECOND = {"DeepLabV3": 1.16, "FCN": 1.32, "LR-ASPP": 9.80, "Yang U-Net": 3.56}
"""On the CPU of Yang et al. 2024 (doi:10.1021/acs.nanolett.3c04815), in the training framework."""
_NETWORKS = ("Saito U-Net", "DeepLabV3", "FCN", "LR-ASPP", "Yang U-Net", OURS)
_RUNTIMES = ("torch", "torch NHWC", "ONNX 32-bit", "ONNX 8-bit")
_WHOLE = "whole answer"


@dataclass(frozen=True)
class Speed(Score):
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

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**super().to_dict(), "per_second": self.per_second}


def tabulate(speeds: Sequence[Speed]) -> list[dict[str, str]]:
    """The speeds in words; "ours is" says how many times as fast as this line `OURS` is in the same runtime."""
    ours = {speed.runtime: speed.seconds for speed in speeds if speed.network == OURS}
    rows = []
    for speed in speeds:
        published = PUBLISHED_PER_SECOND.get(speed.network) if speed.runtime == "torch" else None
        rows.append(
            {
                "network": speed.network,
                "runtime": speed.runtime,
                "a second": f"{speed.per_second:.2f}",
                "ms": f"{1000 * speed.seconds:.0f}",
                "quartiles": f"{1000 * speed.low:.0f} to {1000 * speed.high:.0f}",
                "ours is": f"{speed.seconds / ours[speed.runtime]:.1f}x" if speed.runtime in ours else "",
                "peak MiB": "" if np.isnan(speed.peak_mib) else f"{speed.peak_mib:.0f}",
                "published": "" if published is None else f"{published:.2f}",
            }
        )
    return rows


def time_layer_networks(
    *,
    rounds: int = 7,
    threads: int = 2,
    only: Collection[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Speed]:
    """Time every network on pictures of 512×512, one at a time, all networks in turn in every round.

    Each lives in a process of its own, as it does in use: the memory that one leaves behind would change the page
    faults of the next. In its turn each takes two pictures, and the second is timed. Weights are random: they do not
    change the time.

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
    names = [name for name in _NETWORKS if only is None or name in only]
    timed = [(name, runtime) for name in names for runtime in _RUNTIMES]
    timed += [(name, _WHOLE) for name in names if name == OURS]
    took: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    steps = len(timed) * (rounds + 1)
    with ExitStack() as stack:
        processes = {name: stack.enter_context(worker_processes(1)) for name in names}
        for done in range(steps):
            turn, place = divmod(done, len(timed))
            name, runtime = timed[place]
            seconds = processes[name].submit(_time, name, runtime, threads).result()
            if turn:
                took[name, runtime].append(seconds)
            if on_progress is not None:
                on_progress(done + 1, steps)
        peaks = {
            name: process.submit(_measure_peaks, name, threads).result()
            for name, process in processes.items()
        }
    made = []
    for (name, runtime), times in took.items():
        low, middle, high = (float(value) for value in np.percentile(times, (25, 50, 75)))
        shown = "flatscope" if runtime == _WHOLE else name
        made.append(Speed(shown, runtime, middle, low, high, peaks[name].get(runtime, float("nan"))))
    return made


@lru_cache(maxsize=1)
def _prepare(name: str, threads: int) -> tuple[dict[str, Callable[[], object]], dict[str, bytes]]:
    """A network ready to be timed in this process: by runtime what to run, and the ONNX models among it."""
    import onnxruntime

    from flatscope.training import onnx_export, supervised
    from flatscope.training.nets.deeplabv3 import DeepLabV3
    from flatscope.training.nets.fcn import FCN
    from flatscope.training.nets.flakenet import FlakeNet
    from flatscope.training.nets.lraspp import LRASPP
    from flatscope.training.nets.unet import SaitoUNet, YangUNet

    builders: tuple[Callable[..., Any], ...] = (SaitoUNet, DeepLabV3, FCN, LRASPP, YangUNet, FlakeNet)
    build = dict(zip(_NETWORKS, builders, strict=True))[name]
    x = np.random.default_rng(0).random((1, 3, SIDE_PX, SIDE_PX), np.float32)

    def in_onnx(model: bytes) -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Idle threads that spin would slow whoever comes next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"contrast": x})

    net = supervised.seeded(build, seed=0).eval()
    exact = onnx_export.to_onnx(net)
    coarse = onnx_export.to_eight_bits(exact, x[:, :, :256, :256].repeat(2, axis=0))
    models = dict(zip(_RUNTIMES[2:], (exact, coarse), strict=True))
    runs: dict[str, Callable[[], object]] = {
        "torch": partial(supervised.answer, net, x),
        "torch NHWC": partial(supervised.answer, *supervised.put_channels_last(net, x)),
        **{runtime: in_onnx(model) for runtime, model in models.items()},
    }
    if name == OURS:
        network = Network.load("flakes", threads=threads)
        scene = draw_scene(
            np.random.default_rng(0), SceneParams(shape=(SIDE_PX, SIDE_PX), material="MoS2", oxide_nm=300.0)
        )
        picture, params = Micrograph(scene.pixels, source="scene"), FlakeParams("MoS2", oxide_nm=300.0)
        runs[_WHOLE] = lambda: find_flakes(picture, params, network=network)
    return runs, models


def _time(name: str, runtime: str, threads: int) -> float:
    """Seconds that a network takes for a picture."""
    from flatscope.training import supervised

    run = _prepare(name, threads)[0][runtime]
    with supervised.threads(threads):
        # Once for nothing: the network before has taken the caches with it.
        run()
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun


def _measure_peaks(name: str, threads: int) -> dict[str, float]:
    return {runtime: _measure_peak(model) for runtime, model in _prepare(name, threads)[1].items()}


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
