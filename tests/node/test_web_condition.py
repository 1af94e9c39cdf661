"""The pages of the node itself: its health, and its configuration."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from dicom_node import completion
from dicom_node.identity import UID
from dicom_node.ledger import outbox
from dicom_node.ledger.engine import Sessions
from dicom_node.settings import Settings, settings_from
from dicom_node.store import InstanceStore
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.node.sites import TOKEN, serving_page
from tests.node.test_web_guard import assert_safe
from tests.node.test_web_study import words

BEARER = {"Authorization": f"Bearer {TOKEN}"}
PEERS = [
    {"name": "cart", "ae_title": "CART"},
    {"name": "pacs", "ae_title": "ORTHANC", "host": "192.0.2.1", "receives_reports": True},
    {"name": "web", "ae_title": "WEB", "stow_url": "https://user:hunter2@192.0.2.2/stow?key=hunter3",
     "receives_reports": True},
]  # fmt: skip


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: what the ledger shows has its own tests on each engine."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A configuration of which some is from the file, some from the environment, and most from nowhere."""
    monkeypatch.setenv("ECHO_NODE__NODE__MAX_PDU", "65536")
    monkeypatch.setenv("ECHO_NODE__WEB__TOKEN", TOKEN)
    monkeypatch.setenv("ECHO_NODE__RETENTION", '{"days": 9}')
    return settings_from(
        {
            "node": {"data_dir": str(tmp_path / "data"), "min_free_bytes": 1, "max_pdu": 16384, "port": 11113},
            "broker": {"url": "redis://:hunter4@127.0.0.1:1/0"},
            "peers": PEERS,
        }
    )


@pytest.fixture
def client(sessions: Sessions, store: InstanceStore, settings: Settings) -> Iterator[httpx.Client]:
    """Somebody with the token."""
    with ExitStack() as running:
        site = running.enter_context(serving_page(settings, sessions, store, 1))
        site.client.headers.update(BEARER)
        yield site.client


def rows(page: httpx.Response, section: str) -> list[str]:
    """Return the words of each row of a section's table, its head apart."""
    inside = page.text.partition(f'id="{section}"')[2].partition("</section>")[0].partition("</thead>")[2]
    return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr.*?</tr>", inside, re.DOTALL)]


def setting(page: httpx.Response, key: str, section: str) -> str:
    """Return value and origin of a key as the page has them."""
    inside = page.text.partition(f"<code>{section}</code>")[2].partition("</section>")[0]
    (row,) = re.findall(rf"<code>{key}</code></th>(.*?)<td class=\"meaning\">", inside, re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", row).split())


def test_health_says_what_is_wrong_and_how_much_waits(client: httpx.Client, arrivals: Arrivals) -> None:
    arrivals.send()
    arrivals.send()
    page = client.get("/health")
    said = words(page)

    assert_safe(page)
    assert "nobody accepts DICOM associations" in said
    assert "the broker does not answer" in said
    assert "Waiting 2 instances; 0 in hand" in said
    assert "reserve 1 bytes; room is made below 2 bytes" in said
    assert rows(page, "letters") == rows(page, "failures") == []


def test_health_says_of_each_peer_when_it_was_heard_of_and_what_it_said(
    client: httpx.Client, sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id, ["pacs", "web"])
    (item,) = outbox.due(sessions, "web", limit=9, lease=LEASE, clock=clock)
    outbox.delivered(sessions, item, clock)
    (item,) = outbox.due(sessions, "pacs", limit=9, lease=LEASE, clock=clock)
    outbox.retry_later(sessions, item, "<no> route to host", clock() + timedelta(minutes=5))
    cart, pacs, web = rows(client.get("/health"), "peers")

    assert re.fullmatch(r"cart CART \d+ d ago gets no reports 0 0", cart)
    assert pacs == "pacs ORTHANC none of the last 5000 none yet 1 0 &lt;no&gt; route to host"
    assert re.fullmatch(r"web WEB none of the last 5000 \d+ d ago 0 0", web)


def test_health_lists_who_holds_work_and_whose_networks_spoke(
    client: httpx.Client, sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    arrivals.send()
    analyst.claim(study_id, limit=1)
    holding = rows(client.get("/health"), "workers")
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    analyst.drain(study_id)

    assert holding == ["analyst 1"]
    assert "None holds work at the moment" in words(client.get("/health"))


def test_health_lists_what_needs_a_person_with_a_link(
    client: httpx.Client, sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    study_id, other = arrivals.send(), arrivals.send(UID("1.2.826.0.1.2"))
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id, ["pacs"])
    (item,) = outbox.due(sessions, "pacs", limit=9, lease=LEASE, clock=clock)
    outbox.dead(sessions, item, "status 0xA900", clock)
    with sessions.begin() as session:
        session.connection().exec_driver_sql(
            f"UPDATE instance SET state='failed', reason='three attempts ended' WHERE study_id={other}"
        )
    page = client.get("/health")

    assert [row.partition(" ago ")[0].rpartition(" ")[0].rpartition(" ")[0] for row in rows(page, "letters")] == [
        "pacs status 0xA900 1"
    ]
    study, instance = rows(page, "failures")
    assert study.startswith("the study the report did not reach pacs: status 0xA900 ")
    assert instance.startswith("an instance three attempts ended ")
    assert f'href="/studies/{STUDY}#reports"' in page.text
    assert '<a href="/?state=failed">' in page.text


def test_the_configuration_says_of_each_key_its_value_and_who_gave_it(client: httpx.Client) -> None:
    page = client.get("/configuration")

    assert_safe(page)
    assert setting(page, "port", r"[node]") == "11113 file"
    assert setting(page, "max_pdu", "[node]") == "65536 environment"  # which wins over the file
    assert setting(page, "days", "[retention]") == "9 environment"
    assert setting(page, "quarantine_days", "[retention]") == "30 default"
    assert setting(page, "require_known_peer", "[node]") == "false default"
    assert setting(page, "receives_reports", "[[peers]] pacs") == "true file"
    assert setting(page, "receives_reports", "[[peers]] cart") == "false default"


def test_every_key_of_the_configuration_is_on_its_page(client: httpx.Client) -> None:
    keys = {*re.findall(r'<th scope="row"><code>(\w+)</code>', client.get("/configuration").text)}
    wanted: set[str] = set()
    for name, field in Settings.model_fields.items():
        section: Any = field.annotation
        if name != "peers":
            wanted |= {*section.model_fields}

    assert keys >= wanted - {"tls"}  # a section of its own, where it is set
    assert "tls" in keys


def test_of_a_secret_is_shown_whether_it_is_set_and_no_more(client: httpx.Client) -> None:
    page = client.get("/configuration")

    assert setting(page, "token", "[web]") == "set environment"
    assert setting(page, "url", "[broker]") == "set file"
    assert setting(page, "url", "[database]") == "not set default"
    assert "192.0.2.2/stow" in page.text
    assert not re.search(f"hunter|user:|{TOKEN}", page.text)


def test_the_embedded_brokers_password_is_no_ones_setting(
    sessions: Sessions, store: InstanceStore, tmp_path: Path
) -> None:
    from dicom_node.serve import _with_broker

    settings = _with_broker(settings_from({"node": {"data_dir": str(tmp_path)}}), "redis://:hunter5@127.0.0.1:1/0")
    with serving_page(settings, sessions, store, 1) as site:
        page = site.client.get("/configuration")

    assert setting(page, "url", "[broker]") == "not set default"
    assert "hunter" not in page.text
