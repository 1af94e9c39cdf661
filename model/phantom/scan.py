"""A cine loop of a phantom heart as a scanner shows it, and its true outlines.

Legend: T frames, H, W pixels, C = 3 RGB, N pixels inside the fan.
"""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model.phantom.anatomy import Moment, Pose, View2D
from model.phantom.apical import Apical
from model.phantom.elsewhere import Elsewhere
from model.phantom.heart import Heart
from model.phantom.overlays import draw_ecg, draw_still_overlays
from model.phantom.parasternal import LongAxis, short_axis_view
from model.phantom.screen import Fan, Plane, Screen, fan_of, whole_of
from model.phantom.speckle import CELL_MM, CELL_RADIANS, SIDE, look_up
from model.tasks import View

Frames = NDArray[np.uint8]

_RANGE_DB = 60.0
"""From black to white."""
_LEAST_FLOW = 0.1
_TOWARDS, _AWAY = np.array([235.0, 90.0, 20.0]), np.array([20.0, 95.0, 240.0])


def render(
    heart: Heart,
    view: View,
    *,
    num_frames: int,
    frame_time_ms: float,
    rng: Generator,
    screen: Screen | None = None,
    pose: Pose | None = None,
    begin_ms: float = 0.0,
) -> Frames:
    """Return a loop of the heart: RGB uint8 (T, H, W, 3).

    Args:
        heart: whose loop it is.
        view: what it shows.
        num_frames: T.
        frame_time_ms: between two frames.
        rng: what speckle and noise are drawn from; two loops of one heart differ by it.
        screen: how the scanner draws.
        pose: how the heart lies.
        begin_ms: where in the beat the loop begins; 0 is end-diastole.
    """
    screen, pose = screen or Screen(), pose or Pose()
    fan = fan_of(screen)
    shown = _prepare(heart, view, fan, pose)
    scanner = _Scanner(screen, fan, rng)
    frames = np.zeros((num_frames, screen.rows, screen.columns, 3), dtype=np.uint8)
    draw_still_overlays(frames, screen)
    for index in range(num_frames):
        time_ms = begin_ms + index * frame_time_ms
        moment = shown.at(time_ms)
        pixels_NC = frames[index].reshape(-1, 3)
        pixels_NC[fan.inside] = scanner.grey(moment)[:, None]
        if screen.has_colour:
            _paint_flow(pixels_NC, moment, fan, rng)
        if screen.has_ecg:
            draw_ecg(frames[index], heart, time_ms, progress=index / max(num_frames - 1, 1))
    return frames


def outlines(heart: Heart, view: View, time_ms: float, *, screen: Screen, pose: Pose) -> NDArray[np.uint8]:
    """Return the true outlines of an apical view at one time: (H, W) of 1 cavity, 2 myocardium, 3 left atrium.

    They go on beyond the sides of the fan, as experts draw them.
    """
    return _apical(heart, view, whole_of(screen), pose).labels(time_ms).reshape(screen.rows, screen.columns)


def chords(
    heart: Heart, view: View, time_ms: float, *, screen: Screen, pose: Pose, number: int = 20
) -> list[tuple[float, float, float, float]]:
    """Return the true axis of the cavity and chords across it, as (x1, y1, x2, y2) in pixels, the axis first."""
    shown = _apical(heart, view, fan_of(screen), pose)
    return [
        (*_pixel(screen, *shown.place(*start)), *_pixel(screen, *shown.place(*end)))
        for start, end in shown.chords(time_ms, number)
    ]


def _pixel(screen: Screen, x_mm: float, z_mm: float) -> tuple[float, float]:
    column = x_mm / screen.column_mm + screen.apex_column * screen.columns - 0.5
    return column, z_mm / screen.row_mm + screen.apex_row * screen.rows - 0.5


def _prepare(heart: Heart, view: View, fan: Fan, pose: Pose) -> View2D:
    if view is View.PLAX:
        return LongAxis(heart, fan.x, fan.z, pose)
    if view is View.PSAX:
        return short_axis_view(heart, fan.x, fan.z, pose)
    if view is View.OTHER:
        return Elsewhere(heart, fan.x, fan.z, pose)
    return _apical(heart, view, fan, pose)


def _apical(heart: Heart, view: View, fan: Fan, pose: Pose) -> Apical:
    assert view in (View.A4C, View.A2C), "outlines are known of the apical views"
    return Apical(heart, fan.x, fan.z, pose, is_two_chamber=view is View.A2C)


class _Scanner:
    """Echoes to grey levels: speckle that moves with the tissue, attenuation, shadows, noise, log compression."""

    def __init__(self, screen: Screen, fan: Fan, rng: Generator) -> None:
        self._fan, self._rng = fan, rng
        self._along = np.float32(1.0 / (CELL_MM * screen.speckle))
        self._across = np.float32(1.0 / (CELL_RADIANS * screen.speckle))
        self._start = rng.integers(SIDE, size=2).astype(np.float32)
        depth = fan.range_mm / np.float32(screen.depth_mm)
        self._gain_db: Plane = np.float32(screen.gain_db) - np.float32(screen.attenuation_db) * depth
        for middle, half_width in screen.shadows:
            away = (fan.angle / np.float32(math.radians(screen.half_angle_degrees)) - np.float32(middle)) / half_width
            self._gain_db = self._gain_db - np.where(np.abs(away) < 1.0, np.float32(18.0) * (1.0 - away**2), 0.0)
        # Gain that makes up for depth lifts the noise with it: the bottom is the noisiest.
        self._noise_db: Plane = np.float32(screen.noise_db + screen.gain_db) + np.float32(10.0) * (depth - 1.0)
        self._rows, self._columns = fan.range_mm * self._along, fan.angle * self._across

    def grey(self, moment: Moment) -> NDArray[np.uint8]:
        """Return the grey levels (N,) of one instant."""
        x, z = self._fan.x + moment.toward_x, self._fan.z + moment.toward_z
        rows = np.sqrt(x * x + z * z) * self._along + self._start[0]
        columns = np.arctan2(x, z) * self._across + self._start[1]
        level = look_up(rows, columns)
        level += moment.echo_db
        level += self._gain_db
        shift = self._rng.integers(SIDE, size=2).astype(np.float32)
        noise = look_up(self._rows + shift[0], self._columns + shift[1])
        noise += self._noise_db
        np.maximum(level, noise, out=level)
        level += np.float32(_RANGE_DB)
        level *= np.float32(255.0 / _RANGE_DB)
        return np.asarray(np.clip(level, 0.0, 255.0), dtype=np.uint8)


def _paint_flow(pixels_NC: Frames, moment: Moment, fan: Fan, rng: Generator) -> None:
    """Lay colour Doppler over the blood: red towards the probe, blue away from it (BART), the brighter the faster."""
    for where, colour in ((moment.flow > _LEAST_FLOW, _TOWARDS), (moment.flow < -_LEAST_FLOW, _AWAY)):
        speed = np.minimum(0.45 + 0.55 * np.abs(moment.flow[where]), 1.0) * rng.uniform(0.8, 1.0, int(where.sum()))
        pixels_NC[fan.inside[where]] = (speed[:, None] * colour).astype(np.uint8)
