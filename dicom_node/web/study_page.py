"""The page of one study, its reports in words, and the buttons that take it up, analyse it or deliver it again."""

from enum import StrEnum
from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from dicom_node.errors import StoreError, UnreadableReport
from dicom_node.identity import UID
from dicom_node.ledger.contents import Contents, contents
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import InstanceState, StudyState
from dicom_node.ledger.studies import ENDED
from dicom_node.ledger.views import StudyJson, study_json
from dicom_node.report.outline import Item, read_outline
from dicom_node.store import InstanceStore
from dicom_node.web.actions import StudyActions
from dicom_node.web.answers import Pages, Problem, known_uid, refusals
from dicom_node.web.pages import see, shell
from dicom_node.web.study_view import study_view


class Done(StrEnum):
    """What a button did; the page says it in words."""

    RETRIED = "retried"
    REPROCESSED = "reprocessed"
    DELIVERED_AGAIN = "delivered-again"


_SAID = {
    Done.RETRIED: "The study was taken up where it stopped.",
    Done.REPROCESSED: "Every instance is analysed again. A new report follows, which names the one before.",
    Done.DELIVERED_AGAIN: "The report is on its way again, with all its attempts.",
}


def study_routes(*, pages: Pages, sessions: Sessions, store: InstanceStore, actions: StudyActions) -> APIRouter:
    """Return the routes of one study; a form reaches one only if the guard has found it ours."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/studies/{uid}")
    def study(request: Request, uid: str, done: str = "") -> HTMLResponse:
        study_uid, shown, held = _study(sessions, uid)
        newest = held.reports[-1] if held.reports else None
        return pages.page(
            "study",
            **shell(request),
            study=shown,
            view=study_view(study_uid, held, store),
            outline=None if newest is None else _outline(store, newest.path),
            anchors={one.sop_instance_uid for one in held.instances},
            may_retry=_may_retry(shown, held),
            may_reprocess=shown["state"] in ENDED and shown["purged_at"] is None,
            said=_SAID.get(Done(done)) if done in [*Done] else None,
        )

    @routes.get("/studies/{uid}/reports/{report_uid}")
    def report(request: Request, uid: str, report_uid: str) -> HTMLResponse:
        _, shown, held = _study(sessions, uid)
        found = held.report(report_uid)
        outline = None if found is None else _outline(store, found.path)
        if found is None or outline is None:
            raise Problem(HTTPStatus.NOT_FOUND, "no such report of this study, or its file cannot be read")
        return pages.page(
            "report",
            **shell(request),
            study=shown,
            report=found,
            outline=outline,
            anchors={one.sop_instance_uid for one in held.instances},
        )

    @routes.post("/studies/{uid}/retry")
    def retry(uid: str) -> Response:
        return _said(actions.retry(uid), Done.RETRIED)

    @routes.post("/studies/{uid}/reprocess")
    def reprocess(uid: str) -> Response:
        return _said(actions.reprocess(uid), Done.REPROCESSED)

    @routes.post("/studies/{uid}/reports/{report_uid}/deliveries/{peer}/again")
    def deliver_again(uid: str, report_uid: str, peer: str) -> Response:
        return _said(actions.deliver_again(uid, report_uid, peer), Done.DELIVERED_AGAIN)

    return routes


def _study(sessions: Sessions, uid: str) -> tuple[UID, StudyJson, Contents]:
    study_uid = known_uid(uid)
    with refusals():
        return study_uid, study_json(sessions, study_uid), contents(sessions, study_uid)


def _outline(store: InstanceStore, path: str) -> Item | None:
    try:
        return read_outline(store.fetch(path))
    except (UnreadableReport, StoreError):
        return None


def _may_retry(shown: StudyJson, held: Contents) -> bool:
    given_up = any(one.state is InstanceState.FAILED for one in held.instances)
    return shown["state"] == StudyState.FAILED or (given_up and shown["state"] in ENDED)


def _said(study_uid: UID, done: Done) -> Response:
    return see(f"/studies/{study_uid}?done={done}")
