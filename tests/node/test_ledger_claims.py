"""Claims: every instance gets one answer, whoever dies in between."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.ledger import claims
from dicom_node.ledger.claims import Analysed, NotAnalysed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Instance, InstanceState, Result
from dicom_node.ledger.views import study_json
from tests.doubles.analyst import ENSEMBLE, LEASE, Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

QUIET = timedelta(seconds=30)


def states(sessions: Sessions) -> dict[str, int]:
    with sessions() as session:
        rows = session.execute(select(Instance.state, func.count()).group_by(Instance.state)).all()
    return {state: number for state, number in rows}


def num_results(sessions: Sessions) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(Result)) or 0


def test_a_claim_counts_the_attempt_before_the_data_is_touched(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions
) -> None:
    study_id = arrivals.send()

    (claimed,) = analyst.claim(study_id)

    with sessions() as session:
        row = session.scalars(select(Instance)).one()
    assert (row.state, row.attempts, row.lease_token) == ("leased", 1, claimed.token)
    assert (claimed.attempt, claimed.path) == (1, row.path)


def test_a_claim_takes_loops_before_stills_and_no_more_than_its_limit(arrivals: Arrivals, analyst: Analyst) -> None:
    still, loop = arrivals.new_uid(), arrivals.new_uid()
    arrivals.send(sop_uid=still, num_frames=1)
    study_id = arrivals.send(sop_uid=loop)

    first, second, third = (analyst.claim(study_id, limit=1) for _ in range(3))

    assert [claimed.sop_instance_uid for claimed in (*first, *second, *third)] == [loop, still]


def test_an_answered_instance_is_not_claimed_again(arrivals: Arrivals, analyst: Analyst, sessions: Sessions) -> None:
    study_id = arrivals.send()

    answers = analyst.drain(study_id)

    assert answers == 1
    assert analyst.claim(study_id) == []
    assert claims.drained(sessions, study_id)
    assert num_results(sessions) == 1


def test_a_refused_instance_keeps_its_reason(arrivals: Arrivals, analyst: Analyst, sessions: Sessions) -> None:
    study_id = arrivals.send()
    (claimed,) = analyst.claim(study_id)

    analyst.answer(claimed, NotAnalysed(code="doppler", reason="spectral Doppler"))

    assert study_json(sessions, STUDY)["not_analysed"] == [
        {"sop_instance_uid": claimed.sop_instance_uid, "reason": "spectral Doppler"}
    ]
    assert num_results(sessions) == 0


def test_who_lost_the_lease_changes_nothing(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    (slow,) = analyst.claim(study_id)
    clock.pass_by(LEASE.total_seconds() + 1)
    tick(sessions, clock, QUIET)
    (quick,) = analyst.claim(study_id)

    assert not analyst.answer(slow)
    assert num_results(sessions) == 0
    assert analyst.answer(quick)
    assert num_results(sessions) == 1


def test_an_instance_that_cost_a_worker_comes_last_and_alone(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    arrivals.send()
    analyst.claim(study_id)
    clock.pass_by(LEASE.total_seconds() + 1)
    tick(sessions, clock, QUIET)
    arrivals.send()

    sizes = [[claimed.attempt for claimed in analyst.claim(study_id)] for _ in range(4)]

    assert sizes == [[1], [2], [2], []]


def test_a_renewed_lease_does_not_expire(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    (claimed,) = analyst.claim(study_id)
    clock.pass_by(15)

    renewed = claims.renew(sessions, claimed.token, LEASE, clock)
    clock.pass_by(15)
    tick(sessions, clock, QUIET)

    assert renewed == 1
    assert analyst.answer(claimed)


def test_what_is_released_is_as_if_never_claimed(arrivals: Arrivals, analyst: Analyst, sessions: Sessions) -> None:
    study_id = arrivals.send()
    (claimed,) = analyst.claim(study_id)

    claims.release(sessions, claimed.token, analyst.clock)

    (again,) = analyst.claim(study_id)
    assert again.attempt == 1
    assert not analyst.answer(claimed)


def test_an_older_version_is_not_claimed(arrivals: Arrivals, analyst: Analyst, sessions: Sessions) -> None:
    sop_uid = arrivals.new_uid()
    arrivals.send(sop_uid=sop_uid, dataset=b"old")
    study_id = arrivals.send(sop_uid=sop_uid, dataset=b"new")

    assert analyst.drain(study_id) == 1
    assert claims.drained(sessions, study_id)


def test_a_second_answer_of_the_same_ensemble_takes_the_place_of_the_first(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions
) -> None:
    study_id = arrivals.send()
    (first,) = analyst.claim(study_id)
    analyst.answer(first, Analysed(outputs={"n": 1}))
    with sessions.begin() as session:
        session.execute(text("UPDATE instance SET state = 'pending'"))
    (second,) = analyst.claim(study_id)

    assert analyst.answer(second, Analysed(outputs={"n": 2}))

    with sessions() as session:
        assert session.scalars(select(Result.outputs)).all() == [{"n": 2}]


def test_a_study_that_is_over_gives_no_claims(arrivals: Arrivals, analyst: Analyst, sessions: Sessions) -> None:
    study_id = arrivals.send()
    with sessions.begin() as session:
        session.execute(text("UPDATE study SET state = 'failed'"))

    assert analyst.claim(study_id) == []


def test_workers_that_claim_at_once_get_disjoint_instances(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions
) -> None:
    num_instances, num_workers = 60, 4
    study_id = [arrivals.send() for _ in range(num_instances)][-1]
    gate = threading.Barrier(num_workers)

    def work(_number: int) -> list[str]:
        gate.wait(timeout=30)
        seen = []
        while held := analyst.claim(study_id, limit=3):
            seen += [one.sop_instance_uid for one in held]
            assert [analyst.answer(one) for one in held] == [True] * len(held)
        return seen

    with ThreadPoolExecutor(num_workers) as pool:
        claimed = Counter(uid for seen in pool.map(work, range(num_workers)) for uid in seen)

    assert len(claimed) == num_instances
    assert set(claimed.values()) == {1}
    assert num_results(sessions) == num_instances


# One step of a history: (what, which worker, how many seconds)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "claim", "answer", "forget", "renew", "release", "wait", "tick"]),
        st.integers(0, 2),
        st.integers(1, 25),
    ),
    max_size=40,
)
UID_NUMBERS = iter(range(10**9))
TAKEN_OVER = [("claim", 0, 1), ("wait", 0, 25), ("tick", 0, 1), ("claim", 1, 1), ("answer", 1, 1), ("answer", 0, 1)]
"""Chance alone hardly ever lets two answer for one instance."""


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@example(steps=TAKEN_OVER)
@given(steps=STEPS)
def test_no_order_of_events_loses_or_doubles_an_answer(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock, steps: list[tuple[str, int, int]]
) -> None:
    study_uid = UID(f"1.2.826.0.2.{next(UID_NUMBERS)}")
    study_id = arrivals.send(study_uid)
    held: dict[int, list[claims.Claimed]] = {0: [], 1: [], 2: []}
    accepted: Counter[str] = Counter()

    for what, worker, seconds in steps:
        if what == "arrive":
            arrivals.send(study_uid)
        elif what == "claim" and not held[worker]:
            held[worker] = analyst.claim(study_id, limit=2)
        elif what == "answer" and held[worker]:
            claimed = held[worker].pop()
            accepted[claimed.sop_instance_uid] += analyst.answer(claimed)
        elif what == "forget":
            held[worker] = []  # the worker was killed
        elif what == "renew" and held[worker]:
            claims.renew(sessions, held[worker][0].token, LEASE, clock)
        elif what == "release" and held[worker]:
            claims.release(sessions, held.pop(worker)[0].token, clock)
            held[worker] = []
        elif what == "wait":
            clock.pass_by(seconds)
        elif what == "tick":
            tick(sessions, clock, timedelta(days=1))
    for _ in range(claims.MAX_ATTEMPTS + 1):  # whatever was left lying comes back by time alone
        clock.pass_by(LEASE.total_seconds() + 1)
        tick(sessions, clock, timedelta(days=1))
        while found := analyst.claim(study_id):
            for claimed in found:
                accepted[claimed.sop_instance_uid] += analyst.answer(claimed)

    with sessions() as session:
        rows = session.execute(
            select(Instance.sop_instance_uid, Instance.state, func.count(Result.id))
            .outerjoin(Result, Result.instance_id == Instance.id)
            .where(Instance.study_id == study_id)
            .group_by(Instance.sop_instance_uid, Instance.state)
        ).all()
    for sop_uid, state, number in rows:
        expected = (1, 1) if state == InstanceState.ANALYSED else (0, 0)
        assert (number, accepted[sop_uid]) == expected, (sop_uid, state)
        assert state in (InstanceState.ANALYSED, InstanceState.FAILED)


def test_the_digest_of_the_ensemble_stands_with_the_result(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions
) -> None:
    analyst.drain(arrivals.send())

    with sessions() as session:
        assert session.scalars(select(Result.ensemble_digest)).all() == [ENSEMBLE]


@pytest.mark.parametrize("owner", ["host:1", "a-very-long-host-name.of.a-hospital.example.org:12345"])
def test_a_token_fits_its_column(owner: str) -> None:
    assert len(claims.make_token(owner)) <= 64
