"""What a crystal lies on: a stack of films on a base, written as `PMMA 50 / SiO2 285 / Si`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.materials import MATERIALS, read_index

Complex = NDArray[np.complex128]

SOURCES = {
    "SiO2": "Malitson",
    "Si": "Schinke",
    "Si3N4": "Philipp",
    "Al2O3": "Zhukovsky",
    "sapphire": "Malitson",
    "quartz": "Ghosh-o",
    "glass": "Rubin-clear",
    "PDMS": "Zhang-10-1",
    "PMMA": "Beadie",
    "Au": "Johnson",
}
"""Substrates and the files of their indices: thermal SiO2 (fused silica too), stoichiometric Si3N4, Al2O3 by atomic
layer deposition, sapphire and crystalline quartz (ordinary ray), soda-lime glass, PDMS (Sylgard 184, 10:1)."""
_THICKEST_NM = 5000.0
"""Thicker films show no interference to a camera: they are a base."""
_SEE_THROUGH = 0.01
"""Largest k of a base that lets light through."""
_FORM = 'write films from the top and the base last, such as "PMMA 50 / SiO2 285 / Si" or "glass, through"'


@dataclass(frozen=True)
class Substrate:
    """A stack of films on a base.

    Parameters
    ----------
    films
        Names and thicknesses in nm from the top; None is a thickness that is not known.
    base
        What carries the films, thick.
    through
        The light comes through the base; else from above.

    Raises
    ------
    ValueError
        For an unknown name, a thickness outside 0 to 5,000 nm, more than one unknown thickness, or light that a base
        does not let through.
    """

    films: tuple[tuple[str, float | None], ...] = (("SiO2", None),)
    base: str = "Si"
    through: bool = False

    def __post_init__(self) -> None:
        for name in (*(name for name, _ in self.films), self.base):
            substance_index(name)
        for name, thickness in self.films:
            if thickness is not None and not 0 < thickness <= _THICKEST_NM:
                raise ValueError(
                    f"{name} of {thickness:g} nm lies outside 0 to {_THICKEST_NM:g} nm: a thicker one is the base"
                )
        if sum(thickness is None for _, thickness in self.films) > 1:
            raise ValueError(f"substrate {self}: only one film may have an unknown thickness")
        if self.through and not self.transparent:
            raise ValueError(f"{self.base} lets no light through: leave out 'through', or name another base")

    @classmethod
    def parse(cls, text: str) -> Substrate:
        """Read a stack as people write it.

        Raises
        ------
        ValueError
            If the text is no stack; the message shows the form.

        Examples
        --------
        >>> Substrate.parse("PMMA 50 / SiO2 285 / Si").films
        (('PMMA', 50.0), ('SiO2', 285.0))
        >>> Substrate.parse("glass, through").through
        True
        """
        stack, _, light = text.partition(",")
        if light.strip() not in ("", "through", "above"):
            raise ValueError(f"substrate {text!r}: the light comes from above or through; {_FORM}")
        *films, base = (part.strip() for part in stack.split("/"))
        read = [re.fullmatch(r"([A-Za-z][\w-]*)\s*(?:([\d.]+)\s*(?:nm)?)?", part) for part in films]
        if not re.fullmatch(r"[A-Za-z][\w-]*", base) or not all(read):
            raise ValueError(f"substrate {text!r}: {_FORM}")
        parts = tuple((found[1], float(found[2]) if found[2] else None) for found in read if found)
        return cls(
            tuple((_spell(name), thickness) for name, thickness in parts),
            _spell(base),
            light.strip() == "through",
        )

    def __str__(self) -> str:
        films = [name if thickness is None else f"{name} {thickness:g}" for name, thickness in self.films]
        return " / ".join([*films, self.base]) + ", through" * self.through

    @property
    def transparent(self) -> bool:
        """Whether the base lets light through."""
        return bool(substance_index(self.base).imag.max() < _SEE_THROUGH)

    @property
    def fitted(self) -> int | None:
        """Place of the film whose thickness is fitted: the unknown one, else the thickest; None without films."""
        if not self.films:
            return None
        thicknesses = [np.inf if thickness is None else thickness for _, thickness in self.films]
        return int(np.argmax(thicknesses))

    @property
    def nominal_nm(self) -> float | None:
        """Stated thickness of the fitted film; None if it is not stated."""
        return None if self.fitted is None else self.films[self.fitted][1]

    def with_nominal(self, thickness_nm: float | None) -> Substrate:
        """The same stack with another thickness of the fitted film."""
        if self.fitted is None:
            return self
        films = list(self.films)
        films[self.fitted] = (films[self.fitted][0], thickness_nm)
        return Substrate(tuple(films), self.base, self.through)

    def indices(self) -> list[Complex]:
        """Refractive indices over `WAVELENGTHS_NM`, from the top film to the base."""
        return [substance_index(name) for name in (*(name for name, _ in self.films), self.base)]


def substance_index(name: str) -> Complex:
    """Refractive index of a substrate, or of a built-in crystal that is thick.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists those that are known.
    """
    if name in SOURCES:
        return read_index(name, SOURCES[name])
    if name in MATERIALS:
        return read_index(name, MATERIALS[name].variants[0][1])
    raise ValueError(
        f"unknown substrate {name!r}: flatscope knows {', '.join(SOURCES)}, and crystals ({_FORM})"
    )


def _spell(name: str) -> str:
    """The known spelling of a name in any case."""
    return next((known for known in (*SOURCES, *MATERIALS) if known.lower() == name.lower()), name)


SIO2_ON_SI = Substrate()
"""Oxide of unknown thickness on silicon."""
