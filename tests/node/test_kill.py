"""A node that is killed in any step of a study's life: the next one ends it, with nothing lost and nothing twice."""

import gc
import itertools
import json
import logging
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Engine, text

from dicom_node import orphans
from dicom_node.clock import utc_now
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.schema import DeliveryState, InstanceState, StudyState
from dicom_node.retention import purge
from dicom_node.store import InstanceStore
from tests.doubles.clock import ManualClock
from tests.doubles.life import POLICY, Archive, Life, Sent
from tests.doubles.steps import STATEMENTS, watched
from tests.peers import PostgresServer

EVERY_STATE = {
    *(f"study {one}" for one in StudyState),
    *(f"instance {one}" for one in InstanceState),
    *(f"delivery {one}" for one in DeliveryState),
}
Say = Callable[[object], None]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where all lives of a test are lived."""

    url: str
    folder: Path
    sessions: Sessions
    """Without an open connection: each process opens its own, but the compiled statements are there."""

    def life(self, number: int) -> Life:
        """Return a life of a process that has just started."""
        close_ledger(open_ledger(self.url))
        store = InstanceStore(self.folder / "data", min_free_bytes=0)
        return Life(number, self.sessions, store, Archive(path=self.folder / "archive"), ManualClock())


def live_until(step: int, life: Life, say: Say) -> None:
    """Live, and be killed at this step, if there are so many."""
    steps = itertools.count()

    def reached(name: str) -> None:
        # Of a transaction its commit alone: what is before it, the engine takes back as a whole.
        if name not in STATEMENTS and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def had_success(sent: Sent) -> None:
        reached("answer")
        say(["success", sent.dataset.decode()])

    with watched(reached):
        life.play(had_success, lambda now: say(["time", now.isoformat()]))


def come_after(said: list[list[str]], life: Life, say: Say) -> None:
    """Start as the next node does, see that nothing is lost, and live on to the end."""
    datasets = {value for word, value in said if word == "success"}
    answered = [one for one in life.everything if one.dataset.decode() in datasets]
    life.clock.now = max([life.clock.now, *(datetime.fromisoformat(value) for word, value in said if word == "time")])
    life.store.sweep()
    check_integrity(life.sessions)
    life.check_kept(answered)
    say(sorted(life.states()))
    life.play_on([one for one in life.everything if one not in answered])
    life.check_done()
    life.clock.pass_by(8 * 86400)
    purge(life.sessions, life.store, POLICY, life.clock)
    # What a purge that was killed left is an orphan, for the sweep of the next day; files have the machine's time.
    orphans.sweep(life.sessions, life.store, lambda: utc_now() + timedelta(days=1))
    life.check_purged()


def check_integrity(sessions: Sessions) -> None:
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []


def in_a_process(body: Callable[[Say], None]) -> tuple[int, list[list[str]]]:
    """Run the body in a process of its own; return how that ended (0, or minus the signal's number) and what it said.

    Raises:
        AssertionError: it failed.
    """
    hear, speak = os.pipe()
    write = os.write  # itself: what is said is no step
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body(lambda word: write(speak, json.dumps(word).encode() + b"\n") and None)
            code = 0
        except BaseException:  # noqa: BLE001  # a child of a fork must not go on as its parent
            write(speak, json.dumps(["failed", traceback.format_exc()]).encode() + b"\n")
        finally:
            os._exit(code)
    os.close(speak)
    with os.fdopen(hear) as lines:
        said = [json.loads(line) for line in lines]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), said[-1][1]
    return code, said


def die_in_every_step(url: str, folder: Path, say: Connection) -> None:
    """Live and be killed, once in each step, always on the same ledger; the body of a process without threads."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        place = Place(url=url, folder=folder, sessions=open_ledger(url))
        warm_up(place)
        say.send(lives(place))
    except Exception:  # noqa: BLE001  # the test says what it was
        say.send((0, {traceback.format_exc()}))


def warm_up(place: Place) -> None:
    """Live once undisturbed, so that a fork finds all that it needs, compiled and in memory that is not copied."""
    life = place.life(0)
    life.play(lambda _sent: None, lambda _now: None)
    come_after([], life, lambda _word: None)
    close_ledger(place.sessions)
    gc.freeze()


def lives(place: Place) -> tuple[int, set[str]]:
    """Return how many steps there are, and every state in which somebody died."""
    seen: set[str] = set()
    for step in itertools.count():
        code, said = in_a_process(partial(step_of_a_life, place, step))
        if code == 0:
            return step, seen
        try:
            _, states = in_a_process(partial(rest_of_a_life, place, step, said))
        except AssertionError as error:
            raise AssertionError(f"killed at step {step}: {error}") from error
        seen.update(states[0])
    raise AssertionError


def step_of_a_life(place: Place, step: int, say: Say) -> None:
    live_until(step, place.life(step + 1), say)


def rest_of_a_life(place: Place, step: int, said: list[list[str]], say: Say) -> None:
    come_after(said, place.life(step + 1), say)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, memory: Path) -> str:
    """The URL of an empty ledger, once on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{memory / 'ledger.sqlite'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.mark.timeout(600)
def test_a_node_that_is_killed_in_any_step_loses_and_doubles_nothing(ledger_url: str, memory: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    hear, say = spawn.Pipe(duplex=False)
    nursery = spawn.Process(target=die_in_every_step, args=(ledger_url, memory, say))
    nursery.start()
    say.close()
    num_steps, seen = hear.recv()
    nursery.join(30)
    hear.close()

    assert num_steps > 100, "".join(seen)
    assert seen >= EVERY_STATE
