"""The only unit conversions. Lengths are nm inside flatscope."""

from __future__ import annotations

_NM_PER_UNIT = {
    "m": 1e9,
    "cm": 1e7,
    "mm": 1e6,
    "µm": 1e3,
    "nm": 1.0,
    "å": 0.1,
    "pm": 1e-3,
    "inch": 2.54e7,
}

# What OME-XML, ImageJ and people write for these; compared in lower case.
_SPELLINGS = {
    "um": "µm",
    "μm": "µm",  # the Greek letter, where the table has the micro sign
    "\\u00b5m": "µm",  # ImageJ writes its description in ASCII
    "u_m": "µm",  # Berkeley's emd files write n_m, often in brackets
    "n_m": "nm",
    "p_m": "pm",
    "micron": "µm",
    "microns": "µm",
    "micrometer": "µm",
    "micrometre": "µm",
    "nanometer": "nm",
    "nanometre": "nm",
    "angstrom": "å",
    "a": "å",
    "meter": "m",
    "metre": "m",
    "in": "inch",
    "inches": "inch",
}


def nm_from(value: float, *, unit: str) -> float:
    """Convert a length to nm.

    Parameters
    ----------
    value
        The length in `unit`.
    unit
        m, cm, mm, µm, nm, Å, pm or inch, in the spellings of OME-XML and ImageJ.

    Raises
    ------
    ValueError
        If the unit is none of these; the message lists them.
    """
    word = unit.strip().strip("[]").lower()
    word = _SPELLINGS.get(word, word)
    if word not in _NM_PER_UNIT:
        raise ValueError(f"{unit!r} is no length unit: use one of {', '.join(_NM_PER_UNIT)}")
    return value * _NM_PER_UNIT[word]


def nm_from_um(value_um: float) -> float:
    """Convert µm to nm."""
    return value_um * 1e3


def um_from_nm(value_nm: float) -> float:
    """Convert nm to µm."""
    return value_nm * 1e-3
