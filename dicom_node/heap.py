"""The memory of an acceptor: what an image needed is kept for the next one.

glibc gives large pieces back to the system when they are freed, and gives each thread an arena of its own: every loop
then came into memory that the system had to map and clear page by page.
"""

import ctypes
import sys

# mallopt(3): M_MMAP_THRESHOLD, what is smaller lies in the heap (its largest value); M_TRIM_THRESHOLD, so much of it
# stays when it is free; M_ARENA_MAX, one heap for all threads.
_KEEPING = {-3: 32 << 20, -1: 128 << 20, -8: 1}


def keep_freed_memory() -> None:
    """Let this process keep up to 128 MiB that it frees; without glibc nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in _KEEPING.items():
            mallopt(parameter, value)
