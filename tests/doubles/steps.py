"""Every step that this process takes towards disk or database, in the order in which it takes them.

A step is a call that changes files, a statement, or a commit. A test may end the process at any of them, or let
somebody else in between, without knowing them by name.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

Reached = Callable[[str], None]
"""Told the name of a step, before it is taken, in the thread that takes it."""

STATEMENTS = frozenset({"insert", "update", "delete"})
"""Steps inside a transaction."""

_FILE_CALLS = ("write", "fsync", "link", "rename", "unlink", "mkdir", "rmdir")
_READS = ("SELECT", "BEGIN", "PRAGMA")


@contextmanager
def watched(reached: Reached, *more: str) -> Iterator[None]:
    """Tell `reached` of every step until the block ends; `more`: further calls of `os` that are steps."""

    def statement(_connection: object, _cursor: object, text: str, *_: object) -> None:
        if not text.lstrip().upper().startswith(_READS):
            reached(text.split()[0].lower())

    with ExitStack() as stack:
        for name in (*_FILE_CALLS, *more):
            stack.enter_context(patch.object(os, name, _told(getattr(os, name), name, reached)))
        commit = _told(DefaultDialect.do_commit, "commit", reached)
        stack.enter_context(patch.object(DefaultDialect, "do_commit", commit))
        event.listen(Engine, "before_cursor_execute", statement)
        stack.callback(event.remove, Engine, "before_cursor_execute", statement)
        yield


def _told(call: Callable[..., Any], name: str, reached: Reached) -> Callable[..., Any]:
    @wraps(call)
    def told(*arguments: Any, **options: Any) -> Any:
        reached(name)
        return call(*arguments, **options)

    return told
