"""Is this instance a B-mode cine loop that a network may look at? If not: why, in words a cardiologist understands.

Legend: T frames, H, W pixels, C = 3 RGB.
The header is asked first; what it does not say, or says wrongly, is asked of the sampled pixels.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from model.clip.levels import strongest
from model.clip.pixels import DECODABLE
from model.clip.quality import CLIPPED_LEVEL, measure
from model.clip.screen_layout import runs_as_trace, shows_several
from model.clip.source import MAX_PIXELS, Frames, LoopHeader, Region
from model.clip.spec import frame_indices
from model.errors import NotALoop


class Reason(StrEnum):
    """Why an instance carries no number; the values are stored, the texts are read."""

    NOT_AN_IMAGE = "not_an_image"
    """A document, a waveform or a presentation state."""
    NOT_ULTRASOUND = "not_ultrasound"
    """An image of another modality, or a secondary capture."""
    VOLUME_3D = "volume_3d"
    """A three-dimensional data set."""
    STILL = "still"
    """One frame."""
    M_MODE = "m_mode"
    """An M-mode trace."""
    SPECTRAL_DOPPLER = "spectral_doppler"
    """A pulsed or continuous wave Doppler trace."""
    COLOUR_DOPPLER = "colour_doppler"
    """Colour flow or tissue Doppler lies over the picture."""
    TOO_SHORT = "too_short"
    """Clearly less than a heart beat, or too few frames for one."""
    SEVERAL_IMAGES = "several_images"
    """Two or more pictures side by side."""
    TRACE = "trace"
    """A trace that runs across the screen, though the header does not say so."""
    STATIC = "static"
    """The frames do not differ: a frozen picture."""
    POOR_PICTURE = "poor_picture"
    """Without contrast, too bright, or frozen on the way."""
    NO_SECTOR = "no_sector"
    """The ultrasound sector is not found on the screen, so that it cannot be cut out as for training."""
    NO_SCALE = "no_scale"
    """The header gives no sane size of a pixel, and the network was trained on pictures of one scale."""
    IMPLAUSIBLE_SIZE = "implausible_size"
    """No ultrasound picture has these rows and columns."""
    UNSUPPORTED_SYNTAX = "unsupported_syntax"
    """The pixels are compressed in a form that nothing here decodes."""

    @property
    def text(self) -> str:
        """Return the reason in words for the report."""
        return _TEXTS[self]


_TEXTS = {
    Reason.NOT_AN_IMAGE: "no image (document, waveform or presentation state)",
    Reason.NOT_ULTRASOUND: "not an ultrasound image",
    Reason.VOLUME_3D: "3-D volume",
    Reason.STILL: "still image, not a cine loop",
    Reason.M_MODE: "M-mode",
    Reason.SPECTRAL_DOPPLER: "spectral Doppler",
    Reason.COLOUR_DOPPLER: "colour or tissue Doppler",
    Reason.TOO_SHORT: "loop too short",
    Reason.SEVERAL_IMAGES: "several images on one screen",
    Reason.TRACE: "a trace that runs (M-mode or spectral Doppler)",
    Reason.STATIC: "frozen picture, nothing moves",
    Reason.POOR_PICTURE: "picture too poor",
    Reason.NO_SECTOR: "ultrasound sector not found on the screen",
    Reason.NO_SCALE: "no usable scale (size of a pixel) in the header",
    Reason.IMPLAUSIBLE_SIZE: "implausible image size",
    Reason.UNSUPPORTED_SYNTAX: "compression not supported",
}

MIN_FRAMES = 8
"""Shortest loop that is looked at. Stress echo stages come as one beat of 10 to 16 frames from real carts; below 8,
systole may fall between two frames."""

WHOLE_BEAT = 0.7
"""Least share of a beat, by the heart rate, that a loop shows. Stress carts also store systole alone: real loops
of 0.4 s at 35 to 80 beats a minute, 0.2 to 0.5 of a beat. A whole beat is not asked, for the rate varies by a few."""

MIN_SECONDS = 0.25
"""Shortest loop: hardly a beat is shorter, whatever heart rate the header claims."""

MIN_SIDE = 64
"""Fewest rows and columns of a picture that shows a heart."""

MAX_ASPECT = 8
"""Largest ratio of the sides of a picture."""

COLOURED_FRACTION = 0.02
"""Share of the moving picture from which colour counts as Doppler. Measured on the real loops of the tests: B-mode at
most 0.006 (the ECG sweep, text under it), colour flow and tissue Doppler at least 0.065."""

MOVING_FRACTION = 0.04
"""Share of the screen that moves in a loop. Measured: at least 0.19 in real loops; an ECG strip alone makes 0.019."""

_MOTION = 16  # grey levels between the frames; compression noise stays below
_CHROMA = 60  # grey levels between R, G and B, beyond what the picture's own colour map does
_INSPECTED_ROWS, _INSPECTED_FRAMES = 200, 16  # the shares above need no finer look

_MODES_M, _MODES_SPECTRAL, _MODES_COLOUR, _MODES_3D = 0x0022, 0x000C, 0x0110, 0x0040

_CINE = frozenset({"1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.3"})  # US Multi-frame, and retired
_STILL = frozenset({"1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.6"})  # US Image, and retired
_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"  # Enhanced US Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a loop may be looked at."""

    reason: Reason | None = None
    """None: it may."""
    detail: str = ""
    """What makes the reason true here, in words."""

    @property
    def is_accepted(self) -> bool:
        """Return whether nothing speaks against the loop."""
        return self.reason is None

    def check(self) -> None:
        """Do nothing if nothing speaks against the loop.

        Raises:
            NotALoop: something does.
        """
        if self.reason is not None:
            raise NotALoop(self.reason, self.detail)


