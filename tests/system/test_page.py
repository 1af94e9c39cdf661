"""The page in a browser: what the headers forbid must not forbid the page, and everybody can use it."""

import io
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

from dicom_node import completion
from dicom_node.clock import utc_now
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.views import studies_json, study_json
from dicom_node.settings import settings_from
from dicom_node.store import InstanceStore
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock
from tests.node.sites import TOKEN, Site, page_settings, serving_page
from tests.system.axe import violations
from tests.system.chromium import Tab, opened, running_browser
from tests.system.page_studies import analyse, deliver, some_others, with_cart
from tests.system.studies import phantom_study

DOCS = Path(__file__).parents[2] / "docs"
"""Its pictures are written anew with ECHO_NODE_DOCS=1."""

pytestmark = pytest.mark.timeout(300)


def own_address() -> str:
    """Return an address of this machine that is not loopback; no packet is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with running_browser() as running:
        yield running


def test_a_person_logs_in_retries_a_study_and_logs_out(tmp_path: Path, browser: Browser) -> None:
    """From an address that is not loopback browsers send no Sec-Fetch-Site: the form's Origin alone must do."""
    sessions = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    store, clock = InstanceStore(tmp_path / "data", min_free_bytes=0), ManualClock()
    Arrivals(sessions, store, clock).send()
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    with sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE study SET state='failed', error='no heart'")
    settings = page_settings(tmp_path / "data", "redis://127.0.0.1:1/0", host="0.0.0.0", token=TOKEN)
    with serving_page(settings, sessions, store, 1) as site:
        origin = f"http://{own_address()}:{site.port}"
        with opened(browser, origin) as tab:
            tab.page.goto(origin)
            login = tab.page.url
            tab.page.get_by_label("Token").fill(TOKEN)
            tab.page.get_by_role("button", name="Log in").click()
            tab.page.get_by_role("heading", name="Studies").wait_for()
            tab.page.wait_for_load_state()  # the style sheet is there
            family = tab.page.evaluate("getComputedStyle(document.documentElement).fontFamily")
            cookies = tab.page.evaluate("document.cookie")
            tab.page.get_by_role("button", name="Retry").click()
            tab.page.get_by_text("The study was taken up where it stopped. It is analysing now.").wait_for()
            (study,) = studies_json(sessions)
            tab.page.get_by_role("button", name="Log out").click()
            tab.page.get_by_label("Token").wait_for()
            tab.page.goto(origin)
            after, errors = tab.page.url, tab.errors
    close_ledger(sessions)

    assert login == after == f"{origin}/login"
    assert "system-ui" in family  # the style sheet counts
    assert cookies == ""  # no script sees the login
    assert (study["state"], study["error"]) == ("analysing", None)
    # Over plain HTTP a browser ignores the opener policy, and says so.
    assert [text for text in errors if "Cross-Origin-Opener-Policy" not in text] == []


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A node that holds studies, and its page."""

    site: Site
    sessions: Sessions
    store: InstanceStore
    study_uid: UID
    """Of one that was analysed with everything."""

    @property
    def page(self) -> str:
        """Return the address of its page."""
        return f"{self.site.origin}/studies/{self.study_uid}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Studies in several states; the report of one reached one of its two peers."""
    folder = tmp_path_factory.mktemp("page")
    sessions = open_ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
    store, clock = InstanceStore(folder / "data", min_free_bytes=0), ManualClock()
    clock.now = utc_now() - timedelta(hours=3)
    some_others(sessions, store, clock)
    study = with_cart(phantom_study())
    clock.now = utc_now() - timedelta(minutes=9)
    analyse(study, sessions, store, clock)
    deliver(sessions, "archive", clock)
    deliver(sessions, "pacs", clock, "C-STORE: 0xA900, the peer does not take this class")
    peers = [
        {"name": "cart", "ae_title": "VIVID_E95"},
        {"name": "pacs", "ae_title": "ORTHANC", "host": "192.0.2.10", "port": 4242, "receives_reports": True},
        {"name": "archive", "ae_title": "ARCHIVE", "host": "192.0.2.11", "receives_reports": True},
    ]
    settings = settings_from(
        {"node": {"data_dir": str(folder / "data")}, "peers": peers, "broker": {"url": "redis://127.0.0.1:1/0"}}
    )
    with serving_page(settings, sessions, store, 1) as site:
        yield Shown(site=site, sessions=sessions, store=store, study_uid=UID(study[0].StudyInstanceUID))
    close_ledger(sessions)


