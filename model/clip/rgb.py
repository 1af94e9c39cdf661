"""From decoded samples to RGB bytes.

Legend: H, W pixels, C = 3 RGB.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut

from model.clip.source import Frames
from model.errors import UnreadableLoop

_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})  # pydicom has made RGB of all of them
# How black comes out under the wrong name (PS3.3 C.7.6.3.1.2), and the right one.
_BLACK_MISREAD = {"RGB": ((0, 128, 128), "YBR_FULL"), "YBR_FULL": ((0, 135, 0), "RGB")}
_NEAR = 4  # levels
_MISREAD, _BLACK = 0.25, 0.02  # shares of the screen: at least, at most
_STEP = 4  # every so many pixels are looked at
_PALETTE_DESCRIPTOR = "RedPaletteColorLookupTableDescriptor"
_PALETTE_DATA = tuple(f"{name}PaletteColorLookupTableData" for name in ("Red", "Green", "Blue"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Colouring:
    """How the samples of a loop become colours; the same for all its frames."""

    photometric: str
    bits_stored: int
    window: tuple[float, float] | None
    """Window Centre and Width; used on samples deeper than a byte only."""
    first_entry: int
    """The sample value of the palette's first entry."""
    palette: Frames | None
    """Colours by entry (N, 3)."""

    def to_rgb(self, samples: NDArray[Any]) -> Frames:
        """Return one frame of decoded samples, YCbCr already turned into RGB, as RGB uint8 (H, W, 3)."""
        if self.palette is not None:
            entries = samples.astype(np.int32) - self.first_entry
            return np.asarray(self.palette[np.clip(entries, 0, len(self.palette) - 1)], dtype=np.uint8)
        if self.photometric in ("MONOCHROME1", "MONOCHROME2") and samples.ndim == 2:
            grey = self._to_bytes(samples)
            if self.photometric == "MONOCHROME1":
                grey = np.asarray(255 - grey, dtype=np.uint8)
            return np.repeat(grey[..., np.newaxis], 3, axis=-1)
        if samples.ndim == 3 and samples.shape[-1] == 3 and self.photometric in _COLOUR:
            return self._to_bytes(samples)
        raise UnreadableLoop(f"{self.photometric or 'no photometric interpretation'} with {samples.shape} samples")

    def _to_bytes(self, samples: NDArray[Any]) -> Frames:
        if samples.dtype == np.uint8:
            return samples
        if samples.dtype.kind != "u":
            raise UnreadableLoop(f"samples of type {samples.dtype} are no ultrasound picture")
        if self.window is None:
            low, high = 0.0, float(2**self.bits_stored - 1)
        else:
            centre, width = self.window  # PS3.3 C.11.2.1.2.1
            low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        scaled = (samples.astype(np.float32) - low) * (255.0 / max(high - low, 1.0))
        return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def colouring(dataset: Dataset) -> Colouring:
    """Return how this data set's samples become colours.

    Raises:
        UnreadableLoop: Bits Stored is no number of bits.
        ValueError, AttributeError: the palette is damaged.
    """
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    bits_stored = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 8)
    if not 1 <= bits_stored <= 16:
        raise UnreadableLoop(f"the header claims {bits_stored} bits a sample")
    is_palette = photometric == "PALETTE COLOR"
    return Colouring(
        photometric=photometric,
        bits_stored=bits_stored,
        window=_window(dataset),
        first_entry=_first_entry(dataset) if is_palette else 0,
        palette=_palette(dataset) if is_palette else None,
    )


def true_photometric(frame_HWC: Frames, photometric: str) -> str:
    """Return the photometric interpretation that a frame's samples have, whatever the header says.

    Most of an ultrasound screen is black. Under the wrong name black is teal, or green, and nothing is black.

    Args:
        frame_HWC: RGB, made by the header's word.
        photometric: that word.
    """
    if photometric not in _BLACK_MISREAD:
        return photometric
    misread, other = _BLACK_MISREAD[photometric]
    seen_NC = frame_HWC[::_STEP, ::_STEP].reshape(-1, 3).astype(np.int16)
    is_misread = np.abs(seen_NC - np.array(misread)).max(axis=1) <= _NEAR
    is_black = seen_NC.max(axis=1) <= _NEAR
    return other if is_misread.mean() > _MISREAD and is_black.mean() < _BLACK else photometric


def _window(dataset: Dataset) -> tuple[float, float] | None:
    values = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = dataset.get(keyword)
        first = value[0] if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else value
        if first in (None, ""):
            return None
        values.append(float(first))
    return (values[0], values[1]) if values[1] > 1 else None


def _first_entry(dataset: Dataset) -> int:
    return int(dataset[_PALETTE_DESCRIPTOR].value[1])


def _palette(dataset: Dataset) -> Frames:
    """Return the colours of every entry: pydicom's table, applied to the ramp of all sample values."""
    num_entries = int(dataset[_PALETTE_DESCRIPTOR].value[0]) or 2**16
    if dataset.original_encoding[1] is False:
        _swap_words(dataset)
    first = _first_entry(dataset)
    colours = apply_color_lut(np.arange(first, first + num_entries, dtype=np.int32), dataset)[:, :3]
    if colours.dtype == np.uint8:
        return np.asarray(colours, dtype=np.uint8)
    # Some makers put bytes into 16-bit entries; the standard puts them into the high byte.
    shift = 8 if colours.max() > 255 else 0
    return (colours >> shift).astype(np.uint8)


def _swap_words(dataset: Dataset) -> None:
    """Turn the tables of a big-endian data set, which are words, round: pydicom 3.0 takes them as little-endian."""
    for keyword in _PALETTE_DATA:
        if keyword in dataset:
            dataset[keyword].value = np.frombuffer(dataset[keyword].value, dtype=">u2").astype("<u2").tobytes()
