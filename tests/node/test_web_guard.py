"""Who gets into the page, and who may change anything through it: over a real socket, as scripts and browsers come."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from dicom_node.ledger.engine import Sessions
from dicom_node.store import InstanceStore
from dicom_node.web.envelope import MAX_BODY
from dicom_node.web.throttle import TRIES
from tests.doubles.arrivals import STUDY, Arrivals
from tests.node.sites import TOKEN, Serve, Site, page_settings, serving_page
from tests.patience import wait_until

BEARER = {"Authorization": f"Bearer {TOKEN}"}
BROWSER = {"Accept": "text/html,application/xhtml+xml"}
RETRY = f"/studies/{STUDY}/retry"


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: no row is looked at here that has not its own tests on each engine."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@pytest.fixture
def serve(sessions: Sessions, store: InstanceStore, tmp_path: Path) -> Iterator[Serve]:
    """Start the page of a node without a broker and acceptors, with these settings."""
    with ExitStack() as running:

        def start(*, seen: list[tuple[str, bool]] | None = None, **web: Any) -> Site:
            note = [] if seen is None else seen
            settings = page_settings(tmp_path / "data", "redis://127.0.0.1:1/0", **web)
            site = serving_page(settings, sessions, store, 1, on_login=lambda *one: note.append(one))
            return running.enter_context(site)

        yield start


def form_token(page: httpx.Response) -> str:
    """Return what the forms of a page carry."""
    return page.text.partition('name="form_token" value="')[2].partition('"')[0]


def state(site: Site) -> str:
    """Return the state of the study."""
    headers = BEARER if site.client.get("/api/studies").status_code == 401 else {}
    return str(site.client.get(f"/api/studies/{STUDY}", headers=headers).json()["state"])


def raw(site: Site, request: bytes) -> bytes:
    """Send bytes and return all that comes until the other end closes."""
    with site.connect() as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def answered(received: bytes) -> httpx.Response:
    """Return what came, as an answer."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().splitlines() or ["nothing 0"]
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    return httpx.Response(int(first.split()[1]), headers=headers, content=body)


# --- the token ---


PRIVATE = ("/", "/api/studies", "/api/studies/1.2.3", "/metrics", "/openapi.json", "/no-such-path", "/healthz/")


@pytest.mark.parametrize("header", ["", "Basic c2VjcmV0", "Digest Bearer"])
def test_without_the_token_nothing_is_shown(serve: Serve, header: str) -> None:
    client = serve(token=TOKEN).client
    answers = [client.get(path, headers={"Authorization": header} if header else {}) for path in PRIVATE]

    assert [answer.status_code for answer in answers] == [401] * len(PRIVATE)
    assert {answer.headers["WWW-Authenticate"] for answer in answers} == {"Bearer"}
    assert {answer.text for answer in answers} == {'{"detail":"a bearer token is needed"}'}


def test_with_a_wrong_token_nothing_is_shown(serve: Serve) -> None:
    client = serve(token=TOKEN).client
    wrong = ("Bearer wrong", "Bearer", f"Bearer {TOKEN}{TOKEN}", f"Bearer {TOKEN[:-1]}", f"bearer {TOKEN.upper()}")
    answers = [client.get("/healthz", headers={"Authorization": header}) for header in wrong]

    assert [answer.status_code for answer in answers] == [401] * len(wrong)
    assert {answer.text for answer in answers} == {'{"detail":"this is not the token"}'}


def test_with_the_token_everything_is_shown(serve: Serve) -> None:
    client = serve(token=TOKEN).client
    client.headers["Authorization"] = f"bearer {TOKEN}"
    statuses = [client.get(path).status_code for path in ("/", "/api/studies", "/metrics", "/openapi.json")]

    assert statuses == [200] * 4


