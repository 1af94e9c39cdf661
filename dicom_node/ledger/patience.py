"""A connection to PostgreSQL that waits for an answer so long and no longer.

Time-outs of TCP notice a machine that vanished, and `lock_timeout` a lock; neither notices a server that took the
question and hangs: its kernel goes on acknowledging.
"""

import time
from collections.abc import Generator
from typing import Any

import psycopg

ANSWER_SECONDS = 10.0
"""Twice as long as a lock is waited for; a scanner waits longer for the answer to a C-STORE."""


class BoundedConnection(psycopg.Connection[Any]):
    """Closes itself when an answer does not come in time: nobody can know what became of the transaction."""

    answer_seconds: float | None = None
    """None: ANSWER_SECONDS."""

    def wait(self, gen: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        """Return what the generator of psycopg returns.

        Raises:
            psycopg.OperationalError: no answer in time; the connection is closed.
        """
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        deadline = time.monotonic() + (self.answer_seconds or ANSWER_SECONDS)
        try:
            wanted = next(gen)
            while True:
                is_ready = yield wanted  # psycopg comes back without, from time to time
                if not is_ready and time.monotonic() > deadline:
                    self.close()
                    raise psycopg.OperationalError("the server does not answer")
                wanted = gen.send(is_ready)
        except StopIteration as end:
            return end.value
