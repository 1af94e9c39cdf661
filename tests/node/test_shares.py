"""Which instances are in the object store, by the ledger, on each engine."""

from sqlalchemy import select

from dicom_node.identity import UID
from dicom_node.ledger import claims, shares
from dicom_node.ledger.claims import Claimed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Instance
from dicom_node.ledger.views import study_json
from dicom_node.store import InstanceStore
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

SOP = UID("1.2.826.0.1.9.1000")


def claim(sessions: Sessions, study_id: int, clock: ManualClock) -> list[Claimed]:
    """Claim as a worker does where there is an object store."""
    return claims.claim(sessions, study_id, "elsewhere", 8, LEASE, clock, only_shared=True)


def instance_of(sessions: Sessions) -> Instance:
    """Return the one instance."""
    with sessions() as session:
        return session.scalars(select(Instance)).one()


def test_an_instance_is_claimed_once_it_is_shared_and_at_once_where_nothing_is(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    first, second = (arrivals.send(UID(f"1.2.{number}")) for number in (1, 2))
    one, _ = shares.unshared(sessions, 8)

    assert claim(sessions, first, clock) == []
    assert shares.shared(sessions, [one], clock) == [first]
    assert len(claim(sessions, first, clock)) == 1
    assert len(analyst.claim(second)) == 1


def test_what_came_first_is_shared_first_and_what_is_set_aside_waits(arrivals: Arrivals, sessions: Sessions) -> None:
    for _ in range(4):
        arrivals.send()

    all_of_them = [one.instance_id for one in shares.unshared(sessions, 8)]

    assert all_of_them == sorted(all_of_them)
    assert [one.instance_id for one in shares.unshared(sessions, 2, all_of_them[:1])] == all_of_them[1:3]


def test_what_a_worker_waits_for_goes_before_what_was_analysed_without_an_object_store(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    analyst.drain(arrivals.send(UID("1.2.1")))
    arrivals.send(UID("1.2.2"))

    (first,) = shares.unshared(sessions, 1)
    shares.shared(sessions, [first], clock)
    (then,) = shares.unshared(sessions, 1)

    assert first.instance_id > then.instance_id


def test_an_instance_that_came_again_is_shared_again(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    arrivals.send(sop_uid=SOP)
    shares.shared(sessions, shares.unshared(sessions, 8), clock)
    store.remove(instance_of(sessions).path)

    arrivals.send(sop_uid=SOP)

    assert [one.sop_instance_uid for one in shares.unshared(sessions, 8)] == [SOP]


def test_what_came_again_meanwhile_is_not_given_up(arrivals: Arrivals, sessions: Sessions, clock: ManualClock) -> None:
    arrivals.send(sop_uid=SOP)
    (one,) = shares.unshared(sessions, 8)
    shares.shared(sessions, [one], clock)

    assert not shares.lost(sessions, one, clock)
    assert instance_of(sessions).state == "pending"


def test_what_is_gone_is_given_up_and_the_history_says_so(
    arrivals: Arrivals, sessions: Sessions, clock: ManualClock
) -> None:
    arrivals.send(sop_uid=SOP)
    (one,) = shares.unshared(sessions, 8)

    assert shares.lost(sessions, one, clock)
    assert shares.unshared(sessions, 8) == []
    assert study_json(sessions, STUDY)["history"][-1]["event"] == "instance_failed"


def test_whose_lease_is_lost_gives_nothing_back(arrivals: Arrivals, sessions: Sessions, clock: ManualClock) -> None:
    study_id = arrivals.send(sop_uid=SOP)
    shares.shared(sessions, shares.unshared(sessions, 8), clock)
    (claimed,) = claim(sessions, study_id, clock)
    claims.release(sessions, claimed.token, clock)
    (taken,) = claim(sessions, study_id, clock)

    shares.give_back(sessions, claimed, clock, counts=False)

    assert (instance_of(sessions).state, instance_of(sessions).lease_token) == ("leased", taken.token)


def test_what_a_worker_misses_is_shared_again(arrivals: Arrivals, sessions: Sessions, clock: ManualClock) -> None:
    arrivals.send(sop_uid=SOP)
    (one,) = shares.unshared(sessions, 8)
    shares.shared(sessions, [one], clock)

    shares.missed(sessions, one.instance_id)

    assert shares.unshared(sessions, 8) == [one]
