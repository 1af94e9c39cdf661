"""The ultrasound sector on the screen: where the picture is, and where only text, traces and marks are.

What moves and is grey is picture. The sector is the wedge, closed by an arc, that holds it: two straight sides that
touch it, an arc around their meeting point, and straight cuts where the screen ends the picture early. So its dark
corners belong to it too, and nothing of the picture is cut away.

Legend: T frames, H, W pixels, h, w pixels of the reduced picture, C = 3 RGB, N points.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model.clip.levels import strongest
from model.clip.source import Frames

Mask = NDArray[np.bool_]

BOX_ASPECT = 1.44
"""Width of the box over its height: a sector of 92 degrees fills it. One shape for all, so that a millimetre is as many
pixels of the clip across narrow sectors as across wide ones of the same depth."""

_ROWS = 240  # of the reduced picture: the sides are found to half a pixel of it
_MOTION, _LESS_MOTION = 8, 3  # grey levels between the frames: of what is dark most of the time, of what is not
_FAINT = 4  # mean grey level: what compression leaves beside the picture is darker, the noise in it brighter
_CHROMA = 24  # grey levels between R, G and B, beyond the tint of the picture
_REFERENCE = 20  # pixels of a brightness that tell its tint
_WINDOW, _DENSITY = 7, 0.5  # a pixel is picture where so much of its neighbourhood is: lines and letters are not
_THIN = 4  # pixels from the middle of a strip to its sides: traces are thin, pictures are not
_BRIDGE = 3  # pixels between two parts of one picture
_OUTSIDE = 0.0015  # share of the picture that may lie beyond a side: what traces leave on it
_SIDES_DEGREES = (10.0, 75.0)  # of a side, from the vertical
_UNEVEN_DEGREES = 4.0  # by so much the sides may differ
_LEAST_CORNER = 0.03  # of the bounding box: a side that cuts off less is none
_DARK_TOP = 0.3  # of the height: so far from their meeting point the sides may be dark
_STRAIGHT = 0.15  # of the height: a vertical edge so long is a cut, not a corner
_FLAT = 0.45  # of the width: a horizontal one
_BEAMS, _AGREEING = 32, 0.3  # directions of an arc, and how many of them must reach equally far
_BEYOND = 0.02  # of the picture: so much may lie beyond the arc on which the beams agree, left by traces
_LEAST_AREA = 0.06  # of the screen
_LEAST_FILLING = 0.45  # of the sector: how much of it is seen to move


@dataclass(frozen=True, kw_only=True, slots=True)
class Sector:
    """Where the picture is on the screen."""

    mask_HW: Mask
    """Its pixels."""
    top: int
    """First row of the box."""
    left: int
    """First column of the box; the box may stand out of the screen."""
    height: int
    """Rows of the box; its width follows from `BOX_ASPECT`."""

    @property
    def width(self) -> int:
        """Return the columns of the box."""
        return round(self.height * BOX_ASPECT)

    def cut_out(self, frames_THWC: Frames) -> Frames:
        """Return the box, black where the sector is not: uint8 (T, height, width, 3)."""
        num_frames, rows, columns, _ = frames_THWC.shape
        box = np.zeros((num_frames, self.height, self.width, 3), dtype=np.uint8)
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.height, rows), min(self.left + self.width, columns)
        inside = box[:, top - self.top : bottom - self.top, left - self.left : right - self.left]
        np.copyto(inside, frames_THWC[:, top:bottom, left:right], where=self.mask_HW[top:bottom, left:right, None])
        return box


def find_sector(frames_THWC: Frames) -> Sector | None:
    """Return the sector of a loop; None where none is found.

    Frames that are repeated, as in a clip of a short loop, change nothing, nor does their order.
    """
    _, rows, columns, _ = frames_THWC.shape
    step = max(1, round(rows / _ROWS))
    seen_ThwC = frames_THWC[:, ::step, ::step]
    repeats = [np.array_equal(one, before) for one, before in zip(seen_ThwC[1:], seen_ThwC[:-1], strict=True)]
    picture_hw = _picture(seen_ThwC[[True, *(not repeat for repeat in repeats)]])
    if picture_hw is None:
        return None
    outline = _fit(picture_hw)
    reduced_hw = outline.mask(np.arange(picture_hw.shape[0]), np.arange(picture_hw.shape[1]))
    area = int(reduced_hw.sum())
    filled = int((reduced_hw & picture_hw).sum())
    if area < _LEAST_AREA * reduced_hw.size or filled < _LEAST_FILLING * area:
        return None
    # Pixel k of the reduced picture is pixel k * step of the screen.
    mask_HW = outline.mask(np.arange(rows) / step, np.arange(columns) / step)
    return _boxed(mask_HW)


def _boxed(mask_HW: Mask) -> Sector:
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    high, wide = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    height = max(high, math.ceil(wide / BOX_ASPECT))
    middle = (int(columns[0]) + int(columns[-1]) + 1) / 2.0
    return Sector(
        mask_HW=mask_HW, top=int(rows[0]), left=round(middle - round(height * BOX_ASPECT) / 2.0), height=height
    )


def _picture(seen_ThwC: Frames) -> Mask | None:
    """Return the pixels of the largest area that moves and is grey, without holes of its own; None: there is none."""
    brightest_hwC = seen_ThwC.max(axis=0)
    moves_hw = strongest(brightest_hwC - seen_ThwC.min(axis=0))
    is_lit_hw = strongest(seen_ThwC).sum(axis=0, dtype=np.int32) > _FAINT * len(seen_ThwC)
    is_live_hw = (moves_hw > _MOTION) | ((moves_hw > _LESS_MOTION) & is_lit_hw)
    # Compression spreads colour to the sides.
    is_live_hw &= ~ndimage.binary_dilation(_is_off_colour(brightest_hwC.astype(np.int16), is_live_hw), iterations=2)
    dense_hw = ndimage.uniform_filter(is_live_hw.astype(np.float32), _WINDOW, mode="nearest") > _DENSITY
    padded_hw = np.pad(dense_hw, _THIN, mode="edge")  # the edge of the screen thins nothing
    solid_hw = ndimage.binary_opening(padded_hw, iterations=_THIN)[_THIN:-_THIN, _THIN:-_THIN]
    dense_hw &= ndimage.binary_dilation(solid_hw, iterations=2)
    bridged_hw = ndimage.binary_dilation(dense_hw, iterations=_BRIDGE)
    parts_hw, num_parts = ndimage.label(bridged_hw)
    if num_parts == 0:
        return None
    sizes = np.bincount(parts_hw[dense_hw], minlength=num_parts + 1)
    picture_hw: Mask = dense_hw & (parts_hw == 1 + int(np.argmax(sizes[1:])))
    return picture_hw


def _is_off_colour(picture_hwC: NDArray[np.int16], is_live_hw: Mask) -> Mask:
    """Return which pixels have another colour than the middle of the screen has at their brightness.

    A picture may be tinted, by one colour for each brightness; traces and marks stand beside it.
    """
    rows, columns = is_live_hw.shape
    middle = (slice(rows // 8, 3 * rows // 4), slice(columns // 4, 3 * columns // 4))
    level_hw = strongest(picture_hwC) >> 4
    reference_N = level_hw[middle][is_live_hw[middle]]
    known = np.flatnonzero(np.bincount(reference_N, minlength=16) >= _REFERENCE)
    if known.size == 0:
        return np.zeros_like(is_live_hw)
    is_off_hw = np.zeros_like(is_live_hw)
    for channel in (0, 2):
        chroma_hw = picture_hwC[..., channel] - picture_hwC[..., 1]
        chroma_N = chroma_hw[middle][is_live_hw[middle]]
        tint = np.interp(np.arange(16), known, [np.median(chroma_N[reference_N == level]) for level in known])
        is_off_hw |= np.abs(chroma_hw - tint[level_hw]) > _CHROMA
    return is_off_hw


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """A straight side: points with `across . point` under `offset` lie beyond it."""

    across: tuple[float, float]
    offset: float

    @classmethod
    def touching(cls, x_N: NDArray[np.float32], y_N: NDArray[np.float32], *, sign: float, degrees: float) -> "_Side":
        """Return the left (sign 1) or right (-1) side of this angle from the vertical that touches the picture."""
        across = (sign * math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
        along_N = across[0] * x_N + across[1] * y_N
        beyond = int(_OUTSIDE * len(along_N))
        return cls(across=across, offset=float(np.partition(along_N, beyond)[beyond]))

    @property
    def degrees(self) -> float:
        """Return the angle from the vertical."""
        return math.degrees(math.asin(self.across[1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outline:
    """A sector in the pixels of the reduced picture."""

    sides: tuple[_Side, ...]
    """Sides and cuts."""
    middle: tuple[float, float] | None
    """Where the sides meet, x and y; None: there is no arc."""
    radius: float

    def mask(self, y: NDArray[np.generic], x: NDArray[np.generic]) -> Mask:
        """Return which points of a grid lie inside."""
        x_w, y_h1 = x.astype(np.float32), y.astype(np.float32)[:, None]
        inside = np.ones((len(y), len(x)), dtype=np.bool_)
        for side in self.sides:
            inside &= side.across[0] * x_w + side.across[1] * y_h1 >= side.offset
        if self.middle is not None:
            inside &= (x_w - self.middle[0]) ** 2 + (y_h1 - self.middle[1]) ** 2 <= self.radius**2
        return inside


def _fit(picture_hw: Mask) -> _Outline:
    y_N, x_N = (axis.astype(np.float32) for axis in np.nonzero(picture_hw))
    left, right = (float(edge) for edge in np.quantile(x_N, (_OUTSIDE / 4, 1 - _OUTSIDE / 4)))
    top, bottom = (float(edge) for edge in np.quantile(y_N, (_OUTSIDE / 4, 1 - _OUTSIDE / 4)))
    box = (left, top, right, bottom)
    one, other = _side(x_N, y_N, box, sign=1.0), _side(x_N, y_N, box, sign=-1.0)
    cuts = _cuts(picture_hw, box)
    if one is None or other is None:  # a linear probe, or a picture that fills the screen
        edges = (((1.0, 0.0), left), ((-1.0, 0.0), -right), ((0.0, 1.0), top), ((0.0, -1.0), -bottom))
        return _Outline(
            sides=(*(_Side(across=across, offset=offset - 0.5) for across, offset in edges),
                   *(side for side in (one, other) if side is not None)),
            middle=None, radius=math.inf,
        )  # fmt: skip
    one, other = _evened(one, other, x_N, y_N)
    meeting = _meet(one, other)
    if top - meeting[1] > _DARK_TOP * (bottom - top):  # a curved probe: its sides meet far above
        cuts = (*cuts, _Side(across=(0.0, 1.0), offset=top - 0.5))
    radius = _radius(x_N - meeting[0], y_N - meeting[1])
    if radius is None and (floor := _floor(picture_hw, bottom)) is not None:
        return _Outline(sides=(one, other, *cuts, floor), middle=None, radius=math.inf)
    if radius is None:
        radius = float(np.quantile(np.hypot(x_N - meeting[0], y_N - meeting[1]), 1 - _OUTSIDE))
    return _Outline(sides=(one, other, *cuts), middle=meeting, radius=radius + 0.5)


def _radius(right_N: NDArray[np.float32], down_N: NDArray[np.float32]) -> float | None:
    """Return how far most beams reach from where the sides meet; None: they do not agree."""
    reach_N = np.hypot(right_N, down_N)
    angle_N = np.arctan2(right_N, down_N)
    low, high = float(angle_N.min()), float(angle_N.max())
    beam_N = np.minimum(((angle_N - low) / (high - low + 1e-6) * _BEAMS).astype(np.intp), _BEAMS - 1)
    reach_of_beam = np.zeros(_BEAMS)
    np.maximum.at(reach_of_beam, beam_N, reach_N)
    agreeing = np.abs(reach_of_beam[:, None] - reach_of_beam) <= 1.5
    common = int(agreeing.sum(axis=1).argmax())
    radius = float(np.median(reach_of_beam[agreeing[common]]))
    if agreeing[common].sum() >= _AGREEING * _BEAMS and (reach_N > radius).mean() < _BEYOND:
        return radius
    return None


def _side(
    x_N: NDArray[np.float32], y_N: NDArray[np.float32], box: tuple[float, float, float, float], *, sign: float
) -> _Side | None:
    """Return the left side (sign 1) or the right one (-1): of the lines that touch the picture the one that cuts the
    largest corner off its bounding box; None: the box has no such corner."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    best, best_corner = None, _LEAST_CORNER * wide * high
    angle, reach = 0.5 * sum(_SIDES_DEGREES), 0.5 * (_SIDES_DEGREES[1] - _SIDES_DEGREES[0])
    while reach > 0.2:  # each round looks closer around the best of the last
        for degrees in np.linspace(angle - reach, angle + reach, 9):
            if not _SIDES_DEGREES[0] <= degrees <= _SIDES_DEGREES[1]:
                continue
            side = _Side.touching(x_N, y_N, sign=sign, degrees=float(degrees))
            corner = _corner(side, box)
            if corner > best_corner:
                best, best_corner, angle = side, corner, float(degrees)
        reach /= 3.0
    return best


