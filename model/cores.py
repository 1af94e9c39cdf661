"""How many cores of the CPU one clip is computed on: all of them, or one where the network is small."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.net.echo_vision import NetConfig

SMALL = 2_000_000_000
"""Operations on a clip under which a network is small."""


@contextmanager
def cores_for(net: NetConfig) -> Iterator[None]:
    """Run a small network on one core in this thread while the block lasts.

    Threads that share products of a tenth of a millisecond wait for each other longer than they work, and many times
    longer where a core has something else to do, such as decoding the next loop. Nor do the numbers of a small network
    depend on how many cores there are.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1 if net.operations < SMALL else num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
