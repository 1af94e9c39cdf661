"""Several machines in one: network namespaces with addresses of their own on one switch (ip-netns(8)).

They share this machine's files, as machines do that mount one folder, and nothing else.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.binaries import missing, require_binary

_NETWORK = f"10.213.{os.getpid() % 251}"  # of this process: others on this machine may have networks at the same time


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a program runs and is called."""

    address: str
    namespace: str = ""
    """Empty: that of this process."""
    switch: str = ""
    """Namespace of the switch at the other end of its one link."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return what to put before a command that is to run there; it keeps its process id."""
        return (require_binary("nsenter"), f"--net=/run/netns/{self.namespace}", "--") if self.namespace else ()

    def as_user(self, uid: int, gid: int) -> tuple[str, ...]:
        """Return the same for another account."""
        nsenter, network, end = self.prefix
        return (nsenter, network, f"--setuid={uid}", f"--setgid={gid}", end)

    def cut(self) -> None:
        """Pull the plug at the switch: what is sent from now on is lost without a word."""
        _ip("-n", self.switch, "link", "set", _port(self.namespace), "down")

    def mend(self) -> None:
        """Put it back."""
        _ip("-n", self.switch, "link", "set", _port(self.namespace), "up")


HERE = Machine(address="127.0.0.1")
"""This machine, among its own programs."""


@contextmanager
def network(*names: str) -> Iterator[dict[str, Machine]]:
    """Give machines of these names, and this process a link to their switch, until the block ends; needs root."""
    if os.geteuid() != 0:
        missing("network namespaces need root")
    tag = f"{os.getpid() % 100000:05}"
    with ExitStack() as stack:
        switch = _namespace(stack, f"e{tag}sw")
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        machines = {}
        for number, name in enumerate(names, start=2):
            namespace = _namespace(stack, f"e{tag}m{number}")
            machines[name] = Machine(namespace=namespace, switch=switch, address=f"{_NETWORK}.{number}")
            _plug(switch, namespace, "eth0", f"{_NETWORK}.{number}", into=namespace)
        ours = f"e{tag}"
        stack.callback(subprocess.run, [require_binary("ip"), "link", "delete", ours], check=False, capture_output=True)
        _plug(switch, ours, ours, OUR_ADDRESS)
        yield machines


OUR_ADDRESS = f"{_NETWORK}.1"
"""Of this process, as the machines see it."""


def _plug(switch: str, name: str, device: str, address: str, into: str = "") -> None:
    """Join a namespace, or that of this process, to the switch by a cable."""
    inside, target = (("-n", into), ("netns", into)) if into else ((), ())
    port = _port(name)
    _ip("link", "add", device, *target, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", switch, "link", "set", port, "master", "switch", "up")
    _ip(*inside, "address", "add", f"{address}/24", "dev", device)
    _ip(*inside, "link", "set", device, "up")


def _port(name: str) -> str:
    return f"to-{name}"[:15]  # longer names the kernel does not take


def _namespace(stack: ExitStack, name: str) -> str:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)
    _ip("-n", name, "link", "set", "lo", "up")
    return name


def _ip(*arguments: str) -> None:
    done = subprocess.run([require_binary("ip"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
