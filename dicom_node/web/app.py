"""The pages and the JSON interface; everything is read from the ledger at each request."""

import hmac
import socket
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from jinja2 import Environment, PackageLoader, select_autoescape
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import broker
from dicom_node.errors import InvalidUID, UnknownStudy
from dicom_node.identity import parse_uid
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import Delivery, DeliveryState, Study, StudyState
from dicom_node.ledger.views import StudyJson, count_by_state, studies_json, study_json
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore

_PAGE = 200  # studies on the page


def make_app(settings: Settings, sessions: Sessions, store: InstanceStore, node_port: int) -> FastAPI:
    """Return the web application."""
    templates = Environment(loader=PackageLoader("dicom_node.web"), autoescape=select_autoescape(default=True))
    token = settings.web.token.get_secret_value()
    data_dir = settings.node.data_dir
    app = FastAPI(title="echo AI node", docs_url=None, redoc_url=None, dependencies=[Depends(_guard(token))])
    registry = CollectorRegistry()
    registry.register(_Gauges(sessions, store))

    @app.middleware("http")
    async def _headers(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        answer.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        wrong = _what_is_wrong(settings, sessions, store, node_port)
        return JSONResponse({"status": "failing" if wrong else "ok", "wrong": wrong}, status_code=503 if wrong else 200)

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.get("/api/studies", response_model=None)
    def studies(state: StudyState | None = None) -> list[StudyJson]:
        return studies_json(sessions, state, data_dir=data_dir)

    @app.get("/api/studies/{uid}", response_model=None)
    def study(uid: str) -> StudyJson:
        try:
            return study_json(sessions, parse_uid(uid), data_dir=data_dir)
        except (InvalidUID, UnknownStudy) as error:
            raise HTTPException(404, str(error)) from error

    @app.get("/")
    def page() -> HTMLResponse:
        found = studies_json(sessions, limit=_PAGE, data_dir=data_dir)
        return HTMLResponse(templates.get_template("studies.html").render(studies=found, limit=_PAGE))

    return app


def _guard(token: str) -> Any:
    def check(authorization: Annotated[str, Header()] = "") -> None:
        if token and not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})

    return check


def _what_is_wrong(settings: Settings, sessions: Sessions, store: InstanceStore, node_port: int) -> list[str]:
    wrong = []
    try:
        with sessions.begin() as session:  # writes nothing, but must be allowed to
            session.execute(update(Study).where(Study.id == -1).values(attempts=0))
    except SQLAlchemyError as error:
        wrong.append(f"the ledger cannot be written ({type(error).__name__})")
    if store.free_bytes() <= settings.node.min_free_bytes:
        wrong.append("the disk has less than node.min_free_bytes left")
    host = settings.node.host if settings.node.host not in ("0.0.0.0", "::") else "127.0.0.1"
    try:
        socket.create_connection((host, node_port), timeout=2).close()
    except OSError:
        wrong.append("nobody accepts DICOM associations")
    if not broker.answers(settings.broker.url.get_secret_value()):
        wrong.append("the broker does not answer")
    return wrong


class _Gauges(Collector):
    """The state of the node at the moment of the scrape."""

    def __init__(self, sessions: Sessions, store: InstanceStore) -> None:
        self._sessions = sessions
        self._store = store

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the gauges."""
        studies = GaugeMetricFamily("echo_node_studies", "Studies in each state", labels=["state"])
        for state, number in count_by_state(self._sessions).items():
            studies.add_metric([state.value], number)
        deliveries = GaugeMetricFamily("echo_node_deliveries", "Deliveries in each state", labels=["state"])
        for delivery_state, number in _deliveries_by_state(self._sessions).items():
            deliveries.add_metric([delivery_state.value], number)
        free = GaugeMetricFamily("echo_node_disk_free_bytes", "Free bytes where instances are kept")
        free.add_metric([], self._store.free_bytes())
        return [studies, deliveries, free]


def _deliveries_by_state(sessions: Sessions) -> dict[DeliveryState, int]:
    with reading(sessions) as session:
        rows = session.execute(select(Delivery.state, func.count()).group_by(Delivery.state)).all()
    counts = {DeliveryState(state): number for state, number in rows}
    return {state: counts.get(state, 0) for state in DeliveryState}
