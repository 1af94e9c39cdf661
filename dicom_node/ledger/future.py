"""What the ledger dates into the future although no wait of ours reaches so far: the machine's clock was ahead.

A quiet period, a lease or the wait for the next attempt that began before the clock was set back would last as long as
it was ahead: years, where a machine woke up with a wrong date.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import InstrumentedAttribute

from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import (
    OWED,
    Commitment,
    CommitmentState,
    Delivery,
    Instance,
    InstanceState,
    Pledge,
    PledgeState,
    Study,
    StudyState,
    Table,
)

_NOW = timedelta(minutes=1)
"""What is dated by the moment it happens lies no further ahead, whatever two machines' clocks differ by."""

_WAIT = timedelta(hours=2)
"""Longer than any lease, and than any wait before the next attempt."""

_Column = InstrumentedAttribute[datetime] | InstrumentedAttribute[datetime | None]

# Only where it still matters: those that have ended are the most, and the states have their indices.
_OPEN_STUDY = Study.state.in_([one for one in StudyState if one not in (StudyState.DELIVERED, StudyState.FAILED)])
_LEASED = Instance.state == InstanceState.LEASED
_OWED = Delivery.state.in_(OWED)
_UNREPORTED = Commitment.state.in_([CommitmentState.WAITING, CommitmentState.REPORTING])
_UNANSWERED = Pledge.state.in_([PledgeState.WANTED, PledgeState.REQUESTED])

_COLUMNS: tuple[tuple[type[Table], _Column, timedelta, ColumnElement[bool]], ...] = (
    (Study, Study.last_received_at, _NOW, _OPEN_STUDY),
    (Study, Study.rung_at, _NOW, _OPEN_STUDY),
    (Study, Study.lease_until, _WAIT, _OPEN_STUDY),
    (Instance, Instance.lease_until, _WAIT, _LEASED),
    (Delivery, Delivery.lease_until, _WAIT, _OWED),
    (Delivery, Delivery.next_attempt_at, _WAIT, _OWED),
    (Delivery, Delivery.created_at, _NOW, _OWED),
    (Commitment, Commitment.lease_until, _WAIT, _UNREPORTED),
    (Commitment, Commitment.next_attempt_at, _WAIT, _UNREPORTED),
    (Commitment, Commitment.created_at, _NOW, _UNREPORTED),
    (Pledge, Pledge.next_at, _WAIT, _UNANSWERED),
    (Pledge, Pledge.created_at, _NOW, _UNANSWERED),
)


def bring_back(sessions: Sessions, now: datetime) -> int:
    """Date to `now` what waits for a moment that lies too far ahead; return how much that was."""
    number = 0
    for table, column, furthest, matters in _COLUMNS:
        with sessions.begin() as session:
            found = session.scalars(
                update(table)
                .where(matters, column > now + furthest)
                .values({column: now})
                .returning(column)
                .execution_options(synchronize_session=False)
            ).all()
            number += len(found)
    return number
