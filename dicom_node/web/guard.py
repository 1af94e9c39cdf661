"""Who may ask for what. In front of every route: what is not let through here does not reach one.

Without a token (on a loopback address alone) the page is open, to this machine and not to web sites that its browser
visits: the name that it is asked for must be this machine's (DNS rebinding), and a change must come from our own page.
With a token a script shows it in each request, and a browser shows the cookie of a login.
"""

import hashlib
import hmac
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from dicom_node.settings import Web
from dicom_node.web.answers import Pages, Problem, wants_page
from dicom_node.web.envelope import read_body, replay
from dicom_node.web.logins import LASTS, Logins
from dicom_node.web.throttle import Throttle

log = structlog.get_logger(__name__)

FORM_TOKEN = "form_token"
"""Name of the hidden field that every form but the login's carries."""

LOGIN = "/login"
_OPEN_TO_ALL = {"/healthz", LOGIN, "/style.css"}
_READS = {"GET", "HEAD", "OPTIONS"}
_FORM = "application/x-www-form-urlencoded"
_MAX_FIELDS = 16

OnLogin = Callable[[str, bool], None]
"""Told the address of each wrong token and of each login, and whether it was let in."""


class Kind(StrEnum):
    """How a caller showed who he is."""

    NOBODY = "nobody"
    """Not at all: there is a token, and he did not show it."""
    OPEN = "open"
    """There is no token."""
    BROWSER = "browser"
    """The cookie of a login."""
    SCRIPT = "script"
    """The token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks; in `request.state.caller`."""

    kind: Kind
    form_token: str = ""
    """What his forms must carry."""
    form: dict[str, str] = field(default_factory=dict)
    """The fields of the form that he sent."""

    @property
    def is_known(self) -> bool:
        """Return whether he may see what the node holds."""
        return self.kind is not Kind.NOBODY


def log_login(address: str, is_accepted: bool) -> None:
    """Write a login, or one that failed, to the log."""
    if is_accepted:
        log.info("web_login_accepted", address=address)
    else:
        log.warning("web_login_refused", address=address)


class Door:
    """Compares tokens, and keeps the logins of browsers."""

    def __init__(self, token: str, on_login: OnLogin = log_login) -> None:
        self._digest = _digest(token) if token else None
        self._throttle = Throttle()
        self._logins = Logins()
        self._on_login = on_login

    @property
    def is_open(self) -> bool:
        """Return whether there is no token."""
        return self._digest is None

    def check(self, address: str, token: str) -> None:
        """Return if the token is right.

        Raises:
            Problem: it is not, or the address has tried too often; then it was not looked at.
        """
        wait = math.ceil(self._throttle.wait(address).total_seconds())
        if wait:
            text = f"too many wrong tokens: try again in {wait} s"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, text, {"Retry-After": str(wait)})
        if self._digest is None or not hmac.compare_digest(_digest(token), self._digest):
            self._throttle.count(address)
            self._on_login(address, False)
            raise Problem(HTTPStatus.UNAUTHORIZED, "this is not the token", {"WWW-Authenticate": "Bearer"})
        self._throttle.forget(address)

    def log_in(self, request: Request, token: str) -> str:
        """Return the cookie of a new login, as a header; one that the browser had ends.

        Raises:
            Problem: the token is not right.
        """
        self.check(_address(request), token)
        self.log_out(request)
        self._on_login(_address(request), True)
        return _cookie(request, self._logins.begin(), int(LASTS.total_seconds()))

    def log_out(self, request: Request) -> str:
        """End the browser's login and return what makes it forget its cookie, as a header."""
        self._logins.end(request.cookies.get(_cookie_name(request), ""))
        return _cookie(request, "", 0)

    def caller(self, request: Request) -> Caller:
        """Return who asks.

        Raises:
            Problem: a token was shown, and it is not right.
        """
        if self.is_open:
            return Caller(kind=Kind.OPEN, form_token=self._logins.form_token(""))
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":  # others may be meant for a proxy in front of us
            self.check(_address(request), token.strip())
            return Caller(kind=Kind.SCRIPT)
        name = request.cookies.get(_cookie_name(request), "")
        if self._logins.is_valid(name):
            return Caller(kind=Kind.BROWSER, form_token=self._logins.form_token(name))
        return Caller(kind=Kind.NOBODY)


class Guard:
    """An ASGI application in front of another."""

    def __init__(self, app: ASGIApp, *, web: Web, door: Door, pages: Pages) -> None:
        self._app = app
        self._web = web
        self._door = door
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let it through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            self._check_name(request)
            caller = await run_in_threadpool(self._door.caller, request)  # a wrong token is written to the disk
            self._check_known(request, caller)
            if request.method not in _READS and caller.kind is not Kind.SCRIPT:
                body = await read_body(receive) or b""
                receive = replay(body, receive)
                caller = replace(caller, form=_fields(request, body))
                _check_own_form(request, caller)
        except Problem as problem:
            await self._pages.problem(request, problem)(scope, receive, send)
        else:
            request.state.caller = caller
            await self._app(scope, receive, send)

    def _check_name(self, request: Request) -> None:
        if not self._web.is_own_name(_host_name(request.headers.get("host", ""))):
            raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "not a name of this page: see web.names")

    def _check_known(self, request: Request, caller: Caller) -> None:
        if caller.is_known or request.scope["path"] in _OPEN_TO_ALL:  # request.url is made of what the Host header says
            return
        if request.method == "GET" and wants_page(request):
            raise Problem(HTTPStatus.SEE_OTHER, "log in first", {"Location": LOGIN})
        raise Problem(HTTPStatus.UNAUTHORIZED, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})


def _check_own_form(request: Request, caller: Caller) -> None:
    """Return if a browser sent the request from a page of ours, and not from another site's in the user's name."""
    if not _is_from_own_page(request):
        raise Problem(HTTPStatus.FORBIDDEN, "a change must come from the node's own page, or carry a bearer token")
    if request.scope["path"] == LOGIN:  # nobody's name is used
        return
    if not hmac.compare_digest(caller.form.get(FORM_TOKEN, "").encode(), caller.form_token.encode()):
        raise Problem(HTTPStatus.FORBIDDEN, "the page that sent this was out of date: open it again")


def _is_from_own_page(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")  # no script can set it; over plain HTTP browsers leave it out
    if site is not None:
        return site == "same-origin"
    host, origin = (request.headers.get(name, "").lower() for name in ("host", "origin"))
    # Not the scheme: a proxy may have taken the TLS away.
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def _host_name(header: str) -> str:
    """Return the name or address in a Host header; empty: there is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _fields(request: Request, body: bytes) -> dict[str, str]:
    """Return the fields of a form; none of what is no form."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        return {}
    try:
        return dict(parse_qsl(body.decode("ascii"), max_num_fields=_MAX_FIELDS, errors="replace"))
    except ValueError:  # not ASCII, or too many
        return {}


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _cookie_name(request: Request) -> str:
    # The prefix lets a browser take it over HTTPS from this very host alone (RFC 6265bis 4.1.3.2).
    return "__Host-echo-node" if request.scope["scheme"] == "https" else "echo-node"


def _cookie(request: Request, value: str, seconds: int) -> str:
    secure = "; Secure" if request.scope["scheme"] == "https" else ""
    return f"{_cookie_name(request)}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
