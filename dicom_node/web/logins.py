"""Who has logged in with a browser: random names in memory, gone with the process."""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta

LASTS = timedelta(hours=12)
"""A login ends after this, used or not."""

_MAX_LOGINS = 1000  # the oldest end first


class Logins:
    """The logins of this process. Only digests of their names are kept."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._key = secrets.token_bytes(32)
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def begin(self) -> str:
        """Return the name of a new login, for the browser's cookie."""
        name = secrets.token_urlsafe(32)
        self._ends[_digest(name)] = self._now() + LASTS.total_seconds()
        if len(self._ends) > _MAX_LOGINS:
            self._ends.popitem(last=False)
        return name

    def is_valid(self, name: str) -> bool:
        """Return whether the login has begun and not ended."""
        ends = self._ends.get(_digest(name))
        return ends is not None and self._now() < ends

    def end(self, name: str) -> None:
        """End a login; one that is none is as good."""
        self._ends.pop(_digest(name), None)

    def form_token(self, name: str) -> str:
        """Return what the forms of a login must carry: another site cannot read it. An empty name: the open page."""
        return hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
