"""JSON that people and other programs wrote: read within limits, so that no value surprises what works with it.

Settings, calibrations, labels and the cards of networks all come in here. Their numbers are finite and of a size that
a laboratory knows, their nesting has a bottom, and their texts can be printed.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any

MOST_BYTES = 256 << 20  # labels of ten thousand pictures as polygons take 100 MB
MOST_DEPTH = 64  # the deepest of the formats read here, GeoJSON, nests eight
_MOST_DIGITS = 20  # of a whole number: identifiers, seeds and times in nanoseconds fit into 64 bits
_LARGEST = 1e15  # of a fraction: more than any length, time or count in these files

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class WordsError(ValueError):
    """JSON that cannot be used; the message says what is wrong with it, without the file's name."""


def parse_json(content: bytes | str) -> Any:
    """Read JSON text in UTF-8 whose numbers, nesting and length are within limits.

    Parameters
    ----------
    content
        The text, with or without a byte order mark.

    Returns
    -------
    Dictionaries, lists, texts, numbers, truth values and None. Fractions are finite and at most 1e15.

    Raises
    ------
    WordsError
        If it is no JSON, has NaN, infinite or huge numbers, nests deeper than 64, is longer than 256 MB, or has texts
        that are half a character.

    Examples
    --------
    >>> parse_json('{"layers": 1}')
    {'layers': 1}
    >>> parse_json("[1e999]")
    Traceback (most recent call last):
        ...
    flatscope.words.WordsError: 1e999 is no number to work with
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    if len(data) > MOST_BYTES:
        raise WordsError(f"{len(data) >> 20} MB of JSON are more than {MOST_BYTES >> 20}: split it")
    brackets = (_STEP.get(byte, 0) for byte in _TEXT.sub(b"", data).translate(None, _PLAIN))
    if max(accumulate(brackets), default=0) > MOST_DEPTH:
        raise WordsError(f"nests deeper than {MOST_DEPTH}")
    try:
        read = json.loads(
            data.decode("utf-8-sig"), parse_float=_to_float, parse_int=_to_int, parse_constant=_refuse
        )
        if b"\\u" in data:  # an escape can be half of a character, which no file and no terminal takes
            json.dumps(read, ensure_ascii=False).encode()
    except WordsError:
        raise
    except ValueError as error:
        raise WordsError(f"is no JSON ({' '.join(str(error).split())[:120]})") from None
    return read


_PLAIN = bytes(set(range(256)) - set(_STEP))


def _to_float(text: str) -> float:
    value = float(text)
    return value if abs(value) <= _LARGEST else _refuse(text)


def _to_int(text: str) -> int:
    return int(text) if len(text.lstrip("-")) <= _MOST_DIGITS else _refuse(text)


def _refuse(text: str) -> Any:
    shown = text if len(text) <= 20 else f"{text[:20]}..."
    raise WordsError(f"{shown} is no number to work with")
