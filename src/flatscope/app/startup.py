"""What makes a start quick: packages that load when they are used, and no search for garbage where there is none."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

LATE = ("pandas", "scipy.ndimage", "scipy.sparse", "scipy.special")
"""Packages that take 0.1 to 0.4 s each to load, and that a start with nothing left to do never uses."""


class _Late(ModuleType):
    """Stands for a package until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        package = importlib.import_module(self.__name__)
        self.__dict__.update(package.__dict__)  # the next look costs nothing
        return getattr(package, name)


def load_late(names: Iterable[str] = LATE) -> None:
    """Let these packages load when something of them is used, not when they are imported.

    `import pandas as pd` and `from scipy import ndimage` then cost nothing; `from pandas import DataFrame` loads at
    once. What is loaded already stays.
    """
    for name in names:
        sys.modules.setdefault(name, _Late(name))


@contextlib.contextmanager
def pause_collecting() -> Iterator[None]:
    """Leave the search for reference cycles out: it takes a third of the time that a plan of 20,000 items needs.

    What was made meanwhile is for long, so later searches leave it out, too.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()
            gc.enable()