def test_a_host_that_ends_in_an_open_path_opens_no_other(serve: Serve) -> None:
    site = serve(host="0.0.0.0", token=TOKEN)
    hosts = (b"x/healthz?", b"x/login#", b"x/style.css?")
    answers = [raw(site, b"GET /api/studies HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % one) for one in hosts]

    assert [answer.split()[1] for answer in answers] == [b"401"] * 3


def test_a_login_opens_the_page_until_it_is_ended(serve: Serve, failed: int) -> None:
    seen: list[tuple[str, bool]] = []
    site = serve(token=TOKEN, seen=seen)
    login = site.log_in()
    cookie = login.headers["Set-Cookie"]
    page = site.client.get("/")
    stolen = dict(site.client.cookies)
    ended = site.client.post("/logout", data={"form_token": form_token(page)}, headers={"Origin": site.origin})
    after = httpx.get(f"{site.origin}/", cookies=stolen)

    assert (login.status_code, login.headers["Location"]) == (303, "/")
    assert {part.strip() for part in cookie.split(";")[1:]} == {
        "Path=/",
        "Max-Age=43200",
        "HttpOnly",
        "SameSite=Strict",
    }
    assert TOKEN not in cookie
    assert page.status_code == 200
    assert STUDY in page.text
    assert (ended.status_code, ended.headers["Location"]) == (303, "/login")
    assert after.status_code == 401
    assert seen == [("127.0.0.1", True)]


def test_a_browser_without_a_login_is_sent_to_it(serve: Serve) -> None:
    client = serve(token=TOKEN).client
    answer = client.get("/", headers=BROWSER)
    page = client.get("/login", headers=BROWSER)

    assert (answer.status_code, answer.headers["Location"]) == (303, "/login")
    assert page.status_code == 200
    assert '<input type="password" name="token"' in page.text
    assert "<script" not in page.text
    assert client.get("/style.css").headers["content-type"].startswith("text/css")


def test_a_login_with_a_wrong_token_is_refused_and_seen(serve: Serve) -> None:
    seen: list[tuple[str, bool]] = []
    site = serve(token=TOKEN, seen=seen)
    answer = site.log_in("wrong")

    assert answer.status_code == 401
    assert "this is not the token" in answer.text
    assert "Set-Cookie" not in answer.headers
    assert seen == [("127.0.0.1", False)]


def test_an_open_page_needs_no_login(serve: Serve) -> None:
    site = serve()

    assert site.client.get("/login").headers["Location"] == "/"
    assert site.log_in("whatever").headers["Location"] == "/"


# --- changes ---


def test_a_button_of_the_open_page_takes_up_a_failed_study(serve: Serve, failed: int) -> None:
    site = serve()
    page = site.client.get("/")
    form = {"form_token": form_token(page)}
    answer = site.client.post(RETRY, data=form, headers={"Origin": site.origin})
    again = site.client.post(RETRY, data=form, headers={"Sec-Fetch-Site": "same-origin", **BROWSER})

    assert f'action="{RETRY}"' in page.text
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/studies/{STUDY}?done=retried")
    assert state(site) == "analysing"
    assert site.rung == [failed]
    assert again.status_code == 409
    assert "has not failed: nothing to retry" in again.text
    assert f'action="{RETRY}"' not in site.client.get("/").text


def test_a_button_of_a_login_takes_up_a_failed_study(serve: Serve, failed: int) -> None:
    site = serve(token=TOKEN)
    site.log_in()
    form = {"form_token": form_token(site.client.get("/"))}
    answer = site.client.post(RETRY, data=form, headers={"Origin": site.origin})

    assert answer.status_code == 303
    assert site.rung == [failed]


FOREIGN = (
    {},
    {"Origin": "null"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "OWN", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "OWN", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
)


@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "login"])
def test_another_site_changes_nothing_in_a_user_s_name(serve: Serve, failed: int, token: str) -> None:
    site = serve(token=token)
    site.log_in()
    form = {"form_token": form_token(site.client.get("/"))}
    statuses = []
    for headers in FOREIGN:
        sent = {name: site.origin if value == "OWN" else value for name, value in headers.items()}
        statuses += [site.client.post(path, data=form, headers=sent).status_code for path in (RETRY, f"/api{RETRY}")]

    assert form["form_token"]
    assert statuses == [403] * 2 * len(FOREIGN)
    assert state(site) == "failed"


@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "login"])
def test_a_form_that_another_page_made_changes_nothing(serve: Serve, failed: int, token: str) -> None:
    site = serve(token=token)
    site.log_in()
    forms = ({}, {"form_token": ""}, {"form_token": "0" * 64}, {"form_token": form_token(serve().client.get("/"))})
    answers = [site.client.post(RETRY, data=form, headers={"Origin": site.origin}) for form in forms]

    assert [answer.status_code for answer in answers] == [403] * len(forms)
    assert state(site) == "failed"


def test_a_form_of_another_login_changes_nothing(serve: Serve, failed: int) -> None:
    site = serve(token=TOKEN)
    site.log_in()
    other = {"form_token": form_token(site.client.get("/"))}
    site.log_in()
    answer = site.client.post(RETRY, data=other, headers={"Origin": site.origin})

    assert other["form_token"]
    assert answer.status_code == 403
    assert state(site) == "failed"


def test_a_form_field_in_json_does_not_count(serve: Serve, failed: int) -> None:
    site = serve()
    body = {"form_token": form_token(site.client.get("/"))}

    assert site.client.post(RETRY, json=body, headers={"Origin": site.origin}).status_code == 403


def test_a_script_with_the_token_needs_neither(serve: Serve, failed: int) -> None:
    site = serve(token=TOKEN)

    assert site.client.post(f"/api{RETRY}").status_code == 401
    assert site.client.post(f"/api{RETRY}", headers=BEARER).status_code == 200


def test_another_site_may_not_log_anybody_in(serve: Serve) -> None:
    answer = serve(token=TOKEN).log_in(Origin="http://evil.example")

    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


def test_no_other_origin_is_told_that_it_may_ask(serve: Serve) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = serve().client.options("/api/studies", headers=asked)

    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


# --- names ---


def test_a_page_on_loopback_is_asked_for_by_this_machine_s_names(serve: Serve) -> None:
    client = serve().client
    hosts = ("127.0.0.1:8042", "localhost", "LOCALHOST:1", "[::1]:8042", "127.0.0.2")

    assert [client.get("/", headers={"Host": host}).status_code for host in hosts] == [200] * len(hosts)


