"""Loops as Motion JPEG in AVI files, the form that EchoNet-Dynamic has and that the paper trains from.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags

from model.clip.source import Frames

_QUALITY = 3  # of 2 (best) to 31, as ffmpeg counts
_LAMBDA = 118  # ffmpeg's FF_QP2LAMBDA


def write_avi(path: Path, frames_THWC: Frames, frame_time_ms: float | None) -> None:
    """Write a loop; the same bytes every time.

    An odd last row or column is left out, since colour is kept at half size.

    Raises:
        OSError: the disk does not take it.
    """
    _, rows, columns, _ = frames_THWC.shape
    rows, columns = rows // 2 * 2, columns // 2 * 2
    rate = Fraction(1000.0 / (frame_time_ms or 33.333)).limit_denominator(1000)
    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mjpeg", rate=rate)
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuvj420p"
        stream.codec_context.flags |= Flags.bitexact | Flags.qscale
        stream.codec_context.global_quality = _QUALITY * _LAMBDA
        stream.codec_context.thread_count = 1
        for frame in frames_THWC:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:rows, :columns]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
