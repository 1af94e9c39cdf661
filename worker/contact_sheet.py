"""The contact sheet: for people who check by eye which instances were selected, and what was cut out of them.

A row an instance: its first, middle and last sampled frame, what the recipe keeps of the middle one, and the verdict.
Nothing is read of the patient, but what a cart burned into the picture is in the picture.

Legend: T sampled frames, H, W pixels of the loop, h, w pixels of a thumbnail, C = 3 RGB.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.uid import UID
from scipy import ndimage

from model.aggregate import gate
from model.clip.dicom import open_loop
from model.clip.sampling import clips_of, distinct
from model.clip.sector import Sector
from model.clip.source import Frames, LoopHeader
from model.clip.spec import ClipSpec
from model.clip.transform import cut_out, locate_by_header
from model.errors import NotALoop, UnreadableLoop
from model.prediction import EnsembleInfo, Loop
from worker.loops import RefusedLoop, Verdict

TILE = (240, 180)
"""Columns and rows of a thumbnail, pixels."""

MAX_HEIGHT = 32_000
"""Rows of a sheet, pixels: browsers show nothing of a picture with more than 32 767."""

ACCEPTED, REFUSED, OUTLINE = (110, 220, 120), (255, 165, 80), (0, 230, 255)
"""Colours of the verdict, and of the sector's outline."""

_GAP, _MARGIN = 8, 12
_LINE, _NAME, _VERDICT, _LABEL = 30, 18, 20, 15  # pixels of a line
WIDTH = 2 * _MARGIN + 4 * TILE[0] + 3 * _GAP
"""Columns of a sheet, pixels."""
ROW_HEIGHT = _MARGIN + _NAME + _VERDICT + _LABEL + TILE[1]
"""Rows of a sheet that an instance takes, pixels."""

