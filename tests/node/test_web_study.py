"""The page of a study: what it says, what its buttons do, and what it never shows."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from dicom_node import completion
from dicom_node.cine_file import preview_file
from dicom_node.ledger import outbox, reports
from dicom_node.ledger.claims import NotAnalysed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import WrittenPicture, WrittenReport
from dicom_node.report.pictures import Cine
from dicom_node.retention import purge
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from tests.doubles.analyst import ENSEMBLE, LEASE, Analyst
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock
from tests.node.report.samples import APICAL, MEASURED, STILL, STUDY, origin, pictures, report
from tests.node.sites import TOKEN, Serve, Site, page_settings, serving_page
from tests.node.test_web_guard import assert_safe, form_token

PAGE = f"/studies/{STUDY}"
LOOP = f"{PAGE}/loops/{APICAL}"
PREVIEW = Cine(
    frames=tuple(b"\xff\xd8\xff" + bytes([65 + number]) * 9 for number in range(4)),
    rows=30, columns=40, frame_time_ms=50.0, source_frames=(1, 4, 7, 10),
)  # fmt: skip
SAID: dict[str, Any] = {
    "results": [
        {"task": "lvef", "value": 57.34, "unit": "%", "sd": 2.1, "loops": [APICAL], "members": 3,
         "probabilities": None, "per_loop": {APICAL: 57.34}},
        {"task": "lvef_reduced", "value": False, "unit": "", "sd": None, "loops": [APICAL], "members": 3,
         "probabilities": {"reduced": 0.08}, "per_loop": {APICAL: 0.08}},
        {"task": "aortic_stenosis", "value": "mildtomod", "unit": "", "sd": None, "loops": [APICAL], "members": 1,
         "probabilities": {"no": 0.3, "mildtomod": 0.7}, "per_loop": {}},
    ],
    "not_measured": [{"task": "lvedv", "kind": "not_attempted", "reason": "no <apical> view"}],
    "cart": [{"task": "lvef", "value": 54.0, "unit": "%", "method": "biplane", "sop_instance_uid": "1.2.8"}],
    "ensemble": {"name": "phantom", "version": "1", "digest": ENSEMBLE, "statement": "numbers have no <b>meaning</b>"},
    "loop_findings": [
        {"sop_instance_uid": APICAL, "view": "A4C", "view_probability": 0.97, "uncertain_view": None,
         "contradiction": "", "numbers": [{"task": "lvef", "value": 57.34, "unit": "%", "sd": 1.24}]},
    ],
}  # fmt: skip


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: what the ledger shows has its own tests on each engine."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@pytest.fixture
def serve(sessions: Sessions, store: InstanceStore, tmp_path: Path) -> Iterator[Serve]:
    """Start the page of a node without a broker and acceptors, with these settings."""
    with ExitStack() as running:

        def start(**web: Any) -> Site:
            settings = page_settings(tmp_path / "data", "redis://127.0.0.1:1/0", **web)
            return running.enter_context(serving_page(settings, sessions, store, 1))

        yield start


@pytest.fixture
def study_id(sessions: Sessions, arrivals: Arrivals, analyst: Analyst, store: InstanceStore, clock: ManualClock) -> int:
    """A study with a loop, its preview and its attention, an instance that was refused, and a report to `pacs`."""
    study_id = arrivals.send(STUDY, APICAL)
    arrivals.send(STUDY, STILL, num_frames=1)
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    for claimed in analyst.claim(study_id):
        refusal = NotAnalysed(code="still", reason="still image, <i>not</i> a cine loop")
        analyst.answer(claimed, refusal if claimed.sop_instance_uid == STILL else None)
    (path,) = [path for path, _ in store.files("instances") if APICAL in path]
    store.keep_preview(path, preview_file(PREVIEW))
    write(sessions, analyst, store, clock, study_id)
    return study_id


def write(sessions: Sessions, analyst: Analyst, store: InstanceStore, clock: ManualClock, study_id: int) -> None:
    """Write the report of a drained study, with its pictures."""
    job = analyst.begin(study_id)
    assert job is not None
    said = replace(MEASURED, algorithm=replace(MEASURED.algorithm, ensemble_digest=ENSEMBLE))
    document = report(said, revision=job.revision, predecessor=job.predecessor)
    drawn = pictures(whence=origin(revision=job.revision, algorithm=said.algorithm))
    written = WrittenReport(
        sop_instance_uid=document.sop_instance_uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
        series_instance_uid=document.series_instance_uid,
        path=store.keep_report(document.sop_instance_uid, document.part10),
        pictures=tuple(
            WrittenPicture(
                kind=one.kind,
                sop_instance_uid=one.sop_instance_uid,
                sop_class_uid=one.sop_class_uid,
                path=store.keep_picture(STUDY, one.sop_instance_uid, one.part10),
            )
            for one in drawn
        ),
    )
    assert reports.finish_report(sessions, job, written, SAID, ["pacs"], clock)


def refuse(sessions: Sessions, clock: ManualClock) -> None:
    """Let the PACS refuse the report for good."""
    for item in outbox.due(sessions, "pacs", limit=9, lease=LEASE, clock=clock):
        outbox.dead(sessions, item, "status 0xA900", clock)


def deliver(sessions: Sessions, clock: ManualClock) -> None:
    """Let the PACS take the report."""
    for item in outbox.due(sessions, "pacs", limit=9, lease=LEASE, clock=clock):
        outbox.delivered(sessions, item, clock)


def words(page: httpx.Response) -> str:
    """Return the words of a page without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", page.text).split())