@pytest.fixture
def tab(shown: Shown, browser: Browser) -> Iterator[Tab]:
    """A browser as wide as a notebook's."""
    with opened(browser, shown.site.origin) as own:
        own.page.set_viewport_size({"width": 1280, "height": 800})
        yield own


def pixels(canvas: Locator) -> NDArray[np.int64]:
    """Return what an element shows."""
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(np.int64)


def num_warm(canvas: Locator) -> int:
    """Return how many pixels are clearly more red than blue: the loops are grey."""
    shown_HWC = pixels(canvas)
    return int((shown_HWC[..., 0] - shown_HWC[..., 2] > 40).sum())


def test_a_person_finds_a_study_plays_a_loop_and_sees_where_the_networks_looked(tab: Tab, shown: Shown) -> None:
    page = tab.page
    page.goto(shown.site.origin)
    page.get_by_role("link", name=shown.study_uid).click()
    page.get_by_role("heading", name="Study").wait_for()
    loop = page.get_by_role("group", name="Loop 3")
    loop.get_by_role("button", name="Play").click()
    canvas = page.get_by_role("img", name="Loop 3", exact=True)
    seen = {frame for _ in range(40) if not page.wait_for_timeout(50) and (frame := canvas.get_attribute("data-frame"))}
    loop.get_by_role("button", name="Pause").click()
    plain = num_warm(canvas)
    loop.get_by_role("button", name="Attention").click()
    heated = page.get_by_role("img", name="Loop 3, with attention")
    heated.wait_for()
    warm = num_warm(heated)
    loop.get_by_role("button", name="Attention").click()
    canvas.wait_for()

    assert len(seen) > 3  # it moves
    assert plain == num_warm(canvas) == 0
    assert warm > 1000
    expect(loop.get_by_role("button", name="Attention")).to_have_attribute("aria-pressed", "false")
    assert tab.errors == []


def test_a_loop_is_stepped_through_with_the_keyboard(tab: Tab, shown: Shown) -> None:
    page = tab.page
    page.goto(shown.page)
    slider = page.get_by_role("slider", name="Frame of loop 3")
    slider.focus()
    canvas = page.get_by_role("img", name="Loop 3", exact=True)
    canvas.wait_for()
    page.keyboard.press("Home")
    expect(canvas).to_have_attribute("data-frame", "1")
    first = pixels(canvas)
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(canvas).to_have_attribute("data-frame", "6")

    expect(slider).to_have_attribute("aria-valuetext", "6 of 16")
    assert np.abs(pixels(canvas) - first).max() > 40


def test_a_loop_without_a_number_plays_and_has_no_attention(tab: Tab, shown: Shown) -> None:
    tab.page.goto(shown.page)
    loop = tab.page.get_by_role("group", name="Loop 1")
    loop.get_by_role("button", name="Play").click()

    loop.get_by_role("button", name="Pause").wait_for()
    expect(loop.get_by_role("button", name="Attention")).to_be_disabled()


def test_the_list_renews_itself_says_so_and_keeps_the_focus(tab: Tab, shown: Shown) -> None:
    page, uid = tab.page, UID("1.2.826.0.1.4711")
    page.clock.install()
    page.goto(f"{shown.site.origin}/?state=receiving")
    link = page.get_by_role("link", name="failed")
    link.focus()
    Arrivals(shown.sessions, shown.store, utc_now).send(uid, UID(f"{uid}.1"))
    page.clock.run_for(6000)
    page.get_by_role("link", name=uid).wait_for()

    expect(page.get_by_role("status")).to_have_text("1 new study")
    expect(link).to_be_focused()


