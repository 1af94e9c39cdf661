"""How many wrong tokens an address may try; in memory, since one process serves the page."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

WINDOW = timedelta(seconds=60)
"""After its first wrong token an address is counted for this long."""

TRIES = 5
"""Wrong tokens of one address in a window."""

TRIES_OF_ALL = 100
"""Wrong tokens of all addresses in a window; from then on each address has one try. Never none: who has the right token
must get in whatever others do."""

_MAX_ADDRESSES = 4096  # the longest known are forgotten first


@dataclass(slots=True)
class _Window:
    ends: float
    number: int = 0


class Throttle:
    """Counts wrong tokens by address."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._addresses: OrderedDict[str, _Window] = OrderedDict()
        self._all = _Window(0.0)

    def wait(self, address: str) -> timedelta:
        """Return how long the address must wait before it may try; zero: it may try now."""
        now = self._now()
        window = self._addresses.get(_key(address))
        tries = TRIES if now >= self._all.ends or self._all.number < TRIES_OF_ALL else 1
        if window is None or now >= window.ends or window.number < tries:
            return timedelta()
        return timedelta(seconds=window.ends - now)

    def count(self, address: str) -> None:
        """Count a wrong token of the address."""
        now, key = self._now(), _key(address)
        window = self._addresses.get(key)
        if window is None or now >= window.ends:
            window = _Window(now + WINDOW.total_seconds())
            self._addresses[key] = window
            self._addresses.move_to_end(key)
            if len(self._addresses) > _MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        if now >= self._all.ends:
            self._all = _Window(now + WINDOW.total_seconds())
        window.number += 1
        self._all.number += 1

    def forget(self, address: str) -> None:
        """Count the address anew: it had the right token."""
        self._addresses.pop(_key(address), None)

    def __len__(self) -> int:
        """Return the number of addresses that are remembered."""
        return len(self._addresses)


def _key(address: str) -> str:
    """Return what is counted as one client: an IPv4 address, or the network that an IPv6 subscriber has for himself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)
