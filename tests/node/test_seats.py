"""Seats are counted over processes, and come back when a process dies."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from dicom_node.seats import Full, Seats

SPAWN = multiprocessing.get_context("spawn")


def take_seats(path: Path, num_seats: int, num_wanted: int, say: Connection) -> None:
    """Take seats in a process of its own, say how many, and hold them until told."""
    seats = Seats(path, num_seats, 2)
    say.send(sum(seats.take(holder, "CART") is None for holder in range(num_wanted)))
    say.recv()


def test_a_process_gets_as_many_seats_as_there_are(tmp_path: Path) -> None:
    """And the next one again when one was left."""
    seats = Seats(tmp_path / "seats", 2, 9)

    assert [seats.take(holder, "CART") for holder in "abc"] == [None, None, Full.NODE]
    seats.leave("a")
    assert seats.take("c", "CART") is None
    assert sorted(map(str, seats.holders())) == ["b", "c"]
    seats.close()


def test_a_peer_gets_as_many_as_are_its_own_and_leaves_the_others_to_others(tmp_path: Path) -> None:
    """A cart that opens association after association keeps no other out."""
    seats = Seats(tmp_path / "seats", 4, 2)

    assert [seats.take(holder, "GREEDY") for holder in "abc"] == [None, None, Full.PEER]
    assert [seats.take(holder, "CART") for holder in "de"] == [None, None]
    assert seats.take("f", "OTHER") is Full.NODE
    seats.leave("d")
    assert [seats.take(holder, "OTHER") for holder in "fg"] == [None, Full.NODE]
    seats.leave("a")
    assert seats.take("h", "GREEDY") is None
    seats.close()


def test_leaving_without_a_seat_is_no_mistake(tmp_path: Path) -> None:
    """Associations end in more ways than one, some of them twice."""
    seats = Seats(tmp_path / "seats", 1, 1)

    seats.leave("nobody")

    assert seats.take("a", "CART") is None
    seats.close()


def test_processes_share_the_seats_and_a_killed_one_gives_its_own_back(tmp_path: Path) -> None:
    """The node's and each peer's, without anybody to clean up."""
    ours, theirs = SPAWN.Pipe()
    other = SPAWN.Process(target=take_seats, args=(tmp_path / "seats", 3, 2, theirs), daemon=True)
    other.start()
    assert ours.recv() == 2
    seats = Seats(tmp_path / "seats", 3, 2)

    with_the_other = [seats.take("a", "CART"), seats.take("a", "OTHER"), seats.take("b", "OTHER")]
    other.kill()
    other.join(20)

    assert with_the_other == [Full.PEER, None, Full.NODE]
    assert [seats.take(holder, "CART") for holder in "bc"] == [None, None]
    assert seats.take("d", "OTHER") is Full.NODE
    seats.close()
