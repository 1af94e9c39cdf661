"""Frames of a video file (AVI, MPEG-2, MPEG-4, HEVC): the only place that knows decord.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

from collections.abc import Sequence
from pathlib import Path

import decord
import numpy as np

from model.clip.source import Frames
from model.errors import UnreadableLoop


def count_frames(path: Path) -> int:
    """Return how many frames the file really holds.

    Raises:
        UnreadableLoop: it is no video.
    """
    return len(_open(path))


def read_video(path: Path, indices: Sequence[int]) -> Frames:
    """Return the frames of these indices, RGB uint8 (T, H, W, 3).

    Raises:
        UnreadableLoop: it is no video, or shorter than the indices ask for.
    """
    video = _open(path)
    if max(indices) >= len(video):
        raise UnreadableLoop(f"frame {max(indices) + 1} was asked for, the video stream holds {len(video)}")
    try:
        return np.asarray(video.get_batch(list(indices)).asnumpy(), dtype=np.uint8)
    except (decord.DECORDError, RuntimeError) as error:
        raise UnreadableLoop("the video stream cannot be decoded") from error


def _open(path: Path) -> decord.VideoReader:
    try:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise UnreadableLoop("the video stream cannot be opened") from error