_BACKGROUND, _HEADING, _EMPTY = (32, 32, 36), (52, 66, 92), (58, 58, 64)
_LOUD, _QUIET = (255, 255, 255), (175, 175, 180)

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One file on the sheet."""

    path: Path
    verdict: str
    """In words."""
    is_accepted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    """A heading and the rows under it."""

    heading: str
    rows: Sequence[Row]


def judged(path: Path, verdict: Verdict, ensemble: EnsembleInfo) -> Row:
    """Return the row of an instance that was looked at."""
    if isinstance(verdict, RefusedLoop):
        return Row(path=path, verdict=f"refused: {verdict.reason}", is_accepted=False)
    seen = gate(Loop(key="", outputs=verdict.outputs, header_view=verdict.header_view), ensemble)
    view = "view not recognised, at best" if seen.view is None else f"{seen.view.value}, probability"
    if seen.uncertain is not None:
        view = f"view uncertain, at best {seen.uncertain.value}, probability"
    if seen.contradicted is not None:
        view = f"{seen.contradicted.value}, which the header contradicts, probability"
    return Row(path=path, verdict=f"accepted: {view} {seen.probability:.2f}", is_accepted=True)


def draw(path: Path, title: str, chapters: Iterable[Chapter], spec: ClipSpec) -> list[Path]:
    """Write the sheet as PNG to `path`, and what is too long for one to FILE-2.png and so on; return what was written.

    Memory holds the sampled frames of one loop, and the thumbnails of one PNG.

    Raises:
        OSError: a PNG cannot be written.
    """
    written: list[Path] = []
    depth = "" if spec.depth_mm is None else f" {spec.depth_mm:.0f} mm deep"
    recipe = f"recipe: {spec.num_frames} frames, crop {spec.crop}{depth}, resized to {spec.size} x {spec.size} pixels"
    top = [_line(title), _line(recipe)]
    bands = [*top]
    for chapter in chapters:
        heading = _line(chapter.heading, _HEADING)
        is_headed = False
        for row in chapter.rows:
            if sum(band.height for band in bands) + 2 * heading.height + ROW_HEIGHT + _MARGIN > MAX_HEIGHT:
                following = _numbered(path, len(written) + 2)
                written.append(_save(_numbered(path, len(written) + 1),
                                     [*bands, _line(f"continued in {following.name}")]))  # fmt: skip
                bands, is_headed = [*top], False
            bands += [_row(row, spec)] if is_headed else [heading, _row(row, spec)]
            is_headed = True
    return [*written, _save(_numbered(path, len(written) + 1), bands)]


def _numbered(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_stem(f"{path.stem}-{number}")


def _save(path: Path, bands: Sequence[Image.Image]) -> Path:
    sheet = Image.new("RGB", (WIDTH, sum(band.height for band in bands) + _MARGIN), _BACKGROUND)
    top = 0
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    sheet.save(path, "PNG")
    return path


def _line(text: str, background: Colour = _BACKGROUND) -> Image.Image:
    band = Image.new("RGB", (WIDTH, _LINE), background)
    _write(band, (_MARGIN, 5), text, 16, _LOUD, WIDTH - 2 * _MARGIN)
    return band


def _row(row: Row, spec: ClipSpec) -> Image.Image:
    facts, tiles = _look(row, spec)
    band = Image.new("RGB", (WIDTH, ROW_HEIGHT), _BACKGROUND)
    width = WIDTH - 2 * _MARGIN
    top = _MARGIN // 2
    end = _write(band, (_MARGIN, top), row.path.name, 14, _LOUD, width)
    _write(band, (end + 2 * _MARGIN, top), facts, 14, _QUIET, WIDTH - end - 3 * _MARGIN)
    top += _NAME
    _write(band, (_MARGIN, top), row.verdict, 14, ACCEPTED if row.is_accepted else REFUSED, width)
    top += _VERDICT
    for column, (label, tile) in tiles.items():
        left = _MARGIN + column * (TILE[0] + _GAP)
        _write(band, (left, top), label, 11, _QUIET, TILE[0])
        band.paste(tile, (left, top + _LABEL))
    return band


def _look(row: Row, spec: ClipSpec) -> tuple[str, dict[int, tuple[str, Image.Image]]]:
    """Return what the header says of the picture, and column -> label, tile."""
    try:
        source = open_loop(row.path)
    except UnreadableLoop as error:
        return "", {0: ("", _reason(str(error)))}
    header = source.header
    if header.rows is None or header.columns is None:
        return _kind(header), {0: ("", _reason("no pixels"))}
    number = "1 frame" if header.num_frames == 1 else f"{header.num_frames} frames"
    facts = f"{_kind(header)}, {number} of {header.rows} x {header.columns}"
    indices = distinct(clips_of(header, spec))
    try:
        frames_THWC = source.read(indices)
    except UnreadableLoop as error:
        return facts, {0: ("", _reason(str(error)))}
    try:
        sector, missing = locate_by_header(frames_THWC, spec, header), ""
    except NotALoop as error:
        sector, missing = None, str(error)
    tiles = _tiles(frames_THWC, indices, sector)
    if header.num_frames > 1:  # nothing is ever cut out of a still
        label, tile = ("crop", _reason(missing)) if missing else _crop(frames_THWC[len(frames_THWC) // 2], sector)
        tiles[3] = (label if row.is_accepted else f"{label}, not analysed", tile)
    return facts, tiles


def _kind(header: LoopHeader) -> str:
    uid = UID(header.sop_class_uid)
    return uid.name.removesuffix(" Storage") if uid.is_valid and not uid.is_private else "unknown SOP class"


def _tiles(frames_THWC: Frames, indices: Sequence[int], sector: Sector | None) -> dict[int, tuple[str, Image.Image]]:
    """Return column -> label, tile of the first, middle and last frame, each once."""
    outlined_HW = None if sector is None else sector.mask_HW
    shown = {indices[position]: position for position in (0, len(indices) // 2, len(indices) - 1)}
    return {
        column: (f"frame {index + 1}", thumbnail(frames_THWC[position], outlined_HW))
        for column, (index, position) in enumerate(shown.items())
    }


def _crop(frame_HWC: Frames, sector: Sector | None) -> tuple[str, Image.Image]:
    """Return label and tile of what is kept of a frame."""
    kept_HWC = cut_out(frame_HWC[None], sector)[0]
    label = "whole screen" if sector is None else f"crop of {kept_HWC.shape[0]} x {kept_HWC.shape[1]}"
    return label, thumbnail(kept_HWC, None)


def thumbnail(frame_HWC: Frames, outlined_HW: NDArray[np.bool_] | None) -> Image.Image:
    """Return the frame in a tile, its aspect ratio kept, the outline of the mask drawn on it if there is one."""
    rows, columns = frame_HWC.shape[:2]
    scale = min(TILE[0] / columns, TILE[1] / rows)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    small_hwC = np.array(Image.fromarray(frame_HWC).resize(size, Image.Resampling.BILINEAR))
    if outlined_HW is not None:
        mask_hw = np.array(Image.fromarray(outlined_HW).resize(size, Image.Resampling.NEAREST))
        small_hwC[mask_hw & ~ndimage.binary_erosion(mask_hw)] = OUTLINE
    tile = Image.new("RGB", TILE, _EMPTY)
    tile.paste(Image.fromarray(small_hwC), ((TILE[0] - size[0]) // 2, (TILE[1] - size[1]) // 2))
    return tile


def _reason(text: str) -> Image.Image:
    """Return a tile without a picture that says why there is none."""
    tile = Image.new("RGB", TILE, _EMPTY)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(13).getlength(longer) <= TILE[0] - 2 * _MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    for number, line in enumerate(lines):
        _write(tile, (_MARGIN, _MARGIN + number * _NAME), line, 13, _LOUD, TILE[0] - 2 * _MARGIN)
    return tile


def _write(picture: Image.Image, corner: tuple[int, int], text: str, size: int, colour: Colour, width: int) -> int:
    """Write one line, cut to `width` pixels; return where it ends."""
    font = _font(size)
    # A file name may hold line breaks, or bytes that are no text.
    line = shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    while line and font.getlength(shown) > width:
        line = line[:-1]
        shown = f"{line}…"
    ImageDraw.Draw(picture).text(corner, shown, fill=colour, font=font)
    return corner[0] + round(font.getlength(shown))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
