"""What nearly every instance needs of the ledger changes nothing where there is something to decide."""

import threading
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import OperationalError

from dicom_node.identity import UID
from dicom_node.ledger.arrivals import Arrivals as Statements
from dicom_node.ledger.engine import Sessions, asking
from dicom_node.ledger.schema import Instance, Study, StudyState
from dicom_node.ledger.views import study_json
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.patience import wait_until

SOP = UID("1.2.826.0.1.9.1000")


def engine_of(sessions: Sessions) -> Engine:
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    return engine


def added(sessions: Sessions, clock: ManualClock, sop_uid: UID = SOP, study_uid: UID = STUDY) -> int | None:
    row = {
        "sop_instance_uid": sop_uid,
        "sop_class_uid": "1.2",
        "series_instance_uid": "1.2",
        "transfer_syntax_uid": "1.2",
        "path": "instances/one.dcm",
        "sha256": "0" * 64,
        "num_bytes": 1,
        "num_frames": None,
        "calling_ae": "CART",
        "received_at": clock(),
        "is_loop": False,
    }
    engine = engine_of(sessions)
    with engine.begin() as connection:
        return Statements(engine).add(connection.connection, study_uid, row)


def test_a_new_instance_of_a_study_that_is_being_received_is_a_row_as_any_other(
    sessions: Sessions, arrivals: Arrivals, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    clock.pass_by(7)

    assert added(sessions, clock) == study_id

    with sessions() as session:
        first, last = session.scalars(select(Instance).order_by(Instance.id)).all()
    own = ("id", "sop_instance_uid", "path", "sha256", "num_bytes", "num_frames", "is_loop", "received_at")
    alike = [column.name for column in Instance.__table__.columns if column.name not in (*own, "sop_class_uid")]
    known = {"series_instance_uid", "transfer_syntax_uid"}
    assert {name: getattr(last, name) for name in alike if name not in known} == {
        name: getattr(first, name) for name in alike if name not in known
    }
    assert (last.received_at, last.num_frames, last.is_loop) == (clock(), None, False)


@pytest.mark.parametrize("state", [one for one in StudyState if one is not StudyState.RECEIVING])
def test_a_study_that_is_further_on_is_left_alone(
    sessions: Sessions, arrivals: Arrivals, clock: ManualClock, state: StudyState
) -> None:
    arrivals.send()
    with sessions.begin() as session:
        session.execute(update(Study).values(state=state.value))

    assert added(sessions, clock) is None


def test_a_study_whose_images_are_gone_is_left_alone(
    sessions: Sessions, arrivals: Arrivals, clock: ManualClock
) -> None:
    arrivals.send()
    with sessions.begin() as session:
        session.execute(update(Study).values(purged_at=clock()))

    assert added(sessions, clock) is None


def test_a_new_study_and_a_known_uid_are_left_alone(sessions: Sessions, arrivals: Arrivals, clock: ManualClock) -> None:
    arrivals.send(sop_uid=SOP)

    assert added(sessions, clock, SOP) is None
    assert added(sessions, clock, UID("1.2.7"), UID("1.2.8")) is None


def test_the_last_arrival_is_never_dated_back(sessions: Sessions, arrivals: Arrivals, clock: ManualClock) -> None:
    study_id = arrivals.send()
    engine = engine_of(sessions)
    for moment in (clock() + timedelta(seconds=5), clock()):
        with engine.begin() as connection:
            Statements(engine).touch(connection.connection, study_id, moment)

    with sessions() as session:
        study = session.scalars(select(Study)).one()
    assert study.last_received_at == clock() + timedelta(seconds=5)
    assert study.rung_at == clock()


def test_a_uid_is_mentioned_once_it_is_a_row(sessions: Sessions, arrivals: Arrivals) -> None:
    statements = Statements(engine_of(sessions))
    said = []
    for _ in range(2):
        with asking(sessions) as connection:
            said.append(statements.is_mentioned(connection, SOP))
        arrivals.send(sop_uid=SOP)

    assert said == [False, True]


def test_an_instance_that_comes_while_its_study_moves_on_waits_and_brings_it_back(
    sessions: Sessions, arrivals: Arrivals
) -> None:
    """Else its row would lie in a study that is complete, and nobody would wait for more."""
    arrivals.send()
    late = threading.Thread(target=arrivals.send)
    with sessions.begin() as session:
        session.execute(update(Study).values(state=StudyState.ANALYSING.value))
        late.start()
        if engine_of(sessions).dialect.name == "postgresql":
            wait_until(lambda: num_waiting(sessions) > 0)
    late.join(60)

    assert not late.is_alive()
    assert study_json(sessions, STUDY)["state"] == "receiving"


def num_waiting(sessions: Sessions) -> int:
    with sessions() as session:
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE "
        return int(session.scalar(text(f"{waiting} datname = current_database())")) or 0)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_connection_that_breaks_while_it_is_asked_is_not_given_to_the_next(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    statements = Statements(engine_of(sessions))

    def ask_while_the_server_hangs_up() -> None:
        with asking(sessions) as connection:
            driver = connection.dbapi_connection
            assert isinstance(driver, psycopg.Connection)
            with sessions.begin() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": driver.info.backend_pid})
            statements.is_mentioned(connection, SOP)

    with pytest.raises(OperationalError):
        ask_while_the_server_hangs_up()
    with asking(sessions) as connection:
        is_mentioned = statements.is_mentioned(connection, SOP)

    assert not is_mentioned
    assert [one.message for one in caplog.records] == []