ACCEPTED = Verdict()
"""Nothing speaks against the loop."""


def select(header: LoopHeader) -> Verdict:
    """Return what the header says.

    Ultrasound Color Data Present is not asked: real carts set it on every loop that is stored in colour, B-mode too.
    """
    if header.sop_class_uid == _VOLUME:
        return Verdict(reason=Reason.VOLUME_3D)
    if header.modes & _MODES_3D:
        return Verdict(reason=Reason.VOLUME_3D, detail="by its Image Type")
    if header.rows is None or header.columns is None:
        return Verdict(reason=Reason.NOT_AN_IMAGE)
    if header.sop_class_uid not in _CINE | _STILL:
        return Verdict(reason=Reason.NOT_ULTRASOUND)
    trace = _trace(header)
    if trace is not None:
        return Verdict(reason=trace)
    if header.num_frames == 1:
        return Verdict(reason=Reason.STILL)
    if header.num_frames < MIN_FRAMES:
        return Verdict(reason=Reason.TOO_SHORT, detail=f"{header.num_frames} frames")
    part = _part_of_a_beat(header)
    if part:
        return Verdict(reason=Reason.TOO_SHORT, detail=part)
    short, long = sorted((header.rows, header.columns))
    if short < MIN_SIDE or long > MAX_ASPECT * short or long * short > MAX_PIXELS:
        return Verdict(reason=Reason.IMPLAUSIBLE_SIZE, detail=f"{header.rows} x {header.columns}")
    if any(region.data_type == 2 for region in _pictures(header)):
        return Verdict(reason=Reason.COLOUR_DOPPLER, detail="by its header")
    if header.modes & _MODES_COLOUR:
        return Verdict(reason=Reason.COLOUR_DOPPLER, detail="by its Image Type")
    if len(_boxes(header)) > 1:
        return Verdict(reason=Reason.SEVERAL_IMAGES, detail=f"{len(_boxes(header))} regions")
    if header.transfer_syntax_uid not in DECODABLE:
        return Verdict(reason=Reason.UNSUPPORTED_SYNTAX, detail=header.transfer_syntax_uid)
    return ACCEPTED


