"""What scanners draw beside the fan: depth marks, settings, their maker's sign and the ECG.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

import numpy as np
from numpy.typing import NDArray

from model.phantom.heart import Heart
from model.phantom.screen import Screen

_ECG_ROW = 0.965
_ECG_HEIGHT = 0.035
_SWEEP_MS = 2000.0
_TRACE = (40, 220, 60)
_MARK_MM = 10.0
_MARK = 190
_WRITING = 205
_LOGO = (30, 110, 220)

# Digits, three pixels wide and five high, a row in three bits.
_GLYPHS = (31599, 11415, 29671, 29647, 23497, 31183, 31215, 29257, 31727, 31695)


def draw_still_overlays(frames_THWC: NDArray[np.uint8], screen: Screen) -> None:
    """Draw what is the same in every frame; the fan is drawn over it."""
    rows, columns = screen.rows, screen.columns
    if screen.has_marks:
        side = round(screen.apex_column * columns + screen.depth_mm / screen.column_mm * 0.75)
        left = min(max(side, 4), columns - 8)
        for mark in range(int(screen.depth_mm / _MARK_MM) + 1):
            row = round(screen.apex_row * rows + mark * _MARK_MM / screen.row_mm)
            length = 7 if mark % 5 == 0 else 4
            frames_THWC[:, row : row + 1, left : left + length] = _MARK
    if screen.has_text:
        size = max(rows // 240, 1)
        values = (screen.depth_mm, 50.0 + screen.gain_db, -screen.noise_db, screen.half_angle_degrees)
        for line, value in enumerate(values):
            _write(frames_THWC, f"{value:.0f}", row=(8 + 8 * line) * size, column=4 * size, size=size)
    if screen.has_logo:
        size = max(rows // 24, 4)
        frames_THWC[:, 2 : 2 + size, columns - 3 * size : columns - size] = _LOGO
        levels = np.linspace(255, 0, rows // 3).astype(np.uint8)
        frames_THWC[:, rows // 2 : rows // 2 + len(levels), columns - size // 2 : columns - 2] = levels[:, None, None]


def draw_ecg(frame_HWC: NDArray[np.uint8], heart: Heart, time_ms: float, *, progress: float) -> None:
    """Draw the trace along the bottom, with the QRS complex at end-diastole and a bar where the frame is in it."""
    rows, columns, _ = frame_HWC.shape
    base, height = int(_ECG_ROW * rows), _ECG_HEIGHT * rows
    places = np.arange(columns)
    since = (time_ms - (progress - places / columns) * _SWEEP_MS) % heart.beat_ms
    qrs = np.exp(-(((since - 30.0) / 16.0) ** 2))
    wave_t = 0.25 * np.exp(-(((since - heart.systole_ms) / 45.0) ** 2))
    wave_p = 0.15 * np.exp(-(((since - heart.beat_ms + 120.0) / 30.0) ** 2))
    tops = base - ((qrs + wave_t + wave_p) * height).astype(np.int64)
    for place, top, before in zip(places, tops, np.roll(tops, 1), strict=True):
        frame_HWC[min(top, before) : max(top, before) + 1, place] = _TRACE
    bar = min(int(progress * columns), columns - 1)
    frame_HWC[base - int(height) : base + 1, bar] = _TRACE


def _write(frames_THWC: NDArray[np.uint8], text: str, *, row: int, column: int, size: int) -> None:
    for place, digit in enumerate(text):
        if not digit.isdigit():
            continue
        glyph = np.array([(_GLYPHS[int(digit)] >> bit) & 1 for bit in range(14, -1, -1)], dtype=np.uint8).reshape(5, 3)
        block = np.repeat(np.repeat(glyph, size, axis=0), size, axis=1) * np.uint8(_WRITING)
        left = column + place * 4 * size
        frames_THWC[:, row : row + 5 * size, left : left + 3 * size] = block[..., None]
