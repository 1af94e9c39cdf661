"""What the clock does when time itself leapt: the ledger was away, the machine slept, or its clock was set forward."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from dicom_node.dispatch import Bell
from dicom_node.ledger import claims
from dicom_node.ledger.engine import Sessions
from dicom_node.settings import Study
from dicom_node.ticker import GAP, GRACE, Ticker
from dicom_node.web.health import Pulse
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock


@pytest.fixture
def ticker(sessions: Sessions, clock: ManualClock) -> Ticker:
    """A clock that ticks when told, on a broker that is down."""
    return Ticker(sessions, Bell("redis://127.0.0.1:1/0"), Study(quiet_seconds=30), clock, Pulse())


def pass_by(ticker: Ticker, clock: ManualClock, period: timedelta) -> None:
    """Let the time pass, with a tick each second."""
    for _ in range(int(period.total_seconds())):
        clock.pass_by(1)
        ticker.tick()


def test_who_could_not_renew_while_nobody_ticked_is_not_taken_for_lost(
    ticker: Ticker, arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    (claimed,) = analyst.claim(study_id)
    ticker.tick()
    clock.pass_by(3600)

    with capture_logs() as logs:
        ticker.tick()
    pass_by(ticker, clock, GRACE - timedelta(seconds=1))

    assert "leases_prolonged" in [line["event"] for line in logs]
    assert claims.renew(sessions, claimed.token, LEASE, clock) == 1
    assert analyst.answer(claimed)


def test_the_writer_of_a_report_is_not_either(
    ticker: Ticker, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    ticker.tick()
    analyst.drain(study_id)
    pass_by(ticker, clock, timedelta(seconds=31))
    job = analyst.begin(study_id)
    assert job is not None
    clock.pass_by(86400)
    ticker.tick()

    assert analyst.write(job)


def test_who_does_not_come_back_after_it_is_lost(
    ticker: Ticker, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    (claimed,) = analyst.claim(study_id)
    ticker.tick()
    clock.pass_by(3600)
    ticker.tick()
    pass_by(ticker, clock, GRACE + timedelta(seconds=1))

    (again,) = analyst.claim(study_id)
    assert again.attempt == 2
    assert not analyst.answer(claimed)


def test_where_every_tick_is_slow_the_dead_are_found_all_the_same(
    ticker: Ticker, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.claim(study_id)
    ticker.tick()
    for _ in range(int(LEASE / GAP) + 5):
        clock.pass_by(GAP.total_seconds() + 1)
        ticker.tick()

    assert len(analyst.claim(study_id)) == 1
