"""Atomic models as extended XYZ and CIF, for VESTA, OVITO, ASE and the like."""

from __future__ import annotations

import numpy as np

from flatscope.results.answers import ColumnTable, MoireTable
from flatscope.results.exports.rows import describe_origin, make_plain
from flatscope.results.model import ABOVE_NM, Atoms

_MOST_NAME = 70  # letters of a CIF block's name, five less than with data_
_MOST_LINE = 2000  # letters of a comment; a line of CIF has at most 2048


def encode_xyz(table: ColumnTable | MoireTable) -> bytes:
    """The atomic model of one image as extended XYZ, lengths in Å."""
    return to_xyz(table.model, comment=describe_origin(table)).encode()


def encode_cif(table: ColumnTable | MoireTable) -> bytes:
    """The atomic model of one image as CIF in space group P1, lengths in Å."""
    origin = make_plain(describe_origin(table))[-_MOST_LINE:]
    return f"# {origin}\n{to_cif(table.model, name=table.provenance.image)}".encode()


def to_xyz(atoms: Atoms, *, comment: str = "") -> str:
    """Extended XYZ, lengths in Å; the sheet is no crystal of this cell, so nothing is periodic."""
    width, height, depth = (10.0 * side for side in atoms.cell_nm)
    quoted = comment.replace("\\", "/").replace('"', "'")
    lines = [
        str(len(atoms.symbols)),
        f'Lattice="{width:.4f} 0 0 0 {height:.4f} 0 0 0 {depth:.4f}" Properties=species:S:1:pos:R:3 pbc="F F F" '
        f'comment="{quoted}"',
    ]
    lines += [
        f"{symbol} {x:.4f} {y:.4f} {z:.4f}"
        for symbol, (x, y, z) in zip(atoms.symbols, 10.0 * atoms.positions_nm, strict=True)
    ]
    return "\n".join(lines) + "\n"


def to_cif(atoms: Atoms, *, name: str) -> str:
    """CIF in space group P1, lengths in Å."""
    cell = np.array(atoms.cell_nm)
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)[:_MOST_NAME]
    lines = [f"data_{plain or 'model'}"]
    lines += [f"_cell_length_{axis} {10.0 * side:.4f}" for axis, side in zip("abc", cell, strict=True)]
    lines += [f"_cell_angle_{angle} 90" for angle in ("alpha", "beta", "gamma")]
    lines += ["_space_group_name_H-M_alt 'P 1'", "loop_", "_space_group_symop_operation_xyz", "'x, y, z'"]
    lines += [
        "loop_",
        *(f"_atom_site_{key}" for key in ("label", "type_symbol", "fract_x", "fract_y", "fract_z")),
    ]
    low = float(atoms.positions_nm[:, 2].min()) - ABOVE_NM if len(atoms.symbols) else 0.0
    for number, (symbol, place) in enumerate(zip(atoms.symbols, atoms.positions_nm, strict=True), start=1):
        x, y, z = (place - (0.0, 0.0, low)) / cell
        lines.append(f"{symbol}{number} {symbol} {x:.6f} {y:.6f} {z:.6f}")
    return "\n".join(lines) + "\n"
