"""What the C library does with memory that a training step frees: keep it.

glibc gives pieces of 32 MB and more back to the kernel the moment they are freed, and a batch of clips is larger. Every
step then asks for the same pages again, and the kernel clears each of them: 18 seconds in 60 steps of the recipe of the
ensemble that ships, and 2 with this (`benchmarks/training_memory.py` has the ratio). Tensors on a GPU have an allocator
of their own and are not concerned.
"""

import ctypes
import sys

# mallopt(3): M_MMAP_MAX 0, no piece lies outside the heap; M_TRIM_THRESHOLD -1, the heap never shrinks; M_TOP_PAD, it
# grows by so much at once.
_SETTINGS = ((-4, 0), (-1, -1), (-2, 64 * 2**20))


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it allocates next: it stays as large as it ever was.

    For a process that does the same step over and over. Without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in _SETTINGS:
            mallopt(parameter, value)
