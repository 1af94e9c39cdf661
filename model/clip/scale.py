"""Where the picture is on the screen and how large a heart is in it, by the header: used where that can be true."""

import math
from typing import NamedTuple

from model.clip.source import LoopHeader, Region

_PIXEL_MM = (0.02, 2.0)
"""What a pixel of an ultrasound screen can be, from paediatric zoom to a thumbnail of a deep picture."""

_UNEVEN = 2.0
"""A pixel is at most so many times as wide as high, or as high as wide."""

_AGREEING = 0.01
"""By so much of itself the scale of one region of the picture may differ from another's."""


class Scale(NamedTuple):
    """Size of a pixel, mm."""

    row_mm: float
    """Height."""
    column_mm: float
    """Width."""
    region_rows: int | None = None
    """Height of the region of the screen that it is said of, pixels; None: the whole image."""

    @property
    def is_sane(self) -> bool:
        """Return whether an ultrasound screen can have it."""
        low, high = _PIXEL_MM
        sizes = (self.row_mm, self.column_mm)
        return all(low <= size <= high for size in sizes) and max(sizes) <= _UNEVEN * min(sizes)


def scale_of(header: LoopHeader) -> Scale | None:
    """Return the scale of the picture (PS3.3 C.8.5.5: Physical Delta X and Y).

    None: the header has none, none that can be true, or several that differ; or a region of the picture has none, or
    lies outside the image, which somebody then made smaller without a word in the header [seen].
    """
    regions = [one for one in header.regions if one.spatial_format == 1]
    if not regions or not all(_is_inside(one, header) for one in regions):
        return None
    region_rows = max(one.y1 - one.y0 + 1 for one in regions)
    found = [
        Scale(region.row_mm, region.column_mm, region_rows)
        for region in regions
        if region.row_mm is not None and region.column_mm is not None
    ]
    if len(found) < len(regions) or not all(one.is_sane for one in found):
        return None
    first = found[0]
    agree = all(
        math.isclose(one.row_mm, first.row_mm, rel_tol=_AGREEING)
        and math.isclose(one.column_mm, first.column_mm, rel_tol=_AGREEING)
        for one in found
    )
    return first if agree else None


def picture_region(header: LoopHeader) -> Region | None:
    """Return where the header says that the picture is; None: nowhere, outside the image, or in several places."""
    places = {
        (one.x0, one.y0, one.x1, one.y1): one
        for one in header.regions
        if one.spatial_format == 1 and one.data_type in (0, 1, 2)
    }
    if len(places) != 1:
        return None
    (region,) = places.values()
    return region if _is_inside(region, header) else None


def _is_inside(region: Region, header: LoopHeader) -> bool:
    """Return whether a region lies in the image; some carts give the number of columns as the last one."""
    columns, rows = header.columns or 0, header.rows or 0
    return 0 <= region.x0 < region.x1 <= columns and 0 <= region.y0 < region.y1 <= rows
