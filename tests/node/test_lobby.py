"""Who waits before an association, and who makes room."""

import socket
from collections.abc import Iterator

import pytest

from dicom_node.lobby import Lobby


class Pairs:
    """Connected sockets: one end waits, the other sees whether it was ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[socket.socket, socket.socket]] = []

    def new(self) -> socket.socket:
        """Return the end that waits."""
        self.ends.append(socket.socketpair())
        return self.ends[-1][0]

    @property
    def alive(self) -> list[int]:
        """Return the numbers of those that were not ended."""
        return [number for number, (_, far) in enumerate(self.ends) if not _is_ended(far)]


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    """No pair yet."""
    made = Pairs()
    yield made
    for near, far in made.ends:
        near.close()
        far.close()


def test_the_address_that_has_most_loses_its_oldest(pairs: Pairs) -> None:
    """A flood from one address ends its own connections, never another's."""
    lobby = Lobby(4)

    for address in ("cart", "flood", "flood", "flood", "flood", "pacs"):
        lobby.enter(pairs.new(), address)

    assert pairs.alive == [0, 3, 4, 5]
    assert len(lobby) == 4


def test_who_has_left_makes_room(pairs: Pairs) -> None:
    """It has asked for its association; leaving twice is no mistake."""
    lobby = Lobby(2)
    first = pairs.new()
    lobby.enter(first, "cart")
    lobby.enter(pairs.new(), "cart")

    lobby.leave(first)
    lobby.leave(first)
    lobby.enter(pairs.new(), "cart")

    assert pairs.alive == [0, 1, 2]


def test_a_connection_that_was_closed_is_forgotten(pairs: Pairs) -> None:
    """However it ended."""
    lobby = Lobby(2)
    first = pairs.new()
    lobby.enter(first, "cart")

    first.close()
    lobby.sweep()

    assert len(lobby) == 0


def test_all_are_ended_with_the_node(pairs: Pairs) -> None:
    """Nothing holds up its end."""
    lobby = Lobby(3)
    for _ in range(3):
        lobby.enter(pairs.new(), "cart")

    lobby.end_all()

    assert pairs.alive == []
    assert len(lobby) == 0


def _is_ended(far: socket.socket) -> bool:
    far.setblocking(False)
    try:
        return far.recv(1) == b""
    except BlockingIOError:
        return False
