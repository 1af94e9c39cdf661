"""Child processes: kept alive while the node runs, and never outliving it."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Protocol

import structlog

from dicom_node.errors import BrokerError

log = structlog.get_logger(__name__)

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
_STEADY = 30.0  # seconds after which a child counts as healthy again
_WAKE_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # prctl(2), Linux


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel end this process when its parent is gone, however that died; Linux only, elsewhere nothing.

    Args:
        parent: its process id, if the caller knows it from before; a process of multiprocessing knows it itself.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    known = multiprocessing.parent_process()
    parent = known.pid if parent is None and known is not None else parent
    if parent is not None and os.getppid() != parent:  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_this_process() -> Callable[[], None]:
    """Return what a child of this process calls first, to die with it."""
    return partial(die_with_parent, os.getpid())


class EndSignal:
    """What asks a process to end: a flag that a signal handler may raise at any moment.

    It is no threading.Event: its lock can be held by the very thread that the handler interrupts. And the main thread
    must come up from its wait by itself: a signal that the kernel hands to another thread wakes nobody.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        """Take these signals over; called in the main thread."""
        self._is_raised = False
        for number in numbers:
            signal.signal(number, self._raise)

    def is_raised(self) -> bool:
        """Return whether one of the signals has come."""
        return self._is_raised

    def wait(self) -> None:
        """Return once one of the signals has come."""
        while not self._is_raised:
            time.sleep(_WAKE_SECONDS)

    def _raise(self, *_: object) -> None:
        self._is_raised = True


class Process(Protocol):
    """A started child."""

    @property
    def pid(self) -> int | None:
        """Return its process id."""
        ...

    def is_alive(self) -> bool:
        """Return whether it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, at most so long."""
        ...


class PythonProcess:
    """A function of this package in an interpreter of its own (spawned: nothing is inherited but the arguments)."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        process.start()

    @property
    def pid(self) -> int | None:
        """Return its process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self._process.is_alive()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        self._process.join(seconds)


class CommandProcess:
    """A command of its own, such as Celery, in a process group of its own: Ctrl-C is for the supervisor."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(command, env=environment, preexec_fn=die_with_this_process(), process_group=0)

    @property
    def pid(self) -> int | None:
        """Return its process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM: Celery finishes its task first."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL to it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


@dataclass(kw_only=True)
class Child:
    """A child that is kept alive."""

    name: str
    start: Callable[[], Process]
    stop_seconds: float
    """How long it may take to end when asked to."""
    process: Process | None = None
    started_at: float = 0.0
    pause: float = _FIRST_PAUSE
    not_before: float = 0.0

    def tend(self, now: float) -> None:
        """Start the child if it is due; note its death."""
        if self.process is not None and self.process.is_alive():
            return
        if self.process is not None:
            self.pause = _FIRST_PAUSE if now - self.started_at > _STEADY else min(self.pause * 2, _LONGEST_PAUSE)
            self.not_before = now + self.pause
            self.process = None
            log.error("child_died", child=self.name, again_in=self.pause)
        if now >= self.not_before:
            self._start(now)

    def _start(self, now: float) -> None:
        try:
            self.process = self.start()
        except (OSError, BrokerError) as error:
            self.pause = min(self.pause * 2, _LONGEST_PAUSE)
            self.not_before = now + self.pause
            log.error("child_not_started", child=self.name, reason=str(error), again_in=self.pause)
        else:
            self.started_at = now

    def ask_to_end(self) -> None:
        """Send SIGTERM if it runs."""
        if self.process is not None and self.process.is_alive():
            self.process.terminate()

    def end(self) -> None:
        """Wait for the child that was asked to end, then end it."""
        if self.process is None:
            return
        self.process.wait(self.stop_seconds)
        if self.process.is_alive():
            log.warning("child_killed", child=self.name)
            self.process.kill()
            self.process.wait(5)
