"""The power is cut: what had Success, and what the ledger names, is there although nothing that was not fsynced is."""

import random
from datetime import datetime, timedelta
from pathlib import Path

from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.store import InstanceStore
from tests.doubles.arrivals import instance
from tests.doubles.clock import ManualClock
from tests.doubles.life import Archive, Life
from tests.doubles.power import changes_in, cuts, mark, run_recorded

LIVE = "import sys; from tests.node.test_power_cut import live; live(*sys.argv[1:])"
TWICE = "import sys; from tests.node.test_power_cut import receive_twice; receive_twice(*sys.argv[1:])"
CHANCES = 1
MANY_CHANCES = 8


def open_life(root: Path, archive: Path) -> Life:
    """Start a node on the folder, as its first start does when there is nothing."""
    sessions = open_ledger(f"sqlite:///{root / 'ledger.sqlite'}")
    return Life(1, sessions, InstanceStore(root, min_free_bytes=0), Archive(path=archive), ManualClock())


class Enough(Exception):
    """Before retention, which takes away what this is about."""


def live(root: str, journal: str) -> None:
    """Live, with a mark in the journal for each Success: the body of the recorded process."""

    def at(now: datetime) -> None:
        if now - ManualClock().now > timedelta(days=1):
            raise Enough

    life = open_life(Path(root), Path(journal).with_name("archive"))
    life.play(lambda sent: mark(Path(journal), sent.dataset.decode()), at)


def test_a_power_cut_takes_nothing_that_had_success_or_that_the_ledger_names(tmp_path: Path, memory: Path) -> None:
    root, journal = tmp_path / "machine" / "new" / "var", tmp_path / "journal"
    (tmp_path / "machine").mkdir()

    run_recorded(tmp_path / "machine", journal, LIVE, str(root), str(journal))

    found = 0
    for number, cut in enumerate(cuts(tmp_path / "machine", changes_in(journal))):
        for seed in (None, *range(CHANCES)):
            machine = memory / f"after-{number}-{seed}"
            cut.leave(machine, None if seed is None else random.Random(f"{number} {seed}"))
            life = open_life(machine / "new" / "var", tmp_path / "nowhere")
            try:
                life.check_kept([one for one in life.everything if one.dataset.decode() in cut.marks])
            finally:
                close_ledger(life.sessions)
        found = len(cut.marks)
    assert found == 4


def receive_twice(root: str, journal: str) -> None:
    """Receive one instance over two associations: the second asked the ledger before the first had its answer."""
    life = open_life(Path(root), Path(journal).with_name("archive"))
    life.send(life.still)
    mark(Path(journal), life.still.dataset.decode())
    same = instance(life.study_uid, life.still.sop_uid, life.still.dataset)
    life.store.keep(same.study_uid, same.sop_instance_uid, same.meta, same.dataset, is_new=True)


def test_a_power_cut_takes_nothing_that_had_success_while_it_comes_again(tmp_path: Path, memory: Path) -> None:
    root, journal = tmp_path / "machine" / "var", tmp_path / "journal"
    (tmp_path / "machine").mkdir()

    run_recorded(tmp_path / "machine", journal, TWICE, str(root), str(journal))

    num_cuts = 0
    for number, cut in enumerate(cuts(tmp_path / "machine", changes_in(journal))):
        for seed in range(MANY_CHANCES if cut.marks else 0):
            machine = memory / f"after-{number}-{seed}"
            cut.leave(machine, random.Random(f"{number} {seed}"))
            life = open_life(machine / "var", tmp_path / "nowhere")
            try:
                life.check_kept([life.still])
            finally:
                close_ledger(life.sessions)
        num_cuts += bool(cut.marks)
    assert num_cuts > 2  # the second time has fsyncs of its own
