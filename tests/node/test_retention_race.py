"""An image comes in the very moment in which retention removes its study: it is kept, whichever step comes first."""

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import select

from dicom_node.completion import tick
from dicom_node.errors import LedgerUnavailable, StoreError
from dicom_node.identity import UID
from dicom_node.intake import Received
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import Instance
from dicom_node.ledger.views import study_json
from dicom_node.retention import purge
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import Arrivals, instance
from tests.doubles.clock import ManualClock
from tests.doubles.steps import watched

WEEK = Retention(days=7)
GIVES_WAY = 0.4
"""Seconds that the one in between is waited for: where it must wait for the other itself, it ends after it."""


@pytest.fixture
def studies(arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock) -> Callable[[], UID]:
    """Give studies of two images, each delivered eight days ago."""
    numbers = itertools.count(1)

    def old_study() -> UID:
        study_uid = UID(f"1.2.826.0.8.{next(numbers)}")
        for _ in range(2):
            study_id = arrivals.send(study_uid)
        clock.pass_by(31)
        tick(sessions, clock, timedelta(seconds=30))
        analyst.report(study_id)
        clock.pass_by(8 * 86400)
        return study_uid

    return old_study


def in_between(step: int, first: Callable[[], object], second: Callable[[], object]) -> bool:
    """Do the first, and the second before the step of this number of it; return whether there are so many."""
    steps = itertools.count()
    mine = threading.current_thread()
    other = threading.Thread(target=second)

    def reached(_name: str) -> None:
        if threading.current_thread() is mine and next(steps) == step:
            other.start()
            other.join(GIVES_WAY)

    with watched(reached, "scandir"):  # what comes before a folder is listed is removed with it
        first()
    if other.ident is None:
        return False
    other.join(60)
    assert not other.is_alive()
    return True


@pytest.mark.parametrize("is_first", ["retention", "the image"])
def test_an_image_that_comes_in_any_step_of_retention_is_kept(
    studies: Callable[[], UID],
    arrivals: Arrivals,
    sessions: Sessions,
    store: InstanceStore,
    clock: ManualClock,
    is_first: str,
) -> None:
    def remove() -> None:
        with suppress(StoreError):  # as the node does: tried again in an hour
            purge(sessions, store, WEEK, clock)

    def send(late: Received) -> None:
        for _ in range(5):  # as a scanner does, while it hears 0xA700
            with suppress(StoreError, LedgerUnavailable):
                arrivals.intake.receive(late)
                return

    for step in itertools.count():
        late = instance(studies(), arrivals.new_uid(), b"late")
        pair = [remove, partial(send, late)]
        is_there = in_between(step, *(pair if is_first == "retention" else reversed(pair)))
        if not is_there:
            break
        with reading(sessions) as session:
            own = Instance.sop_instance_uid == late.sop_instance_uid
            path = session.scalars(select(Instance.path).where(own)).one()
        study = study_json(sessions, late.study_uid)
        assert store.path(path).read_bytes().endswith(b"late"), f"step {step}"
        assert (study["state"], study["revision"], study["purged_at"]) == ("receiving", 2, None), f"step {step}"

    assert step > 5
