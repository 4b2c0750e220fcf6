"""The examples in docstrings of the public modules print what they say, under the strict warnings of all tests."""

from __future__ import annotations

import doctest
import sys
from importlib import import_module
from pathlib import Path

import pytest

import flatscope

HOMES = sorted({"flatscope", *flatscope._HOMES.values()})


@pytest.mark.parametrize("home", HOMES)
def test_examples_print_what_they_say(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of the module that a public name really comes from."""
    monkeypatch.chdir(tmp_path)
    module = import_module(home)
    names = [name for name, place in flatscope._HOMES.items() if place == home]
    for place in sorted({home, *(getattr(module, name).__module__ for name in names)}):
        outcome = doctest.testmod(sys.modules[place], optionflags=doctest.NORMALIZE_WHITESPACE)
        assert outcome.failed == 0, f"{place}: {outcome.failed} of {outcome.attempted} examples"


def test_every_public_function_has_an_example() -> None:
    functions = [getattr(flatscope, name) for name in flatscope._HOMES]
    functions = [one for one in functions if callable(one) and not isinstance(one, type)]
    assert len(functions) > 9
    assert [one.__name__ for one in functions if ">>> " not in (one.__doc__ or "")] == []
