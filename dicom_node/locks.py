"""Locks on single bytes of a file, which the kernel gives back when a process dies, however it died."""

import fcntl
import os
import struct

_FLOCK = "hhqqi"  # struct flock of fcntl(2) on 64-bit Linux: type, whence, start, length, process


def take(file: int, byte: int) -> bool:
    """Lock a byte for this process; return whether nobody else has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):  # which of the two is the system's choice
        return False
    return True


def give_back(file: int, byte: int) -> None:
    """Unlock a byte."""
    fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)


def is_taken(file: int, byte: int) -> bool:
    """Return whether another process has locked a byte; nothing is changed by looking."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)
