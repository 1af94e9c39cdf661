"""Noise on the socket: running receiving processes, and conversations of which nine tenths are damaged.

A part of them by default; ECHO_NODE_FUZZ=full runs 24,000. A conversation is a function of its number: what is wrong
with number 1234 is seen again by ECHO_NODE_FUZZ=1234, alone, and shown by `conversation(1234)`.
"""

import hashlib
import multiprocessing
import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from dicom_node.acceptor import listen, run_acceptor
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.schema import Instance
from dicom_node.settings import Settings, settings_from
from tests.binaries import free_port
from tests.doubles.datasets import data_part, encoded, loop
from tests.doubles.wire_fuzz import Conversation, Ending, conversation, datasets_of
from tests.doubles.wire_peer import IMPLICIT_LITTLE, US_MULTIFRAME, VERIFICATION, WirePeer

FUZZ = os.environ.get("ECHO_NODE_FUZZ", "")
FULL, SHARE, BATCH = 24_000, 1_000, 500
SEEDS = range(FULL) if FUZZ == "full" else range(int(FUZZ), int(FUZZ) + 1) if FUZZ.isdecimal() else range(SHARE)
AT_ONCE = 16
DEADLINE = 120.0
MAX_RESIDENT = 1_500_000_000
MAX_GROWTH = 60_000_000
"""Bytes that a process may be larger at the end than after its first batches."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """Running receiving processes."""

    port: int
    processes: Sequence[SpawnProcess]
    settings: Settings
    log: Path

    def usage(self) -> list[tuple[int, int, int]]:
        """Return bytes in memory, threads and open files of each process."""
        running = [psutil.Process(process.pid) for process in self.processes]
        return [(one.memory_info().rss, one.num_threads(), one.num_fds()) for one in running]

    def kept(self) -> dict[str, set[str]]:
        """Return the digests of the files of each instance in the ledger; each must be the one that its row says."""
        sessions = open_ledger(self.settings.database_url)
        with sessions() as session:
            rows = session.execute(select(Instance.sop_instance_uid, Instance.sha256, Instance.path)).all()
        close_ledger(sessions)
        found: dict[str, set[str]] = {}
        for uid, digest, path in rows:
            content = data_part((self.settings.node.data_dir / path).read_bytes())
            assert hashlib.sha256(content).hexdigest() == digest, f"{uid}: the file is not what its row says"
            found.setdefault(uid, set()).add(digest)
        return found


@dataclass(kw_only=True)
class Heard:
    """What the node said in a conversation."""

    seed: int
    success: list[str] = field(default_factory=list)
    """Affected SOP Instance UIDs of C-STOREs that were answered with 0x0000."""
    statuses: Counter[str] = field(default_factory=Counter)
    digests: frozenset[str] = frozenset()
    """Of every data set that was sent."""
    fault: str = ""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Two receiving processes on one port; nobody hears their bell."""
    settings = settings_from(
        {
            "node": {"data_dir": str(tmp_path / "data"), "min_free_bytes": 0, "max_associations_per_peer": 64},
            "broker": {"url": f"redis://127.0.0.1:{free_port()}/0"},
        }
    )
    (tmp_path / "data").mkdir()
    close_ledger(open_ledger(settings.database_url))
    spawn = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    with listen("127.0.0.1", 0) as listening:
        processes = [spawn.Process(target=_receive, args=(listening, settings, log)) for _ in range(2)]
        for process in processes:
            process.start()
        port = int(listening.getsockname()[1])
        try:
            _wait_until(lambda: log.exists() and log.read_text().count("acceptor_started") == 2, "the node listens")
            yield Node(port=port, processes=processes, settings=settings, log=log)
        finally:
            for process in processes:
                process.kill()
                process.join()


@pytest.mark.timeout(7200)
def test_no_conversation_harms_the_node_or_loses_what_had_success(node: Node) -> None:
    before, settled = node.usage(), [0] * len(node.processes)
    statuses: Counter[str] = Counter()
    success: list[Heard] = []
    sent: set[str] = set()
    began = time.monotonic()
    peak = 0
    for start in range(SEEDS.start, SEEDS.stop, BATCH):
        seeds = range(start, min(start + BATCH, SEEDS.stop))
        with ThreadPoolExecutor(AT_ONCE) as peers:
            heard = list(peers.map(lambda seed: _talk(seed, node.port), seeds))
        faults = [f"{one.seed}: {one.fault}" for one in heard if one.fault]
        assert not faults, faults
        for one in heard:
            statuses += one.statuses
            sent |= one.digests
        success += [one for one in heard if one.success]
        settled, peak = _assert_unharmed(node, before, settled, peak, start)
    seconds = time.monotonic() - began

    kept = node.kept()
    lost = [(one.seed, uid) for one in success for uid in one.success if not kept.get(uid, set()) & one.digests]
    assert lost == []
    assert {digest for digests in kept.values() for digest in digests} - {_GOOD_DIGEST} <= sent
    assert "store_failed" not in node.log.read_text()
    assert "admission_failed" not in node.log.read_text()
    print(
        f"{len(SEEDS)} conversations in {seconds:.0f} s, peak {peak / 1e6:.0f} MB a process, "
        f"{sum(len(one.success) for one in success)} with Success, {len(kept)} kept; {dict(statuses.most_common())}",
        file=sys.__stdout__,
    )


