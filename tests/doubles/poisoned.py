"""The worker's Celery application, with a reader that some loops are poison for: told by their number of frames."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from celery.signals import worker_process_init
from pydicom import dcmread

import worker.loops
from model.clip.loop import Clips, Seen, load_clips
from model.clip.spec import ClipSpec
from worker.app import app

__all__ = ["app"]

HANGS = 31
"""The reader never returns, and holds the interpreter's lock."""
KILLS = 32
"""The reader takes the process down, as a crash of a C library does, or the kernel when the memory is full."""
FAILS = 33
"""The reader raises what nobody foresaw."""


def load_or_suffer(path: Path, spec: ClipSpec, show: Callable[[Seen], None]) -> Clips:
    """Read a loop; what is poison acts."""
    match dcmread(path, stop_before_pixels=True).get("NumberOfFrames"):
        case 31:
            re.match(r"(a+)+$", "a" * 64 + "b")
        case 32:
            os.kill(os.getpid(), signal.SIGKILL)
        case 33:
            raise MemoryError
    return load_clips(path, spec, show)


@worker_process_init.connect
def _poison(**_: object) -> None:
    """Only in a worker's process: tests import this module too, and read loops themselves."""
    worker.loops.load_clips = load_or_suffer  # type: ignore[attr-defined]
