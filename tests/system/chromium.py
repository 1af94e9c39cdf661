"""Debian's Chromium as a peer of the tests: it opens pages of one server and asks nobody else."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, Page, Request, ViewportSize, sync_playwright

from tests.binaries import require_binary

WINDOW = ViewportSize(width=1800, height=640)
"""What a viewer writes to the right of a loop has room in it."""

_FLAGS = [
    "--no-sandbox",  # the tests may run as root
    "--disable-quic",
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a graphics card
]
_TIMEOUT_MS = 60_000


@dataclass(frozen=True, kw_only=True)
class Tab:
    """An open page and what went wrong in it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """Errors that no script caught, and those that one wrote to the console."""
    underway: set[Request] = field(default_factory=set)
    """What the page waits for."""

    def wait_until_idle(self) -> None:
        """Return once the page has waited for nothing at four looks in a row, a quarter of a second apart."""
        end, looks = time.monotonic() + _TIMEOUT_MS / 1000, 0
        while looks < 4:
            assert time.monotonic() < end, self.underway
            self.page.wait_for_timeout(250)
            looks = 0 if self.underway else looks + 1


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run Chromium until the block ends."""
    binary = require_binary("chromium")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=binary, args=_FLAGS) as browser:
        yield browser


@contextmanager
def opened(browser: Browser, origin: str, *, has_scripts: bool = True) -> Iterator[Tab]:
    """Open a tab with a profile of its own until the block ends; what is not of this origin cannot be reached."""
    context = browser.new_context(viewport=WINDOW, service_workers="block", java_script_enabled=has_scripts)
    elsewhere = re.compile(rf"https?://(?!{re.escape(origin.partition('://')[2])}/)")  # its PDF viewer is its own
    context.route(elsewhere, lambda route: route.abort())
    context.set_default_timeout(_TIMEOUT_MS)
    tab = Tab(page=context.new_page())
    tab.page.on("pageerror", lambda error: tab.errors.append(str(error.stack)))
    tab.page.on("console", lambda said: tab.errors.append(said.text) if said.type == "error" else None)
    tab.page.on("request", lambda request: tab.underway.add(request))
    tab.page.on("requestfinished", lambda request: tab.underway.discard(request))
    tab.page.on("requestfailed", lambda request: tab.underway.discard(request))
    yield tab
    context.close()


@contextmanager
def running_chromium(origin: str) -> Iterator[Tab]:
    """Run Chromium with one tab, for this origin, until the block ends."""
    with running_browser() as browser, opened(browser, origin) as tab:
        yield tab