def inspect(frames_THWC: Frames) -> Verdict:
    """Return what the sampled frames show.

    Args:
        frames_THWC: RGB as decoded, each another one of its loop, in its order; many are looked at here and there.
    """
    step = max(1, frames_THWC.shape[1] // _INSPECTED_ROWS)
    if len(frames_THWC) > _INSPECTED_FRAMES:
        frames_THWC = frames_THWC[list(frame_indices(len(frames_THWC), _INSPECTED_FRAMES))]
    seen = np.ascontiguousarray(frames_THWC[:, ::step, ::step])  # it is gone through many times
    moves_HW = strongest(seen.max(axis=0) - seen.min(axis=0)) > _MOTION
    if moves_HW.mean() < MOVING_FRACTION:
        return Verdict(reason=Reason.STATIC)
    coloured = _coloured_share(seen[:, moves_HW].reshape(-1, 3).astype(np.int16))
    if coloured > COLOURED_FRACTION:
        return Verdict(reason=Reason.COLOUR_DOPPLER, detail=f"{coloured:.0%} of what moves is coloured")
    if runs_as_trace(seen, moves_HW):
        return Verdict(reason=Reason.TRACE)
    if shows_several(seen, moves_HW):
        return Verdict(reason=Reason.SEVERAL_IMAGES, detail="by its pixels")
    level_THW = strongest(seen)
    fault = measure(level_THW[:, moves_HW | _white(level_THW, moves_HW)]).fault
    return Verdict(reason=Reason.POOR_PICTURE, detail=fault) if fault else ACCEPTED


def _coloured_share(pixels_NC: NDArray[np.int16]) -> float:
    """Return the share of pixels whose colour is not that of most pixels as bright as they are.

    A tinted B-mode picture has one colour for each brightness; Doppler lays others over it.
    """
    red_green, blue_green = pixels_NC[:, 0] - pixels_NC[:, 1], pixels_NC[:, 2] - pixels_NC[:, 1]
    level = strongest(pixels_NC) >> 3
    is_coloured = np.zeros(len(pixels_NC), dtype=np.bool_)
    for one in np.unique(level):
        bright = np.flatnonzero(level == one)
        for chroma in (red_green[bright], blue_green[bright]):
            is_coloured[bright] |= np.abs(chroma - np.median(chroma)) > _CHROMA
    return float(is_coloured.mean())


def _white(level_THW: NDArray[np.uint8], moves_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what is white all the time beside or under what moves: with too much gain nothing moves any more."""
    rows, columns = np.flatnonzero(moves_HW.any(axis=1)), np.flatnonzero(moves_HW.any(axis=0))
    box = (slice(rows[0], None), slice(columns[0], columns[-1] + 1))
    white_HW = np.zeros_like(moves_HW)
    white_HW[box] = level_THW[:, box[0], box[1]].min(axis=0) >= CLIPPED_LEVEL
    return white_HW


def _part_of_a_beat(header: LoopHeader) -> str:
    """Return in words how much of a beat the loop is, by the header; empty: a whole one, or nothing is known."""
    if header.seconds is None:
        return ""
    if header.seconds < MIN_SECONDS:
        return f"{header.seconds:.2f} s"
    beat = 60.0 / header.heart_rate if header.heart_rate is not None else 0.0
    return f"{header.seconds:.2f} s, a beat takes {beat:.2f} s" if header.seconds < WHOLE_BEAT * beat else ""


def _trace(header: LoopHeader) -> Reason | None:
    """Return the kind of trace that a region, or Image Type, tells of; a type-0 region says nothing."""
    if header.modes & _MODES_SPECTRAL:
        return Reason.SPECTRAL_DOPPLER
    if header.modes & _MODES_M:
        return Reason.M_MODE
    for region in header.regions:
        if region.spatial_format == 3 or region.data_type in (3, 4):
            return Reason.SPECTRAL_DOPPLER
        if region.spatial_format == 2:
            return Reason.M_MODE
    return None


def _pictures(header: LoopHeader) -> list[Region]:
    """Return the two-dimensional regions with tissue or flow."""
    return [region for region in header.regions if region.spatial_format == 1 and region.data_type in (1, 2)]


def _boxes(header: LoopHeader) -> list[Region]:
    """Return the pictures that lie apart: several regions on one box (B-mode under flow) count once.

    Boxes are cut to the image first; what is left of one that lies outside, or is inverted, is no picture.
    """
    apart: list[Region] = []
    for region in (_clipped(region, header) for region in _pictures(header)):
        is_picture = region.x1 - region.x0 >= MIN_SIDE and region.y1 - region.y0 >= MIN_SIDE
        if is_picture and not any(_overlap(region, other) for other in apart):
            apart.append(region)
    return apart


def _clipped(region: Region, header: LoopHeader) -> Region:
    right, bottom = (header.columns or 1) - 1, (header.rows or 1) - 1
    return replace(
        region, x0=max(region.x0, 0), y0=max(region.y0, 0), x1=min(region.x1, right), y1=min(region.y1, bottom)
    )


def _overlap(one: Region, other: Region) -> bool:
    """Return whether the regions share more than a tenth of the smaller one."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    smaller = min((region.x1 - region.x0) * (region.y1 - region.y0) for region in (one, other))
    return width > 0 and height > 0 and 10 * width * height > smaller
