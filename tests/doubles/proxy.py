"""A line between two ends of a TCP connection that can fall silent, or become slow, without a word to either."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_CHUNK = 65536


@dataclass(kw_only=True)
class Line:
    """What a running line does with what it is given; what it takes while it is silent goes nowhere."""

    port: int = 0
    answers_left: int | None = None
    """Pieces that still come through from the far end; then the line is silent for good. None: all of them."""
    pause: float = 0.0
    """Seconds before each byte from the far end."""
    is_cut: threading.Event = field(default_factory=threading.Event)
    _sockets: list[socket.socket] = field(default_factory=list)
    _silent: set[socket.socket] = field(default_factory=set)

    def fall_silent(self) -> None:
        """Bring no answer any more on the connections that are open; those to come are as good as new."""
        self._silent |= {*self._sockets}

    def join(self, near: socket.socket, target: tuple[str, int] | str) -> None:
        """Carry a connection on to its target."""
        family = socket.AF_UNIX if isinstance(target, str) else socket.AF_INET
        far = socket.socket(family)
        far.connect(target)
        self._sockets += [near, far]
        for body in (lambda: self._there(near, far), lambda: self._back(far, near)):
            threading.Thread(target=body, daemon=True).start()

    def _there(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(_CHUNK):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(_CHUNK):
                if far in self._silent:
                    continue
                if self.answers_left is not None:
                    if self.answers_left == 0:
                        continue  # taken, and never heard of again
                    self.answers_left -= 1
                for byte in [bytes((one,)) for one in data] if self.pause else [data]:
                    self.is_cut.wait(self.pause)
                    near.sendall(byte)
            if self.answers_left != 0:
                near.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End every connection."""
        self.is_cut.set()
        for one in self._sockets:
            one.close()


@contextmanager
def running_line(
    target: tuple[str, int] | str, *, answers_left: int | None = None, pause: float = 0.0
) -> Iterator[Line]:
    """Run a line to a host and port, or to a socket's path, until the block ends."""
    line = Line(answers_left=answers_left, pause=pause)
    with socket.create_server(("127.0.0.1", 0)) as door:
        line.port = door.getsockname()[1]

        def accept() -> None:
            with suppress(OSError):
                while True:
                    line.join(door.accept()[0], target)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield line
        finally:
            door.shutdown(socket.SHUT_RDWR)
            line.close()
