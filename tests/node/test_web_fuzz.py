"""The JSON interface against its own OpenAPI document: asked with what that allows and with what it forbids."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.schemas import OpenApiSchema
from starlette.types import ASGIApp

from dicom_node import completion
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.views import studies_json
from dicom_node.store import InstanceStore
from dicom_node.web.app import make_app
from dicom_node.web.health import Pulse
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.node.sites import TOKEN, page_settings

BEARER = {"Authorization": f"Bearer {TOKEN}"}
REPORTED = UID("1.2.826.0.1.77")
LEFT_ALONE = UID("1.2.826.0.1.78")
"""A study that failed and that nobody may take up."""
HOST = {"host": "127.0.0.1"}
OPERATIONS = (
    "GET /healthz",
    "GET /metrics",
    "GET /api/studies",
    "GET /api/studies/{uid}",
    "POST /api/studies/{uid}/retry",
    "POST /api/studies/{uid}/reprocess",
    "POST /api/studies/{uid}/reports/{report_uid}/deliveries/{peer}/again",
)
FORBIDS = ("GET /api/studies",)
"""Operations whose document forbids anything that can be sent."""

# The same examples each time, so that a red test is about the change.
few = settings(max_examples=20, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    """A ledger with one study that has a report and two that failed."""
    folder = tmp_path_factory.mktemp("fuzz")
    opened = open_ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
    clock, analyst = ManualClock(), Analyst(opened, ManualClock())
    arrivals = Arrivals(opened, InstanceStore(folder / "data", min_free_bytes=0), clock)
    reported = arrivals.send(REPORTED)
    arrivals.send()
    arrivals.send(LEFT_ALONE)
    clock.pass_by(60)
    completion.tick(opened, clock, timedelta(seconds=30))
    analyst.report(reported, ["pacs"])
    with opened.begin() as session:
        session.connection().exec_driver_sql(f"UPDATE study SET state='failed', error='no' WHERE id != {reported}")
    yield opened
    close_ledger(opened)


@pytest.fixture(scope="module")
def app(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> ASGIApp:
    """The page of a node with a token, without broker and acceptors."""
    data = tmp_path_factory.mktemp("data")
    store = InstanceStore(data, min_free_bytes=0)
    web = page_settings(data, "redis://127.0.0.1:1/0", token=TOKEN)
    return make_app(web, sessions, store, 1, pulse=Pulse(), ring=lambda _study_id: None)


@pytest.fixture(scope="module")
def document(app: ASGIApp) -> OpenApiSchema:
    """The document of the interface, which those with the token alone can read."""
    config = SchemathesisConfig.from_dict({"seed": 1, "generation": {"with-security-parameters": False}})
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers={**HOST, **BEARER})


def operation(document: OpenApiSchema, label: str) -> APIOperation[Any, Any, Any, Any]:
    """Return an operation of the document."""
    (found,) = [one.ok() for one in document.get_all_operations() if one.ok().label == label]
    return found


def test_the_document_has_these_operations_and_no_other(document: OpenApiSchema) -> None:
    assert sorted(one.ok().label for one in document.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_with_the_token_every_answer_is_one_that_the_document_promises(document: OpenApiSchema, label: str) -> None:
    @few
    @given(case=cases(document, label))
    def ask(case: Case) -> None:
        answer = case.call_and_validate(headers={**HOST, **BEARER}, excluded_checks=[not_a_server_error])
        assert answer.status_code < 500 or (label, answer.status_code) == ("GET /healthz", 503)

    ask()


@pytest.mark.parametrize("label", OPERATIONS)
def test_without_the_token_every_answer_is_a_refusal_that_the_document_promises(
    document: OpenApiSchema, label: str
) -> None:
    @few
    @given(case=cases(document, label))
    def ask(case: Case) -> None:
        answer = case.call_and_validate(headers=HOST, excluded_checks=[not_a_server_error])
        assert answer.status_code == 401 or label == "GET /healthz"
        assert label != "GET /healthz" or "wrong" not in answer.text

    ask()


@pytest.mark.parametrize(("uid", "statuses"), [(STUDY, {200, 409}), (REPORTED, {409}), ("1.2.3", {404})])
def test_studies_that_are_there_are_answered_as_the_document_promises(
    document: OpenApiSchema, uid: str, statuses: set[int]
) -> None:
    found = set()
    for label in OPERATIONS[2:]:
        given_ones = {"uid": uid, "report_uid": "1.2", "peer": "pacs"}
        parameters = {name: value for name, value in given_ones.items() if f"{{{name}}}" in label}
        case = operation(document, label).Case(path_parameters=parameters)
        for _ in range(2):
            answer = case.call_and_validate(headers={**HOST, **BEARER})
            if label.endswith("/retry"):
                found.add(answer.status_code)

    assert found == statuses


def cases(document: OpenApiSchema, label: str) -> st.SearchStrategy[Case]:
    """Return requests for an operation: as the document allows them, and as it forbids them."""
    modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if label in FORBIDS else [])]
    return st.one_of([operation(document, label).as_strategy(generation_mode=mode) for mode in modes])


PATHS = (
    "/",
    "/login",
    "/logout",
    "/?state=failed&before=20260301T120000000000-1",
    f"/studies/{LEFT_ALONE}",
    f"/studies/{LEFT_ALONE}/retry",
    f"/studies/{LEFT_ALONE}/reprocess",
    f"/studies/{LEFT_ALONE}/reports/1.2/deliveries/pacs/again",
    f"/studies/{LEFT_ALONE}/loops/1.2/cine.json",
    f"/studies/{LEFT_ALONE}/loops/1.2/frames/1.jpg",
    f"/studies/{LEFT_ALONE}/pictures/1.2",
    "/health",
    "/configuration",
    f"/api/studies/{LEFT_ALONE}/retry",
    f"/api/studies/{LEFT_ALONE}/reprocess",
    f"/api/studies/{LEFT_ALONE}/reports/1.2/deliveries/pacs/again",
    "/api/studies",
    "/healthz",
)
WORDS = st.one_of(
    st.sampled_from(["127.0.0.1", "http://127.0.0.1", "same-origin", "text/html", "application/x-www-form-urlencoded"]),
    st.sampled_from(["Bearer", "Bearer ", "echo-node=", "form_token=0", "[", "http://["]),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40),
)
NAMES = ("origin", "sec-fetch-site", "cookie", "accept", "content-type", "authorization", "host")


@settings(max_examples=100, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@example(method="GET", path="/", headers={"host": "["}, body=b"", has_login=False)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]),
    path=st.one_of(st.sampled_from(PATHS), st.text(max_size=30).map(lambda text: f"/{quote(text)}")),
    headers=st.dictionaries(st.sampled_from(NAMES), WORDS),
    body=st.one_of(st.binary(max_size=200), st.just(b"form_token=%FF&token=%FF"), st.just(b"&".join([b"a=b"] * 40))),
    has_login=st.booleans(),
)
def test_nothing_that_a_stranger_sends_is_a_mistake_of_ours_or_changes_anything(
    app: ASGIApp, sessions: Sessions, method: str, path: str, headers: dict[str, str], body: bytes, has_login: bool
) -> None:
    before = states(sessions)
    sent = {**HOST, **headers, **({"cookie": log_in(app)} if has_login else {})}
    answer = ask(app, method, path, sent, body)

    assert answer.status_code < 500 or path == "/healthz"
    assert states(sessions) == before
    assert TOKEN not in answer.text


def ask(app: ASGIApp, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
    """Return the answer of the application."""

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            return await client.request(method, path, headers=encoded, content=body)

    return asyncio.run(send())


def log_in(app: ASGIApp) -> str:
    """Return the cookie of a new login."""
    form = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin", **HOST}
    answer = ask(app, "POST", "/login", form, f"token={TOKEN}".encode())
    return answer.headers["Set-Cookie"].partition(";")[0]


def states(sessions: Sessions) -> list[str]:
    """Return the state of each study."""
    return [one["state"] for one in studies_json(sessions)]
