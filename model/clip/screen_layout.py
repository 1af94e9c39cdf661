"""What the pixels say a screen shows where its header is silent: one picture, several, or a trace that runs.

Legend: T frames, h, w pixels of the reduced screen, C = 3 RGB.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from model.clip.find_sector import find_sector
from model.clip.levels import strongest
from model.clip.sector import Sector
from model.clip.source import Frames

_MOTION = 16  # grey levels between two frames
_GAP = 0.06  # of a row or column: as little of it moves between two pictures
_AWAY = (0.25, 0.75)  # of the screen: where the gap may be
_EVEN = 0.15  # of all that moves: as much moves on each side
_ABOVE = 0.1  # of the height of a part: so far above it the sides of a picture of its own may meet
_SWEEP = 0.3  # of the width of what moves: a trace changes in a column as narrow from frame to frame
_SAME = 0.5  # of its columns: fewer than these changed in the step before too
_MOST = 0.6  # of the steps: as many show it
_SHIFTED = 0.5  # of the difference between two frames: as little is left once the picture is moved along
_ROWS_APART = 4  # a push along is seen in every row
_REACH = 0.5  # of the width: so far a trace may have run between two frames


def runs_as_trace(seen_ThwC: Frames, moves_hw: NDArray[np.bool_]) -> bool:
    """Return whether the picture is a trace: written column by column behind a bar, or pushed along as a whole.

    Args:
        seen_ThwC: sampled frames in their order, each another one.
        moves_hw: what moves in them.
    """
    columns = np.flatnonzero(moves_hw.any(axis=0))
    rows = np.flatnonzero(moves_hw.any(axis=1))
    if len(seen_ThwC) < 4 or columns.size < 8:
        return False
    level_Thw = strongest(seen_ThwC[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).astype(np.int16)
    return _is_swept(level_Thw) or _is_scrolled(level_Thw[:, ::_ROWS_APART])


def shows_several(frames_THWC: Frames, moves_HW: NDArray[np.bool_]) -> bool:
    """Return whether two or more pictures lie beside or over one another, each a sector of its own.

    Args:
        frames_THWC: sampled frames.
        moves_HW: what moves in them.
    """
    for axis in (0, 1):
        place = _gap(moves_HW if axis == 0 else moves_HW.T)
        if place is None:
            continue
        parts = (frames_THWC[:, :, :place], frames_THWC[:, :, place:]) if axis == 0 else (
            frames_THWC[:, :place], frames_THWC[:, place:])  # fmt: skip
        if all(_is_whole(find_sector(part)) for part in parts):
            return True
    return False


def _is_swept(level_Thw: NDArray[np.int16]) -> bool:
    """Return whether little but a column changes from frame to frame, and another one each time.

    A small heart on a wide screen changes in few columns too, but in the same ones.
    """
    changed_Tw = (np.abs(np.diff(level_Thw, axis=0)) > _MOTION).sum(axis=1)
    total_T1 = changed_Tw.sum(axis=1, keepdims=True)
    if not total_T1.all():
        return False
    order_Tw = np.argsort(-changed_Tw, axis=1)
    is_needed_Tw = np.take_along_axis(changed_Tw, order_Tw, axis=1).cumsum(axis=1) < 0.9 * total_T1
    is_needed_Tw[:, 0] = True
    changes_Tw = np.zeros(changed_Tw.shape, dtype=np.bool_)  # the columns that hold nine tenths of the change
    np.put_along_axis(changes_Tw, order_Tw, is_needed_Tw, axis=1)
    columns_T = changes_Tw.sum(axis=1)
    shared_T = (changes_Tw[1:] & changes_Tw[:-1]).sum(axis=1) / np.minimum(columns_T[1:], columns_T[:-1])
    is_narrow = (columns_T < _SWEEP * level_Thw.shape[2]).mean() > _MOST
    return bool(is_narrow and (shared_T < _SAME).mean() > _MOST)


def _is_scrolled(level_Thw: NDArray[np.int16]) -> bool:
    """Return whether each frame is the one before, moved sideways."""
    width = level_Thw.shape[2]
    spectrum_Thf = np.fft.rfft(level_Thw - level_Thw.mean(axis=2, keepdims=True), 2 * width, axis=2)
    likeness_Tw = np.fft.irfft((np.conj(spectrum_Thf[:-1]) * spectrum_Thf[1:]).sum(axis=1), 2 * width, axis=1)
    reach = int(_REACH * width)
    likeness_Tw = np.concatenate((likeness_Tw[:, :reach], likeness_Tw[:, -reach:]), axis=1)
    hits = 0
    for step, (before_hw, after_hw) in enumerate(pairwise(level_Thw)):
        best = int(likeness_Tw[step].argmax())
        shift = best if best < reach else best - 2 * reach
        if abs(shift) < 2:
            continue
        old_hw, new_hw = (before_hw[:, :-shift], after_hw[:, shift:]) if shift > 0 else (
            before_hw[:, -shift:], after_hw[:, :shift])  # fmt: skip
        left = np.abs(new_hw - old_hw).mean()
        hits += bool(left < _SHIFTED * np.abs(after_hw - before_hw).mean())
    return hits > _MOST * (len(level_Thw) - 1)


def _gap(moves_HW: NDArray[np.bool_]) -> int | None:
    """Return the middle of the widest run of columns in which hardly anything moves, with much on both sides of it."""
    rows, columns = moves_HW.shape
    is_still_W = moves_HW.sum(axis=0) <= _GAP * rows
    low, high = int(_AWAY[0] * columns), int(_AWAY[1] * columns)
    runs = np.flatnonzero(np.diff(np.concatenate(([0], is_still_W[low:high].astype(np.int8), [0]))))
    if runs.size == 0:
        return None
    starts, ends = runs[::2], runs[1::2]
    widest = int((ends - starts).argmax())
    place = low + int(starts[widest] + ends[widest]) // 2
    left, right = int(moves_HW[:, :place].sum()), int(moves_HW[:, place:].sum())
    return place if min(left, right) >= _EVEN * (left + right) else None


def _is_whole(sector: Sector | None) -> bool:
    """Return whether a part of the screen holds a sector whose sides meet in it, not one side of another."""
    if sector is None or sector.arc is None:
        return False
    x, y = sector.arc.x * sector.step, sector.arc.y * sector.step
    return 0 <= x <= sector.columns and y >= -_ABOVE * sector.rows
