"""Frames of a video file (AVI, MPEG-2, MPEG-4, HEVC): the only place that knows decord, and PyAV, which says how large
they are before one is decoded: 32 KB of H.264 can make frames of 16384 x 8704, for which decord takes 2 GB.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# decord loads every CUDA library there is for the whole process, NVBLAS too: torch's CPU matrix products must be bound
# before, or they jump to address 0 where no GPU is.
import torch  # noqa: F401

# isort: split
import av
import decord
import numpy as np

from model.clip.source import MAX_PIXELS, Frames, LoopHeader
from model.errors import UnreadableLoop


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLoop:
    """A video file that was opened; it knows its size and its true number of frames."""

    path: Path
    header: LoopHeader

    def read(self, indices: Sequence[int]) -> Frames:
        """Return the frames of these indices, RGB uint8 (T, H, W, 3).

        Raises:
            UnreadableLoop: the stream is damaged, or shorter than the indices ask for.
        """
        video = _open(self.path)
        if max(indices) >= len(video):
            raise UnreadableLoop(f"frame {max(indices) + 1} was asked for, the video stream holds {len(video)}")
        wanted = sorted(set(indices))
        try:
            frames = np.asarray(video.get_batch(wanted).asnumpy(), dtype=np.uint8)
        except (decord.DECORDError, RuntimeError) as error:
            raise UnreadableLoop("the video stream cannot be decoded") from error
        return frames[[wanted.index(index) for index in indices]]


def open_video(path: Path) -> VideoLoop:
    """Return the video file at `path`; its header says nothing that a container does not know.

    Raises:
        UnreadableLoop: it is no video, or its pictures are absurdly large.
    """
    _check_size(path)
    video = _open(path)
    try:
        rows, columns, _ = video[0].shape
        frames_a_second = float(video.get_avg_fps())
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise UnreadableLoop("the video stream holds no frame") from error
    header = LoopHeader(
        sop_class_uid="",
        sop_instance_uid="",
        transfer_syntax_uid="",
        modality="",
        rows=rows,
        columns=columns,
        num_frames=len(video),
        samples_per_pixel=3,
        photometric="RGB",
        bits_allocated=8,
        frame_time_ms=1000.0 / frames_a_second if frames_a_second > 0 else None,
        heart_rate=None,
        modes=0,
        is_colour_flagged=False,
        regions=(),
        view_code=None,
        series_number=None,
        instance_number=None,
    )
    return VideoLoop(path=path, header=header)


def _check_size(path: Path) -> None:
    """Refuse a stream whose own header, or its container's, claims frames that are too large, or none."""
    try:
        # With the limit it decodes nothing larger while it looks.
        with av.open(str(path), options={"max_pixels": str(MAX_PIXELS)}) as container:
            streams = [stream for stream in container.streams if isinstance(stream, av.VideoStream)]
            sizes = [(stream.height, stream.width) for stream in streams]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableLoop("the video stream cannot be opened") from error
    for rows, columns in sizes or [(0, 0)]:
        if not 0 < rows * columns <= MAX_PIXELS:
            size = f"{rows} x {columns} pixels" if rows * columns else "no size, or too large a one"
            raise UnreadableLoop(f"the video stream claims {size}")


def _open(path: Path) -> decord.VideoReader:
    try:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise UnreadableLoop("the video stream cannot be opened") from error
