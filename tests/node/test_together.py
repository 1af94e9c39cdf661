"""What several threads want at once is done for all of them, and whose fails, fails alone."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest

from dicom_node.together import Together
from tests.patience import wait_until

AT_ONCE = 4


class Work:
    """Work that takes as long as the test says, and remembers what was done together."""

    def __init__(self, *, repeatable: bool) -> None:
        self.batches: list[list[str]] = []
        self.goes_on = threading.Event()
        self.together = Together(self._do, repeatable=repeatable)

    def _do(self, jobs: Sequence[str]) -> None:
        self.batches.append(list(jobs))
        assert self.goes_on.wait(60)
        if "bad" in jobs:
            raise ValueError("bad")

    def num_waiting(self) -> int:
        """Return how many wait for the next time."""
        return len(self.together._waiting)


@pytest.fixture
def work() -> Work:
    """Work that is done again for each alone when it fails."""
    return Work(repeatable=True)


def asked(pool: ThreadPoolExecutor, work: Work, jobs: Sequence[str]) -> list[Future[None]]:
    """Let the first job begin, and the others wait for the next time."""
    first = pool.submit(work.together, "first")
    wait_until(lambda: work.batches)
    others = [pool.submit(work.together, job) for job in jobs]
    wait_until(lambda: work.num_waiting() == len(jobs))
    work.goes_on.set()
    return [first, *others]


def test_who_comes_while_it_is_being_done_shares_the_next_time(work: Work) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for one in asked(pool, work, ["a", "b", "c"]):
            one.result()

    assert work.batches[0] == ["first"]
    assert len(work.batches) == 2
    assert sorted(work.batches[1]) == ["a", "b", "c"]


def test_a_job_that_fails_fails_alone(work: Work) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        first, good, bad, other = asked(pool, work, ["a", "bad", "c"])

        assert [one.exception() for one in (first, good, other)] == [None, None, None]
        assert isinstance(bad.exception(), ValueError)


def test_a_job_whose_turn_does_not_come_is_not_done(work: Work) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        first = pool.submit(work.together, "first")
        wait_until(lambda: work.batches)

        with pytest.raises(TimeoutError):
            work.together("late", timedelta(milliseconds=1))

        work.goes_on.set()
        first.result()
        work.together("next")

    assert work.batches == [["first"], ["next"]]


def test_work_that_is_not_repeatable_fails_for_all_who_shared_it() -> None:
    """Of an fsync that failed the system tells once."""
    work = Work(repeatable=False)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        first, *others = asked(pool, work, ["a", "bad", "c"])

        assert first.exception() is None
        assert [type(one.exception()) for one in others] == [ValueError] * 3
    assert len(work.batches) == 2