def form_of(site: Site, page: httpx.Response) -> dict[str, Any]:
    """Return what a browser sends with a form of a page."""
    return {"data": {"form_token": form_token(page)}, "headers": {"Origin": site.origin}}


def press(site: Site, action: str) -> httpx.Response:
    """Press a button that the study's page must have; follow it to where it leads."""
    page = site.client.get(PAGE)
    assert f'action="{action}"' in page.text
    return site.client.post(action, follow_redirects=True, **form_of(site, page))


# --- what it says ---


@pytest.mark.usefixtures("study_id")
def test_the_page_says_the_results_with_their_spread_and_what_they_stand_on(serve: Serve) -> None:
    page = serve().client.get(PAGE)
    said = words(page)

    assert_safe(page)
    assert "LVEF ejection fraction 57.3 % ± 2.1 3 networks, loop 1 (57.3)" in said
    assert "Reduced LVEF below 50 % absent probability 92 %, 3 networks, loop 1" in said
    assert "Aortic stenosis grade mild to moderate probability 70 %, 1 network, loop 1" in said
    assert "LV EDV no &lt;apical&gt; view" in said
    assert "LVEF 54.0 % biplane" in said
    assert "numbers have no &lt;b&gt;meaning&lt;/b&gt;" in said
    assert f'href="#loop-{APICAL}"' in page.text
    assert f'id="loop-{APICAL}"' in page.text


@pytest.mark.usefixtures("study_id")
def test_the_page_says_of_each_instance_what_it_is_or_why_it_was_not_analysed(serve: Serve) -> None:
    page = serve().client.get(PAGE)
    said = words(page)

    assert "Loop 1 A4C 97 % LVEF 57.3 % ± 1.2" in said
    assert f'src="{LOOP}/thumbnail.jpg"' in page.text
    assert f"still image, &lt;i&gt;not&lt;/i&gt; a cine loop 1 CART {STILL}" in said


@pytest.mark.usefixtures("study_id")
def test_the_page_tells_reports_deliveries_and_history(serve: Serve, sessions: Sessions, clock: ManualClock) -> None:
    refuse(sessions, clock)
    said = words(serve().client.get(PAGE))

    assert "Study failed" in said
    assert "the report did not reach pacs: status 0xA900" in said
    assert "pacs dead 1 status 0xA900" in said
    assert "delivery dead pacs: status 0xA900" in said
    assert "receiving first instance" in said


