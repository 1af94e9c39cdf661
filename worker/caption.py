"""What stands under a picture of a report: lines of words, wrapped, so that none is cut.

Legend: H, W pixels, C = 3 RGB.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from model.clip.source import Frames
from worker.lettering import font, wrap

_SIZE, _LEADING, _MARGIN = 13, 18, 6
_BACKGROUND, _INK = (0, 0, 0), (235, 235, 235)


def caption(lines: Sequence[str], width: int) -> Frames:
    """Return the lines as a picture that is `width` pixels wide and as high as they need."""
    wrapped = [part for line in lines for part in wrap(line, 0.97 * (width - 2 * _MARGIN), _SIZE)]
    band = Image.new("RGB", (width, _LEADING * len(wrapped) + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(band)
    for number, line in enumerate(wrapped):
        draw.text((_MARGIN, _MARGIN // 2 + number * _LEADING), line, fill=_INK, font=font(_SIZE))
    return np.asarray(band)
