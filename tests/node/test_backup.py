"""Backup and restore, by the very commands of docs/operations.md."""

import os
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.views import study_json
from dicom_node.orphans import missing, orphans
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock

ROOT = Path(__file__).parents[2]
QUIET = timedelta(seconds=30)
DELIVERED, WAITING, HALF = (UID(f"1.2.826.0.1.5.{number}") for number in range(3))


def commands() -> list[str]:
    """Return the blocks of commands: ledger on SQLite, on PostgreSQL, files, restore."""
    section = (ROOT / "docs" / "operations.md").read_text().partition("## Backup and restore")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)


def run(command: str, data_dir: Path, backup: Path, database: str) -> None:
    """Run a block as a person would."""
    names = {"DATA_DIR": str(data_dir), "BACKUP": str(backup), "DATABASE": database}
    subprocess.run(["bash", "-euc", command], check=True, env={**os.environ, **names}, capture_output=True)


def test_a_node_that_is_restored_goes_on_where_it_was(
    ledger_url: str, tmp_path: Path, clock: ManualClock, request: pytest.FixtureRequest
) -> None:
    """With a study that is delivered, one whose report waits, and one that is half analysed."""
    data_dir, backup, restored = tmp_path / "data", tmp_path / "backup", tmp_path / "restored"
    is_sqlite = ledger_url.startswith("sqlite")
    url = f"sqlite:///{data_dir / 'ledger.sqlite'}" if is_sqlite else ledger_url
    store = InstanceStore(data_dir, min_free_bytes=0)
    sessions = open_ledger(url)
    arrivals, analyst = Arrivals(sessions, store, clock), Analyst(sessions, clock)
    ids = {study: arrivals.send(study) for study in (DELIVERED, WAITING, HALF)}
    arrivals.send(HALF)
    clock.pass_by(31)
    tick(sessions, clock, QUIET)
    analyst.report(ids[DELIVERED])
    analyst.report(ids[WAITING], ["pacs"])
    analyst.answer(analyst.claim(ids[HALF], limit=1)[0])
    analyst.claim(ids[HALF])  # and its worker is lost with the machine
    before = {study: study_json(sessions, study, data_dir=data_dir) for study in ids}
    on_sqlite, on_postgresql, files, restore = commands()

    backup.mkdir()
    run(on_sqlite if is_sqlite else on_postgresql, data_dir, backup, _libpq(url))
    run(files, data_dir, backup, _libpq(url))
    close_ledger(sessions)
    new_url = (
        f"sqlite:///{restored / 'ledger.sqlite'}" if is_sqlite else request.getfixturevalue("postgres").new_database()
    )
    run(restore, restored, backup, _libpq(new_url))

    sessions, store = open_ledger(new_url), InstanceStore(restored, min_free_bytes=0)
    after = {study: study_json(sessions, study, data_dir=data_dir) for study in ids}
    analyst = Analyst(sessions, clock)
    clock.pass_by(3600)
    assert after == before
    assert tick(sessions, clock, QUIET) == [ids[HALF]]
    analyst.report(ids[HALF])
    assert {study_json(sessions, study)["state"] for study in ids} == {"delivered", "delivering"}
    assert [path for path in missing(sessions, store) if path.startswith("instances")] == []
    assert list(orphans(sessions, store, older_than=timedelta(0))) == []
    close_ledger(sessions)


def _libpq(url: str) -> str:
    """Return the URL as PostgreSQL's own programs take it; of SQLite none."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return ""
    return parsed.set(drivername="postgresql").render_as_string(hide_password=False)
