"""Finding the ultrasound sector of a loop: what moves and is grey is picture, and what is lit beside it.

The sector is the wedge, closed by an arc, that holds the picture: two straight sides that touch it, an arc around their
meeting point, and straight cuts where the screen ends the picture early. So its dark corners belong to it too, and
nothing of the picture is cut away.

Legend: T frames, h, w pixels of the reduced picture, C = 3 RGB, N points.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model.clip.levels import strongest
from model.clip.sector import Arc, Mask, Sector, Side
from model.clip.source import Frames, Region

_ROWS = 240  # of the reduced picture: the sides are found to half a pixel of it
_MOTION, _LESS_MOTION = 8, 3  # grey levels between the frames: of what is dark most of the time, of what is not
_FAINT = 4  # mean grey level: what compression leaves beside the picture is darker, the noise in it brighter
_LIT = 8  # mean grey level: so bright a neighbour of what moves is picture, though it lies still
_PART, _MOVING = 0.01, 0.5  # a part apart from the largest: its motion against that one's, and how much of it moves
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
_LIT_TOP = 0.15  # of what lies between them there: if so much is lit, they do meet on the screen
_STRAIGHT = 0.15  # of the height: a vertical edge so long is a cut, not a corner
_FLAT = 0.45  # of the width: a horizontal one
_BEAMS, _AGREEING = 32, 0.3  # directions of an arc, and how many of them must reach equally far
_BEYOND = 0.02  # of the picture: so much may lie beyond the arc on which the beams agree, left by traces
_INSIDE = 0.97  # of a sector: as much lies in the region of the header, or the header is asked
_CUT = 0.25  # of the side of a square as large as the sector: so long a border may not run on beyond the region
_LEAST_AREA = 0.06  # of the screen, or of the region
_LEAST_FILLING = 0.35  # of the sector: how much of it moves, or is lit beside what moves


def find_sector(frames_THWC: Frames, region: Region | None = None) -> Sector | None:
    """Return the sector of a loop; None where none is found.

    Frames that are repeated, as in a clip of a short loop, change nothing, nor does their order.

    Args:
        frames_THWC: of the loop.
        region: where the header says that the picture is. It is believed where what the pixels tell goes beyond it,
            unless it cuts through a picture. None: the header says nothing that can be.
    """
    sector = _find(frames_THWC, None)
    if region is None or (sector is not None and _share_inside(sector, region) >= _INSIDE):
        return sector
    within = _find(frames_THWC, region)
    return sector if within is None else within


def _find(frames_THWC: Frames, region: Region | None) -> Sector | None:
    """Return the sector within a region of the screen; None: there is none, or more of its picture lies beyond it."""
    _, rows, columns, _ = frames_THWC.shape
    step = max(1, round(rows / _ROWS))
    seen_ThwC = np.ascontiguousarray(frames_THWC[:, ::step, ::step])  # it is gone through many times
    repeats = [np.array_equal(one, before) for one, before in zip(seen_ThwC[1:], seen_ThwC[:-1], strict=True)]
    seen_ThwC = seen_ThwC[[True, *(not repeat for repeat in repeats)]]
    is_inside_hw = np.full(seen_ThwC.shape[1:3], region is None)
    if region is not None:
        is_inside_hw[region.y0 // step : region.y1 // step + 1, region.x0 // step : region.x1 // step + 1] = True
    picture_hw, lit_hw = _picture(seen_ThwC if region is None else seen_ThwC * is_inside_hw[..., None])
    if not picture_hw.any():
        return None
    sides, arc = _fit(picture_hw, lit_hw)
    sector = Sector(rows=rows, columns=columns, step=step, sides=sides, arc=arc)
    reduced_hw = sector.mask_HW[::step, ::step]
    area = int(reduced_hw.sum())
    filled = int((reduced_hw & picture_hw).sum())
    if area < _LEAST_AREA * is_inside_hw.sum() or filled < _LEAST_FILLING * area:
        return None
    return None if region is not None and _is_cut(reduced_hw, is_inside_hw, seen_ThwC) else sector


def _share_inside(sector: Sector, region: Region) -> float:
    inside_HW = sector.mask_HW[region.y0 : region.y1 + 1, region.x0 : region.x1 + 1]
    return float(inside_HW.sum() / sector.mask_HW.sum())


def _is_cut(sector_hw: Mask, is_inside_hw: Mask, seen_ThwC: Frames) -> bool:
    """Return whether much moves right beside the sector beyond the region that it was looked for in."""
    beside_hw = ndimage.binary_dilation(sector_hw, iterations=_BRIDGE) & ~is_inside_hw
    moves_hw = strongest(seen_ThwC.max(axis=0) - seen_ThwC.min(axis=0)) > _MOTION
    return bool((beside_hw & moves_hw).sum() > _CUT * math.sqrt(sector_hw.sum()) * _BRIDGE)


def _picture(seen_ThwC: Frames) -> tuple[Mask, Mask]:
    """Return the pixels that move and are grey with what is lit around them, and all that are lit and grey."""
    brightest_hwC = seen_ThwC.max(axis=0)
    moves_hw = strongest(brightest_hwC - seen_ThwC.min(axis=0))
    level_hw = strongest(seen_ThwC).mean(axis=0)
    is_moving_hw = (moves_hw > _MOTION) | ((moves_hw > _LESS_MOTION) & (level_hw > _FAINT))
    is_live_hw = is_moving_hw | (level_hw > _LIT)
    # Compression spreads colour to the sides.
    is_grey_hw = ~ndimage.binary_dilation(_is_off_colour(brightest_hwC.astype(np.int16), is_live_hw), iterations=2)
    lit_hw = is_live_hw & is_grey_hw
    picture_hw = _areas(lit_hw, is_moving_hw)
    if (picture_hw & is_moving_hw).sum() < 0.5 * (is_moving_hw & is_grey_hw).sum():  # the screen itself is lit
        lit_hw = is_moving_hw & is_grey_hw
        picture_hw = _areas(lit_hw, is_moving_hw)
    return picture_hw, lit_hw


def _areas(is_live_hw: Mask, is_moving_hw: Mask) -> Mask:
    """Return the areas of live pixels that are broad and move, without holes of their own.

    Several where the dark cuts the picture: a vessel across all beams, blood before the probe.
    """
    dense_hw: Mask = ndimage.uniform_filter(is_live_hw.astype(np.float32), _WINDOW, mode="nearest") > _DENSITY
    padded_hw = np.pad(dense_hw, _THIN, mode="edge")  # the edge of the screen thins nothing
    solid_hw = ndimage.binary_opening(padded_hw, iterations=_THIN)[_THIN:-_THIN, _THIN:-_THIN]
    dense_hw &= ndimage.binary_dilation(solid_hw, iterations=2)
    parts_hw, num_parts = ndimage.label(ndimage.binary_dilation(dense_hw, iterations=_BRIDGE))
    sizes = np.bincount(parts_hw[dense_hw], minlength=num_parts + 1)
    moving = np.bincount(parts_hw[dense_hw & is_moving_hw], minlength=num_parts + 1)
    is_picture = (moving >= _PART * moving.max()) & (moving >= _MOVING * sizes)
    areas_hw: Mask = dense_hw & is_picture[parts_hw]
    return areas_hw


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


def _fit(picture_hw: Mask, lit_hw: Mask) -> tuple[tuple[Side, ...], Arc | None]:
    """Return the sides and the arc of the smallest sector that holds the picture; `lit_hw` is all that may be some."""
    y_N, x_N = (axis.astype(np.float32) for axis in np.nonzero(picture_hw))
    left, right = (float(edge) for edge in np.quantile(x_N, (_OUTSIDE / 4, 1 - _OUTSIDE / 4)))
    top, bottom = (float(edge) for edge in np.quantile(y_N, (_OUTSIDE / 4, 1 - _OUTSIDE / 4)))
    box = (left, top, right, bottom)
    one, other = _side(x_N, y_N, box, sign=1.0), _side(x_N, y_N, box, sign=-1.0)
    cuts = _cuts(picture_hw, box)
    if one is None or other is None:  # a linear probe, or a picture that fills the screen
        edges = (Side(1.0, 0.0, left - 0.5), Side(-1.0, 0.0, -right - 0.5), Side(0.0, 1.0, top - 0.5),
                 Side(0.0, -1.0, -bottom - 0.5))  # fmt: skip
        return (*edges, *(side for side in (one, other) if side is not None)), None
    one, other = _evened(one, other, x_N, y_N)
    meeting = _meet(one, other)
    if top - meeting[1] > _DARK_TOP * (bottom - top):  # a curved probe: its sides meet far above
        tip_hw = _tip(lit_hw, one, other, top)
        if tip_hw.any():  # or not: the dark cuts its picture in two
            return _fit(picture_hw | tip_hw, np.zeros_like(lit_hw))
        cuts = (*cuts, Side(0.0, 1.0, top - 0.5))
    radius = _radius(x_N - meeting[0], y_N - meeting[1])
    if radius is None and (floor := _floor(picture_hw, bottom)) is not None:
        return (one, other, *cuts, floor), None
    if radius is None:
        radius = float(np.quantile(np.hypot(x_N - meeting[0], y_N - meeting[1]), 1 - _OUTSIDE))
    return (one, other, *cuts), Arc(*meeting, radius + 0.5)


def _tip(lit_hw: Mask, one: Side, other: Side, top: float) -> Mask:
    """Return what is lit between the sides over a row; nothing if little is: a curved probe, and letters above it."""
    y_h1, x_w = np.ogrid[: lit_hw.shape[0], : lit_hw.shape[1]]
    above_hw = y_h1 < top
    for side in (one, other):
        above_hw = above_hw & (side.right * x_w + side.down * y_h1 >= side.offset - _THIN)
    tip_hw: Mask = ndimage.binary_opening(lit_hw & above_hw, iterations=2)
    return tip_hw if tip_hw.sum() >= _LIT_TOP * above_hw.sum() else np.zeros_like(lit_hw)


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
) -> Side | None:
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
            side = _touching(x_N, y_N, sign=sign, degrees=float(degrees))
            corner = _corner(side, box)
            if corner > best_corner:
                best, best_corner, angle = side, corner, float(degrees)
        reach /= 3.0
    return best


def _touching(x_N: NDArray[np.float32], y_N: NDArray[np.float32], *, sign: float, degrees: float) -> Side:
    """Return the left (sign 1) or right (-1) side of this angle from the vertical that touches the picture."""
    right, down = sign * math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along_N = right * x_N + down * y_N
    beyond = int(_OUTSIDE * len(along_N))
    return Side(right, down, float(np.partition(along_N, beyond)[beyond]))


def _degrees(side: Side) -> float:
    """Return the angle of a side from the vertical."""
    return math.degrees(math.asin(side.down))


def _evened(one: Side, other: Side, x_N: NDArray[np.float32], y_N: NDArray[np.float32]) -> tuple[Side, Side]:
    """Return the sides, both at one angle if they differ: beams go as far to one side as to the other.

    It is the angle of the side that more of the picture lies along; the other one rests on a few points of a picture
    that fades into the dark.
    """
    if abs(_degrees(one) - _degrees(other)) <= _UNEVEN_DEGREES:
        return one, other
    along = [int((side.right * x_N + side.down * y_N < side.offset + 1.5).sum()) for side in (one, other)]
    degrees = _degrees(one if along[0] >= along[1] else other)
    return _touching(x_N, y_N, sign=1.0, degrees=degrees), _touching(x_N, y_N, sign=-1.0, degrees=degrees)


def _corner(side: Side, box: tuple[float, float, float, float]) -> float:
    """Return the area that a line cuts off the upper corner of the box on its side."""
    left, top, right, bottom = box
    x = left if side.right > 0 else right
    legs = side.offset - (side.right * x + side.down * top)  # distance of the line from the corner
    if legs <= 0:
        return 0.0
    along_x, along_y = legs / abs(side.right), legs / side.down
    wide, high = right - left, bottom - top
    # A triangle, less what of it stands out of the box.
    area = along_x * along_y
    for leg, limit, slope in ((along_x, wide, along_y / along_x), (along_y, high, along_x / along_y)):
        if leg > limit:
            area -= (leg - limit) ** 2 * slope
    return area / 2.0


def _cuts(picture_hw: Mask, box: tuple[float, float, float, float]) -> tuple[Side, ...]:
    """Return the straight edges where the screen ends the picture early, left and right."""
    left, _, right, _ = box
    rows = np.flatnonzero(picture_hw.any(axis=1))
    firsts = picture_hw[rows].argmax(axis=1)
    lasts = picture_hw.shape[1] - 1 - picture_hw[rows, ::-1].argmax(axis=1)
    cuts = []
    if (np.abs(firsts - left) <= 1.5).mean() > _STRAIGHT:
        cuts.append(Side(1.0, 0.0, left - 0.5))
    if (np.abs(lasts - right) <= 1.5).mean() > _STRAIGHT:
        cuts.append(Side(-1.0, 0.0, -right - 0.5))
    return tuple(cuts)


def _floor(picture_hw: Mask, bottom: float) -> Side | None:
    """Return the straight edge where the screen ends the picture before its arc, if it has one."""
    columns = np.flatnonzero(picture_hw.any(axis=0))
    lows = picture_hw.shape[0] - 1 - picture_hw[::-1, columns].argmax(axis=0)
    is_flat = (np.abs(lows - bottom) <= 1.5).mean() > _FLAT
    return Side(0.0, -1.0, -bottom - 0.5) if is_flat else None


def _meet(one: Side, other: Side) -> tuple[float, float]:
    """Return where two sides meet, x and y."""
    a, b, c, d = one.right, one.down, other.right, other.down
    determinant = a * d - b * c
    return (one.offset * d - other.offset * b) / determinant, (a * other.offset - c * one.offset) / determinant
