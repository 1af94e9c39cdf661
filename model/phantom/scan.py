"""A cine loop of a phantom heart as a scanner shows it.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model.phantom.anatomy import Plane, Slice, cut
from model.phantom.heart import Heart
from model.tasks import View

Frames = NDArray[np.uint8]

_HALF_ANGLE = np.deg2rad(40.0)
_SPECKLE = 512  # side of the speckle texture, cells
_CELL_MM = 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """How the scanner draws."""

    rows: int = 240
    """Height, pixels."""
    columns: int = 320
    """Width, pixels."""
    depth_mm: float = 160.0
    """Depth at the bottom of the fan."""
    gain: float = 1.0
    """Brightness of the picture."""
    has_ecg: bool = True
    """A green trace runs along the bottom."""
    has_marks: bool = True
    """Depth marks at the right side."""
    has_colour: bool = False
    """Colour Doppler lies over the blood."""


def random_screen(rng: Generator, *, depth_mm: float = 160.0) -> Screen:
    """Return a screen with its own gain and overlays."""
    return Screen(
        depth_mm=depth_mm,
        gain=float(rng.uniform(0.75, 1.25)),
        has_ecg=bool(rng.integers(0, 2)),
        has_marks=bool(rng.integers(0, 2)),
    )


def render(
    heart: Heart, view: View, *, num_frames: int, frame_time_ms: float, rng: Generator, screen: Screen | None = None
) -> Frames:
    """Return a loop of the heart: RGB uint8 (T, H, W, 3)."""
    screen = screen or Screen()
    texture = _speckle(rng)
    x, z = _plane(screen)
    fan = (np.abs(np.arctan2(x, z)) < _HALF_ANGLE) & (np.hypot(x, z) < screen.depth_mm) & (z > 0)
    shift_x, shift_z = rng.normal(0.0, 2.5, size=2)
    frames = np.zeros((num_frames, screen.rows, screen.columns, 3), dtype=np.uint8)
    for index in range(num_frames):
        time_ms = index * frame_time_ms
        moment = cut(view, heart, time_ms, x - shift_x, z - shift_z)
        grey = _insonify(moment, texture, z, screen, rng)
        frames[index] = np.where(fan, grey, 0)[..., None]
        if screen.has_colour:
            _paint_flow(frames[index], moment, fan)
        _paint_overlays(frames[index], screen, heart, time_ms, index / max(num_frames - 1, 1))
    return frames


def _plane(screen: Screen) -> tuple[Plane, Plane]:
    """Return x and z of every pixel, mm; the fan fills the upper nine tenths of the screen."""
    scale = screen.depth_mm / (0.9 * screen.rows)
    columns = (np.arange(screen.columns) - screen.columns / 2.0 + 0.5) * scale
    rows = (np.arange(screen.rows) - 0.02 * screen.rows) * scale
    x, z = np.meshgrid(columns, rows)
    return x, z


def _speckle(rng: Generator) -> NDArray[np.float64]:
    """Return a fully developed speckle texture: Rayleigh amplitudes, a little smooth."""
    field = rng.normal(size=(2, _SPECKLE, _SPECKLE))
    smooth = field + np.roll(field, 1, axis=1) + np.roll(field, 1, axis=2) + np.roll(field, (1, 1), axis=(1, 2))
    amplitude: NDArray[np.float64] = np.hypot(smooth[0], smooth[1])
    return np.asarray(amplitude / amplitude.mean())


def _insonify(
    moment: Slice, texture: NDArray[np.float64], z: Plane, screen: Screen, rng: Generator
) -> NDArray[np.uint8]:
    """Return grey levels: brightness times speckle, log-compressed, weaker with depth, with electronic noise."""
    column = np.floor(moment.u / _CELL_MM).astype(np.int64) % _SPECKLE
    row = np.floor(moment.v / _CELL_MM).astype(np.int64) % _SPECKLE
    echo = moment.brightness * texture[row, column] * np.exp(-z / 400.0) * screen.gain
    compressed = np.log1p(12.0 * echo) / np.log1p(12.0 * 2.2)
    noisy = 255.0 * compressed + rng.normal(0.0, 3.0, size=z.shape)
    return np.asarray(np.clip(noisy, 0, 255), dtype=np.uint8)


def _paint_flow(frame: Frames, moment: Slice, fan: NDArray[np.bool_]) -> None:
    towards, away = fan & (moment.flow > 0), fan & (moment.flow < 0)
    frame[towards] = (210, 60, 20)
    frame[away] = (20, 70, 215)


def _paint_overlays(frame: Frames, screen: Screen, heart: Heart, time_ms: float, progress: float) -> None:
    rows, columns = screen.rows, screen.columns
    if screen.has_ecg:
        base = int(0.965 * rows)
        times = time_ms - (progress - np.linspace(0.0, 1.0, columns)) * 2000.0
        beat = (times * heart.heart_rate / 60_000.0) % 1.0
        spike = np.where(beat < 0.04, 0.03 * rows, 0.0).astype(np.int64)
        for column in range(0, columns, 2):
            frame[base - int(spike[column]) : base + 1, column] = (40, 220, 60)
    if screen.has_marks:
        for mark in range(1, 9):
            row = int(0.02 * rows + mark * 0.1 * rows)
            frame[row, -8:-3] = 200
