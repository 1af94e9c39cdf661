"""The connections of the page: who does not ask in time is cut off, and many of them keep nobody out.

uvicorn waits for the first request of a connection for ever, and counts idle connections against the busy ones. The
process of the page is that of the clock: sockets that it runs out of would be missing for the ledger too.
"""

import asyncio
from dataclasses import dataclass
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dicom_node.web.headers import security_headers


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much patience the page has."""

    request_seconds: float = 10.0
    """For a whole request, from the beginning of the connection or the end of the last answer."""
    max_connections: int = 256
    """At one time; for one more, the connection that has waited longest without a whole request is cut off."""


def bounded(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol within these limits."""

    class _Bounded(_Connection):
        limits_of_server = limits

    return _Bounded


class _Connection(H11Protocol):
    limits_of_server: Limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_for_request()
        if len(self.connections) > self.limits_of_server.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._deadline.cancel()
        self._wait_for_request()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, with our headers; uvicorn's own answer has none."""
        headers = {**security_headers(self.scheme or "http"), "Content-Length": "0", "Connection": "close"}
        try:
            answer = self.conn.send(h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request"))
            self.transport.write((answer or b"") + (self.conn.send(h11.EndOfMessage()) or b""))
        except h11.LocalProtocolError:  # in the middle of another answer
            self.transport.abort()
        else:
            self.transport.close()

    def _wait_for_request(self) -> None:
        self._since = self.loop.time()
        self._deadline = self.loop.call_later(self.limits_of_server.request_seconds, self._cut_off_if_waiting)

    def _cut_off_if_waiting(self) -> None:
        if self._is_waiting:
            self.transport.abort()

    @property
    def _is_waiting(self) -> bool:
        """Return whether no whole request has come since the last answer."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()

    def _make_room(self) -> None:
        others = cast("set[_Connection]", self.connections - {self})
        waiting = [one for one in others if one._is_waiting]
        (min(waiting, key=lambda one: one._since) if waiting else self).transport.abort()
