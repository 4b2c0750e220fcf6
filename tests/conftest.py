"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before numpy, torch or ONNX Runtime start their threads: the tests run in several processes on few cores, and threads
# that wait for each other make them eight times slower.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real micrographs, beside the repository; tests that use it are marked `real`."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real micrographs are not there: {folder}")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hold every test that reads real micrographs to its marker, so that `-m "not real"` means what it says."""
    unmarked = [
        item.nodeid
        for item in items
        if "real_data" in getattr(item, "fixturenames", ()) and item.get_closest_marker("real") is None
    ]
    if unmarked:
        raise pytest.UsageError(
            f"these tests use real_data and need @pytest.mark.real: {', '.join(unmarked)}"
        )
    # These start hundreds of children, and a fork costs ten times as much once other tests have filled the memory.
    items.sort(key=lambda item: item.path.name != "test_run.py")
