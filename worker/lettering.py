"""The letters of the pictures: one font with Latin, Greek and Cyrillic letters, and lines that fit.

It is the font that matplotlib brings, so that pictures look alike on every machine.
"""

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_MEASURED = 100  # pixels: the grid of the pixels has no part in how long a line is
_FILES = {False: _FOLDER / "DejaVuSans.ttf", True: _FOLDER / "DejaVuSans-Bold.ttf"}


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font, its letters `size` pixels high."""
    return ImageFont.truetype(str(_FILES[bold]), size)


def printable(text: str) -> str:
    """Return the text with a question mark for every letter that the font has not."""
    return "".join(letter if ord(letter) in _letters() or letter == " " else "?" for letter in text)


def wrap(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """Return the text in lines of at most `width` pixels, none of them empty; a word that is longer is parted."""
    letters = font(_MEASURED, bold=bold)
    room = width * _MEASURED / size
    lines = [""]
    for word in printable(" ".join(text.split())).split():
        longer = f"{lines[-1]} {word}".strip()
        if letters.getlength(longer) <= room:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and letters.getlength(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


@cache
def _letters() -> frozenset[int]:
    return frozenset(FT2Font(str(_FILES[False])).get_charmap())
