"""Around the whole application: headers on every answer, bounded bodies and work, and no mistake shown to anybody."""

import asyncio
from http import HTTPStatus

import structlog
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.web.headers import security_headers

log = structlog.get_logger(__name__)

MAX_BODY = 64 * 1024
"""Bytes of a request's body."""

SEND_SECONDS = 10.0
"""A client has so long to take a piece of its answer."""

MAX_RUNNING = 64
"""Requests that are answered at one time; more are told to come again."""


class _NotRead(Exception):
    """The client takes nothing of its answer."""


class Envelope:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                headers = MutableHeaders(scope=message)
                for name, value in security_headers(scope["scheme"]).items():
                    headers[name] = value
            try:
                async with asyncio.timeout(SEND_SECONDS):  # who does not read what he asked for holds no place
                    await send(message)
            except TimeoutError as error:
                raise _NotRead from error

        try:
            await self._answer(scope, receive, send_with_headers)
        except _NotRead:
            log.warning("answer_not_read", path=scope["path"][:200])
        except Exception:  # the loop of a service: uvicorn would print the traceback outside the log
            log.exception("request_failed", method=scope["method"], path=scope["path"][:200])
            if not is_started:
                await _short(HTTPStatus.INTERNAL_SERVER_ERROR)(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:  # gone, or cut off since it took too long
            return
        if len(body) > MAX_BODY:
            await _short(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Connection="close")(scope, receive, send)
            return
        if self._running >= MAX_RUNNING:
            await _short(HTTPStatus.SERVICE_UNAVAILABLE, **{"Retry-After": "1"})(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, replay(body, receive), send)
        finally:
            self._running -= 1


async def read_body(receive: Receive) -> bytes | None:
    """Return the body, or more than MAX_BODY bytes of one that is longer; None: the client has gone."""
    body = bytearray()
    while len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read once more, and then what still comes."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _short(status: HTTPStatus, **headers: str) -> JSONResponse:
    return JSONResponse({"detail": status.phrase}, status_code=status, headers=headers)