def test_a_list_that_nobody_sees_does_not_ask(tab: Tab, shown: Shown) -> None:
    page, asked = tab.page, []
    page.clock.install()
    page.goto(shown.site.origin)
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.clock.run_for(60_000)
    unseen = len(asked)
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    tab.wait_until_idle()

    assert unseen == 0
    assert len(asked) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_anybody_out(tab: Tab, shown: Shown, scheme: Literal["light", "dark"]) -> None:
    study = study_json(shown.sessions, shown.study_uid)
    report = f"{shown.page}/reports/{study['reports'][0]['sop_instance_uid']}"
    origin, found = shown.site.origin, {}
    tab.page.emulate_media(color_scheme=scheme)
    for url in (f"{origin}/", shown.page, report, f"{origin}/health", f"{origin}/configuration", f"{origin}/?state=no"):
        tab.page.goto(url)
        for details in tab.page.locator("details").all():
            details.locator("summary").first.click()
        found[url] = violations(tab.page)

    assert {url: said for url, said in found.items() if said} == {}


def test_axe_finds_nothing_wrong_with_the_login(tmp_path: Path, shown: Shown, browser: Browser) -> None:
    settings = page_settings(tmp_path, "redis://127.0.0.1:1/0", token=TOKEN)
    found = []
    with (
        serving_page(settings, shown.sessions, shown.store, 1) as site,
        opened(browser, site.origin) as tab,
    ):
        for scheme in ("light", "dark"):
            tab.page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
            tab.page.goto(site.origin)
            found += violations(tab.page)
            tab.page.get_by_label("Token").fill("wrong")
            tab.page.get_by_role("button", name="Log in").click()
            tab.page.get_by_text("this is not the token").wait_for()
            found += violations(tab.page)

    assert found == []


def test_axe_would_find_what_is_wrong(tab: Tab, shown: Shown) -> None:
    tab.page.goto(shown.page)
    tab.page.evaluate("for (const one of document.querySelectorAll('img')) one.removeAttribute('alt')")

    assert [one.partition(":")[0] for one in violations(tab.page)] == ["image-alt"]


def test_without_scripts_everything_but_the_player_works(shown: Shown, browser: Browser) -> None:
    with opened(browser, shown.site.origin, has_scripts=False) as tab:
        tab.page.goto(shown.site.origin)
        tab.page.get_by_role("link", name=shown.study_uid).click()
        tab.page.get_by_role("img", name="Loop 1, PLAX: its middle frame").wait_for()
        tab.page.get_by_text("Read it here").click()
        tab.page.get_by_text("Left Ventricular Ejection Fraction").first.wait_for()

        assert tab.page.get_by_role("button", name="Play").count() == 0


def test_the_pictures_for_the_documents_are_small(tab: Tab, shown: Shown, tmp_path: Path) -> None:
    page, folder = tab.page, DOCS if os.environ.get("ECHO_NODE_DOCS") else tmp_path
    page.goto(shown.site.origin)
    pictures = [folder / "page-list.png"]
    page.screenshot(path=pictures[0])
    page.set_viewport_size({"width": 1280, "height": 1240})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(shown.page)
        page.get_by_role("button", name="Attention over loop 3").click()
        page.get_by_role("img", name="Loop 3, with attention").wait_for()
        tab.wait_until_idle()
        pictures.append(folder / f"page-study-{scheme}.png")
        page.screenshot(path=pictures[-1])

    assert [path.name for path in pictures if path.stat().st_size > 600_000] == []


def test_a_report_that_did_not_arrive_is_sent_again(tab: Tab, shown: Shown) -> None:
    """The last: it changes the study."""
    page = tab.page
    page.goto(f"{shown.site.origin}/health")
    page.get_by_role("group", name="Dead letters").get_by_role("link", name=shown.study_uid).click()
    page.get_by_role("button", name="Deliver again").click()
    page.get_by_text("The report is on its way again, with all its attempts. It is delivering now.").wait_for()

    assert study_json(shown.sessions, shown.study_uid)["state"] == "delivering"
    assert tab.errors == []