def test_a_name_that_was_pointed_at_this_machine_shows_nothing(serve: Serve) -> None:
    """DNS rebinding: the browser takes the page for one of evil.example, and would let its scripts read it."""
    client = serve().client
    hosts = ("evil.example", "127.0.0.1.evil.example:8042", "localhost.evil.example", "[::2]", "[", "@", "")
    answers = [client.get("/", headers={"Host": host}) for host in hosts]

    assert [answer.status_code for answer in answers] == [421] * len(hosts)
    assert not any("Studies" in answer.text for answer in answers)


def test_a_name_of_the_settings_is_taken_and_no_other(serve: Serve) -> None:
    client = serve(host="0.0.0.0", token=TOKEN, names=["Echo.Hospital.example"]).client
    statuses = [
        client.get("/", headers={**BEARER, "Host": host}).status_code
        for host in ("echo.hospital.example", "ECHO.hospital.example:443", "127.0.0.1:8042", "other.example")
    ]

    assert statuses == [200, 200, 200, 421]


def test_beyond_loopback_any_name_is_taken_unless_some_are_given(serve: Serve) -> None:
    client = serve(host="0.0.0.0", token=TOKEN).client

    assert client.get("/", headers={**BEARER, "Host": "node.example"}).status_code == 200


# --- too many wrong tokens ---


def test_an_address_that_tries_too_often_must_wait_and_the_others_need_not(serve: Serve) -> None:
    seen: list[tuple[str, bool]] = []
    site = serve(token=TOKEN, proxies=["127.0.0.1"], seen=seen)
    attacker, other = {"X-Forwarded-For": "203.0.113.7"}, {"X-Forwarded-For": "203.0.113.8"}
    logged_in = site.log_in(**attacker)
    statuses = [
        site.client.get("/", headers={"Authorization": f"Bearer guess-{number}", **attacker}).status_code
        for number in range(TRIES + 1)
    ]
    right = site.client.get("/metrics", headers={**BEARER, **attacker})
    form = site.log_in(**attacker)

    assert logged_in.status_code == 303
    assert statuses == [401] * TRIES + [429]
    assert right.status_code == 429  # it is not looked at: an answer would tell a guess from another
    assert 1 <= int(right.headers["Retry-After"]) <= 60
    assert form.status_code == 429
    assert "try again in" in form.text
    assert site.client.get("/", headers=attacker).status_code == 200  # who has logged in stays
    assert site.client.get("/metrics", headers={**BEARER, **other}).status_code == 200
    assert seen == [("203.0.113.7", True)] + [("203.0.113.7", False)] * TRIES


def test_who_is_no_proxy_of_the_settings_cannot_say_who_he_is(serve: Serve) -> None:
    site = serve(token=TOKEN)
    statuses = [
        site.log_in("wrong", **{"X-Forwarded-For": f"203.0.113.{number}"}).status_code for number in range(TRIES + 1)
    ]

    assert statuses == [401] * TRIES + [429]


# --- answers ---


def test_every_answer_says_what_a_browser_may_do_with_it(serve: Serve) -> None:
    client = serve().client
    asked = (
        "GET /",
        "GET /healthz",
        "GET /no-such-path",
        "GET /api/studies?state=nonsense",
        "DELETE /",
        "PUT /healthz",
    )
    answers = [client.request(*one.split()) for one in asked]

    assert [answer.status_code for answer in answers] == [200, 503, 404, 422, 403, 403]
    for answer in answers:
        assert_safe(answer)
        assert "strict-transport-security" not in answer.headers


def assert_safe(answer: httpx.Response) -> None:
    """Assert the headers of every answer."""
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in answer.headers["permissions-policy"]
    assert "server" not in answer.headers


def test_a_mistake_of_ours_shows_nothing_of_itself(serve: Serve, arrivals: Arrivals, sessions: Sessions) -> None:
    arrivals.send()
    site = serve()
    with sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE study SET received_at = 'never'")
    with capture_logs() as lines:
        answer = site.client.get("/api/studies")
        wait_until(lambda: "request_failed" in [line["event"] for line in lines])

    assert (answer.status_code, answer.json()) == (500, {"detail": "a mistake of the node's"})
    assert_safe(answer)


def test_what_is_no_http_gets_one_answer_with_the_same_headers(serve: Serve) -> None:
    answer = answered(raw(serve(), b"\x16\x03\x01 no http\r\n\r\n"))

    assert (answer.status_code, answer.content) == (400, b"")
    assert_safe(answer)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_long_is_not_read_to_its_end(serve: Serve, is_chunked: bool) -> None:
    """Its end never comes."""
    length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % (2 * MAX_BODY)
    begun = (b"%x\r\n" % (2 * MAX_BODY) if is_chunked else b"") + b"x" * (MAX_BODY + 1)
    answer = answered(raw(serve(), b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n\r\n%b" % (length, begun)))

    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert_safe(answer)


def test_headers_without_end_are_not_collected(serve: Serve) -> None:
    site = serve()
    with site.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 20_000)
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert site.client.get("/login").status_code == 303
