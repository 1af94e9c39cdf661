"""A worker with the shipped networks on a ledger of its own."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.settings import Report as ReportSection
from dicom_node.store import InstanceStore
from model.ensemble import SHIPPED
from model.phantom.heart import Heart
from model.tasks import View
from worker.analyse import Analyst
from worker.engine import Engine, load_engine
from worker.phantom_study import Shot, make_study
from worker.settings import Limits

SHOTS = (Shot(view=View.A4C, num_frames=24), Shot(view=View.PLAX, num_frames=24), Shot(view=View.PLAX, num_frames=1))


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The shipped networks."""
    return load_engine(SHIPPED, device="cpu", precision="fp32")


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    """An empty ledger."""
    sessions = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield sessions
    close_ledger(sessions)


@pytest.fixture
def store(tmp_path: Path) -> InstanceStore:
    """An empty store."""
    return InstanceStore(tmp_path / "data", min_free_bytes=0)


@pytest.fixture
def rung() -> list[int]:
    """The studies that were rung for."""
    return []


@pytest.fixture
def analyst(engine: Engine, sessions: Sessions, store: InstanceStore, rung: list[int]) -> Analyst:
    """A worker."""
    return Analyst(
        current_engine=lambda: engine,
        sessions=sessions,
        store=store,
        destinations=("pacs",),
        report=ReportSection().without_pictures,
        limits=Limits(),
        draft_after=timedelta(seconds=15),
        ring=rung.append,
        owner="test",
    )


@pytest.fixture
def study() -> list[Dataset]:
    """Two loops and a still."""
    heart = Heart(edv_ml=120.0, esv_ml=50.0)
    return [*make_study(heart, seed=1, at=datetime(2026, 11, 24, tzinfo=UTC), shots=SHOTS)]
