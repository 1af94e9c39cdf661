"""Writes of many threads: on SQLite those of one process share a transaction, and with it the fsync of its commit.

SQLite has one writer, its waiters poll, and luck decides who is next: among 64 associations one would miss its 5
seconds. On PostgreSQL each has a transaction of its own, and the server groups their commits.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from dicom_node.errors import LedgerUnavailable
from dicom_node.ledger.engine import LOCK_SECONDS, Sessions
from dicom_node.together import Together

T = TypeVar("T")


class Transaction:
    """What one piece of work writes with: the connection, or a session on it, which costs more than a statement."""

    def __init__(self, sessions: Sessions, connection: Connection) -> None:
        self._sessions = sessions
        self._session: Session | None = None
        self.connection = connection

    @property
    def session(self) -> Session:
        """Return a session of this transaction, made when it is first asked for."""
        if self._session is None:
            self._session = self._sessions(bind=self.connection)
        return self._session

    def flush(self) -> None:
        """Write what the session has not yet written."""
        if self._session is not None:
            self._session.flush()

    def close(self) -> None:
        """Let go of the session: it never outlives its work, and the next one reads the rows as they are."""
        if self._session is not None:
            self._session.close()


class Writer:
    """Runs write transactions."""

    def __init__(self, sessions: Sessions) -> None:
        engine = sessions.kw["bind"]
        assert isinstance(engine, Engine)
        self._sessions = sessions
        self._engine = engine
        self._together = Together(self._commit, repeatable=True) if engine.dialect.name == "sqlite" else None

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Return what `work` returns, once it is committed; it may be called a second time if others fail.

        Raises:
            LedgerUnavailable: its turn did not come in time.
        """
        done: list[T] = []

        def job(connection: Connection) -> None:
            transaction = Transaction(self._sessions, connection)
            try:
                done.append(work(transaction))
                transaction.flush()
            finally:
                transaction.close()

        if self._together is None:
            self._commit([job])
        else:
            try:
                self._together(job, timedelta(seconds=LOCK_SECONDS))
            except TimeoutError as error:
                raise LedgerUnavailable(f"the ledger is locked for {LOCK_SECONDS} s") from error
        return done[-1]

    def _commit(self, jobs: Sequence[Callable[[Connection], None]]) -> None:
        with self._engine.begin() as connection:
            for job in jobs:
                job(connection)
