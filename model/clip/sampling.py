"""Which frames of a loop make its clips.

Legend: N frames of a loop, T frames of a clip.
"""

from model.clip.source import LoopHeader
from model.clip.spec import ClipSpec, frame_indices

NOMINAL_RATE = 60.0
"""Beats a minute that are assumed where the header has no heart rate: a clip of one second."""


def clips_of(header: LoopHeader, spec: ClipSpec) -> tuple[tuple[int, ...], ...]:
    """Return the frames of each clip of a loop, as `sample`."""
    return sample(header.num_frames, spec, frame_time_ms=header.frame_time_ms, heart_rate=header.heart_rate)


def sample(
    num_frames: int, spec: ClipSpec, *, frame_time_ms: float | None, heart_rate: float | None
) -> tuple[tuple[int, ...], ...]:
    """Return the frames of each clip, 0-based, ascending, repeated where there are too few.

    `uniform` makes one clip of the whole loop. `beat` makes one of each of its first whole beats, at most `spec.beats`;
    of a loop that is shorter than a beat, or whose frames have no time, one of all of it.

    Args:
        num_frames: N.
        spec: the recipe.
        frame_time_ms: between two frames; None: unknown.
        heart_rate: beats a minute; None: unknown.
    """
    if spec.sampling == "uniform" or frame_time_ms is None:
        return (frame_indices(num_frames, spec.num_frames),)
    beat = 60_000.0 / (heart_rate or NOMINAL_RATE) / frame_time_ms  # in frames
    length = min(max(round(beat), 1), num_frames)
    within_beat = frame_indices(length, spec.num_frames)
    starts = [start for number in range(spec.beats) if (start := round(number * beat)) + length <= num_frames]
    return tuple(tuple(start + index for index in within_beat) for start in starts)


def distinct(clips: tuple[tuple[int, ...], ...]) -> list[int]:
    """Return every frame that a clip is made of, once, ascending."""
    return sorted({index for clip in clips for index in clip})
