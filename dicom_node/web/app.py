"""The web application: pages and JSON interface, behind the guard, in the envelope; everything is read from the ledger
at each request."""

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from dicom_node.ledger.engine import Sessions
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore
from dicom_node.web.actions import StudyActions
from dicom_node.web.answers import Pages, Problem
from dicom_node.web.api import api_routes
from dicom_node.web.cine import cine_routes
from dicom_node.web.condition_page import condition_routes
from dicom_node.web.envelope import Envelope
from dicom_node.web.guard import Door, Guard, OnLogin, log_login
from dicom_node.web.health import Health, Pulse
from dicom_node.web.metrics import node_registry
from dicom_node.web.pages import page_routes
from dicom_node.web.study_page import study_routes

log = structlog.get_logger(__name__)


def make_app(
    settings: Settings,
    sessions: Sessions,
    store: InstanceStore,
    node_port: int,
    *,
    pulse: Pulse,
    ring: Callable[[int], None],
    on_login: OnLogin = log_login,
    counts: Path | None = None,
) -> ASGIApp:
    """Return the web application.

    Args:
        node_port: where the node accepts associations.
        pulse: what the node's clock beats.
        ring: calls a worker for a study, by its id in the ledger.
        counts: the folder that the node's processes count in.
    """
    pages = Pages()
    door = Door(settings.web.token.get_secret_value(), on_login)
    actions = StudyActions(sessions, ring)
    health = Health(settings, sessions, store, node_port, pulse)
    app = FastAPI(title="echo AI node", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(
        api_routes(
            sessions=sessions,
            data_dir=settings.node.data_dir,
            health=health,
            registry=node_registry(settings, sessions, store, pulse, counts),
            actions=actions,
        )
    )
    app.include_router(page_routes(pages=pages, door=door, sessions=sessions))
    app.include_router(study_routes(pages=pages, sessions=sessions, store=store, actions=actions))
    app.include_router(cine_routes(sessions=sessions, store=store))
    app.include_router(condition_routes(pages=pages, settings=settings, sessions=sessions, store=store, health=health))

    @app.exception_handler(Problem)
    def _problem(request: Request, problem: Problem) -> Response:
        return pages.problem(request, problem)

    @app.exception_handler(HTTPException)
    def _routing(request: Request, error: HTTPException) -> Response:
        return pages.problem(request, Problem(error.status_code, error.detail, error.headers))

    @app.exception_handler(SQLAlchemyError)
    def _ledger(request: Request, error: SQLAlchemyError) -> Response:
        log.warning("page_without_ledger", reason=type(error).__name__)
        return pages.problem(request, Problem(HTTPStatus.SERVICE_UNAVAILABLE, "the ledger does not answer"))

    @app.exception_handler(Exception)
    def _mistake(request: Request, _error: Exception) -> Response:  # the envelope writes it to the log
        return pages.problem(request, Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a mistake of the node's"))

    return Envelope(Guard(app, web=settings.web, door=door, pages=pages))
