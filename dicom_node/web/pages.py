"""What people see in a browser: the login and the list of studies."""

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from dicom_node.clock import utc_now
from dicom_node.errors import InvalidCursor
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.listing import Listing, count_unfinished, listing
from dicom_node.ledger.schema import StudyState
from dicom_node.web.answers import Pages, Problem
from dicom_node.web.guard import FORM_TOKEN, LOGIN, Caller, Door, Kind

_FIRST = "/"


def shell(request: Request) -> dict[str, Any]:
    """Return what every page of somebody who is in needs: where he is, what he may do, and the time."""
    caller: Caller = request.state.caller
    return {
        "is_in": True,
        "here": request.url.path,
        "field": FORM_TOKEN,
        "form_token": caller.form_token,
        "has_login": caller.kind is Kind.BROWSER,
        "may_change": caller.kind is not Kind.SCRIPT,  # a script has no form to send
        "now": utc_now(),
    }


def page_routes(*, pages: Pages, door: Door, sessions: Sessions) -> APIRouter:
    """Return the routes of login, list, style and script; a form reaches one only if the guard has found it ours."""
    routes = APIRouter(include_in_schema=False)

    @routes.get(_FIRST)
    def studies(request: Request, state: str = "", before: str = "") -> HTMLResponse:
        try:
            wanted = StudyState(state) if state else None
            found = listing(sessions, wanted, before or None)
        except ValueError as error:
            raise Problem(HTTPStatus.NOT_FOUND, "no study is ever in this state") from error
        except InvalidCursor as error:
            raise Problem(HTTPStatus.NOT_FOUND, str(error)) from error
        return pages.page(
            "studies",
            **shell(request),
            studies=found.studies,
            next=found.next,
            state=state,
            before=before,
            states=[one.value for one in StudyState],
            counts={one.value: number for one, number in count_unfinished(sessions).items()},
            statements=_statements(found),
        )

    @routes.get(LOGIN)
    def login(request: Request) -> Response:
        return pages.page("login") if _may_log_in(request) else see(_FIRST)

    @routes.post(LOGIN)
    def log_in(request: Request) -> Response:
        if not _may_log_in(request):
            return see(_FIRST)
        try:
            cookie = door.log_in(request, request.state.caller.form.get("token", ""))
        except Problem as problem:
            answer: Response = pages.page("login", status=problem.status, wrong=problem.detail)
            answer.headers.update(problem.headers)
            return answer
        answer = see(_FIRST)
        answer.headers["Set-Cookie"] = cookie
        return answer

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        answer = see(LOGIN)
        answer.headers["Set-Cookie"] = door.log_out(request)
        return answer

    @routes.get("/style.css")
    def style() -> Response:
        return Response(pages.text("style.css"), media_type="text/css")

    @routes.get("/page.js")
    def script() -> Response:
        return Response(pages.text("page.js"), media_type="text/javascript")

    return routes


def see(path: str) -> RedirectResponse:
    """Return the answer to a form: look there."""
    return RedirectResponse(path, status_code=HTTPStatus.SEE_OTHER)


def _statements(found: Listing) -> list[str]:
    """Return what the ensembles of these studies say of their own numbers, each once."""
    ensembles = [study.findings.get("ensemble") or {} for study in found.studies]
    return list(dict.fromkeys(one["statement"] for one in ensembles if one.get("statement")))


def _may_log_in(request: Request) -> bool:
    return request.state.caller.kind in (Kind.NOBODY, Kind.BROWSER)
