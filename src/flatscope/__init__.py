"""flatscope reads two-dimensional materials under a microscope.

>>> import flatscope
>>> table = flatscope.find_flakes(flatscope.read("photo.jpg", um_per_px=0.15))  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatscope.electron.columns import ColumnParams, find_columns
    from flatscope.electron.defects import DefectParams, find_defects
    from flatscope.electron.moire import MoireParams, find_moire
    from flatscope.electron.tracks import TrackParams, track_defects
    from flatscope.files.movie import read_movie
    from flatscope.files.read import find_pictures, read, read_stack
    from flatscope.micrograph import Calibration, Micrograph, MicrographError, Movie, Stack
    from flatscope.optical.flakes import FlakeParams, find_flakes, find_regions, name_layers
    from flatscope.optical.regions import Regions
    from flatscope.optical.twist import TwistParams, measure_twist
    from flatscope.results import ColumnTable, DefectTable, FlakeTable, MoireTable, TrackTable, TwistTable

__version__ = "0.1.0"

# Where each public name lives. They are imported on first use: `import flatscope` must not pay for pandas or scipy.
_HOMES = {
    "Calibration": "flatscope.micrograph",
    "ColumnParams": "flatscope.electron.columns",
    "ColumnTable": "flatscope.results",
    "DefectParams": "flatscope.electron.defects",
    "DefectTable": "flatscope.results",
    "MoireParams": "flatscope.electron.moire",
    "MoireTable": "flatscope.results",
    "Movie": "flatscope.micrograph",
    "TrackParams": "flatscope.electron.tracks",
    "TrackTable": "flatscope.results",
    "find_moire": "flatscope.electron.moire",
    "find_defects": "flatscope.electron.defects",
    "read_movie": "flatscope.files.movie",
    "track_defects": "flatscope.electron.tracks",
    "FlakeParams": "flatscope.optical.flakes",
    "FlakeTable": "flatscope.results",
    "TwistParams": "flatscope.optical.twist",
    "TwistTable": "flatscope.results",
    "measure_twist": "flatscope.optical.twist",
    "Micrograph": "flatscope.micrograph",
    "Stack": "flatscope.micrograph",
    "MicrographError": "flatscope.micrograph",
    "find_columns": "flatscope.electron.columns",
    "Regions": "flatscope.optical.regions",
    "find_flakes": "flatscope.optical.flakes",
    "find_regions": "flatscope.optical.flakes",
    "name_layers": "flatscope.optical.flakes",
    "find_pictures": "flatscope.files.read",
    "read": "flatscope.files.read",
    "read_stack": "flatscope.files.read",
}

__all__ = [
    "Calibration",
    "ColumnParams",
    "ColumnTable",
    "DefectParams",
    "DefectTable",
    "FlakeParams",
    "FlakeTable",
    "Micrograph",
    "MicrographError",
    "MoireParams",
    "MoireTable",
    "Movie",
    "Regions",
    "Stack",
    "TrackParams",
    "TrackTable",
    "TwistParams",
    "TwistTable",
    "__version__",
    "find_columns",
    "find_defects",
    "find_flakes",
    "find_moire",
    "find_pictures",
    "find_regions",
    "measure_twist",
    "name_layers",
    "read",
    "read_movie",
    "read_stack",
    "track_defects",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"flatscope has no {name!r}: it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