def _talk(seed: int, port: int) -> Heard:
    """Hold a conversation; what is wrong with it is said."""
    talk = conversation(seed)
    heard = Heard(
        seed=seed, digests=frozenset(hashlib.sha256(content).hexdigest() for content in datasets_of(talk.sent))
    )
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as line:
        try:
            is_over = _say(talk, line, received)
        except TimeoutError:
            heard.fault = "the node neither reads nor closes"
            return heard
        except ConnectionError:  # the node may cut off who talks nonsense
            is_over = True
        if not is_over and talk.ending is Ending.RESET:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _understand(bytes(received), heard)
    answers = [heard.statuses[f"C-STORE 0x{status:04X}"] for status in (0x0000, 0xA700)]  # a busy ledger: send it again
    if not talk.is_damaged and sum(answers) != talk.num_stores:
        heard.fault = f"{talk.num_stores} valid C-STOREs, {heard.statuses}"
    return heard


def _say(talk: Conversation, line: socket.socket, received: bytearray) -> bool:
    """Return whether the node has closed the connection."""
    patience = 0.1 if talk.is_damaged else DEADLINE  # who is not understood may get no answer
    for number, step in enumerate(talk.steps):
        line.settimeout(DEADLINE)
        line.sendall(step)
        is_request = number == 0 or step[:1] != b"\x04" or _ends_message(step)
        if is_request and not _hear(line, received, patience):
            return True
    if talk.ending is not Ending.HALF_CLOSED:
        return False
    line.settimeout(DEADLINE)
    with suppress(OSError):
        line.shutdown(socket.SHUT_WR)
    while piece := line.recv(65536):
        received += piece
    return True


def _ends_message(pdu: bytes) -> bool:
    """Return whether an answer is due: the last fragment is in it, of a data set or of a command without one."""
    position = 6
    is_due = False
    while position + 6 <= len(pdu):
        size, _, control = struct.unpack_from(">LBB", pdu, position)
        content = pdu[position + 6 : position + 4 + size]
        has_data = b"\x00\x00\x00\x08\x02\x00\x00\x00\x01\x01" not in content
        is_cancel = b"\x00\x00\x00\x01\x02\x00\x00\x00\xff\x0f" in content
        is_due |= control == 2 or (control == 3 and not has_data and not is_cancel)
        position += 4 + max(size, 2)
    return is_due


def _hear(line: socket.socket, received: bytearray, patience: float) -> bool:
    """Read at least one more PDU, if it comes; return whether the connection is open."""
    line.settimeout(patience)
    begin = len(received)
    try:
        while len(received) < begin + 6 or len(received) < begin + 6 + int.from_bytes(received[begin + 2 : begin + 6]):
            piece = line.recv(65536)
            if not piece:
                return False
            received += piece
    except TimeoutError:
        if patience == DEADLINE:
            raise
    return True


def _understand(received: bytes, heard: Heard) -> None:
    """Take the answers out of what the node said."""
    position = 0
    while position + 6 <= len(received):
        kind, _, length = struct.unpack_from(">BBL", received, position)
        content = received[position + 6 : position + 6 + length]
        position += 6 + length
        if kind != 4:
            heard.statuses[{2: "accepted", 3: "rejected", 6: "released", 7: "aborted"}.get(kind, f"PDU {kind}")] += 1
            continue
        command = _elements(content[6:])
        status = int.from_bytes(command.get(0x0900, b"\xff\xff"), "little")
        is_store = command.get(0x0100) == b"\x01\x80"
        heard.statuses[f"{'C-STORE' if is_store else 'other'} 0x{status:04X}"] += 1
        if is_store and status == 0:
            heard.success.append(command[0x1000].decode().rstrip("\0"))


def _elements(command: bytes) -> dict[int, bytes]:
    elements = {}
    position = 0
    while position + 8 <= len(command):
        _, element, length = struct.unpack_from("<HHL", command, position)
        elements[element] = command[position + 8 : position + 8 + length]
        position += 8 + length
    return elements


_GOOD = encoded(loop("1.2.3.4.5", study="1.2.3.4"))
_GOOD_DIGEST = hashlib.sha256(_GOOD).hexdigest()


def _assert_unharmed(
    node: Node, before: list[tuple[int, int, int]], settled: list[int], peak: int, start: int
) -> tuple[list[int], int]:
    """Hold that the processes live, are no larger than they may be, have let everything go, and still serve."""
    where = f"in the batch of {start}"
    assert all(process.is_alive() for process in node.processes), f"a process died {where}"
    with WirePeer(node.port) as peer:
        peer.associate((VERIFICATION, (IMPLICIT_LITTLE,)), (US_MULTIFRAME, ("1.2.840.10008.1.2.1",)))
        assert peer.echo() == 0x0000, where
        assert peer.store(_GOOD, "1.2.3.4.5", context=3).status == 0x0000, where
        peer.release()
    spare = 4  # a connection to the broker, a file of the ledger
    _wait_until(
        lambda: all(
            threads <= base[1] + spare and files <= base[2] + spare * 4
            for (_, threads, files), base in zip(node.usage(), before, strict=True)
        ),
        f"threads and files are let go {where}",
    )
    highest = [_highest_resident(process.pid) for process in node.processes]
    assert max(highest) < MAX_RESIDENT, where
    now = [one[0] for one in node.usage()]
    settled = now if start < 2 * BATCH else settled
    assert all(late - early < MAX_GROWTH for late, early in zip(now, settled, strict=True)), (where, settled, now)
    return settled, max(peak, *highest)


def _highest_resident(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _receive(listening: socket.socket, settings: Settings, log: Path) -> None:
    """Be a receiving process whose log goes into a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    run_acceptor(listening, settings)


def _wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, f"not in {DEADLINE:.0f} s: {what}"
        time.sleep(0.02)
