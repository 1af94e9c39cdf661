"""What stands under a picture of a report: lines of words, wrapped, so that none is cut.

Legend: H, W pixels, C = 3 RGB.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.clip.source import Frames

_SIZE, _LEADING, _MARGIN = 14, 18, 6
_BACKGROUND, _INK = (0, 0, 0), (235, 235, 235)


def caption(lines: Sequence[str], width: int) -> Frames:
    """Return the lines as a picture that is `width` pixels wide and as high as they need."""
    font = ImageFont.load_default(size=_SIZE)
    wrapped = [part for line in lines for part in _wrap(line, font, width - 2 * _MARGIN)]
    band = Image.new("RGB", (width, _LEADING * len(wrapped) + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(band)
    for number, line in enumerate(wrapped):
        draw.text((_MARGIN, _MARGIN // 2 + number * _LEADING), line, fill=_INK, font=font)
    return np.asarray(band)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return the text in lines of at most `width` pixels; a word that is longer is parted."""
    lines = [""]
    for word in text.split():
        rest = word
        longer = f"{lines[-1]} {rest}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in rest:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]
