"""Seats are counted over processes, and come back when a process dies."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from dicom_node.seats import Seats

SPAWN = multiprocessing.get_context("spawn")


def take_seats(path: Path, num_seats: int, num_wanted: int, say: Connection) -> None:
    """Take seats in a process of its own, say how many, and hold them until told."""
    seats = Seats(path, num_seats)
    say.send(sum(seats.take(holder) for holder in range(num_wanted)))
    say.recv()


def test_a_process_gets_as_many_seats_as_there_are(tmp_path: Path) -> None:
    """And the next one again when one was left."""
    seats = Seats(tmp_path / "seats", 2)

    assert [seats.take(holder) for holder in "abc"] == [True, True, False]
    seats.leave("a")
    assert seats.take("c")
    assert sorted(map(str, seats.holders())) == ["b", "c"]
    seats.close()


def test_leaving_without_a_seat_is_no_mistake(tmp_path: Path) -> None:
    """Associations end in more ways than one, some of them twice."""
    seats = Seats(tmp_path / "seats", 1)

    seats.leave("nobody")

    assert seats.take("a")
    seats.close()


def test_processes_share_the_seats_and_a_killed_one_gives_its_own_back(tmp_path: Path) -> None:
    """Without anybody to clean up."""
    ours, theirs = SPAWN.Pipe()
    other = SPAWN.Process(target=take_seats, args=(tmp_path / "seats", 3, 2, theirs), daemon=True)
    other.start()
    assert ours.recv() == 2
    seats = Seats(tmp_path / "seats", 3)

    with_the_other = [seats.take(holder) for holder in "ab"]
    other.kill()
    other.join(20)

    assert with_the_other == [True, False]
    assert [seats.take(holder) for holder in "bc"] == [True, True]
    assert not seats.take("d")
    seats.close()
