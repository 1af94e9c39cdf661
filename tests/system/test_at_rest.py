"""What a running node leaves on its disk, in its log and among the processes: for its own user alone, and no secret."""

import os
import re
import signal
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy.engine import make_url

from model.tasks import View
from tests.binaries import free_port
from tests.peers import running_postgres
from tests.system.nodes import Node, configured, running, running_redis, wait_until
from tests.system.studies import phantom_study
from worker.phantom_study import Shot

pytestmark = pytest.mark.timeout(600)

SECRET = "Xyzzy-Plugh-2718281828"
TOKEN = "token-Plugh-3141592653"


def descendants(node: Node) -> list[psutil.Process]:
    """Return the processes of a running node."""
    return [psutil.Process(node.state["pid"]), *psutil.Process(node.state["pid"]).children(recursive=True)]


def shown(node: Node) -> dict[str, str]:
    """Return everything of a running node that others may look at, or that a person copies into a mail."""
    files = {str(path): path.read_bytes().decode("latin-1") for path in files_of(node) if path.is_file()}
    commands = {f"process {one.pid}": " ".join(one.cmdline()) for one in descendants(node)}
    return {**files, **commands, "log": node.log}


def files_of(node: Node) -> list[Path]:
    """Return data_dir and everything below it."""
    var = node.folder / "var"
    return [var, *var.rglob("*")]


def test_what_the_node_writes_is_its_user_s_alone_and_the_broker_s_password_is_nowhere(tmp_path: Path) -> None:
    study = phantom_study(seed=3, shots=(Shot(view=View.A4C, num_frames=40),))
    uid = str(study[0].StudyInstanceUID)
    node = configured(tmp_path / "node", pacs_port=free_port(), extra="[report]\nsummary_pdf = false")
    node.folder.chmod(0o755)
    before = os.umask(0o000)  # a generous one, as some service managers set it
    try:
        with running(node):
            node.send(study)
            elsewhere = study[0]
            elsewhere.StudyInstanceUID = f"{uid}.1"
            (refused,) = node.send([elsewhere])
            kept = node.wait_for(uid, "delivering")
            (worker,) = [one["pid"] for one in node.state["children"] if one["name"] == "worker"]
            password = make_url(psutil.Process(worker).environ()["ECHO_NODE__BROKER__URL"]).password
            (broker,) = [one["pid"] for one in node.state["children"] if one["name"] == "broker"]
            os.kill(broker, signal.SIGKILL)
            wait_until(lambda: "Cannot connect to redis" in node.log or None, "the worker misses the broker", node)
            modes = {path: path.stat().st_mode & 0o777 for path in files_of(node)}
            everything = shown(node)
    finally:
        os.umask(before)

    assert refused == 0xC010
    assert kept["reports"][0]["pictures"]
    names = {path.relative_to(node.folder / "var").as_posix().split("/")[0] for path in modes}
    assert names >= {
        *("instances", "reports", "pictures", "previews", "quarantine", "incoming"),
        *("broker", "seats", "serve.json", "serve.lock"),
        *("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite.lock"),
    }
    assert {path: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}
    assert isinstance(password, str)
    assert [name for name, text in everything.items() if password in text] == []
    assert len([name for name in everything if name.startswith("process")]) >= 6


def test_no_secret_of_the_settings_is_shown_by_a_running_node(tmp_path: Path) -> None:
    with running_postgres() as postgres, running_redis(tmp_path / "redis", password=SECRET) as broker_url:
        database_url = make_url(postgres.new_database()).set(password=SECRET).render_as_string(hide_password=False)
        node = configured(
            tmp_path / "node", pacs_port=free_port(), database_url=database_url, broker_url=broker_url,
            extra=f'token = "{TOKEN}"',
        )  # fmt: skip
        with running(node):
            url = f"http://127.0.0.1:{node.state['web_port']}"
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            wait_until(lambda: httpx.get(f"{url}/healthz").status_code == 200 or None, "the node is healthy", node)
            pages = ("/", "/configuration", "/health", "/login", "/no-such-path")
            paths = (*pages, "/healthz", "/metrics", "/api/studies", "/openapi.json")
            answers = [httpx.get(url + path, headers=headers) for path in paths for headers in ({}, bearer)]
            httpx.get(f"{url}/", headers={"Authorization": f"Bearer {TOKEN}-not"})
            login = httpx.post(f"{url}/login", data={"token": TOKEN}, headers={"Origin": url})
            refused = httpx.post(f"{url}/login", data={"token": TOKEN[:-1]}, headers={"Origin": url})
            everything = shown(node)

    everything |= {f"{one.url}": f"{one.text}{one.headers}" for one in (*answers, login, refused)}
    assert (login.status_code, refused.status_code) == (303, 401)
    assert node.events("web_login_accepted")
    assert len(node.events("web_login_refused")) == 2
    assert SECRET in database_url
    assert SECRET in broker_url
    assert [name for name, text in everything.items() if re.search(f"{SECRET}|{TOKEN[:-1]}", text)] == []
