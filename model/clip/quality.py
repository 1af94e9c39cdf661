"""Is a picture good enough for a number? Three measures, each with a bound.

Legend: T frames, each another one of the loop, N pixels that move or are white all the time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Measured on the real and the phantom loops of the tests: contrast 53 to 147, clipped at most 0.0001, frozen 0.
MIN_CONTRAST = 30.0
"""Grey levels between the dark and the bright tenth of what moves: under it walls cannot be told from blood."""

MAX_CLIPPED = 0.25
"""Share of the picture that is as bright as a screen can be: the gain was too high."""

MAX_FROZEN = 0.3
"""Share of the steps from frame to frame in which nothing changes: the loop was frozen on the way."""

CLIPPED_LEVEL = 250
"""Grey level from which a pixel counts as white."""

_STILL = 0.5  # grey levels on average: less than the noise of any picture


class Quality(NamedTuple):
    """What was measured."""

    contrast: float
    """Grey levels from the 10th to the 90th percentile of what moves."""
    clipped: float
    """0..1."""
    frozen: float
    """0..1."""

    @property
    def fault(self) -> str:
        """Return in words which bound is passed; empty: none."""
        if self.contrast < MIN_CONTRAST:
            return f"contrast {self.contrast:.0f} of 255 grey levels, at least {MIN_CONTRAST:.0f}"
        if self.clipped > MAX_CLIPPED:
            return f"{self.clipped:.0%} of the picture is white, at most {MAX_CLIPPED:.0%}"
        if self.frozen > MAX_FROZEN:
            return f"{self.frozen:.0%} of the frames do not differ from the one before, at most {MAX_FROZEN:.0%}"
        return ""


def measure(levels_TN: NDArray[np.uint8]) -> Quality:
    """Return the quality of a loop by the grey levels of its picture."""
    dark, bright = np.percentile(levels_TN, (10, 90))
    steps_T = np.abs(np.diff(levels_TN.astype(np.int16), axis=0)).mean(axis=1)
    return Quality(
        contrast=float(bright - dark),
        clipped=float((levels_TN >= CLIPPED_LEVEL).mean()),
        frozen=float((steps_T < _STILL).mean()) if len(steps_T) else 0.0,
    )
