"""What costs the same for one as for many, done for many threads at once: an fsync of a folder, a commit.

Whoever comes while it is being done waits for the next time, which is for all who wait by then. Nobody waits for
company: a thread that comes alone is served at once.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Wish(Generic[T]):
    job: T
    is_done: bool = False
    error: Exception | None = None


class Together(Generic[T]):
    """Does the jobs of the threads of this process, several at a time and one time after the other."""

    def __init__(self, do: Callable[[Sequence[T]], object], *, repeatable: bool) -> None:
        """`do` does all of some jobs, or raises; `repeatable`: then it has done none, and is asked for each alone."""
        self._do = do
        self._repeatable = repeatable
        self._waiting: list[_Wish[T]] = []
        self._guard = threading.Lock()
        self._turn = threading.Lock()

    def __call__(self, job: T, patience: timedelta | None = None) -> None:
        """Return when the job is done; raises what it fails with.

        Raises:
            TimeoutError: its turn did not come in time; it was not done.
        """
        wish = _Wish(job)
        with self._guard:
            self._waiting.append(wish)
        if not self._turn.acquire(timeout=-1 if patience is None else patience.total_seconds()):
            with self._guard:
                if wish in self._waiting:
                    self._waiting.remove(wish)
                    raise TimeoutError
            self._turn.acquire()  # it is being done
        try:
            if not wish.is_done:
                with self._guard:
                    wishes, self._waiting = self._waiting, []
                self._grant(wishes)
        finally:
            self._turn.release()
        if wish.error is not None:
            raise wish.error

    def _grant(self, wishes: Sequence[_Wish[T]]) -> None:
        try:
            self._do([wish.job for wish in wishes])
        except Exception as error:  # noqa: BLE001  # raised in the thread whose it is
            if self._repeatable and len(wishes) > 1:
                for wish in wishes:
                    self._grant([wish])
                return
            for wish in wishes:
                wish.error = error
        for wish in wishes:
            wish.is_done = True