@pytest.mark.usefixtures("study_id")
def test_the_report_is_read_as_nested_lists_with_codes_and_units(serve: Serve) -> None:
    client = serve().client
    page = client.get(PAGE)
    (uid,) = {*re.findall(rf'href="{PAGE}/reports/([\d.]+)"', page.text)}
    alone = client.get(f"{PAGE}/reports/{uid}")

    for shown in (page, alone):
        assert re.search(r"57\.3 [^(]*\(%, UCUM\)", words(shown))
        assert "still image, not a cine loop" in words(shown)
        assert f'href="{PAGE}#loop-{APICAL}"' in shown.text
    assert client.get(f"{PAGE}/reports/1.2.3").status_code == 404


@pytest.mark.usefixtures("study_id")
def test_no_page_shows_whose_study_it_is(serve: Serve) -> None:
    client = serve().client
    uid = client.get(f"/api{PAGE}").json()["reports"][0]["sop_instance_uid"]
    pages = [client.get(path) for path in ("/", PAGE, f"{PAGE}/reports/{uid}", "/health", "/configuration")]

    assert [page.status_code for page in pages] == [200] * 5
    assert not [page.url for page in pages if re.search(r"Phantom\^?Echo|>\s*P1\s*<", page.text)]


@pytest.mark.usefixtures("study_id")
def test_a_study_whose_images_retention_removed_is_still_told(
    serve: Serve, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    deliver(sessions, clock)
    clock.pass_by(8 * 86400)
    purge(sessions, store, Retention(days=7), clock)
    client = serve().client
    page = client.get(PAGE)

    assert "57.3 % ± 2.1" in words(page)
    assert "Images removed" in words(page)
    assert "thumbnail.jpg" not in page.text
    assert client.get(f"{LOOP}/thumbnail.jpg").status_code == 404
    assert 'action="' not in page.text


def test_a_study_without_a_report_has_a_page(serve: Serve, arrivals: Arrivals) -> None:
    arrivals.send(STUDY, APICAL)
    page = serve().client.get(PAGE)

    assert "Study receiving" in words(page)
    assert "No report yet." in words(page)
    assert 'action="' not in page.text


@pytest.mark.parametrize("uid", ["1.2.3", "no-uid", "..%2f..%2fetc"])
def test_there_is_no_page_of_a_study_that_is_not_there(serve: Serve, uid: str) -> None:
    client = serve().client
    below = ("", "/reports/1.2", "/pictures/1.2", "/loops/1.2/cine.json", "/loops/1.2/thumbnail.jpg",
             "/loops/1.2/frames/1.jpg", "/loops/1.2/attention/1.jpg")  # fmt: skip

    assert {client.get(f"/studies/{uid}{path}").status_code for path in below} == {404}


def test_nothing_of_a_study_is_shown_without_the_token(serve: Serve, study_id: int) -> None:
    site = serve(token=TOKEN)
    paths = (PAGE, f"{PAGE}/reports/1.2", f"{PAGE}/pictures/1.2", f"{LOOP}/cine.json", f"{LOOP}/thumbnail.jpg",
             f"{LOOP}/frames/1.jpg", f"{LOOP}/attention/1.jpg", "/health", "/configuration", "/page.js")  # fmt: skip
    posts = (f"{PAGE}/reprocess", f"{PAGE}/retry", f"{PAGE}/reports/1.2/deliveries/pacs/again")

    assert {site.client.get(path).status_code for path in paths} == {401}
    assert {site.client.post(path).status_code for path in posts} == {401}
    assert site.rung == []


# --- pictures ---


@pytest.mark.usefixtures("study_id")
def test_a_player_is_told_the_frames_and_the_attention_under_each(serve: Serve) -> None:
    client = serve().client
    cine = client.get(f"{LOOP}/cine.json").json()
    frames = [client.get(path) for path in cine["frames"]]
    heat = [client.get(path) for path in cine["attention"]]

    assert (cine["width"], cine["height"], cine["frame_time_ms"]) == (40, 30, 50.0)
    assert [frame.content.rstrip(b"\0") for frame in frames] == [*PREVIEW.frames]
    # The attention is there of frames 5, 6 and 7 of the loop: one that it has not is shown by the one before.
    assert [path.rpartition("/")[2] for path in cine["attention"]] == ["1.jpg", "1.jpg", "3.jpg", "3.jpg"]
    assert {one.headers["content-type"] for one in (*frames, *heat)} == {"image/jpeg"}
    assert all(one.content.startswith(b"\xff\xd8\xff") for one in heat)
    for one in (*frames, *heat):
        assert_safe(one)
    assert client.get(f"{LOOP}/thumbnail.jpg").content == frames[2].content


@pytest.mark.usefixtures("study_id")
@pytest.mark.parametrize("path", ["frames/0", "frames/5", "frames/-1", "attention/0", "attention/4"])
def test_a_frame_that_is_not_there_is_not_found(serve: Serve, path: str) -> None:
    assert serve().client.get(f"{LOOP}/{path}.jpg").status_code == 404


@pytest.mark.usefixtures("study_id")
def test_without_a_picture_of_the_attention_the_loop_plays_alone(serve: Serve, store: InstanceStore) -> None:
    for path in [path for path, _ in store.files("pictures")]:
        store.remove(path)
    client = serve().client
    cine = client.get(f"{LOOP}/cine.json").json()

    assert (len(cine["frames"]), cine["attention"]) == (4, [])
    assert client.get(f"{LOOP}/attention/1.jpg").status_code == 404
    assert "disabled" in client.get(PAGE).text


@pytest.mark.usefixtures("study_id")
def test_without_a_preview_nothing_of_a_loop_is_shown(serve: Serve, store: InstanceStore) -> None:
    """Nor the attention: only a preview says that what lies beside the sector was cut away."""
    ((path, _),) = store.files("previews")
    store.path(path).write_bytes(b"no DICOM")
    damaged = serve().client.get(f"{LOOP}/cine.json")
    store.remove(path)
    client = serve().client

    assert damaged.status_code == 404
    assert {client.get(f"{LOOP}/{one}").status_code for one in ("cine.json", "thumbnail.jpg", "attention/1.jpg")} == {
        404
    }
    assert "No preview was kept." in client.get(PAGE).text


@pytest.mark.usefixtures("study_id")
def test_the_summary_is_a_picture_and_a_file_to_be_saved(serve: Serve, store: InstanceStore) -> None:
    client = serve().client
    links = re.findall(rf'href="({PAGE}/pictures/[\d.]+)"', client.get(PAGE).text)
    picture, pdf = (client.get(link) for link in links)
    shown = client.get(f"/api{PAGE}").json()["reports"][0]["pictures"]
    (attention,) = [one["sop_instance_uid"] for one in shown if one["kind"] == "saliency"]

    assert (picture.headers["content-type"], pdf.headers["content-type"]) == ("image/jpeg", "application/pdf")
    assert pdf.content.startswith(b"%PDF-")
    assert pdf.headers["content-disposition"].startswith("attachment;")
    assert_safe(pdf)
    assert client.get(f"{PAGE}/pictures/{attention}").status_code == 404
    assert client.get(f"{PAGE}/pictures/1.2.3").status_code == 404


# --- buttons ---


def test_a_study_is_analysed_again_by_a_button(
    serve: Serve, study_id: int, sessions: Sessions, clock: ManualClock
) -> None:
    deliver(sessions, clock)
    site = serve()
    before = site.client.get(PAGE)
    page = press(site, f"{PAGE}/reprocess")
    again = site.client.post(f"{PAGE}/reprocess", **form_of(site, before))

    assert page.status_code == 200
    assert "Every instance is analysed again." in words(page)
    assert "It is analysing now." in words(page)
    assert site.rung == [study_id]
    assert again.status_code == 409
    assert "still being analysed" in again.text


def test_a_second_report_takes_the_place_of_the_first(
    serve: Serve, study_id: int, sessions: Sessions, analyst: Analyst, store: InstanceStore, clock: ManualClock
) -> None:
    deliver(sessions, clock)
    site = serve()
    press(site, f"{PAGE}/reprocess")
    analyst.drain(study_id)
    write(sessions, analyst, store, clock, study_id)
    page = site.client.get(PAGE)
    first, second = (one["sop_instance_uid"] for one in site.client.get(f"/api{PAGE}").json()["reports"])

    assert f"{second} · takes the place of {first}" in words(page)
    assert words(page).index("Revision 2") < words(page).index("Revision 1")
    assert site.client.get(f"{PAGE}/reports/{first}").status_code == 200


@pytest.mark.usefixtures("study_id")
def test_a_dead_letter_is_delivered_again_by_a_button(serve: Serve, sessions: Sessions, clock: ManualClock) -> None:
    refuse(sessions, clock)
    site = serve()
    report_uid = site.client.get(f"/api{PAGE}").json()["reports"][0]["sop_instance_uid"]
    action = f"{PAGE}/reports/{report_uid}/deliveries/pacs/again"
    before = site.client.get(PAGE)
    page = press(site, action)
    again = site.client.post(action, **form_of(site, before))

    assert "The report is on its way again" in words(page)
    assert "It is delivering now." in words(page)
    assert f'action="{action}"' not in page.text
    assert again.status_code == 409
    assert "no dead letter" in again.text


@pytest.mark.usefixtures("study_id")
def test_a_script_delivers_a_dead_letter_again(serve: Serve, sessions: Sessions, clock: ManualClock) -> None:
    refuse(sessions, clock)
    client = serve(token=TOKEN).client
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    report_uid = client.get(f"/api{PAGE}").json()["reports"][0]["sop_instance_uid"]
    path = f"/api{PAGE}/reports/{report_uid}/deliveries"
    answers = [client.post(f"{path}/{peer}/again") for peer in ("elsewhere", "pacs", "pacs")]

    assert [answer.status_code for answer in answers] == [409, 200, 409]
    assert answers[1].json()["state"] == "delivering"
    assert "no dead letter" in answers[2].json()["detail"]


def test_a_script_has_a_study_analysed_again(
    serve: Serve, study_id: int, sessions: Sessions, clock: ManualClock
) -> None:
    site = serve(token=TOKEN)
    site.client.headers["Authorization"] = f"Bearer {TOKEN}"
    deliver(sessions, clock)
    answer = site.client.post(f"/api{PAGE}/reprocess")
    again = site.client.post(f"/api{PAGE}/reprocess")

    assert again.status_code == 409
    assert (answer.status_code, answer.json()["state"], answer.json()["revision"]) == (200, "analysing", 2)
    assert site.rung == [study_id]


@pytest.mark.usefixtures("study_id")
def test_a_failed_study_is_taken_up_by_a_button(serve: Serve, sessions: Sessions, clock: ManualClock) -> None:
    refuse(sessions, clock)
    page = press(serve(), f"{PAGE}/retry")

    assert "The study was taken up where it stopped. It is delivering now." in words(page)


def test_what_retention_removed_cannot_be_analysed_again_and_that_is_said(
    serve: Serve, study_id: int, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    deliver(sessions, clock)
    site = serve()
    before = site.client.get(PAGE)
    clock.pass_by(8 * 86400)
    purge(sessions, store, Retention(days=7), clock)
    with sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE instance SET state='failed'")
    answers = [site.client.post(f"{PAGE}/{action}", **form_of(site, before)) for action in ("reprocess", "retry")]

    assert [answer.status_code for answer in answers] == [409, 409]
    assert all("retention removed" in answer.text for answer in answers)
    assert site.rung == []
