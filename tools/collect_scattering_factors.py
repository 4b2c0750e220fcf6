"""Make `src/flatscope/electron/scattering.csv`: how strongly each element scatters electrons, by scattering vector.

Run `pip install abtem==1.0.11`, which carries the published coefficients, then this file.
The scattering factor is the sum of a (2 + b g²) / (1 + b g²)² over five pairs a (Å), b (Å²), g in 1/Å: Lobato and
Van Dyck 2014, doi:10.1107/S205327331401643X.
"""

from __future__ import annotations

import csv
from pathlib import Path

from abtem.parametrizations import LobatoParametrization

from flatscope.electron.physics.crystals import NUMBERS

TARGET = Path(__file__).parents[1] / "src" / "flatscope" / "electron" / "physics" / "scattering.csv"


def main() -> None:
    """Write one row an element."""
    published = LobatoParametrization().parameters
    with open(TARGET, "w", newline="", encoding="utf-8") as stream:
        stream.write("# a in A, b in A^2: Lobato and Van Dyck 2014, doi:10.1107/S205327331401643X\n")
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["element", *(f"{letter}{number}" for letter in "ab" for number in range(1, 6))])
        for element in NUMBERS:
            a, b = published[element]
            table.writerow([element, *(repr(float(value)) for value in (*a, *b))])


if __name__ == "__main__":
    main()
