"""What programs ask: health, metrics, and the studies as JSON."""

from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, NotRequired

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, generate_latest
from typing_extensions import TypedDict

from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import StudyState
from dicom_node.ledger.views import StudyJson, studies_json, study_json
from dicom_node.web.actions import StudyActions
from dicom_node.web.answers import known_uid, refusals
from dicom_node.web.health import Health

Answers = dict[int | str, dict[str, Any]]
"""Further answers of a route, as FastAPI takes them for OpenAPI."""

_METRICS_TYPE = "text/plain; version=0.0.4"


class HealthJson(TypedDict):
    """Whether the node does its work; what is wrong is for those alone who may see it."""

    status: Literal["ok", "failing"]
    wrong: NotRequired[list[str]]


class ProblemJson(TypedDict):
    """Why a request was not answered."""

    detail: str


_PROBLEMS = {
    HTTPStatus.UNAUTHORIZED: "No token, or a wrong one",
    HTTPStatus.FORBIDDEN: "A change that neither carries the token nor comes from the node's own page",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "A body of more than 64 KiB",
    HTTPStatus.MISDIRECTED_REQUEST: "The page has no such name",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many wrong tokens from this address",
    HTTPStatus.SERVICE_UNAVAILABLE: "Too many requests at a time, or the ledger does not answer",
}
# Not by `model`: FastAPI would give it the type of the route's own answer, and that of /metrics is no JSON.
_JSON = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ProblemJson.__name__}"}}}
_UNKNOWN: Answers = {404: {"model": ProblemJson, "description": "No such study"}}
_UNHEALTHY: Answers = {503: {"model": HealthJson, "description": "Something is wrong"}}


def api_routes(
    *, sessions: Sessions, data_dir: Path, health: Health, registry: CollectorRegistry, actions: StudyActions
) -> APIRouter:
    """Return the routes that OpenAPI describes."""
    problems: Answers = {int(status): {"description": text, "content": _JSON} for status, text in _PROBLEMS.items()}
    routes = APIRouter(responses=problems)
    # It lets everybody through, and is there for OpenAPI: the guard has asked for the token already.
    behind_token = APIRouter(dependencies=[Depends(HTTPBearer(auto_error=False))])

    @routes.get("/healthz", responses=_UNHEALTHY)
    def healthz(request: Request, response: Response) -> HealthJson:
        """Say whether the node does its work; with the token also what is wrong."""
        wrong = health.wrong() if request.state.caller.is_known else None
        is_right = health.is_right() if wrong is None else not wrong
        response.status_code = HTTPStatus.OK if is_right else HTTPStatus.SERVICE_UNAVAILABLE
        answer: HealthJson = {"status": "ok" if is_right else "failing"}
        return answer if wrong is None else {**answer, "wrong": wrong}

    @behind_token.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Give the metrics of the node, for Prometheus."""
        return PlainTextResponse(generate_latest(registry), media_type=_METRICS_TYPE)

    @behind_token.get("/api/studies")
    def studies(state: StudyState | None = None) -> list[StudyJson]:
        """List the studies, of one state or of all, the newest first."""
        return studies_json(sessions, state, data_dir=data_dir)

    @behind_token.get("/api/studies/{uid}", responses=_UNKNOWN)
    def study(uid: str) -> StudyJson:
        """Show one study."""
        return _study(known_uid(uid))

    @behind_token.post(
        "/api/studies/{uid}/retry",
        responses={**_UNKNOWN, 409: {"model": ProblemJson, "description": "The study has not failed"}},
    )
    def retry(uid: str) -> StudyJson:
        """Take up a failed study where it stopped, and show it."""
        return _study(actions.retry(uid))

    @behind_token.post(
        "/api/studies/{uid}/reprocess",
        responses={
            **_UNKNOWN,
            409: {"model": ProblemJson, "description": "The study is still being analysed, or its images are gone"},
        },
    )
    def reprocess(uid: str) -> StudyJson:
        """Analyse a study again, in its next revision, and show it."""
        return _study(actions.reprocess(uid))

    @behind_token.post(
        "/api/studies/{uid}/reports/{report_uid}/deliveries/{peer}/again",
        responses={**_UNKNOWN, 409: {"model": ProblemJson, "description": "The report is no dead letter of this peer"}},
    )
    def deliver_again(uid: str, report_uid: str, peer: str) -> StudyJson:
        """Send a report again that did not reach a peer, and show its study."""
        return _study(actions.deliver_again(uid, report_uid, peer))

    def _study(uid: UID) -> StudyJson:
        with refusals():
            return study_json(sessions, uid, data_dir=data_dir)

    routes.include_router(behind_token)
    return routes