def _evened(one: _Side, other: _Side, x_N: NDArray[np.float32], y_N: NDArray[np.float32]) -> tuple[_Side, _Side]:
    """Return the sides, both at the wider angle if they differ: beams go as far to one side as to the other, and the
    steeper side is where the picture fades into the dark."""
    widest = max(one.degrees, other.degrees)
    if abs(one.degrees - other.degrees) <= _UNEVEN_DEGREES:
        return one, other
    return (_Side.touching(x_N, y_N, sign=1.0, degrees=widest), _Side.touching(x_N, y_N, sign=-1.0, degrees=widest))


def _corner(side: _Side, box: tuple[float, float, float, float]) -> float:
    """Return the area that a line cuts off the upper corner of the box on its side."""
    left, top, right, bottom = box
    across, offset = side.across, side.offset
    x = left if across[0] > 0 else right
    legs = offset - (across[0] * x + across[1] * top)  # distance of the line from the corner
    if legs <= 0:
        return 0.0
    along_x, along_y = legs / abs(across[0]), legs / across[1]
    wide, high = right - left, bottom - top
    # A triangle, less what of it stands out of the box.
    area = along_x * along_y
    for leg, limit, slope in ((along_x, wide, along_y / along_x), (along_y, high, along_x / along_y)):
        if leg > limit:
            area -= (leg - limit) ** 2 * slope
    return area / 2.0


