"""Programs that the tests need as peers, and free ports for them."""

import os
import shutil
import socket
from typing import NoReturn

import pytest


def require_binary(name: str, *folders: str) -> str:
    """Return the path of a program; without it the test is skipped, in CI it fails."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", *folders)))
    if path is None:
        missing(f"{name} is not installed: run `make test` as root on Debian, or install it by hand")
    return path


def missing(message: str) -> NoReturn:
    """Skip the test for want of a peer; in CI, fail it."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
