"""Make `src/flatscope/electron/vibrations.csv`: how far atoms move at room temperature, by element and coordination.

Run `pip install -c constraints.txt torch chgnet` in an environment of its own, then this file (an hour on one core).
The package carries the weights of the potential, CHGNet (Deng et al. 2023, doi:10.1038/s42256-023-00716-3), so nothing
is fetched. Each crystal is a ribbon with free edges, periodic along one direction, that lacks single atoms, pairs and
metal atoms; it is relaxed, heated by a Langevin thermostat, and followed. Medians over atoms of a kind are kept, and
waves longer than the ribbon are not in them, so amplitudes out of the plane are lower limits.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import FIRE
from chgnet.model.dynamics import CHGNetCalculator

TARGET = Path(__file__).parents[1] / "src" / "flatscope" / "electron" / "physics" / "vibrations.csv"
TEMPERATURE_K, STEP_FS, HEATING, STEPS, EVERY = 300.0, 2.0, 300, 1200, 4
CELLS, VACUUM_A = (4, 6), 12.0
"""Rectangular cells along the ribbon and across."""
WHOLE = {(True, True): 6, (True, False): 3, (False, True): 3, (False, False): 3}
"""Neighbours in the perfect crystal, of a dichalcogenide or not, of the first element or not."""
LACKING = {"pair": ("second one", "second both", "first"), "single": ("first",)}
"""Vacancies of a dichalcogenide and of graphene or hBN."""
HEADER = (
    f"CHGNet 0.4.2 (doi:10.1038/s42256-023-00716-3), {TEMPERATURE_K:g} K, Langevin, {STEPS} steps of {STEP_FS:g} fs; "
    f"ribbons of {CELLS[0]}x{CELLS[1]} cells; tools/measure_vibrations.py"
)
CRYSTALS = {
    "MoS2": (3.160, "Mo", "S", 3.172),
    "WS2": (3.153, "W", "S", 3.141),
    "MoSe2": (3.289, "Mo", "Se", 3.338),
    "WSe2": (3.282, "W", "Se", 3.341),
    "graphene": (2.461, "C", "C", 0.0),
    "hBN": (2.504, "N", "B", 0.0),
}


def build_ribbon(name: str, rng: np.random.Generator) -> Atoms:
    """A ribbon of a crystal, periodic along x, with one vacancy of each kind far from each other and the edges."""
    constant, first, second, pair = CRYSTALS[name]
    wide, high = constant, constant * 3**0.5
    levels = (0.5 * pair, -0.5 * pair) if pair else (0.0,)
    symbols, places = [], []
    for i in range(CELLS[0]):
        for j in range(CELLS[1]):
            for x, y in ((0.0, 0.0), (0.5, 0.5)):
                corner = np.array([(i + x) * wide, (j + y) * high])
                symbols.append(first)
                places.append([*corner, 0.0])
                for level in levels:
                    symbols.append(second)
                    places.append([corner[0], corner[1] + high / 3.0, level])
    cell = [CELLS[0] * wide, CELLS[1] * high + VACUUM_A, VACUUM_A + pair]
    atoms = Atoms(symbols, places, cell=cell, pbc=True)
    atoms.positions += [0.0, 0.5 * VACUUM_A, 0.5 * cell[2]]
    doomed: set[int] = set()
    middle = [
        atom.index for atom in atoms if 0.25 < (atom.position[1] - 0.5 * VACUUM_A) / (CELLS[1] * high) < 0.75
    ]
    for kind in LACKING["pair" if pair else "single"]:
        element = first if kind == "first" else second
        far = [
            index
            for index in middle
            if atoms[index].symbol == element
            and all(atoms.get_distance(index, other, mic=True) > 2.0 * constant for other in doomed)
        ]
        if far:
            chosen = int(rng.choice(far))
            doomed.add(chosen)
            if kind == "second both":
                doomed.add(next(i for i in range(len(atoms)) if i != chosen and atoms[i].symbol == second and (
                    np.abs(atoms.positions[i, :2] - atoms.positions[chosen, :2]) < 0.1).all()))  # fmt: skip
    del atoms[sorted(doomed)]
    # Atoms that hang on by less than half their bonds would wander along the edge.
    while True:
        counts = count_neighbours(atoms, find_reach(name))
        loose = [
            atom.index for atom in atoms if 2 * counts[atom.index] < WHOLE[pair > 0, atom.symbol == first]
        ]
        if not loose:
            return atoms
        del atoms[loose]


def find_reach(name: str) -> float:
    """Distance within which atoms are neighbours."""
    constant, _, _, pair = CRYSTALS[name]
    return 1.2 * float(np.hypot(constant / 3**0.5, 0.5 * pair))


def count_neighbours(atoms: Atoms, reach: float) -> np.ndarray:
    """Neighbours within `reach` of the other element, or of the same in graphene."""
    distances = atoms.get_all_distances(mic=True)
    symbols = np.array(atoms.get_chemical_symbols())
    near = (distances < reach) & (distances > 0.1)
    if len(set(symbols)) > 1:
        near &= symbols[:, None] != symbols[None]
    return near.sum(1)


def follow(name: str) -> list[dict[str, str]]:
    """Amplitudes in one crystal."""
    rng = np.random.default_rng([11, *name.encode()])
    atoms = build_ribbon(name, rng)
    atoms.calc = CHGNetCalculator(use_device="cpu")
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=150)
    neighbours = count_neighbours(atoms, find_reach(name))
    MaxwellBoltzmannDistribution(atoms, temperature_K=2.0 * TEMPERATURE_K, rng=rng)
    motion = Langevin(
        atoms, STEP_FS * units.fs, temperature_K=TEMPERATURE_K, friction=0.01 / units.fs, rng=rng, fixcm=True
    )
    motion.run(HEATING)
    seen = []
    motion.attach(lambda: seen.append(atoms.get_positions()), interval=EVERY)
    motion.run(STEPS)
    path = np.array(seen)
    path -= path.mean(1, keepdims=True)
    spread = path.std(0)
    groups = defaultdict(list)
    for index, symbol in enumerate(atoms.get_chemical_symbols()):
        groups[symbol, int(neighbours[index])].append(spread[index])
    rows = []
    for (symbol, count), found in sorted(groups.items()):
        values = np.array(found)
        rows.append(
            {
                "material": name,
                "element": symbol,
                "neighbours": str(count),
                "in_plane_pm": f"{100.0 * np.median(np.sqrt(np.mean(values[:, :2] ** 2, axis=1))):.2f}",
                "out_of_plane_pm": f"{100.0 * np.median(values[:, 2]):.2f}",
                "atoms": str(len(found)),
            }
        )
    print(name, len(atoms), rows, flush=True)
    return rows


def main() -> None:
    """Follow every crystal, or those named, and write the table; rows of the others stay."""
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(CRYSTALS)
    rows: list[dict[str, str]] = []
    if TARGET.is_file():
        with open(TARGET, encoding="utf-8") as stream:
            rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    for name in chosen:
        rows = [row for row in rows if row["material"] != name] + follow(name)
        with open(TARGET, "w", newline="", encoding="utf-8") as stream:
            stream.write(f"# {HEADER}\n")
            table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
