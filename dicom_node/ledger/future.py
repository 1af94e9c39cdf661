"""What the ledger dates into the future although no wait of ours reaches so far: the machine's clock was ahead.

A quiet period, a lease or the wait for the next attempt that began before the clock was set back would last as long as
it was ahead: years, where a machine woke up with a wrong date.
"""

from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.orm import InstrumentedAttribute

from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Delivery, Instance, Study, Table

_NOW = timedelta(minutes=1)
"""What is dated by the moment it happens lies no further ahead, whatever two machines' clocks differ by."""

_WAIT = timedelta(hours=2)
"""Longer than any lease, and than any wait before the next attempt."""

_Column = InstrumentedAttribute[datetime] | InstrumentedAttribute[datetime | None]

_COLUMNS: tuple[tuple[type[Table], _Column, timedelta], ...] = (
    (Study, Study.last_received_at, _NOW),
    (Study, Study.rung_at, _NOW),
    (Study, Study.lease_until, _WAIT),
    (Instance, Instance.lease_until, _WAIT),
    (Delivery, Delivery.lease_until, _WAIT),
    (Delivery, Delivery.next_attempt_at, _WAIT),
)


def bring_back(sessions: Sessions, now: datetime) -> int:
    """Date to `now` what waits for a moment that lies too far ahead; return how much that was."""
    number = 0
    for table, column, furthest in _COLUMNS:
        with sessions.begin() as session:
            found = session.scalars(
                update(table)
                .where(column > now + furthest)
                .values({column: now})
                .returning(column)
                .execution_options(synchronize_session=False)
            ).all()
            number += len(found)
    return number