def _cuts(picture_hw: Mask, box: tuple[float, float, float, float]) -> tuple[_Side, ...]:
    """Return the straight edges where the screen ends the picture early, left and right."""
    left, _, right, _ = box
    rows = np.flatnonzero(picture_hw.any(axis=1))
    firsts = picture_hw[rows].argmax(axis=1)
    lasts = picture_hw.shape[1] - 1 - picture_hw[rows, ::-1].argmax(axis=1)
    cuts = []
    if (np.abs(firsts - left) <= 1.5).mean() > _STRAIGHT:
        cuts.append(_Side(across=(1.0, 0.0), offset=left - 0.5))
    if (np.abs(lasts - right) <= 1.5).mean() > _STRAIGHT:
        cuts.append(_Side(across=(-1.0, 0.0), offset=-right - 0.5))
    return tuple(cuts)


def _floor(picture_hw: Mask, bottom: float) -> _Side | None:
    """Return the straight edge where the screen ends the picture before its arc, if it has one."""
    columns = np.flatnonzero(picture_hw.any(axis=0))
    lows = picture_hw.shape[0] - 1 - picture_hw[::-1, columns].argmax(axis=0)
    is_flat = (np.abs(lows - bottom) <= 1.5).mean() > _FLAT
    return _Side(across=(0.0, -1.0), offset=-bottom - 0.5) if is_flat else None


def _meet(one: _Side, other: _Side) -> tuple[float, float]:
    """Return where two sides meet, x and y."""
    (a, b), (c, d) = one.across, other.across
    determinant = a * d - b * c
    return (one.offset * d - other.offset * b) / determinant, (a * other.offset - c * one.offset) / determinant
