"""`make check` fails on a pinned version that is known to be vulnerable, and says when it could not ask."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.binaries import free_port

ROOT = Path(__file__).parents[2]
PINS = "# a comment\nPillow==12.1.0\nstarlette==1.10.0\npython_gdcm==3.2.6\n"
LIST = {
    "as_of": "2026-06-25",
    "accepted": [{"package": "python-gdcm", "id": "CVE-1", "reason": "never read by it"}],
    "advisories": [
        {"package": "pillow", "id": "CVE-2", "introduced": "12.0", "fixed": "12.2.0"},
        {"package": "starlette", "id": "CVE-3", "fixed": "1.0.1"},
        {"package": "python-gdcm", "id": "CVE-1"},
        {"package": "absent", "id": "CVE-4"},
    ],
}


def audit(folder: Path, pins: str, service: str, known: Mapping[str, Any] = LIST) -> tuple[int, str]:
    """Return exit code and output of the check."""
    (folder / "constraints.txt").write_text(pins)
    (folder / "advisories.json").write_text(json.dumps(known))
    ended = subprocess.run(
        [
            *(sys.executable, ROOT / ".ci" / "advisories.py", "--service", service),
            *("--constraints", folder / "constraints.txt", "--list", folder / "advisories.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return ended.returncode, ended.stdout + ended.stderr


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[Any]]]:
    """Run a service that answers so; give its URL and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/querybatch", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_without_the_service_the_list_is_asked_and_the_output_says_so(tmp_path: Path) -> None:
    code, output = audit(tmp_path, PINS, f"http://127.0.0.1:{free_port()}/")

    assert code == 1
    assert "NOT ASKED: OSV does not answer" in output
    assert "pillow 12.1.0: CVE-2 VULNERABLE" in output
    assert "python-gdcm 3.2.6: CVE-1 accepted: never read by it" in output
    assert "3 pins, 1 vulnerable, by the list of 2026-06-25" in output


def test_a_version_that_has_the_fix_passes(tmp_path: Path) -> None:
    code, output = audit(tmp_path, PINS.replace("12.1.0", "12.2.0"), f"http://127.0.0.1:{free_port()}/")

    assert (code, "VULNERABLE" in output) == (0, False)


def test_the_service_is_asked_for_each_pin_and_believed(tmp_path: Path) -> None:
    """It knows what the list does not, and what was mended."""
    body = json.dumps({"results": [{}, {"vulns": [{"id": "GHSA-x"}]}, {"vulns": [{"id": "CVE-1"}]}]}).encode()
    with answering(200, body) as (url, asked):
        code, output = audit(tmp_path, PINS, url)

    (question,) = asked
    assert question["queries"][1] == {"package": {"name": "starlette", "ecosystem": "PyPI"}, "version": "1.10.0"}
    assert code == 1
    assert "starlette 1.10.0: GHSA-x VULNERABLE" in output
    assert "CVE-2" not in output
    assert "3 pins, 1 vulnerable, by OSV" in output


@pytest.mark.parametrize(
    ("status", "body"), [(403, b"no"), (200, b"<html>"), (200, b"{}"), (200, b'{"results": []}'), (200, b"[]")]
)
def test_an_answer_that_is_none_is_not_taken_for_a_clean_bill(tmp_path: Path, status: int, body: bytes) -> None:
    """Such as a proxy's."""
    with answering(status, body) as (url, _):
        code, output = audit(tmp_path, PINS, url)

    assert code == 1
    assert "NOT ASKED" in output
    assert "by the list of" in output


def test_the_pinned_versions_are_free_of_what_the_list_knows(tmp_path: Path) -> None:
    """The same as `make check` without a network; and the list is of packages that are pinned."""
    known = json.loads((ROOT / ".ci" / "advisories.json").read_text())
    constraints = (ROOT / "constraints.txt").read_text()
    code, output = audit(tmp_path, constraints, f"http://127.0.0.1:{free_port()}/", known)

    assert code == 0, output
    pinned = {line.partition("==")[0].lower() for line in constraints.splitlines()}
    assert {one["package"].lower() for one in known["advisories"]} <= pinned
